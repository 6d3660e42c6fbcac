//! `join-rooms`.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use microglia::config::{Config, Environment};
use microglia::history::History;
use microglia::history::state_dir::StateDir;
use microglia::http::Transport;
use microglia::runner::{HomeserverHandle, LostCallWait, RunParams, RunSlots, Runner, Stop};
use microglia::values::clock::Clock;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::fake::{Fake, Fault, SERVER_NAME, TOKEN, Trouble};
use crate::homeserver::{Account, Messages, Synapse, encoded};
use crate::program::{Output, Program, changes, figures, until};

const JOIN: &str = "/_synapse/admin/v1/join/";

/// A job that joins as fast as it can; `keys` may not name the pace again.
fn fast(name: &str, rooms: &[&str], keys: &str) -> String {
    at_pace(1000.0, name, rooms, keys)
}

fn at_pace(joins_per_second: f64, name: &str, rooms: &[&str], keys: &str) -> String {
    format!(
        "[jobs.{name}]\nkind = \"join-rooms\"\nmode = \"apply\"\nrooms = {}\njoins_per_second = {joins_per_second}\n{keys}\n\n",
        json!(rooms)
    )
}

fn on(synapse: &Synapse, jobs: &str) -> Program {
    Program::new(&synapse.url, &synapse.admin.token, jobs)
}

/// A homeserver in memory with these accounts, and with public rooms where only the daemon's account is.
fn fake(users: &[&str], rooms: &[&str]) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        for user in users {
            world.user(&at(user));
        }
        for room in rooms {
            world.room(&format!("!{room}:{SERVER_NAME}")).alias(&format!("#{room}:{SERVER_NAME}"));
        }
    });
    fake
}

fn at(localpart: &str) -> String {
    format!("@{localpart}:{SERVER_NAME}")
}

/// `user -> room` of each join that was sent, in order.
fn joins(fake: &Fake) -> Vec<String> {
    fake.requests()
        .iter()
        .filter(|seen| seen.method == "POST")
        .map(|seen| {
            let body: Value = serde_json::from_str(&seen.body).unwrap_or_default();
            let room = seen.path.strip_prefix(JOIN).unwrap_or_else(|| panic!("{}", seen.path));
            let room = room.trim_start_matches("%21").trim_start_matches('!');
            format!(
                "{} -> {}",
                body["user_id"].as_str().unwrap_or("?").trim_end_matches(":fake.test"),
                room.split([':', '%']).next().unwrap_or_default()
            )
        })
        .collect()
}

/// The accounts that were requested one by one from a real Synapse, except the daemon's own.
fn requested_accounts(synapse: &Synapse) -> Vec<String> {
    let mut requested: Vec<String> = synapse
        .requests()
        .iter()
        .filter_map(|request| request.strip_prefix("GET /_synapse/admin/v2/users/"))
        .filter(|user| *user != synapse.admin.user_id)
        .map(str::to_owned)
        .collect();
    requested.sort();
    requested
}

fn posts(synapse: &Synapse) -> usize {
    synapse.requests().iter().filter(|request| request.starts_with("POST")).count()
}

async fn registered<const N: usize>(synapse: &Synapse, names: [&str; N]) -> [Account; N] {
    let mut accounts = Vec::new();
    for name in names {
        accounts.push(synapse.register(name).await);
    }
    accounts.try_into().unwrap()
}

async fn memberships(synapse: &Synapse, room: &str, users: &[&Account]) -> Vec<String> {
    let mut lines = Vec::new();
    for user in users {
        let member = synapse.membership(room, &user.user_id).await;
        let membership = member.map_or_else(|| "none".to_owned(), |member| member.membership);
        lines.push(format!("{} {membership}", user.user_id));
    }
    lines
}

fn send(signal: &str, child: &Child) {
    let id = child.id().expect("the program runs");
    let sent =
        std::process::Command::new("sh").args(["-c", &format!("kill -{signal} {id}")]).status();
    assert!(sent.unwrap().success());
}

async fn ended(child: Child) -> (Output, Value) {
    let output = child.wait_with_output().await.unwrap();
    let output = Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    let report = serde_json::from_str(&output.stdout)
        .unwrap_or_else(|error| panic!("no report ({error}): {output:?}"));
    (output, report)
}

fn text<'a>(report: &'a Value, key: &str) -> &'a str {
    report[key].as_str().unwrap_or("null")
}

/// Without what differs from run to run.
fn plain(text: &str, ids: &[(&str, &str)]) -> String {
    ids.iter().fold(text.to_owned(), |text, (id, name)| text.replace(id, name))
}

