//! `delete-stale-devices`: deletes devices that nobody has used for a long time.

mod accounts;
mod deletion;
mod finishing;
mod judging;
mod keys;
mod sessions;

use std::sync::Arc;

use super::job::{CheckResult, Context, Job, Needs, PlanError, ReadEstimate, Undo};
use super::mas_accounts::without_delegation;
use crate::plan::change::Plan;
use crate::plan::report::Action;
use crate::plan::round::{Plans, Rounds};
use crate::synapse::{self, Identity, Reader, Version};
use crate::values::clock::Timestamp;
use crate::values::schema::{ConfigError, Key, Table};
use judging::Rules;
use keys::Keys;

#[derive(Debug)]
pub struct DeleteStaleDevices {
    keys: Keys,
}

impl Job for DeleteStaleDevices {
    const KIND: &'static str = "delete-stale-devices";
    const ABOUT: &'static str = "Deletes devices that have not been used for a long time, and so logs them out: their access tokens, keys and pushers are gone for good, as are messages to them that were not delivered. Who has no other device and no recovery key can no longer read old encrypted messages. \
        Skips devices that were never used, because Synapse does not record when they were created: those that only logged in, dehydrated ones, and those of bridges. Skips locked accounts, which keep what an unlock gives back, accounts of bridges, the device of microglia itself, and, unless `keep_last` is false, the last device of an account that was used. \
        Devices of an account are listed again right before they are deleted, and right after. Each deletion is told to every server in the account's rooms: accounts are processed one at a time, with a pause. \
        Where the Matrix Authentication Service manages the accounts, finishes their OAuth 2.0 and compatibility sessions there, which deletes their devices, and deletes none in Synapse, where it would return without keys; it needs [homeservers.NAME.mas]. Sessions without a device are left alone.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::DeleteDevice;
    const UNDO: Undo =
        Undo::Impossible("the tokens and keys of a deleted device are gone for good");
    const ROUNDS: Option<Rounds> = Some(Rounds { entries: "accounts", plans: Plans::EachPortion });
    const RUNS_AFTER: Option<&'static str> = Some("lock-inactive-accounts");
    const NEEDS: Needs = Needs {
        synapse: Version(1, 132),
        clock: true,
        without_mas_client: Some(
            "the sessions of this homeserver's accounts are in the Matrix Authentication Service, which creates deleted devices again, without their keys: configure [homeservers.NAME.mas], so that the sessions are finished there",
        ),
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, _now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        Some(Self { keys: Keys::parse(table, errors)? })
    }

    async fn check(&self, reader: &Reader, identity: &Identity) -> Vec<CheckResult> {
        let problem = without_delegation(identity, reader);
        let result =
            |problem| CheckResult { question: "accounts".to_owned(), answer: Err(problem) };
        problem.map(result).into_iter().collect()
    }

    async fn read_estimate(&self, reader: &Reader) -> Result<Option<ReadEstimate>, synapse::Error> {
        // MAS is read page by page, which takes seconds.
        if reader.mas().is_some() || !self.keys.users.iter().any(|glob| glob.0.text == "*") {
            return Ok(None);
        }
        let items = reader.count_usable_accounts().await?;
        Ok(Some(ReadEstimate { what: "accounts", items }))
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let identity = context.identity().await?;
        if let Some(problem) = without_delegation(identity, context.reader) {
            return Err(PlanError::Refused(problem));
        }
        let rules = Arc::new(Rules {
            unused_since: context.started_at - self.keys.unused_for.as_chrono(),
            keep_last: self.keys.keep_last,
            own_device: context.reader.whoami().await?.device_id,
        });
        match context.reader.mas() {
            Some(mas) => sessions::plan(&self.keys, &rules, context, mas, plan).await,
            None => accounts::plan(&self.keys, &rules, context, plan).await,
        }
    }
}
