//! The messages to the task that owns the jobs.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::agenda::Due;
use super::held::Leases;
use super::job_list::ListedWait;
use super::job_state::Ending;
use super::job_view::JobView;
use super::recollection::{Recollection, Standings};
use super::request::{Adopted, Refusal, RunOverrides};
use crate::config::{Config, JobSpec};
use crate::history::{Pause, WaitingPlan, Wanted};
use crate::http::Transport;
use crate::plan::report::{Event, Report};
use crate::runner::{ApprovedPlan, Stop};

/// A reply that nobody waits for any more is dropped.
pub(super) enum Message {
    Wake(Due),
    Adopt {
        config: Arc<Config>,
        reply: oneshot::Sender<Result<Adopted, anyhow::Error>>,
    },
    /// What the history knows. Jobs that already have a watermark ignore it unless the history was opened again.
    Recall {
        recollection: Recollection,
        reopened: bool,
        reply: oneshot::Sender<()>,
    },
    /// Whether the history says that runs are paused, or why it cannot be read.
    RecallPause {
        pause: Result<Pause, String>,
        reply: oneshot::Sender<Pause>,
    },
    SetPause {
        pause: Pause,
        reply: oneshot::Sender<()>,
    },
    GetPause {
        reply: oneshot::Sender<Pause>,
    },
    Specs {
        reply: oneshot::Sender<Vec<Arc<JobSpec>>>,
    },
    /// The jobs, sorted by name.
    Views {
        reply: oneshot::Sender<Vec<JobView>>,
    },
    /// What runs that were not started yet are waiting for, by job.
    Waits {
        reply: oneshot::Sender<HashMap<String, ListedWait>>,
    },
    /// The addresses of the homeservers, by name.
    Addresses {
        reply: oneshot::Sender<HashMap<String, String>>,
    },
    /// Sends the metrics what the history knows about each job.
    Describe {
        standings: Option<Standings>,
        reply: oneshot::Sender<()>,
    },
    /// Whether the history has to be read before the metrics can be described.
    NeedsStandings {
        reply: oneshot::Sender<bool>,
    },
    CountInterrupted {
        runs: Vec<Report>,
    },
    Run {
        job: String,
        overrides: RunOverrides,
        reply: oneshot::Sender<RunReply>,
    },
    /// Whether this replica may apply the plan of a job, and what that job is now.
    PlanDefinition {
        job: String,
        reply: oneshot::Sender<Result<(Arc<JobSpec>, String), Refusal>>,
    },
    /// A person approved the plan of a job.
    Approved {
        job: String,
        plan: ApprovedRun,
        reply: oneshot::Sender<Result<Approving, Refusal>>,
    },
    /// Which plans wait, by job.
    WaitingPlans {
        plans: Vec<WaitingPlan>,
        reply: oneshot::Sender<Vec<Outdated>>,
    },
    Cancel {
        job: String,
        by: String,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// An event of a run.
    Event {
        job: String,
        event: Event,
        listener: Option<Listener>,
    },
    /// A run is over. Its listener is dropped only when the job may be run again.
    Ended {
        job: String,
        ending: Ending,
        listener: Option<Listener>,
    },
    /// What this replica needs leases for.
    Wanted {
        reply: oneshot::Sender<Wanted>,
    },
    /// Which leases this replica has now.
    Leases {
        leases: Leases,
        reply: oneshot::Sender<()>,
    },
    /// Leaves homeservers to other replicas, at once or when the run there has ended: those that are not needed any more,
    /// and so many others (`None`: as many as were asked for last). Returns those on which nothing runs from now on.
    StandDown {
        surplus: Option<usize>,
        reply: oneshot::Sender<Vec<String>>,
    },
    /// The connection to a homeserver, if this replica works on it.
    Homeserver {
        name: String,
        reply: oneshot::Sender<Option<Arc<Transport>>>,
    },
    ProbeAll,
    /// Replies with the number of homeservers.
    ProbeNext {
        reply: oneshot::Sender<usize>,
    },
    Status {
        reply: oneshot::Sender<String>,
    },
    /// Starts no more runs, and returns handles to end the active ones.
    Drain {
        reply: oneshot::Sender<Vec<Stop>>,
    },
    /// Replies when everything that was to be remembered is written.
    Flush {
        reply: oneshot::Sender<()>,
    },
}

/// An approved plan that is to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApprovedRun {
    pub plan: ApprovedPlan,
    pub max_changes: Option<u32>,
}

/// How an approved plan is applied.
pub(super) enum Approving {
    /// Now; the events of the run.
    Started(mpsc::UnboundedReceiver<Event>),
    /// Later: completes "waits for".
    Waits(String),
}

/// A plan that can no longer be applied, and why.
pub(super) struct Outdated {
    pub run: i64,
    pub job: String,
    pub why: String,
}

pub(super) type Listener = mpsc::UnboundedSender<Event>;
pub(super) type RunReply = Result<mpsc::UnboundedReceiver<Event>, Refusal>;
