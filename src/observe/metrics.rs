//! The metrics, on a registry of our own: what the interface names, and nothing that names a person.

mod jobs;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts,
    Registry, TextEncoder,
};

pub use jobs::{JobMetrics, Skipped};

use crate::synapse::{CompletedRequest, Observer};
use crate::values::clock::Timestamp;
use jobs::Jobs;

/// What the last request or probe showed of a homeserver; `None` before the first one.
#[derive(Debug, Clone, Copy, Default)]
pub struct HomeserverState {
    pub up: Option<bool>,
    pub token_valid: Option<bool>,
}

/// Every series of the daemon.
pub struct Metrics {
    registry: Registry,
    pub jobs: Jobs,
    /// Those that the config names: what a removed one still answers makes no series.
    homeservers: Mutex<BTreeMap<String, HomeserverState>>,
    pub config_successful: Gauge,
    pub config_success_timestamp: Gauge,
    pub paused: Gauge,
    pub run_duration: HistogramVec,
    pub start_delay: Histogram,
    homeserver_up: GaugeVec,
    homeserver_token_valid: GaugeVec,
    homeserver_info: GaugeVec,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    last_tick: Gauge,
    history_write_errors: IntCounter,
}

const RUN_SECONDS: [f64; 14] = [
    0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0, 21_600.0,
];
/// The ticker looks every half second.
const DELAY_SECONDS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0];
const REQUEST_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0];

