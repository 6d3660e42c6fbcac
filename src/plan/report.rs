//! What a run did, as it is stored, printed and served.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plan::round::Round;
use crate::values::clock::Timestamp;
use crate::values::duration::format_duration;
use crate::values::string_enum::string_enum;

string_enum! {
    /// Whether a run applies its changes or only plans them.
    pub enum Mode {
        DryRun = "dry-run",
        /// The plan waits for a person, who has it applied by another run.
        Approve = "approve",
        Apply = "apply",
    }
}

string_enum! {
    /// What started a run.
    pub enum Trigger {
        Schedule = "schedule",
        Manual = "manual",
        CatchUp = "catch-up",
        /// A person approved a plan.
        Approval = "approval",
        /// A person undoes what another run changed.
        Undo = "undo",
    }
}

string_enum! {
    /// What became of a plan that a person decides about.
    pub enum ApprovalState {
        Pending = "pending",
        Approved = "approved",
        Rejected = "rejected",
        /// Nobody decided within `approval_ttl`.
        Expired = "expired",
        /// By a newer plan, or because the job was changed since.
        Superseded = "superseded",
    }
}

/// The decision about the plan of a run in approve mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub state: ApprovalState,
    pub expires_at: Timestamp,
    /// Who or what decided; reads well after "approved by". May name a person.
    pub by: Option<String>,
    pub decided_at: Option<Timestamp>,
    /// The run that applies the plan; `None` until it was started.
    pub run: Option<i64>,
    /// Why the plan was superseded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

string_enum! {
    /// How a run ended.
    pub enum Outcome {
        Succeeded = "succeeded",
        /// Some changes failed, the rest were applied.
        Partial = "partial",
        Failed = "failed",
        /// A guard stopped the run before it changed anything.
        Refused = "refused",
        TimedOut = "timed-out",
        Cancelled = "cancelled",
        Panicked = "panicked",
        /// The program ended during the run.
        Interrupted = "interrupted",
    }
}

string_enum! {
    /// What became of a change.
    pub enum State {
        Planned = "planned",
        Done = "done",
        Failed = "failed",
        /// Planned, but no longer needed or allowed.
        Skipped = "skipped",
    }
}

string_enum! {
    /// What a change does; a closed set, because it is a metric label.
    pub enum Action {
        PurgeLocalMedia = "purge-local-media",
        PurgeRemoteMedia = "purge-remote-media",
        JoinRoom = "join-room",
        RemoveExternalId = "remove-external-id",
        /// Only to undo a removal.
        AddExternalId = "add-external-id",
        ShutDownRoom = "shut-down-room",
        PurgeRoom = "purge-room",
        PurgeHistory = "purge-history",
        ProtectMedia = "protect-media",
        UnprotectMedia = "unprotect-media",
        /// Tells a person about what is going to happen to their account.
        SendNotice = "send-notice",
        LockAccount = "lock-account",
        /// Only to undo a lock.
        UnlockAccount = "unlock-account",
        DeactivateAccount = "deactivate-account",
        DeleteDevice = "delete-device",
        /// Under MAS, which deletes the device with the session.
        FinishSession = "finish-session",
        DeleteRegistrationToken = "delete-registration-token",
        /// Under MAS, which deletes none.
        RevokeRegistrationToken = "revoke-registration-token",
        /// Only to undo a revocation.
        UnrevokeRegistrationToken = "unrevoke-registration-token",
        DeleteEventReport = "delete-event-report",
        DeleteUserReport = "delete-user-report",
        Request = "request",
    }
}

string_enum! {
    /// What a run can wait for.
    pub enum WaitReason {
        /// The end of another run on the homeserver, or of another purge of its media.
        Slot = "slot",
        /// The next attempt.
        Retry = "retry",
        /// The end of what Synapse does on its own account.
        Synapse = "synapse",
    }
}

/// What a run is waiting for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Completes "waiting for"; names no account and no room.
    #[serde(rename = "for")]
    pub what: String,
    pub since: Timestamp,
}

