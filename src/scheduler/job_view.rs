//! A job as the status page shows it.

use std::sync::Arc;

use super::job_list::ListedWait;
use crate::config::JobSpec;
use crate::values::clock::Timestamp;
use crate::values::fingerprint::Fingerprint;

/// A job, what was decided about its next run, and the identity of its definition.
#[derive(Debug, Clone)]
pub struct JobView {
    pub spec: Arc<JobSpec>,
    /// Changes with every key of the job and of its homeserver.
    pub fingerprint: Fingerprint,
    /// The next occurrence; `None` if it is disabled or manual only.
    pub next: Option<Timestamp>,
    /// What a run that was not started yet is waiting for.
    pub wait: Option<ListedWait>,
    pub is_running: bool,
}
