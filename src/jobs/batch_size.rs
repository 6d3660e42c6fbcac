//! Sizes the calls of a media purge: each should take Synapse 5 to 20 seconds.

use std::time::Duration;

/// Seconds. A shorter call is too short, whatever its time consists of.
const MIN_SECONDS: f64 = 5.0;
const TARGET_SECONDS: f64 = 10.0;
/// Seconds. A longer call is too long, unless most of its time does not depend on its size.
const MAX_SECONDS: f64 = 20.0;
/// The weight of each call relative to the next one.
const DECAY: f64 = 0.8;
/// The standard deviation of the sizes, relative to their mean, that is needed to estimate the time per unit.
const MIN_SPREAD: f64 = 0.1;
/// A call that takes this many times more or less than expected shows that the homeserver has changed.
const CHANGE_FACTOR: f64 = 2.0;

/// A completed call: its size and the time that it took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub size: i64,
    pub took: Duration,
}

/// Determines the size of each call: a number of files, or a time span in milliseconds.
///
/// The time of a call has a fixed part and a part per unit of its size; both are estimated from previous calls.
/// If the fixed part dominates, as with Synapse's scan for avatars, smaller calls would only mean more of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchSize {
    size: i64,
    min: i64,
    max: i64,
    samples: WeightedSums,
    /// Seconds per unit of the size; `None` until calls of different sizes were made.
    seconds_per_unit: Option<f64>,
}

/// Sums over previous calls, weighted towards recent ones.
#[derive(Debug, Clone, Copy, Default)]
struct WeightedSums {
    weight: f64,
    size: f64,
    time: f64,
    size_squared: f64,
    size_time: f64,
}

impl BatchSize {
    /// Starts with `first`; `max` takes precedence over `min`.
    pub(super) fn new(first: i64, min: i64, max: i64) -> Self {
        let min = min.min(max);
        Self {
            size: first.clamp(min, max),
            min,
            max,
            samples: WeightedSums::default(),
            seconds_per_unit: None,
        }
    }

    /// Returns the size of the next call.
    pub(super) fn next(&mut self, last: Option<Sample>) -> i64 {
        if let Some(last) = last {
            self.record(last);
            let target = self.target_size(last);
            self.size = as_integer(target, self.size.saturating_mul(2)).clamp(self.min, self.max);
        }
        self.size
    }

    fn record(&mut self, call: Sample) {
        let took = call.took.as_secs_f64();
        if let Some(expected) = self.expected(call.size)
            && (took > MAX_SECONDS && took > expected * CHANGE_FACTOR
                || expected > MIN_SECONDS && took * CHANGE_FACTOR < expected)
        {
            (self.samples, self.seconds_per_unit) = (WeightedSums::default(), None);
        }
        self.samples.add(as_float(call.size), took);
        self.seconds_per_unit = self.samples.slope().or(self.seconds_per_unit);
    }

    /// Returns the seconds that a call of this size should take, once there is an estimate.
    fn expected(&self, size: i64) -> Option<f64> {
        let (fixed, per_unit) = self.estimate()?;
        Some(fixed + per_unit * as_float(size))
    }

    /// Returns the fixed seconds of a call and those per unit of its size.
    fn estimate(&self) -> Option<(f64, f64)> {
        let (size, time) = (self.samples.mean_size()?, self.samples.mean_time()?);
        let per_unit = self.seconds_per_unit?.clamp(0.0, time / size);
        Some((time - per_unit * size, per_unit))
    }

    fn target_size(&self, last: Sample) -> f64 {
        let Some((fixed, per_unit)) = self.estimate() else { return self.probing_size(last) };
        let (size, time) = (as_float(self.size), fixed + per_unit * as_float(self.size));
        if (MIN_SECONDS..=MAX_SECONDS).contains(&time) && fixed < time / 2.0 {
            return size;
        }
        // The files get as much time as the fixed part takes, at most the target of a whole call.
        let for_files = (TARGET_SECONDS - fixed).max(fixed.min(TARGET_SECONDS));
        if per_unit > 0.0 { for_files / per_unit } else { size * 2.0 }
    }

    /// Returns a size that differs from the last one: only calls of different sizes separate the two parts of their time.
    fn probing_size(&self, last: Sample) -> f64 {
        let (size, took) = (as_float(self.size), last.took.as_secs_f64());
        if took < MIN_SECONDS {
            size * 2.0
        } else if took > MAX_SECONDS && self.size > self.min {
            size / 2.0
        } else {
            size * 1.5
        }
    }
}

impl WeightedSums {
    fn add(&mut self, size: f64, took: f64) {
        self.weight = self.weight * DECAY + 1.0;
        self.size = self.size * DECAY + size;
        self.time = self.time * DECAY + took;
        self.size_squared = self.size_squared * DECAY + size * size;
        self.size_time = self.size_time * DECAY + size * took;
    }

