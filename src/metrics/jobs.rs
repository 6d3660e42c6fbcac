//! The series of the jobs: one collector over a live table, so that those of a removed job vanish with its row.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::seconds;
use crate::clock::Timestamp;
use crate::report::{Action, Mode, Outcome, Report};
use crate::words;

words! {
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
pub struct JobSeries {
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
    pub waiting: bool,
    pub next_run: Option<Timestamp>,
    pub last_run: Option<Report>,
    pub last_success: Option<Timestamp>,
    pub success_due: Option<Timestamp>,
    pub consecutive_failures: u64,
    pub done: u64,
    pub failed: u64,
    pub bytes_freed: u64,
}

/// The live table; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Jobs(Arc<Mutex<BTreeMap<String, JobSeries>>>);

impl Jobs {
    pub fn table(&self) -> MutexGuard<'_, BTreeMap<String, JobSeries>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the series of a job that is (still) in the table.
    pub fn update(&self, job: &str, change: impl FnOnce(&mut JobSeries)) {
        if let Some(series) = self.table().get_mut(job) {
            change(series);
        }
    }
}

/// The values of one family for one job: more labels, and a value.
type Values = Vec<(Vec<(&'static str, String)>, f64)>;

struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    values: fn(&JobSeries) -> Values,
}

fn one(value: f64) -> Values {
    vec![(Vec::new(), value)]
}

fn moment(moment: Option<Timestamp>) -> Values {
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
        kind: MetricType::GAUGE,
        values: |job| {
            vec![(
                vec![
                    ("kind", job.kind.to_owned()),
                    ("schedule", job.schedule.clone()),
                    ("timezone", job.timezone.clone()),
                    ("mode", job.mode.to_string()),
                ],
                1.0,
            )]
        },
    },
    Family {
        name: "microglia_job_runs_total",
        help: "Runs that ended.",
        kind: MetricType::COUNTER,
        values: |job| {
            let cells = Mode::ALL
                .iter()
                .flat_map(|mode| Outcome::ALL.iter().map(|outcome| (*mode, *outcome)));
            cells
                .map(|cell| {
                    (
                        vec![("mode", cell.0.to_string()), ("outcome", cell.1.to_string())],
                        count(job.runs.get(&cell).copied().unwrap_or(0)),
                    )
                })
                .collect()
        },
    },
    Family {
        name: "microglia_job_skipped_total",
        help: "Occurrences that were not run.",
        kind: MetricType::COUNTER,
        values: |job| {
            Skipped::ALL
                .iter()
                .map(|reason| {
                    (
                        vec![("reason", reason.to_string())],
                        count(job.skipped.get(reason).copied().unwrap_or(0)),
                    )
                })
                .collect()
        },
    },
    Family {
        name: "microglia_job_retries_total",
        help: "Attempts after the first of a run.",
        kind: MetricType::COUNTER,
        values: |job| one(count(job.retries)),
    },
    Family {
        name: "microglia_job_running",
        help: "Whether a run is under way.",
        kind: MetricType::GAUGE,
        values: |job| one(f64::from(u8::from(job.running))),
    },
    Family {
        name: "microglia_job_waiting",
        help: "Whether a run waits for a place, a window or a retry.",
        kind: MetricType::GAUGE,
        values: |job| one(f64::from(u8::from(job.waiting))),
    },
    Family {
        name: "microglia_job_next_run_timestamp_seconds",
        help: "The next occurrence.",
        kind: MetricType::GAUGE,
        values: |job| moment(job.next_run),
    },
    Family {
        name: "microglia_job_last_run_timestamp_seconds",
        help: "When the last run ended.",
        kind: MetricType::GAUGE,
        values: |job| moment(job.last_run.as_ref().and_then(|run| run.finished_at)),
    },
    Family {
        name: "microglia_job_last_run_duration_seconds",
        help: "How long the last run took.",
        kind: MetricType::GAUGE,
        values: |job| {
            let took = job.last_run.as_ref().and_then(|run| {
                Some((run.finished_at? - run.started_at).to_std().ok()?.as_secs_f64())
            });
            took.map(one).unwrap_or_default()
        },
    },
    Family {
        name: "microglia_job_last_run_outcome",
        help: "How the last run ended: 1 for its outcome, 0 for the others.",
        kind: MetricType::GAUGE,
        values: |job| {
            let last = job.last_run.as_ref().and_then(|run| run.outcome);
            Outcome::ALL
                .iter()
                .map(|outcome| {
                    (
                        vec![("outcome", outcome.to_string())],
                        f64::from(u8::from(last == Some(*outcome))),
                    )
                })
                .collect()
        },
    },
    Family {
        name: "microglia_job_last_run_things",
        help: "What became of the things of the last run's plan; planned is absent where a kind cannot know.",
        kind: MetricType::GAUGE,
        values: |job| {
            let Some(run) = &job.last_run else {
                return ["planned", "done", "failed", "skipped", "remaining"]
                    .map(|state| (vec![("state", state.to_owned())], 0.0))
                    .into();
            };
            let states = [
                ("planned", run.planned),
                ("done", Some(run.done)),
                ("failed", Some(run.failed)),
                ("skipped", Some(run.skipped)),
                ("remaining", Some(run.remaining)),
            ];
            states
                .into_iter()
                .filter_map(|(state, things)| {
                    Some((vec![("state", state.to_owned())], count(things?)))
                })
                .collect()
        },
    },
    Family {
        name: "microglia_job_last_success_timestamp_seconds",
        help: "When the last run that succeeded in the configured mode ended.",
        kind: MetricType::GAUGE,
        values: |job| moment(job.last_success),
    },
    Family {
        name: "microglia_job_success_due_timestamp_seconds",
        help: "By when the job must have succeeded again: alert when this has passed. Absent while disabled, paused or manual.",
        kind: MetricType::GAUGE,
        values: |job| moment(job.success_due),
    },
    Family {
        name: "microglia_job_consecutive_failures",
        help: "Runs in the configured mode since the last one that succeeded.",
        kind: MetricType::GAUGE,
        values: |job| one(count(job.consecutive_failures)),
    },
    Family {
        name: "microglia_job_changes_total",
        help: "Things that were changed, or failed to be.",
        kind: MetricType::COUNTER,
        values: |job| {
            [("done", job.done), ("failed", job.failed)]
                .map(|(state, things)| {
                    (
                        vec![("action", job.action.to_string()), ("state", state.to_owned())],
                        count(things),
                    )
                })
                .into()
        },
    },
    Family {
        name: "microglia_job_bytes_freed_total",
        help: "Bytes of the files that were deleted.",
        kind: MetricType::COUNTER,
        values: |job| one(count(job.bytes_freed)),
    },
];

impl Collector for Jobs {
    fn desc(&self) -> Vec<&Desc> {
        // The registry only uses it to find families of the same name, and all of ours are here.
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let table = self.table();
        FAMILIES
            .iter()
            .map(|family| {
                let metrics = table.iter().flat_map(|(name, job)| {
                    (family.values)(job).into_iter().map(move |(labels, value)| {
                        let mut pairs =
                            vec![label("job_name", name), label("homeserver", &job.homeserver)];
                        pairs.extend(labels.iter().map(|(name, value)| label(name, value)));
                        metric(pairs, family.kind, value)
                    })
                });
                let mut collected = MetricFamily::default();
                collected.set_name(family.name.to_owned());
                collected.set_help(family.help.to_owned());
                collected.set_field_type(family.kind);
                collected.set_metric(metrics.collect());
                collected
            })
            .filter(|family| !family.get_metric().is_empty())
            .collect()
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn metric(labels: Vec<LabelPair>, kind: MetricType, value: f64) -> Metric {
    let mut metric = Metric::default();
    metric.set_label(labels);
    if kind == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}
