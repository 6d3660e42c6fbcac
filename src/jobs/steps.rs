//! How large the next step of a media purge is, so that a call takes Synapse 5 to 20 seconds.

use std::time::Duration;

/// Seconds. A call that takes less is too short, whatever its time is made of.
const SHORT: f64 = 5.0;
/// Seconds that a call is aimed at.
const AIM: f64 = 10.0;
/// Seconds. A call that takes more is too long, unless most of that does not depend on its size.
const LONG: f64 = 20.0;
/// How much of an older call still counts with each new one.
const FADING: f64 = 0.8;
/// The least spread of the sizes, as a part of their mean, that tells the two parts of the time from each other.
const SPREAD: f64 = 0.1;
/// A call that takes so many times longer or shorter than expected shows that the homeserver has changed.
const SURPRISE: f64 = 2.0;

/// A call that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub size: i64,
    pub took: Duration,
}

/// The size of the next call: of files, or of a span of time in milliseconds.
///
/// The time of a call is a fixed part and a part for each unit of its size; both are estimated from the calls made.
/// Where the fixed part rules, as with Synapse's scan for avatars, smaller calls would only be more calls.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    size: i64,
    least: i64,
    most: i64,
    calls: Calls,
    /// Seconds for each unit of the size, once calls of different sizes were made.
    each: Option<f64>,
}

/// Sums over the calls made, older ones faded.
#[derive(Debug, Clone, Copy, Default)]
struct Calls {
    weight: f64,
    size: f64,
    time: f64,
    size_squared: f64,
    size_time: f64,
}

impl Step {
    /// Begins with `first`; goes below `least` only where `most` says so.
    pub fn new(first: i64, least: i64, most: i64) -> Self {
        let least = least.min(most);
        Self { size: first.clamp(least, most), least, most, calls: Calls::default(), each: None }
    }

    /// The size for the next call, after the last one.
    pub fn next(&mut self, last: Option<Call>) -> i64 {
        if let Some(last) = last {
            self.record(last);
            let wanted = self.wanted(last);
            self.size = whole(wanted, self.size.saturating_mul(2)).clamp(self.least, self.most);
        }
        self.size
    }
}

impl Step {
    fn record(&mut self, call: Call) {
        let took = call.took.as_secs_f64();
        if let Some(expected) = self.expected(call.size)
            && (took > LONG && took > expected * SURPRISE
                || expected > SHORT && took * SURPRISE < expected)
        {
            (self.calls, self.each) = (Calls::default(), None);
        }
        self.calls.add(precise(call.size), took);
        self.each = self.calls.each().or(self.each);
    }

    /// Seconds that a call of this size is expected to take; `None` before there is an estimate.
    fn expected(&self, size: i64) -> Option<f64> {
        let (fixed, each) = self.parts()?;
        Some(fixed + each * precise(size))
    }

    /// The fixed part of the time of a call and the part for each unit of its size, in seconds.
    fn parts(&self) -> Option<(f64, f64)> {
        let (size, time) = (self.calls.mean_size()?, self.calls.mean_time()?);
        let each = self.each?.clamp(0.0, time / size);
        Some((time - each * size, each))
    }

    fn wanted(&self, last: Call) -> f64 {
        let Some((fixed, each)) = self.parts() else { return self.explored(last) };
        let (size, time) = (precise(self.size), fixed + each * precise(self.size));
        if (SHORT..=LONG).contains(&time) && fixed < time / 2.0 {
            return size;
        }
        // The files get as long as the fixed part takes, up to the time that a whole call is aimed at.
        let for_files = (AIM - fixed).max(fixed.min(AIM));
        if each > 0.0 { for_files / each } else { size * 2.0 }
    }

    /// A size that differs from the last one: only calls of different sizes show what their time is made of.
    fn explored(&self, last: Call) -> f64 {
        let (size, took) = (precise(self.size), last.took.as_secs_f64());
        match () {
            () if took < SHORT => size * 2.0,
            () if took > LONG && self.size > self.least => size / 2.0,
            () => size * 1.5,
        }
    }
}

impl Calls {
    fn add(&mut self, size: f64, took: f64) {
        self.weight = self.weight * FADING + 1.0;
        self.size = self.size * FADING + size;
        self.time = self.time * FADING + took;
        self.size_squared = self.size_squared * FADING + size * size;
        self.size_time = self.size_time * FADING + size * took;
    }

    fn mean_size(&self) -> Option<f64> {
        (self.weight > 0.0 && self.size > 0.0).then(|| self.size / self.weight)
    }

