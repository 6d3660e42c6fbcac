//! Which links of MAS are removed; the plan asks, and its changes ask again.

use std::sync::Arc;

use chrono::TimeDelta;

use super::super::account_state::AccountState;
use super::keys::Keys;
use super::upstream_providers::UpstreamProviders;
use crate::mas::{Link, Resource, User, UserStatus};
use crate::plan::report::Exempt;
use crate::values::clock::Timestamp;
use crate::values::glob::{Matched, Selection, select};

#[derive(Debug)]
pub(super) struct LinkCriteria {
    pub keys: Arc<Keys>,
    pub providers: UpstreamProviders,
    /// The start of the run, from which `deactivated_for` and the age of orphans count back.
    pub started_at: Timestamp,
    pub server_name: String,
    /// The Matrix id of the account of the token.
    pub own: String,
}

/// How old a link without an account must be: a person may take long to complete a registration.
const MIN_ORPHAN_AGE: TimeDelta = TimeDelta::days(1);

/// What the job does with the links of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Remove,
    LeaveAlone(Exempt),
    /// The patterns of the job are not about the account.
    Ignore,
}

impl LinkCriteria {
    pub fn user_id(&self, user: &User) -> String {
        format!("@{}:{}", user.username, self.server_name)
    }

    pub fn matches(&self, link: &Link) -> bool {
        self.providers.name(&link.provider_id).is_some()
            && self.keys.external_ids.iter().any(|glob| glob.matches(&link.subject))
    }

    /// Decides about the links of an account that match; `seen` records which patterns matched it.
    pub fn judge(&self, user: &User, seen: &mut Matched) -> Verdict {
        let (keys, user_id) = (&self.keys, self.user_id(user));
        let exempt = match select(&user_id, &keys.users, &keys.except_users, seen) {
            Selection::Unmatched => return Verdict::Ignore,
            Selection::Excluded => Some(Exempt::Excluded),
            // First, because accounts in other states are not always read.
            Selection::Chosen if !self.is_in_selected_state(user) => Some(Exempt::NotSelected),
            Selection::Chosen if user_id == self.own => Some(Exempt::OwnAccount),
            Selection::Chosen if user.admin && !keys.include_admins => Some(Exempt::Admin),
            Selection::Chosen if self.is_recently_deactivated(user) => {
                Some(Exempt::RecentlyDeactivated)
            }
            Selection::Chosen => None,
        };
        exempt.map_or(Verdict::Remove, Verdict::LeaveAlone)
    }

    fn is_in_selected_state(&self, user: &User) -> bool {
        let accounts = &self.keys.accounts;
        user.locked_at.is_some() && accounts.include(AccountState::Locked)
            || user.deactivated_at.is_some() && accounts.include(AccountState::Deactivated)
            || is_active(user) && accounts.include(AccountState::Active)
    }

    fn is_recently_deactivated(&self, user: &User) -> bool {
        let (Some(least), Some(at)) = (self.keys.deactivated_for, user.deactivated_at) else {
            return false;
        };
        at > self.started_at - least.as_chrono()
    }

    /// Whether a login may be in progress that created the link and has not created its account yet.
    pub fn is_recent_orphan(&self, link: &Link) -> bool {
        link.user_id.is_none() && link.created_at > self.started_at - MIN_ORPHAN_AGE
    }

    /// Whether `link` is one of those that remain and with which its user can log in.
    pub fn remains_usable(&self, link: &Link) -> bool {
        !self.matches(link) && self.providers.is_enabled(&link.provider_id)
    }

    /// Whether `keep_last` prevents the removal of the links of an account, by all of them.
    pub fn keeps_for_last<'a>(
        &self,
        user: &User,
        mut links: impl Iterator<Item = &'a Resource<Link>>,
    ) -> bool {
        self.keys.keep_last
            && is_active(user)
            && !links.any(|link| self.remains_usable(&link.attributes))
    }

    /// The lists that together have all accounts in the selected states; `None` for the list of all accounts.
    ///
    /// Which accounts the patterns name shows only in the list of all.
    pub fn statuses(&self) -> Option<Vec<UserStatus>> {
        if !self.keys.names_all_users() {
            return None;
        }
        let accounts = &self.keys.accounts;
        let selected = [
            (AccountState::Active, UserStatus::Active),
            (AccountState::Locked, UserStatus::Locked),
            (AccountState::Deactivated, UserStatus::Deactivated),
        ]
        .into_iter()
        .filter(|(state, _)| accounts.include(*state));
        let statuses: Vec<UserStatus> = selected.map(|(_, status)| status).collect();
        let is_most = statuses.len() > 1 && statuses.contains(&UserStatus::Active);
        (!is_most).then_some(statuses)
    }
}

pub(super) fn is_active(user: &User) -> bool {
    user.locked_at.is_none() && user.deactivated_at.is_none()
}
