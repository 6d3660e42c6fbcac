//! The deactivation of one account.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::jobs::account::Account;
use crate::jobs::mas_accounts::no_mas;
use crate::jobs::unused_account::Memory;
use crate::mas::Ulid;
use crate::plan::change::{Change, ChangeResult, Check, Lane};
use crate::plan::report::{Action, Exempt};
use crate::synapse::{Error, Identity, Reader, Writer};

#[derive(Debug)]
pub(super) struct Deactivation {
    pub user_id: String,
    pub target: String,
    pub erase: bool,
    pub memory: Memory,
}

/// Synapse takes the account out of its rooms afterwards: several at once would make it slow for everybody.
const PAUSE: Duration = Duration::from_secs(1);

/// What is recorded before an account is deactivated.
#[derive(Debug, Serialize, Deserialize)]
struct Deactivated {
    /// Under MAS.
    mas_user_id: Option<Ulid>,
    erase: bool,
}

/// Why an account is not deactivated, by all that is known of it now.
pub(super) fn exempt(account: &Account, memory: Memory, identity: &Identity) -> Option<Exempt> {
    if let Some(exempt) = account.exempt(identity).find(|exempt| *exempt != Exempt::Locked) {
        return Some(exempt);
    }
    let locked_by_others = account.locked_at_in_mas().is_some_and(|at| !memory.is_lock_of(at));
    if !account.is_locked() {
        Some(Exempt::NotSelected)
    } else if locked_by_others {
        Some(Exempt::LockedByOthers)
    } else if memory.is_used_since_lock(account.last_seen_at) {
        Some(Exempt::UsedSinceLock)
    } else {
        None
    }
}

impl Change for Deactivation {
    fn action(&self) -> Action {
        Action::DeactivateAccount
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn lane(&self) -> Lane {
        Lane::Paced { pause: PAUSE }
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            let Some(account) = Account::read(reader, &self.user_id).await? else {
                return Ok(Check::Skip("the account no longer exists".to_owned()));
            };
            let identity = reader.identity().await?;
            Ok(match exempt(&account, self.memory, identity) {
                Some(Exempt::NotSelected) => {
                    Check::Skip("the account is not locked any more".to_owned())
                }
                Some(reason) => {
                    Check::Skip(format!("the account changed since the plan: {reason}"))
                }
                None => Check::Proceed(Some(json!(Deactivated {
                    mas_user_id: account.id_in_mas().cloned(),
                    erase: self.erase,
                }))),
            })
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            let recorded = before.and_then(|before| serde_json::from_value(before.clone()).ok());
            let not_recorded =
                || Error::not_sent("what is deactivated was not recorded".to_owned());
            let Deactivated { mas_user_id, erase } = recorded.ok_or_else(not_recorded)?;
            match mas_user_id {
                None => writer.deactivate(&self.user_id, erase).await?,
                Some(id) => writer.mas().ok_or_else(no_mas)?.deactivate(&id, erase).await?,
            }
            Ok(ChangeResult {
                facts: vec![Memory::default().fact(&self.user_id)],
                ..ChangeResult::items(1)
            })
        })
    }
}
