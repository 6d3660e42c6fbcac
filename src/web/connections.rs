//! The connections of the HTTP listener: how many there are, how long each lives, and which one makes room.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::http::{Method, Request};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Peer;

const MOST_CONNECTIONS: usize = 256;
/// The most bytes of responses that may wait for their readers, over all connections.
const MOST_UNREAD: usize = 64 * 1024 * 1024;
/// How long a client may take to send its headers, and how long a connection may idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may read nothing of a response.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one connection may live: a client that reads a byte now and then must not hold a place for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(2);
/// How long responses under way may take when the daemon stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves until `stop`, then waits for responses under way.
///
/// Accepts every connection at once: where all places are taken, the oldest connection makes room. Thus clients that
/// read slowly, or not at all, cannot keep a probe from being answered.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(64)
        // Also bounds how far ahead of its responses a client may pipeline requests.
        .max_buf_size(16 * 1024);
    let (graceful, connections) = (GracefulShutdown::new(), Arc::new(Connections::default()));
    let turns = Arc::new(Turns::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            // Most likely no file descriptor is left.
            connections.evict_oldest();
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let place = connections.enter();
        let (traffic, evicted) = (Arc::clone(&place.traffic), place.evicted.clone());
        let handlers = TowerToHyperService::new(router.clone());
        let open = Arc::clone(&connections);
        let turns = Arc::clone(&turns);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            let (traffic, open, turns) =
                (Arc::clone(&traffic), Arc::clone(&open), Arc::clone(&turns));
            let turn = Turns::of(&request);
            let response = handlers.call(request);
            async move {
                let _answering = Answering::of(&traffic);
                let _turn = turns.take(turn).await;
                let response = response.await?;
                let size = response.body().size_hint().exact().unwrap_or(0);
                open.make_room(usize::try_from(size).unwrap_or(usize::MAX), &traffic);
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let stream = TokioIo::new(Watched::new(stream, Arc::clone(&place.traffic)));
        let connection = graceful.watch(http.serve_connection(stream, service));
        tokio::spawn(async move {
            // A connection that fails is the client's loss alone.
            tokio::select! {
                () = evicted.cancelled() => {}
                _ = timeout(CONNECTION_TIMEOUT, connection) => {}
            }
            drop(place);
        });
    }
    drop(listener);
    let _ = timeout(SHUTDOWN_TIMEOUT, graceful.shutdown()).await;
}

/// Requests that cost work take turns, so that any number of them leaves time for a probe.
struct Turns {
    metrics: Semaphore,
    api: Semaphore,
}

#[derive(Clone, Copy)]
enum Turn {
    /// Probes, and requests that are cheap to refuse without the admin token.
    AtOnce,
    Metrics,
    Api,
}

impl Turns {
    fn new() -> Self {
        Self { metrics: Semaphore::new(1), api: Semaphore::new(2) }
    }

    fn of<B>(request: &Request<B>) -> Turn {
        match request.uri().path() {
            "/healthz" | "/readyz" => Turn::AtOnce,
            "/metrics" => Turn::Metrics,
            _ if request.method() == Method::POST => Turn::AtOnce,
            _ => Turn::Api,
        }
    }

    /// Waits for the turn; `None` where there is nothing to wait for.
    async fn take(&self, turn: Turn) -> Option<SemaphorePermit<'_>> {
        let turns = match turn {
            Turn::AtOnce => return None,
            Turn::Metrics => &self.metrics,
            Turn::Api => &self.api,
        };
        let permit = turns.acquire().await.ok();
        // Who waits is woken when the turn before ends; without this a single client would go on without a pause.
        tokio::task::yield_now().await;
        permit
    }
}

/// The open connections in the order in which they were accepted.
#[derive(Default)]
struct Connections(Mutex<Open>);

#[derive(Default)]
struct Open {
    places: BTreeMap<u64, (CancellationToken, Arc<Traffic>)>,
    next: u64,
}

/// A connection's place, given back when it is dropped.
struct HomeserverHandle {
    number: u64,
    connections: Arc<Connections>,
    evicted: CancellationToken,
    traffic: Arc<Traffic>,
}

