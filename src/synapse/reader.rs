//! Read access to a homeserver: GET requests only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Method;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use super::identity::Identity;
use crate::http::{
    Address, Base, Call, Error, Pacing, PageSizes, Repeat, Response, ResponseMonitor, Session,
    Silence, Transport,
};
use crate::mas;
use crate::values::clock::{Clock, Timestamp};
use crate::values::schema::RateLimit;

/// Reads one homeserver for one run; clones share the identity and the monitor.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(super) transport: Arc<Transport>,
    pub(super) monitor: Arc<ResponseMonitor>,
    pub(super) clock: Clock,
    pub(super) identity: Arc<OnceCell<Identity>>,
    pub(super) page_sizes: Arc<PageSizes>,
    mas: Option<mas::Reader>,
    completed_requests: Arc<AtomicU64>,
}

impl Reader {
    pub fn new(transport: Arc<Transport>, clock: Clock) -> Self {
        Self {
            transport,
            monitor: Arc::default(),
            clock,
            identity: Arc::default(),
            page_sizes: Arc::default(),
            mas: None,
            completed_requests: Arc::default(),
        }
    }

    /// Reads the homeserver's MAS, too, where one is configured.
    pub(crate) fn with_mas(self, connection: Option<&Arc<mas::Connection>>) -> Self {
        let reader = |connection| mas::Reader::new(Arc::clone(connection), self.clock.clone());
        Self { mas: connection.map(reader), ..self }
    }

    /// The MAS that manages the accounts; `None` where none is configured.
    pub(crate) fn mas(&self) -> Option<&mas::Reader> {
        self.mas.as_ref()
    }

    /// What the local clock shows.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn address(&self) -> &Address {
        &self.transport.address
    }

    /// The rate limit of the homeserver.
    pub(crate) fn requests_per_second(&self) -> RateLimit {
        self.transport.requests_per_second()
    }

    /// Returns how many requests this reader and its clones have completed.
    pub(crate) fn completed_requests(&self) -> u64 {
        self.completed_requests.load(Ordering::Relaxed)
    }

    /// Whether responses are so slow that requests are sent at half the rate.
    pub(crate) fn is_slow(&self) -> bool {
        self.transport.is_slow(&self.monitor)
    }

    /// Takes note of the request rate; to be called at regular intervals.
    pub(crate) fn sample_rate(&self) {
        let (rate, requests) = (self.transport.auto_rate(), self.completed_requests());
        self.monitor.sample_rate(rate, requests);
    }

    /// The request rate that "auto" allowed while this reader was used, for the summary of its run.
    pub(crate) fn rate_summary(&self) -> Option<String> {
        self.monitor.rate_summary()
    }

    /// Returns since when the homeserver has not responded to this run.
    pub(crate) fn silence(&self) -> Option<Silence> {
        self.monitor.silence()
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        ids: &[&str],
        query: Vec<(&'static str, String)>,
    ) -> Result<T, Error> {
        self.get_from(Base::Homeserver, endpoint, ids, query).await?.decode()
    }

    pub(super) async fn get_from(
        &self,
        base: Base,
        endpoint: &'static str,
        ids: &[&str],
        query: Vec<(&'static str, String)>,
    ) -> Result<Response, Error> {
        self.get_repeatedly(Repeat::Always, base, endpoint, ids, query).await
    }

    pub(super) async fn get_repeatedly(
        &self,
        repeat: Repeat,
        base: Base,
        endpoint: &'static str,
        ids: &[&str],
        query: Vec<(&'static str, String)>,
    ) -> Result<Response, Error> {
        let call = Call {
            method: Method::GET,
            base,
            endpoint,
            ids,
            query,
            body: None,
            repeat,
            pacing: Pacing::Normal,
            timeout: Some(self.transport.request_timeout()),
        };
        // A caller cancels a GET by dropping it.
        let never = CancellationToken::new();
        let response = self.transport.send(&call, self.session(&never)).await;
        self.count_request();
        response
    }

    pub(super) fn count_request(&self) {
        self.completed_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn session<'a>(&'a self, cancel: &'a CancellationToken) -> Session<'a> {
        Session { monitor: &self.monitor, cancel, clock: &self.clock }
    }
}
