//! `remove-external-ids`: removes the SSO identities of a provider from accounts.

mod accounts;
mod criteria;
mod deactivated;
mod keys;
mod link_criteria;
mod link_removal;
mod links;
mod observed;
mod removal;
mod restoration;
mod upstream_providers;

use std::sync::Arc;

use super::account_state::AccountState;
use super::job::{CheckResult, Context, Job, Needs, PlanError, ReadEstimate, Undo};
use crate::plan::change::Plan;
use crate::plan::report::Action;
use crate::plan::round::{Plans, Rounds};
use crate::synapse::{self, Identity, Reader, Version};
use crate::values::clock::Timestamp;
use crate::values::schema::{ConfigError, Key, Table};
use keys::Keys;

#[derive(Debug)]
pub struct RemoveExternalIds {
    keys: Arc<Keys>,
}

impl Job for RemoveExternalIds {
    const KIND: &'static str = "remove-external-ids";
    const ABOUT: &'static str = "Removes the external ids (SSO identities) of given providers from accounts. A removed id can no longer be used to log in to its account, and can be linked to another one. \
        On classic Synapse, which does not store when an account was deactivated, `deactivated_for` counts from the first run that saw it so. \
        Keeps all other ids and never creates or reactivates an account. Skips the daemon's own account and, without include_admins, server admins. \
        On classic Synapse, changes one account at a time, whatever the limits of the homeserver, because Synapse's workers miss some of several simultaneous changes. \
        Each change records the previous list. On classic Synapse, the list is read again right before the request that replaces it, and an id that was linked in the meantime is kept; \
        because Synapse cannot check that a list is unchanged when it replaces it, an id linked within these few milliseconds is lost. A user who has no password and loses their only id can no longer log in. \
        Where the Matrix Authentication Service manages the accounts, removes its upstream links instead, by the state of its accounts; it needs [homeservers.NAME.mas]. \
        Each link is read again right before it is deleted. Sessions continue. With `on_conflict: add` at the provider, a removed link returns at the next login; with `fail`, the default, \
        an active user can no longer log in through it. MAS does not report who has a password, so keep_last counts links only; with it, links are deleted one at a time. The external ids in Synapse, `oauth-delegated` among them, mean nothing there and are not changed.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::RemoveExternalId;
    const UNDO: Undo = Undo::By(restoration::restoration);
    const ROUNDS: Option<Rounds> = Some(Rounds { entries: "accounts", plans: Plans::EachPortion });
    const NEEDS: Needs = Needs {
        synapse: Version(1, 46),
        clock: false,
        without_mas_client: Some(
            "the accounts of this homeserver and the links to their identities are stored in the Matrix Authentication Service: configure [homeservers.NAME.mas], so that the links are removed there; those in Synapse are not used",
        ),
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, _now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let keys = Keys::parse(table, errors)?;
        if keys.deactivated_for.is_some() && !keys.accounts.include(AccountState::Deactivated) {
            let text =
                "`deactivated_for` has no effect: `accounts` does not include \"deactivated\"";
            errors.push(ConfigError::new(table.span_of("deactivated_for"), text.to_owned()));
        }
        Some(Self { keys: Arc::new(keys) })
    }

    async fn check(&self, reader: &Reader, identity: &Identity) -> Vec<CheckResult> {
        if let Err(problem) = self.keys.check_homeserver(identity, reader.mas().is_some()) {
            return vec![CheckResult { question: "keys".to_owned(), answer: Err(problem) }];
        }
        let Some(mas) = reader.mas() else { return Vec::new() };
        let answer = match links::providers(&self.keys, mas).await {
            Ok(providers) => Ok(providers.describe()),
            Err(PlanError::Refused(problem)) => Err(problem),
            Err(PlanError::Synapse(error)) => Err(error.to_string()),
        };
        vec![CheckResult { question: "finds its providers in MAS".to_owned(), answer }]
    }

    async fn read_estimate(&self, reader: &Reader) -> Result<Option<ReadEstimate>, synapse::Error> {
        // MAS is read page by page, which takes seconds.
        if reader.mas().is_some() || !self.keys.users.iter().any(|glob| glob.0.text == "*") {
            return Ok(None);
        }
        let all = reader.count_accounts().await?;
        let accounts = &self.keys.accounts;
        let items = match (accounts.may_include(true, false), accounts.may_include(false, false)) {
            (true, true) => all,
            (true, false) => all.saturating_sub(reader.count_usable_accounts().await?),
            (false, _) => reader.count_usable_accounts().await?,
        };
        Ok(Some(ReadEstimate { what: "accounts", items }))
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let (identity, mas) = (context.identity().await?, context.reader.mas());
        self.keys.check_homeserver(identity, mas.is_some()).map_err(PlanError::Refused)?;
        match mas {
            Some(mas) => links::plan(&self.keys, context, mas, plan).await,
            None => accounts::plan(&self.keys, context, plan).await,
        }
    }
}

impl Keys {
    /// Whether the homeserver is of the sort that the keys are for.
    fn check_homeserver(&self, identity: &Identity, has_mas: bool) -> Result<(), String> {
        match (identity.mas, has_mas) {
            (true, true) => match identity.clock_error().filter(|_| self.deactivated_for.is_some()) {
                Some(off) => Err(format!(
                    "the local clock is {off} that of the homeserver, and `deactivated_for` would be measured wrongly: synchronize the clocks (NTP)"
                )),
                None => Ok(()),
            },
            (false, true) => Err("[homeservers.NAME.mas] is configured, but this Synapse does not delegate to MAS, and uses its own external ids: remove the table, or configure `matrix_authentication_service` in Synapse".to_owned()),
            (false, false) if self.orphans => Err("`orphans` needs the Matrix Authentication Service: in Synapse each external id belongs to an account; remove the key".to_owned()),
            // MAS without its table is refused already, with advice.
            (_, false) => Ok(()),
        }
    }
}
