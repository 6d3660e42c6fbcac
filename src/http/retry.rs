//! Decides whether a failed request is sent again, and when.

use std::time::Duration;

use super::error::{Cause, Error};
use super::request::Repeat;

/// What to do after a failed attempt at a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Report the error; a later attempt of the whole run may succeed.
    Stop,
    Now,
    After(Duration),
}

/// The failed attempts at one request so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attempts {
    rate_limited: u32,
    token_rejected: u32,
    /// For any other reason.
    failed: u32,
}

/// Whether there is another token than the one that the failed attempt used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenState {
    Unchanged,
    Renewed,
}

/// Retries of one request after failures other than rate limiting.
const MAX_RETRIES: u32 = 3;
/// Retries of one request after its token was rejected: with a new one, and when Synapse's memory of a refusal is over.
const MAX_TOKEN_REJECTIONS: u32 = 2;
/// Retries of one request after rate limiting.
const MAX_RATE_LIMITED: u32 = 8;
/// A longer wait is left to the retries of the run.
const MAX_WAIT: Duration = Duration::from_mins(1);

impl Attempts {
    /// Whether another token may be tried, or the same one once more.
    pub(crate) fn may_renew_token(self) -> bool {
        self.token_rejected < MAX_TOKEN_REJECTIONS
    }

    /// Adds the attempt that failed with `error`.
    pub(crate) fn add(&mut self, error: &Error) {
        let count = if error.is_rate_limited() {
            &mut self.rate_limited
        } else if error.is_about_token() {
            &mut self.token_rejected
        } else {
            &mut self.failed
        };
        *count += 1;
    }
}

/// Decides what to do after an attempt failed with `error`.
///
/// `previous` are the failed attempts before this one. `jitter` is random, from 0 to 1.
pub(crate) fn decide(
    error: &Error,
    repeat: Repeat,
    previous: Attempts,
    token: TokenState,
    jitter: f64,
) -> Retry {
    if matches!(error.cause, Cause::Cancelled) {
        return Retry::Stop;
    }
    let token_renewed = token == TokenState::Renewed && previous.may_renew_token();
    if error.is_about_token() && token_renewed {
        return Retry::Now;
    }
    if repeat == Repeat::Never {
        return Retry::Stop;
    }
    if error.is_rate_limited() {
        // The server did nothing: even what must not be done twice can be sent again.
        let backoff = Duration::from_secs(1 << previous.rate_limited.min(5));
        let wait = error.retry_after().unwrap_or(backoff);
        return if previous.rate_limited == MAX_RATE_LIMITED || wait > MAX_WAIT {
            Retry::Stop
        } else {
            Retry::After(wait.mul_f64(1.0 + jitter * 0.1))
        };
    }
    let was_not_sent = matches!(error.cause, Cause::Unreachable(_));
    if previous.failed == MAX_RETRIES
        || !error.is_transient()
        || !(repeat == Repeat::Always || was_not_sent)
    {
        return Retry::Stop;
    }
    let longest = Duration::from_secs(1 << previous.failed);
    Retry::After(longest.mul_f64(0.5 + jitter * 0.5))
}

#[cfg(test)]
mod tests {
    use super::Repeat::{Always, IfNotApplied, Never};
    use super::Retry::{After, Now, Stop};
    use super::TokenState::{Renewed, Unchanged};
    use super::*;
    use reqwest::Method;

    const NONE: Attempts = Attempts { rate_limited: 0, token_rejected: 0, failed: 0 };

    fn error(cause: Cause) -> Error {
        Error { method: Method::POST, path: "/x".to_owned(), cause, advice: None }
    }

    fn synapse(status: u16, errcode: &str, retry_after: Option<Duration>) -> Error {
        let (errcode, error_text) = (errcode.to_owned(), String::new());
        error(Cause::Synapse { status, errcode, error: error_text, retry_after })
    }

    fn rate_limited(retry_after_ms: Option<u64>) -> Error {
        synapse(429, "M_LIMIT_EXCEEDED", retry_after_ms.map(Duration::from_millis))
    }

