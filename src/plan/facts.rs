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
        /// A deactivated account: the key is its id, the value when it was read in milliseconds and the providers of its
        /// external ids, as a JSON list.
        DeactivatedIds = "deactivated-ids",
        /// A file that Synapse kept: the key is its id, the value its last access in milliseconds.
        Kept = "kept",
        /// A room without local members: the key is its id, the value when it was first seen so and, if it was shut down
        /// since, when, in milliseconds.
        EmptyRoom = "empty-room",
        /// What a room or a user uses local files for: the key is its id, or names a job's selection of users. The values
        /// are those of `protect-media`.
        MediaUses = "media-uses",
        /// A file that was protected, or no longer is, since its uses were last stored: the key is its id.
        Protection = "protection",
        /// A registration token that is used up: the key is the token, or its id in MAS, the value when it was first seen so
        /// in milliseconds and how often it had been used.
        UsedUpToken = "used-up-token",
        /// An account that was not used for long: the key is its id, the value when its user was told and when it was
        /// locked, in milliseconds, as a JSON object.
        UnusedAccount = "unused-account",
        /// A deactivated account: the key is its id, the value when it was first seen so, in milliseconds.
        DeactivatedAccount = "deactivated-account",
        /// The time up to which the remote cache was purged, in milliseconds; the key is empty.
        RemoteCutOff = "remote-cut-off",
    }
}

/// Where facts are kept between runs.
pub trait FactStore: Send + Sync {
    /// Returns what is known for keys from `first` to `last`; empty if it cannot be read.
    fn between<'a>(
        &'a self,
        topic: Topic,
        first: &'a str,
        last: &'a str,
    ) -> BoxFuture<'a, HashMap<String, String>>;

    fn store(&self, facts: Vec<Fact>) -> BoxFuture<'_, ()>;

    fn forget(&self, topic: Topic, keys: Vec<String>) -> BoxFuture<'_, ()>;
}

/// The facts of a job's topic, and a way to look up and store more while the job plans.
pub struct Facts<'a> {
    known: HashMap<String, String>,
    store: &'a dyn FactStore,
}

impl<'a> Facts<'a> {
    pub fn new(known: HashMap<String, String>, store: &'a dyn FactStore) -> Self {
        Self { known, store }
    }

    /// What was known of the job's topic when the attempt began, by key.
    pub fn known(&self) -> &HashMap<String, String> {
        &self.known
    }

    /// Returns what is known of a topic that is too large to be read at once, for keys from `first` to `last`.
    pub async fn between(&self, topic: Topic, first: &str, last: &str) -> HashMap<String, String> {
        self.store.between(topic, first, last).await
    }

    /// Stores facts for later runs; where that fails, they are looked up again.
    pub async fn store(&self, facts: Vec<Fact>) {
        if !facts.is_empty() {
            self.store.store(facts).await;
        }
    }

    /// Forgets what no longer exists.
    pub async fn forget(&self, topic: Topic, keys: Vec<String>) {
        if !keys.is_empty() {
            self.store.forget(topic, keys).await;
        }
    }
}

impl fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("known", &self.known.len()).finish_non_exhaustive()
    }
}
