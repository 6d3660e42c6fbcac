//! Synapse over HTTP: every request to a homeserver is made here.

mod account;
mod address;
mod advice;
mod body;
mod client;
mod error;
mod excerpt;
mod identity;
mod json;
mod media;
mod monitor;
mod pace;
mod pages;
mod probe;
mod reader;
mod request;
mod response;
mod retry;
mod retry_after;
mod rooms;
mod token;
mod transport;
mod users;
mod writer;

pub(crate) use account::{ExternalId, User};
pub(crate) use address::Address;
pub(crate) use client::Clients;
pub(crate) use error::{Cause, Error};
pub(crate) use identity::Identity;
pub use identity::Version;
pub(crate) use pace::Limits;
pub use reader::Reader;
pub(crate) use token::{Token, trim_newline, validate_token};
pub use transport::Transport;
pub(crate) use transport::{CompletedRequest, Observer, Settings};
pub(crate) use writer::Writer;

pub(crate) use account::UserRow;
pub(crate) use identity::VERSION_ENDPOINT;
pub(crate) use media::File;
pub(crate) use monitor::Silence;
pub(crate) use pace::{LimitValues, Slots};
pub(crate) use request::{Base, RawRequest};
pub(crate) use rooms::{MemberEvent, Membership, Permissions};
