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

/// The metrics of one job.
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
    /// For its splay, or as the run reports.
    pub waiting: bool,
    /// A missed occurrence waits to be caught up.
    pub missed: bool,
    /// The mode for which the last run, the last success and the failures since were taken from the history.
    pub recalled: Option<Mode>,
    pub next_run: Option<Timestamp>,
    pub last_run: Option<Report>,
    pub last_success: Option<Timestamp>,
    pub success_due: Option<Timestamp>,
    pub consecutive_failures: u64,
    /// Items.
    pub done: u64,
    /// Items.
    pub failed: u64,
    pub bytes_freed: u64,
}

/// The metrics of the configured jobs by name: those of a removed job vanish with its row.
#[derive(Debug, Default)]
pub struct JobTable(Mutex<BTreeMap<String, JobMetrics>>);

impl JobTable {
    pub fn table(&self) -> MutexGuard<'_, BTreeMap<String, JobMetrics>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the metrics of a job that is (still) in the table.
    pub fn update(&self, job: &str, change: impl FnOnce(&mut JobMetrics)) {
        if let Some(metrics) = self.table().get_mut(job) {
            change(metrics);
        }
    }
}
