//! The API of Synapse: what is read from a homeserver and what is changed on it.

mod account;
mod identity;
mod json;
mod login;
mod media;
mod page;
mod pages;
mod probe;
mod reader;
mod room_files;
mod rooms;
mod stream;
mod user_map;
mod users;
mod writer;

pub(crate) use account::{ExternalId, User, UserRow};
pub use identity::Version;
pub(crate) use identity::{Identity, VERSION_ENDPOINT};
pub(crate) use login::{Authenticator, Credentials, DEVICE_ID, NewSession, Responder, sso_url};
pub(crate) use media::{File, MediaOwner};
pub(crate) use probe::Whoami;
pub use reader::Reader;
pub(crate) use room_files::FileSet;
pub(crate) use rooms::{MemberEvent, Membership, Permissions};
pub(crate) use user_map::{UserMap, UserSet};
pub(crate) use users::{Position, UserPage};
pub(crate) use writer::Writer;

// Who uses a homeserver handles the errors of its requests, too.
pub(crate) use crate::http::{Base, Cause, Error, RawRequest};
