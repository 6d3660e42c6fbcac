//! The HTTP service on TCP and on the control socket: metrics, health, the JSON API, and the status page.

mod access;
mod api;
mod api_error;
mod app;
mod connections;
mod control_socket;
mod events;
mod events_feed;
mod health;
mod listener;
mod monitored_stream;
mod origin;
mod pages;
mod peer;
mod probes;
mod router;
mod server;
mod session;
mod turns;

pub(crate) use app::App;
pub(crate) use control_socket::{SOCKET, listen, short_path};
pub(crate) use events_feed::EventsFeed;
pub(crate) use health::{Health, Probe};
pub(crate) use pages::state::PageState;
pub(crate) use router::router;
pub(crate) use server::serve;
pub(crate) use session::Sessions;
