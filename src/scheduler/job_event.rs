//! An event of a run, together with its job.

use serde::{Deserialize, Serialize};

use crate::plan::report::Event;

/// What a subscriber to the events of all runs receives; a job has one run at a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobEvent {
    pub job: String,
    pub event: Event,
}
