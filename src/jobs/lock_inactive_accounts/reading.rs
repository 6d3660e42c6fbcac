//! Reads the accounts page by page, and decides who is told and who is locked.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;

use super::evidence::{Use, describe};
use super::except_rooms::ExceptedMembers;
use super::keys::Keys;
use super::lock::Lock;
use super::notice::Notice;
use crate::jobs::account::{Account, Unreadable, as_ghost, exempt_by_row, known_ghosts, last_seen};
use crate::jobs::job::{Context, PlanError};
use crate::jobs::portion::{Next, PortionProgress, in_order};
use crate::jobs::unused_account::{Memory, recall};
use crate::plan::change::{Change, Plan};
use crate::plan::facts::Fact;
use crate::plan::report::{Action, Exempt};
use crate::synapse::{self, Identity, Position, UserPage, UserRow};
use crate::values::clock::Timestamp;
use crate::values::glob::{Matched, Selection, select};

/// A portion of the accounts while it is read.
pub(super) struct Reading<'a> {
    pub keys: &'a Arc<Keys>,
    pub context: &'a Context<'a>,
    pub identity: &'a Identity,
    pub excepted: ExceptedMembers,
    /// The patterns that have matched an account in this round.
    pub matched: Matched,
    pub progress: PortionProgress<'a>,
    pub changes: Vec<Box<dyn Change>>,
    pub unreadable: Unreadable,
    /// When the next user who was told may be locked.
    pub first_due: Option<Timestamp>,
}

/// What the row of an account says.
#[derive(Clone, Copy)]
enum ByRow {
    /// It is in use, or the job is not about it.
    Ignore,
    LeaveAlone(Exempt),
    /// It may have to be locked: everything else about it is read.
    Candidate,
}

impl Reading<'_> {
    pub async fn page(
        &mut self,
        page: UserPage,
        ends_list: bool,
        plan: &mut Plan,
    ) -> Result<Next, PlanError> {
        let UserPage { rows, offset, total } = page;
        self.progress.set_total(total);
        let context = self.context;
        let memories = recall(context, &rows).await;
        // No use of them is known, so that each run would read them again.
        let ghosts = match self.keys.never_used_after {
            Some(_) => known_ghosts(context, &rows).await,
            None => HashMap::new(),
        };
        let last = rows.len().checked_sub(1).filter(|_| ends_list);
        let rows: Vec<(UserRow, ByRow)> = rows
            .into_iter()
            .map(|row| {
                let by_row = self.by_row(&row, &ghosts);
                (row, by_row)
            })
            .collect();
        let mut reads = std::pin::pin!(in_order(rows, context, |(row, by_row)| async move {
            let account = match by_row {
                ByRow::Candidate => Some(Account::read(context.reader, &row.name).await),
                ByRow::Ignore | ByRow::LeaveAlone(_) => None,
            };
            (row, by_row, account)
        }));
        let (mut facts, mut next) = (Vec::new(), Next::Read);
        while next == Next::Read
            && let Some((index, (row, by_row, account))) = reads.next().await
        {
            if let ByRow::LeaveAlone(exempt) = by_row {
                plan.leave_alone(exempt, || row.name.clone());
            }
            let memory = memories.get(&row.name).copied().unwrap_or_default();
            let change = match account {
                None => None,
                Some(account) => self.judge(&row, account, memory, plan, &mut facts)?,
            };
            let items: &[u64] = if change.is_some() { &[1] } else { &[] };
            self.changes.extend(change);
            let after = Position { after: row.name, offset: offset + index as u64 + 1 };
            next = self.progress.advance(after, items, Some(index) == last);
            let (read, total) = self.progress.figures();
            context.reading("accounts", read, total);
        }
        context.facts.store(facts).await;
        Ok(match next {
            Next::Read => self.progress.end_page(),
            Next::Stop => Next::Stop,
        })
    }

    fn by_row(&mut self, row: &UserRow, ghosts: &HashMap<String, String>) -> ByRow {
        let keys = self.keys;
        let selection = select(&row.name, &keys.users, &keys.except_users, &mut self.matched);
        let judged = keys.judge(row.last_seen_at, row.created_at, self.context.started_at);
        if selection == Selection::Unmatched || judged == Use::Recent {
            return ByRow::Ignore;
        }
        let excluded = selection == Selection::Excluded || self.excepted.contain(&row.name);
        excluded
            .then_some(Exempt::Excluded)
            .or_else(|| exempt_by_row(row, self.identity).next())
            .or_else(|| ghosts.contains_key(&row.name).then_some(Exempt::Bridge))
            .or_else(|| (judged == Use::Unknown).then_some(Exempt::NeverUsed))
            .map_or(ByRow::Candidate, ByRow::LeaveAlone)
    }

    /// Returns what to do with an account of which everything was read.
    fn judge(
        &mut self,
        row: &UserRow,
        account: Result<Option<Account>, synapse::Error>,
        memory: Memory,
        plan: &mut Plan,
        facts: &mut Vec<Fact>,
    ) -> Result<Option<Box<dyn Change>>, PlanError> {
        let account = match account {
            Ok(Some(account)) => account,
            Ok(None) => return Ok(None),
            Err(error) if self.unreadable.is_only_this(&error) => {
                plan.problem(Action::LockAccount, &row.name, error.message());
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        self.unreadable.reset();
        let user = &account.user;
        facts.extend(as_ghost(user));
        if let Some(exempt) = account.exempt(self.identity).next() {
            plan.leave_alone(exempt, || user.name.clone());
            return Ok(None);
        }
        let last_seen_at = last_seen([row.last_seen_at, account.last_seen_at]);
        let created_at = user.created_at.or(row.created_at);
        let memory = match memory.came_back(last_seen_at) {
            // At once: Synapse may have forgotten the use when the account is unused for long again.
            true => {
                let memory = Memory { told_ms: None, ..memory };
                facts.push(memory.fact(&user.name));
                memory
            }
            false => memory,
        };
        let now = self.context.started_at;
        if self.keys.judge(last_seen_at, created_at, now) != Use::LongAgo {
            return Ok(None);
        }
        let target = describe(&user.name, last_seen_at, created_at);
        let (user_id, keys, as_of) = (user.name.clone(), Arc::clone(self.keys), now);
        let due = memory.told_at().map(|told| told + self.keys.notice_before.as_chrono());
        Ok(match (&self.keys.notice, due) {
            (Some(text), None) => {
                let text = text.clone();
                Some(Box::new(Notice { user_id, target, text, last_seen_at, as_of, keys }))
            }
            (Some(_), Some(due)) if due > now => {
                self.first_due = self.first_due.into_iter().chain([due]).min();
                plan.leave_alone(Exempt::Notified, || target);
                None
            }
            _ => Some(Box::new(Lock { user_id, target, memory, as_of, keys })),
        })
    }
}
