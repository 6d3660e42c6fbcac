//! Limits on requests to one address: how many at a time, and how many per second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::Cause;
use crate::values::schema::{Limit, Rate};

/// The limits of an address as they are configured.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "named after the keys of the configuration")]
pub struct LimitValues {
    pub max_concurrent_requests: u32,
    pub max_requests_per_second: Limit<Rate>,
    pub max_joins_per_second: Limit<Rate>,
}

/// The limits of an address, shared by all runs and homeserver names that use it, also across reloads.
#[derive(Debug)]
pub struct Limits {
    pub(super) request_slots: Slots,
    pub(super) requests: Pacer,
    pub(super) joins: Pacer,
    requests_per_second: Mutex<Limit<Rate>>,
}

impl Limits {
    pub fn new(values: LimitValues) -> Self {
        Self {
            request_slots: Slots::new(values.max_concurrent_requests),
            requests: Pacer::new(values.max_requests_per_second),
            joins: Pacer::new(values.max_joins_per_second),
            requests_per_second: Mutex::new(values.max_requests_per_second),
        }
    }

    pub(super) fn requests_per_second(&self) -> Limit<Rate> {
        *self.requests_per_second.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the limits; requests that already wait for the rate limit keep their time.
    pub fn set(&self, values: LimitValues) {
        self.request_slots.resize(values.max_concurrent_requests);
        self.requests.set(values.max_requests_per_second);
        self.joins.set(values.max_joins_per_second);
        *self.requests_per_second.lock().unwrap_or_else(PoisonError::into_inner) =
            values.max_requests_per_second;
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

/// Spaces requests evenly.
#[derive(Debug)]
pub(super) struct Pacer {
    interval: Mutex<Option<Duration>>,
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    pub(super) fn new(rate: Limit<Rate>) -> Self {
        Self { interval: Mutex::new(interval(rate)), next: Mutex::new(None) }
    }

    fn set(&self, rate: Limit<Rate>) {
        *self.interval.lock().unwrap_or_else(PoisonError::into_inner) = interval(rate);
    }

    /// Waits for the next turn, and reserves `turns` times the usual interval after it.
    pub(super) async fn wait(&self, turns: u32) {
        let interval = *self.interval.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(interval) = interval else { return };
        let at = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Waits for `ready`, which must not send anything, or fails as soon as `cancel` is cancelled.
pub(super) async fn unless_cancelled<T>(
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
        let (pacer, start) = (Pacer::new(Limit::Of(Rate(10.0))), Instant::now());
        for turns in [1, 2, 1, 1] {
            pacer.wait(turns).await;
        }
        assert_eq!(start.elapsed().as_millis(), 400);
    }
}
