//! Names of rooms and accounts, as the configuration spells them.

use std::str::FromStr;

use super::schema::text_values;

/// An alias or a room id; rooms of version 12 have ids without a server name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomName(pub String);

impl FromStr for RoomName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.chars().next() {
            Some('!') if text.len() > 1 => Ok(Self(text.to_owned())),
            Some('#') if text.contains(':') => Ok(Self(text.to_owned())),
            Some('#') => Err(format!(
                "{text:?} is not a valid alias: an alias includes its server, such as \"{text}:example.com\""
            )),
            _ => Err(format!(
                "{text:?} is not a valid room: expected an alias (\"#room:example.com\") or a room id (\"!…\")"
            )),
        }
    }
}

/// A whole Matrix id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserId(pub String);

impl UserId {
    /// The name of the homeserver that has the account.
    pub fn server_name(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, server)| server)
    }
}

impl FromStr for UserId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.strip_prefix('@').and_then(|rest| rest.split_once(':'));
        let is_whole = parts.is_some_and(|(local, server)| !local.is_empty() && !server.is_empty());
        if !is_whole || text.len() > 255 || text.contains(char::is_whitespace) {
            return Err(format!(
                "{text:.300?} is not a valid Matrix id: expected \"@name:example.com\""
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

text_values! {
    RoomName: "an alias such as \"#room:example.com\" or a room id";
    UserId: "a Matrix id such as \"@alice:example.com\"";
}
