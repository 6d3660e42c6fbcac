//! The Matrix Authentication Service: its token endpoint and its Admin API.
//!
//! Shapes and errors were measured with MAS 1.22; personal sessions need MAS 1.5.

mod client_credentials;
mod connection;
mod list;
mod personal_sessions;
mod queries;
mod reader;
mod resources;
mod ulid;
mod writer;

pub use connection::{Connection, Settings};
pub use list::Page;
pub use personal_sessions::{IssuedToken, PersonalSessions};
pub use queries::{Links, UserStatus};
pub use reader::Reader;
pub use resources::{Link, PersonalSession, Provider, Resource, SiteConfig, User};
pub use ulid::Ulid;
pub use writer::{CreatedLink, Writer};
