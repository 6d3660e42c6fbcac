//! Watches the responses of one run: whether they come, and whether they have become slow.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Method;
use tokio::time::Instant;

use super::error::Error;

/// Compares the latencies of one run's requests with those at its start, and notices when no responses arrive.
#[derive(Debug, Default)]
pub(crate) struct ResponseMonitor {
    latencies: Mutex<HashMap<&'static str, Latencies>>,
    requests: Mutex<Requests>,
    rates: Mutex<Rates>,
}

/// The request rate that was allowed in the intervals in which the run completed requests.
#[derive(Debug, Default)]
struct Rates {
    samples: u32,
    sum: f64,
    peak: f64,
    /// The run's requests at the last sample.
    requests: u64,
}

/// Fewer samples, each after half a second, say nothing about a rate that is still rising.
const MIN_RATE_SAMPLES: u32 = 4;

/// The open requests of a run, and since when none succeeded.
#[derive(Debug, Default)]
struct Requests {
    /// When each was sent, oldest first.
    open: BTreeMap<u64, Instant>,
    next_number: u64,
    last_response: Option<Instant>,
    /// When the first of the current series of failures was sent.
    failing_since: Option<Instant>,
    problem: String,
}

/// A homeserver that does not respond to one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    pub since: Instant,
    /// The last error; empty if there was none.
    pub problem: String,
}

#[derive(Debug, Default)]
struct Latencies {
    at_start: Vec<Duration>,
    recent: VecDeque<Duration>,
}

/// The number of latencies that are compared, both at the start and now.
const SAMPLES: usize = 10;
/// How many times as long as at the start a response takes that counts as slow.
const SLOW_FACTOR: u32 = 3;
/// A faster response is never slow: the difference says nothing about load.
const MIN_SLOW: Duration = Duration::from_millis(15);
/// How long a response may take before the homeserver counts as silent: lists of large homeservers take seconds.
const MAX_RESPONSE_TIME: Duration = Duration::from_secs(5);

/// A request in progress. Only a GET counts as open: a media purge may take hours.
pub(crate) struct OpenRequest<'a> {
    monitor: &'a ResponseMonitor,
    number: Option<u64>,
}

impl<'a> OpenRequest<'a> {
    pub(crate) fn new(monitor: &'a ResponseMonitor, method: &Method) -> Self {
        Self { monitor, number: (*method == Method::GET).then(|| monitor.request_sent()) }
    }

    pub(crate) fn complete(mut self, error: Option<&Error>) {
        let number = self.number.take().unwrap_or_else(|| self.monitor.request_sent());
        let outage = error.filter(|error| error.is_outage());
        self.monitor.request_completed(number, outage.map(Error::message));
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.monitor.request_dropped(number);
        }
    }
}

impl ResponseMonitor {
    /// Returns the number of the request, for one of the next two functions.
    fn request_sent(&self) -> u64 {
        let mut requests = self.requests();
        let number = requests.next_number;
        requests.next_number += 1;
        requests.open.insert(number, Instant::now());
        number
    }

    /// `outage` is the error if the homeserver did not respond.
    fn request_completed(&self, number: u64, outage: Option<String>) {
        let mut requests = self.requests();
        let sent = requests.open.remove(&number);
        if let Some(problem) = outage {
            requests.failing_since = requests.failing_since.or(sent);
            requests.problem = problem;
        } else {
            requests.last_response = Some(Instant::now());
            requests.failing_since = None;
            requests.problem.clear();
        }
    }

    fn request_dropped(&self, number: u64) {
        self.requests().open.remove(&number);
    }

    /// Returns since when the homeserver has not responded: all attempts fail, or a request is open and no response arrives.
    pub(crate) fn silence(&self) -> Option<Silence> {
        let requests = self.requests();
        let oldest = requests.open.values().next().copied();
        let unanswered =
            oldest.map(|sent| requests.last_response.map_or(sent, |last| last.max(sent)));
        let since = requests
            .failing_since
            .or(unanswered.filter(|since| since.elapsed() > MAX_RESPONSE_TIME))?;
        Some(Silence { since, problem: requests.problem.clone() })
    }

    /// `requests` are those that the run completed so far.
    pub(crate) fn sample_rate(&self, rate: Option<f64>, requests: u64) {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = std::mem::replace(&mut rates.requests, requests) == requests;
        if let Some(rate) = rate.filter(|_| !is_idle) {
            rates.samples += 1;
            rates.sum += rate;
            rates.peak = rates.peak.max(rate);
        }
    }

