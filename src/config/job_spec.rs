//! A job on one homeserver, as the configuration describes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::keys::CommonKeys;
use crate::jobs::job::AnyJob;
use crate::values::clock::Timestamp;
use crate::values::fingerprint::Fingerprint;
use crate::values::schedule::{Schedule, Zone};

#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Unique; `job@homeserver` where the configuration gives a list of homeservers.
    pub name: String,
    pub homeserver: String,
    pub schedule: Option<Schedule>,
    pub zone: Zone,
    pub common: Arc<CommonKeys>,
    pub job: Arc<dyn AnyJob>,
    /// Whether the homeserver keeps its media in object storage, where Synapse deletes nothing.
    pub media_in_object_storage: bool,
    /// From the job's name and the homeserver's URL, so that jobs of the same name start at different times.
    pub splay_seed: u64,
    /// Of the kind and its own keys: what the job selects and does, whatever the common keys say.
    pub selection: Fingerprint,
    /// Of the kind's own keys, each for itself.
    pub(super) own_keys: Arc<BTreeMap<&'static str, Fingerprint>>,
    /// The keys of the job's table and of `[defaults]` as they are written, with their values as TOML.
    pub written: Arc<[(String, String)]>,
    /// Of all keys in the job's table, with defaults filled in.
    pub(super) definition: Fingerprint,
}

impl JobSpec {
    /// Changes with every key of the job and of its homeserver, whose fingerprint is `homeserver`.
    pub fn fingerprint(&self, homeserver: &Fingerprint) -> Fingerprint {
        Fingerprint::of(&json!({
            "name": self.name,
            "homeserver": [self.homeserver, homeserver],
            "zone": self.zone.to_string(),
            "splay_seed": self.splay_seed,
            "definition": self.definition,
        }))
    }

    /// What decides which changes the job plans on the homeserver at `address`, as JSON: hashes, because a value may be secret.
    pub fn plan_definition(&self, address: &str) -> String {
        let of = |value: &str| Fingerprint::of(&json!(value));
        let mut keys: BTreeMap<&str, &Fingerprint> =
            self.own_keys.iter().map(|(name, value)| (*name, value)).collect();
        let (kind, mode) = (of(self.job.kind().name), of(self.common.mode.as_str()));
        let homeserver = Fingerprint::of(&json!([address, self.media_in_object_storage]));
        keys.extend([("kind", &kind), ("mode", &mode), ("homeserver", &homeserver)]);
        json!(keys).to_string()
    }

    /// Whether `time` is outside the job's window; false without a window.
    pub fn is_outside_window(&self, time: Timestamp) -> bool {
        self.common.window.is_some_and(|window| !window.contains(time, self.zone))
    }

    /// The first occurrence after `time`; with a window, the first inside it.
    pub fn next(&self, time: Timestamp) -> Option<Timestamp> {
        let schedule = self.schedule.as_ref()?;
        match self.common.window {
            Some(window) => schedule.next_in(window, time, self.zone),
            None => schedule.next(time, self.zone).map(|next| next.to_utc()),
        }
    }

    /// A fixed delay below the job's splay.
    pub fn splay(&self) -> Duration {
        let bound = u64::try_from(self.common.splay.0.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.splay_seed.checked_rem(bound).unwrap_or(0))
    }
}

/// The keys in which two [definitions](JobSpec::plan_definition) differ, for a message.
pub fn changed_keys(before: &str, now: &str) -> String {
    let keys =
        |text: &str| -> BTreeMap<String, String> { serde_json::from_str(text).unwrap_or_default() };
    let (before, now) = (keys(before), keys(now));
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let changed = names.into_iter().filter(|name| before.get(*name) != now.get(*name));
    changed.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
