//! The removal of ids from an account on classic Synapse.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::keys::Keys;
use crate::plan::change::{Change, ChangeResult, Check, Lane, Warning};
use crate::plan::report::Action;
use crate::synapse::{self, ExternalId, Reader, Writer};

/// The removal of one account's ids; several ids of one account go together, since Synapse replaces whole lists.
#[derive(Debug)]
pub(super) struct Removal {
    pub user_id: String,
    pub gone: Vec<ExternalId>,
    /// Whether the account was deactivated when it was planned.
    pub was_deactivated: bool,
    pub warning: Option<Warning>,
    pub keys: Arc<Keys>,
}

impl Change for Removal {
    fn action(&self) -> Action {
        Action::RemoveExternalId
    }

    fn target(&self) -> String {
        let ids: Vec<String> = self.gone.iter().map(ToString::to_string).collect();
        format!("{} -> {}", self.user_id, ids.join(", "))
    }

    fn count(&self) -> u64 {
        self.gone.len() as u64
    }

    fn lane(&self) -> Lane {
        Lane::ExternalIds
    }

    fn warning(&self) -> Option<Warning> {
        self.warning
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, synapse::Error>> {
        Box::pin(async move {
            let user = match reader.user(&self.user_id).await {
                Err(error) if error.is_not_found() => {
                    return Ok(Check::Skip("the account was removed since the plan".to_owned()));
                }
                user => user?,
            };
            if self.keys.is_deactivated_since(self.was_deactivated, &user) {
                return Ok(Check::Skip("the account was deactivated since the plan".to_owned()));
            }
            let (mut gone, _) = self.keys.split(&user);
            gone.retain(|id| self.gone.contains(id));
            if gone.is_empty() {
                return Ok(Check::Skip(
                    "the account changed since the plan, and has no ids to remove any more"
                        .to_owned(),
                ));
            }
            Ok(Check::Proceed(serde_json::to_value(&user.external_ids).ok()))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, synapse::Error>> {
        Box::pin(async move {
            let current: Vec<ExternalId> = before
                .and_then(|list| serde_json::from_value(list.clone()).ok())
                .unwrap_or_default();
            let gone: Vec<ExternalId> =
                current.iter().filter(|id| self.gone.contains(id)).cloned().collect();
            remove(writer, &self.user_id, &current, &gone).await?;
            let (planned, done) = (self.gone.len(), gone.len());
            Ok(ChangeResult {
                done: done as u64,
                skipped: (planned - done) as u64,
                detail: (done < planned).then(|| {
                    format!("{done} of the {planned} planned ids: the others no longer existed")
                }),
                ..ChangeResult::default()
            })
        })
    }
}

/// Removes ids from an account that has the `current` ones.
pub(super) async fn remove(
    writer: &Writer,
    user_id: &str,
    current: &[ExternalId],
    gone: &[ExternalId],
) -> Result<(), synapse::Error> {
    let left: Vec<ExternalId> = current.iter().filter(|id| !gone.contains(id)).cloned().collect();
    // Synapse (1.163) invalidates its cache of who owns an id only for ids that a PUT names: without naming them
    // again, a removed id could still be used to log in for up to half an hour.
    writer.swap_external_ids(user_id, current, current).await?;
    let answered = writer.swap_external_ids(user_id, current, &left).await?.external_ids;
    // An id that a login linked after the list was sent is in the response as well, and stays.
    if gone.iter().any(|id| answered.contains(id)) || left.iter().any(|id| !answered.contains(id)) {
        return Err(synapse::Error::contradicted(
            user_id,
            "Synapse returned a different list of external ids than it was sent: someone else changed the account at the same time",
        ));
    }
    Ok(())
}
