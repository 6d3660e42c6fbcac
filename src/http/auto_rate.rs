//! Finds the request rate that a homeserver bears without answering more slowly.
//!
//! A pure state machine: times and latencies come in as values. Latencies are compared per endpoint with a baseline, which
//! is taken at a low rate and taken again from time to time. As long as they stay close to it, the rate rises; one failure
//! or slow responses halve it (additive increase, multiplicative decrease).

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// Requests per second at the start of a run, and the highest rate at which a baseline is taken.
pub(super) const START: f64 = 50.0;
/// Requests per second that are always allowed.
pub(super) const FLOOR: f64 = 1.0;
/// Responses that take this many times the baseline are slow.
const SLOW_FACTOR: f64 = 1.25;
/// A smaller difference is noise, however fast the homeserver.
const MIN_DIFFERENCE: Duration = Duration::from_millis(1);
/// A baseline is taken at a rate at which the homeserver works on our requests for at most this share of the time.
const BASELINE_LOAD: f64 = 0.5;
const BASELINE_SAMPLES: usize = 16;
/// What a verdict about an endpoint needs.
const MIN_SAMPLES: usize = 10;
/// The time between two verdicts, if there are enough samples.
const WINDOW: Duration = Duration::from_millis(500);
/// Samples older than this say nothing about now.
const MAX_WINDOW: Duration = Duration::from_secs(30);
/// How long a baseline is used, at least; and how much longer than it took.
const BASELINE_LIFETIME: Duration = Duration::from_secs(20);
const BASELINE_WORTH: u32 = 40;
/// After the rate was lowered for a baseline, until earlier requests have been answered.
const SETTLING: Duration = Duration::from_millis(100);
/// Growth per window until the first fall.
const FIRST_GROWTH: f64 = 1.5;
/// Up to this part of the rate at which it last fell, the rate recovers quickly.
const KNOWN_GOOD: f64 = 0.9;
/// Growth per window up to there, and beyond; relative to the rate at which it last fell.
const RECOVERY: f64 = 0.4;
const PROBING: f64 = 0.005;
/// After so many windows without a fall the growth accelerates: the homeserver may bear more than it did.
const PATIENCE: u32 = 20;
/// The part of the allowed requests that must have been sent for the rate to rise.
const FULL_USE: f64 = 0.75;
/// The time between two reports of changes.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// A change of the rate that is worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RateChange {
    pub from: f64,
    pub to: f64,
}

/// The request rate of one homeserver, for all runs on it.
#[derive(Debug)]
pub(super) struct AutoRate {
    /// Requests per second, outside of the phases in which a baseline is taken.
    rate: f64,
    max: f64,
    phase: Phase,
    /// The rate from which it last fell.
    last_fall: Option<f64>,
    /// Windows in which the rate rose since then.
    risen: u32,
    baseline_rate: f64,
    endpoints: HashMap<&'static str, Latencies>,
    window: Window,
    reported: RateChange,
    reported_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    TakingBaseline,
    /// Until the baseline is too old.
    Comparing {
        until: Instant,
    },
}

#[derive(Debug, Default)]
struct Latencies {
    baseline: Option<Duration>,
    samples: Vec<Duration>,
}

/// What happened since the last verdict. Requests sent before it are ignored: they were sent at another rate.
#[derive(Debug)]
struct Window {
    start: Instant,
    sent: u32,
}

impl Window {
    fn new(start: Instant) -> Self {
        Self { start, sent: 0 }
    }
}

impl AutoRate {
    /// `max` takes precedence over [`START`].
    pub(super) fn new(now: Instant, max: f64) -> Self {
        let rate = START.min(max);
        Self {
            rate,
            max,
            phase: Phase::TakingBaseline,
            last_fall: None,
            risen: 0,
            baseline_rate: rate,
            endpoints: HashMap::new(),
            window: Window::new(now),
            reported: RateChange { from: rate, to: rate },
            reported_at: None,
        }
    }

    pub(super) fn set_max(&mut self, max: f64) {
        self.max = max;
        self.rate = self.rate.min(max);
    }

    /// Requests per second that the homeserver is believed to bear.
    pub(super) fn limit(&self) -> f64 {
        self.rate
    }

