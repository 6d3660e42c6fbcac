//! The API of Synapse: what is read from a homeserver and what is changed on it.

mod account;
mod background_work;
mod belongings;
mod devices;
mod empty_rooms;
mod identity;
mod json;
mod login;
mod media;
mod media_uses;
mod messages;
mod page;
mod pages;
mod probe;
mod reader;
mod registration_tokens;
mod reports;
mod room_files;
mod room_history;
mod room_list;
mod room_tasks;
mod rooms;
mod stream;
mod user_map;
mod users;
mod writer;

pub(crate) use account::{Device, ExternalId, User, UserRow};
pub use background_work::YieldTo;
pub(crate) use empty_rooms::{EmptyRoom, FormerRoom};
pub use identity::Version;
pub(crate) use identity::{Identity, VERSION_ENDPOINT};
pub(crate) use login::{Authenticator, Credentials, DEVICE_ID, NewSession, Responder, sso_url};
pub(crate) use media::{File, MediaOwner};
pub(crate) use media_uses::{HasMedia, MAX_FILES, MediaUses, Usage};
pub(crate) use messages::{Messenger, Reaction, RoomForMessages};
pub(crate) use probe::Whoami;
pub use reader::Reader;
pub(crate) use registration_tokens::RegistrationToken;
pub(crate) use reports::{ReportRow, Reported};
pub(crate) use room_files::{FileSet, StatePart};
pub(crate) use room_history::OldHistory;
pub(crate) use room_list::RoomRow;
pub(crate) use room_tasks::RoomTasks;
pub(crate) use rooms::{MemberEvent, Membership, Permissions};
pub(crate) use user_map::{UserMap, UserSet};
pub(crate) use users::{Position, UserPage};
pub(crate) use writer::{Protection, Removal, Writer};

// Who uses a homeserver handles the errors of its requests, too.
pub(crate) use crate::http::one_line as display_line;
pub(crate) use crate::http::{Base, Cause, Error, RawRequest};
