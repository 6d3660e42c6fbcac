//! `delete-event-reports`; what the two kinds of reports share is tested here.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fake::{Fake, Fault, Report, TOKEN, Trouble, World};
use crate::homeserver::{Account, Synapse, encoded};
use crate::program::{Program, changes, figures, until};

const REPORTS: &str = "/_synapse/admin/v1/event_reports";
const ROOM: &str = "!room:fake.test";

fn job(keys: &str) -> String {
    format!("[jobs.reports]\nkind = \"delete-event-reports\"\n{keys}\n")
}

#[expect(clippy::disallowed_methods, reason = "the program under test has the real clock")]
fn days_ago_ms(days: i64) -> i64 {
    (Utc::now() - TimeDelta::days(days)).timestamp_millis()
}

/// Sends an event, and has somebody report it; returns its id.
async fn reported(synapse: &Synapse, room: &str, by: &Account, reason: &str) -> String {
    let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message", encoded(room));
    let body = json!({"msgtype": "m.text", "body": "spam"});
    let sent = synapse.admin(Method::POST, &path, body).await;
    let event_id = sent.1["event_id"].as_str().unwrap().to_owned();
    let path = format!("/_matrix/client/v3/rooms/{}/report/{}", encoded(room), encoded(&event_id));
    let report = json!({"reason": reason, "score": -50});
    assert_eq!(synapse.client(by, Method::POST, &path, report).await.0, 200);
    event_id
}

async fn listed(synapse: &Synapse) -> Vec<Value> {
    synapse.get(REPORTS).await["event_reports"].as_array().unwrap().clone()
}

#[tokio::test]
async fn old_reports_are_deleted_and_kept_in_the_history_also_of_events_that_were_purged() {
    let mut synapse = Synapse::days_ago(40, "").await;
    let alice = synapse.register("alice").await;
    let public = json!({"preset": "public_chat", "name": "Lobby"});
    let room = synapse.create_room(&synapse.admin, public.clone()).await;
    let deleted = synapse.create_room(&synapse.admin, public).await;
    for room in [&room, &deleted] {
        synapse.join(&alice, room).await;
    }
    let purged = reported(&synapse, &room, &alice, "it was spam").await;
    let event = reported(&synapse, &room, &alice, "it is spam").await;
    reported(&synapse, &deleted, &alice, "nobody sees this").await;
    synapse.return_to_now().await;
    let recent = reported(&synapse, &room, &alice, "new spam").await;

    // One event is gone from its room, and the room of another report altogether.
    let path = format!("/_synapse/admin/v1/purge_history/{}/{}", encoded(&room), encoded(&event));
    let all = json!({"delete_local_events": true});
    assert_eq!(synapse.admin(Method::POST, &path, all).await.0, 200);
    until("the event is purged", 30, async || {
        listed(&synapse).await.iter().any(|report| report["sender"].is_null())
    })
    .await;
    let path = format!("/_synapse/admin/v2/rooms/{}", encoded(&deleted));
    assert_eq!(synapse.admin(Method::DELETE, &path, json!({})).await.0, 200);
    until("the room is deleted", 30, async || listed(&synapse).await.len() == 3).await;
    let before = listed(&synapse).await;
    assert_eq!(before.len(), 3, "{before:?}");
    let of_purged = before.iter().find(|report| report["event_id"] == *purged).unwrap();
    assert_eq!(of_purged["sender"], Value::Null);
    let detail = format!("{REPORTS}/{}", of_purged["id"]);
    assert_eq!(synapse.admin(Method::GET, &detail, Value::Null).await.0, 404);

    let program = Program::new(&synapse.url, &synapse.admin.token, &job("older_than = \"30d\""));
    synapse.forget_requests();
    let planned = program.dry_run("reports").await;
    assert_eq!(figures(&planned), "succeeded: 2/0/0/0/0");
    assert!(synapse.requests().iter().all(|request| request.starts_with("GET ")));
    let report = program.apply("reports").await;
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0");
    let date = changes(&report)[0].split(" of ").nth(1).unwrap()[..10].to_owned();
    let mut expected = [&event, &purged].map(|event_id| {
        let id =
            before.iter().find(|report| report["event_id"] == **event_id).unwrap()["id"].clone();
        format!("done report {id} of {date}, by {} about {event_id} in {room} (1)", alice.user_id)
    });
    expected.sort();
    assert_eq!(changes(&report), expected);
    let left = listed(&synapse).await;
    assert_eq!(
        left.iter().map(|it| it["event_id"].as_str().unwrap()).collect::<Vec<_>>(),
        [&recent]
    );
    // That of the deleted room is in no list.
    assert_eq!(synapse.sql("SELECT count(*) FROM event_reports").await[0][0], 2);

    let shown = program.json(&["runs", "show", &report["id"].to_string(), "--json"]).await;
    let records = shown["changes"].as_array().unwrap();
    let of_event = records.iter().find(|it| it["before"]["event_id"] == *event).unwrap();
    let record = &of_event["before"];
    assert_eq!(
        (&record["reason"], &record["score"], &record["sender"], &record["user_id"]),
        (&json!("it is spam"), &json!(-50), &json!(synapse.admin.user_id), &json!(alice.user_id))
    );
    assert_eq!(figures(&program.apply("reports").await), "succeeded: 0/0/0/0/0");
}

