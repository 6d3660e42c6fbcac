//! The HTTP service on TCP and on the control socket: metrics, health, and the JSON API.

mod access;
mod api;
mod api_error;
mod app;
mod connections;
mod control_socket;
mod events;
mod health;
mod listener;
mod monitored_stream;
mod origin;
mod peer;
mod probes;
mod router;
mod server;
mod turns;

pub(crate) use app::App;
pub(crate) use control_socket::{SOCKET, listen, short_path};
pub(crate) use health::{Health, Probe};
pub(crate) use router::router;
pub(crate) use server::serve;
