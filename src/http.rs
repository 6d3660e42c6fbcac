//! HTTP to a homeserver or to MAS: every request to either is sent here.

mod address;
mod advice;
mod api;
mod auto_rate;
mod body;
mod client;
mod error;
mod excerpt;
mod mas_advice;
mod monitor;
mod pace;
mod page_size;
mod request;
mod response;
pub(crate) mod retry;
mod retry_after;
mod token;
mod token_source;
mod transport;

pub(crate) use address::Address;
pub(crate) use api::Api;
pub(crate) use client::Clients;
pub(crate) use error::Cause;
pub use error::{Error, NoToken};
pub(crate) use excerpt::one_line;
pub(crate) use monitor::{ResponseMonitor, Silence};
pub(crate) use pace::{LimitValues, Limits, Slots, unless_cancelled};
pub(crate) use page_size::PageSizes;
pub(crate) use request::{Base, BodyStream, Call, Form, JOIN_ENDPOINT, Pacing, RawRequest, Repeat};
pub(crate) use response::Response;
pub(crate) use token::{Token, trim_newline, validate_token};
pub use token_source::{Issuer, TokenSource};
pub use transport::{CompletedRequest, Observer, Transport};
pub(crate) use transport::{Session, Settings};
