//! Synapse over HTTP: everything that is asked of a homeserver goes through here.

mod address;
mod error;
mod media;
mod pace;
mod probe;
mod reader;
mod rooms;
mod token;
mod transport;
mod users;
mod writer;

pub use address::Address;
pub use error::{Cause, Error};
pub use media::{File, MediaOwner};
pub use pace::{LimitValues, Limits, Slots, Watch};
pub use probe::{Identity, VERSION_ENDPOINT, Version};
pub use reader::Reader;
pub use rooms::{MemberEvent, Permissions};
pub use token::{Token, trimmed};
pub use transport::{Answered, Base, Observer, RawRequest, Settings, Transport};
pub use users::{ExternalId, User, UserRow};
pub use writer::Writer;

use serde::{Deserialize, Deserializer};

/// SQLite, and older versions of Synapse, answer 0 and 1 for some booleans.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Flag {
        Bool(bool),
        Number(i64),
        Null(()),
    }
    Ok(match Flag::deserialize(deserializer)? {
        Flag::Bool(flag) => flag,
        Flag::Number(number) => number != 0,
        Flag::Null(()) => false,
    })
}

/// A pagination token: a string in some lists, a number in others, absent on the last page.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum PageToken {
    Text(String),
    Number(u64),
}

impl std::fmt::Display for PageToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}
