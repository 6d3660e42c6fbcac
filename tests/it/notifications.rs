//! Reports to Matrix rooms: what is told, once and to the right people, and what people decide there.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::daemon::replicas::{database, held, replica};
use crate::fake::{Fake, Fault, Message, TOKEN, Trouble, User, World};
use crate::homeserver::{Account, Synapse, encoded};
use crate::program::{Daemon, Program, on_postgres, until};

const ROOM: &str = "!ops:fake.test";
const SEND: &str = "/_matrix/client/v3/rooms/!ops:fake.test/send/";
const PING: &str = "/_matrix/client/versions";

/// A homeserver with a room for messages, and another with so many users to join.
fn with_rooms(users: usize) -> Fake {
    let mut world = World::new();
    world.users(users, |_| User::default());
    world.room(ROOM);
    world.room("!lobby:fake.test");
    let admin = world.admin();
    world.token(TOKEN, &admin).device_id = Some("DEVICE".to_owned());
    Fake::of(world)
}

fn notifying(fake: &Fake, keys: &str, jobs: &str) -> Program {
    let rest = format!("[notifications.ops]\nroom = \"{ROOM}\"\n{keys}\n\n{jobs}");
    Program::new(&fake.url(), TOKEN, &rest)
}

fn ping(name: &str, more: &str) -> String {
    format!(
        "[jobs.{name}]\nkind = \"request\"\nmode = \"apply\"\nmethod = \"GET\"\npath = \"{PING}\"\nretries = {{ attempts = 1 }}\n{more}\n"
    )
}

fn sweep(mode: &str) -> String {
    format!(
        "[jobs.lobby]\nkind = \"join-rooms\"\nmode = \"{mode}\"\nrooms = [\"!lobby:fake.test\"]\njoins_per_second = 1000\n"
    )
}

fn messages(fake: &Fake) -> Vec<Message> {
    fake.world(|world| world.messages.clone())
}

fn bodies(fake: &Fake) -> Vec<String> {
    messages(fake).iter().map(|message| message.body().to_owned()).collect()
}

async fn until_sent(fake: &Fake, count: usize) {
    until("the messages", 40, async || messages(fake).len() >= count).await;
}

/// Waits until the daemon has looked again: what it had to tell by now is sent.
async fn until_all_is_told(program: &Program, daemon: &Daemon) {
    let report = program.json(&["run", "marker", "--json"]).await;
    assert_eq!(report["outcome"], "succeeded", "{report}");
    until("the metric", 40, async || {
        let sent = daemon.metric("microglia_notifications_pending", &["notification=\"ops\""]);
        sent.await == Some(0.0)
    })
    .await;
}

fn fail(fake: &Fake) {
    fake.fault(
        Fault::new(
            "GET",
            PING,
            Trouble::Synapse(400, "M_INVALID_PARAM", "No @bob:fake.test <b>here</b>"),
        )
        .always(),
    );
}

#[tokio::test]
async fn a_job_that_keeps_failing_is_told_once_and_again_when_it_works() {
    let fake = with_rooms(0);
    let program = notifying(&fake, "on = [\"failure\", \"recovery\"]", &ping("nightly", ""));
    let daemon = program.serve().await;
    fail(&fake);
    for _ in 0..3 {
        program.json(&["run", "nightly", "--json"]).await;
    }
    until_sent(&fake, 1).await;
    fake.no_more_faults();
    program.json(&["run", "nightly", "--json"]).await;
    until_sent(&fake, 2).await;
    program.json(&["run", "nightly", "--json"]).await;
    fail(&fake);
    program.json(&["run", "nightly", "--json"]).await;
    until_sent(&fake, 3).await;
    let told = messages(&fake);
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(
        told[0].body().starts_with("nightly failed\nrequest on main, run 1, apply: "),
        "{told:#?}"
    );
    assert!(told[0].body().contains("\n- 400 M_INVALID_PARAM: No … <b>here</b>"), "{told:#?}");
    assert!(told[0].body().ends_with("\nSee microglia runs show 1"), "{told:#?}");
    assert_eq!(told[0].content["msgtype"], "m.text");
    assert!(
        told[1].body().starts_with("nightly works again\nrequest on main, run 4, apply: "),
        "{told:#?}"
    );
    assert_eq!(told[1].content["msgtype"], "m.notice");
    assert!(told[2].body().starts_with("nightly failed\n"), "{told:#?}");
    // What the homeserver says is text, and names nobody.
    let html = told[0].content["formatted_body"].as_str().unwrap();
    assert!(html.contains("No … &lt;b&gt;here&lt;/b&gt;"), "{html}");
    assert!(!told[0].content.to_string().contains("@bob"), "{told:#?}");
    until("the metric", 30, async || {
        let labels = ["notification=\"ops\"", "result=\"sent\""];
        daemon.metric("microglia_notifications_total", &labels).await == Some(3.0)
    })
    .await;
}

