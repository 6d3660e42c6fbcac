//! One binary for all end-to-end tests: the program, as a user runs it, against a homeserver.

#![expect(clippy::too_many_lines, reason = "a scenario reads best in one piece")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod again_on_postgres;
mod cli;
mod config;
mod daemon;
mod dry_run;
mod escaping;
mod fake;
mod fleet;
mod homeserver;
mod init;
mod jobs;
mod limits;
mod load_gate;
mod login;
mod mas;
mod notifications;
mod postgres;
mod program;
mod rounds;
mod run;
mod state_dir;
mod terminal;
mod transport;
mod venv;
mod web;
mod workers;
