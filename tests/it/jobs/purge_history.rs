//! `purge-history`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::fake::{Fake, Fault, SERVER_NAME, TOKEN, Trouble, World, room_event};
use crate::homeserver::{Account, Synapse, encoded};
use crate::program::{Program, changes, figures, until};

const PURGE: &str = "/_synapse/admin/v1/purge_history/";
const STATUS: &str = "/_synapse/admin/v1/purge_history_status/";
/// 2022-01-01, long before any test runs.
const LONG_AGO_MS: i64 = 1_640_995_200_000;

fn job(keys: &str) -> String {
    format!(
        "[jobs.history]\nkind = \"purge-history\"\nolder_than = \"14d\"\ndelete_local_events = true\n{keys}\n"
    )
}

fn id(room: &str) -> String {
    format!("!{room}:{SERVER_NAME}")
}

fn message(number: usize) -> Value {
    let sent_ms = LONG_AGO_MS + i64::try_from(number).unwrap();
    let mut event = room_event("m.room.message", "", "@alice:fake.test", sent_ms, &json!({}));
    event.as_object_mut().unwrap().remove("state_key");
    event["event_id"] = format!("$message{number}").into();
    event
}

/// A homeserver in memory with rooms of the daemon's account and of old messages.
fn fake(rooms: &[&str], messages: usize) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        for room in rooms {
            world.room(&id(room)).timeline = (0..messages).rev().map(message).collect();
        }
    });
    fake
}

fn all(fake: &Fake, keys: &str) -> Program {
    Program::new(&fake.url(), TOKEN, &job(&format!("all_rooms = true\n{keys}")))
}

async fn send(synapse: &Synapse, account: &Account, room_id: &str, content: Value) -> String {
    let room_id = encoded(room_id);
    let path = format!("/_matrix/client/v3/rooms/{room_id}/send/m.room.message");
    let (status, answer) = synapse.client(account, Method::POST, &path, content).await;
    assert_eq!(status, 200, "{answer}");
    answer["event_id"].as_str().unwrap().to_owned()
}

async fn say(synapse: &Synapse, account: &Account, room_id: &str) -> String {
    send(synapse, account, room_id, json!({"msgtype": "m.text", "body": "x"})).await
}

async fn is_readable(synapse: &Synapse, account: &Account, room_id: &str, event_id: &str) -> bool {
    let (room_id, event_id) = (encoded(room_id), encoded(event_id));
    let path = format!("/_matrix/client/v3/rooms/{room_id}/event/{event_id}");
    synapse.client(account, Method::GET, &path, Value::Null).await.0 == 200
}

