//! Which homeservers this replica may work on, and which it leaves to others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

/// What this replica may work on.
#[derive(Debug, Clone, Default)]
pub(super) struct Leases {
    /// Homeservers by address, and until when their leases can be trusted.
    pub held: BTreeMap<String, Instant>,
    /// Whether the database has said so lately: without it no other replica can be asked, nor work.
    pub is_current: bool,
}

impl Leases {
    pub(super) fn is_held(&self, homeserver: &str) -> bool {
        self.held.get(homeserver).is_some_and(|until| Instant::now() < *until)
    }
}

/// What other replicas should have.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// How many of the leases, as soon as no run needs them.
    pub surplus: usize,
    /// Where no more runs start, until the lease is resigned.
    pub given: BTreeSet<String>,
    /// Wakes the lease keeper when a lease is to be resigned, or the daemon stops.
    pub wake_keeper: Arc<Notify>,
}
