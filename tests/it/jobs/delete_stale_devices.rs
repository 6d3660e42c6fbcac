//! `delete-stale-devices`.

use std::time::Duration;

use chrono::{SecondsFormat, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use super::UnderMas;
use crate::fake::{Device, Fake, Fault, SessionKind, TOKEN, Trouble, User, World};
use crate::homeserver::{Account, Synapse, encoded};
use crate::program::{Program, changes, figures, until};

const USERS: &str = "/_synapse/admin/v2/users/";
const SESSIONS: &str = "/api/admin/v1/oauth2-sessions";

fn job(keys: &str) -> String {
    format!("[jobs.devices]\nkind = \"delete-stale-devices\"\nunused_for = \"90d\"\n{keys}\n")
}

#[expect(clippy::disallowed_methods, reason = "the program under test has the real clock")]
fn days_ago_ms(days: i64) -> i64 {
    (Utc::now() - TimeDelta::days(days)).timestamp_millis()
}

/// As targets show it.
#[expect(clippy::disallowed_methods, reason = "the program under test has the real clock")]
fn day(days_ago: i64) -> String {
    (Utc::now() - TimeDelta::days(days_ago)).format("%Y-%m-%d").to_string()
}

#[expect(clippy::disallowed_methods, reason = "the program under test has the real clock")]
fn days_ago(days: i64) -> String {
    (Utc::now() - TimeDelta::days(days)).to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Adds devices that were used so many days ago, without tokens.
async fn add_devices(synapse: &Synapse, user_id: &str, devices: &[(String, Option<i64>)]) {
    let row = |(id, days): &(String, Option<i64>)| {
        let last_seen = days.map_or("NULL".to_owned(), |days| days_ago_ms(days).to_string());
        format!("('{user_id}', '{id}', 'Client', {last_seen}, false)")
    };
    let rows: Vec<String> = devices.iter().map(row).collect();
    synapse
        .sql(&format!(
            "INSERT INTO devices (user_id, device_id, display_name, last_seen, hidden) VALUES {}",
            rows.join(", ")
        ))
        .await;
}

fn device(id: &str, days: i64) -> (String, Option<i64>) {
    (id.to_owned(), Some(days))
}

/// The ids of an account's devices that are named like these tests name them, sorted.
async fn devices(synapse: &Synapse, user_id: &str) -> Vec<String> {
    let list = synapse.get(&format!("{USERS}{}/devices", encoded(user_id))).await;
    let list = list["devices"].as_array().unwrap();
    let ids = list.iter().map(|device| device["device_id"].as_str().unwrap().to_owned());
    let mut ids: Vec<String> = ids.filter(|id| id.len() < 8).collect();
    ids.sort();
    ids
}

async fn whoami(synapse: &Synapse, account: &Account) -> u16 {
    let path = "/_matrix/client/v3/account/whoami";
    synapse.client(account, Method::GET, path, Value::Null).await.0
}

#[tokio::test]
async fn only_devices_that_were_not_used_for_long_are_deleted() {
    let synapse = Synapse::with_config("experimental_features:\n  msc3814_enabled: true\n").await;
    // Older than any of their devices.
    let mut users = Vec::new();
    for name in ["alice", "bob", "carol", "dora", "erin", "frank", "new"] {
        users.push(synapse.register(name).await);
    }
    let ghost = synapse.ghost("ghost_1").await;
    synapse.sql(&format!("UPDATE users SET creation_ts = {}", days_ago_ms(500) / 1000)).await;
    synapse
        .sql(&format!(
            "UPDATE users SET creation_ts = {} WHERE name = '@new:hs.test'",
            days_ago_ms(80) / 1000
        ))
        .await;
    let [alice, bob, carol, dora, erin, frank, new] = users.try_into().unwrap();
    // A token of its own for the device that is deleted.
    let old = synapse.login(&alice).await;
    let token = format!("SELECT device_id FROM access_tokens WHERE token = '{}'", old.token);
    let old_id = synapse.sql(&token).await[0][0].as_str().unwrap().to_owned();
    synapse
        .sql(&format!(
            "UPDATE devices SET last_seen = {} WHERE device_id = '{old_id}'",
            days_ago_ms(200)
        ))
        .await;
    add_devices(
        &synapse,
        &alice.user_id,
        &[device("A1", 91), device("A2", 89), ("A3".to_owned(), None)],
    )
    .await;
    add_devices(&synapse, &bob.user_id, &[device("B1", 300), device("B2", 200)]).await;
    add_devices(&synapse, &carol.user_id, &[device("C1", 300), ("C2".to_owned(), None)]).await;
    add_devices(&synapse, &dora.user_id, &[device("D1", 300), device("D2", 10)]).await;
    add_devices(&synapse, &erin.user_id, &[device("E1", 300), device("E2", 200)]).await;
    add_devices(&synapse, &new.user_id, &[device("N1", 70)]).await;
    add_devices(&synapse, &ghost.user_id, &[device("G1", 300), device("G2", 200)]).await;
    add_devices(&synapse, &synapse.admin.user_id, &[device("M1", 300)]).await;
    let many: Vec<_> =
        (0..120).map(|number| device(&format!("F{number:03}"), 400 - number)).collect();
    add_devices(&synapse, &frank.user_id, &many).await;
    let dehydrated = json!({
        "device_id": "DEHY",
        "initial_device_display_name": "Dehydrated",
        "device_data": {"algorithm": "org.matrix.msc3814.v2", "account": "pickle"},
        "device_keys": {"user_id": dora.user_id, "device_id": "DEHY", "algorithms": [], "keys": {"ed25519:DEHY": "key"}, "signatures": {}},
    });
    let dehydration = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";
    let put = synapse.client(&dora, Method::PUT, dehydration, dehydrated).await;
    assert_eq!(put.0, 200, "{}", put.1);
    let aged = days_ago_ms(300);
    synapse.sql(&format!("UPDATE devices SET last_seen = {aged} WHERE device_id = 'DEHY'")).await;
    synapse.lock(&erin.user_id).await;

    let program = Program::new(&synapse.url, &synapse.admin.token, &job(""));
    synapse.forget_requests();
    let planned = program.dry_run("devices").await;
    assert_eq!(figures(&planned), "succeeded: 124/0/0/0/0");
    assert!(synapse.requests().iter().all(|request| request.starts_with("GET ")));
    let lines = changes(&planned);
    assert_eq!(lines.len(), 5, "{lines:#?}");
    let (first, last) = (day(200), day(91));
    assert!(
        lines.contains(&format!(
            "planned {} -> {old_id} (last used {first}), A1 (last used {last}) (2)",
            alice.user_id
        )),
        "{lines:#?}"
    );
    let expected = format!("planned {} -> B1 (last used {}) (1)", bob.user_id, day(300));
    assert!(lines.contains(&expected), "{lines:#?}");
    let left = &planned["left_alone"];
    assert_eq!(
        (
            &left["bridge"],
            &left["locked"],
            &left["dehydrated"],
            &left["own-device"],
            &left["last-device"]
        ),
        // Bob's, Carol's and Frank's.
        (&json!(1), &json!(1), &json!(1), &json!(1), &json!(3)),
        "{left}"
    );
    assert!(left["never-used"].as_u64() >= Some(2), "{left}");

    let report = program.apply("devices").await;
    assert_eq!(figures(&report), "succeeded: 124/124/0/0/0");
    let calls = synapse.requests();
    let calls = calls.iter().filter(|request| request.contains("/delete_devices")).count();
    assert_eq!(calls, 4 + 3, "at most 50 devices in each");
    for (account, left) in [
        (&alice, vec!["A2", "A3"]),
        (&bob, vec!["B2"]),
        (&carol, vec!["C1", "C2"]),
        (&dora, vec!["D2", "DEHY"]),
        (&erin, vec!["E1", "E2"]),
        (&frank, vec!["F119"]),
        (&new, vec!["N1"]),
        (&ghost, vec!["G1", "G2"]),
        (&synapse.admin, vec![]),
    ] {
        assert_eq!(devices(&synapse, &account.user_id).await, left, "{}", account.user_id);
    }
    assert_eq!((whoami(&synapse, &old).await, whoami(&synapse, &alice).await), (401, 200));
    assert_eq!(synapse.client(&dora, Method::GET, dehydration, Value::Null).await.0, 200);
    assert_eq!(whoami(&synapse, &ghost).await, 200);

    let shown = program.json(&["runs", "show", &report["id"].to_string(), "--json"]).await;
    let records = shown["changes"].as_array().unwrap().iter();
    let of_bob = records.filter(|change| change["target"].as_str().unwrap().contains("B1"));
    let of_bob: Vec<&Value> = of_bob.map(|change| &change["before"]["devices"][0]).collect();
    assert_eq!(
        (of_bob.len(), &of_bob[0]["device_id"], &of_bob[0]["name"]),
        (1, &json!("B1"), &json!("Client"))
    );
    assert_eq!(figures(&program.apply("devices").await), "succeeded: 0/0/0/0/0");
    let all = Program::new(&synapse.url, &synapse.admin.token, &job("keep_last = false"));
    let planned = all.dry_run("devices").await;
    // Frank's own login was never used: it does not count.
    assert_eq!(figures(&planned), "succeeded: 3/0/0/0/0");
    let message = planned["message"].as_str().unwrap();
    assert!(
        message.contains("3 of the planned devices are of accounts that keep none in use"),
        "{message}"
    );
}

fn id(name: &str) -> String {
    format!("@{name}:fake.test")
}

fn used(id: &str, days: i64) -> Device {
    Device { id: id.to_owned(), last_seen_ms: Some(days_ago_ms(days)), ..Device::default() }
}

/// A homeserver where each account has a device in use, and these that were not used for long.
fn fake(accounts: &[(&str, &[&str])]) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        for (name, stale) in accounts {
            let stale = stale.iter().map(|id| used(id, 100));
            world.user(&id(name)).devices = stale.chain([used("NEW", 1)]).collect();
        }
    });
    fake
}

