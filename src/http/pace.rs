//! Limits on requests to one address: how many at a time, and how many per second.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::auto_rate::{AutoRate, RateChange};
use super::error::Cause;
use crate::values::schema::{Limit, Rate, RateLimit};

/// The limits of an address as they are configured.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "named after the keys of the configuration")]
pub struct LimitValues {
    pub max_concurrent_requests: u32,
    pub max_requests_per_second: RateLimit,
    pub max_joins_per_second: Limit<Rate>,
}

/// The limits of an address, shared by all runs and homeserver names that use it, also across reloads.
#[derive(Debug)]
pub struct Limits {
    pub(crate) request_slots: Slots,
    pub(crate) joins: Pacer,
    requests: Turns,
    request_rate: Mutex<RequestRate>,
}

#[derive(Debug)]
struct RequestRate {
    limit: RateLimit,
    /// Present if the limit is "auto".
    auto: Option<AutoRate>,
    active_runs: u32,
}

/// A run that uses the homeserver; the next run starts anew once there is none.
#[derive(Debug)]
pub(crate) struct ActiveRun(Arc<Limits>);

impl Drop for ActiveRun {
    fn drop(&mut self) {
        self.0.request_rate().active_runs -= 1;
    }
}

/// What the response to a request says about the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// The latency of a request about one object.
    Latency {
        endpoint: &'static str,
        took: Duration,
    },
    /// No response, or a status of 429 or 5xx.
    Overload,
    None,
}

impl Limits {
    pub fn new(values: LimitValues) -> Self {
        let limit = values.max_requests_per_second;
        Self {
            request_slots: Slots::new(values.max_concurrent_requests),
            joins: Pacer::new(values.max_joins_per_second),
            requests: Turns::default(),
            request_rate: Mutex::new(RequestRate { limit, auto: auto(limit), active_runs: 0 }),
        }
    }

    pub(crate) fn requests_per_second(&self) -> RateLimit {
        self.request_rate().limit
    }

    /// Requests per second that are allowed at present; `None` without a limit.
    pub fn current_rate(&self) -> Option<f64> {
        let rate = self.request_rate();
        rate.auto.as_ref().map(AutoRate::limit).or(rate.limit.number().map(|rate| rate.0))
    }

    /// The same where the program determines the rate.
    pub(crate) fn auto_rate(&self) -> Option<f64> {
        self.request_rate().auto.as_ref().map(AutoRate::limit)
    }

    /// Registers a run. The first one finds nothing of what earlier runs learned; one that begins while another is active
    /// goes on with its rate, because the rate belongs to the homeserver and was found just now.
    pub(crate) fn begin_run(self: &Arc<Self>) -> ActiveRun {
        let mut rate = self.request_rate();
        if rate.active_runs == 0 {
            rate.auto = auto(rate.limit);
        }
        rate.active_runs += 1;
        ActiveRun(Arc::clone(self))
    }

    /// Changes the limits; requests that already wait for the rate limit keep their time.
    pub fn set(&self, values: LimitValues) {
        self.request_slots.resize(values.max_concurrent_requests);
        self.joins.set(values.max_joins_per_second);
        let mut rate = self.request_rate();
        rate.limit = values.max_requests_per_second;
        match (&mut rate.auto, values.max_requests_per_second) {
            (Some(auto), RateLimit::Auto(max)) => auto.set_max(max.0),
            (current, limit) => *current = auto(limit),
        }
    }

    /// Waits for the next turn, and reserves `turns` times the usual interval after it.
    pub(crate) async fn request_turn(&self, turns: u32) {
        let interval = {
            let rate = self.request_rate();
            let current = rate.auto.as_ref().map(|auto| Rate(auto.current()));
            current.or(rate.limit.number()).map(Rate::interval)
        };
        if let Some(interval) = interval {
            self.requests.wait(interval, turns).await;
        }
        if let Some(auto) = &mut self.request_rate().auto {
            auto.sent();
        }
    }

