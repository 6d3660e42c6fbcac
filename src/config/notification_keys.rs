//! The keys of `[notifications.NAME]`, and their types.

use crate::values::matrix_id::{RoomName, UserId};
use crate::values::schedule::Schedule;
use crate::values::schema::schema;
use crate::values::string_enum::string_enum;

schema! {
    pub entries NotificationKeys {
        /// The homeserver whose account sends the messages; optional if there is only one.
        pub homeserver: Option<String>,
        /// The room, as an id or an alias; the account must be in it, and it must not be encrypted.
        pub room: RoomName,
        /// What is reported when it happens: "failure" a run that failed, was refused, or made only a part of its changes (of a job that keeps failing once, then once a day); "recovery" the first run after that which succeeds; "approval" a plan that waits for a decision; "changes" every run that changed something.
        pub on: Vec<NotifyOn> = "[\"failure\", \"approval\", \"recovery\"]",
        /// When to send a summary of everything since the last one, as a cron schedule in the daemon's time zone; default: never.
        pub digest: Option<Schedule>,
        /// Who may approve a plan by reacting to its message with ✅, or reject it with ❌: accounts of the same homeserver.
        pub approvers: Vec<UserId> = "[]",
        /// Whether messages may name accounts and rooms.
        pub names: bool = "false",
    }
}

string_enum! {
    /// What a notification reports when it happens.
    pub enum NotifyOn {
        Failure = "failure",
        Recovery = "recovery",
        Approval = "approval",
        Changes = "changes",
    }
}