fn on(fake: &Fake, keys: &str) -> Program {
    Program::new(&fake.url(), TOKEN, &job(keys))
}

fn left(fake: &Fake, name: &str) -> Vec<String> {
    fake.world(|world| world.user(&id(name)).devices.iter().map(|it| it.id.clone()).collect())
}

fn deletions(fake: &Fake) -> usize {
    fake.count("POST", USERS)
}

/// What happens between plan and change, and what becomes of it.
type Happened = (fn(&mut World), &'static str, &'static str);

#[tokio::test]
async fn devices_that_were_used_since_the_plan_are_left_alone() {
    let happened: [Happened; 5] = [
        (
            |world| of_alice(world).devices.retain(|device| device.id != "A"),
            "succeeded: 2/1/0/1/0",
            "1 device was used or deleted since the plan",
        ),
        (
            |world| of_alice(world).devices[0].last_seen_ms = Some(days_ago_ms(0)),
            "succeeded: 2/1/0/1/0",
            "1 device was used or deleted since the plan",
        ),
        // Still stale, and not as it was planned.
        (
            |world| of_alice(world).devices[0].last_seen_ms = Some(days_ago_ms(99)),
            "succeeded: 2/1/0/1/0",
            "1 device was used or deleted since the plan",
        ),
        // The device in use logged out: the newest of the others is the last one now.
        (
            |world| of_alice(world).devices.truncate(2),
            "succeeded: 2/1/0/1/0",
            "1 device was used or deleted since the plan",
        ),
        (
            |world| world.users.retain(|name, _| !name.starts_with("@alice")),
            "succeeded: 2/0/0/2/0",
            "the devices were used or deleted since the plan",
        ),
    ];
    for (happens, expected, detail) in happened {
        let fake = fake(&[("alice", &["A", "B"])]);
        // The devices were read for the plan, and then the account.
        let path = format!("{USERS}{}", id("alice"));
        fake.fault(Fault::new("GET", &path, Trouble::Then(happens)).after(1));
        let report = on(&fake, "").apply("devices").await;
        assert_eq!(figures(&report), expected);
        assert_eq!(report["changes"][0]["detail"], detail);
    }
}

