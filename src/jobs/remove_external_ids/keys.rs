//! The keys of the kind.

use super::super::account_state::Accounts;
use crate::values::duration::HumanDuration;
use crate::values::glob::{Glob, UserGlob};
use crate::values::schema::NonEmpty;
use crate::values::schema::schema;

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
        /// Processes deactivated accounts only after they have been deactivated for this long. MAS knows since when; on classic Synapse, which does not store it, this counts from the first run of a job with this key that saw the account deactivated, and dry runs count.
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
