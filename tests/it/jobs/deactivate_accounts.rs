//! `deactivate-accounts`.

use reqwest::Method;
use serde_json::{Value, json};

use super::lock_inactive_accounts::{WithMas, locked_days_ago, used};
use crate::fake::{Device, Fake, Fault, SERVER_NAME, TOKEN, Trouble, World};
use crate::homeserver::{Account, Synapse, encoded};
use crate::program::{Program, changes, figures, until};

const DEACTIVATE: &str = "/_synapse/admin/v1/deactivate/";

fn jobs(keys: &str) -> String {
    format!(
        "[jobs.lock]\nkind = \"lock-inactive-accounts\"\ninactive_for = \"90d\"\n\n[jobs.gone]\nkind = \"deactivate-accounts\"\nlocked_for = \"90d\"\n{keys}\n"
    )
}

fn id(name: &str) -> String {
    format!("@{name}:{SERVER_NAME}")
}

/// A homeserver in memory with these accounts, which the program locked 100 days ago.
async fn locked(names: &[&str], keys: &str) -> (Fake, Program) {
    let fake = Fake::start();
    fake.world(|world| {
        for name in names {
            *world.user(&id(name)) = used(world, 300);
        }
    });
    let program = Program::new(&fake.url(), TOKEN, &jobs(keys));
    let run = program.apply("lock").await;
    assert_eq!(run["done"], names.len(), "{run}");
    locked_days_ago(&program, 100).await;
    fake.forget();
    (fake, program)
}

fn deactivated(fake: &Fake) -> Vec<String> {
    fake.world(|world| {
        let gone = world.users.iter().filter(|(_, user)| user.deactivated);
        gone.map(|(user_id, _)| user_id.clone()).collect()
    })
}

async fn deactivated_on(synapse: &Synapse) -> Vec<Value> {
    let rows = synapse.sql("SELECT name FROM users WHERE deactivated ORDER BY name").await;
    rows.into_iter().map(|mut row| row.remove(0)).collect()
}

