//! Serves HTTP on a listener, within its limits.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::connections::{Answering, Connections};
use super::listener::{Limits, Listener, WhenFull};
use super::monitored_stream::MonitoredStream;
use super::peer::Peer;
use super::router::overloaded;
use super::turns::{Turn, Turns};

/// How long responses in progress may take when the daemon stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two attempts to accept a connection after one failed.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Connections beyond the limit that get a response saying so; the oldest is closed for the next one.
const MAX_REFUSALS: usize = 32;

/// Serves until `stop`, then waits for responses in progress.
///
/// Accepts every connection at once; what happens to one beyond the limit is up to the listener.
pub(crate) async fn serve<L: Listener>(listener: L, router: Router, stop: CancellationToken) {
    let server = Server::new(L::LIMITS, router);
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept_peer() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            // Most likely there is no file descriptor left.
            server.open.free_one();
            sleep(ACCEPT_RETRY_DELAY).await;
            continue;
        };
        server.spawn(stream, peer);
    }
    drop(listener);
    let _ = timeout(SHUTDOWN_TIMEOUT, server.graceful.shutdown()).await;
}

struct Server {
    http: http1::Builder,
    limits: Limits,
    graceful: GracefulShutdown,
    turns: Arc<Turns>,
    router: Router,
    open: Arc<Connections>,
    /// Responds if `open` has no capacity.
    overloaded: Router,
    refused: Arc<Connections>,
}

impl Server {
    fn new(limits: Limits, router: Router) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_headers(64)
            // Also bounds how far ahead of its responses a client may pipeline requests.
            .max_buf_size(16 * 1024);
        Self {
            http,
            limits,
            graceful: GracefulShutdown::new(),
            turns: Arc::new(Turns::new()),
            router,
            open: Connections::new(limits.connections, limits.when_full),
            overloaded: overloaded(),
            refused: Connections::new(MAX_REFUSALS, WhenFull::CloseOldest),
        }
    }

    /// Serves a connection in a task of its own.
    fn spawn<S>(&self, stream: S, peer: Peer)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let admitted = self.open.register().map(|admitted| (admitted, &self.router, &self.open));
        let refused = || Some((self.refused.register()?, &self.overloaded, &self.refused));
        let Some((registration, router, connections)) = admitted.or_else(refused) else { return };
        let handlers = TowerToHyperService::new(router.clone());
        let (connections, turns) = (Arc::clone(connections), Arc::clone(&self.turns));
        let traffic = Arc::clone(&registration.traffic);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let (traffic, connections, turns) =
                (Arc::clone(&traffic), Arc::clone(&connections), Arc::clone(&turns));
            let turn = Turn::of(&request);
            let response = handlers.call(request);
            async move {
                let _answering = Answering::of(&traffic);
                let _turn = turns.take(turn).await;
                let response = response.await?;
                // An event stream has no known size, and is written an event at a time.
                let size = response.body().size_hint().exact().unwrap_or(0);
                connections.make_room(usize::try_from(size).unwrap_or(usize::MAX), &traffic);
                Ok::<_, Infallible>(response)
            }
        });
        let traffic = Arc::clone(&registration.traffic);
        let stream = MonitoredStream::new(stream, traffic, self.limits.stall_timeout);
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        let limit = self.limits.connection_timeout.unwrap_or(Duration::MAX);
        tokio::spawn(async move {
            // A connection that fails is the client's loss alone.
            tokio::select! {
                () = registration.evicted.cancelled() => {}
                _ = timeout(limit, connection) => {}
            }
            drop(registration);
        });
    }
}