impl Metrics {
    pub fn new(started: Timestamp) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let histograms = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let histograms = HistogramVec::new(
                HistogramOpts::new(name, help).buckets(buckets.to_vec()),
                labels,
            )?;
            registry.register(Box::new(histograms.clone()))?;
            Ok::<_, prometheus::Error>(histograms)
        };
        gauges("microglia_build_info", "The version that runs.", &["version", "revision"])?
            .with_label_values(&[
                env!("CARGO_PKG_VERSION"),
                option_env!("MICROGLIA_REVISION").unwrap_or("unknown"),
            ])
            .set(1.0);
        gauge("microglia_start_time_seconds", "When the daemon started.")?.set(seconds(started));
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let start_delay = Histogram::with_opts(
            HistogramOpts::new(
                "microglia_start_delay_seconds",
                "How long after its occurrence a scheduled run started.",
            )
            .buckets(DELAY_SECONDS.to_vec()),
        )?;
        registry.register(Box::new(start_delay.clone()))?;
        let requests = IntCounterVec::new(
            Opts::new(
                "microglia_homeserver_requests_total",
                "Requests to a homeserver by what was answered; status is \"none\" where no answer came.",
            ),
            &["homeserver", "method", "endpoint", "status"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        let history_write_errors = IntCounter::new(
            "microglia_history_write_errors_total",
            "What could not be written to the history.",
        )?;
        registry.register(Box::new(history_write_errors.clone()))?;
        Ok(Self {
            jobs: Jobs::default(),
            homeservers: Mutex::default(),
            config_successful: gauge(
                "microglia_config_last_reload_successful",
                "Whether the last (re)load of the config succeeded.",
            )?,
            config_success_timestamp: gauge(
                "microglia_config_last_reload_success_timestamp_seconds",
                "When the config was last (re)loaded with success.",
            )?,
            paused: gauge("microglia_paused", "Whether scheduled runs are paused.")?,
            run_duration: histograms(
                "microglia_run_duration_seconds",
                "How long runs worked, without waiting for a slot or a retry.",
                &RUN_SECONDS,
                &["kind"],
            )?,
            start_delay,
            homeserver_up: gauges(
                "microglia_homeserver_up",
                "Whether the homeserver answered the last request or probe.",
                &["homeserver"],
            )?,
            homeserver_token_valid: gauges(
                "microglia_homeserver_token_valid",
                "Whether the homeserver took the token of the last request or probe.",
                &["homeserver"],
            )?,
            homeserver_info: gauges(
                "microglia_homeserver_info",
                "What the homeserver is.",
                &["homeserver", "version", "mas"],
            )?,
            requests,
            request_duration: histograms(
                "microglia_homeserver_request_duration_seconds",
                "How long a homeserver took to answer.",
                &REQUEST_SECONDS,
                &["homeserver", "endpoint"],
            )?,
            last_tick: gauge(
                "microglia_scheduler_last_tick_timestamp_seconds",
                "When the agenda was last looked at.",
            )?,
            history_write_errors,
            registry,
        })
    }

    /// Counts a homeserver's answers, and knows from them whether it is up and takes the token.
    pub fn observer(self: &Arc<Self>, homeserver: &str) -> Observer {
        let (metrics, homeserver) = (Arc::clone(self), homeserver.to_owned());
        metrics.homeservers().entry(homeserver.clone()).or_default();
        Arc::new(move |answered: &CompletedRequest| {
            // Held meanwhile, so that nothing is written behind a removal.
            let mut known = metrics.homeservers();
            let Some(state) = known.get_mut(&homeserver) else { return };
            let status =
                answered.status.map_or_else(|| "none".to_owned(), |status| status.to_string());
            metrics
                .requests
                .with_label_values(&[
                    homeserver.as_str(),
                    answered.method.as_str(),
                    answered.endpoint,
                    &status,
                ])
                .inc();
            metrics
                .request_duration
                .with_label_values(&[homeserver.as_str(), answered.endpoint])
                .observe(answered.took.as_secs_f64());
            // A proxy that answers in Synapse's place does so with these.
            let up = answered.status.is_some_and(|status| !matches!(status, 502..=504));
            metrics.homeserver_up.with_label_values(&[&homeserver]).set(f64::from(u8::from(up)));
            state.up = Some(up);
            if answered.token_refused {
                state.token_valid = Some(false);
                metrics.homeserver_token_valid.with_label_values(&[&homeserver]).set(0.0);
            } else if answered.status.is_some_and(|status| status < 400)
                && answered.endpoint != crate::synapse::VERSION_ENDPOINT
            {
                state.token_valid = Some(true);
                metrics.homeserver_token_valid.with_label_values(&[&homeserver]).set(1.0);
            }
        })
    }

    fn homeservers(&self) -> MutexGuard<'_, BTreeMap<String, HomeserverState>> {
        self.homeservers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The homeservers of the configuration by name, as the series have them.
    pub fn homeserver_states(&self) -> Vec<(String, HomeserverState)> {
        self.homeservers().iter().map(|(name, state)| (name.clone(), *state)).collect()
    }

    pub fn set_homeserver_info(&self, homeserver: &str, version: &str, mas: bool) {
        let known = self.homeservers();
        if !known.contains_key(homeserver) {
            return;
        }
        self.forget_info(homeserver);
        self.homeserver_info
            .with_label_values(&[homeserver, version, if mas { "true" } else { "false" }])
            .set(1.0);
    }

    /// Lets the series of a homeserver vanish.
    pub fn remove_homeserver(&self, homeserver: &str) {
        let mut known = self.homeservers();
        known.remove(homeserver);
        self.forget_info(homeserver);
        let _ = self.homeserver_up.remove_label_values(&[homeserver]);
        let _ = self.homeserver_token_valid.remove_label_values(&[homeserver]);
        forget(
            &self.requests,
            homeserver,
            &["homeserver", "method", "endpoint", "status"],
            |labels| drop(self.requests.remove_label_values(labels)),
        );
        forget(&self.request_duration, homeserver, &["homeserver", "endpoint"], |labels| {
            drop(self.request_duration.remove_label_values(labels));
        });
    }

    fn forget_info(&self, homeserver: &str) {
        forget(&self.homeserver_info, homeserver, &["homeserver", "version", "mas"], |labels| {
            drop(self.homeserver_info.remove_label_values(labels));
        });
    }

    /// The Prometheus text format.
    pub fn text(&self, ticked: Timestamp, write_errors: u64) -> Result<String, prometheus::Error> {
        self.last_tick.set(seconds(ticked));
        self.history_write_errors
            .inc_by(write_errors.saturating_sub(self.history_write_errors.get()));
        let mut text = TextEncoder::new().encode_to_string(&self.registry.gather())?;
        self.jobs.write(&mut text);
        Ok(text)
    }
}

pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Removes every series of a vector that carries the homeserver: the crate removes by exact labels only.
fn forget(
    vector: &impl prometheus::core::Collector,
    homeserver: &str,
    order: &[&str],
    remove: impl Fn(&[&str]),
) {
    for family in vector.collect() {
        for metric in family.get_metric() {
            let value = |name: &str| {
                metric
                    .get_label()
                    .iter()
                    .find(|label| label.name() == name)
                    .map(|label| label.value().to_owned())
                    .unwrap_or_default()
            };
            if value("homeserver") == homeserver {
                let values: Vec<String> = order.iter().map(|name| value(name)).collect();
                remove(&values.iter().map(String::as_str).collect::<Vec<_>>());
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of this century fit")]
pub fn seconds(moment: Timestamp) -> f64 {
    moment.timestamp_millis() as f64 / 1000.0
}