#[tokio::test]
async fn a_job_that_fails_for_days_is_told_once_a_day() {
    let fake = with_rooms(0);
    let program = notifying(&fake, "", &ping("nightly", ""));
    let daemon = program.serve().await;
    fail(&fake);
    program.json(&["run", "nightly", "--json"]).await;
    until_sent(&fake, 1).await;
    daemon.stop().await;
    program.sql("UPDATE messages SET created_at = created_at - 86390000").await;
    let _daemon = program.serve().await;
    program.json(&["run", "nightly", "--json"]).await;
    until_sent(&fake, 2).await;
    let told = bodies(&fake);
    assert!(told[1].contains("2 runs in a row did not succeed, since "), "{told:#?}");
    assert!(told[1].contains("it is reported once a day"), "{told:#?}");
}

#[tokio::test]
async fn a_message_arrives_once_though_answers_are_lost_and_the_daemon_is_killed() {
    let fake = with_rooms(0);
    let jobs = format!("{}{}", ping("nightly", ""), ping("marker", ""));
    let program = notifying(&fake, "on = [\"failure\"]", &jobs);
    let daemon = program.serve().await;
    // The message arrives, and nobody learns it; its sender is killed, and the next one has another device.
    fake.fault(Fault::new("PUT", SEND, Trouble::Delay(Duration::from_mins(2))));
    fail(&fake);
    program.json(&["run", "nightly", "--json"]).await;
    until_sent(&fake, 1).await;
    daemon.kill().await;
    fake.no_more_faults();
    fake.world(|world| {
        // As after a day: the transaction is forgotten.
        for message in &mut world.messages {
            message.txn_id = String::new();
        }
    });
    let daemon = program.serve().await;
    until_all_is_told(&program, &daemon).await;
    fake.fault(Fault::new("PUT", SEND, Trouble::CutAfter).times(2));
    fail(&fake);
    program.sql("UPDATE messages SET created_at = created_at - 86390000").await;
    program.json(&["run", "nightly", "--json"]).await;
    until("the record", 60, async || {
        daemon.metric("microglia_notifications_pending", &["notification=\"ops\""]).await
            == Some(0.0)
            && messages(&fake).len() > 1
    })
    .await;
    let told = bodies(&fake);
    assert_eq!(told.len(), 2, "{told:#?}");
}

