//! The keys of `deactivate-accounts`.

use crate::values::duration::HumanDuration;
use crate::values::glob::UserGlob;
use crate::values::schema::{NonEmpty, schema};

schema! {
    pub struct Keys {
        /// How long ago lock-inactive-accounts must have locked an account.
        pub locked_for: HumanDuration where "\"30d\"" to "\"3650d\"",
        /// Whether Synapse also removes the name and the avatar of the account, and hides its messages from users who join their rooms later. There is no default: this cannot be undone.
        pub erase: bool,
        /// Processes only these accounts: ids or globs over whole Matrix ids.
        pub users: NonEmpty<UserGlob> = "[\"*\"]",
        /// Accounts that are never deactivated.
        pub except_users: Vec<UserGlob> = "[]",
    }
}
