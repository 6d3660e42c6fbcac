//! Adopting a config: what is unchanged goes on, the rest is swapped, started or retired.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::{Entry, Supervisor};
use crate::config::{Config, Homeserver};
use crate::history::{self, Known};
use crate::runner::{Place, Places};
use crate::synapse::{Reader, Transport};

/// A homeserver as runs use it, with what it was made from.
pub(super) struct Live {
    connection_fingerprint: u64,
    place: Place,
    /// What all places of the homeserver share, whatever else is changed.
    places: Arc<Semaphore>,
    max_concurrent_runs: u32,
    /// Held while it is asked who it is.
    asked: Arc<tokio::sync::Mutex<()>>,
}

/// A homeserver that is new or changed, set up and not used yet.
struct Fresh<'a> {
    homeserver: &'a Homeserver,
    transport: Transport,
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
        for homeserver in config.homeservers.values() {
            let fingerprint = homeserver.connection_fingerprint();
            if self
                .state()
                .homeservers
                .get(&homeserver.name)
                .is_none_or(|live| live.connection_fingerprint != fingerprint)
            {
                let transport =
                    Transport::new(homeserver.settings(), self.metrics.observer(&homeserver.name))
                        .map_err(|error| anyhow::anyhow!("{}: {error}", homeserver.name))?;
                new.push(Fresh { homeserver, transport });
            }
        }
        let adopted = self.swap(config, new);
        self.describe(&self.know().await).await;
        Ok(adopted)
    }

    /// Makes the scheduled jobs known to the history, and answers what it knows of them.
    pub(super) async fn know(&self) -> HashMap<String, Known> {
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
        Self::written(self.runner.history.know(&scheduled).await)
    }

    /// A history that cannot be used keeps no schedule from running; it is counted, logged, and shown in `/readyz`.
    pub(super) fn written<T: Default>(written: Result<T, history::Error>) -> T {
        written.unwrap_or_else(|error| {
            tracing::error!("the history cannot be used: {error}");
            T::default()
        })
    }

    fn swap(&self, config: &Config, new: Vec<Fresh<'_>>) -> Adopted {
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
        for Fresh { homeserver, transport } in new {
            let max_concurrent_runs = homeserver.keys.max_concurrent_runs;
            let places = state.homeservers.get(&homeserver.name).map_or_else(
                || Arc::new(Semaphore::new(max_concurrent_runs as usize)),
                |live| resized(&live.places, live.max_concurrent_runs, max_concurrent_runs),
            );
            let place = Place {
                transport: Arc::new(transport),
                places: Places::Shared(Arc::clone(&places)),
                max_concurrent_requests: homeserver.keys.max_concurrent_requests,
            };
            state.homeservers.insert(
                homeserver.name.clone(),
                Live {
                    connection_fingerprint: homeserver.connection_fingerprint(),
                    place,
                    places,
                    max_concurrent_runs,
                    asked: Arc::default(),
                },
            );
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

/// Changes the number of places that runs share; one that is taken goes when it is given back.
fn resized(places: &Arc<Semaphore>, from: u32, to: u32) -> Arc<Semaphore> {
    places.add_permits(to.saturating_sub(from) as usize);
    if to < from {
        let places = Arc::clone(places);
        tokio::spawn(async move {
            if let Ok(taken) = places.acquire_many_owned(from - to).await {
                taken.forget();
            }
        });
    }
    Arc::clone(places)
}
