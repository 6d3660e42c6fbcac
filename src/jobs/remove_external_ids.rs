//! `remove-external-ids`: takes SSO identities of a provider from accounts.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use serde_json::Value;
use toml::Spanned;
use toml::de::DeValue;

use crate::jobs::job::{Context, Job, Needs, PlanError, ReadEstimate};
use crate::plan::change::{Change, ChangeResult, Check, Lane, Plan, Work};
use crate::plan::report::{Action, Exempt};
use crate::synapse::{self, Cause, ExternalId, Reader, User, UserRow, Version, Writer};
use crate::values::clock::Timestamp;
use crate::values::glob::{Glob, Matched, Selection, UserGlob, select, unmatched};
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, Key, NonEmpty, Table, Value as ConfigValue, wrong_type};
use crate::values::string_enum::string_enum;
use crate::values::text::{format_count, format_number, invalid_value};

schema! {
    pub struct Keys {
        /// Identities of these providers, named as Synapse stores them: an OIDC provider is "oidc-" and its `idp_id`.
        pub providers: NonEmpty<Provider>,
        /// Which accounts: "all", or one or more of "active", "deactivated", "locked" (locked or suspended).
        pub accounts: Accounts,
        /// Only identities that one of these globs matches.
        pub external_ids: NonEmpty<Glob> = "[\"*\"]",
        /// Only these accounts.
        pub users: NonEmpty<UserGlob> = "[\"*\"]",
        /// Never these accounts.
        pub except_users: Vec<UserGlob> = "[]",
        /// Also the accounts of server admins.
        pub include_admins: bool = "false",
        /// Leaves an active account alone that would have no identity left.
        pub keep_last: bool = "false",
    }
}

/// Who is meant, shared by the plan and by each of its changes, which looks again.
#[derive(Debug, Clone)]
struct Choice {
    providers: Vec<Provider>,
    accounts: Accounts,
    external_ids: Vec<Glob>,
    include_admins: bool,
    keep_last: bool,
}

#[derive(Debug)]
pub struct RemoveExternalIds {
    choice: std::sync::Arc<Choice>,
    users: Vec<UserGlob>,
    except_users: Vec<UserGlob>,
}

impl Job for RemoveExternalIds {
    const KIND: &'static str = "remove-external-ids";
    const ABOUT: &'static str = "Removes the external ids (SSO identities) of given providers from accounts, so that they no longer log in there, and may belong to another account. \
        Keeps every other id, never creates an account and never reactivates one; the daemon's own account, and without include_admins every server admin, is left alone. \
        Changes one account at a time, whatever the limits of the homeserver, since workers of Synapse miss some of several changes at once. \
        The list as it was is recorded with each change. It is read again right before each request that replaces it, and an id that a login linked meanwhile is kept; \
        Synapse cannot replace a list only if it is unchanged, so that an id linked in the few milliseconds in between is lost. Whoever loses the only id and has no password cannot log in any more.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::RemoveExternalId;
    const NEEDS: Needs = Needs {
        synapse: Version(1, 46),
        clock: false,
        not_under_mas: Some(
            "accounts of this homeserver live in the Matrix Authentication Service, and so do the links to their identities: remove them there (its Admin API, upstream-oauth-links, or `mas-cli`), what Synapse holds is not used",
        ),
        plans_offline: false,
        media: false,
    };

    fn read(
        table: &Table<'_, '_>,
        _now: Timestamp,
        mistakes: &mut Vec<ConfigError>,
    ) -> Option<Self> {
        let Keys {
            providers,
            accounts,
            external_ids,
            users,
            except_users,
            include_admins,
            keep_last,
        } = Keys::parse(table, mistakes)?;
        let choice = std::sync::Arc::new(Choice {
            providers: providers.into_vec(),
            accounts,
            external_ids: external_ids.into_vec(),
            include_admins,
            keep_last,
        });
        Some(Self { choice, users: users.into_vec(), except_users })
    }

