//! Synapse over HTTP: everything that is asked of a homeserver goes through here.

mod address;
mod error;
mod media;
mod pace;
mod pages;
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
pub use pace::{LimitValues, Limits, Silence, Slots, Watch};
pub use probe::{Identity, VERSION_ENDPOINT, Version};
pub use reader::Reader;
pub use rooms::{MemberEvent, Permissions};
pub use token::{Token, trim_newline, validate_token};
pub use transport::{Base, CompletedRequest, Observer, RawRequest, Settings, Transport};
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

/// An id as Matrix and Synapse make them, of 255 bytes at most: what is far longer is none, and would fill history and log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
struct Id(String);

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const LONGEST: usize = 1024;
        if text.len() <= LONGEST {
            Ok(Self(text))
        } else {
            Err(format!("an id of {} bytes, which is no id", text.len()))
        }
    }
}

/// An [`Id`] as a plain string.
fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Id::deserialize(deserializer)?.0)
}

/// An [`Id`] that may be null.
fn optional_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Id>::deserialize(deserializer)?.map(|id| id.0))
}

/// A list of [`Id`]s.
fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Vec::<Id>::deserialize(deserializer)?.into_iter().map(|id| id.0).collect())
}

/// A number of items or bytes. Synapse's own are far below the most that this lets through: a larger one counts as that,
/// and a negative one as 0.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(optional_count(deserializer)?.unwrap_or(0))
}

/// A [`count`] that may be null.
fn optional_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    /// Fits into the integers of JSON and SQLite, and four thousand of them into a `u64`.
    const MOST: u64 = 1 << 52;
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Count {
        Number(u64),
        Negative(#[expect(dead_code, reason = "all of them count as 0")] i64),
        Null(()),
    }
    Ok(match Count::deserialize(deserializer)? {
        Count::Number(number) => Some(number.min(MOST)),
        Count::Negative(_) => Some(0),
        Count::Null(()) => None,
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
