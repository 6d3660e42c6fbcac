//! How fast requests go out: a steady rate, halved while Synapse answers slowly.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::Cause;
use crate::values::schema::{Limit, Rate};

/// How fast an address may be asked, as numbers.
#[derive(Debug, Clone, Copy)]
pub struct LimitValues {
    pub max_concurrent_requests: u32,
    pub max_requests_per_second: Limit<Rate>,
    pub max_joins_per_second: Limit<Rate>,
}

/// How fast an address may be asked, shared by all that ask it: other names, other runs, and those from before a reload.
#[derive(Debug)]
pub struct Limits {
    pub(super) places: Slots,
    pub(super) requests: Pacer,
    pub(super) joins: Pacer,
    requests_per_second: Mutex<Limit<Rate>>,
}

impl Limits {
    pub fn new(values: LimitValues) -> Self {
        Self {
            places: Slots::new(values.max_concurrent_requests),
            requests: Pacer::new(values.max_requests_per_second),
            joins: Pacer::new(values.max_joins_per_second),
            requests_per_second: Mutex::new(values.max_requests_per_second),
        }
    }

    pub(super) fn requests_per_second(&self) -> Limit<Rate> {
        *self.requests_per_second.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the limits for whoever waits next.
    pub fn set(&self, values: LimitValues) {
        self.places.resize(values.max_concurrent_requests);
        self.requests.set(values.max_requests_per_second);
        self.joins.set(values.max_joins_per_second);
        *self.requests_per_second.lock().unwrap_or_else(PoisonError::into_inner) =
            values.max_requests_per_second;
    }
}

/// A semaphore whose size can be changed while it is used.
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

    /// Changes the number of slots; one that is taken goes when it is given back.
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

/// Hands out moments to send at, evenly spaced.
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

    /// Waits for a turn that takes `turns` times the usual space.
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

/// Compares how long one run's answers take with how long they took when the run began, and notices when none come.
#[derive(Debug, Default)]
pub struct Watch {
    latencies: Mutex<HashMap<&'static str, Latencies>>,
    answers: Mutex<Answers>,
}

/// Which of a run's questions are open, and since when none was answered.
#[derive(Debug, Default)]
struct Answers {
    /// When each was sent, the oldest first.
    open: BTreeMap<u64, Instant>,
    next: u64,
    last_answer: Option<Instant>,
    /// The first of the failures in a row.
    failing_since: Option<Instant>,
    problem: String,
}

/// A homeserver that does not answer one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    pub since: Instant,
    /// What was seen instead of an answer; empty where nothing was.
    pub problem: String,
}

#[derive(Debug, Default)]
struct Latencies {
    at_start: Vec<Duration>,
    recent: VecDeque<Duration>,
}

/// Answers that are looked at, both at the start and now.
const SAMPLES: usize = 10;
/// An answer that takes three times as long as at the start is slow.
const SLOWER: u32 = 3;
/// How long an answer may take before the homeserver counts as silent: lists of large homeservers take seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Below this even three times as long says nothing about load.
const NOISE: Duration = Duration::from_millis(15);

impl Watch {
    /// A question is sent; the number is what ends it.
    pub(super) fn asked(&self) -> u64 {
        let mut answers = self.answers();
        let number = answers.next;
        answers.next += 1;
        answers.open.insert(number, Instant::now());
        number
    }

    /// A question ended, `problem` says how where it was not answered.
    pub(super) fn answered(&self, number: u64, problem: Option<String>) {
        let mut answers = self.answers();
        let sent = answers.open.remove(&number);
        if let Some(problem) = problem {
            answers.failing_since = answers.failing_since.or(sent);
            answers.problem = problem;
        } else {
            answers.last_answer = Some(Instant::now());
            answers.failing_since = None;
            answers.problem.clear();
        }
    }

    /// A question was dropped without an end.
    pub(super) fn forget(&self, number: u64) {
        self.answers().open.remove(&number);
    }

    /// Since when the homeserver has not answered: all attempts failed, or a question is open and nothing else came.
    pub fn silence(&self) -> Option<Silence> {
        let answers = self.answers();
        let oldest = answers.open.values().next().copied();
        let unanswered = oldest.map(|sent| answers.last_answer.map_or(sent, |last| last.max(sent)));
        let since =
            answers.failing_since.or(unanswered.filter(|since| since.elapsed() > PATIENCE))?;
        Some(Silence { since, problem: answers.problem.clone() })
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record(&self, endpoint: &'static str, took: Duration) {
        let mut endpoints = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
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
        let endpoints = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
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
        () = given_up.cancelled() => Err(Cause::Cancelled),
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

    #[tokio::test(start_paused = true)]
    async fn a_homeserver_is_silent_while_all_fails_or_a_question_stays_open() {
        let watch = Watch::default();
        let start = Instant::now();
        let silence =
            || watch.silence().map(|silence| ((silence.since - start).as_secs(), silence.problem));
        let first = watch.asked();
        tokio::time::advance(PATIENCE).await;
        assert_eq!(silence(), None, "an answer may take so long");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(silence(), Some((0, String::new())));
        watch.answered(first, None);
        assert_eq!(silence(), None);
        let (second, third) = (watch.asked(), watch.asked());
        tokio::time::advance(Duration::from_secs(1)).await;
        watch.answered(second, Some("refused".to_owned()));
        assert_eq!(silence(), Some((6, "refused".to_owned())));
        watch.answered(third, None);
        assert_eq!(silence(), None, "one answer is a sign of life");
        let dropped = watch.asked();
        watch.forget(dropped);
        tokio::time::advance(PATIENCE * 2).await;
        assert_eq!(silence(), None, "nothing is asked");
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