    async fn read_estimate(&self, reader: &Reader) -> Result<Option<ReadEstimate>, synapse::Error> {
        if !self.users.iter().any(|glob| glob.0.text == "*") {
            return Ok(None);
        }
        let all = reader.count_accounts().await?;
        let accounts = &self.choice.accounts;
        let items = match (accounts.may_hold(true, false), accounts.may_hold(false, false)) {
            (true, true) => all,
            (true, false) => all.saturating_sub(reader.count_usable_accounts().await?),
            (false, _) => reader.count_usable_accounts().await?,
        };
        Ok(Some(ReadEstimate { what: "accounts", items }))
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let account = &context.identity().await?.account;
        let own = account.name.clone();
        let mut seen = Seen {
            users: Matched::default(),
            unmatched: self.choice.external_ids.iter().collect(),
            held: BTreeMap::new(),
            unread: 0,
            last_ones: 0,
        };
        seen.hold(account, &self.choice, false);
        let (mut changes, mut read, mut total, mut broken) = (Vec::new(), 0, 0, 0);
        let mut pages = std::pin::pin!(context.reader.user_pages());
        while let Some(page) = pages.next().await {
            let (rows, all) = page?;
            let listed = rows.len() as u64;
            (total, read) = (all, read + listed);
            // The own account was read to begin with.
            seen.unread += rows.iter().filter(|row| row.name != own).count() as u64;
            let rows: Vec<_> = rows
                .into_iter()
                .filter(|row| {
                    let exempt =
                        match select(&row.name, &self.users, &self.except_users, &mut seen.users) {
                            Selection::Unmatched => return false,
                            Selection::Excluded => Some(Exempt::Excluded),
                            Selection::Chosen if row.name == own => Some(Exempt::OwnAccount),
                            Selection::Chosen => self.choice.exempt(row),
                        };
                    if let Some(exempt) = exempt {
                        plan.leave_alone(exempt, || row.name.clone());
                    }
                    exempt.is_none()
                })
                .collect();
            let mut done = read - rows.len() as u64;
            if read == listed {
                let items = share(all, rows.len() as u64, listed);
                context.expect_reading(ReadEstimate { what: "accounts", items });
            }
            let mut answers = stream::iter(rows)
                .map(|row| async move {
                    let user = context.reader.user(&row.name).await;
                    (row.name, user)
                })
                .buffer_unordered(context.concurrency);
            while let Some((user_id, user)) = answers.next().await {
                done += 1;
                context.reading("accounts", done, total);
                let user = match user {
                    Err(error) if error.is_not_found() => {
                        seen.unread -= 1;
                        continue;
                    }
                    Err(error) if broken < BROKEN && is_about_account(&error) => {
                        broken += 1;
                        plan.problem(Action::RemoveExternalId, &user_id, error.message());
                        continue;
                    }
                    user => user?,
                };
                broken = 0;
                seen.unread -= 1;
                let (gone, left) = self.choice.split(&user);
                seen.look(&user, &self.choice, &gone, &left);
                if !self.choice.selects(&user) {
                    plan.leave_alone(Exempt::NotSelected, || user.name.clone());
                } else if gone.is_empty() && self.choice.is_kept_for_last(&user, &left) {
                    plan.leave_alone(Exempt::LastId, || user.name.clone());
                }
                if !gone.is_empty() {
                    changes.push(Removal { user_id, gone, choice: self.choice.clone() });
                }
            }
        }
        context.reading("accounts", total, total);
        changes.sort_unstable_by(|a, b| a.user_id.cmp(&b.user_id));
        self.note(plan, &seen);
        plan.some_up_to_date = true;
        plan.work = Work::Changes(
            changes.into_iter().map(|change| Box::new(change) as Box<dyn Change>).collect(),
        );
        Ok(())
    }
}

impl RemoveExternalIds {
    fn note(&self, plan: &mut Plan, seen: &Seen<'_>) {
        let Seen { users, unmatched: unmatched_ids, held: _, unread: _, last_ones } = seen;
        if *last_ones > 0 {
            let are = match last_ones {
                1 => "is the only one of an active account, which then needs",
                _ => "are the only ones of active accounts, which then need",
            };
            plan.notes.push(format!(
                "{} of the planned ids {are} a password or another identity to log in (`keep_last = true` leaves those alone)",
                format_number(*last_ones)
            ));
        }
        let missing: Vec<&str> = self
            .choice
            .providers
            .iter()
            .map(|provider| provider.0.as_str())
            .filter(|provider| seen.held.get(*provider).is_none_or(|held| held.selected == 0))
            .collect();
        plan.notes.extend(seen.missing(&missing));
        if missing.len() < self.choice.providers.len() {
            for glob in unmatched_ids {
                plan.notes.push(format!("`{}` matched no id of these providers", glob.text));
            }
        }
        for pattern in unmatched(&self.users, &self.except_users, users) {
            plan.notes.push(format!("`{pattern}` matched no account"));
        }
    }
}