    /// Adjusts the rate to what the response to a request says; returns a change that is worth a line in the log.
    pub(super) fn adjust(&self, sign: Sign, sent: Instant) -> Option<RateChange> {
        let mut rate = self.request_rate();
        let (auto, now) = (rate.auto.as_mut()?, Instant::now());
        match sign {
            Sign::Latency { endpoint, took } => auto.answered(now, endpoint, took),
            Sign::Overload => auto.failed(now, sent),
            Sign::None => {}
        }
        auto.take_change(now)
    }

    fn request_rate(&self) -> MutexGuard<'_, RequestRate> {
        self.request_rate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn auto(limit: RateLimit) -> Option<AutoRate> {
    match limit {
        RateLimit::Auto(max) => Some(AutoRate::new(Instant::now(), max.0)),
        RateLimit::Of(_) | RateLimit::Unlimited => None,
    }
}

/// A semaphore whose size can be changed while it is in use.
#[derive(Debug)]
pub struct Slots {
    semaphore: Arc<Semaphore>,
    size: Mutex<u32>,
}

impl Slots {
    pub fn new(size: u32) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(size as usize)), size: Mutex::new(size) }
    }

    pub fn semaphore(&self) -> &Arc<Semaphore> {
        &self.semaphore
    }

    /// Changes the number of slots. Surplus slots that are taken are removed once they are released.
    pub fn resize(&self, to: u32) {
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        let from = std::mem::replace(&mut *size, to);
        self.semaphore.add_permits(to.saturating_sub(from) as usize);
        if to < from {
            let semaphore = Arc::clone(&self.semaphore);
            tokio::spawn(async move {
                if let Ok(taken) = semaphore.acquire_many_owned(from - to).await {
                    taken.forget();
                }
            });
        }
    }
}

/// Spaces requests evenly, at a fixed rate.
#[derive(Debug)]
pub(crate) struct Pacer {
    interval: Mutex<Option<Duration>>,
    turns: Turns,
}

impl Pacer {
    pub(crate) fn new(rate: Limit<Rate>) -> Self {
        Self { interval: Mutex::new(interval(rate)), turns: Turns::default() }
    }

    fn set(&self, rate: Limit<Rate>) {
        *self.interval.lock().unwrap_or_else(PoisonError::into_inner) = interval(rate);
    }

    /// Waits for the next turn.
    pub(crate) async fn wait(&self) {
        let interval = *self.interval.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interval) = interval {
            self.turns.wait(interval, 1).await;
        }
    }
}

/// The time of the next request.
#[derive(Debug, Default)]
struct Turns(Mutex<Option<Instant>>);

impl Turns {
    /// Waits for the next turn, and reserves `turns` times the interval after it.
    async fn wait(&self, interval: Duration, turns: u32) {
        let at = {
            let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let at = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(at + interval * turns);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

fn interval(rate: Limit<Rate>) -> Option<Duration> {
    rate.number().map(Rate::interval)
}

/// Waits for `ready`, which must not change anything on the server, or fails as soon as `cancel` is cancelled.
pub(crate) async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    ready: impl Future<Output = T>,
) -> Result<T, Cause> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Cause::Cancelled),
        ready = ready => Ok(ready),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_are_evenly_spaced_and_a_double_turn_takes_twice_the_interval() {
        let (turns, start) = (Turns::default(), Instant::now());
        for count in [1, 2, 1, 1] {
            turns.wait(Duration::from_millis(100), count).await;
        }
        assert_eq!(start.elapsed().as_millis(), 400);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_starts_anew_unless_another_one_is_active() {
        let limits = Arc::new(Limits::new(LimitValues {
            max_concurrent_requests: 4,
            max_requests_per_second: RateLimit::AUTO,
            max_joins_per_second: Limit::Unlimited,
        }));
        let overload = || limits.adjust(Sign::Overload, Instant::now());
        let first = limits.begin_run();
        overload();
        assert_eq!(limits.current_rate(), Some(25.0));
        let second = limits.begin_run();
        drop(first);
        assert_eq!(limits.current_rate(), Some(25.0));
        drop(second);
        let _third = limits.begin_run();
        assert_eq!(limits.current_rate(), Some(50.0));
    }
}
