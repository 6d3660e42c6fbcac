//! `remove-external-ids`: removes the SSO identities of a provider from accounts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::TimeDelta;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toml::Spanned;
use toml::de::DeValue;

use super::job::{Context, Job, Needs, PlanError, ReadEstimate};
use super::portion::{Next, PortionProgress, in_order};
use crate::plan::change::{Change, ChangeResult, Check, Lane, Plan, Warning, Work};
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::{Action, Exempt};
use crate::plan::round::{Plans, Rounds};
use crate::synapse::{
    self, Cause, ExternalId, Position, Reader, User, UserPage, UserRow, Version, Writer,
};
use crate::values::clock::Timestamp;
use crate::values::glob::{Glob, Matched, Selection, UserGlob, select, unmatched};
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, Key, NonEmpty, Table, Value as ConfigValue, wrong_type};
use crate::values::string_enum::string_enum;
use crate::values::text::{format_count, format_number, invalid_value};

schema! {
    pub struct Keys {
        /// The providers of the identities to remove, as Synapse stores them: an OIDC provider is "oidc-" and its `idp_id`.
        pub providers: NonEmpty<Provider>,
        /// The accounts to process: "all", or one or more of "active", "deactivated", "locked" (locked or suspended).
        pub accounts: Accounts,
        /// Removes only identities that match one of these globs.
        pub external_ids: NonEmpty<Glob> = "[\"*\"]",
        /// Processes only these accounts.
        pub users: NonEmpty<UserGlob> = "[\"*\"]",
        /// Accounts that are never processed.
        pub except_users: Vec<UserGlob> = "[]",
        /// Includes the accounts of server admins.
        pub include_admins: bool = "false",
        /// Skips active accounts that would have no identity left.
        pub keep_last: bool = "false",
    }
}

/// Which ids are removed; shared by the plan and its changes, which check it again.
#[derive(Debug, Clone)]
struct Criteria {
    providers: Vec<Provider>,
    accounts: Accounts,
    external_ids: Vec<Glob>,
    include_admins: bool,
    keep_last: bool,
}

#[derive(Debug)]
pub struct RemoveExternalIds {
    criteria: std::sync::Arc<Criteria>,
    users: Vec<UserGlob>,
    except_users: Vec<UserGlob>,
}

impl Job for RemoveExternalIds {
    const KIND: &'static str = "remove-external-ids";
    const ABOUT: &'static str = "Removes the external ids (SSO identities) of given providers from accounts. A removed id can no longer be used to log in to its account, and can be linked to another one. \
        Keeps all other ids and never creates or reactivates an account. Skips the daemon's own account and, without include_admins, server admins. \
        Changes one account at a time, whatever the limits of the homeserver, because Synapse's workers miss some of several simultaneous changes. \
        Each change records the previous list. The list is read again right before the request that replaces it, and an id that was linked in the meantime is kept; \
        because Synapse cannot check that a list is unchanged when it replaces it, an id linked within these few milliseconds is lost. A user who has no password and loses their only id can no longer log in.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::RemoveExternalId;
    const ROUNDS: Option<Rounds> = Some(Rounds { entries: "accounts", plans: Plans::EachPortion });
    const NEEDS: Needs = Needs {
        synapse: Version(1, 46),
        clock: false,
        not_under_mas: Some(
            "the accounts of this homeserver and the links to their identities are stored in the Matrix Authentication Service: remove the links there (Admin API, upstream-oauth-links, or `mas-cli`); those in Synapse are not used",
        ),
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, _now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let Keys {
            providers,
            accounts,
            external_ids,
            users,
            except_users,
            include_admins,
            keep_last,
        } = Keys::parse(table, errors)?;
        let criteria = std::sync::Arc::new(Criteria {
            providers: providers.into_vec(),
            accounts,
            external_ids: external_ids.into_vec(),
            include_admins,
            keep_last,
        });
        Some(Self { criteria, users: users.into_vec(), except_users })
    }

