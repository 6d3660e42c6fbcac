//! Requests to the Admin API, and what those of one run share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Method;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use crate::http::{
    Base, Call, Error, Pacing, PageSizes, Repeat, Response, ResponseMonitor, Session,
};
use crate::values::clock::Clock;

/// Reads one MAS for one run; clones share the monitor.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(super) connection: Arc<Connection>,
    pub(super) monitor: Arc<ResponseMonitor>,
    pub(super) clock: Clock,
    pub(super) page_sizes: Arc<PageSizes>,
    completed_requests: Arc<AtomicU64>,
}

impl Reader {
    pub fn new(connection: Arc<Connection>, clock: Clock) -> Self {
        Self {
            connection,
            monitor: Arc::default(),
            clock,
            page_sizes: Arc::default(),
            completed_requests: Arc::default(),
        }
    }

    /// How many requests this reader and its clones have completed, tokens not counted.
    pub fn completed_requests(&self) -> u64 {
        self.completed_requests.load(Ordering::Relaxed)
    }

    pub(super) async fn get_repeatedly(
        &self,
        repeat: Repeat,
        endpoint: &'static str,
        ids: &[&str],
        query: Vec<(&'static str, String)>,
    ) -> Result<Response, Error> {
        // A caller cancels a GET by dropping it.
        let never = CancellationToken::new();
        let call = Call { query, repeat, ..self.call(Method::GET, endpoint, ids) };
        self.send(&call, &never).await
    }

    /// A request without query and body.
    pub(super) fn call<'a>(
        &self,
        method: Method,
        endpoint: &'static str,
        ids: &'a [&'a str],
    ) -> Call<'a> {
        Call {
            method,
            base: Base::Homeserver,
            endpoint,
            ids,
            query: vec![],
            body: None,
            repeat: Repeat::IfNotApplied,
            pacing: Pacing::Normal,
            timeout: Some(self.connection.admin_api.request_timeout()),
        }
    }

    pub(super) async fn send(
        &self,
        call: &Call<'_>,
        cancel: &CancellationToken,
    ) -> Result<Response, Error> {
        let session = Session { monitor: &self.monitor, cancel, clock: &self.clock };
        let response = self.connection.admin_api.send(call, session).await;
        self.completed_requests.fetch_add(1, Ordering::Relaxed);
        response
    }
}
