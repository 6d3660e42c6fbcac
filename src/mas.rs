//! The Matrix Authentication Service: its token endpoint and its Admin API.
//!
//! Shapes and errors were measured with MAS 1.22; personal sessions need MAS 1.5.

mod account;
mod client_credentials;
mod connection;
mod device_sessions;
mod list;
mod own_token;
mod personal_sessions;
mod queries;
mod reader;
mod resources;
mod token_file;
mod ulid;
mod writer;

pub(crate) use account::usable_account;
pub use connection::{Connection, Settings};
pub use device_sessions::{DeviceSession, DeviceSessionKind, SessionPage, SessionRef};
pub use list::Page;
pub(crate) use own_token::REFUSALS_CACHED_FOR;
pub use own_token::{ExpiryObserver, OwnToken, OwnTokenSettings};
pub use personal_sessions::{IssuedToken, PersonalSessions};
pub use queries::{Links, SessionKind, UserStatus};
pub use reader::Reader;
pub use resources::{
    Link, PersonalSession, Provider, RegistrationToken, Resource, Session, SiteConfig, User,
};
pub use ulid::Ulid;
pub use writer::{CreatedLink, Writer};