async fn back_up_keys(synapse: &Synapse, account: &Account) {
    let version = json!({"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {}});
    let path = "/_matrix/client/v3/room_keys/version";
    assert_eq!(synapse.client(account, Method::POST, path, version).await.0, 200);
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.megolm_backup.v1",
        encoded(&account.user_id)
    );
    let secret = json!({"encrypted": {"key": {"iv": "i", "mac": "m", "ciphertext": "c"}}});
    assert_eq!(synapse.client(account, Method::PUT, &path, secret).await.0, 200);
}

#[tokio::test]
async fn only_what_this_program_locked_long_ago_is_deactivated_and_the_plan_says_what_goes_with_it()
{
    let mut synapse = Synapse::days_ago(300, "").await;
    let mut old = Vec::new();
    for name in ["alice", "back", "bob", "free", "hand", "kept"] {
        let account = synapse.register(name).await;
        let path = "/_matrix/client/v3/account/whoami";
        assert_eq!(synapse.client(&account, Method::GET, path, Value::Null).await.0, 200);
        old.push(account);
    }
    let [alice, back, bob, free, hand, kept] = &old[..] else { panic!() };
    synapse.login(alice).await;
    back_up_keys(&synapse, alice).await;
    let diary = synapse.create_room(alice, json!({"preset": "private_chat"})).await;
    let lobby = synapse.create_room(alice, json!({"preset": "public_chat"})).await;
    synapse.join(kept, &lobby).await;
    synapse.create_room(kept, json!({"invite": [alice.user_id]})).await;
    synapse.lock(&hand.user_id).await;
    synapse.return_to_now().await;
    let keys = "erase = false\nexcept_users = [\"@kept:*\"]";
    let program = Program::new(&synapse.url, &synapse.admin.token, &jobs(keys));
    assert_eq!(figures(&program.apply("lock").await), "succeeded: 5/5/0/0/0");

    let early = program.dry_run("gone").await;
    assert_eq!(figures(&early), "succeeded: 0/0/0/0/0");
    let expected = json!({"excluded": 1, "locked-by-others": 1, "recently-locked": 4});
    assert_eq!(early["left_alone"], expected);
    let message = early["message"].as_str().unwrap();
    assert!(message.starts_with("the next account will have been locked for 90d on "), "{message}");

    locked_days_ago(&program, 100).await;
    // A run sees that this one was unlocked; somebody else locks it afterwards.
    synapse.set_user(&free.user_id, json!({"locked": false})).await;
    program.dry_run("gone").await;
    synapse.lock(&free.user_id).await;
    // Its device was used after the lock, by a client that then logged out.
    synapse
        .sql(&format!("INSERT INTO user_ips (user_id, access_token, device_id, ip, user_agent, last_seen) VALUES ('{}', 'x', NULL, '127.0.0.1', 'x', unixepoch() * 1000)", back.user_id))
        .await;
    synapse.forget_requests();
    let planned = program.dry_run("gone").await;
    let lines = changes(&planned);
    let day = lines[0].split_once("locked ").unwrap().1[..10].to_owned();
    let devices = {
        let path = format!("/_synapse/admin/v2/users/{}/devices", encoded(&alice.user_id));
        let devices = synapse.get(&path).await["devices"].clone();
        let mut names: Vec<String> = devices
            .as_array()
            .unwrap()
            .iter()
            .map(|device| device["device_id"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names.join(", ")
    };
    let bobs = lines[1].split_once("1 device: ").unwrap().1;
    assert_eq!(
        lines,
        [
            format!(
                "planned {} (locked {day}, 2 devices: {devices}, a key backup, 1 invitation, the last local member of 1 room: {diary}) (1)",
                alice.user_id
            ),
            format!("planned {} (locked {day}, 1 device: {bobs}", bob.user_id),
        ]
    );
    let expected = json!({"excluded": 1, "locked-by-others": 2, "used-since-lock": 1});
    assert_eq!(planned["left_alone"], expected);
    let others: Vec<String> =
        synapse.requests().into_iter().filter(|request| !request.starts_with("GET ")).collect();
    assert_eq!(others, Vec::<String>::new(), "a dry run sends nothing but GET");

    let run = program.apply("gone").await;
    assert_eq!(figures(&run), "succeeded: 2/2/0/0/0");
    assert_eq!(deactivated_on(&synapse).await, [&alice.user_id, &bob.user_id].map(|id| json!(id)));
    assert_eq!(synapse.sql("SELECT * FROM erased_users").await.len(), 0);
    assert_eq!(figures(&program.apply("gone").await), "succeeded: 0/0/0/0/0");
    let undo = program.run(&["undo", &run["id"].to_string(), "--apply"]).await;
    assert_eq!(undo.code, 1);
    let all = format!("{}{}", undo.stdout, undo.stderr);
    assert!(
        all.contains("cannot be undone: Synapse deletes the password, the devices and the keys"),
        "{all}"
    );
}

#[tokio::test]
async fn erase_erases_and_has_no_default() {
    let mut synapse = Synapse::days_ago(300, "").await;
    let alice = synapse.register("alice").await;
    synapse.create_room(&alice, json!({})).await;
    synapse.return_to_now().await;
    let program = Program::new(&synapse.url, &synapse.admin.token, &jobs("erase = true"));
    assert_eq!(figures(&program.apply("lock").await), "succeeded: 1/1/0/0/0");
    locked_days_ago(&program, 100).await;
    assert_eq!(figures(&program.apply("gone").await), "succeeded: 1/1/0/0/0");
    assert_eq!(synapse.sql("SELECT user_id FROM erased_users").await, [[json!(alice.user_id)]]);

    for (keys, expected) in [
        ("locked_for = \"90d\"", "`erase` is missing"),
        ("erase = false", "`locked_for` is missing"),
        ("locked_for = \"7d\"\nerase = false", "locked_for = "),
        ("locked_for = \"90d\"\nerase = \"no\"", "erase = "),
    ] {
        let job = format!("[jobs.gone]\nkind = \"deactivate-accounts\"\n{keys}\n");
        let output = Program::new("http://127.0.0.1:9", TOKEN, &job).run(&["check"]).await;
        assert_eq!(output.code, 2, "{keys}");
        assert!(output.stderr.contains(expected), "{keys}: {}", output.stderr);
    }
}

#[tokio::test]
async fn more_than_twenty_at_once_are_refused_unless_the_configuration_says_otherwise() {
    let names: Vec<String> = (0..21).map(|number| format!("a{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (fake, program) = locked(&names, "erase = false").await;
    let report = program.apply("gone").await;
    assert_eq!(figures(&report), "refused: 21/0/0/0/21");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("the plan has 21 items, more than max_changes = 20"), "{message}");
    assert_eq!(deactivated(&fake), [""; 0]);
    let kinds = program.run(&["kinds", "deactivate-accounts"]).await;
    assert!(kinds.stdout.contains("max_changes (default 20)"), "{}", kinds.stdout);
    let config = program.read("microglia.toml");
    for (changed, outcome) in [
        (format!("{config}max_changes = 21\n"), "succeeded"),
        (config.replace("[jobs.lock]", "[defaults]\nmax_changes = 21\n\n[jobs.lock]"), "succeeded"),
        (config.replace("[jobs.lock]", "[defaults]\nmax_changes = 5\n\n[jobs.lock]"), "refused"),
    ] {
        program.write("microglia.toml", &changed);
        // A dry run says what apply mode would do.
        let report = program.dry_run("gone").await;
        assert_eq!(report["outcome"], outcome, "{changed}");
    }
}

#[tokio::test]
async fn devices_are_named_without_what_could_mislead() {
    let (fake, program) = locked(&["a", "none"], "erase = false").await;
    fake.world(|world| {
        world.user(&id("none")).devices.clear();
        let user = world.user(&id("a"));
        let old_ms = user.devices[0].last_seen_ms;
        user.devices = vec![
            Device {
                id: "PAD".to_owned(),
                name: Some("Pad\n\u{1b}[31m".to_owned()),
                last_seen_ms: old_ms,
                dehydrated: false,
            },
            Device {
                id: "LONG".to_owned(),
                name: Some("x".repeat(300)),
                last_seen_ms: None,
                dehydrated: false,
            },
            Device { id: "HYDRO".to_owned(), name: None, last_seen_ms: None, dehydrated: true },
        ];
        user.has_key_backup = true;
    });
    let lines = changes(&program.dry_run("gone").await);
    let text = lines[0].split_once(", ").unwrap().1;
    let long = "x".repeat(40);
    assert_eq!(
        text,
        format!("2 devices: \"Pad [31m\", \"{long}…\", a dehydrated device, a key backup) (1)")
    );
    assert!(
        lines[1].starts_with("planned @none:fake.test (locked 20") && !lines[1].contains(','),
        "{lines:?}"
    );
}

#[tokio::test]
async fn a_deactivation_whose_response_was_lost_is_not_repeated() {
    for (trouble, sent) in [
        (Trouble::CutAfter, 1),
        (Trouble::ProxyAfter(504), 1),
        (Trouble::CutBefore, 2),
        (Trouble::Limited { retry_after_ms: Some(10), retry_after_header: None }, 2),
    ] {
        let (fake, program) =
            locked(&["a"], "erase = false\nretries = { first_delay = \"1s\" }").await;
        fake.fault(Fault::new("POST", DEACTIVATE, trouble.clone()));
        assert_eq!(figures(&program.apply("gone").await), "succeeded: 1/1/0/0/0", "{trouble:?}");
        assert_eq!(
            (fake.count("POST", DEACTIVATE), deactivated(&fake)),
            (sent, vec![id("a")]),
            "{trouble:?}"
        );
    }
}

#[tokio::test]
async fn one_that_fails_does_not_stop_the_others() {
    let (fake, program) = locked(&["a", "b", "c"], "erase = false").await;
    fake.fault(Fault::new(
        "POST",
        &format!("{DEACTIVATE}{}", id("b")),
        Trouble::Synapse(403, "M_FORBIDDEN", "Deactivation of this user is forbidden"),
    ));
    let report = program.apply("gone").await;
    assert_eq!(figures(&report), "partial: 3/2/1/0/0");
    assert_eq!(deactivated(&fake), [id("a"), id("c")]);
    let bodies: Vec<String> = fake
        .requests()
        .into_iter()
        .filter(|seen| seen.method == "POST")
        .map(|seen| seen.body)
        .collect();
    assert_eq!(bodies, [r#"{"erase":false}"#; 3]);
    // What cannot be read is a failed target, too.
    fake.fault(
        Fault::new(
            "GET",
            &format!("/_synapse/admin/v2/users/{}", id("b")),
            Trouble::Synapse(500, "M_UNKNOWN", "Internal server error"),
        )
        .always(),
    );
    let report = program.apply("gone").await;
    assert_eq!(figures(&report), "partial: 1/0/1/0/0", "{report}");
    assert_eq!(report["changes"][0]["detail"], "500 M_UNKNOWN: Internal server error");
}

/// What happens between plan and change, and why the change is then skipped.
type Happened = (fn(&mut World), &'static str);

#[tokio::test]
async fn an_account_that_changed_since_the_plan_is_skipped() {
    let happened: [Happened; 5] = [
        (|world| world.user(&id("a")).locked = false, "the account is not locked any more"),
        (|world| world.user(&id("a")).admin = true, "the account changed since the plan: admin"),
        (
            |world| {
                let now_ms = world.now().timestamp_millis();
                world.user(&id("a")).last_seen_ms = Some(now_ms);
            },
            "the account changed since the plan: used-since-lock",
        ),
        (
            |world| world.user(&id("a")).deactivated = true,
            "the account changed since the plan: deactivated",
        ),
        (|world| drop(world.users.remove(&id("a"))), "the account no longer exists"),
    ];
    for (happens, why) in happened {
        let (fake, program) = locked(&["a"], "erase = false").await;
        let last_read = format!("/_synapse/admin/v1/users/{}/accountdata", id("a"));
        fake.fault(Fault::new("GET", &last_read, Trouble::Then(happens)));
        let report = program.apply("gone").await;
        assert_eq!(figures(&report), "succeeded: 1/0/0/1/0", "{why}");
        assert_eq!(report["changes"][0]["detail"], why);
        assert_eq!(fake.count("POST", DEACTIVATE), 0);
    }
}

#[tokio::test]
async fn a_killed_run_is_finished_by_the_next() {
    let (fake, program) = locked(&["a", "b", "c"], "erase = false").await;
    let mut child = program.command(&["run", "gone", "--apply", "--json"]).spawn().unwrap();
    until("the first is deactivated", 30, async || !deactivated(&fake).is_empty()).await;
    child.kill().await.unwrap();
    let before = deactivated(&fake).len();
    assert!(before < 3, "{before}");
    let report = program.apply("gone").await;
    assert_eq!((&report["outcome"], deactivated(&fake).len()), (&json!("succeeded"), 3));
    assert_eq!(fake.count("POST", DEACTIVATE), 3);
    assert_eq!(program.ended("gone").await, ["manual interrupted", "manual succeeded"]);
}

#[tokio::test]
async fn what_is_remembered_of_accounts_that_are_gone_is_forgotten() {
    let (fake, program) = locked(&["a", "b", "c", "d"], "erase = false").await;
    fake.world(|world| {
        world.users.remove(&id("a"));
        world.user(&id("b")).deactivated = true;
        world.user(&id("c")).locked = false;
    });
    assert_eq!(figures(&program.dry_run("gone").await), "succeeded: 1/0/0/0/0");
    fake.world(|world| {
        for name in ["a", "b", "c"] {
            *world.user(&id(name)) = used(world, 300);
            world.user(&id(name)).locked = true;
        }
    });
    let report = program.dry_run("gone").await;
    assert_eq!(figures(&report), "succeeded: 1/0/0/0/0");
    assert_eq!(report["left_alone"], json!({"locked-by-others": 3}));
}

#[tokio::test]
async fn where_mas_manages_the_accounts_it_deactivates_them() {
    for (keys, erased) in [("erase = false", false), ("erase = true", true)] {
        let mas = WithMas::new(&jobs(keys));
        let [alice, back, other, boss] =
            ["alice", "back", "other", "boss"].map(|name| mas.unused(name));
        assert_eq!(figures(&mas.program.apply("lock").await), "succeeded: 4/4/0/0/0");
        locked_days_ago(&mas.program, 100).await;
        mas.homeserver.world(|world| {
            let at = |days| (world.now() - chrono::TimeDelta::days(days)).to_rfc3339();
            let (then, later, now) = (at(100), at(50), at(0));
            let service = &mut world.auth_service;
            for user in [&alice, &back, &boss] {
                service.users.get_mut(user).unwrap().locked_at = Some(then.clone());
            }
            // Somebody unlocked and locked it.
            service.users.get_mut(&other).unwrap().locked_at = Some(later);
            service.users.get_mut(&boss).unwrap().admin = true;
            service.user_session(crate::fake::SessionKind::Browser, &back, &now);
        });
        let report = mas.program.apply("gone").await;
        assert_eq!(figures(&report), "succeeded: 1/1/0/0/0");
        assert!(changes(&report)[0].starts_with("done @alice:fake.test (locked 20"), "{report}");
        assert_eq!(
            report["left_alone"],
            json!({"admin": 1, "locked-by-others": 1, "used-since-lock": 1})
        );
        mas.homeserver.world(|world| {
            assert!(world.auth_service.users[&alice].deactivated_at.is_some());
            assert_eq!(world.users[&id("alice")].erased, erased);
        });
        let bodies: Vec<String> = mas
            .internal
            .requests()
            .into_iter()
            .filter(|seen| seen.path.ends_with("/deactivate"))
            .map(|seen| seen.body)
            .collect();
        assert_eq!(bodies, [format!("{{\"skip_erase\":{}}}", !erased)]);
    }
}