#[tokio::test]
async fn an_outage_delays_messages_and_no_run_and_loses_none() {
    let fake = with_rooms(0);
    let other = Fake::start();
    let config = format!(
        "[daemon]\nstate_dir = \"state\"\n\n[homeservers.main]\nurl = \"{}\"\naccess_token_file = \"token\"\n\n[homeservers.chat]\nurl = \"{}\"\naccess_token_file = \"token\"\n\n[notifications.ops]\nhomeserver = \"chat\"\nroom = \"{ROOM}\"\non = [\"failure\", \"changes\"]\n\n{}",
        other.url(),
        fake.url(),
        ping("nightly", "homeserver = \"main\"")
    );
    let program = Program::with_config(&config);
    program.write("token", TOKEN);
    fake.go_down();
    let daemon = program.serve().await;
    other.fault(Fault::new("GET", PING, Trouble::Synapse(400, "M_INVALID_PARAM", "No")).times(1));
    let report = program.json(&["run", "nightly", "--json"]).await;
    assert_eq!(report["outcome"], "failed", "{report}");
    until("the metric", 30, async || {
        let pending = daemon.metric("microglia_notifications_pending", &["notification=\"ops\""]);
        let failed = daemon.metric(
            "microglia_notifications_total",
            &["notification=\"ops\"", "result=\"failed\""],
        );
        pending.await == Some(1.0) && failed.await > Some(0.0)
    })
    .await;
    assert!(daemon.log().contains("notification ops: messages wait, because "), "{}", daemon.log());
    daemon.stop().await;
    fake.come_up();
    let daemon = program.serve().await;
    until_sent(&fake, 1).await;
    assert!(bodies(&fake)[0].starts_with("nightly failed"), "{:?}", bodies(&fake));
    until("the metric", 30, async || {
        daemon.metric("microglia_notifications_pending", &["notification=\"ops\""]).await
            == Some(0.0)
    })
    .await;
}

#[tokio::test]
async fn replicas_tell_everything_once_though_the_one_that_sends_is_killed() {
    const JOBS: usize = 12;
    if on_postgres() {
        return;
    }
    let fake = with_rooms(0);
    let url = database().await;
    let mut jobs =
        format!("[notifications.ops]\nroom = \"{ROOM}\"\ndigest = \"*/20 * * * * *\"\n\n");
    for number in 0..JOBS {
        jobs.push_str(&ping(&format!("job{number}"), ""));
    }
    let programs = [(); 2].map(|()| replica(&url, &[("main", &fake)], &jobs));
    let first = programs[0].serve().await;
    let second = programs[1].serve().await;
    fail(&fake);
    // Each answer takes longer than the time to the kill: some message is always under way.
    fake.fault(Fault::new("PUT", SEND, Trouble::Delay(Duration::from_millis(500))).always());
    for number in 0..JOBS {
        let job = format!("job{number}");
        let report = programs[number % 2].json(&["run", &job, "--json"]).await;
        assert_eq!(report["outcome"], "failed", "{report}");
    }
    until_sent(&fake, 3).await;
    let holder =
        if held(&first).await == 1 { first } else { panic!("the first replica has the lease") };
    holder.kill().await;
    let failures = || {
        let mut told: Vec<String> = bodies(&fake)
            .iter()
            .filter(|body| !body.starts_with("microglia: since"))
            .map(|body| body.lines().next().unwrap().to_owned())
            .collect();
        told.sort_unstable();
        told
    };
    until("the rest", 60, async || failures().len() >= JOBS).await;
    until("the record", 30, async || {
        second.metric("microglia_notifications_pending", &["notification=\"ops\""]).await
            == Some(0.0)
    })
    .await;
    let mut expected: Vec<String> = (0..JOBS).map(|number| format!("job{number} failed")).collect();
    expected.sort_unstable();
    assert_eq!(failures(), expected);
    let digests: Vec<String> =
        bodies(&fake).into_iter().filter(|body| body.starts_with("microglia: since")).collect();
    let distinct: std::collections::BTreeSet<&String> = digests.iter().collect();
    assert_eq!(distinct.len(), digests.len(), "{digests:#?}");
}

#[tokio::test]
async fn the_homeservers_limit_of_messages_is_respected() {
    let fake = with_rooms(0);
    let program = notifying(&fake, "on = [\"changes\"]", &ping("nightly", ""));
    let limited = Trouble::Limited { retry_after_ms: Some(12_000), retry_after_header: None };
    fake.fault(Fault::new("PUT", SEND, limited));
    let _daemon = program.serve().await;
    program.json(&["run", "nightly", "--json"]).await;
    until_sent(&fake, 1).await;
    let sent: Vec<_> =
        fake.requests().into_iter().filter(|seen| seen.path.contains("/send/")).collect();
    assert_eq!(sent.len(), 2);
    assert!(sent[1].at - sent[0].at >= Duration::from_secs(12), "{sent:#?}");
    assert_eq!(sent[0].path, sent[1].path, "the transaction stays the same");
}

