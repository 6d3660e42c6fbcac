//! What a notification tells people.

use crate::values::string_enum::string_enum;

string_enum! {
    /// What a message of a notification is about.
    pub enum MessageEvent {
        Failure = "failure",
        /// The first success after failures that were reported.
        Recovery = "recovery",
        /// A plan that waits for a decision.
        Approval = "approval",
        /// What became of that plan.
        Decision = "decision",
        /// What a run changed.
        Changes = "changes",
        /// A summary of everything since the one before.
        Digest = "digest",
    }
}
