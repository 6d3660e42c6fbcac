//! What is counted and measured of each job, in a live table.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::plan::report::{Action, Mode, Outcome, Report};
use crate::values::clock::Timestamp;
use crate::values::string_enum::string_enum;

string_enum! {
    /// Why an occurrence was skipped.
    pub enum Skipped {
        Overlap = "overlap",
        Missed = "missed",
        Window = "window",
        Paused = "paused",
    }
}

/// How far a job has come in its round.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RoundMetrics {
    /// From 0 to 1.
    pub(crate) progress: f64,
    /// When the last complete round ended.
    pub(crate) finished_at: Option<Timestamp>,
}

/// The metrics of one job.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a metric of its own")]
pub(crate) struct JobMetrics {
    pub(crate) homeserver: String,
    pub(crate) kind: &'static str,
    pub(crate) schedule: String,
    pub(crate) timezone: String,
    pub(crate) mode: Mode,
    pub(crate) action: Action,
    pub(crate) runs: BTreeMap<(Mode, Outcome), u64>,
    pub(crate) skipped: BTreeMap<Skipped, u64>,
    pub(crate) retries: u64,
    pub(crate) running: bool,
    /// For its splay, or as the run reports.
    pub(crate) waiting: bool,
    /// A run is delayed by its splay, or until its window opens.
    pub(crate) held: bool,
    /// The mode for which the last run, the last success and the failures since were taken from the history.
    pub(crate) recalled: Option<Mode>,
    pub(crate) next_run: Option<Timestamp>,
    pub(crate) last_run: Option<Report>,
    pub(crate) last_success: Option<Timestamp>,
    pub(crate) success_due: Option<Timestamp>,
    pub(crate) consecutive_failures: u64,
    /// Whether a plan waits for a person to decide about it.
    pub(crate) approval_pending: bool,
    /// `None` for a kind that reads everything in each run.
    pub(crate) round: Option<RoundMetrics>,
    /// Items.
    pub(crate) done: u64,
    /// Items.
    pub(crate) failed: u64,
    pub(crate) bytes_freed: u64,
}

/// The metrics of the configured jobs by name: those of a removed job vanish with its row.
#[derive(Debug, Default)]
pub(crate) struct JobTable(Mutex<JobMap>);

/// Boxed: the nodes of a map that is filled in order stay half empty.
pub(crate) type JobMap = BTreeMap<String, Box<JobMetrics>>;

impl JobTable {
    pub(crate) fn table(&self) -> MutexGuard<'_, JobMap> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the metrics of a job that is (still) in the table.
    pub(crate) fn update(&self, job: &str, change: impl FnOnce(&mut JobMetrics)) {
        if let Some(metrics) = self.table().get_mut(job) {
            change(metrics);
        }
    }
}
