//! The keys of `delete-stale-devices`.

use crate::values::duration::HumanDuration;
use crate::values::glob::UserGlob;
use crate::values::schema::NonEmpty;
use crate::values::schema::schema;

schema! {
    pub struct Keys {
        /// How long a device must not have been used; one that was never used is never deleted.
        pub unused_for: HumanDuration where "\"30d\"" to "\"3650d\"",
        /// Processes only the devices of these accounts.
        pub users: NonEmpty<UserGlob> = "[\"*\"]",
        /// Accounts whose devices are never deleted.
        pub except_users: Vec<UserGlob> = "[]",
        /// Leaves the device of an account alone that was used last, unless another one is in use.
        pub keep_last: bool = "true",
    }
}