    fn mean_time(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.time / self.weight)
    }

    /// The slope of the line through the calls (least squares); `None` where their sizes are too much alike.
    fn each(&self) -> Option<f64> {
        let (size, time) = (self.mean_size()?, self.mean_time()?);
        let variance = self.size_squared / self.weight - size * size;
        let covariance = self.size_time / self.weight - size * time;
        (variance > (SPREAD * size).powi(2)).then(|| covariance / variance)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rounded size does as well")]
fn precise(size: i64) -> f64 {
    size as f64
}

/// A size as a whole number from 1 to `most`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a cast saturates, and fractions do not matter"
)]
fn whole(size: f64, most: i64) -> i64 {
    (size.round() as i64).clamp(1, most.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: i64 = 200;
    const MOST: i64 = 20_000;

    /// The sizes of the first calls where a call of `size` takes `seconds(call, size)`.
    fn sizes(calls: usize, seconds: impl Fn(usize, f64) -> f64) -> Vec<i64> {
        let mut step = Step::new(LEAST, LEAST, MOST);
        let mut last = None;
        (0..calls)
            .map(|call| {
                let size = step.next(last);
                let took = Duration::from_secs_f64(seconds(call, precise(size)));
                last = Some(Call { size, took });
                size
            })
            .collect()
    }

    /// Noise between -1 and 1 that is the same each time.
    fn noise(call: usize) -> f64 {
        precise(i64::try_from(call * 7919 % 101).unwrap()) / 50.0 - 1.0
    }

    #[test]
    fn a_fixed_part_of_21_s_makes_batches_grow_and_never_shrink() {
        let sizes = sizes(6, |_, _| 21.0);
        assert_eq!(sizes, [200, 300, 600, 1200, 2400, 4800]);
        let deleted: i64 = sizes.iter().take(4).sum();
        assert!(deleted > 1500, "1,500 files are gone after four calls: {deleted}");
    }

    #[test]
    fn a_large_fixed_part_gets_as_many_files_as_ten_more_seconds_allow() {
        let sizes = sizes(12, |_, size| 21.0 + size / 250.0);
        assert!(sizes.iter().all(|size| *size >= LEAST), "{sizes:?}");
        assert_eq!(sizes[11], 2500, "{sizes:?}");
    }

    #[test]
    fn a_scan_for_avatars_that_costs_the_same_for_200_and_2000_files_lets_batches_grow_to_the_bound()
     {
        let sizes = sizes(12, |_, size| 0.6 + 1.5 * size.min(200.0) / 200.0);
        assert_eq!(sizes[..5], [200, 400, 800, 1600, 3200], "{sizes:?}");
        assert_eq!(sizes[11], MOST, "{sizes:?}");
    }

    #[test]
    fn a_time_in_proportion_to_the_files_settles_between_5_and_20_s() {
        for files_per_second in [20.0, 250.0, 1500.0] {
            let sizes = sizes(20, |_, size| size / files_per_second);
            for size in &sizes[8..] {
                let took = precise(*size) / files_per_second;
                assert!((5.0..=20.0).contains(&took), "{took} s: {sizes:?}");
            }
        }
    }

    #[test]
    fn a_homeserver_that_deletes_slowly_is_asked_for_no_fewer_than_the_least() {
        let sizes = sizes(10, |_, size| size / 4.0);
        assert_eq!(sizes, [200, 300, 200, 200, 200, 200, 200, 200, 200, 200]);
    }

    #[test]
    fn noise_neither_shrinks_batches_to_the_least_nor_makes_calls_endless() {
        for fixed in [0.0, 2.0, 8.0] {
            let cost = |size: f64| fixed + size / 250.0;
            let sizes = sizes(60, |call, size| cost(size) * (1.0 + 0.3 * noise(call)));
            for size in &sizes[10..] {
                let took = cost(precise(*size));
                assert!((4.0..=26.0).contains(&took), "fixed {fixed}: {took} s: {sizes:?}");
            }
        }
    }

    #[test]
    fn one_slow_call_is_forgotten_within_a_few_calls() {
        let sizes = sizes(30, |call, size| size / 250.0 * if call == 15 { 8.0 } else { 1.0 });
        assert_eq!(sizes[15], 1600, "{sizes:?}");
        assert!(sizes[16..].iter().all(|size| *size >= 500), "{sizes:?}");
        assert!(sizes[24..].iter().all(|size| (1000..=3000).contains(size)), "{sizes:?}");
    }

    #[test]
    fn a_homeserver_that_becomes_slower_gets_smaller_calls() {
        let sizes = sizes(30, |call, size| size / if call < 10 { 1000.0 } else { 100.0 });
        assert!(sizes[9] >= 5000, "{sizes:?}");
        for size in &sizes[16..] {
            assert!((500..=2000).contains(size), "{sizes:?}");
        }
    }

    #[test]
    fn a_step_that_grew_over_empty_years_shrinks_where_files_are_dense() {
        let (mut step, mut last) = (Step::new(15, 1, 60), None);
        let days: Vec<i64> = (0..14)
            .map(|call| {
                let size = step.next(last);
                let seconds = if call < 6 { 0.1 } else { 10.0 * precise(size) };
                last = Some(Call { size, took: Duration::from_secs_f64(seconds) });
                size
            })
            .collect();
        assert_eq!(days, [15, 30, 60, 60, 60, 60, 60, 30, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_bound_below_the_least_holds() {
        let mut step = Step::new(200, 200, 10);
        assert_eq!(step.next(None), 10);
        let took = Duration::from_secs(1);
        assert_eq!(step.next(Some(Call { size: 10, took })), 10);
    }
}
