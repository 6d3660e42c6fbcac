//! The keys of the kind.

use toml::Spanned;
use toml::de::DeValue;

use crate::synapse::User;
use crate::values::duration::HumanDuration;
use crate::values::glob::{Glob, UserGlob};
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, NonEmpty, Value as ConfigValue, wrong_type};
use crate::values::string_enum::string_enum;
use crate::values::text::invalid_value;

schema! {
    pub struct Keys {
        /// The providers of the identities to remove: on classic Synapse as it stores them (an OIDC provider is "oidc-" and its `idp_id`), under MAS the exact id, issuer, `human_name` or `brand_name` of an upstream provider.
        pub providers: NonEmpty<Provider>,
        /// The accounts to process: "all", or one or more of "active", "deactivated", "locked" (locked or suspended). Under MAS, which knows no suspension, a locked account may be deactivated, too, and is then processed by either word.
        pub accounts: Accounts,
        /// Removes only identities that match one of these globs.
        pub external_ids: NonEmpty<Glob> = "[\"*\"]",
        /// Processes only these accounts.
        pub users: NonEmpty<UserGlob> = "[\"*\"]",
        /// Accounts that are never processed.
        pub except_users: Vec<UserGlob> = "[]",
        /// Includes the accounts of server admins; under MAS, of users who may request admin scopes.
        pub include_admins: bool = "false",
        /// Skips active accounts that would have no identity left; under MAS, none at an enabled provider.
        pub keep_last: bool = "false",
        /// MAS only: processes deactivated accounts only after they have been deactivated for this long.
        pub deactivated_for: Option<HumanDuration> where "\"0s\"" to "\"3650d\"",
        /// MAS only: also removes links of the providers that belong to no account and are older than a day, which a login that was not completed leaves behind.
        pub orphans: bool = "false",
    }
}

/// The name of a provider as Synapse stores it.
#[derive(Debug, Clone)]
pub struct Provider(pub String);

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
