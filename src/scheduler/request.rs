//! Requests to the scheduler, and their results.

use serde::{Deserialize, Serialize};

use crate::config::JobSpec;
use crate::jobs::job::Undo;
use crate::plan::report::{Mode, Trigger};
use crate::runner::{Extent, RunParams, WindowRule};
use crate::values::fingerprint::Fingerprint;
use crate::values::schema::Limit;

/// How a requested run differs from the configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunOverrides {
    pub mode: Option<Mode>,
    pub max_changes: Option<u32>,
    /// Lifts the job's window for this run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_window: bool,
    /// Reads everything, for a dry run of a kind that reads in portions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// Undoes this run of the job instead of running it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<i64>,
    /// The definition that the caller read: the daemon must not run an older one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
}

/// Why a requested run or cancellation is not possible.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    #[error("{0}")]
    Unknown(String),
    #[error("{job} is already running{}", run.map(|id| format!(" (run {id})")).unwrap_or_default())]
    Running { job: String, run: Option<i64> },
    #[error("{0} is not running")]
    NotRunning(String),
    #[error(
        "{0} was edited since the daemon loaded the configuration, and the daemon would run the old definition: run `microglia reload` first"
    )]
    Edited(String),
    /// The holder of the homeserver's lease is to be asked.
    #[error("another replica runs the jobs of this homeserver")]
    Elsewhere {
        /// The address of the homeserver.
        homeserver: String,
        /// The definition of the job here.
        fingerprint: Fingerprint,
    },
    #[error(
        "the replica {holder} runs {job} and has another definition of it: give all replicas the same configuration, and run `microglia reload` on each"
    )]
    Differs { job: String, holder: String },
    /// Another replica was to be asked, and the reason why nobody knows its answer.
    #[error("{0}")]
    Unanswered(String),
    #[error("there is no run {0}")]
    NoRun(i64),
    /// The plan does not wait for a decision, and why.
    #[error("{0}")]
    NotWaiting(String),
    #[error("the daemon is stopping")]
    Draining,
    #[error("{0}")]
    Usage(String),
}

/// What a replica asks the holder of a homeserver's lease for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ForwardedRequest {
    Run(RunOverrides),
    Cancel {
        /// Completes "cancelled by".
        by: String,
    },
    Approve(ApproveRequest),
}

/// The answer to a [`ForwardedRequest`]: the id of the run that was started.
pub(super) type Answer = Result<Option<i64>, Refusal>;

/// The approval of a plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApproveRequest {
    /// The run that made the plan.
    pub run: i64,
    /// Completes "approved by".
    pub by: String,
    /// Replaces the job's `max_changes` for the run that applies the plan.
    pub max_changes: Option<u32>,
}

/// What adopting a configuration did, by the names of the jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    pub unchanged: Vec<String>,
    /// Settings that were changed and need a restart, and secrets that need one to be renewed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart_needed: Vec<String>,
}

impl RunOverrides {
    /// Returns what is wrong with the overrides for a job.
    pub fn problem(&self, spec: &JobSpec) -> Option<String> {
        let kind = spec.job.kind();
        if let (Some(run), Undo::Impossible(why)) = (self.undo, kind.undo) {
            Some(format!("run {run} of {} cannot be undone: {why}", spec.name))
        } else if self.undo.is_some() && self.mode.unwrap_or(spec.common.mode) == Mode::Approve {
            Some(
                "an undo is a dry run or applied at once: give the mode \"dry-run\" or \"apply\""
                    .to_owned(),
            )
        } else if self.max_changes.is_some() && !kind.counts {
            let name = kind.name;
            Some(format!(
                "max_changes is not supported by {name}, which cannot count items in advance"
            ))
        } else if self.full && kind.rounds.is_none() {
            Some(format!("full is not supported by {}, which always reads everything", kind.name))
        } else if self.full && self.mode.unwrap_or(spec.common.mode) != Mode::DryRun {
            Some(
                "full is only for dry runs: other runs read a portion, and the next run continues"
                    .to_owned(),
            )
        } else {
            None
        }
    }

    /// What a requested run of a job is started with.
    pub(crate) fn params(self, spec: &JobSpec) -> RunParams {
        let mut params = RunParams::manual(spec);
        self.apply(&mut params);
        params
    }

    pub(super) fn apply(self, params: &mut RunParams) {
        params.mode = self.mode.unwrap_or(params.mode);
        params.max_changes = self.max_changes.map_or(params.max_changes, Limit::Of);
        if self.ignore_window {
            params.window = WindowRule::Ignore;
        }
        if self.full {
            params.extent = Extent::Full;
        }
        if let Some(run) = self.undo {
            (params.trigger, params.undoes) = (Trigger::Undo, Some(run));
        }
    }
}
