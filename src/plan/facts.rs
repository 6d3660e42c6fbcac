//! Facts about a homeserver: what earlier runs found out, and what a run adds.

use std::collections::HashMap;
use std::fmt;

use futures_util::future::BoxFuture;

/// A fact about a homeserver that later runs need not request again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    pub topic: Topic,
    pub key: String,
    pub value: String,
}

crate::values::string_enum::string_enum! {
    /// What facts are about.
    pub enum Topic {
        /// An account that a bridge owns: the key is its id, the value the id of the bridge.
        Ghost = "ghost",
        /// A file that Synapse kept: the key is its id, the value its last access in milliseconds.
        Kept = "kept",
        /// The time up to which the remote cache was purged, in milliseconds; the key is empty.
        RemoteCutOff = "remote-cut-off",
    }
}

/// The facts of a job's topic, and a way to store more while the job still plans.
pub struct Facts<'a> {
    known: HashMap<String, String>,
    store: &'a (dyn Fn(Vec<Fact>) -> BoxFuture<'a, ()> + Send + Sync),
}

impl<'a> Facts<'a> {
    pub fn new(
        known: HashMap<String, String>,
        store: &'a (dyn Fn(Vec<Fact>) -> BoxFuture<'a, ()> + Send + Sync),
    ) -> Self {
        Self { known, store }
    }

    /// What was known of the job's topic when the attempt began, by key.
    pub fn known(&self) -> &HashMap<String, String> {
        &self.known
    }

    /// Stores facts for later runs; where that fails, they are looked up again.
    pub async fn store(&self, facts: Vec<Fact>) {
        if !facts.is_empty() {
            (self.store)(facts).await;
        }
    }
}

impl fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("known", &self.known.len()).finish_non_exhaustive()
    }
}
