//! Adopting a config: what is unchanged goes on, the rest is swapped, started or retired.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Entry, Supervisor};
use crate::config::{Config, Homeserver};
use crate::history::{self, ScheduleState};
use crate::runner::{HomeserverHandle, RunSlots};
use crate::synapse::{Address, Limits, Reader, Settings, Slots, Transport};
use crate::values::fingerprint::Fingerprint;

/// A homeserver as runs use it, with what it was made from.
pub(super) struct Live {
    connection_fingerprint: Fingerprint,
    place: HomeserverHandle,
    /// Held while it is asked who it is.
    asked: Arc<tokio::sync::Mutex<()>>,
}

/// What all that use an address share, whatever name they have for it, also across reloads.
#[derive(Clone)]
pub(super) struct Shared {
    slots: Arc<Slots>,
    limits: Arc<Limits>,
}

impl Shared {
    /// Whether a run that goes on with an earlier configuration still counts.
    fn in_use(&self) -> bool {
        Arc::strong_count(&self.limits) > 1 || Arc::strong_count(self.slots.semaphore()) > 1
    }
}

/// A homeserver that is new or changed, set up and not used yet.
struct Fresh<'a> {
    homeserver: &'a Homeserver,
    transport: Transport,
    slots: Arc<Slots>,
}

/// What adopting a config did, by the names of the jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    pub unchanged: Vec<String>,
    /// Settings that were changed and need a restart, and secrets that need one to be renewed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart_needed: Vec<String>,
}

impl Supervisor {
    /// Starts jobs that are new or changed, retires those that are gone, leaves the others alone.
    ///
    /// A changed job's running run ends with the old definition; a removed job's run ends at its next change boundary.
    /// All or nothing: a homeserver that cannot be set up leaves everything as it was.
    pub async fn adopt(&self, config: &Config) -> Result<Adopted, anyhow::Error> {
        let mut new = Vec::new();
        let mut addresses = self.state().addresses.clone();
        for homeserver in config.homeservers.values() {
            let address = homeserver.address();
            let Some((runs, limits)) = config.limits(&address) else { continue };
            let shared = addresses.entry(address).or_insert_with(|| Shared {
                slots: Arc::new(Slots::new(runs)),
                limits: Arc::new(Limits::new(limits)),
            });
            let fingerprint = homeserver.connection_fingerprint();
            if self
                .state()
                .homeservers
                .get(&homeserver.name)
                .is_none_or(|live| live.connection_fingerprint != fingerprint)
            {
                let settings =
                    Settings { limits: Arc::clone(&shared.limits), ..homeserver.settings() };
                let transport = Transport::new(settings, self.metrics.observer(&homeserver.name))
                    .map_err(|error| anyhow::anyhow!("{}: {error}", homeserver.name))?;
                new.push(Fresh { homeserver, transport, slots: Arc::clone(&shared.slots) });
            }
        }
        let adopted = self.swap(config, new, addresses);
        self.describe(&self.upsert_schedules().await).await;
        Ok(adopted)
    }

    /// Makes the scheduled jobs known to the history, and answers what it knows of them.
    pub(super) async fn upsert_schedules(&self) -> HashMap<String, ScheduleState> {
        let scheduled: Vec<(String, String)> = {
            let state = self.state();
            let specs = state.jobs.values().map(|entry| &entry.spec);
            specs
                .filter(|spec| spec.common.enabled)
                .filter_map(|spec| {
                    let schedule = spec.schedule.as_ref()?.as_str();
                    Some((spec.name.clone(), format!("{schedule} {}", spec.zone)))
                })
                .collect()
        };
        Self::written(self.runner.history.upsert_schedules(&scheduled).await)
    }

    /// A history that cannot be used keeps no schedule from running; it is counted, logged, and shown in `/readyz`.
    pub(super) fn written<T: Default>(written: Result<T, history::Error>) -> T {
        written.unwrap_or_else(|error| {
            tracing::error!("the history cannot be used: {error}");
            T::default()
        })
    }