    /// Requests per second at this moment: lower than [`limit`](Self::limit) while a baseline is taken.
    pub(super) fn current(&self) -> f64 {
        match self.phase {
            Phase::TakingBaseline => self.rate.min(self.baseline_rate),
            Phase::Comparing { .. } => self.rate,
        }
    }

    pub(super) fn sent(&mut self) {
        self.window.sent = self.window.sent.saturating_add(1);
    }

    /// Takes the response to a request about one object, whose cost depends on the endpoint alone.
    pub(super) fn answered(&mut self, now: Instant, endpoint: &'static str, latency: Duration) {
        let sent = now.checked_sub(latency).unwrap_or(self.window.start);
        if sent < self.window.start {
            return;
        }
        let age = now - self.window.start;
        if age > MAX_WINDOW {
            self.restart_window(sent);
        }
        let latencies = self.endpoints.entry(endpoint).or_default();
        latencies.samples.push(latency);
        let samples = latencies.samples.len();
        match self.phase {
            Phase::TakingBaseline if samples >= BASELINE_SAMPLES => self.adopt_baseline(now),
            Phase::Comparing { until } if age >= WINDOW && samples >= MIN_SAMPLES => {
                self.close_window(now, until);
            }
            _ => {}
        }
    }

    /// Takes a request without a response, or with a status of 429 or 5xx.
    pub(super) fn failed(&mut self, now: Instant, sent: Instant) {
        // Several requests that were under way at the same time are one sign.
        if sent >= self.window.start {
            self.fall(now);
        }
    }

    /// Returns a change by more than half since the last one that was returned, at most one per [`REPORT_INTERVAL`].
    pub(super) fn take_change(&mut self, now: Instant) -> Option<RateChange> {
        let (from, to) = (self.reported.to, self.rate);
        let is_large = to >= from * 1.5 || to <= from / 2.0;
        if !is_large || self.reported_at.is_some_and(|at| now - at < REPORT_INTERVAL) {
            return None;
        }
        self.reported = RateChange { from, to };
        self.reported_at = Some(now);
        Some(self.reported)
    }

    fn adopt_baseline(&mut self, now: Instant) {
        let taken_at = self.current();
        let mut load_rate = f64::INFINITY;
        for latencies in self.endpoints.values_mut() {
            if latencies.samples.len() < MIN_SAMPLES {
                continue;
            }
            let typical = typical(&mut latencies.samples);
            latencies.baseline = Some(typical);
            load_rate = load_rate.min(BASELINE_LOAD / typical.as_secs_f64().max(f64::MIN_POSITIVE));
        }
        self.baseline_rate = load_rate.clamp(FLOOR, START).min(self.max);
        if self.baseline_rate < taken_at * 0.8 {
            // The requests waited for each other: this is not how fast the homeserver is at rest.
            self.restart_window(now + SETTLING);
            return;
        }
        let took = now - self.window.start;
        let until = now + BASELINE_LIFETIME.max(took * BASELINE_WORTH);
        self.phase = Phase::Comparing { until };
        self.restart_window(now);
    }

    /// Judges the responses of the last window.
    fn close_window(&mut self, now: Instant, baseline_until: Instant) {
        let is_low = self.rate <= self.baseline_rate;
        let (mut slow, mut unknown) = (false, false);
        for latencies in self.endpoints.values_mut() {
            if latencies.samples.len() < MIN_SAMPLES {
                continue;
            }
            let typical = typical(&mut latencies.samples);
            match latencies.baseline {
                Some(baseline) => {
                    slow |= typical > baseline.mul_f64(SLOW_FACTOR).max(baseline + MIN_DIFFERENCE);
                }
                None => unknown = true,
            }
        }
        if slow && !is_low {
            self.fall(now);
            return;
        }
        // Slow at a low rate is not our doing: the homeserver has become slower, and has a new baseline.
        if slow || unknown || now >= baseline_until {
            self.phase = Phase::TakingBaseline;
            self.restart_window(now + SETTLING);
            return;
        }
        // Where something else holds the requests up, a higher limit would only be a larger error later.
        let allowed = self.rate * (now - self.window.start).as_secs_f64();
        if f64::from(self.window.sent) >= allowed * FULL_USE {
            self.rise();
        }
        self.restart_window(now);
    }