#[tokio::test]
async fn names_are_told_only_where_the_room_may_read_them() {
    for names in [false, true] {
        let fake = with_rooms(12);
        let keys = format!("on = [\"changes\"]\nnames = {names}");
        let program = notifying(&fake, &keys, &sweep("apply"));
        let _daemon = program.serve().await;
        program.json(&["run", "lobby", "--json"]).await;
        until_sent(&fake, 1).await;
        let told = bodies(&fake);
        assert!(
            told[0].starts_with(
                "lobby changed 12 items\njoin-rooms on main, run 1, apply: 12 planned, 12 done"
            ),
            "{told:#?}"
        );
        assert_eq!(told[0].contains("@user000003:fake.test"), names, "{told:#?}");
        assert_eq!(told[0].contains("and 2 more items"), names, "{told:#?}");
        assert_eq!(messages(&fake)[0].content.to_string().contains("fake.test"), names);
    }
}

#[tokio::test]
async fn a_dry_run_that_a_person_starts_and_a_cancelled_run_tell_nobody() {
    let fake = with_rooms(3);
    let keys = "on = [\"failure\", \"recovery\", \"approval\", \"changes\"]";
    let jobs = format!("{}max_changes = 1\n\n{}", sweep("dry-run"), ping("marker", ""));
    let program = notifying(&fake, keys, &jobs);
    let daemon = program.serve().await;
    let report = program.json(&["run", "lobby", "--json"]).await;
    assert_ne!(report["outcome"], Value::Null, "{report}");
    until_all_is_told(&program, &daemon).await;
    until_sent(&fake, 1).await;
    let told = bodies(&fake);
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].starts_with("marker changed 1 item"), "{told:#?}");
}

#[tokio::test]
async fn a_digest_sums_up_what_happened_since_the_one_before() {
    let fake = with_rooms(0);
    let jobs = format!(
        "{}{}{}",
        ping("nightly", ""),
        ping("weekly", ""),
        ping("idle", "schedule = \"0 0 1 1 *\"")
    );
    let program = notifying(&fake, "on = []\ndigest = \"*/2 * * * * *\"", &jobs);
    let daemon = program.serve().await;
    until_sent(&fake, 1).await;
    daemon.stop().await;
    fake.world(|world| world.messages.clear());
    program.sql("UPDATE messages SET created_at = created_at - 60000").await;
    // Without a daemon: what the command line ran is told, too.
    fail(&fake);
    program.json(&["run", "nightly", "--json"]).await;
    fake.no_more_faults();
    program.json(&["run", "nightly", "--json"]).await;
    program.json(&["run", "weekly", "--json"]).await;
    let _daemon = program.serve().await;
    until_sent(&fake, 1).await;
    let told = bodies(&fake);
    let lines: Vec<&str> = told[0].lines().collect();
    assert!(lines[0].starts_with("microglia: since "), "{told:#?}");
    assert_eq!(
        lines[1..],
        [
            "3 runs of 2 jobs, 1 unsuccessful; 2 items changed",
            "- nightly: 2 runs, 1 unsuccessful, 1 item changed",
            "- idle: did not run",
            "- weekly: 1 run, 1 item changed",
        ],
        "{told:#?}"
    );
    // A job that does not run in every period is no problem.
    assert_eq!(messages(&fake)[0].content["msgtype"], "m.notice");
}