    async fn read_estimate(&self, reader: &Reader) -> Result<Option<ReadEstimate>, synapse::Error> {
        if !self.users.iter().any(|glob| glob.0.text == "*") {
            return Ok(None);
        }
        let all = reader.count_accounts().await?;
        let accounts = &self.criteria.accounts;
        let items = match (accounts.may_include(true, false), accounts.may_include(false, false)) {
            (true, true) => all,
            (true, false) => all.saturating_sub(reader.count_usable_accounts().await?),
            (false, _) => reader.count_usable_accounts().await?,
        };
        Ok(Some(ReadEstimate { what: "accounts", items }))
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let account = &context.identity().await?.account;
        let findings = context.portion.findings.clone();
        let mut reading = Reading {
            job: self,
            context,
            own: &account.name,
            seen: findings.and_then(|found| serde_json::from_value(found).ok()).unwrap_or_default(),
            progress: PortionProgress::new(&context.portion),
            changes: Vec::new(),
            unreadable: 0,
        };
        if context.portion.from.is_none() {
            reading.seen.count_ids(account, &self.criteria, false);
        }
        let mut pages = context.reader.user_pages(context.portion.from.clone());
        while let Some(page) = pages.next().await? {
            if reading.page(page, pages.is_at_end(), plan).await? == Next::Stop {
                break;
            }
        }
        let Reading { seen, progress, changes, .. } = reading;
        if progress.is_complete() {
            self.note(plan, &seen);
        }
        plan.some_up_to_date = true;
        plan.portion = Some(progress.finish(serde_json::to_value(&seen).unwrap_or_default()));
        plan.work = Work::Changes(
            changes.into_iter().map(|change| Box::new(change) as Box<dyn Change>).collect(),
        );
        Ok(())
    }
}

/// A portion of the accounts while it is read.
struct Reading<'a> {
    job: &'a RemoveExternalIds,
    context: &'a Context<'a>,
    /// The account of the token, which is read at the start of a round.
    own: &'a str,
    seen: Observed,
    progress: PortionProgress<'a>,
    changes: Vec<Removal>,
    /// Accounts in a row that could not be read.
    unreadable: u32,
}

