//! Figures as the coordinates of SVG paths, which templates draw.

use std::fmt::Write as _;

use chrono_tz::Tz;

use super::format::tone;
use crate::history::RunMark;
use crate::plan::report::{Mode, Report};
use crate::values::clock::Timestamp;
use crate::values::schedule::{Window, Zone};
use crate::values::size::Size;
use crate::values::text::format_number;

/// The last runs of a job as bars, one path for each colour.
pub(super) struct Strip {
    /// The class of each path, and its coordinates in a box of 180 by 28.
    pub(super) paths: Vec<(&'static str, String)>,
    /// In words.
    pub(super) label: String,
}

/// How many runs a strip shows.
pub(super) const STRIP_RUNS: u32 = 30;
const STRIP_BASE: u64 = 23;
const STRIP_HEIGHT: u64 = 21;

impl Strip {
    /// Runs in another mode than the job's are marks without a height.
    pub(super) fn of(marks: &[RunMark], job_mode: Mode) -> Self {
        // What was approved was applied, too.
        let is_own =
            |mode: Mode| mode == job_mode || (mode, job_mode) == (Mode::Apply, Mode::Approve);
        let items = |mark: &RunMark| match mark.mode {
            mode if !is_own(mode) => 0,
            Mode::Apply => mark.done,
            Mode::DryRun | Mode::Approve => mark.planned,
        };
        let greatest = marks.iter().map(items).max().unwrap_or(0).max(1);
        let mut paths: Vec<(&'static str, String)> = Vec::new();
        let offset = usize::try_from(STRIP_RUNS).unwrap_or(0).saturating_sub(marks.len());
        for (index, mark) in marks.iter().enumerate() {
            let (x, items) = ((offset + index) * 6 + 3, items(mark));
            let class = match (tone(mark.outcome), items) {
                ("ok", 0) if !is_own(mark.mode) => "off",
                ("ok", 0) => "idle",
                (tone, _) => tone,
            };
            let height = 3 + (STRIP_HEIGHT - 3) * items / greatest;
            let known = paths.iter().position(|(known, _)| *known == class);
            let index = known.unwrap_or_else(|| {
                paths.push((class, String::new()));
                paths.len() - 1
            });
            let path = &mut paths[index].1;
            let _ = write!(path, "M{x} {STRIP_BASE}v-{height}");
            // Not by the colour alone.
            if matches!(class, "bad" | "warn") {
                let _ = write!(path, "m0 {}v2", height + 2);
            }
        }
        let counted = ["ok", "warn", "bad", "run"].map(|wanted| {
            (wanted, marks.iter().filter(|mark| tone(mark.outcome) == wanted).count())
        });
        let words = counted.into_iter().filter(|(_, count)| *count > 0).map(|(tone, count)| {
            let word = match tone {
                "ok" => "succeeded",
                "warn" => "ended early or in part",
                "bad" => "failed",
                _ => "under way",
            };
            format!("{count} {word}")
        });
        let label = format!("Last {} runs: {}", marks.len(), words.collect::<Vec<_>>().join(", "));
        Self { paths, label }
    }
}

/// Figures of runs as bars.
pub(super) struct Bars {
    pub(super) title: &'static str,
    pub(super) list: Vec<Bar>,
    pub(super) greatest: String,
    pub(super) first: String,
    pub(super) last: String,
    /// In words.
    pub(super) label: String,
}

pub(super) struct Bar {
    pub(super) x: String,
    pub(super) y: String,
    pub(super) width: String,
    pub(super) height: String,
    pub(super) title: String,
}

const BARS_WIDTH: f64 = 600.0;
const BARS_HEIGHT: f64 = 100.0;
/// A few runs are not drawn as blocks.
const MIN_BARS: usize = 20;

impl Bars {
    /// `None` where there is nothing to draw.
    #[expect(clippy::cast_precision_loss, reason = "a bar is drawn with a tenth of a pixel")]
    pub(super) fn of(
        title: &'static str,
        unit: fn(u64) -> String,
        runs: &[(&Report, u64)],
        zone: Tz,
    ) -> Option<Self> {
        let greatest = runs.iter().map(|(_, value)| *value).max().filter(|value| *value > 0)?;
        let step = BARS_WIDTH / runs.len().max(MIN_BARS) as f64;
        let day = |run: &Report| run.started_at.with_timezone(&zone).format("%-d %b").to_string();
        let bars = runs.iter().enumerate().map(|(index, (run, value))| {
            let height = (*value as f64 / greatest as f64 * BARS_HEIGHT).max(if *value > 0 {
                2.0
            } else {
                0.8
            });
            let started = run.started_at.with_timezone(&zone).format("%-d %b %H:%M");
            let id = run.id.unwrap_or_default();
            Bar {
                x: format!("{:.1}", index as f64 * step + step * 0.1),
                y: format!("{:.1}", BARS_HEIGHT - height),
                width: format!("{:.1}", step * 0.8),
                height: format!("{height:.1}"),
                title: format!("run {id}, {started}: {}", unit(*value)),
            }
        });
        let (first, last) = (runs.first()?.0, runs.last()?);
        let sum = runs.iter().map(|(_, value)| *value).fold(0, u64::saturating_add);
        Some(Self {
            title,
            list: bars.collect(),
            greatest: unit(greatest),
            label: format!(
                "{title}: {} runs since {}, {} in all, at most {} in a run, {} in the last one",
                runs.len(),
                day(first),
                unit(sum),
                unit(greatest),
                unit(last.1)
            ),
            first: day(first),
            last: day(last.0),
        })
    }
}

pub(super) fn number_unit(value: u64) -> String {
    format_number(value)
}

pub(super) fn size_unit(value: u64) -> String {
    Size(value).to_string()
}

/// A day of one job, in a box of 1500 by 16: a unit for each minute, from the beginning of the present hour.
pub(super) struct Lane {
    /// The occurrences as dots.
    pub(super) dots: String,
    /// From where to where occurrences are too many to be drawn one by one.
    pub(super) dense: Option<(i64, i64)>,
    /// The windows: where each begins, and how long it is.
    pub(super) windows: Vec<(i64, i64)>,
    /// How many occurrences there are; a text, because it may be more than were counted.
    pub(super) count: String,
}

/// A day, and the part of the present hour that is over.
pub(super) const LANE_MINUTES: i64 = 25 * 60;
/// More occurrences in a day are one bar.
const MAX_DOTS: usize = 49;

impl Lane {
    /// `occurrences` in order, from `start` on.
    pub(super) fn of(
        start: Timestamp,
        occurrences: impl Iterator<Item = Timestamp>,
        window: Option<Window>,
        zone: Zone,
    ) -> Self {
        let end = start + chrono::TimeDelta::minutes(LANE_MINUTES);
        let found: Vec<Timestamp> =
            occurrences.take_while(|time| *time < end).take(MAX_DOTS + 1).collect();
        let minute = |time: Timestamp| (time - start).num_minutes().clamp(0, LANE_MINUTES);
        let is_dense = found.len() > MAX_DOTS;
        let dots = match is_dense {
            true => String::new(),
            false => found.iter().map(|time| format!("M{} 8h0", minute(*time))).collect(),
        };
        let count = match is_dense {
            true => format!("more than {MAX_DOTS}"),
            false => found.len().to_string(),
        };
        Self {
            dots,
            dense: is_dense.then(|| (minute(found[0]), LANE_MINUTES - minute(found[0]))),
            windows: window.map(|window| windows(start, end, window, zone)).unwrap_or_default(),
            count,
        }
    }
}

/// The parts of a day in which a window is open.
fn windows(start: Timestamp, end: Timestamp, window: Window, zone: Zone) -> Vec<(i64, i64)> {
    let minute = |time: Timestamp| (time.min(end) - start).num_minutes();
    let mut open = Vec::new();
    let mut from =
        if window.contains(start, zone) { start } else { window.start_after(start, zone) };
    while from < end {
        let until = window.end_after(from, zone);
        open.push((minute(from), minute(until) - minute(from)));
        from = window.start_after(until, zone);
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::report::Outcome;

    fn timestamp(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_strip_shows_failures_by_more_than_their_colour() {
        let mark = |outcome, done| RunMark {
            mode: Mode::Apply,
            outcome,
            planned: 0,
            done,
            started_at: Timestamp::UNIX_EPOCH,
        };
        let marks = [
            mark(Some(Outcome::Succeeded), 0),
            mark(Some(Outcome::Succeeded), 10),
            mark(Some(Outcome::Failed), 5),
            mark(None, 0),
        ];
        let strip = Strip::of(&marks, Mode::Apply);
        assert_eq!(
            strip.paths,
            [
                ("idle", "M159 23v-3".to_owned()),
                ("ok", "M165 23v-21".to_owned()),
                ("bad", "M171 23v-12m0 14v2".to_owned()),
                ("run", "M177 23v-3".to_owned()),
            ]
        );
        assert_eq!(strip.label, "Last 4 runs: 2 succeeded, 1 failed, 1 under way");
    }

    #[test]
    fn a_lane_shows_windows_across_midnight_and_very_many_occurrences_as_one_bar() {
        let (zone, start) = ("UTC".parse().unwrap(), timestamp("2026-11-24T18:00:00Z"));
        let lane = |minutes: usize, window: Option<&str>| {
            let times = (1..).map(|count| start + chrono::TimeDelta::minutes(count));
            Lane::of(
                start,
                times.step_by(minutes),
                window.map(|window| window.parse().unwrap()),
                zone,
            )
        };
        let few = lane(720, Some("22:00-04:00"));
        assert_eq!((few.dots.as_str(), few.count.as_str()), ("M1 8h0M721 8h0M1441 8h0", "3"));
        assert_eq!(few.windows, [(240, 360)]);
        assert_eq!(lane(720, Some("10:00-20:00")).windows, [(0, 120), (960, 540)]);
        let many = lane(1, None);
        assert_eq!((many.dense, many.dots.as_str()), (Some((1, 1499)), ""));
        assert_eq!(many.count, "more than 49");
    }
}
