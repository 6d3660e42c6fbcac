//! `deactivate-accounts`: deactivates accounts that this program locked long ago.

mod belongings;
mod deactivation;
mod keys;

use std::collections::HashSet;

use futures_util::{StreamExt, stream};

use super::account::{Account, Unreadable, exempt_by_row};
use super::job::{Context, Job, Needs, PlanError, Undo};
use super::mas_accounts::without_delegation;
use super::unused_account::{Memory, recall};
use crate::plan::change::{Change, Plan, Work};
use crate::plan::facts::Topic;
use crate::plan::report::{Action, Exempt};
use crate::synapse::{Identity, UserRow, Version};
use crate::values::clock::{Timestamp, format_time};
use crate::values::glob::{Matched, Selection, select, unmatched};
use crate::values::schema::{ConfigError, Key, Table};
use deactivation::Deactivation;
use keys::Keys;

#[derive(Debug)]
pub struct DeactivateAccounts {
    keys: Keys,
}

impl Job for DeactivateAccounts {
    const KIND: &'static str = "deactivate-accounts";
    const ABOUT: &'static str = "Deactivates accounts that lock-inactive-accounts locked at least `locked_for` ago, and that have stayed locked and unused since. It knows them by the history of this program alone: an account that anybody else locked is left alone, and so is one that was unlocked in the meantime. \
        The plan says what goes with each account: its devices, a key backup whose key is in its account data, its pending invitations, and the rooms in which it is the last local user: nobody can join these afterwards unless other servers are in them, and Synapse may purge them (`forgotten_room_retention_period`). \
        Synapse deletes password, devices, keys, key backups and account data, and takes the account out of its rooms in the background; files and messages stay. One account is deactivated at a time. \
        Skips server admins, bots and all other accounts with a `user_type`, guests, users of bridges, suspended accounts and the daemon's own account. \
        Where the Matrix Authentication Service manages the accounts, deactivates them there, with `skip_erase` unless `erase` is true; it needs [homeservers.NAME.mas].";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::DeactivateAccount;
    const UNDO: Undo = Undo::Impossible(
        "Synapse deletes the password, the devices and the keys of a deactivated account, and reactivating it brings none of them back",
    );
    const MAX_CHANGES: Option<u32> = Some(20);
    const NEEDS: Needs = Needs {
        synapse: Version(1, 145),
        clock: true,
        without_mas_client: Some(
            "with the Matrix Authentication Service, deactivating an account only in Synapse does not last: configure [homeservers.NAME.mas] to deactivate accounts there",
        ),
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, _now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        Some(Self { keys: Keys::parse(table, errors)? })
    }

    fn topic(&self) -> Option<Topic> {
        Some(Topic::UnusedAccount)
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let erases = self.keys.erase;
        erases.then(|| ("erase", "the name and the avatar of these accounts are removed, and their messages are hidden from users who join later: this cannot be undone".to_owned())).into_iter().collect()
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let identity = context.identity().await?;
        if let Some(problem) = without_delegation(identity, context.reader) {
            return Err(PlanError::Refused(problem));
        }
        let due = self.due(context, identity, plan).await?;
        plan.some_up_to_date = true;
        if due.is_empty() {
            return Ok(());
        }
        let rooms_of_one = belongings::rooms_of_one(context.reader).await?;
        let total = due.len() as u64;
        let read = |(user_id, memory): (String, Memory)| {
            let rooms_of_one = &rooms_of_one;
            async move {
                let read = async {
                    let Some(account) = Account::read(context.reader, &user_id).await? else {
                        return Ok(None);
                    };
                    if let Some(exempt) = deactivation::exempt(&account, memory, identity) {
                        return Ok(Some(Err(exempt)));
                    }
                    let target =
                        belongings::describe(context.reader, &account, memory, rooms_of_one)
                            .await?;
                    Ok(Some(Ok(target)))
                };
                let found = read.await;
                (user_id, memory, found)
            }
        };
        let mut reading = stream::iter(due.into_iter().map(read)).buffered(context.concurrency);
        let (mut changes, mut done) = (Vec::<Box<dyn Change>>::new(), 0);
        let mut unreadable = Unreadable::default();
        while let Some((user_id, memory, found)) = reading.next().await {
            done += 1;
            context.reading("locked accounts", done, total);
            if found.is_ok() {
                unreadable.reset();
            }
            match found {
                Ok(None) => {}
                Ok(Some(Ok(target))) => {
                    let erase = self.keys.erase;
                    changes.push(Box::new(Deactivation { user_id, target, erase, memory }));
                }
                Ok(Some(Err(exempt))) => plan.leave_alone(exempt, || user_id),
                Err(error) if unreadable.is_only_this(&error) => {
                    plan.problem(Action::DeactivateAccount, &user_id, error.message());
                }
                Err(error) => return Err(error.into()),
            }
        }
        plan.work = Work::Changes(changes);
        Ok(())
    }
}