fn of_alice(world: &mut World) -> &mut User {
    world.user("@alice:fake.test")
}

#[tokio::test]
async fn a_lost_response_or_a_limit_deletes_nothing_twice_and_nothing_less() {
    let keys = "retries = { first_delay = \"0s\" }";
    for (trouble, times, attempts) in [
        (Trouble::CutAfter, 1, 1),
        (Trouble::CutBefore, 1, 1),
        (Trouble::ProxyAfter(504), 1, 1),
        (Trouble::Limited { retry_after_ms: Some(10), retry_after_header: None }, 1, 1),
        // The request is given up, and the next attempt finds the devices gone.
        (Trouble::CutAfter, 4, 2),
        (Trouble::CutBefore, 4, 2),
    ] {
        let fake = fake(&[("alice", &["A", "B"]), ("bob", &["C"])]);
        let path = format!("{USERS}{}/delete_devices", id("alice"));
        fake.fault(Fault::new("POST", &path, trouble.clone()).times(times));
        let report = on(&fake, keys).apply("devices").await;
        assert_eq!(figures(&report), "succeeded: 3/3/0/0/0", "{trouble:?} {times}");
        assert_eq!(report["attempts"], attempts, "{trouble:?} {times}");
        assert_eq!(
            (left(&fake, "alice"), left(&fake, "bob")),
            (vec!["NEW".into()], vec!["NEW".into()])
        );
    }
}