/// What is known of an account after its row and, where needed, its record was read.
enum Record {
    NotRead,
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
        let (job, context, own) = (self.job, self.context, self.own);
        let remembered = job.remembered(context, &rows).await;
        let last = rows.len().checked_sub(1).filter(|_| ends_list);
        let mut records = std::pin::pin!(in_order(rows, context, |row| {
            let remembered = remembered.get(&row.name);
            async move {
                let record = match remembered {
                    _ if !job.is_to_be_read(&row, own) => Record::NotRead,
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
        self.job.count_row(row, self.own, &mut self.seen, plan);
        let user = match record {
            Record::NotRead => return Ok(None),
            Record::Remembered(providers) => {
                self.seen.count_remembered(&providers);
                return Ok(None);
            }
            Record::Read(Err(error)) if error.is_not_found() => {
                self.seen.unread -= 1;
                return Ok(None);
            }
            Record::Read(Err(error))
                if self.unreadable < MAX_UNREADABLE && is_about_account(&error) =>
            {
                self.unreadable += 1;
                plan.problem(Action::RemoveExternalId, &row.name, error.message());
                return Ok(None);
            }
            Record::Read(user) => user?,
        };
        self.unreadable = 0;
        self.seen.unread -= 1;
        facts.extend(remembered(&user, self.context.started_at));
        Ok(self.job.removal(&user, &mut self.seen, plan))
    }
}

/// How long a deactivated account without ids of the job's providers is not read again.
const REMEMBERED_FOR: TimeDelta = TimeDelta::days(30);
/// Providers of an account that are remembered; with more it is read each time.
const MAX_PROVIDERS_REMEMBERED: usize = 20;

/// What is remembered of a deactivated account: when it was read in milliseconds, and the providers of its ids.
type DeactivatedIds = (i64, Vec<String>);

impl RemoveExternalIds {
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
                let held = providers.iter().any(|provider| self.criteria.names(provider));
                (is_fresh && !held).then_some((user_id, providers))
            })
            .collect()
    }

    /// Whether the row of the list does not rule out that the account is selected.
    fn is_to_be_read(&self, row: &UserRow, own: &str) -> bool {
        let selection = select(&row.name, &self.users, &self.except_users, &mut Matched::default());
        selection == Selection::Chosen && row.name != own && self.criteria.exempt(row).is_none()
    }

    /// Counts an account of the list, and why it is left alone where its row says so.
    fn count_row(&self, row: &UserRow, own: &str, seen: &mut Observed, plan: &mut Plan) {
        // The own account was read at the start.
        seen.unread += u64::from(row.name != own);
        let exempt = match select(&row.name, &self.users, &self.except_users, &mut seen.users) {
            Selection::Unmatched => None,
            Selection::Excluded => Some(Exempt::Excluded),
            Selection::Chosen if row.name == own => Some(Exempt::OwnAccount),
            Selection::Chosen => self.criteria.exempt(row),
        };
        if let Some(exempt) = exempt {
            plan.leave_alone(exempt, || row.name.clone());
        }
    }

    fn removal(&self, user: &User, seen: &mut Observed, plan: &mut Plan) -> Option<Removal> {
        let (gone, left) = self.criteria.split(user);
        seen.record(user, &self.criteria);
        if !self.criteria.selects(user) {
            plan.leave_alone(Exempt::NotSelected, || user.name.clone());
        } else if gone.is_empty() && self.criteria.is_kept_for_last(user, &left) {
            plan.leave_alone(Exempt::LastId, || user.name.clone());
        }
        let takes_last = left.is_empty() && AccountState::of(user) == AccountState::Active;
        let warning = takes_last.then_some(Warning::LastIds);
        let (user_id, criteria) = (user.name.clone(), self.criteria.clone());
        (!gone.is_empty()).then_some(Removal { user_id, gone, warning, criteria })
    }

    /// Notes which names matched nothing, which is only known once the round is complete.
    fn note(&self, plan: &mut Plan, seen: &Observed) {
        let missing: Vec<&str> = self
            .criteria
            .providers
            .iter()
            .map(|provider| provider.0.as_str())
            .filter(|provider| seen.held.get(*provider).is_none_or(|held| held.selected == 0))
            .collect();
        plan.notes.extend(seen.missing_notes(&missing));
        if missing.len() < self.criteria.providers.len() {
            let globs = self.criteria.external_ids.iter().enumerate();
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

/// Providers in a note, besides those of the configuration.
const MAX_PROVIDERS_NAMED: usize = 50;
/// After this many unreadable accounts in a row, the problem is not with the accounts.
const MAX_UNREADABLE: u32 = 5;

/// Whether Synapse cannot read this one account: its row is damaged, or has the name of another server.
fn is_about_account(error: &synapse::Error) -> bool {
    matches!(error.cause, Cause::Synapse { status: 400 | 500, .. }) && !error.is_about_token()
}

/// What the runs of a round found while reading the accounts, for the notes of the plan.
#[derive(Default, Serialize, Deserialize)]
struct Observed {
    users: Matched,
    /// The globs of `external_ids` that matched an id.
    ids: Matched,
    /// The accounts with ids of each provider.
    held: BTreeMap<String, Holders>,
    /// Accounts of which only the row in the list is known, which shows no ids.
    unread: u64,
}

/// The accounts with ids of a provider, among those that were read.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Holders {
    ids: u64,
    /// Accounts that the job selects.
    selected: u64,
    /// All other accounts.
    others: u64,
}

impl Observed {
    fn record(&mut self, user: &User, criteria: &Criteria) {
        self.count_ids(user, criteria, criteria.selects(user));
        for id in user.external_ids.iter().filter(|id| criteria.is_of_providers(id)) {
            for (index, glob) in criteria.external_ids.iter().enumerate() {
                if glob.matches(&id.external_id) {
                    self.ids.record(index);
                }
            }
        }
    }

    /// Counts the ids of an account that was read.
    fn count_ids(&mut self, user: &User, criteria: &Criteria, selected: bool) {
        let mut counted: Vec<&str> = Vec::new();
        for ExternalId { auth_provider, .. } in &user.external_ids {
            // A note names them all, and must not grow with whatever a response contains.
            let is_known = self.held.contains_key(auth_provider);
            if !is_known && self.held.len() >= MAX_PROVIDERS_NAMED && !criteria.names(auth_provider)
            {
                continue;
            }
            let name: String = auth_provider.chars().take(255).collect();
            let held = self.held.entry(name).or_default();
            held.ids += 1;
            if !counted.contains(&auth_provider.as_str()) {
                counted.push(auth_provider);
                *(if selected { &mut held.selected } else { &mut held.others }) += 1;
            }
        }
    }

    /// Counts a deactivated account as it was read in an earlier run.
    fn count_remembered(&mut self, providers: &[String]) {
        self.unread -= 1;
        for provider in providers {
            if self.held.contains_key(provider) || self.held.len() < MAX_PROVIDERS_NAMED {
                let held = self.held.entry(provider.clone()).or_default();
                held.ids += 1;
                held.selected += 1;
            }
        }
    }

    /// Returns notes on providers of which no selected account has an id; claims no more than what was read.
    fn missing_notes(&self, missing: &[&str]) -> Vec<String> {
        let (mut notes, mut unheld) = (Vec::new(), Vec::new());
        for provider in missing {
            match self.held.get(*provider) {
                Some(Holders { others, .. }) => notes.push(format!(
                    "`{provider}` held by no selected account; {}{} {} it",
                    if self.unread > 0 { "at least " } else { "" },
                    format_count(*others, "other account", "other accounts"),
                    if *others == 1 { "holds" } else { "hold" }
                )),
                None => unheld.push(format!("`{provider}`")),
            }
        }
        if !unheld.is_empty() {
            notes.push(match self.unread {
                0 => format!("{} held by nobody", unheld.join(", ")),
                unread => format!(
                    "{} held by no selected account; {} outside the selection {} not read",
                    unheld.join(", "),
                    format_count(unread, "account", "accounts"),
                    if unread == 1 { "was" } else { "were" }
                ),
            });
        }
        if !missing.is_empty() {
            let all: Vec<String> = self
                .held
                .iter()
                .map(|(provider, held)| format!("`{provider}` {}", format_number(held.ids)))
                .collect();
            notes.push(if all.is_empty() {
                "seen: no providers".to_owned()
            } else {
                format!("seen: {}", all.join(", "))
            });
        }
        notes
    }
}

impl Criteria {
    fn names(&self, provider: &str) -> bool {
        self.providers.iter().any(|named| named.0 == provider)
    }

    fn is_of_providers(&self, id: &ExternalId) -> bool {
        self.names(&id.auth_provider)
    }

    fn matches(&self, id: &ExternalId) -> bool {
        self.is_of_providers(id)
            && self.external_ids.iter().any(|glob| glob.matches(&id.external_id))
    }

    /// Why an account is not even read, as far as the list of accounts shows.
    fn exempt(&self, row: &UserRow) -> Option<Exempt> {
        if row.admin && !self.include_admins {
            Some(Exempt::Admin)
        } else if !self.accounts.may_include(row.deactivated, row.locked) {
            Some(Exempt::NotSelected)
        } else {
            None
        }
    }

    /// Whether only `keep_last` prevents the removal of ids from a selected account.
    fn is_kept_for_last(&self, user: &User, left: &[ExternalId]) -> bool {
        self.keep_last && left.iter().any(|id| self.matches(id)) && self.selects(user)
    }

    /// Whether the job selects the account, apart from `users` and `except_users`.
    fn selects(&self, user: &User) -> bool {
        self.accounts.include(AccountState::of(user)) && (self.include_admins || !user.admin)
    }

    /// Returns the current ids to remove and to keep; none to remove if the account is not (or no longer) selected.
    fn split(&self, user: &User) -> (Vec<ExternalId>, Vec<ExternalId>) {
        if !self.selects(user) {
            return (Vec::new(), user.external_ids.clone());
        }
        let (gone, left): (Vec<_>, Vec<_>) =
            user.external_ids.iter().cloned().partition(|id| self.matches(id));
        if self.keep_last && left.is_empty() && AccountState::of(user) == AccountState::Active {
            return (Vec::new(), gone);
        }
        (gone, left)
    }
}

/// The removal of one account's ids; several ids of one account go together, since Synapse replaces whole lists.
#[derive(Debug)]
struct Removal {
    user_id: String,
    gone: Vec<ExternalId>,
    warning: Option<Warning>,
    criteria: std::sync::Arc<Criteria>,
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
            let (mut gone, _) = self.criteria.split(&user);
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
            let (gone, left): (Vec<_>, Vec<_>) =
                current.iter().cloned().partition(|id| self.gone.contains(id));
            // Synapse (1.163) invalidates its cache of who owns an id only for ids that a PUT names: without naming them
            // again, a removed id could still be used to log in for up to half an hour.
            writer.swap_external_ids(&self.user_id, &current, &current).await?;
            let answered =
                writer.swap_external_ids(&self.user_id, &current, &left).await?.external_ids;
            // An id that a login linked after the list was sent is in the response as well, and stays.
            if gone.iter().any(|id| answered.contains(id))
                || left.iter().any(|id| !answered.contains(id))
            {
                return Err(synapse::Error::contradicted(
                    &self.user_id,
                    "Synapse returned a different list of external ids than it was sent: someone else changed the account at the same time",
                ));
            }
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

/// The name of a provider as Synapse stores it.
#[derive(Debug, Clone)]
pub struct Provider(String);

impl std::str::FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a provider must not be empty: expected a name such as \"oidc-google\" or \"saml\"".to_owned()),
            "oauth-delegated" => Err("`oauth-delegated` is how Synapse stores the link of an account to MAS: removing it would lock out its user".to_owned()),
            name => Ok(Self(name.to_owned())),
        }
    }
}