impl DeactivateAccounts {
    /// Returns the accounts that were locked long enough ago, by the list of accounts and what is remembered.
    async fn due(
        &self,
        context: &Context<'_>,
        identity: &Identity,
        plan: &mut Plan,
    ) -> Result<Vec<(String, Memory)>, PlanError> {
        let keys = &self.keys;
        let (mut due, mut first_due, mut matched) = (Vec::new(), None, Matched::default());
        let mut there = HashSet::new();
        let mut pages = context.reader.user_pages(None);
        while let Some(page) = pages.next().await? {
            let memories = recall(context, &page.rows).await;
            let known = context.facts.known();
            there.extend(
                page.rows
                    .iter()
                    .map(|row| &row.name)
                    .filter(|name| known.contains_key(*name))
                    .cloned(),
            );
            for row in page.rows {
                let memory = memories.get(&row.name).copied().unwrap_or_default();
                match keys.judge(&row, memory, (context.started_at, identity), &mut matched) {
                    ByRow::Ignore => {}
                    ByRow::Due => due.push((row.name, memory)),
                    ByRow::LeaveAlone(exempt, at) => {
                        first_due = first_due.into_iter().chain(at).min();
                        plan.leave_alone(exempt, || row.name);
                    }
                }
            }
        }
        let gone = context.facts.known().keys().filter(|name| !there.contains(*name));
        context.facts.forget(Topic::UnusedAccount, gone.cloned().collect()).await;
        for pattern in unmatched(&keys.users, &keys.except_users, &matched) {
            plan.notes.push(format!("`{pattern}` matched no account"));
        }
        plan.notes.extend(first_due.map(|due: Timestamp| {
            let locked_for = keys.locked_for;
            format!(
                "the next account will have been locked for {locked_for} on {}",
                format_time(due)
            )
        }));
        Ok(due)
    }
}

/// What the row of an account, and what is remembered of it, say.
enum ByRow {
    Ignore,
    /// With when it will be due.
    LeaveAlone(Exempt, Option<Timestamp>),
    /// It was locked long enough ago: everything else about it is read.
    Due,
}

impl Keys {
    fn judge(
        &self,
        row: &UserRow,
        memory: Memory,
        (now, identity): (Timestamp, &Identity),
        matched: &mut Matched,
    ) -> ByRow {
        let selection = select(&row.name, &self.users, &self.except_users, matched);
        if selection == Selection::Unmatched || !row.locked || row.deactivated {
            return ByRow::Ignore;
        }
        let Some(locked_at) = memory.locked_at() else {
            return ByRow::LeaveAlone(Exempt::LockedByOthers, None);
        };
        if selection == Selection::Excluded {
            return ByRow::LeaveAlone(Exempt::Excluded, None);
        }
        let exempt = exempt_by_row(row, identity).find(|exempt| *exempt != Exempt::Locked);
        if let Some(exempt) = exempt {
            return ByRow::LeaveAlone(exempt, None);
        }
        match locked_at + self.locked_for.as_chrono() {
            due if due > now => ByRow::LeaveAlone(Exempt::RecentlyLocked, Some(due)),
            _ => ByRow::Due,
        }
    }
}