    fn swap(
        &self,
        config: &Config,
        new: Vec<Fresh<'_>>,
        addresses: BTreeMap<Address, Shared>,
    ) -> Adopted {
        let now = self.clock.now();
        let (mut state, mut agenda) = (self.state(), self.agenda());
        let gone: Vec<String> = state
            .homeservers
            .keys()
            .filter(|name| !config.homeservers.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            state.homeservers.remove(&name);
            self.metrics.forget_homeserver(&name);
        }
        for Fresh { homeserver, transport, slots } in new {
            let place = HomeserverHandle {
                transport: Arc::new(transport),
                places: RunSlots::Shared(Arc::clone(slots.semaphore())),
                max_concurrent_requests: homeserver.max_concurrent_requests,
            };
            state.homeservers.insert(
                homeserver.name.clone(),
                Live {
                    connection_fingerprint: homeserver.connection_fingerprint(),
                    place,
                    asked: Arc::default(),
                },
            );
        }
        state.addresses = addresses;
        // Also of homeservers that are unchanged: another name for the address may have lower limits.
        for live in state.homeservers.values_mut() {
            if let Some((_, limits)) = config.limits(&live.place.transport.address) {
                live.place.max_concurrent_requests = limits.max_concurrent_requests;
            }
        }
        let mut adopted = Adopted::default();
        let removed: Vec<String> =
            state.jobs.keys().filter(|name| config.job(name).is_none()).cloned().collect();
        for name in removed {
            if let Some(Entry { running: Some(running), .. }) = state.jobs.remove(&name) {
                running.stop.cancelled_by("a reload that removed the job");
                state.leaving.insert(name.clone(), running);
            }
            agenda.remove(&name);
            adopted.removed.push(name);
        }
        for spec in &config.jobs {
            let (Some(live), Some(homeserver)) =
                (state.homeservers.get(&spec.homeserver), config.homeservers.get(&spec.homeserver))
            else {
                continue;
            };
            let (place, fingerprint) =
                (live.place.clone(), spec.fingerprint(homeserver.fingerprint()));
            match &spec.schedule {
                Some(schedule) if spec.common.enabled => {
                    agenda.set(&spec.name, schedule, spec.zone, now);
                }
                _ => agenda.remove(&spec.name),
            }
            match state.jobs.get_mut(&spec.name) {
                Some(entry) if entry.fingerprint == fingerprint => {
                    entry.place = place;
                    adopted.unchanged.push(spec.name.clone());
                }
                Some(entry) => {
                    entry.forget_other_schedule(spec);
                    (entry.spec, entry.fingerprint, entry.place) =
                        (Arc::new(spec.clone()), fingerprint, place);
                    adopted.changed.push(spec.name.clone());
                }
                None => {
                    // One that was taken out a moment ago may still run.
                    let running = state.leaving.remove(&spec.name);
                    let entry = Entry {
                        spec: Arc::new(spec.clone()),
                        fingerprint,
                        place,
                        since: now,
                        running,
                        queued: None,
                        passed: None,
                        begun: None,
                        missed: None,
                    };
                    state.jobs.insert(spec.name.clone(), entry);
                    adopted.added.push(spec.name.clone());
                }
            }
        }
        state.addresses.retain(|address, shared| match config.limits(address) {
            Some((runs, limits)) => {
                shared.slots.resize(runs);
                shared.limits.set(limits);
                true
            }
            None => shared.in_use(),
        });
        adopted
    }

    /// Has every homeserver asked who it is, each for itself; the metrics keep the answers.
    ///
    /// One that has not answered the last time yet is left alone, and delays no other.
    pub fn probe(&self) {
        for (name, live) in &self.state().homeservers {
            let Ok(asked) = Arc::clone(&live.asked).try_lock_owned() else { continue };
            let reader = Reader::new(Arc::clone(&live.place.transport), self.clock.clone());
            let (name, metrics) = (name.clone(), Arc::clone(&self.metrics));
            tokio::spawn(async move {
                match reader.identity().await {
                    Ok(identity) => metrics.homeserver(&name, &identity.version_text, identity.mas),
                    Err(error) => tracing::warn!(homeserver = %name, "{name}: {error}"),
                }
                drop(asked);
            });
        }
    }
}