crate::values::schema::text_values! { Provider: "the name of a provider such as \"oidc-google\""; }

string_enum! {
    /// The state of an account; each has exactly one.
    pub enum AccountState {
        Active = "active",
        Deactivated = "deactivated",
        /// Locked or suspended.
        Locked = "locked",
    }
}

impl AccountState {
    fn of(user: &User) -> Self {
        match user {
            User { deactivated: true, .. } => Self::Deactivated,
            User { locked: true, .. } | User { suspended: true, .. } => Self::Locked,
            _ => Self::Active,
        }
    }
}

/// `"all"`, or a list of account states.
#[derive(Debug, Clone)]
pub struct Accounts(Vec<AccountState>);

impl Accounts {
    fn include(&self, state: AccountState) -> bool {
        self.0.contains(&state)
    }

    /// Whether an account may be selected, by its row in the list, which does not show suspension.
    fn may_include(&self, deactivated: bool, locked: bool) -> bool {
        match (deactivated, locked) {
            (true, _) => self.include(AccountState::Deactivated),
            (false, true) => self.include(AccountState::Locked),
            (false, false) => {
                self.include(AccountState::Active) || self.include(AccountState::Locked)
            }
        }
    }
}

impl ConfigValue for Accounts {
    const TYPE: &'static str = "\"all\", or one or more of \"active\", \"deactivated\", \"locked\"";

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) if text == "all" => Some(Self(AccountState::ALL.to_vec())),
            DeValue::String(text) => {
                if let Ok(state) = text.parse() {
                    Some(Self(vec![state]))
                } else {
                    let words = ["all", "active", "deactivated", "locked"];
                    errors.push(ConfigError::new(value.span(), invalid_value(text, &words)));
                    None
                }
            }
            DeValue::Array(items) if !items.is_empty() => {
                Vec::<AccountState>::parse(value, errors).map(Self)
            }
            DeValue::Array(_) => {
                errors.push(ConfigError::new(value.span(), format!("expected {}", Self::TYPE)));
                None
            }
            _ => {
                errors.push(wrong_type(value, Self::TYPE));
                None
            }
        }
    }
}
