//! The keys of `lock-inactive-accounts`.

use std::str::FromStr;

use crate::values::duration::HumanDuration;
use crate::values::glob::UserGlob;
use crate::values::matrix_id::RoomName;
use crate::values::schema::{NonEmpty, schema, text_values};

schema! {
    pub struct Keys {
        /// How long nobody must have used an account. An account that is younger than this is not locked.
        pub inactive_for: HumanDuration where "\"30d\"" to "\"3650d\"",
        /// Includes accounts of which no use is known once they are this old. That no use is known does not prove that there was none: Synapse forgets uses without a device after four weeks, and records none by a bridge. Name accounts of bridges that do not have their namespace to themselves in `except_users`.
        pub never_used_after: Option<HumanDuration> where "\"30d\"" to "\"3650d\"",
        /// Processes only these accounts: ids or globs over whole Matrix ids.
        pub users: NonEmpty<UserGlob> = "[\"*\"]",
        /// Accounts that are never locked.
        pub except_users: Vec<UserGlob> = "[]",
        /// Rooms, as ids or aliases, whose members are never locked. A run is refused if one of them cannot be read or has no local members.
        pub except_rooms: Vec<RoomName> = "[]",
        /// A text that tells users what is going to happen, sent as a server notice; without it, nobody is told. Requires `server_notices` in the configuration of Synapse.
        pub notice: Option<NoticeText>,
        /// How long users are told in advance.
        pub notice_before: HumanDuration where "\"1d\"" to "\"365d\"" = "\"14d\"",
    }
}

/// The text of a notice.
#[derive(Debug, Clone)]
pub struct NoticeText(pub String);

/// In bytes; an event of Matrix holds 64 KiB.
const MAX_NOTICE: usize = 16_384;

impl FromStr for NoticeText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("the text is empty: remove the key if nobody is to be told".to_owned());
        }
        if text.len() > MAX_NOTICE {
            return Err(format!(
                "the text has {} bytes, more than {MAX_NOTICE}: shorten it, or link to a page",
                text.len()
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

text_values! { NoticeText: "a text"; }
