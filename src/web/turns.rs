//! Limits how many expensive requests are processed at a time, to leave time for probes.

use axum::http::{Method, Request};
use tokio::sync::{Semaphore, SemaphorePermit};

pub(super) struct Turns {
    metrics: Semaphore,
    api: Semaphore,
}

/// Which requests a request takes turns with.
#[derive(Clone, Copy)]
pub(super) enum Turn {
    /// None: probes, and requests that are cheap to reject without the admin token.
    Immediate,
    Metrics,
    Api,
}

impl Turn {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        match request.uri().path() {
            "/healthz" | "/readyz" => Self::Immediate,
            "/metrics" => Self::Metrics,
            _ if request.method() == Method::POST => Self::Immediate,
            _ => Self::Api,
        }
    }
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { metrics: Semaphore::new(1), api: Semaphore::new(2) }
    }

    /// Waits for the turn; `None` where there is nothing to wait for.
    pub(super) async fn take(&self, turn: Turn) -> Option<SemaphorePermit<'_>> {
        let turns = match turn {
            Turn::Immediate => return None,
            Turn::Metrics => &self.metrics,
            Turn::Api => &self.api,
        };
        let permit = turns.acquire().await.ok();
        // Lets a waiting request go first; otherwise a single client could take every turn.
        tokio::task::yield_now().await;
        permit
    }
}
