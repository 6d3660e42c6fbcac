//! What all phases of a run use and none of them changes.

use super::limits::{Limits, Stopped};
use super::params::{Extent, HomeserverHandle, Listener, LostCallWait, RunParams};
use crate::config::JobSpec;
use crate::history::state_dir::StateDir;
use crate::history::{self, History};
use crate::plan::report::{Event, Mode};
use crate::synapse::{self, Reader};
use crate::values::clock::{Clock, Timestamp};

pub(super) struct RunContext<'a> {
    pub history: &'a History,
    pub state_dir: Option<&'a StateDir>,
    pub clock: &'a Clock,
    pub lost_call_wait: LostCallWait,
    pub spec: &'a JobSpec,
    pub homeserver: &'a HomeserverHandle,
    pub params: &'a RunParams,
    pub reader: Reader,
    pub limits: Limits<'a>,
    pub listener: Listener,
}

/// Why an attempt ended before its plan was applied or, in a dry run, shown.
pub(super) enum Abort {
    Stopped(Stopped),
    Refused(String),
    /// No other attempt could do better.
    Failed(String),
    /// Another replica may work on the homeserver now.
    LeaseLost,
    /// Whether another attempt may help depends on the error.
    Synapse(synapse::Error),
}

impl From<Stopped> for Abort {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

/// For writes that must not be missed; see invariant 6 in `lib.rs`.
impl From<history::Error> for Abort {
    fn from(error: history::Error) -> Self {
        match error {
            history::Error::LeaseLost { .. } => Self::LeaseLost,
            error => Self::Failed(unrecorded(&error)),
        }
    }
}

impl RunContext<'_> {
    pub fn emit(&self, event: Event) {
        (self.listener)(event);
    }

    /// The number of items that this run may change; a full dry run shows all.
    pub fn at_most(&self) -> Option<u32> {
        self.spec.common.at_most.filter(|_| self.params.extent == Extent::Portion)
    }

    /// Whether the run ends with its plan; in approve mode another run applies that.
    pub fn only_plans(&self) -> bool {
        self.params.mode != Mode::Apply
    }

    /// Whether the run goes on without a record.
    pub fn is_dry_run(&self) -> bool {
        self.params.mode == Mode::DryRun
    }

    /// The moment from which ages count back: an approved plan is applied as of the moment at which it was made.
    pub fn as_of(&self, started_at: Timestamp) -> Timestamp {
        self.params.approved.as_ref().map_or(started_at, |plan| plan.planned_at)
    }

    /// What decides which changes the job plans.
    pub fn plan_definition(&self) -> String {
        self.spec.plan_definition(self.homeserver.transport.address.as_str())
    }
}

pub(super) fn unrecorded(error: &history::Error) -> String {
    if let history::Error::NotApproved { .. } = error {
        return format!(
            "{error}: it was decided otherwise, applied already, or its job was changed"
        );
    }
    if let history::Error::LeaseLost { .. } | history::Error::Claimed = error {
        return format!("{error}, and two never work on the same");
    }
    format!("the history cannot be written, and what cannot be recorded is not done: {error}")
}

/// The history keeps milliseconds; a report says the same before and after it was stored.
pub(super) fn truncated(time: Timestamp) -> Timestamp {
    Timestamp::from_timestamp_millis(time.timestamp_millis()).unwrap_or(time)
}
