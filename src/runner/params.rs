//! What a run is started with.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::config::JobSpec;
use crate::http::Transport;
use crate::mas;
use crate::plan::report::{Event, Mode, Trigger};
use crate::synapse::YieldTo;
use crate::values::clock::Timestamp;
use crate::values::schedule::Window;
use crate::values::schema::Limit;

/// How a run differs from the configuration of its job.
#[derive(Debug, Clone)]
pub struct RunParams {
    pub mode: Mode,
    pub max_changes: Limit<u32>,
    pub window: WindowRule,
    pub extent: Extent,
    pub trigger: Trigger,
    pub scheduled_for: Option<Timestamp>,
    /// Attempts of the interrupted run that this one continues.
    pub attempts_made: u32,
    /// The approved plan that the run applies; it changes nothing else.
    pub approved: Option<ApprovedPlan>,
    /// The run that this one undoes, instead of what the job would do.
    pub undoes: Option<i64>,
}

/// A plan that a person approved, or approves by starting the run that applies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovedPlan {
    /// The run that made the plan.
    pub run: i64,
    /// When it started: ages count back from then, so that nothing younger than the plan can go.
    pub planned_at: Timestamp,
    /// Completes "approved by"; `None` where the decision is recorded already.
    pub by: Option<String>,
}

/// Whether a run keeps to its job's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRule {
    Keep,
    /// A person who started the run lifted the window for it.
    Ignore,
}

/// How much a run reads, for a kind that reads in portions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// As much as half of its time allows; the next run continues.
    Portion,
    /// Everything; only for a dry run.
    Full,
}

/// A homeserver as runs use it.
#[derive(Debug, Clone)]
pub struct HomeserverHandle {
    pub transport: Arc<Transport>,
    /// `None` where no MAS is configured.
    pub mas: Option<Arc<mas::Connection>>,
    pub slots: RunSlots,
    pub max_concurrent_requests: u32,
    pub yield_to: Vec<YieldTo>,
}

/// How many runs may use a homeserver at a time.
#[derive(Debug, Clone)]
pub enum RunSlots {
    /// Shared by the runs of the daemon, the only process that runs jobs.
    Shared(Arc<Semaphore>),
    /// Shared by all processes, through locks in the state directory.
    Locks(u32),
}

/// When a request whose response was lost counts as ended.
#[derive(Debug, Clone, Copy)]
pub struct LostCallWait {
    /// The media statistics must not have changed for this long.
    pub unchanged_for: Duration,
    /// While the statistics cannot be read, this much time must have passed.
    pub unobserved_for: Duration,
    pub poll_interval: Duration,
    /// A change of external ids, which cannot be observed, counts as under way for this long.
    pub external_ids_for: Duration,
}

impl Default for LostCallWait {
    fn default() -> Self {
        Self {
            unchanged_for: Duration::from_mins(1),
            unobserved_for: Duration::from_mins(10),
            poll_interval: Duration::from_secs(5),
            external_ids_for: Duration::from_mins(1),
        }
    }
}

/// Receives the events of a run in order; must not block.
pub type Listener = Arc<dyn Fn(Event) + Send + Sync>;

impl RunParams {
    /// A manual run as the configuration describes it.
    pub fn manual(spec: &JobSpec) -> Self {
        Self {
            mode: spec.common.mode,
            max_changes: spec.common.max_changes,
            window: WindowRule::Keep,
            extent: Extent::Portion,
            trigger: Trigger::Manual,
            scheduled_for: None,
            attempts_made: 0,
            approved: None,
            undoes: None,
        }
    }

    /// The run that applies an approved plan.
    pub fn of_approved(spec: &JobSpec, plan: ApprovedPlan, max_changes: Option<u32>) -> Self {
        Self {
            mode: Mode::Apply,
            max_changes: max_changes.map_or(spec.common.max_changes, Limit::Of),
            trigger: Trigger::Approval,
            approved: Some(plan),
            ..Self::manual(spec)
        }
    }

    /// The window that limits the changes of this run.
    pub(super) fn window(&self, spec: &JobSpec) -> Option<Window> {
        let limited = self.window == WindowRule::Keep && self.mode == Mode::Apply;
        spec.common.window.filter(|_| limited)
    }
}
