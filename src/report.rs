//! What a run did, as it is stored, printed and served.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::words;

words! {
    /// Whether a run makes its changes or only plans them.
    pub enum Mode {
        DryRun = "dry-run",
        Apply = "apply",
    }
}

words! {
    /// What started a run.
    pub enum Trigger {
        Schedule = "schedule",
        Manual = "manual",
        CatchUp = "catch-up",
    }
}

words! {
    /// How a run ended.
    pub enum Outcome {
        Succeeded = "succeeded",
        /// Some changes failed, the rest were made.
        Partial = "partial",
        Failed = "failed",
        /// A guard stopped the run before it changed anything.
        Refused = "refused",
        TimedOut = "timed-out",
        Cancelled = "cancelled",
        Panicked = "panicked",
        /// The program ended while the run was at work.
        Interrupted = "interrupted",
    }
}

words! {
    /// What became of a change.
    pub enum State {
        Planned = "planned",
        Done = "done",
        Failed = "failed",
        /// Planned, and found not to need or allow it.
        Skipped = "skipped",
    }
}

words! {
    /// What changes do; a closed set, because it is a metric label.
    pub enum Action {
        PurgeLocalMedia = "purge-local-media",
        PurgeRemoteMedia = "purge-remote-media",
        JoinRoom = "join-room",
        RemoveExternalId = "remove-external-id",
        Request = "request",
    }
}

words! {
    /// Why the rules of a kind left something out of a plan.
    pub enum Exempt {
        /// The member left the room.
        Left = "left",
        Kicked = "kicked",
        Banned = "banned",
        Deactivated = "deactivated",
        Locked = "locked",
        Suspended = "suspended",
        Guest = "guest",
        Bot = "bot",
        /// The account belongs to a bridge.
        Bridge = "bridge",
        /// The account that microglia itself uses.
        OwnAccount = "own-account",
        /// Named by `except_users`.
        Excluded = "excluded",
        Admin = "admin",
        /// An account in a state that `accounts` does not name.
        NotSelected = "not-selected",
        /// The only external id of an active account (`keep_last`).
        LastId = "last-id",
        Quarantined = "quarantined",
        Protected = "protected",
        /// Synapse kept the file before, most likely as an avatar.
        Kept = "kept",
        /// An empty file, or an upload that was never finished.
        Empty = "empty",
    }
}

/// One run. All figures count things, over all attempts, each distinct target once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `None` where the history could not be written, which only a dry run survives.
    pub id: Option<i64>,
    pub job: String,
    pub kind: String,
    pub homeserver: String,
    pub mode: Mode,
    pub trigger: Trigger,
    pub scheduled_for: Option<Timestamp>,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub attempts: u32,
    /// `None` while the run is at work.
    pub outcome: Option<Outcome>,
    pub message: Option<String>,
    /// `None` where the kind cannot know.
    pub planned: Option<u64>,
    pub done: u64,
    pub failed: u64,
    pub skipped: u64,
    /// `None` where it is unknown, as before there is a plan.
    pub remaining: Option<u64>,
    pub bytes_planned: Option<u64>,
    pub bytes_freed: Option<u64>,
    /// What the rules of the kind left out of the last plan, by reason.
    #[serde(default)]
    pub left_alone: BTreeMap<Exempt, u64>,
    /// The accounts with the most bytes of a media plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sample: Vec<Share>,
    /// Left out where reports are listed, and where no person may be named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<ChangeRecord>>,
}

/// One account's part of a media plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub user_id: String,
    pub files: u64,
    pub bytes: u64,
}

/// Something that the rules of a kind left out of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftAlone {
    pub reason: Exempt,
    pub target: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeRecord {
    pub action: Action,
    pub target: String,
    pub count: u64,
    pub state: State,
    pub detail: Option<String>,
    /// What the change replaced, so that a person can undo it; never served over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<serde_json::Value>,
}

/// How many changes a report carries; the rest are read a page at a time.
pub const CHANGES_SHOWN: u32 = 1000;

/// What a run tells while it works: log, progress and metrics hear this and nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Started(Box<Report>),
    /// Something is being read; `total` is 0 while it is not known.
    Reading {
        what: String,
        done: u64,
        total: u64,
    },
    Planned {
        planned: Option<u64>,
        bytes: Option<u64>,
    },
    /// The first of what the rules of the kind left out of the plan, and how much more there is.
    LeftAlone {
        named: Vec<LeftAlone>,
        more: u64,
    },
    Changing {
        done: u64,
        total: Option<u64>,
    },
    Changed(ChangeRecord),
    /// The run stands still, and why.
    Waiting(String),
    /// What it waited for came.
    Resumed,
    Retrying {
        attempt: u32,
        wait_seconds: u64,
        because: String,
    },
    Slow(bool),
    /// Something that a person should change, and that does not end the run.
    Warning(String),
    Ended(Box<Report>),
}
