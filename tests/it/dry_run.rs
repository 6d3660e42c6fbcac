//! A dry run sends nothing but GET, for every kind in the table.

use microglia::jobs::KINDS;
use reqwest::Method;
use serde_json::{Value, json};

use crate::fake::{Device, Fake, RegistrationToken, Report, TOKEN, User};
use crate::homeserver::{Synapse, encoded};
use crate::program::{Program, changes, figures};

const HOUR_MS: i64 = 60 * 60 * 1000;

/// A job of each kind, named like it, that has something to do; a kind without keys here fails the test.
fn jobs(room: &str) -> String {
    let keys = |kind: &str| match kind {
        "purge-local-media" | "purge-remote-media" => "older_than = \"90d\"".to_owned(),
        "join-rooms" => format!("rooms = [\"{room}\"]"),
        "remove-external-ids" => "providers = [\"saml\"]\naccounts = \"all\"".to_owned(),
        "purge-history" => {
            "older_than = \"2d\"\nallow_recent = true\nall_rooms = true\ndelete_local_events = true"
                .to_owned()
        }
        "protect-media" => String::new(),
        "delete-rooms" => "empty_for = \"2d\"".to_owned(),
        "lock-inactive-accounts" => "inactive_for = \"30d\"".to_owned(),
        "deactivate-accounts" => "locked_for = \"30d\"\nerase = false".to_owned(),
        "delete-stale-devices" => "unused_for = \"30d\"".to_owned(),
        "delete-registration-tokens" => "unused_for = \"1d\"".to_owned(),
        "delete-event-reports" | "delete-user-reports" => {
            "older_than = \"2d\"\nallow_recent = true".to_owned()
        }
        "request" => {
            "method = \"DELETE\"\npath = \"/_synapse/admin/v2/rooms/{{ now_ms() }}\"".to_owned()
        }
        other => panic!(
            "{other} is new: give it keys here, and both homeservers below something that it would change"
        ),
    };
    let job = |kind: &str| {
        format!("[jobs.{kind}]\nkind = \"{kind}\"\nmode = \"apply\"\n{}\n\n", keys(kind))
    };
    KINDS.iter().map(|kind| job(kind.name)).collect()
}

/// Has the job remember a lock of long ago.
async fn locked_long_ago(program: &Program, server: &str, user_id: &str) {
    let insert = "INSERT INTO facts (server, topic, key, value)";
    program
        .sql(&format!("{insert} VALUES ('{server}', 'unused-account', '{user_id}', '{{\"locked_ms\":1700000000000}}')"))
        .await;
}

async fn saw_empty_rooms_long_ago(program: &Program) {
    program.dry_run("delete-rooms").await;
    program.sql("UPDATE facts SET value = '0' WHERE topic = 'empty-room'").await;
}

fn assert_plans_something(kind: &str, report: &Value) {
    assert_eq!(
        (&report["outcome"], &report["mode"], &report["done"]),
        (&json!("succeeded"), &json!("dry-run"), &json!(0)),
        "{report}"
    );
    let planned = changes(report);
    assert!(
        !planned.is_empty() && planned.iter().all(|line| line.starts_with("planned ")),
        "{kind}: {report}"
    );
    assert!(figures(report).ends_with("/0/0/0/0"), "{kind}: {}", figures(report));
}

