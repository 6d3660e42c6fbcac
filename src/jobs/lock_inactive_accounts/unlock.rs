//! Undoing a lock.

use std::collections::HashMap;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::lock::Locked;
use crate::jobs::mas_accounts::no_mas;
use crate::jobs::unused_account::Memory;
use crate::plan::change::{Change, ChangeResult, Check};
use crate::plan::report::{Action, ChangeRecord};
use crate::synapse::{Error, Reader, Writer};

/// The change that undoes a recorded one; a notice stays as it is.
pub(super) fn restoration(
    record: &ChangeRecord,
    known: &HashMap<String, String>,
) -> Result<Box<dyn Change>, String> {
    match record.action {
        Action::SendNotice => Ok(Box::new(SentNotice { target: record.target.clone() })),
        Action::UnlockAccount => {
            Err("the next run of the job locks the account again, if it is still unused".to_owned())
        }
        _ => {
            let locked = Locked::recorded(record.before.as_ref())
                .map_err(|_| "what it changed is not recorded".to_owned())?;
            let memory =
                known.get(&locked.user_id).map_or_else(Memory::default, |fact| Memory::parse(fact));
            let is_newest = memory.locked_ms == Some(locked.at_ms);
            Ok(Box::new(Unlock { locked, target: record.target.clone(), is_newest }))
        }
    }
}

/// A notice, of which nothing can be undone.
#[derive(Debug)]
struct SentNotice {
    target: String,
}

impl Change for SentNotice {
    fn action(&self) -> Action {
        Action::SendNotice
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn check<'a>(&'a self, _reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async { Ok(Check::Skip("a notice cannot be taken back".to_owned())) })
    }

    fn apply<'a>(
        &'a self,
        _writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async { Ok(ChangeResult::default()) })
    }
}

#[derive(Debug)]
struct Unlock {
    locked: Locked,
    target: String,
    /// Whether the program has not locked the account again since, and nobody was seen to unlock it.
    is_newest: bool,
}

impl Change for Unlock {
    fn action(&self) -> Action {
        Action::UnlockAccount
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            let skip = |why: &str| Ok(Check::Skip(why.to_owned()));
            let Locked { user_id, at_ms, mas_user_id } = &self.locked;
            let (is_locked, is_deactivated) = if let Some(id) = mas_user_id {
                let Some(user) = reader.mas().ok_or_else(no_mas)?.user(id).await? else {
                    return skip("the account no longer exists");
                };
                let ours = Memory { told_ms: None, locked_ms: Some(*at_ms) };
                let locked_at = user.attributes.locked_at;
                if locked_at.is_some_and(|at| !ours.is_lock_of(at)) {
                    return skip("the account was unlocked, and locked again");
                }
                (locked_at.is_some(), user.attributes.deactivated_at.is_some())
            } else {
                // Synapse would create it.
                match reader.user(user_id).await {
                    Err(error) if error.is_not_found() => {
                        return skip("the account no longer exists");
                    }
                    user => user.map(|user| (user.locked, user.deactivated))?,
                }
            };
            if is_deactivated {
                return skip("the account was deactivated");
            }
            if !is_locked {
                return skip("the account is not locked any more");
            }
            if !self.is_newest {
                return skip("the account was unlocked, and locked again");
            }
            Ok(Check::Proceed(Some(json!(self.locked))))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            let Locked { user_id, mas_user_id, .. } = &self.locked;
            match mas_user_id {
                None => writer.set_locked(user_id, false).await?,
                Some(id) => writer.mas().ok_or_else(no_mas)?.unlock(id).await?,
            }
            // Whoever locks it from now on is somebody else.
            Ok(ChangeResult {
                facts: vec![Memory::default().fact(user_id)],
                ..ChangeResult::items(1)
            })
        })
    }
}
