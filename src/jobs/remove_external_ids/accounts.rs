//! Plans the removal of ids on classic Synapse, account by account.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use chrono::TimeDelta;
use futures_util::StreamExt;
use serde_json::json;

use super::super::account::Unreadable;
use super::super::account_state::AccountState;
use super::super::job::{Context, PlanError};
use super::super::portion::{Next, PortionProgress, in_order};
use super::deactivated::recently_deactivated;
use super::keys::Keys;
use super::observed::Observed;
use super::removal::Removal;
use crate::plan::change::{Change, Plan, Warning, Work};
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::{Action, Exempt};
use crate::synapse::{self, Position, User, UserPage, UserRow};
use crate::values::clock::Timestamp;
use crate::values::glob::{Matched, Selection, select, unmatched};

/// Adds what to remove from the accounts of the portion to the plan.
pub(super) async fn plan(
    keys: &Arc<Keys>,
    context: &Context<'_>,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let account = &context.identity().await?.account;
    let findings = context.portion.findings.clone();
    let mut reading = Reading {
        keys,
        context,
        own: &account.name,
        seen: findings.and_then(|found| serde_json::from_value(found).ok()).unwrap_or_default(),
        progress: PortionProgress::new(&context.portion),
        changes: Vec::new(),
        unreadable: Unreadable::default(),
    };
    if context.portion.from.is_none() {
        reading.seen.count_ids(account, keys, false);
    }
    let mut pages = context.reader.user_pages(context.portion.from.clone());
    while let Some(page) = pages.next().await? {
        if reading.page(page, pages.is_at_end(), plan).await? == Next::Stop {
            break;
        }
    }
    let Reading { seen, progress, changes, .. } = reading;
    if progress.is_complete() {
        keys.note(plan, &seen);
    }
    plan.some_up_to_date = true;
    plan.portion = Some(progress.finish(serde_json::to_value(&seen).unwrap_or_default()));
    plan.work = Work::Changes(
        changes.into_iter().map(|change| Box::new(change) as Box<dyn Change>).collect(),
    );
    Ok(())
}

/// A portion of the accounts while it is read.
struct Reading<'a> {
    keys: &'a Arc<Keys>,
    context: &'a Context<'a>,
    /// The account of the token, which is read at the start of a round.
    own: &'a str,
    seen: Observed,
    progress: PortionProgress<'a>,
    changes: Vec<Removal>,
    unreadable: Unreadable,
}

/// What is known of an account after its row and, where needed, its record was read.
enum Record {
    NotRead,
    /// A deactivated account that was not read, because it has not been seen so for long.
    RecentlyDeactivated,
    /// The providers of a deactivated account's ids, as it was read in an earlier run.
    Remembered(Vec<String>),
    Read(Result<User, synapse::Error>),
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
        let (keys, context, own) = (self.keys, self.context, self.own);
        let remembered = keys.remembered(context, &rows).await;
        let recent = recently_deactivated(keys, context, &rows).await;
        let last = rows.len().checked_sub(1).filter(|_| ends_list);
        let mut records = std::pin::pin!(in_order(rows, context, |row| {
            let (remembered, is_recent) = (remembered.get(&row.name), recent.contains(&row.name));
            async move {
                let record = match remembered {
                    _ if !keys.is_to_be_read(&row, own) => Record::NotRead,
                    _ if is_recent => Record::RecentlyDeactivated,
                    Some(providers) if row.deactivated => Record::Remembered(providers.clone()),
                    _ => Record::Read(context.reader.user(&row.name).await),
                };
                (row, record)
            }
        }));
        let mut facts = Vec::new();
        let mut next = Next::Read;
        while next == Next::Read
            && let Some((index, (row, record))) = records.next().await
        {
            let removal = self.account(&row, record, plan, &mut facts)?;
            let items = removal.as_ref().map(Change::count);
            self.changes.extend(removal);
            let after = Position { after: row.name, offset: offset + index as u64 + 1 };
            next = self.progress.advance(after, items.as_slice(), Some(index) == last);
            let (read, total) = self.progress.figures();
            context.reading("accounts", read, total);
        }
        context.facts.store(facts).await;
        Ok(match next {
            Next::Read => self.progress.end_page(),
            Next::Stop => Next::Stop,
        })
    }

    /// Returns the change to make to an account.
    fn account(
        &mut self,
        row: &UserRow,
        record: Record,
        plan: &mut Plan,
        facts: &mut Vec<Fact>,
    ) -> Result<Option<Removal>, PlanError> {
        self.keys.count_row(row, self.own, &mut self.seen, plan);
        let user = match record {
            Record::NotRead => return Ok(None),
            Record::RecentlyDeactivated => {
                plan.leave_alone(Exempt::RecentlyDeactivated, || row.name.clone());
                return Ok(None);
            }
            Record::Remembered(providers) => {
                self.seen.count_remembered(&providers);
                return Ok(None);
            }
            Record::Read(Err(error)) if error.is_not_found() => {
                self.seen.unread -= 1;
                return Ok(None);
            }
            Record::Read(Err(error)) if self.unreadable.is_only_this(&error) => {
                plan.problem(Action::RemoveExternalId, &row.name, error.message());
                return Ok(None);
            }
            Record::Read(user) => user?,
        };
        self.unreadable.reset();
        self.seen.unread -= 1;
        facts.extend(remembered(&user, self.context.started_at));
        if self.keys.is_deactivated_since(row.deactivated, &user) {
            plan.leave_alone(Exempt::RecentlyDeactivated, || user.name.clone());
            return Ok(None);
        }
        Ok(self.keys.removal(&user, &mut self.seen, plan))
    }
}

