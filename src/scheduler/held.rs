//! Which homeservers this replica may work on.

use std::collections::BTreeMap;
use std::time::Instant;

/// What this replica may work on.
#[derive(Debug, Clone, Default)]
pub(super) struct Leases {
    /// Homeservers by address, and until when their leases can be trusted.
    pub held: BTreeMap<String, Instant>,
    /// The names of the replicas that hold the others.
    pub elsewhere: BTreeMap<String, String>,
}

impl Leases {
    pub(super) fn is_held(&self, homeserver: &str) -> bool {
        self.held.get(homeserver).is_some_and(|until| Instant::now() < *until)
    }
}