/// What a connection is doing. Only its own task writes it.
#[derive(Default)]
struct Traffic {
    /// Whether a request is being answered, rather than read or its response written.
    answering: AtomicBool,
    /// Bytes of responses that were not handed to the kernel yet.
    unread: AtomicUsize,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>) -> HomeserverHandle {
        let mut open = self.open();
        if open.places.len() >= MOST_CONNECTIONS {
            open.evict(|_| true);
        }
        let number = open.next;
        open.next += 1;
        let (evicted, traffic) = (CancellationToken::new(), Arc::<Traffic>::default());
        open.places.insert(number, (evicted.clone(), Arc::clone(&traffic)));
        HomeserverHandle { number, connections: Arc::clone(self), evicted, traffic }
    }

    fn evict_oldest(&self) {
        self.open().evict(|_| true);
    }

    /// Counts a response that is about to be written; where too much waits for its readers, others make room.
    fn make_room(&self, size: usize, traffic: &Arc<Traffic>) {
        traffic.unread.store(traffic.unread() + size, Ordering::Relaxed);
        let mut open = self.open();
        while open.places.values().map(|(_, traffic)| traffic.unread()).sum::<usize>() > MOST_UNREAD
        {
            let other = |found: &Arc<Traffic>| found.unread() > 0 && !Arc::ptr_eq(found, traffic);
            if !open.evict(other) {
                return;
            }
        }
    }
}

impl Open {
    /// Closes the oldest connection that may go: one that is not being answered where there is one.
    fn evict(&mut self, may_go: impl Fn(&Arc<Traffic>) -> bool) -> bool {
        let candidates = || self.places.iter().filter(|(_, (_, traffic))| may_go(traffic));
        let oldest = candidates()
            .find(|(_, (_, traffic))| !traffic.answering.load(Ordering::Relaxed))
            .or_else(|| candidates().next())
            .map(|(number, _)| *number);
        let evicted = oldest.and_then(|number| self.places.remove(&number));
        if let Some((evicted, _)) = &evicted {
            evicted.cancel();
        }
        evicted.is_some()
    }
}

impl Drop for HomeserverHandle {
    fn drop(&mut self) {
        self.connections.open().places.remove(&self.number);
    }
}

impl Traffic {
    fn unread(&self) -> usize {
        self.unread.load(Ordering::Relaxed)
    }
}

/// Marks a connection while one of its requests is being answered.
struct Answering<'a>(&'a Traffic);

impl<'a> Answering<'a> {
    fn of(traffic: &'a Traffic) -> Self {
        traffic.answering.store(true, Ordering::Relaxed);
        Self(traffic)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.answering.store(false, Ordering::Relaxed);
    }
}

/// A stream whose writing fails when the other side reads nothing for too long.
struct Watched {
    stream: TcpStream,
    traffic: Arc<Traffic>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    fn new(stream: TcpStream, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic, stalled: None }
    }

    fn watch(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            self.stalled = None;
            // Headers are written, too, and were not counted.
            let left = self.traffic.unread().saturating_sub(*written.as_ref().unwrap_or(&0));
            self.traffic.unread.store(left, Ordering::Relaxed);
            return Poll::Ready(written);
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALL_TIMEOUT)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_connection_that_is_not_being_answered_makes_room() {
        let connections = Arc::new(Connections::default());
        let places: Vec<HomeserverHandle> =
            (0..MOST_CONNECTIONS).map(|_| connections.enter()).collect();
        let answering = Answering::of(&places[0].traffic);
        let _one_more = connections.enter();
        let evicted = |places: &[HomeserverHandle]| -> Vec<u64> {
            let evicted = places.iter().filter(|place| place.evicted.is_cancelled());
            evicted.map(|place| place.number).collect()
        };
        assert_eq!(evicted(&places), [1]);
        drop(answering);
        let _another = connections.enter();
        assert_eq!(evicted(&places), [0, 1]);
        assert_eq!(connections.open().places.len(), MOST_CONNECTIONS);
        drop(places);
        assert_eq!(connections.open().places.len(), 2);
    }

    #[test]
    fn responses_that_wait_for_their_readers_are_bounded_over_all_connections() {
        let connections = Arc::new(Connections::default());
        let places: Vec<HomeserverHandle> = (0..4).map(|_| connections.enter()).collect();
        for place in &places {
            connections.make_room(MOST_UNREAD / 2, &place.traffic);
        }
        let evicted = places.iter().map(|place| place.evicted.is_cancelled());
        assert_eq!(evicted.collect::<Vec<_>>(), [true, true, false, false]);
        // One response alone is written, however large it is.
        connections.make_room(MOST_UNREAD, &places[3].traffic);
        assert!(places[2].evicted.is_cancelled() && !places[3].evicted.is_cancelled());
    }
}
