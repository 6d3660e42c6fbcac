//! Whether a run tries again after an error, and when.

use std::time::Duration;

use crate::config::Retries;
use crate::synapse;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Retry {
    Stop(Stop),
    Now,
    After(Duration),
}

/// Why there is no other attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The homeserver does not offer what the kind needs, and nothing was changed.
    Refused,
    /// The error is not transient, or this was the last attempt.
    Failed,
    NoTimeLeft,
}

/// What a run has done when an attempt fails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    /// Counts from 1, over restarts.
    pub number: u32,
    /// Items changed so far.
    pub applied: u64,
    pub time_left: Duration,
}

/// Decides about the next attempt: exponential delays with full jitter, but no sooner than the homeserver says.
///
/// `jitter` is drawn from 0 to 1.
pub(super) fn decide(
    error: &synapse::Error,
    attempt: Attempt,
    retries: &Retries,
    jitter: f64,
) -> Retry {
    if (error.is_unrecognized() || error.is_not_enabled()) && attempt.applied == 0 {
        return Retry::Stop(Stop::Refused);
    }
    if !error.is_transient() || attempt.number >= retries.attempts {
        return Retry::Stop(Stop::Failed);
    }
    let doublings = attempt.number.saturating_sub(1).min(20);
    let bound = retries.first_delay.0.saturating_mul(1 << doublings).min(retries.max_delay.0);
    let delay = bound.mul_f64(jitter).max(error.retry_after().unwrap_or_default());
    if delay >= attempt.time_left {
        Retry::Stop(Stop::NoTimeLeft)
    } else if delay.is_zero() {
        Retry::Now
    } else {
        Retry::After(delay)
    }
}

#[cfg(test)]
mod tests {
    use reqwest::Method;

    use super::*;
    use crate::synapse::Cause;

    fn error(cause: Cause) -> synapse::Error {
        synapse::Error { method: Method::GET, path: "/".to_owned(), cause, advice: None }
    }

    fn synapse(status: u16, errcode: &str, retry_after: Option<u64>) -> synapse::Error {
        error(Cause::Synapse {
            status,
            errcode: errcode.to_owned(),
            error: String::new(),
            retry_after: retry_after.map(Duration::from_secs),
        })
    }

    #[test]
    fn an_error_is_retried_only_if_that_may_help() {
        use super::Stop::{Failed, NoTimeLeft, Refused};
        use Retry::{After, Now, Stop};
        let lost = || error(Cause::Lost("connection closed".to_owned()));
        let limited = |seconds| synapse(429, "M_LIMIT_EXCEEDED", Some(seconds));
        let unknown = || synapse(404, "M_UNRECOGNIZED", None);
        let denied = || synapse(403, "M_FORBIDDEN", None);
        let secs = Duration::from_secs;
        // error, attempt of 4, items applied, seconds left, jitter
        let table = [
            (lost(), 1, 0, 3600, 1.0, After(secs(10))),
            (lost(), 2, 0, 3600, 1.0, After(secs(20))),
            (lost(), 3, 5, 3600, 1.0, After(secs(30))),
            (lost(), 3, 5, 3600, 0.5, After(secs(15))),
            (lost(), 1, 0, 3600, 0.0, Now),
            (lost(), 4, 0, 3600, 1.0, Stop(Failed)),
            (lost(), 5, 0, 3600, 1.0, Stop(Failed)),
            (lost(), 1, 0, 10, 1.0, Stop(NoTimeLeft)),
            (lost(), 1, 0, 11, 1.0, After(secs(10))),
            (lost(), 1, 0, 0, 0.0, Stop(NoTimeLeft)),
            (limited(100), 1, 0, 3600, 0.5, After(secs(100))),
            (limited(4000), 1, 0, 3600, 0.5, Stop(NoTimeLeft)),
            (limited(1), 1, 0, 3600, 1.0, After(secs(10))),
            (synapse(503, "M_UNKNOWN", None), 1, 0, 3600, 1.0, After(secs(10))),
            (denied(), 1, 0, 3600, 1.0, Stop(Failed)),
            (unknown(), 1, 0, 3600, 1.0, Stop(Refused)),
            (unknown(), 1, 1, 3600, 1.0, Stop(Failed)),
        ];
        let retries = Retries {
            attempts: 4,
            first_delay: "10s".parse().unwrap(),
            max_delay: "30s".parse().unwrap(),
        };
        for (error, number, applied, seconds, jitter, expected) in table {
            let attempt = Attempt { number, applied, time_left: secs(seconds) };
            let decision = decide(&error, attempt, &retries, jitter);
            assert_eq!(decision, expected, "{error}: {attempt:?}, jitter {jitter}");
        }
    }
}
