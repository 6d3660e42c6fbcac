//! What a run would change, as data: a change is planned first, and applied later or not at all.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::plan::facts::Fact;
use crate::plan::report::{Action, ChangeRecord, Exempt, LeftAlone, OwnerUsage, State};
use crate::plan::round::PortionRead;
use crate::synapse::{Error, Reader, Writer};
use crate::values::clock::Timestamp;
use crate::values::text::format_number;

/// One mutation of a homeserver.
pub trait Change: Debug + Send + Sync {
    fn action(&self) -> Action;

    /// What it changes, readable without context: `@a:example.com -> #lobby:example.com`.
    fn target(&self) -> String;

    /// Items, not requests.
    fn count(&self) -> u64 {
        1
    }

    fn lane(&self) -> Lane {
        Lane::Free
    }

    /// What a person should know before it is made; the report counts the items of a plan with the same warning.
    fn warning(&self) -> Option<Warning> {
        None
    }

    /// Each item with its bytes; if a new plan lacks an item, its lost response was a success.
    fn items(&self) -> Vec<(String, Option<u64>)> {
        vec![(self.target(), None)]
    }

    /// The account whose file it deletes, and the bytes of that.
    fn usage(&self) -> Option<(&str, u64)> {
        None
    }

    /// Reads the target again just before the change, which may no longer be needed or allowed.
    fn check<'a>(&'a self, _reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async { Ok(Check::Proceed(None)) })
    }

    /// What counts as true from the moment it is sent; recorded together with `before`, because the response may be lost.
    fn facts(&self, _before: Option<&Value>) -> Vec<Fact> {
        Vec::new()
    }

    /// Changes the homeserver; `before` is what [`check`](Self::check) read, and is already recorded.
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

/// What a person should know before a change is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Warning {
    /// An active account is left without an external id.
    LastIds,
    /// An encrypted room is purged, and with it every user's backup of its keys on the server.
    KeyBackups,
    /// An account is left without a device.
    LastDevices,
}

impl Warning {
    /// One sentence about so many items of a plan.
    fn describe(self, items: u64) -> String {
        match self {
            Self::LastIds => {
                let are = match items {
                    1 => "is the only one of an active account, which then needs",
                    _ => "are the only ones of active accounts, which then need",
                };
                format!(
                    "{} of the planned ids {are} a password or another identity to log in (`keep_last = true` leaves those alone)",
                    format_number(items)
                )
            }
            Self::KeyBackups => {
                let (are, them, their) = match items {
                    1 => ("is", "it", "its"),
                    _ => ("are", "them", "their"),
                };
                format!(
                    "{} of the planned rooms {are} encrypted: to purge {them} also deletes everybody's server-side backup of {their} message keys (`keep_encrypted = true` leaves those alone)",
                    format_number(items)
                )
            }
            Self::LastDevices => format!(
                "{} of accounts that keep none in use: who has no recovery key cannot read old encrypted messages any more (`keep_last = true` leaves the last one of each account alone)",
                match items {
                    1 => "1 of the planned devices is".to_owned(),
                    _ => format!("{} of the planned devices are", format_number(items)),
                }
            ),
        }
    }
}

/// What a change found when it read its target again.
#[derive(Debug, Clone, PartialEq)]
pub enum Check {
    /// The value is what the change will replace.
    Proceed(Option<Value>),
    /// Leave the target alone; the text says why.
    Skip(String),
}

/// Changes of one lane are applied in order, at the lane's pace; different lanes run in parallel.
#[derive(Debug, Clone, PartialEq)]
pub enum Lane {
    Free,
    /// One at a time, with a pause from the end of one to the beginning of the next.
    Paced {
        pause: Duration,
    },
    Room {
        room_id: String,
        per_second: f64,
    },
    /// A change of external ids: one at a time for the whole homeserver, whatever the limits, the job or the process.
    ///
    /// Each process of Synapse caches the owner of an id. When changes overlap, some are announced to its workers out of
    /// order and dropped there, and a removed id can still log in (measured with 1.163). Also a link in MAS whose removal
    /// depends on the others of its account.
    ExternalIds,
    /// The deletion of a room, or of its history: one at a time for the whole homeserver, whatever the job or the process.
    /// Synapse continues regardless of who waits for it.
    RoomDeletion {
        /// From the end of one to the beginning of the next.
        pause: Duration,
    },
    /// A media call: one at a time for the whole homeserver, whatever the job or the process, and none while a lost one may
    /// still be in progress.
    Media(MediaStore),
}

/// The media stores of a homeserver, of which only the local one can be observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaStore {
    /// The call deletes nothing that was uploaded after `until`.
    Local {
        until: Timestamp,
    },
    Remote,
}

/// The result of a change to which Synapse responded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChangeResult {
    pub done: u64,
    /// Planned, but kept by Synapse.
    pub skipped: u64,
    pub bytes: u64,
    /// The deleted files, with their sizes if known.
    pub files: Vec<(String, Option<u64>)>,
    pub facts: Vec<Fact>,
    pub detail: Option<String>,
    /// The beginning of the response, if the job keeps it.
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
    /// Targets that cannot be worked on; each counts as failed, and does not keep others from being changed.
    pub problems: Vec<Problem>,
    /// Sentences for the report's message.
    pub notes: Vec<String>,
    pub bytes: Option<u64>,
    pub sample: Vec<OwnerUsage>,
    /// What the rules of the kind left out, by reason.
    pub left_alone: BTreeMap<Exempt, u64>,
    /// The first [`MAX_LEFT_ALONE_LISTED`] of that.
    pub left_alone_named: Vec<LeftAlone>,
    /// Whether some target was read and needs nothing: problems elsewhere then make the run `partial`, not `failed`.
    pub some_up_to_date: bool,
    /// What was read of a round; `None` for a kind that reads everything in each run.
    pub portion: Option<PortionRead>,
}