/// Providers that a note names at most, beside those that were asked for.
const MOST_PROVIDERS: usize = 50;
/// How many of all accounts are to be read, by the first page: nearly all counts as all.
fn share(all: u64, selected: u64, listed: u64) -> u64 {
    if selected * 100 >= listed * 95 {
        return all;
    }
    let estimated = u128::from(all) * u128::from(selected) / u128::from(listed.max(1));
    u64::try_from(estimated).unwrap_or(all)
}

/// So many accounts in a row that cannot be read are no longer about themselves.
const BROKEN: u32 = 5;

/// Whether Synapse cannot read this one account: a broken row, or one of another server's name.
fn is_about_account(error: &synapse::Error) -> bool {
    matches!(error.cause, Cause::Synapse { status: 400 | 500, .. }) && !error.is_about_token()
}

/// What the reading of all accounts shows besides what is to be changed.
struct Seen<'a> {
    users: Matched,
    /// The globs over external ids that matched none so far.
    unmatched: Vec<&'a Glob>,
    /// Who holds ids of each provider.
    held: BTreeMap<String, Holders>,
    /// Accounts that were only seen in the list, which shows no ids.
    unread: u64,
    /// Ids that go and leave an active account without any.
    last_ones: u64,
}

/// Who holds ids of a provider, among the accounts that were read.
#[derive(Debug, Default)]
struct Holders {
    ids: u64,
    /// Accounts that the job is about.
    selected: u64,
    /// All other accounts.
    others: u64,
}

impl Seen<'_> {
    fn look(&mut self, user: &User, choice: &Choice, gone: &[ExternalId], left: &[ExternalId]) {
        self.hold(user, choice, choice.selects(user));
        for id in &user.external_ids {
            if choice.is_of_providers(id) {
                self.unmatched.retain(|glob| !glob.matches(&id.external_id));
            }
        }
        if left.is_empty() && Class::of(user) == Class::Active {
            self.last_ones += gone.len() as u64;
        }
    }

    /// Counts the ids of an account that was read.
    fn hold(&mut self, user: &User, choice: &Choice, selected: bool) {
        let mut counted: Vec<&str> = Vec::new();
        for ExternalId { auth_provider, .. } in &user.external_ids {
            // A note names them all: few are configured, and whatever else is in the answers must not fill it.
            let is_known = self.held.contains_key(auth_provider);
            if !is_known && self.held.len() >= MOST_PROVIDERS && !choice.names(auth_provider) {
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

    /// Says of providers that no selected account holds no more than what was read.
    fn missing(&self, missing: &[&str]) -> Vec<String> {
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
                "seen: no provider at all".to_owned()
            } else {
                format!("seen: {}", all.join(", "))
            });
        }
        notes
    }
}

impl Choice {
    fn names(&self, provider: &str) -> bool {
        self.providers.iter().any(|named| named.0 == provider)
    }

    fn is_of_providers(&self, id: &ExternalId) -> bool {
        self.names(&id.auth_provider)
    }

    fn is_meant(&self, id: &ExternalId) -> bool {
        self.is_of_providers(id)
            && self.external_ids.iter().any(|glob| glob.matches(&id.external_id))
    }

    /// Why an account is not even read, as far as the list of accounts shows.
    fn exempt(&self, row: &UserRow) -> Option<Exempt> {
        match () {
            () if row.admin && !self.include_admins => Some(Exempt::Admin),
            () if !self.accounts.may_hold(row.deactivated, row.locked) => Some(Exempt::NotSelected),
            () => None,
        }
    }

    /// Whether `keep_last` alone spares the ids of a selected account from which nothing goes.
    fn is_kept_for_last(&self, user: &User, left: &[ExternalId]) -> bool {
        self.keep_last && left.iter().any(|id| self.is_meant(id)) && self.selects(user)
    }

    /// Whether the account is one that the job is about, as far as it alone tells.
    fn selects(&self, user: &User) -> bool {
        self.accounts.hold(Class::of(user)) && (self.include_admins || !user.admin)
    }

