//! What requests and probes show of the configured homeservers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::{GaugeVec, HistogramVec, IntCounterVec};

use super::seconds::seconds;
use crate::http::{Api, CompletedRequest, Observer};
use crate::mas::ExpiryObserver;
use crate::synapse::VERSION_ENDPOINT;
use crate::values::clock::Timestamp;

/// What the last request or probe showed of a homeserver; `None` before the first one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HomeserverState {
    pub(crate) up: Option<bool>,
    pub(crate) token_valid: Option<bool>,
}

/// What is known of a homeserver, for people.
#[derive(Debug, Clone, Default)]
pub(crate) struct HomeserverView {
    pub(crate) state: HomeserverState,
    pub(crate) version: Option<String>,
    pub(crate) uses_mas: bool,
    /// When the token that the program issued itself expires.
    pub(crate) token_expires_at: Option<Timestamp>,
    /// Requests per second that are allowed at present; `None` without a limit.
    pub(crate) rate_limit: Option<f64>,
    /// How long it took to respond lately, in seconds.
    pub(crate) latency: Option<f64>,
}

/// A configured homeserver.
#[derive(Debug, Default)]
pub(super) struct Configured {
    state: HomeserverState,
    /// The labels of its info, after the name.
    info: Option<(String, &'static str)>,
    token_expires_at: Option<Timestamp>,
    rate_limit: Option<f64>,
    latency: Option<f64>,
}

/// How much a response changes the latency that is shown.
const LATENCY_WEIGHT: f64 = 0.125;

/// The metrics of the configured homeservers: those of a removed one vanish.
pub(crate) struct Homeservers {
    /// A late response of a removed homeserver finds no entry here, and adds no series.
    pub(super) states: Mutex<BTreeMap<String, Configured>>,
    pub(super) up: GaugeVec,
    pub(super) token_valid: GaugeVec,
    pub(super) lease_held: GaugeVec,
    pub(super) info: GaugeVec,
    pub(super) rate_limit: GaugeVec,
    pub(super) token_expiry: GaugeVec,
    pub(super) requests: IntCounterVec,
    pub(super) request_duration: HistogramVec,
}

/// In the order in which the vectors take their values.
pub(super) const UP_LABELS: [&str; 1] = ["homeserver"];
pub(super) const RATE_LABELS: [&str; 1] = ["homeserver"];
pub(super) const INFO_LABELS: [&str; 3] = ["homeserver", "version", "mas"];
pub(super) const REQUEST_LABELS: [&str; 5] = ["homeserver", "api", "method", "endpoint", "status"];
pub(super) const DURATION_LABELS: [&str; 3] = ["homeserver", "api", "endpoint"];

impl Homeservers {
    /// Returns an observer that counts the responses of a homeserver and of its MAS, and derives from the former whether it is up.
    pub(crate) fn observer(self: &Arc<Self>, homeserver: &str) -> Observer {
        let (metrics, homeserver) = (Arc::clone(self), homeserver.to_owned());
        metrics.lock().entry(homeserver.clone()).or_default();
        Arc::new(move |answered: &CompletedRequest| metrics.observe(&homeserver, answered))
    }

    /// Returns an observer of when the token that the program issues itself expires.
    pub(crate) fn expiry_observer(self: &Arc<Self>, homeserver: &str) -> ExpiryObserver {
        let (metrics, homeserver) = (Arc::clone(self), homeserver.to_owned());
        Arc::new(move |expires_at| {
            // Held to the end: nothing is added behind a removal.
            let mut configured = metrics.lock();
            if let Some(configured) = configured.get_mut(&homeserver) {
                configured.token_expires_at = Some(expires_at);
                metrics.token_expiry.with_label_values(&[&homeserver]).set(seconds(expires_at));
            }
        })
    }

