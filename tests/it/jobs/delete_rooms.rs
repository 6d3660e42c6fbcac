//! `delete-rooms`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::fake::{Fake, Fault, SERVER_NAME, TOKEN, Trouble, World, room_event};
use crate::homeserver::{Account, Synapse, encoded};
use crate::program::{Program, changes, figures, until};

const DELETE: &str = "/_synapse/admin/v2/rooms/";
const STATUS: &str = "/_synapse/admin/v2/rooms/delete_status/";

fn job(keys: &str) -> String {
    format!("[jobs.rooms]\nkind = \"delete-rooms\"\nempty_for = \"14d\"\n{keys}\n")
}

fn on(synapse: &Synapse, keys: &str) -> Program {
    Program::new(&synapse.url, &synapse.admin.token, &job(keys))
}

fn id(room: &str) -> String {
    format!("!{room}:{SERVER_NAME}")
}

/// A homeserver in memory with rooms that were emptied 30 days ago.
fn fake(rooms: &[&str]) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        for room in rooms {
            world.emptied_room(&id(room), &format!("@alice:{SERVER_NAME}"), 30);
        }
    });
    fake
}

/// A job whose memory says that all rooms have been empty for long.
async fn watching(fake: &Fake, keys: &str) -> Program {
    let program = Program::new(&fake.url(), TOKEN, &job(keys));
    let first = program.dry_run("rooms").await;
    assert_eq!(figures(&first), "succeeded: 0/0/0/0/0");
    seen_long_ago(&program).await;
    fake.forget();
    program
}

