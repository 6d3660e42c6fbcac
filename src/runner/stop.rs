//! Requests to end a run before its work is done.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::plan::report::Outcome;

/// Ends a run, either between two changes or at once.
///
/// Clones stop the same run.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    at_boundary: CancellationToken,
    now: CancellationToken,
    request: Arc<OnceLock<Request>>,
    /// Why the run was not given the time to reach a boundary.
    urgency: Arc<OnceLock<String>>,
}

/// What interrupts a run whose replica may not work on the homeserver any more.
pub(super) const LEASE_LOST: &str = "the loss of the homeserver's lease";

#[derive(Debug)]
struct Request {
    outcome: Outcome,
    /// Who requested it, if a person did.
    by: Option<String>,
}

impl Stop {
    /// Ends the run between two changes.
    ///
    /// Only the first request counts: a run is `cancelled` or `interrupted`, not both.
    pub fn at_boundary(&self, outcome: Outcome) {
        self.request(Request { outcome, by: None });
    }

    /// Ends the run between two changes, because another replica may work on its homeserver from now on.
    pub fn lease_lost(&self) {
        let by = Some(LEASE_LOST.to_owned());
        self.request(Request { outcome: Outcome::Interrupted, by });
    }

    /// Cancels the run between two changes; `by` completes "cancelled by".
    pub fn cancelled_by(&self, by: &str) {
        self.request(Request { outcome: Outcome::Cancelled, by: Some(by.to_owned()) });
    }

    fn request(&self, request: Request) {
        let _ = self.request.set(request);
        self.at_boundary.cancel();
    }

    /// Ends the run without waiting for the change in progress, which may or may not take effect.
    ///
    /// `why` completes "stopped immediately".
    pub fn now(&self, outcome: Outcome, why: &str) {
        let _ = self.urgency.set(why.to_owned());
        self.at_boundary(outcome);
        self.now.cancel();
    }

    pub fn is_requested(&self) -> bool {
        self.at_boundary.is_cancelled()
    }

    /// Sleeps until `wait` is over or the run has to stop.
    pub async fn sleep(&self, wait: Duration) {
        let _ = tokio::time::timeout(wait, self.at_boundary.cancelled()).await;
    }

    /// The outcome of the run if it has to stop.
    pub fn outcome(&self) -> Option<Outcome> {
        self.is_requested()
            .then(|| self.request.get().map_or(Outcome::Cancelled, |request| request.outcome))
    }

    pub(super) async fn requested(&self) {
        self.at_boundary.cancelled().await;
    }

    pub(super) async fn requested_now(&self) {
        self.now.cancelled().await;
    }

    /// Why the run ended at once; empty if it did not.
    pub(super) fn urgency(&self) -> &str {
        self.urgency.get().map_or("", String::as_str)
    }

    /// `cancelled by root (uid 0)`.
    pub(super) fn describe(&self) -> String {
        match self.request.get() {
            Some(Request { outcome: Outcome::Interrupted, by: Some(by) }) => {
                format!("interrupted by {by}")
            }
            Some(Request { outcome: Outcome::Interrupted, by: None }) => {
                "interrupted by the shutdown of the daemon".to_owned()
            }
            Some(Request { by: Some(by), .. }) => format!("cancelled by {by}"),
            _ => "cancelled".to_owned(),
        }
    }
}