#[tokio::test]
async fn only_old_messages_of_selected_rooms_are_purged() {
    let mut synapse = Synapse::days_ago(20, "").await;
    let alice = synapse.register("alice").await;
    let room = async |room| synapse.create_room(&alice, room).await;
    let talk = room(json!({"room_alias_name": "talk"})).await;
    let quiet = room(json!({"name": "Quiet"})).await;
    let kept = room(json!({"name": "keep this"})).await;
    let secret =
        json!([{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]);
    let secret = room(json!({"initial_state": secret})).await;
    let expiring =
        json!([{"type": "m.room.retention", "content": {"max_lifetime": 86_400_000_000_i64}}]);
    let expiring = room(json!({"initial_state": expiring})).await;
    let left = room(json!({})).await;
    let mut old = Vec::new();
    for room_id in [&talk, &quiet, &kept, &secret, &expiring, &left] {
        for _ in 0..3 {
            old.push((room_id, say(&synapse, &alice, room_id).await));
        }
    }
    synapse.leave(&alice, &left).await;
    let (thread, pinned) = (&old[0].1, &old[1].1);
    let path = format!("/_matrix/client/v3/rooms/{}/state/m.room.pinned_events", encoded(&talk));
    let pins = json!({"pinned": [pinned, "$unknown"]});
    assert_eq!(synapse.client(&alice, Method::PUT, &path, pins).await.0, 200);
    synapse.return_to_now().await;
    let relation = json!({"rel_type": "m.thread", "event_id": thread});
    let reply = json!({"msgtype": "m.text", "body": "reply", "m.relates_to": relation});
    let reply = send(&synapse, &alice, &talk, reply).await;
    let fresh = say(&synapse, &alice, &talk).await;

    let keys = "all_rooms = true\nonly_unencrypted = true\nexcept_rooms = [\"keep *\"]";
    let program = Program::new(&synapse.url, &synapse.admin.token, &job(keys));
    synapse.forget_requests();
    let planned = program.dry_run("history").await;
    assert_eq!(figures(&planned), "succeeded: 2/0/0/0/0");
    let expected = json!({"encrypted": 1, "excluded": 1, "no-members": 1, "own-retention": 1});
    assert_eq!(planned["left_alone"], expected);
    let losses = format!(
        "1 first message of threads that go on, and 1 pinned message go, in #talk:hs.test {talk}"
    );
    assert_eq!(planned["message"], losses);
    let targets: Vec<&str> = planned["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["target"].as_str().unwrap())
        .collect();
    let target = |start: &str| *targets.iter().find(|target| target.starts_with(start)).unwrap();
    let of_talk = format!("#talk:hs.test {talk} (not encrypted): 3 messages before {reply} of ");
    assert!(target("#talk").starts_with(&of_talk), "{targets:?}");
    let last = &old[5].1;
    let of_quiet = format!("\"Quiet\" {quiet} (not encrypted): 2 messages before {last} of ");
    assert!(target("\"Quiet").starts_with(&of_quiet), "{targets:?}");
    let other: Vec<String> =
        synapse.requests().into_iter().filter(|request| !request.starts_with("GET ")).collect();
    assert_eq!(other, Vec::<String>::new(), "a dry run sends nothing but GET");

    let made = program.apply("history").await;
    assert_eq!(figures(&made), "succeeded: 2/2/0/0/0");
    for (number, (room_id, event_id)) in old.iter().enumerate() {
        let goes = number < 5;
        assert_eq!(is_readable(&synapse, &alice, room_id, event_id).await, !goes, "{number}");
    }
    for event_id in [&reply, &fresh] {
        assert!(is_readable(&synapse, &alice, &talk, event_id).await);
    }
    assert_eq!(figures(&program.apply("history").await), "succeeded: 0/0/0/0/0");
}

#[tokio::test]
async fn rooms_are_named_or_all_and_a_room_that_is_unknown_fails_alone() {
    let fake = fake(&["a", "b", "c"], 5);
    fake.world(|world| {
        world.room(&id("a")).alias("#a:fake.test");
        world.room(&id("c")).encrypted = true;
    });
    let rooms = "rooms = [\"#a:fake.test\", \"!a:fake.test\", \"!gone:fake.test\", \"#far:away\"]";
    let program = Program::new(&fake.url(), TOKEN, &job(rooms));
    let report = program.apply("history").await;
    assert_eq!(figures(&report), "partial: 3/1/2/0/0");
    let report = all(&fake, "only_encrypted = true").apply("history").await;
    assert_eq!(figures(&report), "succeeded: 1/1/0/0/0");
    assert_eq!(report["left_alone"], json!({"not-encrypted": 2}));
    let report = all(&fake, "min_events = 5").dry_run("history").await;
    assert_eq!(report["left_alone"], json!({"few-events": 1}));
    let left = |room| fake.world(|world| world.rooms[&id(room)].timeline.len());
    assert_eq!(["a", "b", "c"].map(left), [1, 5, 1], "the newest event stays");
}

#[tokio::test]
async fn rooms_with_users_of_other_servers_are_left_alone_and_never_read() {
    let fake = fake(&["a", "b"], 5);
    let program = all(&fake, "");
    fake.world(|world| {
        world.room(&id("a")).joined("@eve:far");
    });
    let report = program.dry_run("history").await;
    assert_eq!(
        (figures(&report), &report["left_alone"]),
        ("succeeded: 1/0/0/0/0".to_owned(), &json!({"federated": 1}))
    );
    let messages = format!("/_synapse/admin/v1/rooms/{}/messages", id("a"));
    assert_eq!(fake.count("GET", &messages), 0, "Synapse would fetch older messages");
}

#[tokio::test]
async fn messages_that_are_not_old_keep_a_room_from_being_purged() {
    let fake = fake(&["a"], 5);
    fake.world(|world| {
        let now = world.now().timestamp_millis();
        let room = world.room(&id("a"));
        // What a bridge imported comes after a recent message.
        room.timeline[3]["origin_server_ts"] = now.into();
        room.timeline[0]["origin_server_ts"] = (now - 86_400_000).into();
    });
    let report = all(&fake, "").apply("history").await;
    assert_eq!(figures(&report), "failed: 1/0/1/0/0");
    let why = "failed !a:fake.test (1): messages that are not old would go, too: their place in the room does not follow their time, as after an import by a bridge";
    assert_eq!(changes(&report), [why]);
    assert_eq!(fake.count("POST", PURGE), 0);
}

#[tokio::test]
async fn at_most_50_000_messages_of_a_room_are_counted() {
    let fake = fake(&["a"], 51_000);
    let report = all(&fake, "").dry_run("history").await;
    let target = report["changes"][0]["target"].as_str().unwrap();
    let expected =
        "!a:fake.test (not encrypted): more than 50,000 messages before $message50999 of ";
    assert!(target.starts_with(expected), "{target}");
    let messages = format!("/_synapse/admin/v1/rooms/{}/messages", id("a"));
    assert_eq!(fake.count("GET", &messages), 51);
}

#[tokio::test]
async fn a_purge_whose_response_was_lost_is_not_sent_again() {
    for (polls, trouble, sent) in
        [(3, Trouble::CutAfter, 1), (0, Trouble::CutAfter, 1), (1, Trouble::CutBefore, 2)]
    {
        let fake = fake(&["a"], 5);
        fake.world(|world| world.polls_per_deletion = polls);
        fake.fault(Fault::new("POST", PURGE, trouble.clone()));
        let report = all(&fake, "retries = { first_delay = \"1s\" }").apply("history").await;
        assert_eq!(figures(&report), "succeeded: 1/1/0/0/0", "{trouble:?}");
        assert_eq!((fake.count("POST", PURGE), &report["attempts"]), (sent, &json!(2)));
    }
}

#[tokio::test]
async fn a_purge_is_followed_to_its_end_across_restarts_of_both_sides() {
    let fake = fake(&["a", "b"], 5);
    let program = all(&fake, "");
    fake.world(|world| world.polls_per_deletion = u32::MAX);
    let mut child = program.command(&["run", "history", "--apply", "--json"]).spawn().unwrap();
    until("the purge is sent", 30, async || fake.count("GET", STATUS) > 0).await;
    child.kill().await.unwrap();
    fake.forget();
    let run = program.command(&["run", "history", "--apply", "--json"]).spawn().unwrap();
    until("the purge is found", 30, async || fake.count("GET", STATUS) > 1).await;
    fake.go_down();
    fake.world(|world| {
        world.polls_per_deletion = 1;
        world.tasks[0].polls = 3;
    });
    fake.come_up();
    let output = run.wait_with_output().await.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0");
    assert_eq!(report["changes"][0]["detail"], "the purge was under way already");
    assert_eq!(fake.count("POST", PURGE), 1, "only that of the second room");
}

#[tokio::test]
async fn a_purge_that_fails_or_is_forgotten_is_a_failure_of_its_room() {
    let fake = fake(&["a", "b"], 5);
    fake.world(|world| world.deletion_error = Some("database is locked".to_owned()));
    let gone = Trouble::Synapse(404, "M_NOT_FOUND", "purge id not found");
    fake.fault(Fault::new("GET", STATUS, gone));
    // What is still under way is none for the other room.
    fake.world(|world| world.polls_per_deletion = 0);
    let report = all(&fake, "").apply("history").await;
    assert_eq!(figures(&report), "failed: 2/0/2/0/0");
    let lines = changes(&report);
    assert!(
        lines[0].ends_with("Synapse could not purge the history: it no longer knows the purge"),
        "{lines:?}"
    );
    assert!(
        lines[1].ends_with("Synapse could not purge the history: database is locked"),
        "{lines:?}"
    );
}

/// What happens between plan and change, and why the change is then skipped.
type Happened = (fn(&mut World), &'static str);

#[tokio::test]
async fn a_room_that_changed_since_the_plan_is_skipped() {
    let happened: [Happened; 2] = [
        (
            |world| {
                world.room(&id("a")).joined("@eve:far");
            },
            "users of other servers joined the room since the plan",
        ),
        (
            |world| {
                world.room(&id("a")).timeline.remove(0);
            },
            "the old messages changed since the plan",
        ),
    ];
    for (happens, why) in happened {
        let fake = fake(&["a"], 5);
        let retention = format!("/_synapse/admin/v1/rooms/{}/messages", id("a"));
        fake.fault(Fault::new("GET", &retention, Trouble::Then(happens)).after(1));
        let report = all(&fake, "").apply("history").await;
        assert_eq!(figures(&report), "succeeded: 1/0/0/1/0");
        assert_eq!(report["changes"][0]["detail"], why);
        assert_eq!(fake.count("POST", PURGE), 0);
    }
}

#[tokio::test]
async fn what_a_room_says_about_retention_counts_unless_it_is_ignored() {
    let fake = fake(&["a"], 5);
    let retention = json!({"type": "m.room.retention", "content": {"max_lifetime": 5}});
    fake.world(|world| world.room(&id("a")).extra_state.push(retention));
    let report = all(&fake, "").dry_run("history").await;
    assert_eq!(report["left_alone"], json!({"own-retention": 1}));
    let report = all(&fake, "ignore_retention = true").dry_run("history").await;
    assert_eq!(figures(&report), "succeeded: 1/0/0/0/0");
}

#[tokio::test]
async fn keys_that_select_nothing_or_too_much_are_errors_and_hiding_is_a_warning() {
    for (keys, expected) in [
        ("older_than = \"14d\"\nall_rooms = true", "`delete_local_events` is missing"),
        ("older_than = \"14d\"\ndelete_local_events = true", "no room is selected"),
        (
            "older_than = \"14d\"\ndelete_local_events = true\nall_rooms = true\nrooms = [\"!a\"]",
            "mutually exclusive",
        ),
        (
            "older_than = \"14d\"\ndelete_local_events = true\nall_rooms = true\nonly_encrypted = true\nonly_unencrypted = true",
            "together select no room",
        ),
        ("older_than = \"1d\"\ndelete_local_events = true\nall_rooms = true", "below the minimum"),
        ("delete_local_events = true\nall_rooms = true", "no age is set"),
    ] {
        let job = format!("[jobs.history]\nkind = \"purge-history\"\n{keys}\n");
        let output = Program::new("http://127.0.0.1:9", TOKEN, &job).run(&["check"]).await;
        assert_eq!(output.code, 2, "{keys}");
        assert!(output.stderr.contains(expected), "{keys}: {}", output.stderr);
    }
    let job = job("all_rooms = true").replace("local_events = true", "local_events = false");
    let output = Program::new("http://127.0.0.1:9", TOKEN, &job).run(&["check"]).await;
    let printed = format!("{}{}", output.stdout, output.stderr);
    assert!(printed.contains("hides the messages of local users all the same"), "{printed}");
}
