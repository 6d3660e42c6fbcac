//! How long the leases of homeservers last.

use std::time::Duration;

/// How long leases last, and how often to look after them.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTimes {
    pub ttl: Duration,
    /// A lease is trusted for so much less than it lasts.
    pub margin: Duration,
    pub renew_every: Duration,
    /// How often to look for leases that became free, for a pause, and for requests of others.
    pub poll_every: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(15),
            margin: Duration::from_secs(3),
            renew_every: Duration::from_secs(5),
            poll_every: Duration::from_secs(1),
        }
    }
}