    fn observe(&self, homeserver: &str, answered: &CompletedRequest) {
        // Held to the end: nothing is added behind a removal.
        let mut configured = self.lock();
        let Some(configured) = configured.get_mut(homeserver) else { return };
        let status = answered.status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        let api = answered.api.label();
        let request = [homeserver, api, answered.method.as_str(), answered.endpoint, &status];
        self.requests.with_label_values(&request).inc();
        self.request_duration
            .with_label_values(&[homeserver, api, answered.endpoint])
            .observe(answered.took.as_secs_f64());
        if answered.api == Api::Mas {
            return;
        }
        configured.rate_limit = answered.rate_limit;
        self.show_rate_limit(homeserver, answered.rate_limit);
        if answered.status.is_some() {
            let took = answered.took.as_secs_f64();
            let before = configured.latency.unwrap_or(took);
            configured.latency = Some(before + (took - before) * LATENCY_WEIGHT);
        }
        let state = &mut configured.state;
        // A proxy in front of a dead Synapse responds with these.
        let up = answered.status.is_some_and(|status| !matches!(status, 502..=504));
        state.up = Some(up);
        self.up.with_label_values(&[homeserver]).set(f64::from(u8::from(up)));
        // Synapse reports its version to everybody, whatever the token.
        let accepted = answered.status.is_some_and(|status| status < 400)
            && answered.endpoint != VERSION_ENDPOINT;
        if answered.token_refused || accepted {
            let valid = !answered.token_refused;
            state.token_valid = Some(valid);
            self.token_valid.with_label_values(&[homeserver]).set(f64::from(u8::from(valid)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Configured>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the configured homeservers by name.
    pub(crate) fn states(&self) -> Vec<(String, HomeserverState)> {
        self.lock().iter().map(|(name, it)| (name.clone(), it.state)).collect()
    }

    /// Returns what is known of each configured homeserver, by name.
    pub(crate) fn views(&self) -> Vec<(String, HomeserverView)> {
        let view = |it: &Configured| HomeserverView {
            state: it.state,
            version: it.info.as_ref().map(|(version, _)| version.clone()),
            uses_mas: it.info.as_ref().is_some_and(|(_, mas)| *mas == "true"),
            token_expires_at: it.token_expires_at,
            rate_limit: it.rate_limit,
            latency: it.latency,
        };
        self.lock().iter().map(|(name, it)| (name.clone(), view(it))).collect()
    }

    /// To be called for a homeserver whose token is not issued by the program any more.
    pub(crate) fn remove_token_expiry(&self, homeserver: &str) {
        if let Some(configured) = self.lock().get_mut(homeserver) {
            configured.token_expires_at = None;
        }
        let _ = self.token_expiry.remove_label_values(&[homeserver]);
    }

    /// Sets the allowed requests per second of a configured homeserver; without a limit there is no series.
    pub(crate) fn set_rate_limit(&self, homeserver: &str, limit: Option<f64>) {
        let mut states = self.lock();
        if let Some(configured) = states.get_mut(homeserver) {
            configured.rate_limit = limit;
            self.show_rate_limit(homeserver, limit);
        }
    }

    fn show_rate_limit(&self, homeserver: &str, limit: Option<f64>) {
        match limit {
            Some(limit) => self.rate_limit.with_label_values(&[homeserver]).set(limit),
            None => drop(self.rate_limit.remove_label_values(&[homeserver])),
        }
    }

    pub(crate) fn set_info(&self, homeserver: &str, version: &str, mas: bool) {
        let mut configured = self.lock();
        let Some(Configured { info, .. }) = configured.get_mut(homeserver) else { return };
        if let Some((version, mas)) = info.take() {
            let _ = self.info.remove_label_values(&[homeserver, &version, mas]);
        }
        let mas = if mas { "true" } else { "false" };
        self.info.with_label_values(&[homeserver, version, mas]).set(1.0);
        *info = Some((version.to_owned(), mas));
    }

    pub(crate) fn set_lease_held(&self, homeserver: &str, held: bool) {
        if self.lock().contains_key(homeserver) {
            self.lease_held.with_label_values(&[homeserver]).set(f64::from(u8::from(held)));
        }
    }

    /// Removes every series of some homeservers.
    pub(crate) fn remove(&self, homeservers: &BTreeSet<String>) {
        if homeservers.is_empty() {
            return;
        }
        let mut configured = self.lock();
        configured.retain(|name, _| !homeservers.contains(name));
        let by_name =
            [&self.up, &self.token_valid, &self.lease_held, &self.rate_limit, &self.token_expiry];
        for gauges in by_name {
            remove_series(gauges, homeservers, &UP_LABELS, |labels| {
                drop(gauges.remove_label_values(labels));
            });
        }
        remove_series(&self.info, homeservers, &INFO_LABELS, |labels| {
            drop(self.info.remove_label_values(labels));
        });
        remove_series(&self.requests, homeservers, &REQUEST_LABELS, |labels| {
            drop(self.requests.remove_label_values(labels));
        });
        remove_series(&self.request_duration, homeservers, &DURATION_LABELS, |labels| {
            drop(self.request_duration.remove_label_values(labels));
        });
    }
}

/// Removes every series of a vector that carries one of the homeservers: the crate removes by exact labels only.
fn remove_series(
    vector: &impl prometheus::core::Collector,
    homeservers: &BTreeSet<String>,
    order: &[&str],
    remove: impl Fn(&[&str]),
) {
    for family in vector.collect() {
        for metric in family.get_metric() {
            let labels: BTreeMap<&str, &str> =
                metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
            if labels.get("homeserver").is_some_and(|name| homeservers.contains(*name)) {
                let values: Vec<&str> =
                    order.iter().map(|name| labels.get(name).copied().unwrap_or("")).collect();
                remove(&values);
            }
        }
    }
}
