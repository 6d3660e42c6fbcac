//! Plans the deletion of devices on classic Synapse, account by account.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;

use super::deletion::Deletion;
use super::judging::{Device, Judged, Owner, Rules};
use super::keys::Keys;
use crate::jobs::account::{as_ghost, exempt_by_record, exempt_by_row, known_ghosts};
use crate::jobs::job::{Context, PlanError};
use crate::jobs::portion::{Next, PortionProgress, in_order};
use crate::plan::change::{Change, Plan, Work};
use crate::plan::facts::Fact;
use crate::plan::report::{Action, Exempt};
use crate::synapse::{Error, Identity, Position, User, UserPage, UserRow, Version};
use crate::values::glob::{Matched, Selection, select, unmatched};

/// Adds the stale devices of the portion's accounts to the plan.
pub(super) async fn plan(
    keys: &Keys,
    rules: &Arc<Rules>,
    context: &Context<'_>,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let findings = context.portion.findings.clone();
    let mut reading = Reading {
        keys,
        rules,
        context,
        identity: context.identity().await?,
        matched: findings.and_then(|found| serde_json::from_value(found).ok()).unwrap_or_default(),
        progress: PortionProgress::new(&context.portion),
        changes: Vec::new(),
    };
    let mut pages = context.reader.user_pages(context.portion.from.clone());
    while let Some(page) = pages.next().await? {
        if reading.page(page, pages.is_at_end(), plan).await? == Next::Stop {
            break;
        }
    }
    let Reading { matched, progress, changes, .. } = reading;
    if progress.is_complete() {
        for pattern in unmatched(&keys.users, &keys.except_users, &matched) {
            plan.notes.push(format!("`{pattern}` matched no account"));
        }
    }
    plan.some_up_to_date = true;
    plan.portion = Some(progress.finish(serde_json::to_value(&matched).unwrap_or_default()));
    plan.work = Work::Changes(changes);
    Ok(())
}

/// A portion of the accounts while it is read.
struct Reading<'a> {
    keys: &'a Keys,
    rules: &'a Arc<Rules>,
    context: &'a Context<'a>,
    identity: &'a Identity,
    /// The patterns that have matched an account in this round.
    matched: Matched,
    progress: PortionProgress<'a>,
    changes: Vec<Box<dyn Change>>,
}

/// What is known of an account after its devices were read, where its row does not rule out that some are stale.
enum Record {
    NotRead,
    /// No device is stale.
    Read(Judged),
    /// Some are; the account itself was read as well.
    Stale(Judged, Box<User>),
}

