//! The daemon: when it runs jobs, what it reports, and what it survives.

#![expect(clippy::float_cmp, reason = "metrics are whole numbers, or the same ones twice")]

mod approval;
mod cancelled_waits;
mod catch_up;
mod commands;
mod control_socket;
mod database;
mod faults;
mod forwarding;
mod http;
mod killed;
mod lifecycle;
mod panics;
mod probes;
mod reload;
mod replica_faults;
pub mod replicas;
mod schedule;
mod slow_clients;
mod stalled_files;
mod waiting;

use chrono::{DateTime, TimeDelta, Timelike, Utc};
use serde_json::Value;

use crate::fake::{Fake, User, World};
use crate::program::{Daemon, Program};

/// A job that sends one harmless request.
fn ping(name: &str, more: &str) -> String {
    format!(
        "[jobs.{name}]\nkind = \"request\"\nmethod = \"GET\"\npath = \"/_matrix/client/versions\"\n{more}\n"
    )
}

/// What `ping` asks for.
const PING: &str = "/_matrix/client/versions";

/// A job that sweeps all users into one room, so many a second.
fn sweep(name: &str, per_second: u32, more: &str) -> String {
    format!(
        "[jobs.{name}]\nkind = \"join-rooms\"\nmode = \"apply\"\nrooms = [\"!lobby:fake.test\"]\njoins_per_second = {per_second}\n{more}\n"
    )
}

/// A homeserver with a room and this many users who are not in it.
fn with_lobby(users: usize) -> Fake {
    let mut world = World::new();
    world.users(users, |_| User::default());
    world.room("!lobby:fake.test");
    Fake::of(world)
}

fn joined(fake: &Fake) -> usize {
    let is_in = |(user, member): &(&String, &crate::fake::Member)| {
        user.starts_with("@user") && member.membership == "join"
    };
    fake.world(|world| world.rooms["!lobby:fake.test"].members.iter().filter(is_in).count())
}

const JOIN: &str = "/_synapse/admin/v1/join/";

/// An hourly schedule whose last and next occurrences are half an hour away.
fn hourly() -> String {
    format!("schedule = \"{} * * * *\"", (now() + TimeDelta::minutes(30)).minute())
}

#[expect(clippy::disallowed_methods, reason = "the program under test has the real clock")]
fn now() -> DateTime<Utc> {
    Utc::now()
}

fn time_of(report: &Value, key: &str) -> DateTime<Utc> {
    report[key].as_str().unwrap_or_else(|| panic!("no {key} in {report}")).parse().unwrap()
}

/// Starts the daemon once and makes it believe that it then was down for a day.
async fn was_down(program: &Program) {
    program.serve().await.stop().await;
    program.sql("UPDATE jobs SET since = since - 86400000, watermark = NULL").await;
}

/// The daemon with an admin token, `secret`.
fn with_admin(fake: &Fake, jobs: &str) -> Program {
    let program = Program::new(&fake.url(), crate::fake::TOKEN, jobs);
    program.write("admin-token", "secret-of-the-tests\n");
    edit(&program, "[daemon]\n", "[daemon]\nadmin_token_file = \"admin-token\"\n");
    program
}

/// Replaces some text of the config, which must be there.
fn edit(program: &Program, from: &str, to: &str) {
    let config = program.read("microglia.toml");
    assert!(config.contains(from), "{from} is not in {config}");
    program.write("microglia.toml", &config.replace(from, to));
}

pub async fn until_log(daemon: &Daemon, text: &str) {
    crate::program::until(text, 30, async || daemon.log().contains(text)).await;
}
