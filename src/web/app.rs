//! What the HTTP service is made of.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::events_feed::EventsFeed;
use super::health::Health;
use super::pages::state::PageState;
use super::session::Sessions;
use crate::history::History;
use crate::observe::metrics::Metrics;
use crate::scheduler::reload::Reloader;
use crate::scheduler::supervisor::Supervisor;
use crate::values::clock::Clock;

/// The parts of the daemon that request handlers use.
pub(crate) struct App {
    pub(crate) supervisor: Arc<Supervisor>,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) history: History,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) feed: Arc<EventsFeed>,
    pub(crate) sessions: Sessions,
    pub(crate) pages: PageState,
    pub(crate) clock: Clock,
    /// Ends event streams, which would otherwise hold up the shutdown.
    pub(crate) stop: CancellationToken,
}
