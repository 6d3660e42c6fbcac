//! Which empty rooms are deleted, and how far.

use super::deletion::Deletion;
use super::keys::Keys;
use super::memory::Memory;
use crate::plan::report::Exempt;
use crate::synapse::{EmptyRoom, FormerRoom, Removal, RoomTasks, display_line};
use crate::values::clock::Timestamp;

/// An empty room, and what is known of it without reading it.
pub(super) struct Candidate {
    pub room: EmptyRoom,
    pub memory: Memory,
    pub tasks: RoomTasks,
}

pub(super) enum Verdict {
    Delete(Deletion),
    LeaveAlone {
        reason: Exempt,
        target: String,
        /// When the room will have been empty for long enough.
        due: Option<Timestamp>,
    },
}

impl Keys {
    /// Judges by what is known without a request; the error says why a room is left alone, and when it is due.
    pub fn judge_unread(
        &self,
        candidate: &Candidate,
        now: Timestamp,
    ) -> Result<(), (Exempt, Option<Timestamp>)> {
        let Candidate { room, memory, tasks } = candidate;
        if tasks.is_purge_scheduled {
            return Err((Exempt::PurgeScheduled, None));
        }
        if self.is_excluded(&room.room_id) {
            return Err((Exempt::Excluded, None));
        }
        match self.due(memory.seen_ms) {
            due if due > now => Err((Exempt::RecentlyEmpty, Some(due))),
            _ => Ok(()),
        }
    }

    /// Judges a room by all that is known of it.
    pub fn judge(
        &self,
        candidate: Candidate,
        former: FormerRoom,
        server_name: &str,
        now: Timestamp,
    ) -> Verdict {
        let Candidate { room, memory, .. } = candidate;
        let target = describe(&room, &former);
        let empty_since_ms = memory.seen_ms.max(former.last_member_ms.unwrap_or(i64::MIN));
        let due = self.due(empty_since_ms);
        let leave_alone = |reason, target| Verdict::LeaveAlone { reason, target, due: None };
        if due > now {
            let reason = Exempt::RecentlyEmpty;
            return Verdict::LeaveAlone { reason, target, due: Some(due) };
        }
        if former.invited > 0 && !self.with_invites {
            return leave_alone(Exempt::Invited, target);
        }
        if !former.is_complete && !self.with_invites {
            return leave_alone(Exempt::LongHistory, target);
        }
        if former.name.iter().chain(&former.aliases).any(|name| self.is_excluded(name)) {
            return leave_alone(Exempt::Excluded, target);
        }
        if former.encrypted && self.keep_encrypted {
            return leave_alone(Exempt::Encrypted, target);
        }
        // Somebody who joined since the shutdown made it void.
        let shut_down_ms = memory.shut_down_ms.filter(|at| *at >= empty_since_ms);
        let removal = match shut_down_ms.map(timestamp) {
            None => Removal::Shutdown,
            Some(at) if at + self.purge_after.as_chrono() <= now => Removal::Purge,
            Some(_) => return leave_alone(Exempt::ShutDown, target),
        };
        Verdict::Delete(Deletion {
            removal,
            block: self.block,
            with_invites: self.with_invites,
            purge_after: self.purge_after,
            memory,
            room_id: room.room_id,
            target,
            server_name: server_name.to_owned(),
            former,
        })
    }

    fn is_excluded(&self, name: &str) -> bool {
        self.except_rooms.iter().any(|glob| glob.0.matches(name))
    }

    /// When a room will have been empty for long enough.
    fn due(&self, empty_since_ms: i64) -> Timestamp {
        timestamp(empty_since_ms)
            .checked_add_signed(self.empty_for.as_chrono())
            .unwrap_or(Timestamp::MAX_UTC)
    }
}

/// Any server may have sent an event, so its time may be any.
fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_timestamp_millis(ms).unwrap_or(Timestamp::MAX_UTC)
}

/// `!id ("Lobby", #lobby:example.com, version 10, last activity 2026-11-01, encrypted, federated)`.
fn describe(room: &EmptyRoom, former: &FormerRoom) -> String {
    const MAX_CHARS: usize = 80;
    let name = match former.name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => format!("\"{}\"", display_line(name, MAX_CHARS)),
        None => "no name".to_owned(),
    };
    let alias = match former.aliases.first() {
        Some(alias) => display_line(alias, MAX_CHARS),
        None => "no alias".to_owned(),
    };
    let version = room.version.as_deref().unwrap_or("unknown");
    let last_activity = timestamp(former.last_activity_ms).format("%Y-%m-%d");
    let encrypted = if former.encrypted { "encrypted" } else { "not encrypted" };
    let federated = match former.federated {
        Some(true) => "federated",
        Some(false) => "local",
        None => "perhaps federated",
    };
    format!(
        "{} ({name}, {alias}, version {version}, last activity {last_activity}, {encrypted}, {federated})",
        room.room_id
    )
}
