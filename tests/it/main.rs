//! One binary for all tests that go through the front door: the program, as a user runs it, against a homeserver.

#![expect(clippy::too_many_lines, reason = "a scenario is told in one go")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod cli;
mod config;
mod daemon;
mod dry_run;
mod escaping;
mod fake;
mod homeserver;
mod jobs;
mod limits;
mod on_postgres;
mod postgres;
mod program;
mod run;
mod state_dir;
mod transport;
mod venv;