    fn rise(&mut self) {
        let higher = match self.last_fall {
            None => self.rate * FIRST_GROWTH,
            Some(fall) if self.rate < fall * KNOWN_GOOD => {
                (self.rate + fall * RECOVERY).min(fall * KNOWN_GOOD)
            }
            Some(fall) => {
                let steps = self.risen.saturating_sub(PATIENCE).max(1);
                self.rate + (fall * PROBING).max(0.5) * f64::from(steps)
            }
        };
        self.risen = self.risen.saturating_add(1);
        self.rate = higher.min(self.max);
    }

    fn fall(&mut self, now: Instant) {
        let seconds = (now - self.window.start).as_secs_f64();
        let mut used = self.rate;
        if self.window.sent as usize >= MIN_SAMPLES && seconds > 0.0 {
            // Half of what was allowed may be more than what was sent.
            used = (f64::from(self.window.sent) / seconds).clamp(used / 2.0, used);
        }
        // A fall during the recovery from another says little about what the homeserver bears.
        let known = self.last_fall.filter(|fall| used < fall * KNOWN_GOOD);
        self.last_fall = Some(known.map_or(used, |fall| f64::midpoint(fall, used)).max(FLOOR));
        self.risen = 0;
        self.rate = (used / 2.0).max(FLOOR).min(self.max);
        self.restart_window(now);
    }

    fn restart_window(&mut self, start: Instant) {
        self.window = Window::new(start);
        for latencies in self.endpoints.values_mut() {
            latencies.samples.clear();
        }
    }
}