/// What happens between plan and change, and why the change is then skipped.
type Happened = (fn(&mut World), &'static str);

async fn seen_long_ago(program: &Program) {
    program.sql("UPDATE facts SET value = '1700000000000' WHERE topic = 'empty-room'").await;
}

/// Makes each shutdown an hour older, in the memory of the job and in that of Synapse.
async fn shut_down_an_hour_ago(program: &Program, fake: &Fake) {
    fake.world(|world| world.tasks.iter_mut().for_each(|task| task.at_ms -= 3_600_000));
    let (at, old) = ("CAST(substr(value, 15) AS BIGINT)", "substr(value, 1, 14)");
    let set = format!("{old} || CAST({at} - 3600000 AS TEXT)");
    let shut_down = "topic = 'empty-room' AND length(value) > 14";
    program.sql(&format!("UPDATE facts SET value = {set} WHERE {shut_down}")).await;
}

fn left_alone(report: &Value) -> &Value {
    &report["left_alone"]
}

fn deletions(fake: &Fake) -> usize {
    fake.count("DELETE", DELETE)
}

/// Without the ids of real rooms.
fn plain(lines: Vec<String>, rooms: &[(&str, &String)]) -> Vec<String> {
    let mut lines: Vec<String> = lines
        .into_iter()
        .map(|line| {
            rooms.iter().fold(line, |line, (name, room_id)| line.replace(room_id.as_str(), name))
        })
        .collect();
    lines.sort();
    lines
}

async fn is_there(synapse: &Synapse, room_id: &str) -> bool {
    let path = format!("/_synapse/admin/v1/rooms/{}", encoded(room_id));
    synapse.admin(Method::GET, &path, Value::Null).await.0 == 200
}

async fn room(synapse: &Synapse, owner: &Account, mut room: Value) -> String {
    room["preset"] = json!("public_chat");
    synapse.create_room(owner, room).await
}

/// Purges all but the last event of a room.
async fn purge_history(synapse: &Synapse, room_id: &str) {
    let path = format!("/_synapse/admin/v1/purge_history/{}", encoded(room_id));
    let later = json!({"purge_up_to_ts": 4_000_000_000_000_i64, "delete_local_events": true});
    let (status, answer) = synapse.admin(Method::POST, &path, later).await;
    assert_eq!(status, 200, "{answer}");
    let id = answer["purge_id"].as_str().unwrap();
    let path = format!("/_synapse/admin/v1/purge_history_status/{id}");
    until("the history is purged", 30, async || synapse.get(&path).await["status"] == "complete")
        .await;
}

fn date_of(line: &str) -> &str {
    line.split_once("last activity ").unwrap().1.split(',').next().unwrap()
}

#[tokio::test]
async fn only_rooms_that_have_been_empty_for_long_are_shut_down_and_purged_by_a_later_run() {
    let config = "forgotten_room_retention_period: 90d\n";
    let mut synapse = Synapse::days_ago(20, config).await;
    let (alice, bob) = (synapse.register("alice").await, synapse.register("bob").await);
    let gone = room(
        &synapse,
        &alice,
        json!({"name": "Gone", "room_alias_name": "gone", "room_version": "10"}),
    )
    .await;
    let newest = room(&synapse, &alice, json!({"room_version": "12"})).await;
    let named = room(&synapse, &alice, json!({"name": "keep this"})).await;
    let aliased = room(&synapse, &alice, json!({"room_alias_name": "keeper"})).await;
    let by_id = room(&synapse, &alice, json!({})).await;
    let secret =
        json!([{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]);
    let secret = room(&synapse, &alice, json!({"initial_state": secret})).await;
    let invited = room(&synapse, &alice, json!({"invite": [bob.user_id]})).await;
    let knock =
        json!([{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}]);
    let knocked = room(&synapse, &alice, json!({"initial_state": knock})).await;
    let path = format!("/_matrix/client/v3/knock/{}", encoded(&knocked));
    assert_eq!(synapse.client(&bob, Method::POST, &path, json!({})).await.0, 200);
    let used = room(&synapse, &alice, json!({})).await;
    let forgotten = room(&synapse, &alice, json!({})).await;
    synapse.join(&bob, &gone).await;
    for room_id in
        [&gone, &newest, &named, &aliased, &by_id, &secret, &invited, &knocked, &forgotten]
    {
        synapse.leave(&alice, room_id).await;
    }
    synapse.leave(&bob, &gone).await;
    // Of these, the history was purged, and their state is no longer in the timeline.
    let mut trimmed_and_kept = Vec::new();
    for state in [
        json!({"initial_state": [{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]}),
        json!({"name": "keep that"}),
        json!({"room_alias_name": "trimmed", "room_version": "10"}),
    ] {
        let trimmed = room(&synapse, &alice, state).await;
        synapse.leave(&alice, &trimmed).await;
        purge_history(&synapse, &trimmed).await;
        trimmed_and_kept.push(trimmed);
    }
    let trimmed = trimmed_and_kept.pop().unwrap();
    let path = format!("/_matrix/client/v3/rooms/{}/forget", encoded(&forgotten));
    assert_eq!(synapse.client(&alice, Method::POST, &path, json!({})).await.0, 200);
    let version = json!({"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {}});
    let keys = "/_matrix/client/v3/room_keys";
    let created = synapse.client(&alice, Method::POST, &format!("{keys}/version"), version).await;
    let version = created.1["version"].as_str().unwrap().to_owned();
    let path = format!("{keys}/keys/{}/session?version={version}", encoded(&secret));
    let key = json!({"first_message_index": 1, "forwarded_count": 0, "is_verified": true, "session_data": {}});
    assert_eq!(synapse.client(&alice, Method::PUT, &path, key).await.0, 200);

    synapse.return_to_now().await;
    let recent = room(&synapse, &alice, json!({})).await;
    synapse.leave(&alice, &recent).await;
    let except = format!("except_rooms = [\"keep *\", \"#keep*\", \"{by_id}\"]");
    let program = on(&synapse, &except);
    synapse.forget_requests();
    let first = program.dry_run("rooms").await;
    assert_eq!(figures(&first), "succeeded: 0/0/0/0/0");
    let excluded = json!({"excluded": 1, "purge-scheduled": 1, "recently-empty": 11});
    assert_eq!(left_alone(&first), &excluded);
    let message = first["message"].as_str().unwrap();
    assert!(message.starts_with("the next room will have been empty for 14d on "), "{message}");

    seen_long_ago(&program).await;
    let planned = program.dry_run("rooms").await;
    let ids = [("!gone", &gone), ("!newest", &newest), ("!trimmed", &trimmed)];
    let lines = plain(changes(&planned), &ids);
    let left = date_of(&lines[0]).to_owned();
    let texts = [
        format!(
            "!gone (\"Gone\", #gone:hs.test, version 10, last activity {left}, not encrypted, local)"
        ),
        format!(
            "!newest (no name, no alias, version 12, last activity {left}, not encrypted, local)"
        ),
        format!(
            "!trimmed (no name, #trimmed:hs.test, version 10, last activity {left}, not encrypted, perhaps federated)"
        ),
    ];
    assert_eq!(lines, texts.clone().map(|text| format!("planned {text} (1)")));
    let expected = json!({"encrypted": 2, "excluded": 4, "invited": 2, "purge-scheduled": 1, "recently-empty": 1});
    assert_eq!(left_alone(&planned), &expected);
    let other: Vec<String> =
        synapse.requests().into_iter().filter(|request| !request.starts_with("GET ")).collect();
    assert_eq!(other, Vec::<String>::new(), "a dry run sends nothing but GET");

    let shut_down = program.apply("rooms").await;
    let later = "(1): a run after 10m or more purges it";
    assert_eq!(figures(&shut_down), "succeeded: 3/3/0/0/0");
    assert_eq!(
        plain(changes(&shut_down), &ids),
        texts.clone().map(|text| format!("done {text} {later}"))
    );
    assert!(
        shut_down["changes"]
            .as_array()
            .unwrap()
            .iter()
            .all(|change| change["action"] == "shut-down-room")
    );
    let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b", encoded(&gone));
    assert_eq!(synapse.client(&alice, Method::GET, &path, Value::Null).await.0, 200);

    let too_early = program.apply("rooms").await;
    assert_eq!(
        (figures(&too_early), &left_alone(&too_early)["shut-down"]),
        ("succeeded: 0/0/0/0/0".to_owned(), &json!(3))
    );

    synapse
        .sql("UPDATE scheduled_tasks SET timestamp = timestamp - 3600000 WHERE status = 'complete'")
        .await;
    shut_down_an_hour_ago(&program, &fake(&[])).await;
    let purged = program.apply("rooms").await;
    assert_eq!(figures(&purged), "succeeded: 3/3/0/0/0");
    let [gone_text, newest_text, trimmed_text] = texts;
    assert_eq!(
        plain(changes(&purged), &ids),
        [
            format!("done {gone_text} (1): anybody can register now: #gone:hs.test"),
            format!("done {newest_text} (1)"),
            format!("done {trimmed_text} (1): anybody can register now: #trimmed:hs.test"),
        ]
    );
    assert!(
        purged["changes"].as_array().unwrap().iter().all(|change| change["action"] == "purge-room")
    );
    for room_id in [&gone, &newest, &trimmed] {
        assert!(!is_there(&synapse, room_id).await, "{room_id}");
    }
    let kept = [&named, &aliased, &by_id, &secret, &invited, &knocked, &used, &forgotten, &recent];
    for room_id in kept.into_iter().chain(&trimmed_and_kept) {
        assert!(is_there(&synapse, room_id).await, "{room_id}");
    }
    let backup = synapse.client(&alice, Method::GET, &format!("{keys}/version"), Value::Null).await;
    assert_eq!(backup.1["count"], 1, "the keys of the encrypted room");
    let alias = synapse
        .admin(Method::GET, "/_matrix/client/v3/directory/room/%23gone:hs.test", Value::Null)
        .await;
    assert_eq!(alias.0, 404);
    assert_eq!(figures(&program.apply("rooms").await), "succeeded: 0/0/0/0/0");
}

#[tokio::test]
async fn an_invited_user_sees_the_end_of_the_invitation_before_the_room_is_purged() {
    let mut synapse = Synapse::days_ago(20, "").await;
    let (alice, bob) = (synapse.register("alice").await, synapse.register("bob").await);
    let secret =
        json!([{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]);
    let invited =
        room(&synapse, &alice, json!({"invite": [bob.user_id], "initial_state": secret})).await;
    synapse.leave(&alice, &invited).await;
    synapse.return_to_now().await;
    let sync = "/_matrix/client/v3/sync?timeout=0";
    let before = synapse.client(&bob, Method::GET, sync, Value::Null).await.1;
    assert!(before["rooms"]["invite"][&invited].is_object(), "{before}");
    let program = on(&synapse, "with_invites = true\nkeep_encrypted = false\nblock = true\n");
    program.dry_run("rooms").await;
    seen_long_ago(&program).await;

    let shut_down = program.apply("rooms").await;
    let detail = shut_down["changes"][0]["detail"].as_str().unwrap();
    assert_eq!(
        detail,
        "a run after 10m or more purges it; ended the invitations or knocks of 1 local user"
    );
    assert_eq!(
        shut_down["message"],
        "1 of the planned rooms is encrypted: to purge it also deletes everybody's server-side backup of its message keys (`keep_encrypted = true` leaves those alone)"
    );
    let since = before["next_batch"].as_str().unwrap();
    let after =
        synapse.client(&bob, Method::GET, &format!("{sync}&since={since}"), Value::Null).await.1;
    assert!(after["rooms"]["leave"][&invited].is_object(), "{after}");

    synapse.sql("UPDATE scheduled_tasks SET timestamp = timestamp - 3600000").await;
    shut_down_an_hour_ago(&program, &fake(&[])).await;
    assert_eq!(figures(&program.apply("rooms").await), "succeeded: 1/1/0/0/0");
    assert!(!is_there(&synapse, &invited).await);
    let path = format!("/_synapse/admin/v1/rooms/{}/block", encoded(&invited));
    assert_eq!(synapse.get(&path).await["block"], true);
}

#[tokio::test]
async fn rooms_are_deleted_one_at_a_time_and_one_that_fails_does_not_stop_the_others() {
    let fake = fake(&["a", "b", "c"]);
    let program = watching(&fake, "").await;
    fake.world(|world| world.polls_per_deletion = 2);
    fake.fault(Fault::new(
        "DELETE",
        &format!("{DELETE}{}", id("b")),
        Trouble::Synapse(403, "M_FORBIDDEN", "Shutdown of this room is forbidden"),
    ));
    let report = program.apply("rooms").await;
    assert_eq!(figures(&report), "partial: 3/2/1/0/0");
    let failed = changes(&report).into_iter().find(|line| line.starts_with("failed")).unwrap();
    assert!(
        failed.ends_with("(1): 403 M_FORBIDDEN: Shutdown of this room is forbidden"),
        "{failed}"
    );

    // The two that were shut down are purged, and the third follows them.
    shut_down_an_hour_ago(&program, &fake).await;
    fake.world(|world| world.deletion_error = Some("FOREIGN KEY constraint failed".to_owned()));
    let report = program.apply("rooms").await;
    assert_eq!(figures(&report), "failed: 3/0/3/0/0");
    let why = "Synapse could not delete the room: FOREIGN KEY constraint failed";
    assert!(changes(&report).iter().all(|line| line.ends_with(why)), "{report}");
    fake.world(|world| world.deletion_error = None);
    assert_eq!(figures(&program.apply("rooms").await), "succeeded: 3/3/0/0/0");
    assert_eq!(fake.world(|world| world.rooms.keys().cloned().collect::<Vec<_>>()), [id("b")]);
}

#[tokio::test]
async fn a_deletion_whose_response_was_lost_is_found_and_not_sent_again() {
    let keys = "retries = { first_delay = \"1s\" }";
    // It is still under way when the next attempt looks, or it has ended, or it never arrived.
    for (polls, trouble, sent) in [
        (3, Trouble::CutAfter, 1),
        (0, Trouble::CutAfter, 1),
        (1, Trouble::ProxyAfter(504), 1),
        (1, Trouble::CutBefore, 2),
    ] {
        let fake = fake(&["a"]);
        let program = watching(&fake, keys).await;
        fake.world(|world| world.polls_per_deletion = polls);
        fake.fault(Fault::new("DELETE", DELETE, trouble.clone()));
        let report = program.apply("rooms").await;
        assert_eq!(figures(&report), "succeeded: 1/1/0/0/0", "{trouble:?}");
        assert_eq!((deletions(&fake), &report["attempts"]), (sent, &json!(2)), "{trouble:?}");
        // A later run knows of the shutdown, and purges.
        shut_down_an_hour_ago(&program, &fake).await;
        let purged = program.apply("rooms").await;
        assert_eq!(
            (figures(&purged), &purged["changes"][0]["action"]),
            ("succeeded: 1/1/0/0/0".to_owned(), &json!("purge-room"))
        );
    }
}

#[tokio::test]
async fn a_shutdown_is_known_after_synapse_has_forgotten_it() {
    let fake = fake(&["a"]);
    let program = watching(&fake, "").await;
    assert_eq!(figures(&program.apply("rooms").await), "succeeded: 1/1/0/0/0");
    shut_down_an_hour_ago(&program, &fake).await;
    fake.world(|world| world.tasks.clear());
    assert_eq!(program.apply("rooms").await["changes"][0]["action"], "purge-room");
    assert_eq!(fake.world(|world| world.rooms.len()), 0);
}

#[tokio::test]
async fn a_status_that_is_gone_is_a_success_only_if_the_room_is_gone() {
    let fake = fake(&["a"]);
    let program = watching(&fake, "").await;
    fake.fault(Fault::new(
        "GET",
        STATUS,
        Trouble::Synapse(404, "M_NOT_FOUND", "delete id not found"),
    ));
    let report = program.apply("rooms").await;
    assert_eq!(figures(&report), "failed: 1/0/1/0/0");
    let detail = report["changes"][0]["detail"].as_str().unwrap();
    assert_eq!(detail, "Synapse no longer knows the deletion, and still has the room");
    fake.world(|world| world.tasks.clear());
    fake.fault(Fault::new("DELETE", DELETE, Trouble::Then(|world| world.rooms.clear())));
    fake.fault(Fault::new(
        "GET",
        STATUS,
        Trouble::Synapse(404, "M_NOT_FOUND", "delete id not found"),
    ));
    assert_eq!(figures(&program.apply("rooms").await), "succeeded: 1/1/0/0/0");
}

#[tokio::test]
async fn a_deletion_is_followed_to_its_end_across_restarts_of_both_sides() {
    let fake = fake(&["a", "b"]);
    let program = watching(&fake, "").await;
    fake.world(|world| world.polls_per_deletion = u32::MAX);
    let mut child = program.command(&["run", "rooms", "--apply", "--json"]).spawn().unwrap();
    until("the deletion is sent", 30, async || fake.count("GET", STATUS) > 0).await;
    child.kill().await.unwrap();
    fake.forget();

    let run = program.command(&["run", "rooms", "--apply", "--json"]).spawn().unwrap();
    until("the deletion is found", 30, async || fake.count("GET", STATUS) > 1).await;
    fake.go_down();
    fake.world(|world| {
        world.polls_per_deletion = 1;
        world.tasks[0].polls = 3;
    });
    fake.come_up();
    let output = run.wait_with_output().await.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0");
    let details: Vec<&str> = report["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["detail"].as_str().unwrap())
        .collect();
    assert_eq!(
        details,
        [
            "the deletion was under way already; a run after 10m or more purges it",
            "a run after 10m or more purges it"
        ]
    );
    assert_eq!(deletions(&fake), 1, "only that of the second room");
    let interrupted = program.ended("rooms").await;
    assert_eq!(interrupted, ["manual succeeded", "manual interrupted", "manual succeeded"]);
}

#[tokio::test]
async fn the_time_limit_ends_the_wait_for_a_deletion() {
    let fake = fake(&["a"]);
    let program = watching(&fake, "time_limit = \"5s\"").await;
    fake.world(|world| world.polls_per_deletion = u32::MAX);
    let report = program.apply("rooms").await;
    assert_eq!(figures(&report), "timed-out: 1/0/1/0/0");
    fake.world(|world| world.tasks[0].polls = 1);
    assert_eq!(figures(&program.apply("rooms").await), "succeeded: 1/1/0/0/0");
    assert_eq!(deletions(&fake), 1);
}

#[tokio::test]
async fn a_room_in_which_something_happened_since_the_plan_is_skipped() {
    let joined = |world: &mut World| {
        world.room(&id("a")).joined(&format!("@bob:{SERVER_NAME}"));
    };
    let invited = |world: &mut World| {
        let content = json!({"membership": "invite"});
        let event = room_event(
            "m.room.member",
            &format!("@bob:{SERVER_NAME}"),
            "@eve:far",
            1_700_000_000_000,
            &content,
        );
        world.room(&id("a")).timeline.insert(0, event);
    };
    let scheduled = |world: &mut World| {
        world.task("purge_room", "scheduled", &id("a"), true);
    };
    let deleted = |world: &mut World| {
        world.rooms.remove(&id("a"));
    };
    let happened: [Happened; 4] = [
        (joined, "somebody joined the room since the plan"),
        (invited, "something happened in the room since the plan"),
        (scheduled, "Synapse has scheduled a purge of the room itself since the plan"),
        (deleted, "the room no longer exists"),
    ];
    for (happens, why) in happened {
        let fake = fake(&["a"]);
        let program = watching(&fake, "").await;
        let messages = format!("/_synapse/admin/v1/rooms/{}/messages", id("a"));
        fake.fault(Fault::new("GET", &messages, Trouble::Then(happens)));
        let report = program.apply("rooms").await;
        assert_eq!(figures(&report), "succeeded: 1/0/0/1/0");
        assert_eq!(report["changes"][0]["detail"], why);
        assert_eq!(deletions(&fake), 0);
    }
}

#[tokio::test]
async fn a_room_that_was_joined_again_is_seen_empty_anew() {
    let fake = fake(&["a", "b"]);
    let program = watching(&fake, "").await;
    let bob = format!("@bob:{SERVER_NAME}");
    fake.world(|world| {
        world.room(&id("a")).joined(&bob);
    });
    assert_eq!(figures(&program.dry_run("rooms").await), "succeeded: 1/0/0/0/0");
    // Nothing of that is in the timeline: only the memory tells.
    fake.world(|world| {
        world.room(&id("a")).left(&bob);
    });
    let report = program.dry_run("rooms").await;
    assert_eq!(figures(&report), "succeeded: 1/0/0/0/0");
    assert_eq!(left_alone(&report), &json!({"recently-empty": 1}));

    // The memory was not updated for long, but the leave tells.
    seen_long_ago(&program).await;
    fake.world(|world| {
        world.emptied_room(&id("a"), &bob, 13);
    });
    assert_eq!(left_alone(&program.dry_run("rooms").await), &json!({"recently-empty": 1}));
    fake.world(|world| {
        world.emptied_room(&id("a"), &bob, 15);
    });
    assert_eq!(figures(&program.dry_run("rooms").await), "succeeded: 2/0/0/0/0");
}

#[tokio::test]
async fn what_the_timeline_of_a_federated_room_lacks_is_read_from_its_state() {
    let fake = fake(&["secret", "kept", "plain", "none", "long"]);
    let program = watching(&fake, "except_rooms = [\"#keep:*\"]").await;
    fake.world(|world| {
        // Joined over federation: only what happened since is in the timeline.
        for room in ["secret", "kept", "plain"] {
            world.room(&id(room)).timeline.truncate(2);
        }
        world.room(&id("secret")).encrypted = true;
        world.room(&id("kept")).alias("#keep:far");
        world.room(&id("plain")).name = Some("Plain\n\u{1b}[31m room".to_owned());
        world.room(&id("none")).timeline.clear();
        let rename = |_| room_event("m.room.name", "", "@alice:fake.test", 1, &json!({}));
        world.room(&id("long")).timeline.splice(1..1, (0..10_000).map(rename));
    });
    let report = program.dry_run("rooms").await;
    let lines = changes(&report);
    let expected = format!(
        "planned !plain:fake.test (\"Plain [31m room\", no alias, version 10, last activity {}, not encrypted, perhaps federated) (1)",
        date_of(&lines[0])
    );
    assert_eq!(lines, [expected]);
    let expected = json!({"encrypted": 1, "excluded": 1, "long-history": 1, "no-history": 1});
    assert_eq!(left_alone(&report), &expected);
    let long = format!("/_synapse/admin/v1/rooms/{}/messages", id("long"));
    assert_eq!(fake.count("GET", &long), 10);
}

#[tokio::test]
async fn a_plan_takes_one_request_for_each_room_that_is_due() {
    let fake = fake(&[]);
    fake.world(|world| {
        for room in 0..20_000 {
            let (room_id, user) = (id(&format!("{room:05}")), format!("@alice:{SERVER_NAME}"));
            match room % 40 {
                0 => world.emptied_room(&room_id, &user, 30),
                _ => world.room(&room_id),
            };
        }
    });
    let program = watching(&fake, "").await;
    assert_eq!(figures(&program.dry_run("rooms").await), "succeeded: 500/0/0/0/0");
    let requests = fake.requests().len();
    assert!((500..=510).contains(&requests), "{requests}");
}

#[tokio::test]
async fn keys_that_would_delete_too_early_are_errors() {
    for (keys, expected) in [
        ("empty_for = \"1d\"", "empty_for = "),
        ("empty_for = \"14d\"\npurge_after = \"1m\"", "purge_after = "),
        ("empty_for = \"14d\"\nexcept_rooms = [\"#lobby\"]", "cannot match any alias"),
        ("", "`empty_for` is missing"),
    ] {
        let job = format!("[jobs.rooms]\nkind = \"delete-rooms\"\n{keys}\n");
        let output = Program::new("http://127.0.0.1:9", TOKEN, &job).run(&["check"]).await;
        assert_eq!(output.code, 2, "{keys}");
        assert!(output.stderr.contains(expected), "{keys}: {}", output.stderr);
    }
    let fake = fake(&["a"]);
    fake.world(|world| world.version = "1.129.0".to_owned());
    let report = Program::new(&fake.url(), TOKEN, &job("")).apply("rooms").await;
    assert_eq!(
        report["message"],
        "main runs Synapse 1.129.0, and delete-rooms requires 1.130 or later: upgrade Synapse"
    );
}
