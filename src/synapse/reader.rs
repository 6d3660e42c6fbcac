//! What a job has of a homeserver: questions, all of them GET.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Method;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::error::Error;
use super::pace::{Silence, Watch};
use super::probe::Identity;
use super::transport::{Answer, Base, Call, Repeat, Transport, Turn};
use crate::values::clock::Clock;
use crate::values::schema::{Limit, Rate};

/// Reads one homeserver for one run; clones share the run's identity and its watch over slow answers.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(super) transport: Arc<Transport>,
    pub(super) watch: Arc<Watch>,
    pub(super) clock: Clock,
    pub(super) identity: Arc<OnceCell<Identity>>,
    answered: Arc<AtomicU64>,
}

impl Reader {
    pub fn new(transport: Arc<Transport>, clock: Clock) -> Self {
        Self {
            transport,
            watch: Arc::default(),
            clock,
            identity: Arc::default(),
            answered: Arc::default(),
        }
    }

    /// The name that the config gives the homeserver.
    pub fn homeserver(&self) -> &str {
        &self.transport.name
    }

    /// What the homeserver's limits belong to.
    pub fn address(&self) -> &Address {
        &self.transport.address
    }

    /// Whether media lives in object storage, where Synapse deletes nothing.
    pub fn keeps_objects(&self) -> bool {
        self.transport.media_in_object_storage
    }

    /// How many requests may be sent to the homeserver in a second.
    pub fn requests_per_second(&self) -> Limit<Rate> {
        self.transport.requests_per_second()
    }

    /// How many questions were answered, by this reader and its clones.
    pub fn completed_requests(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether answers take so long that requests are sent at half the rate.
    pub fn is_slow(&self) -> bool {
        self.watch.is_slow()
    }

    /// Since when the homeserver has not answered this run.
    pub fn silence(&self) -> Option<Silence> {
        self.watch.silence()
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
    ) -> Result<Answer, Error> {
        let call = Call {
            method: Method::GET,
            base,
            endpoint,
            ids,
            query,
            body: None,
            repeat: Repeat::Safe,
            turn: Turn::Own,
            timeout: Some(self.transport.request_timeout()),
        };
        // Who gives up a question lets go of it.
        let answer = self.transport.send(&call, &self.watch, &CancellationToken::new()).await;
        self.answered.fetch_add(1, Ordering::Relaxed);
        answer
    }
}
