//! One binary for all tests that go through the front door: the program, as a user runs it, against a homeserver.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod daemon;
mod fake;
mod homeserver;
mod jobs;
mod program;