#[tokio::test]
async fn a_notification_with_an_error_is_refused_with_its_place() {
    for (keys, expected) in [
        ("", "`room` is missing: add `room = …`"),
        ("room = \"ops\"", "\"ops\" is not a valid room: expected an alias"),
        ("room = \"!a:b\"\non = [\"recovery\"]", "add \"failure\" to `on`, or remove \"recovery\""),
        (
            "room = \"!a:b\"\non = []",
            "the notification never sends anything: add events to `on`, or set `digest`",
        ),
        ("room = \"!a:b\"\non = [\"failures\"]", "(did you mean \"failure\"?)"),
        (
            "room = \"!a:b\"\non = [\"failure\"]\napprovers = [\"@a:b\"]",
            "add \"approval\" to `on`, or remove `approvers`",
        ),
        ("room = \"!a:b\"\napprovers = [\"alice\"]", "\"alice\" is not a valid Matrix id"),
        (
            "room = \"!a:b\"\nhomeserver = \"mian\"",
            "unknown homeserver \"mian\" (did you mean \"main\"?)",
        ),
        ("room = \"!a:b\"\ndigest = \"0 8 31 2 *\"", "never"),
        ("room = \"!a:b\"\nrom = 1", "unknown key `rom`"),
    ] {
        let program =
            Program::new("http://127.0.0.1:1", TOKEN, &format!("[notifications.ops]\n{keys}\n"));
        let output = program.run(&["check"]).await;
        assert_eq!(output.code, 2, "{keys}: {output:?}");
        assert!(output.stderr.contains(expected), "{keys}: {output:?}");
    }
}

/// A room of the admin account, with so many members who have joined.
async fn room(synapse: &Synapse, members: &[&Account]) -> String {
    let room = synapse.create_room(&synapse.admin, json!({"preset": "public_chat"})).await;
    for member in members {
        synapse.join(member, &room).await;
    }
    room
}

async fn react(synapse: &Synapse, account: &Account, room: &str, event: &str, key: &str) -> String {
    let path = format!(
        "/_matrix/client/v3/rooms/{}/send/m.reaction/{}",
        encoded(room),
        encoded(&format!("{key}{event}{}", account.user_id))
    );
    let content =
        json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": event, "key": key}});
    let (status, answer) = synapse.client(account, Method::PUT, &path, content).await;
    assert_eq!(status, 200, "{answer}");
    answer["event_id"].as_str().unwrap().to_owned()
}

async fn redact(synapse: &Synapse, account: &Account, room: &str, event: &str) {
    let path = format!(
        "/_matrix/client/v3/rooms/{}/redact/{}/r{}",
        encoded(room),
        encoded(event),
        &event[1..6]
    );
    let (status, answer) = synapse.client(account, Method::PUT, &path, json!({})).await;
    assert_eq!(status, 200, "{answer}");
}

/// The messages of the admin account in a room, oldest first.
async fn in_room(synapse: &Synapse, room: &str) -> Vec<Value> {
    let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=f&limit=100", encoded(room));
    let page = synapse.get(&path).await;
    let events = page["chunk"].as_array().unwrap().iter();
    events
        .filter(|event| event["type"] == "m.room.message" && !event["content"]["body"].is_null())
        .cloned()
        .collect()
}

async fn until_in_room(synapse: &Synapse, room: &str, count: usize) -> Vec<Value> {
    until("the messages", 40, async || in_room(synapse, room).await.len() >= count).await;
    let told = in_room(synapse, room).await;
    assert_eq!(told.len(), count, "{told:#?}");
    told
}