    /// The ids to remove and the ids to keep, as the account is now; nothing to remove where it is not meant (any more).
    fn split(&self, user: &User) -> (Vec<ExternalId>, Vec<ExternalId>) {
        if !self.selects(user) {
            return (Vec::new(), user.external_ids.clone());
        }
        let (gone, left): (Vec<_>, Vec<_>) =
            user.external_ids.iter().cloned().partition(|id| self.is_meant(id));
        if self.keep_last && left.is_empty() && Class::of(user) == Class::Active {
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
    choice: std::sync::Arc<Choice>,
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

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, synapse::Error>> {
        Box::pin(async move {
            let user = match reader.user(&self.user_id).await {
                Err(error) if error.is_not_found() => {
                    return Ok(Check::Skip("the account is gone since the plan".to_owned()));
                }
                user => user?,
            };
            let (mut gone, _) = self.choice.split(&user);
            gone.retain(|id| self.gone.contains(id));
            if gone.is_empty() {
                return Ok(Check::Skip("the account changed since the plan, and nothing is to be removed from it any more".to_owned()));
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
            // Synapse (1.163) forgets its cached answer to "whose id is this" only for ids that a PUT names: without
            // naming them once more, a removed id would go on logging in for up to half an hour.
            writer.swap_external_ids(&self.user_id, &current, &current).await?;
            let answered =
                writer.swap_external_ids(&self.user_id, &current, &left).await?.external_ids;
            // What a login linked after the list was sent is in the answer, too, and stays.
            if gone.iter().any(|id| answered.contains(id))
                || left.iter().any(|id| !answered.contains(id))
            {
                return Err(synapse::Error::contradicted(
                    &self.user_id,
                    "Synapse answered another list of external ids than it was sent: somebody else changed the account at the same time",
                ));
            }
            let (planned, done) = (self.gone.len(), gone.len());
            Ok(ChangeResult {
                done: done as u64,
                skipped: (planned - done) as u64,
                detail: (done < planned).then(|| {
                    format!(
                        "{done} of the {planned} planned ids: the others were not there any more"
                    )
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
            "" => Err("a provider has a name, such as \"oidc-google\" or \"saml\"".to_owned()),
            "oauth-delegated" => Err("`oauth-delegated` is how Synapse stored the accounts' own link to MAS: removing it would cut everybody off".to_owned()),
            name => Ok(Self(name.to_owned())),
        }
    }
}

crate::values::schema::text_values! { Provider: "the name of a provider such as \"oidc-google\""; }

string_enum! {
    /// What an account is, as far as this job asks; each is exactly one.
    pub enum Class {
        Active = "active",
        Deactivated = "deactivated",
        /// Locked or suspended.
        Locked = "locked",
    }
}

impl Class {
    fn of(user: &User) -> Self {
        match user {
            User { deactivated: true, .. } => Self::Deactivated,
            User { locked: true, .. } | User { suspended: true, .. } => Self::Locked,
            _ => Self::Active,
        }
    }
}

/// `"all"`, or a list of classes.
#[derive(Debug, Clone)]
pub struct Accounts(Vec<Class>);

impl Accounts {
    fn hold(&self, class: Class) -> bool {
        self.0.contains(&class)
    }

    /// Whether a row of the list can turn out to be meant: it does not show who is suspended.
    fn may_hold(&self, deactivated: bool, locked: bool) -> bool {
        match (deactivated, locked) {
            (true, _) => self.hold(Class::Deactivated),
            (false, true) => self.hold(Class::Locked),
            (false, false) => self.hold(Class::Active) || self.hold(Class::Locked),
        }
    }
}

impl ConfigValue for Accounts {
    const TYPE: &'static str = "\"all\", or one or more of \"active\", \"deactivated\", \"locked\"";

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) if text == "all" => Some(Self(Class::ALL.to_vec())),
            DeValue::String(text) => {
                if let Ok(class) = text.parse() {
                    Some(Self(vec![class]))
                } else {
                    let words = ["all", "active", "deactivated", "locked"];
                    mistakes.push(ConfigError::new(value.span(), invalid_value(text, &words)));
                    None
                }
            }
            DeValue::Array(items) if !items.is_empty() => {
                Vec::<Class>::parse(value, mistakes).map(Self)
            }
            DeValue::Array(_) => {
                mistakes.push(ConfigError::new(value.span(), format!("expected {}", Self::TYPE)));
                None
            }
            _ => {
                mistakes.push(wrong_type(value, Self::TYPE));
                None
            }
        }
    }
}
