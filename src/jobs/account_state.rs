//! The states of accounts among which jobs select.

use toml::Spanned;
use toml::de::DeValue;

use crate::synapse::User;
use crate::values::schema::{ConfigError, Value as ConfigValue, wrong_type};
use crate::values::string_enum::string_enum;
use crate::values::text::invalid_value;

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
    pub(super) fn of(user: &User) -> Self {
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
    pub(super) fn include(&self, state: AccountState) -> bool {
        self.0.contains(&state)
    }

    /// Whether an account may be selected, by its row in the list, which does not show suspension.
    pub(super) fn may_include(&self, deactivated: bool, locked: bool) -> bool {
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