/// How long a deactivated account without ids of the job's providers is not read again.
const REMEMBERED_FOR: TimeDelta = TimeDelta::days(30);
/// Providers of an account that are remembered; with more it is read each time.
const MAX_PROVIDERS_REMEMBERED: usize = 20;

/// What is remembered of a deactivated account: when it was read in milliseconds, and the providers of its ids.
type DeactivatedIds = (i64, Vec<String>);

impl Keys {
    /// Returns the providers of deactivated accounts that were read not long ago and had no id of the job's providers.
    async fn remembered(
        &self,
        context: &Context<'_>,
        rows: &[UserRow],
    ) -> HashMap<String, Vec<String>> {
        let mut names = rows.iter().filter(|row| row.deactivated).map(|row| row.name.as_str());
        // A person who wants everything to be read gets that.
        let remembers = context.portion.until.is_some();
        let Some(first) = names.next().filter(|_| remembers) else { return HashMap::new() };
        let names = names.fold((first, first), |(min, max), name| (min.min(name), max.max(name)));
        let facts = context.facts.between(Topic::DeactivatedIds, names.0, names.1).await;
        let oldest = (context.started_at - REMEMBERED_FOR).timestamp_millis();
        facts
            .into_iter()
            .filter_map(|(user_id, value)| {
                let (read_at, providers): DeactivatedIds = serde_json::from_str(&value).ok()?;
                let is_fresh = read_at > oldest && read_at <= context.started_at.timestamp_millis();
                let held = providers.iter().any(|provider| self.names(provider));
                (is_fresh && !held).then_some((user_id, providers))
            })
            .collect()
    }

    /// Whether the row of the list does not rule out that the account is selected.
    fn is_to_be_read(&self, row: &UserRow, own: &str) -> bool {
        let selection = select(&row.name, &self.users, &self.except_users, &mut Matched::default());
        selection == Selection::Chosen && row.name != own && self.exempt(row).is_none()
    }

    /// Counts an account of the list, and why it is left alone where its row says so.
    fn count_row(&self, row: &UserRow, own: &str, seen: &mut Observed, plan: &mut Plan) {
        // The own account was read at the start.
        seen.unread += u64::from(row.name != own);
        let exempt = match select(&row.name, &self.users, &self.except_users, &mut seen.users) {
            Selection::Unmatched => None,
            Selection::Excluded => Some(Exempt::Excluded),
            Selection::Chosen if row.name == own => Some(Exempt::OwnAccount),
            Selection::Chosen => self.exempt(row),
        };
        if let Some(exempt) = exempt {
            plan.leave_alone(exempt, || row.name.clone());
        }
    }

    fn removal(
        self: &Arc<Self>,
        user: &User,
        seen: &mut Observed,
        plan: &mut Plan,
    ) -> Option<Removal> {
        let (gone, left) = self.split(user);
        seen.record(user, self);
        if !self.selects(user) {
            plan.leave_alone(Exempt::NotSelected, || user.name.clone());
        } else if gone.is_empty() && self.is_kept_for_last(user, &left) {
            plan.leave_alone(Exempt::LastId, || user.name.clone());
        }
        let takes_last = left.is_empty() && AccountState::of(user) == AccountState::Active;
        let warning = takes_last.then_some(Warning::LastIds);
        let (user_id, keys) = (user.name.clone(), Arc::clone(self));
        let was_deactivated = user.deactivated;
        (!gone.is_empty()).then_some(Removal { user_id, gone, was_deactivated, warning, keys })
    }

    /// Notes which names matched nothing, which is only known once the round is complete.
    fn note(&self, plan: &mut Plan, seen: &Observed) {
        let missing: Vec<&str> = self
            .providers
            .iter()
            .map(|provider| provider.0.as_str())
            .filter(|provider| seen.held.get(*provider).is_none_or(|held| held.selected == 0))
            .collect();
        plan.notes.extend(seen.missing_notes(&missing));
        if missing.len() < self.providers.len() {
            let globs = self.external_ids.iter().enumerate();
            for (_, glob) in globs.filter(|(index, _)| !seen.ids.contains(*index)) {
                plan.notes.push(format!("`{}` matched no id of these providers", glob.text));
            }
        }
        for pattern in unmatched(&self.users, &self.except_users, &seen.users) {
            plan.notes.push(format!("`{pattern}` matched no account"));
        }
    }
}

/// Returns what to remember of an account that was read.
fn remembered(user: &User, read_at: Timestamp) -> Option<Fact> {
    let providers: BTreeSet<&str> =
        user.external_ids.iter().map(|id| id.auth_provider.as_str()).collect();
    let is_short = providers.iter().all(|provider| provider.len() <= 255);
    let remember = user.deactivated && is_short && providers.len() <= MAX_PROVIDERS_REMEMBERED;
    remember.then(|| Fact {
        topic: Topic::DeactivatedIds,
        key: user.name.clone(),
        value: json!([read_at.timestamp_millis(), providers]).to_string(),
    })
}