#[tokio::test]
async fn an_account_of_which_a_part_was_deleted_is_completed_by_the_next_attempt() {
    let stale: Vec<String> = (0..130).map(|number| format!("S{number:03}")).collect();
    let stale: Vec<&str> = stale.iter().map(String::as_str).collect();
    let keys = "retries = { first_delay = \"0s\" }";
    let path = format!("{USERS}{}/delete_devices", id("alice"));
    let list = format!("{USERS}{}/devices", id("alice"));
    let refusal = || Trouble::Synapse(400, "M_UNKNOWN", "Not now");
    for fault in [
        // In the second request of three.
        Fault::new("POST", &path, refusal()).after(1),
        // In the list after the deletion: one before is for the plan, and one for the check.
        Fault::new("GET", &list, refusal()).after(2),
        Fault::new("GET", &list, Trouble::BrokenJson).after(2),
    ] {
        let fake = fake(&[("alice", &stale)]);
        let fault_text = format!("{fault:?}");
        fake.fault(fault);
        let program = on(&fake, keys);
        let report = program.apply("devices").await;
        assert_eq!(figures(&report), "succeeded: 130/130/0/0/0", "{fault_text}");
        assert_eq!((left(&fake, "alice"), &report["attempts"]), (vec!["NEW".into()], &json!(2)));
        // What the first attempt was about to delete is recorded.
        let shown = program.json(&["runs", "show", &report["id"].to_string(), "--json"]).await;
        let records = shown["changes"].as_array().unwrap().iter();
        let recorded = records.filter_map(|change| change["before"]["devices"].as_array());
        assert_eq!(recorded.map(Vec::len).max(), Some(130), "{fault_text}");
    }
}

#[tokio::test]
async fn a_refusal_or_a_deletion_that_did_nothing_is_a_failure_of_its_account_alone() {
    let fake = fake(&[("alice", &["A"]), ("bob", &["B"]), ("carol", &["C"])]);
    let path = |name: &str| format!("{USERS}{}/delete_devices", id(name));
    let refusal = Trouble::Synapse(500, "M_UNKNOWN", "Internal server error");
    fake.fault(Fault::new("POST", &path("alice"), refusal));
    let nothing = Trouble::Answer { status: 200, headers: vec![], body: "{}".to_owned() };
    fake.fault(Fault::new("POST", &path("bob"), nothing));
    let report = on(&fake, "").apply("devices").await;
    assert_eq!(figures(&report), "partial: 3/1/2/0/0");
    let lines = changes(&report);
    assert!(lines[1].ends_with("(1): 500 M_UNKNOWN: Internal server error"), "{lines:?}");
    assert!(lines[2].ends_with("still lists the devices that it was told to delete"), "{lines:?}");
    assert_eq!(figures(&on(&fake, "").apply("devices").await), "succeeded: 2/2/0/0/0");
}

