//! The part of a list that a run reads, entry by entry.

use futures_util::future::ready;
use futures_util::{Stream, StreamExt, stream};
use serde_json::Value;

use super::job::Context;
use crate::plan::round::{Portion, PortionRead};
use crate::synapse::Position;

/// Whether to read the next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Read,
    /// The portion is over, or the list.
    Stop,
}

/// Reads the entries of a page at the same time, as far as there is time for them, and numbers the results.
///
/// In order: a portion ends after an entry of which all before it were read. At least the first entry is read.
pub(super) fn in_order<'a, R: 'a, F: Future + 'a>(
    entries: Vec<R>,
    context: &'a Context<'_>,
    mut read: impl FnMut(R) -> F + 'a,
) -> impl Stream<Item = (usize, F::Output)> {
    stream::iter(entries.into_iter().enumerate())
        .take_while(|(index, _)| ready(*index == 0 || !context.portion.is_late()))
        .map(move |(_, entry)| read(entry))
        .buffered(context.concurrency)
        .enumerate()
}

/// How far a run has read its portion.
pub(super) struct PortionProgress<'a> {
    portion: &'a Portion,
    read: u64,
    total: u64,
    /// Items to change so far.
    items: u64,
    changes: Vec<Position>,
    /// The position after the last entry that was read.
    last: Option<Position>,
    end: Option<Position>,
}

impl<'a> PortionProgress<'a> {
    pub fn new(portion: &'a Portion) -> Self {
        Self { portion, read: 0, total: 0, items: 0, changes: Vec::new(), last: None, end: None }
    }

    /// The number of entries that this round has read, and that of all entries.
    pub fn figures(&self) -> (u64, u64) {
        (self.portion.read_before.saturating_add(self.read), self.total)
    }

    pub fn set_total(&mut self, total: u64) {
        self.total = total;
    }

    /// Records that an entry was read, with the items of each change to it.
    ///
    /// `at` is the position after the entry; `is_last` says that the list ends there.
    pub fn advance(&mut self, at: Position, changes: &[u64], is_last: bool) -> Next {
        self.read += 1;
        self.items = changes.iter().fold(self.items, |sum, items| sum.saturating_add(*items));
        self.changes.extend(changes.iter().map(|_| at.clone()));
        if is_last {
            return Next::Stop;
        }
        if self.portion.is_enough(self.items) {
            self.end = Some(at);
            return Next::Stop;
        }
        self.last = Some(at);
        Next::Read
    }

    /// Records that nothing more of a page is read.
    pub fn end_page(&mut self) -> Next {
        if !self.portion.is_late() {
            return Next::Read;
        }
        self.end.clone_from(&self.last);
        match self.end {
            Some(_) => Next::Stop,
            // At least one entry is read in each run.
            None => Next::Read,
        }
    }

    /// Whether the round has read the whole list.
    pub fn is_complete(&self) -> bool {
        self.end.is_none()
    }

    pub fn finish(self, findings: Value) -> PortionRead {
        let (read, total) = self.figures();
        let Self { changes, end, .. } = self;
        PortionRead { read, total, is_restart: false, end, changes, findings }
    }
}