#[tokio::test]
async fn a_dry_run_sends_only_get_requests_to_a_real_synapse() {
    let mut synapse = Synapse::days_ago(3, "").await;
    let alice = synapse.register("alice").await;
    let empty = synapse.create_room(&alice, json!({})).await;
    synapse.leave(&alice, &empty).await;
    let talk = synapse.create_room(&alice, json!({})).await;
    let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message", encoded(&talk));
    for _ in 0..2 {
        let message = json!({"msgtype": "m.text", "body": "old"});
        assert_eq!(synapse.client(&alice, Method::POST, &path, message).await.0, 200);
    }
    let event = synapse
        .client(&alice, Method::POST, &path, json!({"msgtype": "m.text", "body": "spam"}))
        .await;
    let event = event.1["event_id"].as_str().unwrap().to_owned();
    let report = format!("/_matrix/client/v3/rooms/{}/report/{}", encoded(&talk), encoded(&event));
    assert_eq!(synapse.client(&alice, Method::POST, &report, json!({"reason": "x"})).await.0, 200);
    let report = format!("/_matrix/client/v3/users/{}/report", encoded(&synapse.admin.user_id));
    assert_eq!(synapse.client(&alice, Method::POST, &report, json!({"reason": "x"})).await.0, 200);
    let token = json!({"token": "old", "expiry_time": 4_000_000_000_000_i64});
    let tokens = "/_synapse/admin/v1/registration_tokens/new";
    assert_eq!(synapse.admin(Method::POST, tokens, token).await.0, 200);
    synapse.return_to_now().await;
    synapse.sql("UPDATE registration_tokens SET expiry_time = 1").await;
    synapse
        .sql(&format!(
            "INSERT INTO devices (user_id, device_id, last_seen, hidden) VALUES ('{0}', 'OLD', 1, false), ('{0}', 'OLDER', 2, false)",
            alice.user_id
        ))
        .await;
    synapse.sql("UPDATE users SET creation_ts = 1").await;
    synapse.external_ids(&alice.user_id, &[("saml", "alice")]).await;
    let unused = synapse.register_many("unused", 1).await.remove(0);
    synapse
        .sql(&format!("UPDATE users SET creation_ts = 1600000000 WHERE name = '{unused}'; INSERT INTO devices (user_id, device_id, last_seen) VALUES ('{unused}', 'OLD', 1700000000000)"))
        .await;
    let shut = synapse.register("shut").await.user_id;
    synapse.lock(&shut).await;
    let file = synapse.upload(&alice, b"old").await;
    synapse.age_media(&file, 400, None).await;
    synapse.insert_remote_media("far.test", "old", 400).await;
    let room = synapse.create_room(&synapse.admin, json!({ "preset": "public_chat" })).await;
    let emoji = synapse.upload(&alice, b"emoji").await;
    let pack = json!({"images": {"cat": {"url": format!("mxc://hs.test/{emoji}")}}});
    synapse.set_state(&synapse.admin, &room, ("im.ponies.room_emotes", ""), pack).await;
    let program = Program::new(&synapse.url, &synapse.admin.token, &jobs(&room));
    saw_empty_rooms_long_ago(&program).await;
    locked_long_ago(&program, "hs.test", &shut).await;
    for kind in KINDS {
        synapse.forget_requests();
        assert_plans_something(kind.name, &program.dry_run(kind.name).await);
        let requests = synapse.requests();
        let others: Vec<&String> =
            requests.iter().filter(|line| !line.starts_with("GET ")).collect();
        assert_eq!(others, Vec::<&String>::new(), "{}", kind.name);
        assert_eq!(requests.is_empty(), kind.needs.plans_offline, "{}: {requests:?}", kind.name);
    }
    assert!(
        synapse.media_exists(&file).await && synapse.remote_media_exists("far.test", "old").await
    );
    assert_eq!(synapse.external_ids_of(&alice.user_id).await.len(), 1);
    assert_eq!(synapse.membership(&room, &alice.user_id).await, None);
}

#[tokio::test]
async fn a_dry_run_sends_only_get_requests_whatever_the_limits_allow() {
    let fake = Fake::start();
    fake.world(|world| {
        world.users(20, |i| User::default().external("saml", &i.to_string()));
        world.room("!room:fake.test").timeline = ["$new", "$old"]
            .map(|id| json!({"type": "m.room.message", "event_id": id, "sender": "@a:fake.test", "origin_server_ts": HOUR_MS}))
            .to_vec();
        let pack = json!({"images": {"cat": {"url": "mxc://fake.test/file0"}}});
        world.room("!room:fake.test").set_state("im.ponies.room_emotes", "", &pack);
        world.emptied_room("!empty:fake.test", "@user000000:fake.test", 3);
        for i in 0..20 {
            world.media("@user000000:fake.test", &format!("file{i}"), 10, HOUR_MS, None);
        }
        world.remote_media(20, HOUR_MS);
        world.user("@user000000:fake.test").last_seen_ms = Some(1_700_000_100_000);
        world.user("@user000001:fake.test").locked = true;
        let token = RegistrationToken { expiry_ms: Some(1), ..RegistrationToken::default() };
        world.registration_tokens.insert("old".to_owned(), token);
        let report = Report {
            received_ms: HOUR_MS,
            by: "@user000000:fake.test".to_owned(),
            about: "$old".to_owned(),
            room_id: Some("!room:fake.test".to_owned()),
            sender: None,
            reason: None,
        };
        world.event_reports.insert(1, report.clone());
        world.user_reports.insert(1, report);
        world.user("@user000000:fake.test").devices = [1, 2]
            .map(|ms| Device { id: format!("D{ms}"), last_seen_ms: Some(ms), ..Device::default() })
            .to_vec();
    });
    // What would be refused in apply mode is shown all the same.
    let defaults = "[defaults]\nretries = { attempts = 1 }\nwindow = \"00:00-00:01\"\n\n";
    let program =
        Program::new(&fake.url(), TOKEN, &format!("{defaults}{}", jobs("!room:fake.test")));
    saw_empty_rooms_long_ago(&program).await;
    locked_long_ago(&program, "fake.test", "@user000001:fake.test").await;
    for kind in KINDS {
        fake.forget();
        assert_plans_something(kind.name, &program.dry_run(kind.name).await);
        let requests = fake.requests();
        assert!(requests.iter().all(|seen| seen.method == "GET"), "{}: {requests:?}", kind.name);
        assert_eq!(requests.is_empty(), kind.needs.plans_offline, "{}: {requests:?}", kind.name);
    }
}