/// A homeserver with so many reports, one for each day, the newest of today.
fn fake(count: u64) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        world.room(ROOM);
        for number in 0..count {
            // The oldest has the greatest id: the order is that of time.
            add(world, count - number, i64::try_from(count - number).unwrap() - 1);
        }
    });
    fake
}

fn add(world: &mut World, id: u64, number: i64) {
    let report = Report {
        received_ms: days_ago_ms(number),
        by: "@alice:fake.test".to_owned(),
        about: format!("$event{id}"),
        room_id: Some(ROOM.to_owned()),
        sender: Some("@eve:fake.test".to_owned()),
        reason: Some("spam".to_owned()),
    };
    world.event_reports.insert(id, report);
}

fn on(fake: &Fake, keys: &str) -> Program {
    Program::new(&fake.url(), TOKEN, &job(keys))
}

const OLD: &str = "older_than = \"9d\"\nmax_changes = \"unlimited\"";

#[tokio::test]
async fn all_old_reports_are_listed_before_the_first_is_deleted() {
    let fake = fake(3012);
    let program = on(&fake, OLD);
    let report = program.apply("reports").await;
    assert_eq!(figures(&report), "succeeded: 3003/3003/0/0/0");
    let left: Vec<u64> = fake.world(|world| world.event_reports.keys().copied().collect());
    assert_eq!(left, (1..=9).collect::<Vec<_>>());
    let requests = fake.requests();
    let first = requests.iter().position(|seen| seen.method == "DELETE").unwrap();
    let pages = requests[..first].iter().filter(|seen| seen.path == REPORTS);
    let pages: Vec<&str> = pages.map(|seen| seen.query.as_str()).collect();
    assert_eq!(
        pages,
        [
            "dir=f&limit=1000",
            "dir=f&from=1000&limit=1000",
            "dir=f&from=2000&limit=1000",
            "dir=f&from=3000&limit=1000",
            // Just before the first is deleted.
            "dir=f&limit=1000"
        ]
    );
    // Those after it begin at the start of the list, too: nothing is skipped by an offset.
    let later = requests[first..].iter().filter(|seen| seen.path == REPORTS);
    assert!(later.clone().all(|seen| seen.query == "dir=f&limit=1000"));
    assert!(later.count() < 200, "once a second, or when the last list is used up");
}