impl Reading<'_> {
    async fn page(
        &mut self,
        page: UserPage,
        ends_list: bool,
        plan: &mut Plan,
    ) -> Result<Next, PlanError> {
        let UserPage { rows, offset, total } = page;
        self.progress.set_total(total);
        let ghosts = known_ghosts(self.context, &rows).await;
        let last = rows.len().checked_sub(1).filter(|_| ends_list);
        let (rules, context, own) = (self.rules, self.context, &self.identity.account.name);
        let owner = |user_id: &str| if user_id == own { Owner::Own } else { Owner::Other };
        let judged = rows.into_iter().map(|row| (self.judge_row(&row, &ghosts), row)).collect();
        let mut records = std::pin::pin!(in_order(judged, context, |(verdict, row)| async move {
            let record = match verdict {
                RowVerdict::Read => read(context, rules, owner(&row.name), &row.name).await,
                _ => Ok(Record::NotRead),
            };
            (verdict, row, record)
        }));
        let (mut found, mut next) = (Vec::new(), Next::Read);
        while next == Next::Read
            && let Some((index, (verdict, row, record))) = records.next().await
        {
            if let RowVerdict::LeaveAlone(reason) = verdict {
                plan.leave_alone(reason, || row.name.clone());
            }
            let deletion = self.account((&row.name, owner(&row.name)), record, plan, &mut found)?;
            let items = deletion.as_ref().map(Change::count);
            self.changes.extend(deletion.map(|deletion| Box::new(deletion) as Box<dyn Change>));
            let after = Position { after: row.name, offset: offset + index as u64 + 1 };
            next = self.progress.advance(after, items.as_slice(), Some(index) == last);
            let (read, total) = self.progress.figures();
            context.reading("accounts", read, total);
        }
        context.facts.store(found).await;
        Ok(match next {
            Next::Read => self.progress.end_page(),
            Next::Stop => Next::Stop,
        })
    }

    /// Decides by the row of the list, and by what is known of accounts of bridges.
    fn judge_row(&mut self, row: &UserRow, ghosts: &HashMap<String, String>) -> RowVerdict {
        let Keys { users, except_users, .. } = self.keys;
        match select(&row.name, users, except_users, &mut self.matched) {
            Selection::Unmatched => return RowVerdict::Ignore,
            Selection::Excluded => return RowVerdict::LeaveAlone(Exempt::Excluded),
            Selection::Chosen => {}
        }
        if let Some(reason) = exempt_by_row(row, self.identity).find(|reason| leaves_alone(*reason))
        {
            return RowVerdict::LeaveAlone(reason);
        }
        if ghosts.contains_key(&row.name) {
            return RowVerdict::LeaveAlone(Exempt::Bridge);
        }
        let unused_since = self.rules.unused_since;
        // Neither can have a device that was used, and not since.
        let is_new = row.created_at.is_some_and(|at| at > unused_since);
        let was_never_seen =
            row.last_seen_at.is_none() && self.identity.version >= LAST_SEEN_IS_RIGHT;
        match is_new || was_never_seen || row.deactivated {
            true => RowVerdict::Ignore,
            false => RowVerdict::Read,
        }
    }

    /// Returns the change to make to an account.
    fn account(
        &self,
        (user_id, owner): (&str, Owner),
        record: Result<Record, Error>,
        plan: &mut Plan,
        found: &mut Vec<Fact>,
    ) -> Result<Option<Deletion>, PlanError> {
        let judged = match record {
            Ok(Record::NotRead) => return Ok(None),
            Ok(Record::Read(judged)) => judged,
            Ok(Record::Stale(judged, user)) => {
                found.extend(as_ghost(&user));
                if let Some(reason) =
                    exempt_by_record(&user, self.identity).find(|reason| leaves_alone(*reason))
                {
                    plan.leave_alone(reason, || user_id.to_owned());
                    return Ok(None);
                }
                judged
            }
            // It was removed meanwhile.
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if error.is_about_target() => {
                plan.problem(Action::DeleteDevice, user_id, error.message());
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        for (reason, device) in &judged.left_alone {
            plan.leave_alone(*reason, || format!("{user_id} -> {}", device.describe()));
        }
        let rules = Arc::clone(self.rules);
        Ok(Deletion::new(user_id.to_owned(), owner, judged, rules))
    }
}

/// What to do with an account, by its row in the list.
#[derive(Debug, Clone, Copy)]
enum RowVerdict {
    Read,
    LeaveAlone(Exempt),
    Ignore,
}

/// Before, the list showed for some accounts that they were never seen.
const LAST_SEEN_IS_RIGHT: Version = Version(1, 140);

/// Whether an account's devices are left alone for that reason.
///
/// A deactivated account has none.
fn leaves_alone(reason: Exempt) -> bool {
    matches!(reason, Exempt::Locked | Exempt::Bridge)
}

/// Reads the devices of an account and, if some are stale, the account itself.
async fn read(
    context: &Context<'_>,
    rules: &Rules,
    owner: Owner,
    user_id: &str,
) -> Result<Record, Error> {
    let devices = context.reader.devices(user_id).await?;
    let judged = rules.judge(owner, devices.into_iter().map(Device::from));
    if judged.stale.is_empty() {
        return Ok(Record::Read(judged));
    }
    let user = context.reader.user(user_id).await?;
    Ok(Record::Stale(judged, Box::new(user)))
}
