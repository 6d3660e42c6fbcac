//! Rooms as a configuration names them.

use std::str::FromStr;

use crate::values::schema::text_values;

/// An alias or a room id; rooms of version 12 have ids without a server name.
#[derive(Debug, Clone)]
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

text_values! { RoomName: "an alias such as \"#room:example.com\" or a room id"; }
