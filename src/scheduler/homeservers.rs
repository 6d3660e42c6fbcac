//! The homeservers that runs use: their connections, and the limits that belong to their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::{Config, Homeserver};
use crate::observe::metrics::Metrics;
use crate::runner::{HomeserverHandle, RunSlots};
use crate::synapse::{Address, Limits, Reader, Settings, Slots, Transport};
use crate::values::clock::Clock;
use crate::values::fingerprint::Fingerprint;

/// Every homeserver of the configuration, set up.
#[derive(Default)]
pub(super) struct Homeservers {
    live: BTreeMap<String, Live>,
    addresses: BTreeMap<Address, Shared>,
}

/// A homeserver as runs use it, with what it was made from.
struct Live {
    connection_fingerprint: Fingerprint,
    handle: HomeserverHandle,
    /// Held during a probe.
    probing: Arc<tokio::sync::Mutex<()>>,
}

/// What all that use an address share, whatever name they have for it, also across reloads.
#[derive(Clone)]
struct Shared {
    slots: Arc<Slots>,
    limits: Arc<Limits>,
}

/// Homeservers that are new or changed, set up and not used yet.
pub(super) struct Prepared {
    new: Vec<(String, Fingerprint, HomeserverHandle)>,
    addresses: BTreeMap<Address, Shared>,
}

impl Homeservers {
    /// Sets up what is new or changed; nothing is used before [`Self::adopt`].
    pub(super) fn prepare(
        &self,
        config: &Config,
        metrics: &Arc<Metrics>,
    ) -> Result<Prepared, anyhow::Error> {
        let (mut new, mut addresses) = (Vec::new(), self.addresses.clone());
        for homeserver in config.homeservers.values() {
            let address = homeserver.address();
            let Some((runs, limits)) = config.limits(&address) else { continue };
            let shared = addresses.entry(address).or_insert_with(|| Shared {
                slots: Arc::new(Slots::new(runs)),
                limits: Arc::new(Limits::new(limits)),
            });
            let fingerprint = homeserver.connection_fingerprint();
            let is_unchanged = self
                .live
                .get(&homeserver.name)
                .is_some_and(|live| live.connection_fingerprint == fingerprint);
            if !is_unchanged {
                let handle = shared.handle(homeserver, metrics)?;
                new.push((homeserver.name.clone(), fingerprint, handle));
            }
        }
        Ok(Prepared { new, addresses })
    }

    /// Takes what was prepared, and drops what the configuration no longer names.
    pub(super) fn adopt(&mut self, config: &Config, prepared: Prepared, metrics: &Metrics) {
        let gone: BTreeSet<String> = self
            .live
            .extract_if(.., |name, _| !config.homeservers.contains_key(name))
            .map(|(name, _)| name)
            .collect();
        for name in gone {
            metrics.homeservers.remove(&name);
        }
        for (name, connection_fingerprint, handle) in prepared.new {
            self.live
                .insert(name, Live { connection_fingerprint, handle, probing: Arc::default() });
        }
        self.addresses = prepared.addresses;
        // Also of homeservers that are unchanged: another name for the address may have lower limits.
        for live in self.live.values_mut() {
            if let Some((_, limits)) = config.limits(&live.handle.transport.address) {
                live.handle.max_concurrent_requests = limits.max_concurrent_requests;
            }
        }
    }

    /// Gives each address the limits of the configuration; call it when the jobs have their new handles.
    pub(super) fn set_limits(&mut self, config: &Config, metrics: &Metrics) {
        self.addresses.retain(|address, shared| match config.limits(address) {
            Some((runs, limits)) => {
                shared.slots.resize(runs);
                shared.limits.set(limits);
                true
            }
            None => shared.is_in_use(),
        });
        for (name, live) in &self.live {
            if let Some(shared) = self.addresses.get(&live.handle.transport.address) {
                metrics.homeservers.set_rate_limit(name, shared.limits.current_rate());
            }
        }
    }

    pub(super) fn handle(&self, name: &str) -> Option<&HomeserverHandle> {
        self.live.get(name).map(|live| &live.handle)
    }

    /// Names and addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (&str, &str)> {
        self.live.iter().map(|(name, live)| (name.as_str(), live.handle.transport.address.as_str()))
    }

    /// Probes every homeserver, each in a task of its own; the metrics keep the results.
    ///
    /// A homeserver whose last probe has not ended is skipped, and delays no other.
    pub(super) fn probe(&self, metrics: &Arc<Metrics>, clock: &Clock) {
        for (name, live) in &self.live {
            let Ok(probing) = Arc::clone(&live.probing).try_lock_owned() else { continue };
            let reader = Reader::new(Arc::clone(&live.handle.transport), clock.clone());
            let (name, metrics) = (name.clone(), Arc::clone(metrics));
            tokio::spawn(async move {
                match reader.identity().await {
                    Ok(identity) => {
                        metrics.homeservers.set_info(&name, &identity.version_text, identity.mas);
                    }
                    Err(error) => {
                        tracing::warn!(target: "microglia::homeserver", homeserver = %name, "{name}: {error}");
                    }
                }
                drop(probing);
            });
        }
    }
}

impl Shared {
    fn handle(
        &self,
        homeserver: &Homeserver,
        metrics: &Arc<Metrics>,
    ) -> Result<HomeserverHandle, anyhow::Error> {
        let settings = Settings { limits: Arc::clone(&self.limits), ..homeserver.settings() };
        let transport = Transport::new(settings, metrics.homeservers.observer(&homeserver.name))
            .map_err(|error| anyhow::anyhow!("{}: {error}", homeserver.name))?;
        Ok(HomeserverHandle {
            transport: Arc::new(transport),
            slots: RunSlots::Shared(Arc::clone(self.slots.semaphore())),
            max_concurrent_requests: homeserver.max_concurrent_requests,
        })
    }

    /// Whether a run that continues with an earlier configuration still counts.
    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.limits) > 1 || Arc::strong_count(self.slots.semaphore()) > 1
    }
}