#[tokio::test]
async fn the_first_reaction_of_an_approver_decides_and_is_answered() {
    let synapse = Synapse::start().await;
    let (alice, mallory) = (synapse.register("alice").await, synapse.register("mallory").await);
    let ops = room(&synapse, &[&alice, &mallory]).await;
    let lobby = room(&synapse, &[]).await;
    let jobs = format!(
        "[notifications.ops]\nroom = \"{ops}\"\napprovers = [\"{}\"]\n\n[jobs.lobby]\nkind = \"join-rooms\"\nmode = \"approve\"\nrooms = [\"{lobby}\"]\nusers = [\"@alice:*\", \"@mallory:*\"]\n",
        alice.user_id
    );
    let program = Program::new(&synapse.url, &synapse.admin.token, &jobs);
    let config = program.read("microglia.toml");
    program.write(
        "microglia.toml",
        &config.replacen("[daemon]\n", "[daemon]\npublic_url = \"https://page.example\"\n", 1),
    );
    let daemon = program.serve().await;
    let run = program.json(&["run", "lobby", "--json"]).await["id"].clone();
    let told = until_in_room(&synapse, &ops, 1).await;
    let text = told[0]["content"]["body"].as_str().unwrap();
    assert!(
        text.starts_with(
            "lobby: a plan waits for approval\njoin-rooms on main, run 1, approve: 2 items"
        ),
        "{text}"
    );
    assert!(text.contains("React with ✅ to approve it or with ❌ to reject it."), "{text}");
    assert!(
        text.contains(&format!("On the server: microglia approve {run} or microglia reject {run}")),
        "{text}"
    );
    assert!(text.ends_with("\nrun 1: https://page.example/runs/1"), "{text}");
    assert!(!text.contains("@alice"), "{text}");
    let plan = told[0]["event_id"].as_str().unwrap();
    // Neither a stranger's, nor another emoji, nor one that was taken back.
    react(&synapse, &mallory, &ops, plan, "✅").await;
    react(&synapse, &alice, &ops, plan, "👍").await;
    let taken_back = react(&synapse, &alice, &ops, plan, "❌").await;
    redact(&synapse, &alice, &ops, &taken_back).await;
    let asked = || synapse.requests().iter().filter(|line| line.contains("/relations/")).count();
    let before = asked();
    until("more looks", 40, async || asked() > before + 2).await;
    let state = program.json(&["runs", "show", "1", "--json"]).await["approval"]["state"].clone();
    assert_eq!(state, "pending");
    react(&synapse, &alice, &ops, plan, "✅").await;
    // The decision, and what came of it.
    let told = until_in_room(&synapse, &ops, 3).await;
    for answer in &told[1..] {
        assert_eq!(
            answer["content"]["m.relates_to"]["m.in_reply_to"]["event_id"], plan,
            "{answer}"
        );
        assert!(!answer.to_string().contains("alice"), "{answer}");
    }
    let mut answers: Vec<&str> =
        told[1..].iter().map(|it| it["content"]["body"].as_str().unwrap()).collect();
    answers.sort_unstable();
    assert_eq!(answers[0], "Approved: run 2 applies the plan.");
    assert!(answers[1].starts_with("lobby changed 2 items\n"), "{answers:#?}");
    let approval = program.json(&["runs", "show", "1", "--json"]).await["approval"].clone();
    assert_eq!(approval["by"], format!("{} with a reaction", alice.user_id));
    for member in [&alice, &mallory] {
        let membership = synapse.membership(&lobby, &member.user_id).await.unwrap();
        assert_eq!(membership.membership, "join");
    }
    // A later one decides nothing any more.
    react(&synapse, &alice, &ops, plan, "❌").await;
    let applied = program.json(&["runs", "show", "2", "--json"]).await;
    assert_eq!(applied["outcome"], "succeeded", "{applied}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_rejected_plan_and_one_that_was_decided_elsewhere_are_answered() {
    let synapse = Synapse::start().await;
    let alice = synapse.register("alice").await;
    let ops = room(&synapse, &[&alice]).await;
    let lobby = room(&synapse, &[]).await;
    let jobs = format!(
        "[notifications.ops]\nroom = \"{ops}\"\nnames = true\napprovers = [\"{}\"]\n\n[jobs.lobby]\nkind = \"join-rooms\"\nmode = \"approve\"\nrooms = [\"{lobby}\"]\nusers = [\"@alice:*\"]\nmax_changes = 1\n",
        alice.user_id
    );
    let program = Program::new(&synapse.url, &synapse.admin.token, &jobs);
    let _daemon = program.serve().await;
    program.json(&["run", "lobby", "--json"]).await;
    let told = until_in_room(&synapse, &ops, 1).await;
    let text = told[0]["content"]["body"].as_str().unwrap();
    assert!(text.contains(&format!("- join-room {} -> ", alice.user_id)), "{text}");
    react(&synapse, &alice, &ops, told[0]["event_id"].as_str().unwrap(), "❌\u{fe0f}").await;
    let told = until_in_room(&synapse, &ops, 2).await;
    let expected = format!("Rejected by {} with a reaction: nothing was changed.", alice.user_id);
    assert_eq!(told[1]["content"]["body"], expected);
    assert_eq!(synapse.membership(&lobby, &alice.user_id).await, None);
    program.json(&["run", "lobby", "--json"]).await;
    until_in_room(&synapse, &ops, 3).await;
    assert_eq!(program.run(&["reject", "2"]).await.code, 0);
    let told = until_in_room(&synapse, &ops, 4).await;
    let text = told[3]["content"]["body"].as_str().unwrap();
    assert!(text.starts_with("Rejected by ") && text.contains("uid"), "{text}");
}

#[tokio::test]
async fn check_tells_why_a_room_cannot_take_messages() {
    let synapse = Synapse::start().await;
    let admin = &synapse.admin;
    let bob = synapse.register("bob").await;
    let good = room(&synapse, &[]).await;
    let foreign = synapse.create_room(&bob, json!({"preset": "public_chat"})).await;
    let encrypted = synapse
        .create_room(admin, json!({"initial_state": [{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]}))
        .await;
    let replaced = room(&synapse, &[]).await;
    let replacement = synapse.upgrade_room(admin, &replaced, "11").await;
    let quiet = synapse
        .create_room(&bob, json!({"preset": "public_chat", "power_level_content_override": {"events_default": 50}}))
        .await;
    synapse.join(admin, &quiet).await;
    let left = room(&synapse, &[&bob]).await;
    synapse.leave(admin, &left).await;
    let me = &admin.user_id;
    let notifications: String = [
        ("good", &*good),
        ("foreign", &foreign),
        ("encrypted", &encrypted),
        ("replaced", &replaced),
        ("quiet", &quiet),
        ("left", &left),
        ("alias", "#nothing:hs.test"),
    ]
    .iter()
    .map(|(name, room)| format!("[notifications.{name}]\nroom = \"{room}\"\napprovers = [\"@a:hs.test\", \"@b:elsewhere.test\"]\n\n"))
    .collect();
    let program = Program::new(&synapse.url, &admin.token, &notifications);
    let checked = program.json(&["check", "--online", "--json"]).await;
    let answer = |question: &str| {
        let results = checked["online"].as_array().unwrap();
        let found = results.iter().find(|result| result["question"] == question);
        found.map(|result| format!("{} {}", result["ok"], result["answer"].as_str().unwrap()))
    };
    let room = |name: &str| answer(&format!("{name} can send to its room")).unwrap();
    assert_eq!(room("good"), "true yes");
    assert!(room("foreign").starts_with(&format!("false {me} is not in the room {foreign}")));
    assert!(room("left").starts_with(&format!("false {me} is not in the room {left}")));
    assert!(room("encrypted").contains("is encrypted"), "{}", room("encrypted"));
    assert_eq!(
        room("replaced"),
        format!("false the room {replaced} was replaced by {replacement}: set `room` to that")
    );
    assert!(room("quiet").contains("may not send messages"), "{}", room("quiet"));
    assert!(room("alias").contains("there is no room #nothing:hs.test"), "{}", room("alias"));
    assert_eq!(answer("good device").unwrap(), "true yes");
    let approver = answer("good approver").unwrap();
    assert!(
        approver.starts_with("false @b:elsewhere.test has no account on hs.test"),
        "{approver}"
    );
}
