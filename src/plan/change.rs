//! What a run would change, as data: a change is planned first, and made later or not at all.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::plan::facts::Fact;
use crate::plan::report::{Action, ChangeRecord, Exempt, LeftAlone, OwnerUsage, State};
use crate::synapse::{Error, Reader, Writer};
use crate::values::clock::Timestamp;

/// One mutation of a homeserver.
pub trait Change: Debug + Send + Sync {
    fn action(&self) -> Action;

    /// Whom and what it is about, readable alone: `@a:example.com -> #lobby:example.com`.
    fn target(&self) -> String;

    /// Things, not requests.
    fn count(&self) -> u64 {
        1
    }

    fn lane(&self) -> Lane {
        Lane::Free
    }

    /// Each thing with its bytes, to find out by a new plan whether a change whose answer was lost was made.
    fn items(&self) -> Vec<(String, Option<u64>)> {
        vec![(self.target(), None)]
    }

    /// Reads the target again just before the change: it may not need the change any more, or not allow it.
    fn check<'a>(&'a self, _reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async { Ok(Check::Proceed(None)) })
    }

    /// Changes the homeserver. `before` is what `check` read; it is recorded by now.
    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>>;
}

impl dyn Change {
    /// The record of the change before it is sent.
    pub fn record(&self) -> ChangeRecord {
        ChangeRecord {
            action: self.action(),
            target: self.target(),
            count: self.count(),
            state: State::Planned,
            detail: None,
            answer: None,
            before: None,
        }
    }
}

/// What a change found when it looked at its target again.
#[derive(Debug, Clone, PartialEq)]
pub enum Check {
    /// Go on; the value is what the change will replace.
    Proceed(Option<Value>),
    /// Leave it, and why.
    Skip(String),
}

/// Changes of one lane are made in order, at the lane's pace; different lanes go side by side.
#[derive(Debug, Clone, PartialEq)]
pub enum Lane {
    Free,
    Room {
        room_id: String,
        per_second: f64,
    },
    /// A change of external ids: one at a time for the whole homeserver, whatever the limits, the job or the process.
    ///
    /// Each process of Synapse caches whose id is which. Of changes that overlap some are announced to its workers out of
    /// order and dropped there, so that a removed id goes on logging in (measured with 1.163).
    ExternalIds,
    /// A media call: one at a time for the whole homeserver, whatever the job or the process, and none while a lost one may be at work.
    Media(MediaStore),
}

/// The two media stores of a homeserver: only the local one can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaStore {
    /// The call touches nothing that was uploaded after `until`.
    Local {
        until: Timestamp,
    },
    Remote,
}

/// What a change that Synapse answered did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChangeResult {
    pub done: u64,
    /// Planned, and kept by Synapse.
    pub skipped: u64,
    pub bytes: u64,
    /// The files that went, with their sizes where those are known.
    pub files: Vec<(String, Option<u64>)>,
    pub facts: Vec<Fact>,
    pub detail: Option<String>,
    /// The beginning of the answer, where a person may want to read it.
    pub answer: Option<String>,
}

impl ChangeResult {
    pub fn items(done: u64) -> Self {
        Self { done, ..Self::default() }
    }
}

/// All that a run would do.
#[derive(Debug, Default)]
pub struct Plan {
    pub work: Work,
    /// Targets that cannot be worked on, found while reading: each counts as failed, and the others go on.
    pub problems: Vec<Problem>,
    /// Sentences for the report's message.
    pub notes: Vec<String>,
    pub bytes: Option<u64>,
    pub sample: Vec<OwnerUsage>,
    /// What the rules of the kind left out, by reason.
    pub left_alone: BTreeMap<Exempt, u64>,
    /// The first [`LEFT_ALONE_NAMED`] of that.
    pub left_alone_named: Vec<LeftAlone>,
    /// Whether some target could be read and needs nothing, so that problems elsewhere are not the whole truth.
    pub some_up_to_date: bool,
}

/// How much of what was left alone is named.
pub const LEFT_ALONE_NAMED: usize = 1000;

#[derive(Debug)]
pub enum Work {
    /// Known one by one.
    Changes(Vec<Box<dyn Change>>),
    /// Cut to size while the run goes on.
    BatchPlan(Box<dyn BatchPlan>),
}

impl Default for Work {
    fn default() -> Self {
        Self::Changes(Vec::new())
    }
}

#[derive(Debug)]
pub struct Problem {
    pub action: Action,
    pub target: String,
    pub detail: String,
}

/// Changes that are cut as the run goes on, so that each takes Synapse a bearable time.
pub trait BatchPlan: Debug + Send + Sync {
    fn action(&self) -> Action;

    /// The whole of it, as one line of a plan.
    fn target(&self) -> String;

    /// Things that are left; `None` where that cannot be known.
    fn remaining(&self) -> Option<u64>;

    /// The things that are left, as [`Change::things`] names them.
    fn items(&self) -> HashSet<String>;

    /// Leaves all but the first `most` things; answers how many it keeps, never more than `most`.
    fn truncate(&mut self, most: u64) -> u64;

    /// Bytes of what is left; `None` where that cannot be known.
    fn bytes(&self) -> Option<u64> {
        None
    }

    /// The accounts with the most bytes of what is left.
    fn sample(&self) -> Vec<OwnerUsage> {
        Vec::new()
    }

    /// The next change, sized by how long the last one took.
    fn next(&mut self, last: Option<Duration>) -> Option<Box<dyn Change>>;
}

impl Plan {
    /// Things to change, problems not among them; `None` where that cannot be known.
    pub fn count(&self) -> Option<u64> {
        match &self.work {
            Work::Changes(changes) => Some(changes.iter().map(|change| change.count()).sum()),
            Work::BatchPlan(walk) => walk.remaining(),
        }
    }

    /// The things to change, as [`Change::things`] names them.
    pub fn items(&self) -> HashSet<String> {
        match &self.work {
            Work::Changes(changes) => {
                changes.iter().flat_map(|change| change.items()).map(|(thing, _)| thing).collect()
            }
            Work::BatchPlan(walk) => walk.items(),
        }
    }

    /// Leaves all but the first `most` things; answers how many it keeps, never more than `most`.
    pub fn truncate(&mut self, most: u64) -> u64 {
        match &mut self.work {
            Work::Changes(changes) => {
                let (mut kept, mut length) = (0, 0);
                for change in changes.iter() {
                    if kept + change.count() > most {
                        break;
                    }
                    kept += change.count();
                    length += 1;
                }
                changes.truncate(length);
                kept
            }
            Work::BatchPlan(walk) => {
                let kept = walk.truncate(most);
                (self.bytes, self.sample) = (walk.bytes(), walk.sample());
                kept
            }
        }
    }

    /// Counts something that the rules of the kind leave out; `target` is only asked for while names are kept.
    pub fn leave_alone(&mut self, reason: Exempt, target: impl FnOnce() -> String) {
        *self.left_alone.entry(reason).or_default() += 1;
        if self.left_alone_named.len() < LEFT_ALONE_NAMED {
            self.left_alone_named.push(LeftAlone { reason, target: target() });
        }
    }

    pub fn problem(&mut self, action: Action, target: &str, detail: impl Into<String>) {
        self.problems.push(Problem { action, target: target.to_owned(), detail: detail.into() });
    }
}

impl Problem {
    pub fn record(&self) -> ChangeRecord {
        ChangeRecord {
            action: self.action,
            target: self.target.clone(),
            count: 1,
            state: State::Failed,
            detail: Some(self.detail.clone()),
            answer: None,
            before: None,
        }
    }
}