    fn ms(milliseconds: u64) -> Retry {
        After(Duration::from_millis(milliseconds))
    }

    #[test]
    fn a_failure_is_retried_only_where_the_request_may_be_repeated() {
        let unreachable = || error(Cause::Unreachable("refused".to_owned()));
        let lost = || error(Cause::Lost("cut".to_owned()));
        let gateway =
            || error(Cause::NotSynapse { status: 502, excerpt: String::new(), retry_after: None });
        for (error, always, if_not_applied, never) in [
            (unreachable(), ms(1000), ms(1000), Stop),
            (lost(), ms(1000), Stop, Stop),
            (gateway(), ms(1000), Stop, Stop),
            (synapse(503, "M_UNKNOWN", None), ms(1000), Stop, Stop),
            (rate_limited(None), ms(1100), ms(1100), Stop),
            (rate_limited(Some(300)), ms(330), ms(330), Stop),
            (rate_limited(Some(60_000)), ms(66_000), ms(66_000), Stop),
            (rate_limited(Some(60_001)), Stop, Stop, Stop),
            (synapse(400, "M_INVALID_PARAM", None), Stop, Stop, Stop),
            (synapse(401, "M_UNKNOWN_TOKEN", None), Stop, Stop, Stop),
            (error(Cause::NotSent("header".to_owned())), Stop, Stop, Stop),
            (error(Cause::Cancelled), Stop, Stop, Stop),
            (error(Cause::Changed), Stop, Stop, Stop),
        ] {
            let decided = [Always, IfNotApplied, Never]
                .map(|repeat| decide(&error, repeat, NONE, Unchanged, 1.0));
            assert_eq!(decided, [always, if_not_applied, never], "{error}");
        }
    }

    #[test]
    fn waits_grow_with_each_attempt_until_the_last() {
        let decisions = |error: &Error, jitter: f64| {
            let (mut previous, mut decided) = (Attempts::default(), Vec::new());
            loop {
                match decide(error, Always, previous, Unchanged, jitter) {
                    After(wait) => decided.push(wait.as_millis()),
                    Stop => return decided,
                    Now => panic!("{previous:?}"),
                }
                previous.add(error);
            }
        };
        let unreachable = error(Cause::Unreachable("refused".to_owned()));
        assert_eq!(decisions(&unreachable, 0.0), [500, 1000, 2000]);
        assert_eq!(decisions(&unreachable, 1.0), [1000, 2000, 4000]);
        assert_eq!(
            decisions(&rate_limited(None), 0.0),
            [1000, 2000, 4000, 8000, 16_000, 32_000, 32_000, 32_000]
        );
        assert_eq!(decisions(&rate_limited(Some(5)), 0.0), [5; 8]);
    }

    #[test]
    fn a_rejected_token_is_replaced_at_most_twice() {
        let rejected = synapse(401, "M_UNKNOWN_TOKEN", None);
        let mut previous = Attempts::default();
        for repeat in [Always, IfNotApplied, Never] {
            assert_eq!(decide(&rejected, repeat, previous, Unchanged, 0.0), Stop);
            assert_eq!(decide(&rejected, repeat, previous, Renewed, 0.0), Now);
        }
        previous.add(&rejected);
        assert_eq!(decide(&rejected, Always, previous, Renewed, 0.0), Now);
        previous.add(&rejected);
        assert_eq!(decide(&rejected, Always, previous, Renewed, 0.0), Stop);
        let unrelated = synapse(400, "M_UNKNOWN", None);
        assert_eq!(decide(&unrelated, Always, NONE, Renewed, 0.0), Stop);
    }

    #[test]
    fn failures_and_rate_limits_are_counted_apart() {
        let unreachable = error(Cause::Unreachable("refused".to_owned()));
        let mut previous = Attempts::default();
        for _ in 0..MAX_RETRIES {
            previous.add(&unreachable);
        }
        assert_eq!(decide(&unreachable, Always, previous, Unchanged, 0.0), Stop);
        assert_eq!(decide(&rate_limited(None), Always, previous, Unchanged, 0.0), ms(1000));
    }
}