#[tokio::test]
async fn what_was_reported_is_kept_unless_the_job_says_otherwise_and_never_served_over_tcp() {
    let fake = fake(20);
    fake.world(|world| {
        let report = world.event_reports.get_mut(&20).unwrap();
        report.reason = Some("x".repeat(20_000));
    });
    let kept = on(&fake, &format!("{OLD}\nat_most = 1"));
    let config = kept.read("microglia.toml");
    let token = "an-admin-token-of-tests";
    kept.write("admin-token", token);
    kept.write(
        "microglia.toml",
        &config.replace("[daemon]\n", "[daemon]\nadmin_token_file = \"admin-token\"\n"),
    );
    let report = kept.apply("reports").await;
    let run = report["id"].to_string();
    let shown = kept.json(&["runs", "show", &run, "--json"]).await;
    let before = &shown["changes"][0]["before"];
    assert_eq!((&before["id"], &before["event_id"]), (&json!(20), &json!("$event20")));
    let reason = before["reason"].as_str().unwrap();
    assert_eq!((reason.chars().count(), reason.ends_with('…')), (10_001, true));
    let daemon = kept.serve().await;
    for (headers, expected) in [
        (vec![], None),
        (
            vec![("Authorization", format!("Bearer {token}"))],
            Some("only available on the machine itself"),
        ),
    ] {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (status, body) = daemon.http("GET", &format!("/api/v1/runs/{run}"), &headers, "").await;
        assert_eq!(status, 200);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["changes"][0]["before"].as_str(), expected, "{body}");
        assert!(!body.to_string().contains("xxxx"), "{body}");
    }
    daemon.stop().await;

    let plain = on(&fake, &format!("{OLD}\nat_most = 1\nkeep_record = false"));
    let report = plain.apply("reports").await;
    let line = &changes(&report)[0];
    assert!(line.starts_with("done report 19 of ") && !line.contains("alice"), "{line}");
    let run = report["id"].to_string();
    let shown = plain.json(&["runs", "show", &run, "--json"]).await;
    assert_eq!(shown["changes"][0]["before"], Value::Null);
    assert!(!shown.to_string().contains("@alice") && !shown.to_string().contains("$event"));
    let undo = plain.run(&["undo", &run]).await;
    assert!(
        undo.stderr.contains("cannot be undone: Synapse gives every report another id"),
        "{undo:?}"
    );
}

#[tokio::test]
async fn a_report_that_is_gone_or_is_another_one_by_now_is_left_alone() {
    let happened: [fn(&mut World); 2] = [
        |world| world.event_reports.clear(),
        // After a restart, Synapse gives the id of the last report that was deleted to a new one.
        |world| world.event_reports.get_mut(&1).unwrap().received_ms += 1,
    ];
    for happens in happened {
        let fake = fake(0);
        fake.world(|world| add(world, 1, 40));
        fake.fault(Fault::new("GET", REPORTS, Trouble::Then(happens)));
        let report = on(&fake, OLD).apply("reports").await;
        assert_eq!(figures(&report), "succeeded: 1/0/0/1/0");
        assert_eq!(report["changes"][0]["detail"], "the report no longer exists");
        assert_eq!(fake.count("DELETE", REPORTS), 0);
    }
}

#[tokio::test]
async fn a_lost_response_a_limit_and_a_refusal_concern_only_their_report() {
    let keys = format!("{OLD}\nretries = {{ first_delay = \"0s\" }}");
    for (trouble, deletes) in [
        (Trouble::CutAfter, 4),
        (Trouble::CutBefore, 4),
        (Trouble::ProxyAfter(504), 4),
        (Trouble::Limited { retry_after_ms: Some(10), retry_after_header: None }, 4),
    ] {
        let fake = fake(12);
        fake.fault(Fault::new("DELETE", &format!("{REPORTS}/11"), trouble.clone()));
        let report = on(&fake, &keys).apply("reports").await;
        assert_eq!(figures(&report), "succeeded: 3/3/0/0/0", "{trouble:?}");
        assert_eq!(fake.count("DELETE", REPORTS), deletes, "{trouble:?}");
    }
    let fake = fake(12);
    let refusal = Trouble::Synapse(500, "M_UNKNOWN", "Internal server error");
    fake.fault(Fault::new("DELETE", &format!("{REPORTS}/11"), refusal));
    assert_eq!(figures(&on(&fake, OLD).apply("reports").await), "partial: 3/2/1/0/0");
    assert_eq!(figures(&on(&fake, OLD).apply("reports").await), "succeeded: 1/1/0/0/0");
}

