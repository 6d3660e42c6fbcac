//! Which ids of an account on classic Synapse are removed; the plan asks, and its changes ask again.

use super::super::account_state::AccountState;
use super::keys::Keys;
use crate::plan::report::Exempt;
use crate::synapse::{ExternalId, User, UserRow};

impl Keys {
    pub(super) fn names(&self, provider: &str) -> bool {
        self.providers.iter().any(|named| named.0 == provider)
    }

    pub(super) fn is_of_providers(&self, id: &ExternalId) -> bool {
        self.names(&id.auth_provider)
    }

    pub(super) fn matches(&self, id: &ExternalId) -> bool {
        self.is_of_providers(id)
            && self.external_ids.iter().any(|glob| glob.matches(&id.external_id))
    }

    /// Whether neither `users` nor `except_users` restricts the accounts.
    pub(super) fn names_all_users(&self) -> bool {
        self.users.iter().any(|glob| glob.0.text == "*") && self.except_users.is_empty()
    }

    /// Why an account is not even read, as far as the list of accounts shows.
    pub(super) fn exempt(&self, row: &UserRow) -> Option<Exempt> {
        if row.admin && !self.include_admins {
            Some(Exempt::Admin)
        } else if !self.accounts.may_include(row.deactivated, row.locked) {
            Some(Exempt::NotSelected)
        } else {
            None
        }
    }

    /// Whether only `keep_last` prevents the removal of ids from a selected account.
    pub(super) fn is_kept_for_last(&self, user: &User, left: &[ExternalId]) -> bool {
        self.keep_last && left.iter().any(|id| self.matches(id)) && self.selects(user)
    }

    /// Whether the job selects the account, apart from `users` and `except_users`.
    pub(super) fn selects(&self, user: &User) -> bool {
        self.accounts.include(AccountState::of(user)) && (self.include_admins || !user.admin)
    }

    /// Whether an account that was active is deactivated now, of which `deactivated_for` has not begun to be counted.
    pub(super) fn is_deactivated_since(&self, was_deactivated: bool, user: &User) -> bool {
        self.deactivated_for.is_some() && user.deactivated && !was_deactivated
    }

    /// Returns the current ids to remove and to keep; none to remove if the account is not (or no longer) selected.
    pub(super) fn split(&self, user: &User) -> (Vec<ExternalId>, Vec<ExternalId>) {
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
