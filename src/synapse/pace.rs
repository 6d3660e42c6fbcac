//! How fast requests go out: a steady rate, halved while Synapse answers slowly.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::Cause;
use crate::keys::{Limit, Rate};

/// Hands out moments to send at, evenly spaced.
#[derive(Debug)]
pub(super) struct Pacer {
    interval: Option<Duration>,
    next: Mutex<Option<Instant>>,
}

impl Pacer {
    pub(super) fn new(rate: Limit<Rate>) -> Self {
        Self { interval: rate.number().map(Rate::interval), next: Mutex::new(None) }
    }

    /// Waits for a turn that takes `turns` times the usual space.
    pub(super) async fn wait(&self, turns: u32) {
        let Some(interval) = self.interval else { return };
        let at = {
            let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let at = next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            *next = Some(at + interval * turns);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

/// Compares how long one run's answers take with how long they took when the run began.
#[derive(Debug, Default)]
pub struct Watch(Mutex<HashMap<&'static str, Latencies>>);

#[derive(Debug, Default)]
struct Latencies {
    at_start: Vec<Duration>,
    recent: VecDeque<Duration>,
}

/// Answers that are looked at, both at the start and now.
const SAMPLES: usize = 10;
/// An answer that takes three times as long as at the start is slow.
const SLOWER: u32 = 3;
/// Below this even three times as long says nothing about load.
const NOISE: Duration = Duration::from_millis(15);

impl Watch {
    pub(super) fn record(&self, endpoint: &'static str, took: Duration) {
        let mut endpoints = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let latencies = endpoints.entry(endpoint).or_default();
        if latencies.at_start.len() < SAMPLES {
            latencies.at_start.push(took);
            return;
        }
        if latencies.recent.len() == SAMPLES {
            latencies.recent.pop_front();
        }
        latencies.recent.push_back(took);
    }

    /// Whether Synapse takes three times as long for some endpoint as at the start of the run.
    pub fn is_slow(&self) -> bool {
        let endpoints = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        endpoints.values().any(|latencies| {
            latencies.recent.len() == SAMPLES && {
                let now = median(latencies.recent.iter().copied());
                now > NOISE && now > median(latencies.at_start.iter().copied()) * SLOWER
            }
        })
    }
}

/// Waits for something that sends nothing, unless it is given up first.
pub(super) async fn unless<T>(
    given_up: &CancellationToken,
    ready: impl Future<Output = T>,
) -> Result<T, Cause> {
    tokio::select! {
        biased;
        () = given_up.cancelled() => Err(Cause::GivenUp),
        ready = ready => Ok(ready),
    }
}

fn median(values: impl Iterator<Item = Duration>) -> Duration {
    let mut values: Vec<Duration> = values.collect();
    values.sort_unstable();
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(watch: &Watch, times: usize, ms: u64) {
        for _ in 0..times {
            watch.record("/x", Duration::from_millis(ms));
        }
    }

    #[test]
    fn three_times_the_first_answers_is_slow_and_passes_again() {
        let watch = Watch::default();
        record(&watch, SAMPLES, 20);
        record(&watch, SAMPLES, 59);
        assert!(!watch.is_slow());
        record(&watch, SAMPLES, 61);
        assert!(watch.is_slow());
        record(&watch, SAMPLES, 25);
        assert!(!watch.is_slow());
    }

    #[test]
    fn one_slow_answer_is_not_a_slow_homeserver() {
        let watch = Watch::default();
        record(&watch, SAMPLES, 20);
        record(&watch, SAMPLES - 1, 20);
        record(&watch, 1, 5000);
        assert!(!watch.is_slow());
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_evenly_spaced_and_a_double_turn_takes_twice_the_space() {
        let (pacer, start) = (Pacer::new(Limit::Of(Rate(10.0))), Instant::now());
        for turns in [1, 2, 1, 1] {
            pacer.wait(turns).await;
        }
        assert_eq!(start.elapsed().as_millis(), 400);
    }
}