string_enum! {
    /// Why the rules of a kind left an item out of a plan.
    pub enum Exempt {
        /// The member left the room.
        Left = "left",
        Kicked = "kicked",
        Banned = "banned",
        Deactivated = "deactivated",
        Locked = "locked",
        Suspended = "suspended",
        Guest = "guest",
        /// An account whose `user_type` is bot or support.
        Bot = "bot",
        /// An account with another `user_type`.
        OtherType = "other-type",
        /// An account that MAS does not know, such as that of a bridge.
        NotInMas = "not-in-mas",
        /// An account of which no use is known (`never_used_after`), or a device, which may be new.
        NeverUsed = "never-used",
        /// An account whose user was told not long ago (`notice_before`).
        Notified = "notified",
        /// An account that was locked not long ago (`locked_for`).
        RecentlyLocked = "recently-locked",
        /// An account that somebody else locked.
        LockedByOthers = "locked-by-others",
        /// An account that was used after it was locked.
        UsedSinceLock = "used-since-lock",
        /// The account belongs to a bridge.
        Bridge = "bridge",
        /// The account that microglia itself uses.
        OwnAccount = "own-account",
        /// Named by `except_users`, `except_rooms` or `except_media_types`.
        Excluded = "excluded",
        Admin = "admin",
        /// An account in a state that `accounts` does not name.
        NotSelected = "not-selected",
        /// The only external id of an active account (`keep_last`).
        LastId = "last-id",
        /// An account that was deactivated not long ago (`deactivated_for`).
        RecentlyDeactivated = "recently-deactivated",
        /// A link of no account (`orphans`).
        Orphan = "orphan",
        /// A link of no account that was created within the last day.
        RecentOrphan = "recent-orphan",
        Quarantined = "quarantined",
        Protected = "protected",
        /// Synapse kept the file before, most likely as an avatar.
        Kept = "kept",
        /// A room that has not been empty for `empty_for`.
        RecentlyEmpty = "recently-empty",
        /// A room in which an invitation or a knock of a local user is pending.
        Invited = "invited",
        /// A room of which too many events would have to be read to know whether somebody is invited.
        LongHistory = "long-history",
        /// A room of which Synapse has no event.
        NoHistory = "no-history",
        Encrypted = "encrypted",
        NotEncrypted = "not-encrypted",
        /// A room in which users of other servers are.
        Federated = "federated",
        /// A room without local members.
        NoMembers = "no-members",
        /// A room whose own state says how long messages are kept.
        OwnRetention = "own-retention",
        /// A room with fewer old events than `min_events`.
        FewEvents = "few-events",
        /// A room that Synapse purges on its own account.
        PurgeScheduled = "purge-scheduled",
        /// A room that was shut down, and is purged by a later run.
        ShutDown = "shut-down",
        /// A device that receives keys for a person without another one.
        Dehydrated = "dehydrated",
        /// The device that microglia itself uses.
        OwnDevice = "own-device",
        /// The device of an account that was used last (`keep_last`).
        LastDevice = "last-device",
        /// A registration token that may be used no times at all, which is how it is switched off.
        SwitchedOff = "switched-off",
        /// A registration token with which a registration has begun.
        PendingRegistration = "pending-registration",
        /// A registration token that has not been expired or used up for `unused_for`.
        RecentlyInvalid = "recently-invalid",
        /// An empty file, or an upload that was never finished.
        Empty = "empty",
        /// An avatar, or another file that the state of a room refers to.
        InUse = "in-use",
        /// The preview of a link, which Synapse itself deletes.
        UrlPreview = "url-preview",
    }
}

/// One run. All counts are items, over all attempts, each distinct target once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `None` if the history could not be written, which only a dry run survives.
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
    /// `None` until the run has ended.
    pub outcome: Option<Outcome>,
    pub message: Option<String>,
    /// The time spent waiting for a slot or a retry, over all attempts; not part of the work.
    #[serde(default)]
    pub waited_seconds: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waited_for: Vec<WaitReason>,
    /// `None` once the run has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// `None` if the kind cannot know.
    pub planned: Option<u64>,
    pub done: u64,
    pub failed: u64,
    pub skipped: u64,
    /// `None` if it is unknown, for example before there is a plan.
    pub remaining: Option<u64>,
    pub bytes_planned: Option<u64>,
    pub bytes_freed: Option<u64>,
    /// What the rules of the kind left out of the last plan, by reason.
    #[serde(default)]
    pub left_alone: BTreeMap<Exempt, u64>,
    /// The accounts with the most bytes of a media plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sample: Vec<OwnerUsage>,
    /// `None` for a kind that reads everything in each run, and before there is a plan.
    #[serde(default)]
    pub round: Option<Round>,
    /// `None` unless the run is in approve mode and planned something.
    #[serde(default)]
    pub approval: Option<Approval>,
    /// Left out of lists of reports, and where no person may be named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<ChangeRecord>>,
}

impl Report {
    /// How long the run worked, without waiting; `None` until it has ended.
    pub fn work_duration(&self) -> Option<Duration> {
        let lasted = (self.finished_at? - self.started_at).to_std().unwrap_or_default();
        let waited = Duration::try_from_secs_f64(self.waited_seconds).unwrap_or_default();
        Some(lasted.saturating_sub(waited))
    }

    /// `0.1 s (waited 1 min 37 s for a slot)`; `None` until the run has ended.
    pub fn format_work_duration(&self) -> Option<String> {
        let worked = format_duration(self.work_duration()?);
        let waited = Duration::try_from_secs_f64(self.waited_seconds).unwrap_or_default();
        if waited < MIN_WAIT_SHOWN {
            return Some(worked);
        }
        let reasons = self.waited_for.iter().map(|reason| match reason {
            WaitReason::Slot => "a slot",
            WaitReason::Retry => "a retry",
            WaitReason::Synapse => "Synapse",
        });
        let reasons: Vec<&str> = reasons.collect();
        Some(format!("{worked} (waited {} for {})", format_duration(waited), reasons.join(" and ")))
    }
}