    fn mean_size(&self) -> Option<f64> {
        (self.weight > 0.0 && self.size > 0.0).then(|| self.size / self.weight)
    }

    fn mean_time(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.time / self.weight)
    }

    /// Returns the slope of the regression line (least squares) in seconds per unit; `None` if the sizes are too similar.
    fn slope(&self) -> Option<f64> {
        let (size, time) = (self.mean_size()?, self.mean_time()?);
        let variance = self.size_squared / self.weight - size * size;
        let covariance = self.size_time / self.weight - size * time;
        (variance > (MIN_SPREAD * size).powi(2)).then(|| covariance / variance)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rounded size is precise enough")]
fn as_float(size: i64) -> f64 {
    size as f64
}

/// Rounds a size to an integer from 1 to `max`.
#[expect(clippy::cast_possible_truncation, reason = "a cast saturates, and the value is rounded")]
fn as_integer(size: f64, max: i64) -> i64 {
    (size.round() as i64).clamp(1, max.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: i64 = 200;
    const MAX: i64 = 20_000;

    /// The sizes of the first calls where a call of `size` takes `seconds(call, size)`.
    fn sizes(calls: usize, seconds: impl Fn(usize, f64) -> f64) -> Vec<i64> {
        let mut batch = BatchSize::new(MIN, MIN, MAX);
        let mut last = None;
        (0..calls)
            .map(|call| {
                let size = batch.next(last);
                let took = Duration::from_secs_f64(seconds(call, as_float(size)));
                last = Some(Sample { size, took });
                size
            })
            .collect()
    }

    /// Noise between -1 and 1 that is the same each time.
    fn noise(call: usize) -> f64 {
        as_float(i64::try_from(call * 7919 % 101).unwrap()) / 50.0 - 1.0
    }

    #[test]
    fn a_fixed_part_of_21_s_makes_batches_grow_and_never_shrink() {
        let sizes = sizes(6, |_, _| 21.0);
        assert_eq!(sizes, [200, 300, 600, 1200, 2400, 4800]);
        let deleted: i64 = sizes.iter().take(4).sum();
        assert!(deleted > 1500, "1,500 files are gone after four calls: {deleted}");
    }

    #[test]
    fn a_large_fixed_part_allows_ten_more_seconds_for_files() {
        let sizes = sizes(12, |_, size| 21.0 + size / 250.0);
        assert!(sizes.iter().all(|size| *size >= MIN), "{sizes:?}");
        assert_eq!(sizes[11], 2500, "{sizes:?}");
    }

    #[test]
    fn a_scan_for_avatars_that_costs_the_same_for_200_and_2000_files_lets_batches_grow_to_the_bound()
     {
        let sizes = sizes(12, |_, size| 0.6 + 1.5 * size.min(200.0) / 200.0);
        assert_eq!(sizes[..5], [200, 400, 800, 1600, 3200], "{sizes:?}");
        assert_eq!(sizes[11], MAX, "{sizes:?}");
    }

    #[test]
    fn a_time_in_proportion_to_the_files_settles_between_5_and_20_s() {
        for files_per_second in [20.0, 250.0, 1500.0] {
            let sizes = sizes(20, |_, size| size / files_per_second);
            for size in &sizes[8..] {
                let took = as_float(*size) / files_per_second;
                assert!((5.0..=20.0).contains(&took), "{took} s: {sizes:?}");
            }
        }
    }

    #[test]
    fn batches_do_not_shrink_below_the_minimum_on_a_slow_homeserver() {
        let sizes = sizes(10, |_, size| size / 4.0);
        assert_eq!(sizes, [200, 300, 200, 200, 200, 200, 200, 200, 200, 200]);
    }

    #[test]
    fn noise_neither_shrinks_batches_to_the_minimum_nor_makes_calls_very_long() {
        for fixed in [0.0, 2.0, 8.0] {
            let cost = |size: f64| fixed + size / 250.0;
            let sizes = sizes(60, |call, size| cost(size) * (1.0 + 0.3 * noise(call)));
            for size in &sizes[10..] {
                let took = cost(as_float(*size));
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
    fn a_time_span_that_grew_over_empty_years_shrinks_where_files_are_dense() {
        let (mut batch, mut last) = (BatchSize::new(15, 1, 60), None);
        let days: Vec<i64> = (0..14)
            .map(|call| {
                let size = batch.next(last);
                let seconds = if call < 6 { 0.1 } else { 10.0 * as_float(size) };
                last = Some(Sample { size, took: Duration::from_secs_f64(seconds) });
                size
            })
            .collect();
        assert_eq!(days, [15, 30, 60, 60, 60, 60, 60, 30, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_maximum_below_the_minimum_takes_precedence() {
        let mut batch = BatchSize::new(200, 200, 10);
        assert_eq!(batch.next(None), 10);
        let took = Duration::from_secs(1);
        assert_eq!(batch.next(Some(Sample { size: 10, took })), 10);
    }
}