/// How many of the items left alone are named.
pub const MAX_LEFT_ALONE_LISTED: usize = 1000;

#[derive(Debug)]
pub enum Work {
    /// Each is known before the first is applied.
    Changes(Vec<Box<dyn Change>>),
    /// Sized one after another while the run applies them.
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

/// Changes that are sized while the run applies them, for Synapse to handle each in reasonable time.
pub trait BatchPlan: Debug + Send + Sync {
    fn action(&self) -> Action;

    /// All of it, as one line of a plan.
    fn target(&self) -> String;

    /// The number of items left; `None` if it cannot be known.
    fn remaining(&self) -> Option<u64>;

    /// Which of these items are planned, at most for a later run; they are named as by [`Change::items`].
    fn planned_among(&self, items: &HashSet<&str>) -> HashSet<String>;

    /// Keeps the first items, at most `max`, and returns their number, which is lower if `max` would split a batch.
    fn truncate(&mut self, max: u64) -> u64;

    /// The bytes of the items left; `None` if they cannot be known.
    fn bytes(&self) -> Option<u64> {
        None
    }

    /// The accounts with the most bytes among the items left.
    fn sample(&self) -> Vec<OwnerUsage> {
        Vec::new()
    }

    /// The next change, sized by how long the previous one took.
    fn next(&mut self, last: Option<Duration>) -> Option<Box<dyn Change>>;
}

impl Plan {
    /// The number of items to change, without problems; `None` if it cannot be known.
    pub fn count(&self) -> Option<u64> {
        match &self.work {
            Work::Changes(changes) => Some(changes.iter().map(|change| change.count()).sum()),
            Work::BatchPlan(batches) => batches.remaining(),
        }
    }

    /// Which of these items are planned; they are named as by [`Change::items`].
    pub fn planned_among(&self, items: &HashSet<&str>) -> HashSet<String> {
        match &self.work {
            Work::Changes(changes) => {
                let planned = changes.iter().flat_map(|change| change.items());
                planned.map(|(item, _)| item).filter(|item| items.contains(&**item)).collect()
            }
            Work::BatchPlan(batches) => batches.planned_among(items),
        }
    }

    /// A sentence for each warning of its changes.
    pub fn warnings(&self) -> Vec<String> {
        let mut items: BTreeMap<Warning, u64> = BTreeMap::new();
        if let Work::Changes(changes) = &self.work {
            for change in changes {
                if let Some(warning) = change.warning() {
                    *items.entry(warning).or_default() += change.count();
                }
            }
        }
        items.into_iter().map(|(warning, items)| warning.describe(items)).collect()
    }

    /// Keeps the first items, at most `max`, and returns their number, which is lower if `max` would split a batch.
    pub fn truncate(&mut self, max: u64) -> u64 {
        match &mut self.work {
            Work::Changes(changes) => {
                let (mut kept, mut length) = (0, 0);
                for change in changes.iter() {
                    if kept + change.count() > max {
                        break;
                    }
                    kept += change.count();
                    length += 1;
                }
                changes.truncate(length);
                self.add_up_usage();
                kept
            }
            Work::BatchPlan(batches) => {
                let kept = batches.truncate(max);
                (self.bytes, self.sample) = (batches.bytes(), batches.sample());
                kept
            }
        }
    }

    /// Sets the bytes and the sample of a plan of single files to those of its changes.
    pub fn add_up_usage(&mut self) {
        let (Work::Changes(changes), Some(_)) = (&self.work, self.bytes) else { return };
        let mut owners: BTreeMap<&str, OwnerUsage> = BTreeMap::new();
        for (user_id, bytes) in changes.iter().filter_map(|change| change.usage()) {
            let owner = owners.entry(user_id).or_insert_with(|| OwnerUsage {
                user_id: user_id.to_owned(),
                files: 0,
                bytes: 0,
            });
            owner.files += 1;
            owner.bytes = owner.bytes.saturating_add(bytes);
        }
        self.bytes = Some(owners.values().fold(0, |sum, owner| sum.saturating_add(owner.bytes)));
        self.sample = OwnerUsage::sample(owners.values());
    }

    /// Counts an item that the rules of the kind leave out; `target` is only called while names are kept.
    pub fn leave_alone(&mut self, reason: Exempt, target: impl FnOnce() -> String) {
        *self.left_alone.entry(reason).or_default() += 1;
        if self.left_alone_named.len() < MAX_LEFT_ALONE_LISTED {
            self.left_alone_named.push(LeftAlone { reason, target: target() });
        }
    }

    /// Counts items that earlier runs of the round left out.
    pub fn add_left_alone(&mut self, reason: Exempt, count: u64) {
        if count > 0 {
            *self.left_alone.entry(reason).or_default() += count;
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
