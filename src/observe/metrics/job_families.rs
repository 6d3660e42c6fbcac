//! The metric families of jobs, in the Prometheus text format.
//!
//! Not through the registry: it would copy and sort the labels of 50 series for each job, which takes five times as long
//! and twice the memory of everything else.

use std::borrow::Cow;
use std::fmt::Write;

use super::jobs::{JobMap, JobMetrics, Skipped};
use super::seconds::seconds;
use crate::plan::report::{Mode, Outcome, Report};
use crate::values::clock::Timestamp;

/// Appends every family that has a series.
pub(super) fn encode(jobs: &JobMap, text: &mut String) {
    for Family { name, help, kind, values } in FAMILIES {
        let before = text.len();
        // Writing into a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        let without_series = text.len();
        for (job, metrics) in jobs {
            for (labels, value) in values(metrics) {
                text.push_str(name);
                text.push('{');
                label(text, "job_name", job);
                text.push(',');
                label(text, "homeserver", &metrics.homeserver);
                for (name, value) in &labels {
                    text.push(',');
                    label(text, name, value);
                }
                let _ = writeln!(text, "}} {value}");
            }
        }
        if text.len() == without_series {
            text.truncate(before);
        }
    }
}

/// The series of one family for one job: further labels, and a value.
type Values<'a> = Vec<(Vec<(&'static str, Cow<'a, str>)>, f64)>;

struct Family {
    name: &'static str,
    help: &'static str,
    /// `gauge` or `counter`.
    kind: &'static str,
    values: fn(&JobMetrics) -> Values<'_>,
}

/// One series without further labels.
fn single<'a>(value: f64) -> Values<'a> {
    vec![(Vec::new(), value)]
}

fn flag<'a>(value: bool) -> Values<'a> {
    single(f64::from(u8::from(value)))
}

/// No series for a time that is unknown or never was.
fn timestamp<'a>(time: Option<Timestamp>) -> Values<'a> {
    time.map(|time| single(seconds(time))).unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "counts that large do not occur")]
fn count(count: u64) -> f64 {
    count as f64
}

