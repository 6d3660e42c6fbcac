//! What the scheduler reads from the history at a start, or when it is opened later.

use std::collections::HashMap;

use crate::history::{ScheduleState, Standing, WaitingPlan};
use crate::plan::report::{Mode, Report};
use crate::plan::round::RoundState;

/// Up to where the occurrences of the scheduled jobs are dealt with.
pub(super) struct Recollection {
    pub known: HashMap<String, ScheduleState>,
    /// The runs that were cut off for the first time.
    pub interrupted: Vec<Report>,
    pub plans: Vec<WaitingPlan>,
}

/// How jobs did before the daemon started.
pub(super) struct Standings {
    pub last_runs: HashMap<String, Report>,
    pub by_mode: HashMap<(String, Mode), Standing>,
    pub rounds: HashMap<(String, Mode), RoundState>,
}