/// Returns the lower quartile: it rises when requests wait for each other, and hardly when something else is in the way of some.
fn typical(samples: &mut [Duration]) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 4]
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "limits that are set, not computed, are equal to the bit")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const USER: &str = "/users/{}";
    const FILES: &str = "/users/{}/media";

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A homeserver that works on one request at a time, and a client that keeps to the rate and sends four at a time.
    struct Simulation {
        auto: AutoRate,
        now: Instant,
        /// When each of the requests under way is answered.
        open: Vec<Instant>,
        free_at: Instant,
        turn: Instant,
        answered: u32,
    }

    impl Simulation {
        fn new() -> Self {
            let now = Instant::now();
            let auto = AutoRate::new(now, 1000.0);
            Self { auto, now, open: Vec::new(), free_at: now, turn: now, answered: 0 }
        }

        /// Sends a request that takes the homeserver `work`.
        fn request(&mut self, endpoint: &'static str, work: Duration) {
            if self.open.len() == 4 {
                self.now = self.now.max(self.open.remove(0));
            }
            let sent = self.now.max(self.turn);
            self.turn = sent + Duration::from_secs_f64(1.0 / self.auto.current());
            self.auto.sent();
            self.free_at = self.free_at.max(sent) + work;
            self.open.push(self.free_at);
            self.now = sent;
            self.answered += 1;
            self.auto.answered(self.free_at, endpoint, self.free_at - sent);
        }

        /// Returns the requests per second over so many seconds.
        fn run(&mut self, seconds: u64, mut work: impl FnMut() -> Duration) -> f64 {
            let (start, before) = (self.now, self.answered);
            while self.now - start < Duration::from_secs(seconds) {
                self.request(USER, work());
            }
            f64::from(self.answered - before) / (self.now - start).as_secs_f64()
        }
    }

    #[test]
    fn the_rate_rises_to_what_the_homeserver_bears() {
        for (milliseconds, bears) in [(1, 1000.0), (2, 500.0), (5, 200.0), (10, 100.0), (40, 25.0)]
        {
            let mut simulation = Simulation::new();
            simulation.run(30, || ms(milliseconds));
            let reached = simulation.run(120, || ms(milliseconds));
            assert!(reached > bears * 0.85, "{milliseconds} ms: {reached}");
        }
    }

    #[test]
    fn a_homeserver_that_slows_down_for_good_gets_a_new_baseline() {
        let mut simulation = Simulation::new();
        simulation.run(60, || ms(4));
        for (milliseconds, bears) in [(16, 62.5), (100, 10.0), (4, 250.0)] {
            simulation.run(200, || ms(milliseconds));
            let reached = simulation.run(120, || ms(milliseconds));
            assert!(reached > bears * 0.8, "{milliseconds} ms: {reached}");
        }
    }

    /// Feeds latencies that do not depend on the rate, and returns whether it ever fell.
    fn falls(
        auto: &mut AutoRate,
        mut latency: impl FnMut(u64) -> (&'static str, Duration),
    ) -> bool {
        let (mut now, mut highest) = (Instant::now() + Duration::from_secs(1), 0.0_f64);
        for number in 0..20_000 {
            now += Duration::from_secs_f64(1.0 / auto.current());
            auto.sent();
            let (endpoint, took) = latency(number);
            auto.answered(now + took, endpoint, took);
            if auto.limit() < highest {
                return true;
            }
            highest = auto.limit();
        }
        false
    }

    #[test]
    fn latencies_within_a_quarter_of_the_baseline_do_not_stop_growth() {
        let mut auto = AutoRate::new(Instant::now(), 1000.0);
        assert!(!falls(&mut auto, |number| (
            USER,
            ms(40 + if number < 100 { 0 } else { number % 11 })
        )));
        assert_eq!(auto.limit(), 1000.0);
        let mut auto = AutoRate::new(Instant::now(), 1000.0);
        assert!(falls(&mut auto, |number| (USER, ms(40 + if number < 1000 { 0 } else { 11 }))));
    }

    #[test]
    fn endpoints_are_compared_with_themselves() {
        let mut auto = AutoRate::new(Instant::now(), 1000.0);
        let work = |number: u64| if number % 2000 < 1000 { (USER, ms(2)) } else { (FILES, ms(90)) };
        assert!(!falls(&mut auto, work));
        assert_eq!(auto.limit(), 1000.0);
    }

    #[test]
    fn one_failure_halves_the_rate_and_those_under_way_with_it_do_not() {
        let mut simulation = Simulation::new();
        simulation.run(30, || ms(2));
        let (before, sent) = (simulation.auto.limit(), simulation.now);
        simulation.auto.failed(simulation.now + ms(1), sent);
        let after = simulation.auto.limit();
        assert!(after <= before / 2.0 && after >= before / 4.0, "{before} -> {after}");
        simulation.auto.failed(simulation.now + ms(2), sent);
        assert_eq!(simulation.auto.limit(), after);
        simulation.auto.failed(simulation.now + ms(3), simulation.now + ms(2));
        assert_eq!(simulation.auto.limit(), after / 2.0);
    }

    #[test]
    fn the_rate_does_not_rise_while_something_else_holds_requests_up() {
        let (mut now, start) = (Instant::now(), Instant::now());
        let mut auto = AutoRate::new(start, 1000.0);
        for _ in 0..2000 {
            now += ms(200);
            auto.sent();
            auto.answered(now, USER, ms(10));
        }
        assert_eq!(auto.limit(), START);
    }

    #[test]
    fn only_large_changes_are_reported_and_not_too_often() {
        let start = Instant::now();
        let mut auto = AutoRate::new(start, 1000.0);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(auto.take_change(at(0)), None);
        auto.rate = 74.0;
        assert_eq!(auto.take_change(at(1)), None);
        auto.rate = 75.0;
        assert_eq!(auto.take_change(at(2)), Some(RateChange { from: 50.0, to: 75.0 }));
        auto.rate = 20.0;
        assert_eq!(auto.take_change(at(11)), None);
        assert_eq!(auto.take_change(at(12)), Some(RateChange { from: 75.0, to: 20.0 }));
    }

    proptest! {
        #[test]
        fn the_rate_stays_within_its_bounds(
            max in 0.001_f64..10_000.0,
            events in prop::collection::vec((0_u64..20_000, 0_u64..5000, 0_u8..4), 0..500),
        ) {
            let mut now = Instant::now();
            let mut auto = AutoRate::new(now, max);
            for (gap, latency, event) in events {
                now += ms(gap);
                let before = auto.limit();
                match event {
                    0 => auto.failed(now, now),
                    1 => auto.sent(),
                    2 => auto.answered(now, USER, ms(latency)),
                    _ => auto.answered(now, FILES, ms(latency % 50)),
                }
                let least = FLOOR.min(max);
                prop_assert!((least..=max).contains(&auto.limit()), "{}", auto.limit());
                prop_assert!(auto.current() >= least && auto.current() <= auto.limit());
                prop_assert!(auto.limit() >= before / 4.0 - 1e-9);
            }
        }
    }
}
