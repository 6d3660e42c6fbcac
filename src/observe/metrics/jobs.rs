//! The series of the jobs: written from a live table, so that those of a removed job vanish with its row.
//!
//! Not through the registry: it would copy and sort the labels of 50 series for each job, which takes five times as long
//! and twice the memory of everything else.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::seconds;
use crate::plan::report::{Action, Mode, Outcome, Report};
use crate::values::clock::Timestamp;
use crate::values::string_enum::string_enum;

string_enum! {
    /// Why an occurrence was not run.
    pub enum Skipped {
        Overlap = "overlap",
        Missed = "missed",
        Window = "window",
        Paused = "paused",
    }
}

/// What the metrics say of one job.
#[derive(Debug, Clone)]
pub struct JobMetrics {
    pub homeserver: String,
    pub kind: &'static str,
    pub schedule: String,
    pub timezone: String,
    pub mode: Mode,
    pub action: Action,
    pub runs: BTreeMap<(Mode, Outcome), u64>,
    pub skipped: BTreeMap<Skipped, u64>,
    pub retries: u64,
    pub running: bool,
    /// For its splay, or as the run tells.
    pub waiting: bool,
    /// A run is held back by its splay, or until its window opens.
    pub held: bool,
    /// The mode for which the last run, the last success and the failures since were taken from the history.
    pub recalled: Option<Mode>,
    pub next_run: Option<Timestamp>,
    pub last_run: Option<Report>,
    pub last_success: Option<Timestamp>,
    pub success_due: Option<Timestamp>,
    pub consecutive_failures: u64,
    pub done: u64,
    pub failed: u64,
    pub bytes_freed: u64,
}

/// The live table.
#[derive(Debug, Default)]
pub struct Jobs(Mutex<BTreeMap<String, JobMetrics>>);

impl Jobs {
    pub fn table(&self) -> MutexGuard<'_, BTreeMap<String, JobMetrics>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the series of a job that is (still) in the table.
    pub fn update(&self, job: &str, change: impl FnOnce(&mut JobMetrics)) {
        if let Some(series) = self.table().get_mut(job) {
            change(series);
        }
    }

    /// Appends every family that has a series, in the Prometheus text format.
    pub(super) fn write(&self, text: &mut String) {
        let table = self.table();
        for family in FAMILIES {
            let before = text.len();
            let Family { name, help, kind, .. } = family;
            // Writing into a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            let nothing = text.len();
            for (job, series) in table.iter() {
                for (labels, value) in (family.values)(series) {
                    text.push_str(name);
                    text.push('{');
                    label(text, "job_name", job);
                    text.push(',');
                    label(text, "homeserver", &series.homeserver);
                    for (name, value) in &labels {
                        text.push(',');
                        label(text, name, value);
                    }
                    let _ = writeln!(text, "}} {value}");
                }
            }
            if text.len() == nothing {
                text.truncate(before);
            }
        }
    }
}

/// The values of one family for one job: more labels, and a value.
type Values<'a> = Vec<(Vec<(&'static str, Cow<'a, str>)>, f64)>;

struct Family {
    name: &'static str,
    help: &'static str,
    /// `gauge` or `counter`.
    kind: &'static str,
    values: fn(&JobMetrics) -> Values<'_>,
}

fn one<'a>(value: f64) -> Values<'a> {
    vec![(Vec::new(), value)]
}

fn moment<'a>(moment: Option<Timestamp>) -> Values<'a> {
    moment.map(|moment| one(seconds(moment))).unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "counts that large do not occur")]
fn count(count: u64) -> f64 {
    count as f64
}

const FAMILIES: &[Family] = &[
    Family {
        name: "microglia_job_info",
        help: "What the job is.",
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
        help: "Runs that ended.",
        kind: "counter",
        values: |job| {
            let cells = Mode::ALL
                .iter()
                .flat_map(|mode| Outcome::ALL.iter().map(|outcome| (*mode, *outcome)));
            cells
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
        help: "Occurrences that were not run.",
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
        help: "Attempts after the first of a run.",
        kind: "counter",
        values: |job| one(count(job.retries)),
    },
    Family {
        name: "microglia_job_running",
        help: "Whether a run is under way.",
        kind: "gauge",
        values: |job| one(f64::from(u8::from(job.running))),
    },
    Family {
        name: "microglia_job_waiting",
        help: "Whether a run waits for a slot, a window or a retry.",
        kind: "gauge",
        values: |job| one(f64::from(u8::from(job.waiting || job.held))),
    },
    Family {
        name: "microglia_job_next_run_timestamp_seconds",
        help: "The next occurrence.",
        kind: "gauge",
        values: |job| moment(job.next_run),
    },
    Family {
        name: "microglia_job_last_run_timestamp_seconds",
        help: "When the last run ended.",
        kind: "gauge",
        values: |job| moment(job.last_run.as_ref().and_then(|run| run.finished_at)),
    },
    Family {
        name: "microglia_job_last_run_duration_seconds",
        help: "How long the last run worked, without waiting for a slot or a retry.",
        kind: "gauge",
        values: |job| {
            let worked = job.last_run.as_ref().and_then(Report::work_duration);
            worked.map(|worked| one(worked.as_secs_f64())).unwrap_or_default()
        },
    },
    Family {
        name: "microglia_job_last_run_outcome",
        help: "How the last run ended: 1 for its outcome, 0 for the others.",
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
        help: "What became of the things of the last run's plan; planned and remaining are absent where they are unknown.",
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
                .filter_map(|(state, things)| Some((vec![("state", state.into())], count(things?))))
                .collect()
        },
    },
    Family {
        name: "microglia_job_last_success_timestamp_seconds",
        help: "When the last run that succeeded in the configured mode ended.",
        kind: "gauge",
        values: |job| moment(job.last_success),
    },
    Family {
        name: "microglia_job_success_due_timestamp_seconds",
        help: "By when the job must have succeeded again: alert when this has passed. Absent while disabled, paused or manual.",
        kind: "gauge",
        values: |job| moment(job.success_due),
    },
    Family {
        name: "microglia_job_consecutive_failures",
        help: "Runs in the configured mode since the last one that succeeded.",
        kind: "gauge",
        values: |job| one(count(job.consecutive_failures)),
    },
    Family {
        name: "microglia_job_changes_total",
        help: "Things that were changed, or failed to be.",
        kind: "counter",
        values: |job| {
            [("done", job.done), ("failed", job.failed)]
                .map(|(state, things)| {
                    (
                        vec![("action", job.action.as_str().into()), ("state", state.into())],
                        count(things),
                    )
                })
                .into()
        },
    },
    Family {
        name: "microglia_job_bytes_freed_total",
        help: "Bytes of the files that were deleted.",
        kind: "counter",
        values: |job| one(count(job.bytes_freed)),
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
