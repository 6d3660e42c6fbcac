//! Every metric of the daemon, and their text format.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts,
    Registry, TextEncoder,
};

use super::homeservers::{
    DURATION_LABELS, Homeservers, INFO_LABELS, RATE_LABELS, REQUEST_LABELS, UP_LABELS,
};
use super::job_families::encode;
use super::jobs::JobTable;
use super::seconds::seconds;
use crate::values::clock::Timestamp;

/// Every metric of the daemon; none names a person.
pub struct Metrics {
    registry: Registry,
    pub(crate) jobs: JobTable,
    pub(crate) homeservers: Arc<Homeservers>,
    pub(crate) config_successful: Gauge,
    pub(crate) config_success_timestamp: Gauge,
    pub(crate) paused: Gauge,
    /// How many replicas have another configuration than this one.
    pub(crate) differing_replicas: Gauge,
    pub(crate) run_duration: HistogramVec,
    pub(crate) start_delay: Histogram,
    /// Sign-ins to the status page with a wrong token.
    pub(crate) login_failures: IntCounter,
    /// Messages by notification and result.
    pub(crate) notifications: IntCounterVec,
    pub(crate) notifications_pending: GaugeVec,
    last_tick: Gauge,
    history_write_errors: IntCounter,
    /// Of the text, in bytes.
    last_length: AtomicUsize,
}

pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

const RUN_SECONDS: [f64; 14] = [
    0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0, 21_600.0,
];
/// The ticker ticks every half second.
const DELAY_SECONDS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0];
const REQUEST_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0];

impl Metrics {
    pub fn new(started: Timestamp) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let add = Add(&registry);
        add.gauges("microglia_build_info", "Version of microglia.", &["version", "revision"])?
            .with_label_values(&[
                env!("CARGO_PKG_VERSION"),
                option_env!("MICROGLIA_REVISION").unwrap_or("unknown"),
            ])
            .set(1.0);
        add.gauge("microglia_start_time_seconds", "Start time of the daemon.")?
            .set(seconds(started));
        Ok(Self {
            jobs: JobTable::default(),
            homeservers: Arc::new(add.homeservers()?),
            config_successful: add.gauge(
                "microglia_config_last_reload_successful",
                "Whether the last attempt to load the configuration succeeded.",
            )?,
            config_success_timestamp: add.gauge(
                "microglia_config_last_reload_success_timestamp_seconds",
                "Time of the last successful load of the configuration.",
            )?,
            differing_replicas: add.gauge(
                "microglia_replicas_with_other_configuration",
                "Number of replicas with other jobs or homeservers than this one.",
            )?,
            paused: add.gauge("microglia_paused", "Whether scheduled runs are paused.")?,
            run_duration: add.histograms(
                "microglia_run_duration_seconds",
                "Duration of runs, without the time spent waiting.",
                &RUN_SECONDS,
                &["kind"],
            )?,
            start_delay: add.histogram(
                "microglia_start_delay_seconds",
                "Delay between an occurrence and the start of its run.",
                &DELAY_SECONDS,
            )?,
            login_failures: add.counter(
                "microglia_login_failures_total",
                "Number of attempts to sign in to the status page with a wrong token.",
            )?,
            notifications: add.notifications()?,
            notifications_pending: add.gauges(
                "microglia_notifications_pending",
                "Number of messages that wait to be sent.",
                &["notification"],
            )?,
            last_tick: add.gauge(
                "microglia_scheduler_last_tick_timestamp_seconds",
                "Time of the last tick of the scheduler.",
            )?,
            history_write_errors: add.counter(
                "microglia_history_write_errors_total",
                "Number of failed writes to the history.",
            )?,
            registry,
            last_length: AtomicUsize::new(0),
        })
    }

    /// Returns all metrics in the Prometheus text format.
    pub(crate) fn text(
        &self,
        ticked: Timestamp,
        write_errors: u64,
    ) -> Result<String, prometheus::Error> {
        self.last_tick.set(seconds(ticked));
        self.history_write_errors
            .inc_by(write_errors.saturating_sub(self.history_write_errors.get()));
        // Growing by doubling would leave as much behind as the text takes, which is megabytes with thousands of jobs.
        let expected = self.last_length.load(Ordering::Relaxed);
        let mut text = String::with_capacity(expected + expected / 16);
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text)?;
        encode(&self.jobs.table(), &mut text);
        self.last_length.store(text.len(), Ordering::Relaxed);
        Ok(text)
    }
}

/// Adds metrics to a registry.
struct Add<'a>(&'a Registry);

impl Add<'_> {
    fn register<T: Collector + Clone + 'static>(&self, metric: T) -> Result<T, prometheus::Error> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        self.register(Gauge::new(name, help)?)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<GaugeVec, prometheus::Error> {
        self.register(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.register(IntCounter::new(name, help)?)
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<Histogram, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(options)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(HistogramVec::new(options, labels)?)
    }

    fn notifications(&self) -> Result<IntCounterVec, prometheus::Error> {
        let messages = Opts::new(
            "microglia_notifications_total",
            "Number of messages that were sent, and of attempts to send one that failed.",
        );
        self.register(IntCounterVec::new(messages, &["notification", "result"])?)
    }

    fn homeservers(&self) -> Result<Homeservers, prometheus::Error> {
        let requests = Opts::new(
            "microglia_homeserver_requests_total",
            "Number of requests to a homeserver; status is \"none\" if there was no response.",
        );
        Ok(Homeservers {
            states: Mutex::default(),
            up: self.gauges(
                "microglia_homeserver_up",
                "Whether the homeserver responded to the last request or probe.",
                &UP_LABELS,
            )?,
            token_valid: self.gauges(
                "microglia_homeserver_token_valid",
                "Whether the homeserver accepted the access token of the last request or probe.",
                &UP_LABELS,
            )?,
            lease_held: self.gauges(
                "microglia_homeserver_lease_held",
                "Whether this replica runs the homeserver's jobs.",
                &UP_LABELS,
            )?,
            info: self.gauges(
                "microglia_homeserver_info",
                "Version of the homeserver, and whether it uses MAS.",
                &INFO_LABELS,
            )?,
            rate_limit: self.gauges(
                "microglia_homeserver_request_rate_limit",
                "Requests per second that are allowed at present; absent without a limit.",
                &RATE_LABELS,
            )?,
            token_expiry: self.gauges(
                "microglia_homeserver_token_expiry_timestamp_seconds",
                "When the access token that MAS issued to microglia expires.",
                &UP_LABELS,
            )?,
            requests: self.register(IntCounterVec::new(requests, &REQUEST_LABELS)?)?,
            request_duration: self.histograms(
                "microglia_homeserver_request_duration_seconds",
                "Duration of requests to a homeserver.",
                &REQUEST_SECONDS,
                &DURATION_LABELS,
            )?,
        })
    }
}
