//! The homeservers that runs use: their connections, and the limits that belong to their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::config::{Config, ConnectFor, Connections};
use crate::http::{Address, Clients, Limits, Slots, Transport};
use crate::observe::metrics::Metrics;
use crate::runner::{HomeserverHandle, RunSlots};
use crate::synapse::Reader;
use crate::values::clock::Clock;
use crate::values::fingerprint::Fingerprint;

/// Every homeserver of the configuration, set up.
#[derive(Default)]
pub(super) struct Homeservers {
    live: BTreeMap<String, Live>,
    addresses: BTreeMap<Address, Shared>,
    /// The homeserver whose turn to be probed it was last.
    probed: String,
}

/// How far apart the probes of many homeservers start at a start or a reload.
const PROBE_GAP: Duration = Duration::from_millis(40);

/// A homeserver as runs use it, with what it was made from.
struct Live {
    connection_fingerprint: Fingerprint,
    handle: HomeserverHandle,
    probing: Probing,
}

/// Held during a probe.
type Probing = Arc<tokio::sync::Mutex<Probed>>;

/// What the last probe of a homeserver found.
#[derive(Default)]
struct Probed {
    /// Why it failed.
    problem: Option<String>,
    /// Whose token it is, and how many probes in a row have read only that account.
    account: Option<(String, u32)>,
}

/// How many probes read only the account of the token, which takes one request and shows that the homeserver responds,
/// accepts the token, and takes it for an admin's: the version, and whether there is a MAS, are read once an hour.
const SHORT_PROBES: u32 = 11;

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
        clock: &Clock,
        state_dir: &Path,
    ) -> Result<Prepared, anyhow::Error> {
        let (mut new, mut addresses) = (Vec::new(), self.addresses.clone());
        let (all_limits, mut clients) = (config.limits(), Clients::default());
        for homeserver in config.homeservers.values() {
            let mut shared = |address: &Address| {
                let (runs, limits) = all_limits.get(address).copied()?;
                let shared = addresses.entry(address.clone()).or_insert_with(|| Shared {
                    slots: Arc::new(Slots::new(runs)),
                    limits: Arc::new(Limits::new(limits)),
                });
                Some(shared.clone())
            };
            let Some(Shared { slots, .. }) = shared(&homeserver.address()) else { continue };
            let fingerprint = homeserver.connection_fingerprint();
            let is_unchanged = self
                .live
                .get(&homeserver.name)
                .is_some_and(|live| live.connection_fingerprint == fingerprint);
            if !is_unchanged {
                let observer = metrics.homeservers.observer(&homeserver.name);
                let limits = |address: &Address| shared(address).map(|shared| shared.limits);
                let made_for = ConnectFor {
                    observer: &observer,
                    clock,
                    state_dir,
                    expiry_observer: metrics.homeservers.expiry_observer(&homeserver.name),
                };
                let Connections { transport, mas } = homeserver
                    .connect(&mut clients, made_for, limits)
                    .map_err(|error| anyhow::anyhow!("{}: {error}", homeserver.name))?;
                let handle = HomeserverHandle {
                    transport,
                    mas,
                    slots: RunSlots::Shared(Arc::clone(slots.semaphore())),
                    max_concurrent_requests: homeserver.max_concurrent_requests,
                    yield_to: homeserver.yield_to.clone(),
                };
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
        metrics.homeservers.remove(&gone);
        for (name, connection_fingerprint, handle) in prepared.new {
            if handle.mas.is_none() {
                metrics.homeservers.remove_token_expiry(&name);
            }
            self.live
                .insert(name, Live { connection_fingerprint, handle, probing: Arc::default() });
        }
        self.addresses = prepared.addresses;
        // Also of homeservers that are unchanged: another name for the address may have lower limits.
        let limits = config.limits();
        for live in self.live.values_mut() {
            if let Some((_, limits)) = limits.get(&live.handle.transport.address) {
                live.handle.max_concurrent_requests = limits.max_concurrent_requests;
            }
        }
    }

    /// Gives each address the limits of the configuration; call it when the jobs have their new handles.
    pub(super) fn set_limits(&mut self, config: &Config, metrics: &Metrics) {
        let limits = config.limits();
        self.addresses.retain(|address, shared| match limits.get(address) {
            Some((runs, limits)) => {
                shared.slots.resize(*runs);
                shared.limits.set(*limits);
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

    /// Probes every homeserver, each in a task of its own, one shortly after the other; the metrics keep the results.
    pub(super) fn probe_all(&self, metrics: &Arc<Metrics>, clock: &Clock) {
        let mut delay = Duration::ZERO;
        for (name, live) in &self.live {
            spawn_probe(name, live, delay, (metrics, clock));
            delay += PROBE_GAP;
        }
    }

    /// Probes the next homeserver, in the order of names and round again; returns how many there are.
    pub(super) fn probe_next(&mut self, metrics: &Arc<Metrics>, clock: &Clock) -> usize {
        let after = (Bound::Excluded(self.probed.clone()), Bound::Unbounded);
        let next = self.live.range(after).next().or_else(|| self.live.first_key_value());
        if let Some((name, live)) = next {
            spawn_probe(name, live, Duration::ZERO, (metrics, clock));
            self.probed = name.clone();
        }
        self.live.len()
    }
}

/// Probes a homeserver in a task of its own, so that it delays no other; one whose last probe has not ended is skipped.
fn spawn_probe(
    name: &str,
    live: &Live,
    delay: Duration,
    (metrics, clock): (&Arc<Metrics>, &Clock),
) {
    let Ok(probed) = Arc::clone(&live.probing).try_lock_owned() else { return };
    // A reload may remove it before its turn.
    let transport: Weak<Transport> = Arc::downgrade(&live.handle.transport);
    let (name, metrics, clock) = (name.to_owned(), Arc::clone(metrics), clock.clone());
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        let Some(transport) = transport.upgrade() else { return };
        Box::pin(probe(&name, transport, &metrics, clock, probed)).await;
    });
}

/// Logs only what is new: a homeserver that stays down would otherwise fill the log.
async fn probe(
    name: &str,
    transport: Arc<Transport>,
    metrics: &Metrics,
    clock: Clock,
    mut probed: tokio::sync::OwnedMutexGuard<Probed>,
) {
    let reader = Reader::new(transport, clock);
    let known = probed.account.take().filter(|(_, times)| *times < SHORT_PROBES);
    let responded = match known {
        Some((user_id, times)) => {
            reader.user(&user_id).await.map(|account| (account.name, times + 1))
        }
        None => reader.identity().await.map(|identity| {
            metrics.homeservers.set_info(name, &identity.version_text, identity.mas);
            (identity.account.name.clone(), 0)
        }),
    };
    match responded {
        Ok(account) => {
            probed.account = Some(account);
            if probed.problem.take().is_some() {
                tracing::info!(target: "microglia::homeserver", homeserver = %name, "{name}: the homeserver can be used again");
            }
        }
        Err(error) => {
            let text = error.to_string();
            if probed.problem.as_ref() != Some(&text) {
                tracing::warn!(target: "microglia::homeserver", homeserver = %name, "{name}: {text}");
            }
            probed.problem = Some(text);
        }
    }
}

impl Shared {
    /// Whether a run that continues with an earlier configuration still counts.
    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.limits) > 1 || Arc::strong_count(self.slots.semaphore()) > 1
    }
}