    /// Returns mean and peak as a sentence; `None` for a short run.
    pub(crate) fn rate_summary(&self) -> Option<String> {
        let rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        (rates.samples >= MIN_RATE_SAMPLES).then(|| {
            let mean = rates.sum / f64::from(rates.samples);
            format!(
                "allowed request rate: {mean:.0} per second on average, {:.0} at its peak",
                rates.peak
            )
        })
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record_latency(&self, endpoint: &'static str, latency: Duration) {
        let mut endpoints = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let latencies = endpoints.entry(endpoint).or_default();
        if latencies.at_start.len() < SAMPLES {
            latencies.at_start.push(latency);
            return;
        }
        if latencies.recent.len() == SAMPLES {
            latencies.recent.pop_front();
        }
        latencies.recent.push_back(latency);
    }

    /// Whether some endpoint takes three times as long as at the start of the run.
    pub(crate) fn is_slow(&self) -> bool {
        let endpoints = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.values().any(|latencies| {
            latencies.recent.len() == SAMPLES && {
                let now = median(latencies.recent.iter().copied());
                now > MIN_SLOW && now > median(latencies.at_start.iter().copied()) * SLOW_FACTOR
            }
        })
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

    fn record(monitor: &ResponseMonitor, times: usize, ms: u64) {
        for _ in 0..times {
            monitor.record_latency("/x", Duration::from_millis(ms));
        }
    }

    #[test]
    fn responses_that_take_three_times_as_long_as_at_the_start_are_slow() {
        let monitor = ResponseMonitor::default();
        record(&monitor, SAMPLES, 20);
        record(&monitor, SAMPLES, 59);
        assert!(!monitor.is_slow());
        record(&monitor, SAMPLES, 61);
        assert!(monitor.is_slow());
        record(&monitor, SAMPLES, 25);
        assert!(!monitor.is_slow());
    }

    #[tokio::test(start_paused = true)]
    async fn a_homeserver_is_silent_while_all_requests_fail_or_one_stays_open() {
        let monitor = ResponseMonitor::default();
        let start = Instant::now();
        let silence = || {
            monitor.silence().map(|silence| ((silence.since - start).as_secs(), silence.problem))
        };
        let first = monitor.request_sent();
        tokio::time::advance(MAX_RESPONSE_TIME).await;
        assert_eq!(silence(), None, "a response may take this long");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(silence(), Some((0, String::new())));
        monitor.request_completed(first, None);
        assert_eq!(silence(), None);
        let (second, third) = (monitor.request_sent(), monitor.request_sent());
        tokio::time::advance(Duration::from_secs(1)).await;
        monitor.request_completed(second, Some("refused".to_owned()));
        assert_eq!(silence(), Some((6, "refused".to_owned())));
        monitor.request_completed(third, None);
        assert_eq!(silence(), None, "one response ends the silence");
        let dropped = monitor.request_sent();
        monitor.request_dropped(dropped);
        tokio::time::advance(MAX_RESPONSE_TIME * 2).await;
        assert_eq!(silence(), None, "no request is open");
    }

    #[test]
    fn the_rate_is_summarized_over_the_time_in_which_requests_were_made() {
        let monitor = ResponseMonitor::default();
        for number in 1..=3 {
            monitor.sample_rate(Some(100.0), number);
        }
        for _ in 0..50 {
            monitor.sample_rate(Some(7.0), 3);
        }
        assert_eq!(monitor.rate_summary(), None);
        monitor.sample_rate(Some(200.0), 4);
        let expected = "allowed request rate: 125 per second on average, 200 at its peak";
        assert_eq!(monitor.rate_summary().as_deref(), Some(expected));
        let fixed = ResponseMonitor::default();
        for number in 0..50 {
            fixed.sample_rate(None, number);
        }
        assert_eq!(fixed.rate_summary(), None);
    }

    #[test]
    fn one_slow_response_does_not_make_a_homeserver_slow() {
        let monitor = ResponseMonitor::default();
        record(&monitor, SAMPLES, 20);
        record(&monitor, SAMPLES - 1, 20);
        record(&monitor, 1, 5000);
        assert!(!monitor.is_slow());
    }
}
