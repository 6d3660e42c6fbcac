//! The lock of one account.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::evidence::Use;
use super::keys::Keys;
use crate::jobs::account::Account;
use crate::jobs::mas_accounts::no_mas;
use crate::jobs::unused_account::Memory;
use crate::mas::Ulid;
use crate::plan::change::{Change, ChangeResult, Check};
use crate::plan::facts::Fact;
use crate::plan::report::Action;
use crate::synapse::{Error, Reader, Writer};
use crate::values::clock::Timestamp;

#[derive(Debug)]
pub(super) struct Lock {
    pub user_id: String,
    pub target: String,
    pub memory: Memory,
    /// The time from which ages count back.
    pub as_of: Timestamp,
    pub keys: Arc<Keys>,
}

/// What is recorded of a lock before it is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Locked {
    pub user_id: String,
    /// When, in milliseconds; by it `undo` recognizes the lock.
    pub at_ms: i64,
    /// Under MAS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mas_user_id: Option<Ulid>,
}

impl Locked {
    pub fn recorded(before: Option<&Value>) -> Result<Self, Error> {
        let recorded = before.and_then(|before| serde_json::from_value(before.clone()).ok());
        recorded
            .ok_or_else(|| Error::not_sent("what the lock is about was not recorded".to_owned()))
    }
}

impl Change for Lock {
    fn action(&self) -> Action {
        Action::LockAccount
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            let account = match still_unused(reader, &self.user_id, &self.keys, self.as_of).await? {
                Ok(account) => account,
                Err(why) => return Ok(Check::Skip(why)),
            };
            if self.memory.came_back(account.last_seen_at) {
                return Ok(Check::Skip("the account was used after the notice".to_owned()));
            }
            Ok(Check::Proceed(Some(json!(Locked {
                user_id: self.user_id.clone(),
                at_ms: reader.now().timestamp_millis(),
                mas_user_id: account.id_in_mas().cloned(),
            }))))
        })
    }

    fn facts(&self, before: Option<&Value>) -> Vec<Fact> {
        let Ok(Locked { at_ms, .. }) = Locked::recorded(before) else { return Vec::new() };
        vec![Memory { locked_ms: Some(at_ms), ..self.memory }.fact(&self.user_id)]
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            match Locked::recorded(before)?.mas_user_id {
                None => writer.set_locked(&self.user_id, true).await?,
                Some(id) => writer.mas().ok_or_else(no_mas)?.lock(&id).await?,
            }
            Ok(ChangeResult::items(1))
        })
    }
}

/// Reads an account again; the error says why it is not to be locked any more.
pub(super) async fn still_unused(
    reader: &Reader,
    user_id: &str,
    keys: &Keys,
    as_of: Timestamp,
) -> Result<Result<Account, String>, Error> {
    let Some(account) = Account::read(reader, user_id).await? else {
        return Ok(Err("the account no longer exists".to_owned()));
    };
    let exempt = account.exempt(reader.identity().await?).next();
    if let Some(reason) = exempt {
        return Ok(Err(format!("the account changed since the plan: {reason}")));
    }
    Ok(match keys.judge(account.last_seen_at, account.user.created_at, as_of) {
        Use::LongAgo => Ok(account),
        Use::Recent | Use::Unknown => Err("the account was used since the plan".to_owned()),
    })
}