const FAMILIES: &[Family] = &[
    Family {
        name: "microglia_job_info",
        help: "Configuration of the job.",
        kind: "gauge",
        values: |job| {
            vec![(
                vec![
                    ("kind", job.kind.into()),
                    ("schedule", job.schedule.as_str().into()),
                    ("timezone", job.timezone.as_str().into()),
                    ("mode", job.mode.as_str().into()),
                ],
                1.0,
            )]
        },
    },
    Family {
        name: "microglia_job_runs_total",
        help: "Number of runs that ended, by mode and outcome.",
        kind: "counter",
        values: |job| {
            let cells = Mode::ALL
                .iter()
                .flat_map(|mode| Outcome::ALL.iter().map(|outcome| (*mode, *outcome)));
            // Most jobs never use approve mode.
            let is_used = |cell: &(Mode, Outcome)| {
                cell.0 != Mode::Approve || job.mode == Mode::Approve || job.runs.contains_key(cell)
            };
            cells
                .filter(is_used)
                .map(|cell| {
                    (
                        vec![("mode", cell.0.as_str().into()), ("outcome", cell.1.as_str().into())],
                        count(job.runs.get(&cell).copied().unwrap_or(0)),
                    )
                })
                .collect()
        },
    },
    Family {
        name: "microglia_job_skipped_total",
        help: "Number of occurrences that were skipped, by reason.",
        kind: "counter",
        values: |job| {
            Skipped::ALL
                .iter()
                .map(|reason| {
                    (
                        vec![("reason", reason.as_str().into())],
                        count(job.skipped.get(reason).copied().unwrap_or(0)),
                    )
                })
                .collect()
        },
    },
    Family {
        name: "microglia_job_retries_total",
        help: "Number of attempts after the first one of a run.",
        kind: "counter",
        values: |job| single(count(job.retries)),
    },
    Family {
        name: "microglia_job_running",
        help: "Whether a run is in progress.",
        kind: "gauge",
        values: |job| flag(job.running),
    },
    Family {
        name: "microglia_job_approval_pending",
        help: "Whether a plan waits for a person to approve or reject it.",
        kind: "gauge",
        values: |job| flag(job.approval_pending),
    },
    Family {
        name: "microglia_job_waiting",
        help: "Whether a run is waiting for a slot, a window or a retry.",
        kind: "gauge",
        values: |job| flag(job.waiting || job.held),
    },
    Family {
        name: "microglia_job_next_run_timestamp_seconds",
        help: "Time of the next run.",
        kind: "gauge",
        values: |job| timestamp(job.next_run),
    },
    Family {
        name: "microglia_job_last_run_timestamp_seconds",
        help: "Time when the last run ended.",
        kind: "gauge",
        values: |job| timestamp(job.last_run.as_ref().and_then(|run| run.finished_at)),
    },
    Family {
        name: "microglia_job_last_run_duration_seconds",
        help: "Duration of the last run, without the time spent waiting.",
        kind: "gauge",
        values: |job| {
            let worked = job.last_run.as_ref().and_then(Report::work_duration);
            worked.map(|worked| single(worked.as_secs_f64())).unwrap_or_default()
        },
    },
    Family {
        name: "microglia_job_last_run_outcome",
        help: "Outcome of the last run: 1 for this outcome, 0 for all others.",
        kind: "gauge",
        values: |job| {
            let last = job.last_run.as_ref().and_then(|run| run.outcome);
            Outcome::ALL
                .iter()
                .map(|outcome| {
                    (
                        vec![("outcome", outcome.as_str().into())],
                        f64::from(u8::from(last == Some(*outcome))),
                    )
                })
                .collect()
        },
    },
    Family {
        name: "microglia_job_last_run_items",
        help: "Number of items of the last run, by state; planned and remaining are absent if unknown.",
        kind: "gauge",
        values: |job| {
            let Some(run) = &job.last_run else {
                return ["planned", "done", "failed", "skipped", "remaining"]
                    .map(|state| (vec![("state", state.into())], 0.0))
                    .into();
            };
            let states = [
                ("planned", run.planned),
                ("done", Some(run.done)),
                ("failed", Some(run.failed)),
                ("skipped", Some(run.skipped)),
                ("remaining", run.remaining),
            ];
            states
                .into_iter()
                .filter_map(|(state, items)| Some((vec![("state", state.into())], count(items?))))
                .collect()
        },
    },
    Family {
        name: "microglia_job_last_success_timestamp_seconds",
        help: "Time when the last successful run in the configured mode ended.",
        kind: "gauge",
        values: |job| timestamp(job.last_success),
    },
    Family {
        name: "microglia_job_success_due_timestamp_seconds",
        help: "Time by which the job should have succeeded again; absent while disabled, paused or manual.",
        kind: "gauge",
        values: |job| timestamp(job.success_due),
    },
    Family {
        name: "microglia_job_consecutive_failures",
        help: "Number of runs in the configured mode since the last successful one.",
        kind: "gauge",
        values: |job| single(count(job.consecutive_failures)),
    },
    Family {
        name: "microglia_job_round_progress_ratio",
        help: "Part of the list that the current round has read, from 0 to 1; absent for a kind that reads everything in each run.",
        kind: "gauge",
        values: |job| job.round.map(|round| single(round.progress)).unwrap_or_default(),
    },
    Family {
        name: "microglia_job_last_round_timestamp_seconds",
        help: "Time when the last complete round ended.",
        kind: "gauge",
        values: |job| timestamp(job.round.and_then(|round| round.finished_at)),
    },
    Family {
        name: "microglia_job_changes_total",
        help: "Number of items changed, or failed to be changed.",
        kind: "counter",
        values: |job| {
            [("done", job.done), ("failed", job.failed)]
                .map(|(state, items)| {
                    (
                        vec![("action", job.action.as_str().into()), ("state", state.into())],
                        count(items),
                    )
                })
                .into()
        },
    },
    Family {
        name: "microglia_job_bytes_freed_total",
        help: "Total size of the deleted files in bytes.",
        kind: "counter",
        values: |job| single(count(job.bytes_freed)),
    },
];

fn label(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text.push('"');
}
