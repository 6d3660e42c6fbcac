//! The notice to the user of one account.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::keys::{Keys, NoticeText};
use super::lock::still_unused;
use crate::jobs::unused_account::Memory;
use crate::plan::change::{Change, ChangeResult, Check};
use crate::plan::report::Action;
use crate::synapse::{Error, Reader, Writer};
use crate::values::clock::Timestamp;
use crate::values::fingerprint::Fingerprint;

#[derive(Debug)]
pub(super) struct Notice {
    pub user_id: String,
    pub target: String,
    pub text: NoticeText,
    pub last_seen_at: Option<Timestamp>,
    /// The time from which ages count back.
    pub as_of: Timestamp,
    pub keys: Arc<Keys>,
}

/// The same for each attempt to tell a user of the same absence, and for nothing else: Synapse sends nothing for an id
/// that it knows, even to another user.
fn transaction_id(user_id: &str, last_seen_at: Option<Timestamp>, text: &str) -> String {
    let seen_ms = last_seen_at.map(|seen| seen.timestamp_millis());
    format!("microglia-{}", Fingerprint::of(&json!(["inactive", user_id, seen_ms, text])))
}

impl Change for Notice {
    fn action(&self) -> Action {
        Action::SendNotice
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            // Synapse would also tell a locked or deactivated user.
            Ok(match still_unused(reader, &self.user_id, &self.keys, self.as_of).await? {
                Ok(_) => Check::Proceed(None),
                Err(why) => Check::Skip(why),
            })
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            let id = transaction_id(&self.user_id, self.last_seen_at, &self.text.0);
            let told_at = writer.send_notice(&id, &self.user_id, &self.text.0).await?;
            // Only now: who might not have been told must not be locked.
            let memory = Memory { told_ms: Some(told_at.timestamp_millis()), locked_ms: None };
            let after = self.keys.notice_before;
            Ok(ChangeResult {
                facts: vec![memory.fact(&self.user_id)],
                detail: Some(format!("a run after {after} or more locks the account")),
                ..ChangeResult::items(1)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_id_is_of_one_user_one_absence_and_one_text() {
        let id = |user: &str, seen_ms: i64, text: &str| {
            transaction_id(user, Timestamp::from_timestamp_millis(seen_ms), text)
        };
        let first = id("@a:hs", 1, "Hello");
        assert_eq!(id("@a:hs", 1, "Hello"), first);
        assert!(first.starts_with("microglia-") && first.len() < 60, "{first}");
        for other in [id("@b:hs", 1, "Hello"), id("@a:hs", 2, "Hello"), id("@a:hs", 1, "Bye")] {
            assert_ne!(other, first);
        }
    }
}