/// A shorter wait would be shown as 0.0 s.
const MIN_WAIT_SHOWN: Duration = Duration::from_millis(100);

/// One account's part of a media plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerUsage {
    pub user_id: String,
    pub files: u64,
    pub bytes: u64,
}

/// Accounts in the sample of a plan.
const SAMPLE_ACCOUNTS: usize = 10;

impl OwnerUsage {
    /// Returns the accounts with the most bytes, without those that have no files.
    pub fn sample<'a>(usage: impl Iterator<Item = &'a Self>) -> Vec<Self> {
        let mut usage: Vec<&Self> = usage.filter(|owner| owner.files > 0).collect();
        usage.sort_unstable_by(|a, b| (b.bytes, &a.user_id).cmp(&(a.bytes, &b.user_id)));
        usage.truncate(SAMPLE_ACCOUNTS);
        usage.into_iter().cloned().collect()
    }
}

/// An item that the rules of a kind left out of a plan.
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
    /// The beginning of the response to a `request`; may name people, as the target may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// What the change replaced, for a person to undo it; never served over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<serde_json::Value>,
}

/// How many changes a report carries; the rest are read page by page.
pub const CHANGES_SHOWN: u32 = 1000;

/// What happens in a run: log, progress and metrics are made of events and reports alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Started(Box<Report>),
    /// `total` is 0 while it is not known.
    Reading {
        what: String,
        done: u64,
        total: u64,
    },
    Planned {
        planned: Option<u64>,
        bytes: Option<u64>,
    },
    /// The first items that the rules of the kind left out of the plan, and the number of further ones.
    LeftAlone {
        named: Vec<LeftAlone>,
        more: u64,
    },
    Changing {
        done: u64,
        total: Option<u64>,
    },
    Changed(ChangeRecord),
    /// Completes "waiting for".
    Waiting(String),
    /// The wait is over.
    Resumed,
    Retrying {
        attempt: u32,
        /// The maximum for the job.
        attempts: u32,
        wait_seconds: u64,
        because: String,
    },
    Slow(bool),
    /// The homeserver has not responded since then; `problem` is what was seen instead, or empty.
    Silent {
        since: Timestamp,
        problem: String,
    },
    /// The homeserver responds again.
    Answering {
        after_seconds: u64,
    },
    /// A problem that a person should fix, and that does not end the run.
    Warning(String),
    Ended(Box<Report>),
}

impl Event {
    /// Whether this only reports progress, which a progress bar shows and nothing else needs.
    pub fn is_progress(&self) -> bool {
        match self {
            Self::Reading { .. } | Self::Changing { .. } => true,
            Self::Started(_)
            | Self::Planned { .. }
            | Self::LeftAlone { .. }
            | Self::Changed(_)
            | Self::Waiting(_)
            | Self::Resumed
            | Self::Retrying { .. }
            | Self::Slow(_)
            | Self::Silent { .. }
            | Self::Answering { .. }
            | Self::Warning(_)
            | Self::Ended(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(waited_seconds: f64, waited_for: &[WaitReason]) -> Report {
        let report = serde_json::json!({
            "id": 1, "job": "a", "kind": "request", "homeserver": "main", "mode": "apply", "trigger": "manual",
            "scheduled_for": null, "started_at": "2026-11-23T00:00:00Z", "finished_at": "2026-11-23T00:01:37.200Z",
            "attempts": 1, "outcome": "succeeded", "message": null, "planned": 1, "done": 1, "failed": 0, "skipped": 0,
            "remaining": 0, "bytes_planned": null, "bytes_freed": null,
            "waited_seconds": waited_seconds, "waited_for": waited_for,
        });
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn waiting_is_not_part_of_the_work_and_shown_separately() {
        let shown = |seconds, reasons: &[WaitReason]| {
            report(seconds, reasons).format_work_duration().unwrap()
        };
        assert_eq!(shown(0.0, &[]), "1 min 37 s");
        assert_eq!(shown(0.04, &[WaitReason::Slot]), "1 min 37 s");
        assert_eq!(shown(97.1, &[WaitReason::Slot]), "0.1 s (waited 1 min 37 s for a slot)");
        assert_eq!(
            shown(97.1, &[WaitReason::Slot, WaitReason::Retry]),
            "0.1 s (waited 1 min 37 s for a slot and a retry)"
        );
        // A clock that was set in the meantime causes no negative duration.
        assert_eq!(shown(500.0, &[WaitReason::Retry]), "0.0 s (waited 8 min 20 s for a retry)");
        assert_eq!(Report { finished_at: None, ..report(0.0, &[]) }.format_work_duration(), None);
    }
}