#[tokio::test]
async fn only_users_who_are_missing_and_may_be_joined_are_joined() {
    let synapse = Synapse::start().await;
    let owner = synapse.register("owner").await;
    let room = synapse
        .create_room(&owner, json!({"preset": "public_chat", "room_alias_name": "lobby"}))
        .await;
    let [new, odd, nick, left, kicked, banned, unbanned, invited, again] = registered(
        &synapse,
        ["new", "o=2fbrien+x", "nick", "left", "kicked", "banned", "unbanned", "invited", "again"],
    )
    .await;
    let old = synapse.insert_user("O'Brien/1 #é?%").await;
    for user in [&nick, &left, &kicked, &unbanned, &again] {
        synapse.join(user, &room).await;
    }
    synapse.set_nick(&nick, &room, "Nick").await;
    synapse.leave(&left, &room).await;
    synapse.leave(&again, &room).await;
    synapse.kick(&owner, &room, &kicked.user_id).await;
    synapse.ban(&owner, &room, &banned.user_id).await;
    synapse.ban(&owner, &room, &unbanned.user_id).await;
    synapse.unban(&owner, &room, &unbanned.user_id).await;
    synapse.invite(&owner, &room, &invited.user_id).await;
    synapse.invite(&owner, &room, &again.user_id).await;
    let [gone, erased, locked, suspended, bot, support] =
        registered(&synapse, ["gone", "erased", "locked", "suspended", "bot", "support"]).await;
    synapse.deactivate(&gone.user_id, Messages::Keep).await;
    synapse.deactivate(&erased.user_id, Messages::Erase).await;
    synapse.lock(&locked.user_id).await;
    synapse.suspend(&suspended.user_id).await;
    synapse.set_user(&bot.user_id, json!({"user_type": "bot"})).await;
    synapse.set_user(&support.user_id, json!({"user_type": "support"})).await;
    let (guest, ghost) = (synapse.guest().await, synapse.ghost("ghost_1").await);

    let lobby = ["#lobby:hs.test"];
    let program = on(
        &synapse,
        &[
            fast("sweep", &lobby, ""),
            fast("left", &lobby, "rejoin = \"left\""),
            fast("kicked", &lobby, "rejoin = \"kicked\""),
            fast("bots", &lobby, "include_bots = true"),
        ]
        .concat(),
    );

    synapse.forget_requests();
    let planned = program.dry_run("sweep").await;
    let swept = [
        "planned @O'Brien/1 #é?%:hs.test -> #lobby:hs.test (1)",
        "planned @again:hs.test -> #lobby:hs.test (1)",
        "planned @invited:hs.test -> #lobby:hs.test (1)",
        "planned @new:hs.test -> #lobby:hs.test (1)",
        "planned @o=2fbrien+x:hs.test -> #lobby:hs.test (1)",
    ];
    assert_eq!(changes(&planned), swept);
    assert_eq!(figures(&planned), "succeeded: 5/0/0/0/0");
    let other: Vec<String> =
        synapse.requests().into_iter().filter(|request| !request.starts_with("GET ")).collect();
    assert_eq!(other, Vec::<String>::new(), "a dry run sends nothing but GET");
    assert_eq!(
        requested_accounts(&synapse),
        [
            "@O'Brien%2F1%20%23%C3%A9%3F%25:hs.test",
            "@again:hs.test",
            "@ghost_1:hs.test",
            "@invited:hs.test",
            "@new:hs.test",
            "@o=2fbrien+x:hs.test",
            "@suspended:hs.test",
        ],
    );

    let made = program.apply("sweep").await;
    assert_eq!(figures(&made), "succeeded: 5/5/0/0/0");
    assert_eq!(changes(&made), swept.map(|line| line.replace("planned", "done")));
    let everybody = [
        &new,
        &odd,
        &old,
        &invited,
        &again,
        &nick,
        &left,
        &kicked,
        &banned,
        &unbanned,
        &gone,
        &erased,
        &locked,
        &suspended,
        &bot,
        &support,
        &guest,
        &ghost,
        &synapse.admin,
    ];
    let after = memberships(&synapse, &room, &everybody).await.join("\n");
    insta::assert_snapshot!(plain(&after, &[(&guest.user_id, "the guest")]), @"
    @new:hs.test join
    @o=2fbrien+x:hs.test join
    @O'Brien/1 #é?%:hs.test join
    @invited:hs.test join
    @again:hs.test join
    @nick:hs.test join
    @left:hs.test leave
    @kicked:hs.test leave
    @banned:hs.test ban
    @unbanned:hs.test leave
    @gone:hs.test none
    @erased:hs.test none
    @locked:hs.test none
    @suspended:hs.test none
    @bot:hs.test none
    @support:hs.test none
    the guest none
    @ghost_1:hs.test none
    @admin:hs.test none
    ");
    let member = synapse.membership(&room, &nick.user_id).await.unwrap();
    assert_eq!(member.displayname.as_deref(), Some("Nick"));
    assert_eq!(
        synapse.join_event_count(&room, &nick.user_id).await,
        2,
        "the join and the nickname"
    );
    assert_eq!(synapse.join_event_count(&room, &old.user_id).await, 1);

    synapse.forget_requests();
    let second = program.apply("sweep").await;
    assert_eq!(figures(&second), "succeeded: 0/0/0/0/0");
    let requests = plain(&synapse.requests().join("\n"), &[(&room, "!lobby")]);
    insta::assert_snapshot!(requests, @"
    GET /_matrix/client/v3/account/whoami
    GET /_synapse/admin/v1/server_version
    GET /_matrix/client/v1/auth_metadata
    GET /_synapse/admin/v2/users/@admin:hs.test
    GET /_matrix/client/v3/directory/room/%23lobby:hs.test
    GET /_synapse/admin/v1/rooms/!lobby/members
    GET /_synapse/admin/v1/rooms/!lobby/state?type=m.room.tombstone
    GET /_synapse/admin/v2/users?guests=false&deactivated=true&locked=true&order_by=name&limit=10000
    GET /_synapse/admin/v1/rooms/!lobby/state?type=m.room.join_rules
    GET /_synapse/admin/v1/rooms/!lobby/state?type=m.room.power_levels
    GET /_synapse/admin/v1/rooms/!lobby/state?type=m.room.create
    GET /_synapse/admin/v1/rooms/!lobby/state?type=m.room.member
    GET /_synapse/admin/v2/users/@suspended:hs.test
    ");

    assert_eq!(
        changes(&program.dry_run("left").await),
        ["planned @left:hs.test -> #lobby:hs.test (1)"]
    );
    let printed = program.run(&["run", "bots", "--dry-run"]).await;
    assert_eq!(printed.code, 0);
    let after_heading: Vec<&str> = printed.stdout.lines().skip(2).collect();
    insta::assert_snapshot!(after_heading.join("\n"), @"
      left alone: 1 left, 2 kicked, 1 banned, 2 deactivated, 1 locked, 1 suspended, 1 bridge, 1 own-account
      planned  join-room @bot:hs.test -> #lobby:hs.test
      planned  join-room @support:hs.test -> #lobby:hs.test
    Nothing was changed. To make these changes now: microglia run bots --apply
    ");
    assert_eq!(
        changes(&program.apply("kicked").await),
        [
            "done @kicked:hs.test -> #lobby:hs.test (1)",
            "done @left:hs.test -> #lobby:hs.test (1)",
            "done @unbanned:hs.test -> #lobby:hs.test (1)",
        ]
    );
    assert_eq!(
        memberships(&synapse, &room, &[&kicked, &left, &unbanned, &banned]).await,
        [
            "@kicked:hs.test join",
            "@left:hs.test join",
            "@unbanned:hs.test join",
            "@banned:hs.test ban"
        ]
    );
}

#[tokio::test]
async fn users_who_left_a_room_are_not_joined_to_its_upgrade() {
    let synapse = Synapse::start().await;
    let owner = synapse.register("owner").await;
    let first =
        synapse.create_room(&owner, json!({"preset": "public_chat", "room_version": "6"})).await;
    let users = registered(
        &synapse,
        [
            "stayed",
            "left",
            "kicked",
            "banned",
            "forgiven",
            "returned",
            "moved",
            "left-later",
            "invited",
        ],
    )
    .await;
    for user in &users {
        synapse.join(user, &first).await;
    }
    let [_, left, kicked, banned, forgiven, returned, moved, left_later, invited] = &users;
    for user in [left, returned, invited] {
        synapse.leave(user, &first).await;
    }
    synapse.kick(&owner, &first, &kicked.user_id).await;
    synapse.ban(&owner, &first, &banned.user_id).await;
    synapse.ban(&owner, &first, &forgiven.user_id).await;
    let second = synapse.upgrade_room(&owner, &first, "10").await;
    synapse.unban(&owner, &second, &forgiven.user_id).await;
    for user in [forgiven, returned, moved, left_later] {
        synapse.join(user, &second).await;
    }
    synapse.leave(left_later, &second).await;
    let third = synapse.upgrade_room(&owner, &second, "12").await;
    assert!(!third.contains(':'), "rooms of version 12 have ids without a domain: {third}");
    synapse.invite(&owner, &third, &invited.user_id).await;

    let jobs = ["never", "left", "kicked"].map(|rejoin| {
        fast(
            rejoin,
            &[&third],
            &format!(
                "users = [\"@*\"]\nexcept_users = [\"{}\"]\nrejoin = \"{rejoin}\"",
                synapse.admin.user_id
            ),
        )
    });
    let program = on(&synapse, &jobs.concat());
    let planned = async |job| {
        let report = program.dry_run(job).await;
        plain(&changes(&report).join("\n"), &[(&third, "!third")])
    };
    insta::assert_snapshot!(planned("never").await, @"
    planned @forgiven:hs.test -> !third (1)
    planned @moved:hs.test -> !third (1)
    planned @returned:hs.test -> !third (1)
    planned @stayed:hs.test -> !third (1)
    ");
    insta::assert_snapshot!(planned("left").await, @"
    planned @forgiven:hs.test -> !third (1)
    planned @invited:hs.test -> !third (1)
    planned @left-later:hs.test -> !third (1)
    planned @left:hs.test -> !third (1)
    planned @moved:hs.test -> !third (1)
    planned @returned:hs.test -> !third (1)
    planned @stayed:hs.test -> !third (1)
    ");
    insta::assert_snapshot!(planned("kicked").await, @"
    planned @forgiven:hs.test -> !third (1)
    planned @invited:hs.test -> !third (1)
    planned @kicked:hs.test -> !third (1)
    planned @left-later:hs.test -> !third (1)
    planned @left:hs.test -> !third (1)
    planned @moved:hs.test -> !third (1)
    planned @returned:hs.test -> !third (1)
    planned @stayed:hs.test -> !third (1)
    ");
    assert_eq!(figures(&program.apply("never").await), "succeeded: 4/4/0/0/0");
    let users: Vec<&Account> = users.iter().collect();
    insta::assert_snapshot!(memberships(&synapse, &third, &users).await.join("\n"), @"
    @stayed:hs.test join
    @left:hs.test none
    @kicked:hs.test none
    @banned:hs.test ban
    @forgiven:hs.test join
    @returned:hs.test join
    @moved:hs.test join
    @left-later:hs.test none
    @invited:hs.test invite
    ");
}

/// Rooms of a real Synapse by what is wrong with them, or nothing.
struct Rooms {
    synapse: Synapse,
    /// Names as a config would give them.
    names: Vec<String>,
    /// Ids and what to print for them.
    ids: Vec<(String, &'static str)>,
}

impl Rooms {
    async fn start() -> Self {
        let synapse = Synapse::start().await;
        let (owner, new) = (synapse.register("owner").await, synapse.register("new").await);
        let mut ids = Vec::new();
        let mut names = Vec::new();
        let public = json!({"preset": "public_chat", "room_alias_name": "twice"});
        let twice = synapse.create_room(&owner, public).await;
        names.push("#twice:hs.test".to_owned());
        ids.push((twice, "!twice"));
        for version in ["6", "10"] {
            let room = json!({"preset": "private_chat", "room_version": version});
            ids.push((
                private(&synapse, &owner, room, 50).await,
                if version == "6" { "!private-6" } else { "!private-10" },
            ));
        }
        let own = json!({"preset": "private_chat", "room_version": "12", "power_level_content_override": {"invite": 100}});
        ids.push((synapse.create_room(&synapse.admin, own).await, "!own-12"));
        let restricted = || {
            let allow = json!([{"type": "m.room_membership", "room_id": ids[0].0}]);
            json!({"room_version": "10", "initial_state": [{"type": "m.room.join_rules", "state_key": "",
                "content": {"join_rule": "restricted", "allow": allow}}]})
        };
        let room = restricted();
        let restricted_in = private(&synapse, &owner, room.clone(), 50).await;
        let restricted_out = synapse.create_room(&owner, room).await;
        ids.push((restricted_in, "!restricted"));
        ids.push((restricted_out, "!restricted-without-account"));
        let room = json!({"preset": "private_chat"});
        ids.push((synapse.create_room(&owner, room.clone()).await, "!without-account"));
        ids.push((private(&synapse, &owner, room, 0).await, "!powerless"));
        let public = || json!({"preset": "public_chat", "room_version": "10"});
        let upgraded = synapse.create_room(&owner, public()).await;
        let upgrade = synapse.upgrade_room(&owner, &upgraded, "11").await;
        ids.push((upgraded, "!upgraded"));
        let empty = synapse.create_room(&owner, public()).await;
        synapse.leave(&owner, &empty).await;
        ids.push((empty, "!empty"));
        let blocked = synapse.create_room(&owner, public()).await;
        let path = format!("/_synapse/admin/v1/rooms/{}/block", encoded(&blocked));
        assert_eq!(synapse.admin(Method::PUT, &path, json!({"block": true})).await.0, 200);
        ids.push((blocked, "!blocked"));
        names.extend(ids.iter().map(|(id, _)| id.clone()));
        names.extend(
            ["!unknown:hs.test", "#unknown:hs.test", "#remote:remote.test"].map(str::to_owned),
        );
        ids.push((upgrade, "!upgrade"));
        assert_eq!(new.user_id, "@new:hs.test");
        Self { synapse, names, ids }
    }

    fn plain(&self, text: &str) -> String {
        let ids: Vec<(&str, &str)> =
            self.ids.iter().map(|(id, name)| (id.as_str(), *name)).collect();
        plain(text, &ids)
    }
}

/// A room with the daemon's account in it, where it takes power 50 to invite.
async fn private(synapse: &Synapse, owner: &Account, mut room: Value, power: i64) -> String {
    let mut users = json!({(synapse.admin.user_id.clone()): power});
    if room["room_version"].is_string() {
        users[&owner.user_id] = 100.into();
    }
    room["power_level_content_override"] = json!({"invite": 50, "users": users});
    let room = synapse.create_room(owner, room).await;
    synapse.invite(owner, &room, &synapse.admin.user_id).await;
    synapse.join(&synapse.admin, &room).await;
    room
}

#[tokio::test]
async fn a_room_that_cannot_be_joined_fails_alone_and_says_what_to_do() {
    let rooms = Rooms::start().await;
    let names: Vec<&str> = rooms.names.iter().map(String::as_str).collect();
    let program = on(&rooms.synapse, &fast("sweep", &names, "users = [\"@new:hs.test\"]"));
    let (check, run) = tokio::join!(
        program.run(&["check", "--online"]),
        program.run(&["run", "sweep", "--apply", "--json"])
    );
    assert_eq!((check.code, run.code), (1, 1), "{check:?} {run:?}");
    let requested: Vec<&str> =
        check.stdout.lines().filter(|line| line.contains("may join users to")).collect();
    insta::assert_snapshot!(rooms.plain(&requested.join("\n")), @"
    main: sweep may join users to #twice:hs.test: yes, the room is public
    main: sweep may join users to !twice: yes, the room is public
    main: sweep may join users to !private-6: yes, by invitation
    main: sweep may join users to !private-10: yes, by invitation
    main: sweep may join users to !own-12: yes, by invitation
    main: sweep may join users to !restricted: yes, by invitation
    main: sweep may join users to !restricted-without-account: NO: the room is not public and @admin:hs.test is not a member: invite and join @admin:hs.test, and give it the power to invite
    main: sweep may join users to !without-account: NO: the room is not public and @admin:hs.test is not a member: invite and join @admin:hs.test, and give it the power to invite
    main: sweep may join users to !powerless: NO: the room is not public and @admin:hs.test may not invite: raise its power level to that of `invite`
    main: sweep may join users to !upgraded: NO: the room was replaced by an upgrade: replace it in `rooms` with !upgrade
    main: sweep may join users to !empty: NO: the room has no local members, and Synapse no longer tracks it: let one local user join it first, or remove it from `rooms`
    main: sweep may join users to !blocked: NO: the room is blocked on this homeserver: unblock it, or remove it from `rooms`
    main: sweep may join users to !unknown:hs.test: NO: Synapse does not know this room: fix `rooms`; a remote room needs one local member first
    main: sweep may join users to #unknown:hs.test: NO: the alias does not exist (404 M_NOT_FOUND: Room alias #unknown:hs.test not found): fix `rooms`, or create the alias
    main: sweep may join users to #remote:remote.test: NO: the alias belongs to another server, which did not resolve it (502 M_UNKNOWN: Failed to fetch alias): use the room id, or a local alias
    ");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(figures(&report), "partial: 14/5/9/0/0");
    let mut lines: Vec<String> = changes(&report).iter().map(|line| rooms.plain(line)).collect();
    lines.sort();
    insta::assert_snapshot!(lines.join("\n"), @"
    done @new:hs.test -> !own-12 (1)
    done @new:hs.test -> !private-10 (1)
    done @new:hs.test -> !private-6 (1)
    done @new:hs.test -> !restricted (1)
    done @new:hs.test -> #twice:hs.test (1)
    failed !blocked (1): the room is blocked on this homeserver: unblock it, or remove it from `rooms`
    failed !empty (1): the room has no local members, and Synapse no longer tracks it: let one local user join it first, or remove it from `rooms`
    failed !powerless (1): the room is not public and @admin:hs.test may not invite: raise its power level to that of `invite`
    failed !restricted-without-account (1): the room is not public and @admin:hs.test is not a member: invite and join @admin:hs.test, and give it the power to invite
    failed !unknown:hs.test (1): Synapse does not know this room: fix `rooms`; a remote room needs one local member first
    failed !upgraded (1): the room was replaced by an upgrade: replace it in `rooms` with !upgrade
    failed !without-account (1): the room is not public and @admin:hs.test is not a member: invite and join @admin:hs.test, and give it the power to invite
    failed #remote:remote.test (1): the alias belongs to another server, which did not resolve it (502 M_UNKNOWN: Failed to fetch alias): use the room id, or a local alias
    failed #unknown:hs.test (1): the alias does not exist (404 M_NOT_FOUND: Room alias #unknown:hs.test not found): fix `rooms`, or create the alias
    ");
    insta::assert_snapshot!(text(&report, "message"), @"9 targets failed: see the changes for the reasons");
}

/// A job that joins `@new` to the rooms of spaces.
fn of_spaces(name: &str, spaces: &[&str], keys: &str) -> String {
    format!(
        "[jobs.{name}]\nkind = \"join-rooms\"\nmode = \"apply\"\nspaces = {}\nusers = [\"@new:hs.test\"]\njoins_per_second = 1000\n{keys}\n\n",
        json!(spaces)
    )
}

#[tokio::test]
async fn spaces_bring_in_their_rooms_and_those_of_the_spaces_below_them() {
    let synapse = Synapse::start().await;
    let [owner, other, new] = registered(&synapse, ["owner", "other", "new"]).await;
    let room = async |account: &Account, room: Value| {
        let mut all = json!({"preset": "public_chat"});
        all.as_object_mut().unwrap().extend(room.as_object().unwrap().clone());
        synapse.create_room(account, all).await
    };
    let top = synapse.create_space(&owner, "top").await;
    let middle = synapse.create_space(&other, "middle").await;
    let bottom = synapse.create_space(&owner, "bottom").await;
    let closed = synapse.create_space(&owner, "closed").await;
    let lobby = room(&owner, json!({"room_alias_name": "lobby"})).await;
    let deep = room(&owner, json!({})).await;
    let beyond = room(&owner, json!({"room_alias_name": "beyond"})).await;
    let staff = room(&owner, json!({"room_alias_name": "staff"})).await;
    let alias = json!({"room_id": staff});
    let path = format!("/_matrix/client/v3/directory/room/{}", encoded("#second:hs.test"));
    assert_eq!(synapse.client(&owner, Method::PUT, &path, alias).await.0, 200);
    let secret = room(&owner, json!({"name": "Secret plans"})).await;
    let below_closed = room(&owner, json!({})).await;
    let foreign = room(&other, json!({"room_alias_name": "foreign"})).await;
    let private = room(&owner, json!({"preset": "private_chat"})).await;
    let removed = room(&owner, json!({"room_alias_name": "removed"})).await;
    for child in [&middle, &closed, &lobby, &staff, &secret, &foreign, &private, &removed] {
        synapse.add_to_space(&owner, &top, child).await;
    }
    for (key, content) in [
        (removed.as_str(), json!({})),
        ("!without-servers:hs.test", json!({"via": []})),
        ("#no-room:hs.test", json!({"via": ["hs.test"]})),
        ("!unknown:remote.test", json!({"via": ["remote.test"]})),
    ] {
        synapse.set_state(&owner, &top, ("m.space.child", key), content).await;
    }
    // A cycle, and a room that is in two spaces.
    for child in [&top, &middle, &lobby, &deep, &bottom] {
        synapse.add_to_space(&other, &middle, child).await;
    }
    synapse.add_to_space(&owner, &bottom, &beyond).await;
    synapse.add_to_space(&owner, &bottom, &middle).await;
    synapse.add_to_space(&owner, &closed, &below_closed).await;
    let ids = [
        (&top, "!top"),
        (&middle, "!middle"),
        (&bottom, "!bottom"),
        (&closed, "!closed"),
        (&lobby, "!lobby"),
        (&deep, "!deep"),
        (&beyond, "!beyond"),
        (&staff, "!staff"),
        (&secret, "!secret"),
        (&below_closed, "!below-closed"),
        (&foreign, "!foreign"),
        (&private, "!private"),
        (&removed, "!removed"),
    ];
    let ids: Vec<(&str, &str)> = ids.iter().map(|(id, name)| (id.as_str(), *name)).collect();
    let shown = |lines: &[String]| {
        let mut lines: Vec<String> = lines.iter().map(|line| plain(line, &ids)).collect();
        lines.sort();
        lines.join("\n")
    };
    // The lists of rooms in a message are in the order of the random ids.
    let message = |report: &Value| {
        let sentences = text(report, "message").split("; ");
        let sorted = |sentence: &str| match sentence.split_once(": ") {
            Some((what, rooms)) => {
                let rooms: Vec<String> = rooms.split(", ").map(str::to_owned).collect();
                format!("{}: {}", plain(what, &ids), shown(&rooms).replace('\n', ", "))
            }
            None => sentence.to_owned(),
        };
        sentences.map(sorted).collect::<Vec<_>>().join("\n")
    };
    let except =
        "except_rooms = [\"#second:hs.test\", \"Secret*\", \"#closed:*\", \"#typo:hs.test\"]\n";
    let program = on(
        &synapse,
        &[
            of_spaces(
                "sweep",
                &["#top:hs.test"],
                &format!("{except}max_depth = 2\nallow_creators = [\"@owner:*\"]"),
            ),
            of_spaces("flat", &[&top], &format!("{except}max_depth = 1")),
            of_spaces(
                "all",
                &["#top:hs.test", "#bottom:hs.test"],
                &format!("rooms = [\"#lobby:hs.test\"]\n{except}"),
            ),
            of_spaces("unclear", &["#top:hs.test"], "except_rooms = [\"#staff:remote.test\"]"),
        ]
        .concat(),
    );

    synapse.forget_requests();
    let planned = program.dry_run("flat").await;
    insta::assert_snapshot!(shown(&changes(&planned)), @"
    failed !private (1): the room is not public and @admin:hs.test is not a member: invite and join @admin:hs.test, and give it the power to invite
    failed !unknown:remote.test (1): Synapse does not know this room: let one local user join it first, or add it to `except_rooms`
    planned @new:hs.test -> #foreign:hs.test (!foreign) (1)
    planned @new:hs.test -> #lobby:hs.test (!lobby) (1)
    ");
    insta::assert_snapshot!(message(&planned), @"
    2 targets failed: see the changes for the reasons
    !top brings in 4 rooms: !private, !unknown:remote.test, #foreign:hs.test (!foreign), #lobby:hs.test (!lobby)
    `except_rooms` leaves out of !top: !secret, #closed:hs.test (!closed), #staff:hs.test (!staff)
    deeper in !top than `max_depth`, and not read: #middle:hs.test (!middle)
    ");
    let planned = program.dry_run("all").await;
    insta::assert_snapshot!(shown(&changes(&planned)), @"
    failed !private (1): the room is not public and @admin:hs.test is not a member: invite and join @admin:hs.test, and give it the power to invite
    failed !unknown:remote.test (1): Synapse does not know this room: let one local user join it first, or add it to `except_rooms`
    planned @new:hs.test -> !deep (1)
    planned @new:hs.test -> #beyond:hs.test (!beyond) (1)
    planned @new:hs.test -> #foreign:hs.test (!foreign) (1)
    planned @new:hs.test -> #lobby:hs.test (1)
    ");
    insta::assert_snapshot!(message(&planned), @"
    2 targets failed: see the changes for the reasons
    #top:hs.test brings in 6 rooms: !deep, !private, !unknown:remote.test, #beyond:hs.test (!beyond), #foreign:hs.test (!foreign), #lobby:hs.test (!lobby)
    `except_rooms` leaves out of #top:hs.test: !secret, #closed:hs.test (!closed), #staff:hs.test (!staff)
    #bottom:hs.test brings in 6 rooms: !deep, !private, !unknown:remote.test, #beyond:hs.test (!beyond), #foreign:hs.test (!foreign), #lobby:hs.test (!lobby)
    `except_rooms` leaves out of #bottom:hs.test: !secret, #closed:hs.test (!closed), #staff:hs.test (!staff)
    `#typo:hs.test` in `except_rooms` matched no room
    ");
    let output = program.run(&["run", "unclear", "--apply", "--json"]).await;
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(text(&report, "outcome"), "refused");
    insta::assert_snapshot!(text(&report, "message"), @"`except_rooms` names #staff:remote.test, and the alias belongs to another server, which did not resolve it (502 M_UNKNOWN: Failed to fetch alias): use the room id, or a local alias");
    assert_eq!(posts(&synapse), 0);

    let made = program.apply("sweep").await;
    insta::assert_snapshot!(shown(&changes(&made)), @"
    done @new:hs.test -> !deep (1)
    done @new:hs.test -> #lobby:hs.test (!lobby) (1)
    failed !private (1): the room is not public and @admin:hs.test is not a member: invite and join @admin:hs.test, and give it the power to invite
    ");
    insta::assert_snapshot!(message(&made), @"
    1 target failed: see the changes for the reasons
    #top:hs.test brings in 3 rooms: !deep, !private, #lobby:hs.test (!lobby)
    `except_rooms` leaves out of #top:hs.test: !secret, #closed:hs.test (!closed), #staff:hs.test (!staff)
    nobody in `allow_creators` created these rooms of #top:hs.test: !unknown:remote.test, #foreign:hs.test (!foreign)
    deeper in #top:hs.test than `max_depth`, and not read: #bottom:hs.test (!bottom)
    ");
    let mut after = Vec::new();
    for (room, name) in &ids {
        let member = synapse.membership(room, &new.user_id).await;
        after.push(format!(
            "{name} {}",
            member.map_or_else(|| "none".to_owned(), |it| it.membership)
        ));
    }
    insta::assert_snapshot!(after.join("\n"), @"
    !top none
    !middle none
    !bottom none
    !closed none
    !lobby join
    !deep join
    !beyond none
    !staff none
    !secret none
    !below-closed none
    !foreign none
    !private none
    !removed none
    ");
    // Of a room that became empty Synapse knows neither name nor alias.
    synapse.leave(&owner, &secret).await;
    let again = program.apply("sweep").await;
    insta::assert_snapshot!(shown(&changes(&again)), @"
    failed !private (1): the room is not public and @admin:hs.test is not a member: invite and join @admin:hs.test, and give it the power to invite
    failed !secret (1): the room has no local members, and Synapse no longer tracks it: let one local user join it first, or add it to `except_rooms`
    ");
}

#[tokio::test]
async fn a_space_without_rooms_is_a_failed_target_and_says_what_to_do() {
    let synapse = Synapse::start().await;
    let [owner, _] = registered(&synapse, ["owner", "new"]).await;
    let room = synapse.create_room(&owner, json!({"preset": "public_chat"})).await;
    let [good, too, bare, emptied, below, upgraded] = {
        let mut spaces = Vec::new();
        for name in ["good", "good-too", "bare", "emptied", "below", "upgraded"] {
            spaces.push(synapse.create_space(&owner, name).await);
        }
        <[String; 6]>::try_from(spaces).unwrap()
    };
    for (space, child) in [
        (&good, &room),
        (&good, &below),
        (&too, &room),
        (&too, &below),
        (&emptied, &room),
        (&upgraded, &room),
    ] {
        synapse.add_to_space(&owner, space, child).await;
    }
    synapse.set_state(&owner, &bare, ("m.space.child", &room), json!({})).await;
    synapse.leave(&owner, &emptied).await;
    let upgrade = synapse.upgrade_room(&owner, &upgraded, "10").await;
    let spaces = [
        "#good:hs.test",
        "#good-too:hs.test",
        "#bare:hs.test",
        "#emptied:hs.test",
        &upgraded,
        &room,
        "!unknown:hs.test",
        "#unknown:hs.test",
    ];
    let program = on(&synapse, &of_spaces("sweep", &spaces, ""));
    let ids: [(&str, &str); 4] =
        [(&room, "!room"), (&below, "!below"), (&upgraded, "!upgraded"), (&upgrade, "!upgrade")];
    let check = program.run(&["check", "--online"]).await;
    let asked = ["finds the rooms of", "may join users to"];
    let lines: Vec<&str> = check
        .stdout
        .lines()
        .filter(|line| asked.iter().any(|question| line.contains(question)))
        .collect();
    insta::assert_snapshot!(plain(&lines.join("\n"), &ids), @"
    main: sweep finds the rooms of #below:hs.test (!below): NO: the space names no rooms: add some, let one local user join it if its last local member left, or add it to `except_rooms`
    main: sweep finds the rooms of #good-too:hs.test: 1 room
    main: sweep finds the rooms of #bare:hs.test: NO: the space names no rooms: add some, let one local user join it if its last local member left, or remove it from `spaces`
    main: sweep finds the rooms of #emptied:hs.test: NO: the space names no rooms: add some, let one local user join it if its last local member left, or remove it from `spaces`
    main: sweep finds the rooms of !upgraded: NO: the space was replaced by an upgrade: replace it in `spaces` with !upgrade
    main: sweep finds the rooms of !room: NO: this is not a space: move it to `rooms`
    main: sweep finds the rooms of !unknown:hs.test: NO: Synapse does not know this space: fix `spaces`; a remote space needs one local member first
    main: sweep finds the rooms of #unknown:hs.test: NO: the alias does not exist (404 M_NOT_FOUND: Room alias #unknown:hs.test not found): fix `spaces`, or create the alias
    main: sweep may join users to !room: yes, the room is public
    ");
    let report = program.run(&["run", "sweep", "--apply", "--json"]).await;
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(figures(&report), "partial: 8/1/7/0/0");
    let mut lines: Vec<String> = changes(&report).iter().map(|line| plain(line, &ids)).collect();
    lines.sort();
    insta::assert_snapshot!(lines.join("\n"), @"
    done @new:hs.test -> !room (1)
    failed !room (1): this is not a space: move it to `rooms`
    failed !unknown:hs.test (1): Synapse does not know this space: fix `spaces`; a remote space needs one local member first
    failed !upgraded (1): the space was replaced by an upgrade: replace it in `spaces` with !upgrade
    failed #bare:hs.test (1): the space names no rooms: add some, let one local user join it if its last local member left, or remove it from `spaces`
    failed #below:hs.test (!below) (1): the space names no rooms: add some, let one local user join it if its last local member left, or add it to `except_rooms`
    failed #emptied:hs.test (1): the space names no rooms: add some, let one local user join it if its last local member left, or remove it from `spaces`
    failed #unknown:hs.test (1): the alias does not exist (404 M_NOT_FOUND: Room alias #unknown:hs.test not found): fix `spaces`, or create the alias
    ");
}

#[tokio::test]
async fn a_job_needs_rooms_or_spaces_and_keys_about_spaces_need_spaces() {
    let keys =
        "except_rooms = [\"#staff:hs.test\"]\nmax_depth = 2\nallow_creators = [\"@a:hs.test\"]\n";
    let jobs = format!(
        "[jobs.neither]\nkind = \"join-rooms\"\n\n{}{}",
        fast("no-spaces", &["#lobby:hs.test"], keys),
        of_spaces("right", &["#top:hs.test"], keys)
    );
    let program = Program::new("http://127.0.0.1:9", TOKEN, &jobs);
    let check = program.run(&["check"]).await;
    assert_eq!(check.code, 2, "{check:?}");
    let errors: Vec<&str> = check
        .stderr
        .lines()
        .filter_map(|line| line.split_once("microglia.toml:"))
        .map(|(_, error)| error.split_once(": ").map_or(error, |(_, text)| text))
        .collect();
    insta::assert_snapshot!(errors.join("\n"), @r##"
    `rooms` is missing: add `rooms = …` or `spaces = …`, a list, each item an alias such as "#room:example.com" or a room id
    `except_rooms` has no effect: it is about rooms of `spaces`
    `max_depth` has no effect: it is about rooms of `spaces`
    `allow_creators` has no effect: it is about rooms of `spaces`
     4 errors
    "##);
}

#[tokio::test]
async fn a_room_that_fails_under_two_names_is_one_failed_target() {
    let fake = fake(&["new"], &["blocked"]);
    fake.world(|world| world.room("!blocked:fake.test").blocked = Some(at("microglia")));
    let rooms = ["#blocked:fake.test", "!blocked:fake.test"];
    let program = Program::new(&fake.url(), TOKEN, &fast("sweep", &rooms, ""));
    assert_eq!(figures(&program.apply("sweep").await), "failed: 1/0/1/0/0");
    assert_eq!(joins(&fake), Vec::<String>::new());
}

#[tokio::test]
async fn globs_over_more_users_than_a_page_are_planned_completely_and_applied_in_parts() {
    let synapse = Synapse::start().await;
    let owner = synapse.register("owner").await;
    let public = json!({"preset": "public_chat", "room_alias_name": "lobby"});
    synapse.create_room(&owner, public).await;
    let many = synapse.register_many("many", 1200).await;
    let globs = "users = [\"@many000*\", \"@many01199:hs.test\", \"@nobody*\"]\nexcept_users = [\"@many0000?:hs.test\", \"@many00001:hs.test\", \"@none:hs.test\"]";
    let lobby = ["#lobby:hs.test"];
    let program = on(
        &synapse,
        &[
            at_pace(0.5, "all", &lobby, globs),
            fast("guarded", &lobby, &format!("max_changes = 90\n{globs}")),
            fast("parts", &lobby, &format!("max_changes = 90\nat_most = 3\n{globs}")),
        ]
        .concat(),
    );
    let report = program.dry_run("all").await;
    let expected: Vec<String> = many[10..100]
        .iter()
        .chain([&many[1199]])
        .map(|user| format!("planned {user} -> #lobby:hs.test (1)"))
        .collect();
    assert_eq!(changes(&report), expected);
    insta::assert_snapshot!(text(&report, "message"), @"`@nobody*` matched no account; `@none:hs.test` matched no account; at 0.5 joins per second, the 91 joins to #lobby:hs.test take about 3 min 2 s");

    synapse.forget_requests();
    let refused = program.run(&["run", "guarded", "--json"]).await;
    let report: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!((refused.code, figures(&report)), (1, "refused: 91/0/0/0/91".to_owned()));
    insta::assert_snapshot!(text(&report, "message").split("; `").next().unwrap(), @"the plan has 91 items, more than max_changes = 90: preview it with `microglia run guarded --dry-run`; if it is correct, run it once with `--max-changes 91`, raise max_changes, or set at_most to apply it in parts");
    assert_eq!(posts(&synapse), 0);

    for first in [10, 13] {
        let report = program.apply("parts").await;
        assert_eq!(figures(&report), "succeeded: 3/3/0/0/null");
        let done: Vec<String> = many[first..first + 3]
            .iter()
            .map(|user| format!("done {user} -> #lobby:hs.test (1)"))
            .collect();
        let made: Vec<String> =
            changes(&report).into_iter().filter(|line| line.starts_with("done")).collect();
        assert_eq!(made, done);
    }
}

#[tokio::test]
async fn if_nobody_is_missing_the_number_of_requests_does_not_grow_with_the_users() {
    let mut counts = Vec::new();
    for users in [1, 10_000] {
        let names: Vec<String> = (0..10).map(|n| format!("room{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let fake = fake(&[], &names);
        fake.world(|world| {
            world.users(users, |_| crate::fake::User::default());
            let everybody: Vec<String> = world.users.keys().cloned().collect();
            for room in world.rooms.values_mut() {
                for user in &everybody {
                    room.joined(user);
                }
            }
        });
        let aliases: Vec<String> = names.iter().map(|name| format!("#{name}:fake.test")).collect();
        let aliases: Vec<&str> = aliases.iter().map(String::as_str).collect();
        let program = Program::new(&fake.url(), TOKEN, &fast("sweep", &aliases, ""));
        assert_eq!(figures(&program.apply("sweep").await), "succeeded: 0/0/0/0/0");
        counts.push(fake.count("*", "/"));
    }
    assert_eq!(counts[0], counts[1] - 1, "ten thousand and one accounts are two pages");
    assert!(counts[1] <= 50, "{counts:?}");
}

#[tokio::test]
async fn joins_into_one_room_and_into_all_rooms_have_separate_rate_limits() {
    let users = ["a", "b", "c", "d", "e"];
    let fake = fake(&users, &["one", "two"]);
    let rooms = ["#one:fake.test", "#two:fake.test"];
    let except = "except_users = [\"@microglia:*\"]";
    let program = Program::new(&fake.url(), TOKEN, &at_pace(10.0, "sweep", &rooms, except));
    assert_eq!(figures(&program.apply("sweep").await), "succeeded: 10/10/0/0/0");
    for room in ["one", "two"] {
        let times: Vec<_> = fake
            .requests()
            .into_iter()
            .filter(|seen| seen.method == "POST" && seen.path.contains(room))
            .map(|seen| seen.at)
            .collect();
        // At least a tenth of a second passes between the end of one join and the start of the next.
        assert!(times[4] - times[0] >= Duration::from_millis(400), "{times:?}");
    }

    fake.forget();
    fake.world(|world| {
        for room in world.rooms.values_mut() {
            room.members.retain(|user, _| user == "@microglia:fake.test");
        }
    });
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n[homeservers.main]\nurl = \"{}\"\naccess_token = \"{TOKEN}\"\nmax_joins_per_second = 10\n\n{}",
        fake.url(),
        fast("sweep", &rooms, except)
    ));
    assert_eq!(figures(&program.apply("sweep").await), "succeeded: 10/10/0/0/0");
    let requests = fake.requests();
    let last = requests.iter().rfind(|seen| seen.method == "POST").unwrap();
    // The first turn was after the first request, the tenth nine intervals later.
    assert!(last.at - requests[0].at >= Duration::from_millis(900));
}

#[tokio::test]
async fn users_who_changed_between_plan_and_join_are_skipped() {
    let fake = fake(&["a", "came", "left", "gone", "locked", "z"], &["lobby"]);
    fake.fault(Fault::new("POST", JOIN, Trouble::Delay(Duration::from_secs(2))));
    let program = Program::new(&fake.url(), TOKEN, &fast("sweep", &["#lobby:fake.test"], ""));
    let child = program.command(&["run", "sweep", "--json"]).spawn().unwrap();
    until("the first join", 20, async || fake.count("POST", JOIN) == 1).await;
    fake.world(|world| {
        world.room("!lobby:fake.test").joined(&at("came")).left(&at("left"));
        world.user(&at("gone")).deactivated = true;
        world.user(&at("locked")).locked = true;
    });
    let (output, report) = ended(child).await;
    assert_eq!((output.code, figures(&report)), (0, "succeeded: 6/2/0/4/0".to_owned()));
    insta::assert_snapshot!(changes(&report).join("\n"), @"
    done @a:fake.test -> #lobby:fake.test (1)
    done @z:fake.test -> #lobby:fake.test (1)
    skipped @came:fake.test -> #lobby:fake.test (1): the membership changed since the plan and is now `join`
    skipped @gone:fake.test -> #lobby:fake.test (1): the account was deactivated, locked or suspended since the plan
    skipped @left:fake.test -> #lobby:fake.test (1): the membership changed since the plan and is now `leave`
    skipped @locked:fake.test -> #lobby:fake.test (1): the account was deactivated, locked or suspended since the plan
    ");
    assert_eq!(joins(&fake), ["@a -> lobby", "@z -> lobby"]);
}

#[tokio::test]
async fn an_interrupt_ends_a_rate_limited_run_between_two_joins() {
    let fake = fake(&["a", "b", "c"], &["lobby"]);
    let jobs = at_pace(0.01, "sweep", &["#lobby:fake.test"], "");
    let program = Program::new(&fake.url(), TOKEN, &jobs);
    let child = program.command(&["run", "sweep", "--json"]).spawn().unwrap();
    until("the first join", 20, async || fake.count("POST", JOIN) == 1).await;
    send("INT", &child);
    let (output, report) = ended(child).await;
    assert_eq!((output.code, figures(&report)), (1, "cancelled: 3/1/0/0/2".to_owned()));
    assert_eq!(
        text(&report, "message"),
        "cancelled by SIGINT (Ctrl-C) between two changes; 1 of 3 changes made; 1 of 4 accounts read; the next run continues"
    );
    let kept = program.json(&["runs", "show", "1", "--json"]).await;
    assert_eq!(
        changes(&kept),
        [
            "done @a:fake.test -> #lobby:fake.test (1)",
            "planned @b:fake.test -> #lobby:fake.test (1): not attempted: the run was cancelled",
            "planned @c:fake.test -> #lobby:fake.test (1): not attempted: the run was cancelled",
        ]
    );
    assert_eq!(kept, report);
    assert_eq!(joins(&fake), ["@a -> lobby"]);
}

#[tokio::test]
async fn an_interrupt_does_not_wait_for_the_rate_limit_of_every_room() {
    let names = ["one", "two", "three"];
    let fake = fake(&["a"], &names);
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n[homeservers.main]\nurl = \"{}\"\naccess_token = \"{TOKEN}\"\nmax_joins_per_second = 0.2\n\n{}",
        fake.url(),
        fast("sweep", &["#one:fake.test", "#two:fake.test", "#three:fake.test"], "")
    ));
    let child = program.command(&["run", "sweep", "--json"]).spawn().unwrap();
    until("the first join", 20, async || fake.count("POST", JOIN) == 1).await;
    send("INT", &child);
    let (output, report) = ended(child).await;
    assert_eq!((output.code, figures(&report)), (1, "cancelled: 3/1/0/0/2".to_owned()));
    assert_eq!(joins(&fake), ["@a -> one"]);
}

#[tokio::test]
async fn a_second_interrupt_ends_the_run_without_waiting_for_the_join_in_progress() {
    let fake = fake(&["a", "b", "c"], &["lobby"]);
    fake.fault(Fault::new("POST", JOIN, Trouble::Hang));
    let program = Program::new(&fake.url(), TOKEN, &fast("sweep", &["#lobby:fake.test"], ""));
    let mut child = program.command(&["run", "sweep", "--json"]).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    until("the first join", 20, async || fake.count("POST", JOIN) == 1).await;
    send("INT", &child);
    let mut said = Vec::new();
    while let Some(line) = stderr.next_line().await.unwrap() {
        let stopping = line.contains("press Ctrl-C again to stop immediately");
        said.push(line);
        if stopping {
            break;
        }
    }
    assert_eq!(
        said.last().map(String::as_str),
        Some("stopping sweep after the change in progress; press Ctrl-C again to stop immediately"),
        "{said:?}"
    );
    send("INT", &child);
    let (output, report) = ended(child).await;
    assert_eq!((output.code, figures(&report)), (1, "cancelled: 3/0/1/0/2".to_owned()));
    assert_eq!(
        changes(&report),
        [
            "failed @a:fake.test -> #lobby:fake.test (1): no response arrived before the run ended: the change may have been made",
            "planned @b:fake.test -> #lobby:fake.test (1): not attempted: the run was cancelled",
            "planned @c:fake.test -> #lobby:fake.test (1): not attempted: the run was cancelled",
        ]
    );
    assert_eq!(
        text(&report, "message"),
        "cancelled by SIGINT (Ctrl-C) in the middle of a change; 0 of 3 changes made; stopped immediately by a second signal, SIGINT (Ctrl-C), without waiting for the change in progress"
    );
}

#[tokio::test]
async fn a_killed_run_is_finished_by_the_next_and_nobody_is_joined_twice() {
    let synapse = Synapse::start().await;
    let owner = synapse.register("owner").await;
    let public = json!({"preset": "public_chat", "room_alias_name": "lobby"});
    let room = synapse.create_room(&owner, public).await;
    let users = synapse.register_many("many", 8).await;
    let program = on(&synapse, &at_pace(8.0, "sweep", &["#lobby:hs.test"], ""));
    synapse.forget_requests();
    let mut child = program.command(&["run", "sweep"]).stderr(Stdio::null()).spawn().unwrap();
    until("the third join", 20, async || posts(&synapse) == 3).await;
    child.kill().await.unwrap();
    let report = program.apply("sweep").await;
    let mut counts = Vec::new();
    for user in &users {
        counts.push(synapse.join_event_count(&room, user).await);
    }
    assert_eq!(counts, [1; 8]);
    assert_eq!(report["outcome"], "succeeded", "{report}");
    let runs = program.json(&["runs", "--json"]).await;
    assert_eq!(runs[0]["outcome"], "succeeded");
    let first = &runs[1];
    assert_eq!(first["outcome"], "interrupted");
    assert_eq!(first["message"], "microglia exited while the run was in progress");
    let [planned, done, failed, remaining] =
        ["planned", "done", "failed", "remaining"].map(|name| first[name].as_u64().unwrap());
    // The third join was sent; whether its response was recorded depends on timing.
    assert_eq!((planned, done + failed, remaining), (8, 3, 5), "{first}");
    assert!(done >= 2, "{first}");
}

#[tokio::test]
async fn a_join_whose_response_was_lost_is_counted_once() {
    let fake = fake(&["a", "b", "c"], &["lobby"]);
    fake.fault(Fault::new("POST", JOIN, Trouble::CutAfter).after(1));
    let retries = "retries = { attempts = 2, first_delay = \"1s\" }";
    let program = Program::new(&fake.url(), TOKEN, &fast("sweep", &["#lobby:fake.test"], retries));
    let report = program.apply("sweep").await;
    assert_eq!(figures(&report), "succeeded: 3/3/0/0/0");
    assert_eq!(report["attempts"], 2);
    insta::assert_snapshot!(changes(&report).join("\n"), @"
    done @a:fake.test -> #lobby:fake.test (1)
    done @b:fake.test -> #lobby:fake.test (1): the response was lost; the new plan shows that the change was made
    done @c:fake.test -> #lobby:fake.test (1)
    ");
    assert_eq!(joins(&fake), ["@a -> lobby", "@b -> lobby", "@c -> lobby"]);
}

#[tokio::test]
async fn a_join_that_synapse_rate_limits_is_repeated_after_the_given_time_and_made_once() {
    let fake = fake(&["a", "b"], &["lobby"]);
    let limited = Trouble::Limited { retry_after_ms: Some(700), retry_after_header: Some(1) };
    fake.fault(Fault::new("POST", JOIN, limited));
    let program = Program::new(&fake.url(), TOKEN, &fast("sweep", &["#lobby:fake.test"], ""));
    let report = program.apply("sweep").await;
    assert_eq!(
        (figures(&report), &report["attempts"]),
        ("succeeded: 2/2/0/0/0".to_owned(), &json!(1))
    );
    assert_eq!(joins(&fake), ["@a -> lobby", "@a -> lobby", "@b -> lobby"]);
    let times: Vec<_> = fake
        .requests()
        .into_iter()
        .filter(|seen| seen.method == "POST")
        .map(|seen| seen.at)
        .collect();
    assert!(times[1] - times[0] >= Duration::from_millis(700), "{times:?}");
}

#[tokio::test]
async fn a_synapse_that_cannot_report_who_left_is_refused() {
    let fake = fake(&["a"], &["lobby"]);
    fake.world(|world| world.version = "1.122.0".to_owned());
    let program = Program::new(&fake.url(), TOKEN, &fast("sweep", &["#lobby:fake.test"], ""));
    let output = program.run(&["run", "sweep", "--json"]).await;
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((output.code, text(&report, "outcome")), (1, "refused"));
    insta::assert_snapshot!(text(&report, "message"), @"main runs Synapse 1.122.0, and join-rooms requires 1.123 or later: upgrade Synapse");
    assert_eq!(joins(&fake), Vec::<String>::new());
    fake.world(|world| world.version = "1.123.0".to_owned());
    assert_eq!(figures(&program.apply("sweep").await), "succeeded: 1/1/0/0/0");
}

#[tokio::test]
async fn a_missing_or_circular_predecessor_of_a_room_does_not_stop_the_run() {
    let fake = fake(&["a", "left"], &["orphan", "one", "two"]);
    fake.world(|world| {
        let id = |name: &str| Some(format!("!{name}:{SERVER_NAME}"));
        world.room("!orphan:fake.test").predecessor = id("purged");
        world.room("!one:fake.test").predecessor = id("two");
        world.room("!two:fake.test").left(&at("left")).predecessor = id("one");
    });
    let rooms = ["#orphan:fake.test", "#one:fake.test"];
    let program = Program::new(&fake.url(), TOKEN, &fast("sweep", &rooms, ""));
    assert_eq!(
        changes(&program.apply("sweep").await),
        [
            "done @a:fake.test -> #one:fake.test (1)",
            "done @a:fake.test -> #orphan:fake.test (1)",
            "done @left:fake.test -> #orphan:fake.test (1)",
        ]
    );
}

#[tokio::test]
async fn the_end_of_the_window_ends_a_run_between_two_joins() {
    let fake = Arc::new(fake(&["a", "b", "c", "d"], &["lobby"]));
    let jobs = fast("sweep", &["#lobby:fake.test"], "window = \"01:00-06:00\"");
    let program = Program::new(&fake.url(), TOKEN, &jobs);
    let clock = {
        let fake = Arc::clone(&fake);
        let inside: DateTime<Utc> = "2026-11-23T05:59:00Z".parse().unwrap();
        Clock::of(move || {
            let over = fake.count("POST", JOIN) >= 2;
            inside + TimeDelta::minutes(i64::from(over))
        })
    };
    let config =
        Config::load(&program.path("microglia.toml"), &Environment::default(), clock.now())
            .unwrap();
    let dir = StateDir::open(&program.path("state")).unwrap();
    let runner = Runner {
        history: History::open(program.place(), clock.clone()).await.unwrap(),
        dir: Some(dir),
        clock,
        lost_call_wait: LostCallWait::default(),
    };
    let transport = Transport::new(config.homeservers["main"].settings(), Arc::new(|_| {}));
    let handle = HomeserverHandle {
        transport: Arc::new(transport.unwrap()),
        mas: None,
        slots: RunSlots::Locks(1),
        max_concurrent_requests: 4,
        yield_to: Vec::new(),
    };
    let spec = config.job("sweep").unwrap();
    let run = async || {
        let (params, stop) = (RunParams::manual(spec), Stop::default());
        let report = runner.run(spec, &handle, &params, &stop, Arc::new(|_| {})).await.unwrap();
        serde_json::to_value(report).unwrap()
    };
    let report = run().await;
    assert_eq!(figures(&report), "succeeded: 4/2/0/0/2");
    assert_eq!(
        text(&report, "message"),
        "stopped at the end of the job's window; 2 left; 2 of 5 accounts read; the next run continues"
    );
    assert_eq!(joins(&fake), ["@a -> lobby", "@b -> lobby"]);
    let report = run().await;
    insta::assert_snapshot!(format!("{}\n{}", figures(&report), text(&report, "message")), @"
    refused: null/0/0/0/null
    outside the job's window 01:00-06:00, which opens at 2026-11-24 01:00 UTC; a dry run is allowed at any time, and `--ignore-window` ignores the window once
    ");
}

#[tokio::test]
async fn a_job_has_one_run_at_a_time_and_others_on_its_homeserver_run_after_it() {
    let fake = fake(&["a", "b", "c", "d"], &["one", "two"]);
    let jobs =
        [at_pace(2.0, "first", &["#one:fake.test"], ""), fast("second", &["#two:fake.test"], "")];
    let program = Program::new(&fake.url(), TOKEN, &jobs.concat());
    let child = program.command(&["run", "first", "--json"]).spawn().unwrap();
    until("the first join", 20, async || fake.count("POST", JOIN) == 1).await;
    let (busy, second) =
        tokio::join!(program.run(&["run", "first", "--json"]), program.apply("second"));
    assert_eq!((busy.code, busy.stdout.as_str()), (1, ""));
    assert_eq!(
        busy.stderr.lines().last(),
        Some("error: first is already running (run 1)"),
        "{busy:?}"
    );
    assert_eq!(figures(&second), "succeeded: 4/4/0/0/0");
    let (output, first) = ended(child).await;
    assert_eq!((output.code, figures(&first)), (0, "succeeded: 4/4/0/0/0".to_owned()));
    assert_eq!(
        joins(&fake),
        [
            "@a -> one",
            "@b -> one",
            "@c -> one",
            "@d -> one",
            "@a -> two",
            "@b -> two",
            "@c -> two",
            "@d -> two",
        ]
    );
}

const MEMBERS: &str = "/_synapse/admin/v1/rooms/!one:fake.test/members";

#[tokio::test]
async fn a_member_list_beyond_the_limit_of_other_lists_is_read_while_it_arrives() {
    let fake = fake(&["a", "b"], &["one"]);
    let padding = "x".repeat(65 << 20);
    let body = format!(r#"{{"members": ["@a:fake.test"], "padding": "{padding}", "total": 1}}"#);
    fake.fault(Fault::new("GET", MEMBERS, Trouble::Answer { status: 200, headers: vec![], body }));
    let except = "except_users = [\"@microglia:*\"]";
    let program = Program::new(&fake.url(), TOKEN, &fast("sweep", &["#one:fake.test"], except));
    let report = program.dry_run("sweep").await;
    assert_eq!(changes(&report), ["planned @b:fake.test -> #one:fake.test (1)"]);
}

#[tokio::test]
async fn a_member_list_may_take_long_as_long_as_it_goes_on() {
    let fake = fake(&["a", "b"], &["one"]);
    fake.fault(Fault::new("GET", MEMBERS, Trouble::CutBody));
    fake.fault(Fault::new("GET", MEMBERS, Trouble::Trickle));
    let except = "except_users = [\"@microglia:*\"]";
    let job = fast("sweep", &["#one:fake.test"], except);
    let program = Program::new(&fake.url(), TOKEN, &format!("request_timeout = \"1s\"\n{job}"));
    assert_eq!(figures(&program.dry_run("sweep").await), "succeeded: 2/0/0/0/0");
}

#[tokio::test]
async fn a_member_list_that_is_no_list_is_shown_in_the_error() {
    let fake = fake(&["a"], &["one"]);
    let body = r#"{"members": 5}"#.to_owned();
    let answer = Trouble::Answer { status: 200, headers: vec![], body };
    fake.fault(Fault::new("GET", MEMBERS, answer).always());
    let job = fast("sweep", &["#one:fake.test"], "retries = { attempts = 1 }");
    let program = Program::new(&fake.url(), TOKEN, &job);
    let report = program.dry_run("sweep").await;
    insta::assert_snapshot!(report["message"].as_str().unwrap(), @"GET /_synapse/admin/v1/rooms/!one:fake.test/members: cannot decode the response (invalid type: integer `5`, expected a list of ids at line 1 column 14): {\"members\": 5}");
}