#[tokio::test]
async fn a_list_of_devices_that_cannot_be_understood_deletes_none_of_its_account() {
    let fake = fake(&[("alice", &["A"])]);
    let program = on(&fake, "retries = { attempts = 1 }");
    let list = format!("{USERS}{}/devices", id("alice"));
    let row = |rest: &str| format!(r#"{{"devices": [{{{rest}}}], "total": 1}}"#);
    for body in [
        "{}".to_owned(),
        r#"{"devices": {"A": 1}}"#.to_owned(),
        row(r#""last_seen_ts": 5"#),
        row(r#""device_id": null, "last_seen_ts": 5"#),
        row(r#""device_id": "A", "last_seen_ts": "long ago""#),
        row(&format!(r#""device_id": "{}", "last_seen_ts": 5"#, "x".repeat(2000))),
    ] {
        let answer = Trouble::Answer { status: 200, headers: vec![], body: body.clone() };
        fake.fault(Fault::new("GET", &list, answer).always());
        let report = program.apply("devices").await;
        assert_eq!(report["outcome"], "failed", "{body:.100}: {report}");
        fake.no_more_faults();
    }
    let refusal = Trouble::Synapse(500, "M_UNKNOWN", "Internal server error");
    fake.fault(Fault::new("GET", &list, refusal).always());
    assert_eq!(program.apply("devices").await["outcome"], "failed");
    assert_eq!(deletions(&fake), 0);
}

#[tokio::test]
async fn a_run_that_is_killed_in_the_middle_is_continued_by_the_next_one() {
    let names: Vec<String> = (0..12).map(|number| format!("user{number:02}")).collect();
    let stale: &[&str] = &["A", "B"];
    let accounts: Vec<(&str, &[&str])> = names.iter().map(|name| (name.as_str(), stale)).collect();
    let fake = fake(&accounts);
    let program = on(&fake, "");
    let mut child = program.command(&["run", "devices", "--apply", "--json"]).spawn().unwrap();
    until("some are deleted", 30, async || deletions(&fake) > 2).await;
    child.kill().await.unwrap();
    let stale = fake.world(|world| {
        world.users.values().flat_map(|user| &user.devices).filter(|it| it.id != "NEW").count()
    });
    assert!(stale > 0, "it was too fast to be killed in the middle");
    let report = program.apply("devices").await;
    assert_eq!(figures(&report), format!("succeeded: {stale}/{stale}/0/0/0"));
    assert_eq!(program.ended("devices").await, ["manual interrupted", "manual succeeded"]);
    let killed = program.runs("devices").await[0]["id"].to_string();
    let killed = program.json(&["runs", "show", &killed, "--json"]).await;
    let recorded = killed["changes"].as_array().unwrap().iter();
    let recorded = recorded.filter(|change| change["before"].is_object()).count();
    assert!(2 * recorded >= 24 - stale, "{recorded} accounts of {stale} devices");
}

#[tokio::test]
async fn accounts_are_processed_one_at_a_time_within_the_limits_of_the_job() {
    let fake = fake(&[("alice", &["A", "B"]), ("bob", &["C", "D"]), ("carol", &["E"])]);
    let refused = on(&fake, "max_changes = 4").apply("devices").await;
    assert_eq!((&refused["outcome"], deletions(&fake)), (&json!("refused"), 0));
    let program = on(&fake, "at_most = 3");
    assert_eq!(figures(&program.apply("devices").await), "succeeded: 2/2/0/0/2");
    // Nobody knows what follows in the list.
    assert_eq!(figures(&program.apply("devices").await), "succeeded: 3/3/0/0/null");
    let posts = fake.requests();
    let posts: Vec<&str> = posts
        .iter()
        .filter(|seen| seen.method == "POST")
        .map(|seen| seen.path.rsplit('/').nth(1).unwrap())
        .collect();
    assert_eq!(posts, ["alice", "bob", "carol"].map(id));
    assert!(fake.requests().iter().all(|seen| !seen.body.contains("devices\":\"")));
}

#[tokio::test]
async fn a_plan_reads_the_devices_of_each_account_once_and_an_account_only_if_some_are_stale() {
    let fake = Fake::start();
    fake.world(|world| {
        world.users(400, |number| {
            let stale = (0..2).map(|id| used(&format!("S{id}"), 100));
            match number % 4 {
                // Nothing of these can be stale.
                0 => User { devices: vec![Device::default()], ..User::default() },
                1 => User {
                    created_ms: days_ago_ms(50),
                    devices: vec![used("A", 40)],
                    ..User::default()
                },
                2 => User { devices: vec![used("A", 1)], ..User::default() },
                _ => User { devices: stale.chain([used("A", 1)]).collect(), ..User::default() },
            }
        });
        let ghost = User { appservice_id: Some("irc".to_owned()), ..User::default() };
        *world.user(&id("ghost")) = User { devices: vec![used("G", 100), used("H", 1)], ..ghost };
    });
    let program = on(&fake, "");
    let report = program.dry_run("devices").await;
    assert_eq!(figures(&report), "succeeded: 200/0/0/0/0");
    assert_eq!(report["left_alone"], json!({"bridge": 1}));
    let lists =
        |fake: &Fake| fake.requests().iter().filter(|seen| seen.path.ends_with("/devices")).count();
    // And the account of the token, at the beginning.
    assert_eq!((lists(&fake), fake.count("GET", USERS) - lists(&fake)), (201, 101 + 1));
    fake.forget();
    program.dry_run("devices").await;
    // The bridge's is known.
    assert_eq!((lists(&fake), fake.count("GET", USERS) - lists(&fake)), (200, 100 + 1));
}

#[tokio::test]
async fn accounts_are_selected_by_their_ids_and_the_last_device_goes_only_if_the_job_says_so() {
    let fake = fake(&[("alice", &["A"]), ("bot-1", &["B"]), ("carol", &["C"])]);
    fake.world(|world| world.user(&id("carol")).devices.truncate(1));
    let keys =
        "users = [\"@alice:fake.test\", \"@bot-*\", \"@nobody*\"]\nexcept_users = [\"@bot-1:*\"]";
    let report = on(&fake, keys).dry_run("devices").await;
    assert_eq!(
        changes(&report),
        [format!("planned {} -> A (last used {}) (1)", id("alice"), day(100))]
    );
    assert_eq!(report["left_alone"], json!({"excluded": 1}));
    assert_eq!(report["message"], "`@nobody*` matched no account");
    let report = on(&fake, "users = [\"@carol*\"]").dry_run("devices").await;
    assert_eq!(report["left_alone"], json!({"last-device": 1}));
    let program = on(&fake, "users = [\"@carol*\"]\nkeep_last = false");
    let report = program.apply("devices").await;
    assert_eq!((figures(&report), left(&fake, "carol").len()), ("succeeded: 1/1/0/0/0".into(), 0));
    let message = report["message"].as_str().unwrap();
    assert!(
        message.starts_with("1 of the planned devices is of accounts that keep none"),
        "{message}"
    );
    let undo = program.run(&["undo", &report["id"].to_string()]).await;
    assert!(undo.stderr.contains("cannot be undone: the tokens and keys"), "{undo:?}");
}

#[tokio::test]
async fn keys_are_checked_and_a_homeserver_under_mas_needs_its_configuration() {
    for (keys, expected) in [
        ("", "`unused_for` is missing"),
        ("unused_for = \"29d\"", "from \"30d\" to \"3650d\""),
        ("unused_for = \"90d\"\nusers = [\"alice\"]", "cannot match any user"),
    ] {
        let job = format!("[jobs.devices]\nkind = \"delete-stale-devices\"\n{keys}\n");
        let output = Program::new("http://127.0.0.1:9", TOKEN, &job).run(&["check"]).await;
        assert_eq!(output.code, 2, "{keys}");
        assert!(output.stderr.contains(expected), "{keys}: {}", output.stderr);
    }
    let fake = fake(&[("alice", &["A"])]);
    fake.world(|world| {
        world.mas = true;
        world.token(TOKEN, &id("microglia")).admin_scope = true;
    });
    let report = on(&fake, "").apply("devices").await;
    assert_eq!(report["outcome"], "refused");
    let message = report["message"].as_str().unwrap();
    assert!(
        message.contains("which creates deleted devices again, without their keys"),
        "{message}"
    );
}

#[tokio::test]
async fn check_warns_where_it_runs_before_the_kind_that_judges_by_the_devices() {
    for (lock, devices, warns) in [
        ("0 4 * * *", "0 3 * * *", true),
        ("0 3 * * *", "0 4 * * *", false),
        ("0 4 * * *", "0 4 * * *", true),
        ("0 4 * * 7", "0 3 * * *", true),
        ("0 4 * * 7", "0 5 * * *", false),
        ("0 4 * * *", "0 3 * * 7", true),
        ("0 4 * * *", "0 5 * * 7", false),
        ("", "0 3 * * *", false),
        ("0 4 * * *", "", false),
    ] {
        let schedule = |text: &str| match text {
            "" => String::new(),
            text => format!("schedule = \"{text}\"\n"),
        };
        let lock = format!(
            "[jobs.lock]\nkind = \"lock-inactive-accounts\"\ninactive_for = \"180d\"\n{}\n",
            schedule(lock)
        );
        let jobs = format!("{lock}{}", job(&schedule(devices)));
        let output = Program::new("http://127.0.0.1:9", TOKEN, &jobs).run(&["check"]).await;
        assert_eq!(output.code, 0, "{output:?}");
        let warning = "this job runs before `lock` (lock-inactive-accounts) on the same homeserver, which judges by what this one deletes: schedule it after that job";
        assert_eq!(output.stderr.contains(warning), warns, "{jobs}: {}", output.stderr);
    }
}

/// A homeserver whose accounts are in MAS, with sessions of each sort.
fn under_mas() -> UnderMas {
    let mas = UnderMas::start();
    mas.fake.world(|world| {
        for name in ["alice", "bob", "carol", "locked"] {
            // What Synapse shows of devices does not matter.
            world.user(&id(name)).devices = vec![used("A1", 300), used("A2", 300)];
            let service = &mut world.auth_service;
            let user = service.user(name);
            let (oauth2, compat) = (SessionKind::OAuth2, SessionKind::Compatibility);
            let sessions: &[(SessionKind, &str, Option<i64>)] = match name {
                "alice" => &[
                    (oauth2, "A1", Some(200)),
                    (compat, "A2", Some(100)),
                    (oauth2, "A3", Some(80)),
                    (oauth2, "A4", None),
                    (oauth2, "", Some(200)),
                    (compat, "", Some(200)),
                    (oauth2, "A5", Some(200)),
                    (SessionKind::Browser, "", Some(200)),
                ],
                "bob" => &[(oauth2, "B1", Some(200)), (compat, "B2", Some(100))],
                "carol" => &[(oauth2, "C1", Some(200)), (oauth2, "C2", None)],
                _ => &[(oauth2, "L1", Some(200)), (oauth2, "L2", Some(100))],
            };
            for (kind, device, days) in sessions {
                let session = service.user_session(*kind, &user, "2024-01-01T00:00:00Z");
                session.device_id = Some((*device).to_owned()).filter(|id| !id.is_empty());
                session.last_active_at = days.map(days_ago);
                session.finished_at = (*device == "A5").then(|| days_ago(50));
            }
            if name == "locked" {
                service.users.get_mut(&user).unwrap().locked_at = Some(days_ago(1));
            }
        }
        // Of a client that acts for nobody, as microglia does at the Admin API.
        let service = &mut world.auth_service;
        let nobodys = service.user_session(SessionKind::OAuth2, "", "2024-01-01T00:00:00Z");
        nobodys.last_active_at = Some(days_ago(200));
    });
    mas
}

/// The devices whose sessions were finished by the job, sorted.
fn finished(mas: &UnderMas) -> Vec<String> {
    let mut finished: Vec<String> = mas.fake.world(|world| {
        let service = &world.auth_service;
        let sessions = service.user_sessions.values();
        sessions
            .filter(|session| session.finished_at.is_some())
            .map(|session| session.device_id.clone().unwrap_or_else(|| "none".to_owned()))
            .filter(|device| device != "A5")
            .collect()
    });
    finished.sort();
    finished
}

#[tokio::test]
async fn under_mas_sessions_are_finished_there_and_no_device_is_deleted_in_synapse() {
    let mas = under_mas();
    let program = mas.program(&job(""));
    let planned = program.dry_run("devices").await;
    assert_eq!(figures(&planned), "succeeded: 3/0/0/0/0");
    let expected = json!({"last-device": 2, "locked": 1, "never-used": 2});
    assert_eq!(planned["left_alone"], expected);
    assert_eq!(
        (finished(&mas), mas.internal.count("POST", "/api/admin/")),
        (vec![], 1),
        "but the token's session"
    );
    let report = program.apply("devices").await;
    assert_eq!(
        changes(&report),
        [
            format!(
                "done {} -> A1 (last used {}), A2 (last used {}) (2)",
                id("alice"),
                day(200),
                day(100)
            ),
            format!("done {} -> B1 (last used {}) (1)", id("bob"), day(200)),
        ]
    );
    assert!(
        report["changes"].as_array().unwrap().iter().all(|it| it["action"] == "finish-session")
    );
    assert_eq!(finished(&mas), ["A1", "A2", "B1"]);
    let shown = program.json(&["runs", "show", &report["id"].to_string(), "--json"]).await;
    let record = &shown["changes"][0]["before"]["devices"][0];
    assert_eq!(
        (&record["device_id"], &record["session"]["kind"]),
        (&json!("A1"), &json!("oauth2"))
    );
    assert_eq!(figures(&program.apply("devices").await), "succeeded: 0/0/0/0/0");
    assert_eq!(mas.fake.count("POST", USERS), 0);
    let all = mas.program(&job("keep_last = false\nexcept_users = [\"@bob:*\"]"));
    let report = all.apply("devices").await;
    assert_eq!(figures(&report), "succeeded: 1/1/0/0/0");
    assert_eq!(finished(&mas), ["A1", "A2", "B1", "C1"]);
}

#[tokio::test]
async fn under_mas_a_session_that_was_used_since_is_left_alone_and_a_lost_response_does_no_harm() {
    let last_active: fn(&mut World) = |world| {
        for session in world.auth_service.user_sessions.values_mut() {
            if session.device_id.as_deref() == Some("A1") {
                session.last_active_at = Some(days_ago(0));
            }
        }
    };
    let mas = under_mas();
    // After the sessions were read for the plan.
    mas.internal.fault(Fault::new(
        "GET",
        "/api/admin/v1/compat-sessions",
        Trouble::Then(last_active),
    ));
    let report = mas.program(&job("")).apply("devices").await;
    assert_eq!(figures(&report), "succeeded: 3/2/0/1/0");
    assert_eq!(finished(&mas), ["A2", "B1"]);
    for (trouble, times, attempts) in [
        (Trouble::CutAfter, 1, 1),
        (Trouble::ProxyAfter(504), 1, 1),
        (Trouble::CutAfter, 4, 2),
        (Trouble::CutBefore, 4, 2),
    ] {
        let mas = under_mas();
        mas.internal.fault(Fault::new("POST", SESSIONS, trouble.clone()).times(times));
        let program = mas.program(&job("retries = { first_delay = \"0s\" }"));
        let report = program.apply("devices").await;
        assert_eq!(figures(&report), "succeeded: 3/3/0/0/0", "{trouble:?} {times}");
        assert_eq!(
            (finished(&mas).len(), &report["attempts"]),
            (3, &json!(attempts)),
            "{trouble:?}"
        );
    }
    // The second session of an account is refused after the first was finished.
    let mas = under_mas();
    let refusal = Trouble::Answer {
        status: 403,
        headers: vec![],
        body: r#"{"errors": [{"title": "Not now"}]}"#.to_owned(),
    };
    mas.internal.fault(Fault::new("POST", "/api/admin/v1/compat-sessions", refusal));
    let report = mas.program(&job("retries = { first_delay = \"0s\" }")).apply("devices").await;
    assert_eq!((figures(&report), &report["attempts"]), ("succeeded: 3/3/0/0/0".into(), &json!(2)));
}

#[tokio::test]
async fn under_mas_a_run_that_is_killed_is_continued_by_the_next_one() {
    let mas = under_mas();
    let program = mas.program(&job(""));
    program.dry_run("devices").await;
    mas.fake.world(|world| world.latency = Duration::from_millis(100));
    let mut child = program.command(&["run", "devices", "--apply", "--json"]).spawn().unwrap();
    until("one is finished", 30, async || !finished(&mas).is_empty()).await;
    child.kill().await.unwrap();
    mas.fake.world(|world| world.latency = Duration::ZERO);
    let report = program.apply("devices").await;
    assert_eq!(report["outcome"], "succeeded", "{report}");
    assert_eq!(finished(&mas), ["A1", "A2", "B1"]);
}
