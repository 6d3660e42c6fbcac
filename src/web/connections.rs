//! The open connections: how many there are, and which one is closed for another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::listener::WhenFull;

/// How many bytes of responses may wait for their readers, over all connections of a listener.
const MAX_UNREAD: usize = 64 * 1024 * 1024;

/// The open connections in the order in which they were accepted.
pub(super) struct Connections {
    limit: usize,
    when_full: WhenFull,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    connections: BTreeMap<u64, (CancellationToken, Arc<Traffic>)>,
    next: u64,
}

/// An open connection, which counts until it is dropped.
pub(super) struct Registration {
    number: u64,
    connections: Arc<Connections>,
    pub(super) evicted: CancellationToken,
    pub(super) traffic: Arc<Traffic>,
}

/// What a connection is doing. Only its own task writes it.
#[derive(Default)]
pub(super) struct Traffic {
    /// Whether a request is being processed, rather than read or its response written.
    answering: AtomicBool,
    /// Bytes of responses that have not been handed to the kernel yet.
    unread: AtomicUsize,
}

impl Connections {
    pub(super) fn new(limit: usize, when_full: WhenFull) -> Arc<Self> {
        Arc::new(Self { limit, when_full, open: Mutex::default() })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `None` where the limit is reached and no other connection may be closed for this one.
    pub(super) fn register(self: &Arc<Self>) -> Option<Registration> {
        let mut open = self.open();
        if open.connections.len() >= self.limit {
            if self.when_full == WhenFull::Refuse {
                return None;
            }
            open.evict(|_| true);
        }
        let number = open.next;
        open.next += 1;
        let (evicted, traffic) = (CancellationToken::new(), Arc::<Traffic>::default());
        open.connections.insert(number, (evicted.clone(), Arc::clone(&traffic)));
        Some(Registration { number, connections: Arc::clone(self), evicted, traffic })
    }

    /// Frees a file descriptor, where connections may be closed for others.
    pub(super) fn free_one(&self) {
        if self.when_full == WhenFull::CloseOldest {
            self.open().evict(|_| true);
        }
    }

    /// Counts a response that is about to be written, and closes others where too many bytes wait for their readers.
    pub(super) fn make_room(&self, size: usize, traffic: &Arc<Traffic>) {
        traffic.unread.store(traffic.unread() + size, Ordering::Relaxed);
        let mut open = self.open();
        while open.unread() > MAX_UNREAD {
            let other = |found: &Arc<Traffic>| found.unread() > 0 && !Arc::ptr_eq(found, traffic);
            if !open.evict(other) {
                return;
            }
        }
    }
}

impl Open {
    fn unread(&self) -> usize {
        self.connections.values().map(|(_, traffic)| traffic.unread()).sum()
    }

    /// Closes the oldest connection that may be closed, preferably one without a request in progress.
    fn evict(&mut self, may_go: impl Fn(&Arc<Traffic>) -> bool) -> bool {
        let candidates = || self.connections.iter().filter(|(_, (_, traffic))| may_go(traffic));
        let oldest = candidates()
            .find(|(_, (_, traffic))| !traffic.answering.load(Ordering::Relaxed))
            .or_else(|| candidates().next())
            .map(|(number, _)| *number);
        let evicted = oldest.and_then(|number| self.connections.remove(&number));
        if let Some((evicted, _)) = &evicted {
            evicted.cancel();
        }
        evicted.is_some()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.connections.open().connections.remove(&self.number);
    }
}

impl Traffic {
    fn unread(&self) -> usize {
        self.unread.load(Ordering::Relaxed)
    }

    /// Headers are written, too, and were not counted.
    pub(super) fn written(&self, bytes: usize) {
        self.unread.store(self.unread().saturating_sub(bytes), Ordering::Relaxed);
    }
}

/// Marks a connection while one of its requests is being processed.
pub(super) struct Answering<'a>(&'a Traffic);

impl<'a> Answering<'a> {
    pub(super) fn of(traffic: &'a Traffic) -> Self {
        traffic.answering.store(true, Ordering::Relaxed);
        Self(traffic)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.answering.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 256;

    #[test]
    fn the_oldest_connection_without_a_request_in_progress_is_closed_first() {
        let connections = Connections::new(LIMIT, WhenFull::CloseOldest);
        let open: Vec<Registration> = (0..LIMIT).map(|_| connections.register().unwrap()).collect();
        let answering = Answering::of(&open[0].traffic);
        let _one_more = connections.register().unwrap();
        let evicted = |open: &[Registration]| -> Vec<u64> {
            let evicted = open.iter().filter(|one| one.evicted.is_cancelled());
            evicted.map(|one| one.number).collect()
        };
        assert_eq!(evicted(&open), [1]);
        drop(answering);
        let _another = connections.register().unwrap();
        assert_eq!(evicted(&open), [0, 1]);
        assert_eq!(connections.open().connections.len(), LIMIT);
        drop(open);
        assert_eq!(connections.open().connections.len(), 2);
    }

    #[test]
    fn unread_responses_are_limited_over_all_connections() {
        let connections = Connections::new(LIMIT, WhenFull::CloseOldest);
        let open: Vec<Registration> = (0..4).map(|_| connections.register().unwrap()).collect();
        for one in &open {
            connections.make_room(MAX_UNREAD / 2, &one.traffic);
        }
        let evicted = open.iter().map(|one| one.evicted.is_cancelled());
        assert_eq!(evicted.collect::<Vec<_>>(), [true, true, false, false]);
        // One response alone is written, however large it is.
        connections.make_room(MAX_UNREAD, &open[3].traffic);
        assert!(open[2].evicted.is_cancelled() && !open[3].evicted.is_cancelled());
    }

    #[test]
    fn a_connection_beyond_the_limit_is_refused_if_no_other_may_be_closed() {
        let connections = Connections::new(2, WhenFull::Refuse);
        let open = [connections.register(), connections.register()];
        assert!(connections.register().is_none());
        connections.free_one();
        assert!(open.iter().flatten().all(|one| !one.evicted.is_cancelled()));
        drop(open);
        assert!(connections.register().is_some());
    }
}