#[tokio::test]
async fn a_list_that_is_malformed_or_endless_deletes_nothing() {
    let fake = fake(12);
    let program = on(&fake, &format!("{OLD}\nretries = {{ attempts = 1 }}"));
    let answer =
        |body: &str| Trouble::Answer { status: 200, headers: vec![], body: body.to_owned() };
    let row = |rest: &str| format!(r#"{{"event_reports": [{{{rest}}}], "total": 1}}"#);
    for body in [
        "{}".to_owned(),
        row(r#""id": 1"#),
        row(r#""id": 1, "received_ts": null"#),
        row(r#""id": -1, "received_ts": 5"#),
        row(r#""id": "1", "received_ts": 5"#),
        row(&format!(r#""id": 1, "received_ts": 5, "user_id": "{}""#, "x".repeat(2000))),
        // Each page names the same next one.
        r#"{"event_reports": [{"id": 1, "received_ts": 5}], "total": 5, "next_token": 1}"#
            .to_owned(),
    ] {
        fake.fault(Fault::new("GET", REPORTS, answer(&body)).always());
        let report = program.apply("reports").await;
        assert_eq!(report["outcome"], "failed", "{body:.100}: {report}");
        fake.no_more_faults();
    }
    assert_eq!(fake.count("DELETE", REPORTS), 0);
    // What else is in a row does not matter.
    let odd = r#""id": 1, "received_ts": 5, "score": 1e99, "reason": {"a": 1}, "sender": null"#;
    fake.fault(Fault::new("GET", REPORTS, answer(&row(odd))));
    let planned = changes(&program.dry_run("reports").await);
    assert_eq!(planned, ["planned report 1 of 1970-01-01, by unknown about unknown (1)"]);
}

#[tokio::test]
async fn a_run_that_is_killed_is_continued_by_the_next_one() {
    let fake = fake(50);
    let program = on(&fake, OLD);
    fake.world(|world| world.latency = Duration::from_millis(50));
    let mut child = program.command(&["run", "reports", "--apply", "--json"]).spawn().unwrap();
    until("some are deleted", 30, async || fake.count("DELETE", REPORTS) > 5).await;
    child.kill().await.unwrap();
    fake.world(|world| world.latency = Duration::ZERO);
    let left = fake.world(|world| world.event_reports.len()) - 9;
    let report = program.apply("reports").await;
    assert_eq!(figures(&report), format!("succeeded: {left}/{left}/0/0/0"));
    let killed = program.runs("reports").await[0]["id"].to_string();
    let killed = program.json(&["runs", "show", &killed, "--json"]).await;
    let recorded = killed["changes"].as_array().unwrap().iter();
    let sent = recorded.filter(|change| change["before"].is_object()).count();
    assert!(sent >= 41 - left, "{sent} of {}", 41 - left);
}

#[tokio::test]
async fn ages_are_checked_and_old_versions_refused() {
    for (keys, expected) in [
        ("", "no age is set"),
        ("older_than = \"1d\"", "an age of 1 d is below the minimum of 7 days"),
        ("older_than = \"30d\"\nkeep_record = \"no\"", "keep_record = "),
        ("older_than = \"30d\"\nkeep_records = true", "did you mean `keep_record`?"),
    ] {
        let program = Program::new("http://127.0.0.1:9", TOKEN, &job(keys));
        let output = program.run(&["check"]).await;
        assert_eq!(output.code, 2, "{keys}");
        assert!(output.stderr.contains(expected), "{keys}: {}", output.stderr);
    }
    let fake = fake(12);
    fake.world(|world| world.version = "1.78.0".to_owned());
    let report = on(&fake, OLD).apply("reports").await;
    assert_eq!(
        report["message"],
        "main runs Synapse 1.78.0, and delete-event-reports requires 1.79 or later: upgrade Synapse"
    );
}
