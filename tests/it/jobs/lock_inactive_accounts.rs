//! `lock-inactive-accounts`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::fake::{
    CLIENT_ID, CLIENT_SECRET, Device, Fake, Fault, SERVER_NAME, SessionKind, TOKEN, Trouble, User,
    World,
};
use crate::homeserver::{Account, Messages, Synapse, encoded};
use crate::program::{Program, changes, figures, until};

const USERS: &str = "/_synapse/admin/v2/users";
const NOTICE: &str = "/_synapse/admin/v1/send_server_notice/";
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const TELL: &str = "notice = \"Your account is about to be locked.\"";

fn job(keys: &str) -> String {
    format!("[jobs.lock]\nkind = \"lock-inactive-accounts\"\ninactive_for = \"90d\"\n{keys}\n")
}

fn id(name: &str) -> String {
    format!("@{name}:{SERVER_NAME}")
}

/// An account that was used on one device, so many days ago.
pub fn used(world: &World, days: i64) -> User {
    let seen_ms = (world.now().timestamp_millis()) - days * DAY_MS;
    let phone = Device {
        id: "PHONE".to_owned(),
        name: Some("Phone".to_owned()),
        last_seen_ms: Some(seen_ms),
        ..Device::default()
    };
    User { last_seen_ms: Some(seen_ms), devices: vec![phone], ..User::default() }
}

/// A homeserver in memory with these accounts, unused for 200 days.
fn fake(names: &[&str]) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        for name in names {
            *world.user(&id(name)) = used(world, 200);
        }
    });
    fake
}

fn on(fake: &Fake, keys: &str) -> Program {
    Program::new(&fake.url(), TOKEN, &job(keys))
}

fn locked(fake: &Fake) -> Vec<String> {
    fake.world(|world| {
        let locked = world.users.iter().filter(|(_, user)| user.locked);
        locked.map(|(user_id, _)| user_id.clone()).collect()
    })
}

fn locks(fake: &Fake) -> usize {
    fake.count("PUT", USERS)
}

/// Which account uses which device is told when it is used.
fn comes_back(world: &mut World, name: &str) {
    let now_ms = world.now().timestamp_millis();
    let user = world.user(&id(name));
    user.last_seen_ms = Some(now_ms);
    user.devices[0].last_seen_ms = Some(now_ms);
}

/// Makes what is remembered of notices older.
async fn told_days_ago(program: &Program, days: i64) {
    let older = format!("CAST(substr(value, 12, 13) AS BIGINT) - {}", days * DAY_MS);
    let value = format!("'{{\"told_ms\":' || CAST({older} AS TEXT) || '}}'");
    program.sql(&format!("UPDATE facts SET value = {value} WHERE topic = 'unused-account'")).await;
}

/// Makes what is remembered of locks older.
pub async fn locked_days_ago(program: &Program, days: i64) {
    let at = "length(value) - 13";
    let older = format!("CAST(substr(value, {at}, 13) AS BIGINT) - {}", days * DAY_MS);
    let value = format!("'{{\"locked_ms\":' || CAST({older} AS TEXT) || '}}'");
    program
        .sql(&format!("UPDATE facts SET value = {value} WHERE topic = 'unused-account' AND value LIKE '%locked%'"))
        .await;
}

async fn undo(program: &Program, run: &Value, options: &[&str]) -> Value {
    let run = run["id"].to_string();
    program.json(&[&["undo", run.as_str(), "--json"], options].concat()).await
}

/// Without dates.
fn plain(report: &Value) -> Vec<String> {
    let date = |line: String| match line.split_once("20") {
        Some((before, rest)) if rest.as_bytes().get(2) == Some(&b'-') => {
            format!("{before}DATE{}", &rest[8..])
        }
        _ => line,
    };
    changes(report).into_iter().map(date).collect()
}

async fn uses(synapse: &Synapse, account: &Account) -> (u16, Value) {
    let path = "/_matrix/client/v3/account/whoami";
    synapse.client(account, Method::GET, path, Value::Null).await
}

async fn locked_on(synapse: &Synapse) -> Vec<Value> {
    let rows = synapse.sql("SELECT name FROM users WHERE locked ORDER BY name").await;
    rows.into_iter().map(|mut row| row.remove(0)).collect()
}

#[tokio::test]
async fn only_people_who_have_not_been_there_for_long_are_locked_and_undo_lets_them_in_again() {
    let mut synapse = Synapse::days_ago(200, "").await;
    let mut old = Vec::new();
    for name in ["alice", "bob", "cron", "kept", "vip", "robot", "kiosk", "shut", "still", "gone"] {
        let account = synapse.register(name).await;
        assert_eq!(uses(&synapse, &account).await.0, 200);
        old.push(account);
    }
    let [alice, bob, cron, _, vip, robot, kiosk, shut, still, gone] = &old[..] else { panic!() };
    let boss = synapse.register_admin("boss").await;
    assert_eq!(uses(&synapse, &boss).await.0, 200);
    let carol = "@carol:hs.test";
    synapse.set_user(carol, json!({"password": "wordpass"})).await;
    synapse.set_user(&robot.user_id, json!({"user_type": "bot"})).await;
    let ghost = synapse.ghost("ghost_old").await;
    synapse.guest().await;
    let glass = json!({"room_alias_name": "glass", "preset": "public_chat"});
    synapse.create_room(vip, glass).await;
    synapse.lock(&shut.user_id).await;
    synapse.suspend(&still.user_id).await;
    synapse.deactivate(&gone.user_id, Messages::Keep).await;
    synapse.return_to_now().await;

    synapse.register("new").await;
    assert_eq!(uses(&synapse, bob).await.0, 200);
    // Its device has not been used for long, and a token without a device today: the list shows the device.
    synapse
        .sql(&format!("INSERT INTO user_ips (user_id, access_token, device_id, ip, user_agent, last_seen) VALUES ('{}', 'x', NULL, '127.0.0.1', 'cron', unixepoch() * 1000)", cron.user_id))
        .await;
    synapse
        .sql(&format!("UPDATE users SET user_type = 'kiosk' WHERE name = '{}'", kiosk.user_id))
        .await;
    // As if the use by a bridge were recorded.
    synapse
        .sql(&format!(
            "UPDATE devices SET last_seen = (unixepoch() - 17000000) * 1000 WHERE user_id = '{}'",
            ghost.user_id
        ))
        .await;
    let keys = "except_users = [\"@kept:*\"]\nexcept_rooms = [\"#glass:hs.test\"]\n";
    let never = "[jobs.never]\nkind = \"lock-inactive-accounts\"\ninactive_for = \"90d\"\nnever_used_after = \"90d\"\nusers = [\"@c*\", \"@g*\"]\n";
    let program =
        Program::new(&synapse.url, &synapse.admin.token, &format!("{}{never}", job(keys)));
    synapse.forget_requests();
    let planned = program.dry_run("lock").await;
    assert_eq!(plain(&planned), ["planned @alice:hs.test (last used DATE) (1)"]);
    let expected = json!({"admin": 1, "bot": 1, "bridge": 1, "deactivated": 1, "excluded": 2, "locked": 1, "never-used": 1, "other-type": 1, "suspended": 1});
    assert_eq!(planned["left_alone"], expected);
    let others: Vec<String> =
        synapse.requests().into_iter().filter(|request| !request.starts_with("GET ")).collect();
    assert_eq!(others, Vec::<String>::new(), "a dry run sends nothing but GET");
    let never = program.dry_run("never").await;
    assert_eq!(plain(&never), ["planned @carol:hs.test (no known use, created DATE) (1)"]);
    assert_eq!(never["left_alone"], json!({"bridge": 1, "deactivated": 1}));

    let run = program.apply("lock").await;
    assert_eq!(figures(&run), "succeeded: 1/1/0/0/0");
    assert_eq!(locked_on(&synapse).await, [&alice.user_id, &shut.user_id].map(|id| json!(id)));
    let (status, answer) = uses(&synapse, alice).await;
    assert_eq!((status, &answer["errcode"]), (401, &json!("M_USER_LOCKED")));
    let again = program.apply("lock").await;
    assert_eq!(
        (figures(&again), &again["left_alone"]["locked"]),
        ("succeeded: 0/0/0/0/0".to_owned(), &json!(2))
    );

    assert_eq!(figures(&undo(&program, &run, &[]).await), "succeeded: 1/0/0/0/0");
    let undone = undo(&program, &run, &["--apply"]).await;
    assert_eq!(figures(&undone), "succeeded: 1/1/0/0/0");
    assert_eq!(locked_on(&synapse).await, [json!(shut.user_id)], "what others locked stays locked");
    // The old token and device work again.
    assert_eq!(uses(&synapse, alice).await.0, 200);
    let nothing = undo(&program, &run, &["--apply"]).await;
    let why = "1 item not restored: the account is not locked any more";
    assert_eq!(
        (figures(&nothing), &nothing["message"]),
        ("succeeded: 0/0/0/0/0".to_owned(), &json!(why))
    );
}

#[tokio::test]
async fn a_user_is_told_first_and_locked_only_after_that_without_coming_back() {
    let config = "server_notices:\n  system_mxid_localpart: notices\n  room_name: Notices\n";
    let mut synapse = Synapse::days_ago(200, config).await;
    let (alice, bob) = (synapse.register("alice").await, synapse.register("bob").await);
    for account in [&alice, &bob] {
        assert_eq!(uses(&synapse, account).await.0, 200);
    }
    synapse.return_to_now().await;
    let program = Program::new(&synapse.url, &synapse.admin.token, &job(TELL));
    let told = program.apply("lock").await;
    let later = "(1): a run after 14d or more locks the account";
    let expected = ["@alice:hs.test", "@bob:hs.test"]
        .map(|user| format!("done {user} (last used DATE) {later}"));
    assert_eq!(plain(&told), expected);
    assert!(told["changes"].as_array().unwrap().iter().all(|it| it["action"] == "send-notice"));
    for account in [&alice, &bob] {
        let path = format!("/_synapse/admin/v1/users/{}/memberships", encoded(&account.user_id));
        let rooms = synapse.get(&path).await["memberships"].as_object().unwrap().clone();
        let [(room, membership)] = &rooms.into_iter().collect::<Vec<_>>()[..] else { panic!() };
        assert_eq!(membership, "invite");
        let path = format!("/_synapse/admin/v1/rooms/{}/messages?dir=b&limit=1", encoded(room));
        let newest = &synapse.get(&path).await["chunk"][0]["content"];
        assert_eq!(newest["body"], "Your account is about to be locked.");
    }
    // Synapse's own account for notices is not a user in its lists.
    assert_eq!(synapse.sql("SELECT name FROM users WHERE name LIKE '@notices%'").await.len(), 0);
    assert_eq!(locked_on(&synapse).await.len(), 0);

    let waiting = program.apply("lock").await;
    assert_eq!(
        (figures(&waiting), &waiting["left_alone"]),
        ("succeeded: 0/0/0/0/0".to_owned(), &json!({"notified": 2}))
    );
    let message = waiting["message"].as_str().unwrap();
    assert!(
        message.starts_with("the next user who was told will have had `notice_before` on "),
        "{message}"
    );

    assert_eq!(uses(&synapse, &bob).await.0, 200);
    told_days_ago(&program, 15).await;
    let run = program.apply("lock").await;
    assert_eq!(plain(&run), ["done @alice:hs.test (last used DATE) (1)"]);
    assert_eq!(locked_on(&synapse).await, [json!(alice.user_id)]);
    let undone = undo(&program, &told, &["--apply"]).await;
    let why = "2 items not restored: a notice cannot be taken back";
    assert_eq!(
        (figures(&undone), &undone["message"]),
        ("succeeded: 0/0/0/0/0".to_owned(), &json!(why))
    );
}

#[tokio::test]
async fn without_server_notices_nobody_is_told_or_locked_and_the_fix_is_named() {
    let fake = fake(&["a", "b"]);
    fake.world(|world| world.server_notices = false);
    let report = on(&fake, TELL).apply("lock").await;
    assert_eq!(figures(&report), "refused: 2/0/0/0/2");
    let message = report["message"].as_str().unwrap();
    assert!(message.ends_with("400 M_UNKNOWN: Server notices are not enabled on this server. Add `server_notices` with a `system_mxid_localpart` to the configuration of Synapse and restart it, or remove `notice` from the job"), "{message}");
    assert_eq!(locked(&fake), [""; 0]);
}

#[tokio::test]
async fn a_notice_whose_response_was_lost_is_sent_again_once_and_nobody_is_locked_without_one() {
    let keys = format!("{TELL}\nretries = {{ attempts = 1 }}");
    for trouble in [Trouble::CutAfter, Trouble::ProxyAfter(504), Trouble::CutBefore] {
        let fake = fake(&["a"]);
        let program = on(&fake, &keys);
        fake.fault(Fault::new("PUT", NOTICE, trouble.clone()));
        assert_eq!(figures(&program.apply("lock").await), "succeeded: 1/1/0/0/0", "{trouble:?}");
        assert_eq!((fake.count("PUT", NOTICE), fake.world(|world| world.notices.len())), (2, 1));

        // It never arrives that Synapse told the user.
        let fake = self::fake(&["a"]);
        let program = on(&fake, &keys);
        fake.fault(Fault::new("PUT", NOTICE, trouble.clone()).always());
        let report = program.apply("lock").await;
        assert_ne!(report["outcome"], "succeeded", "{trouble:?}");
        let sent = fake.world(|world| world.notices.len());
        assert!(sent <= 1, "{trouble:?}");
        told_days_ago(&program, 100).await;
        fake.no_more_faults();
        // Told again, with the transaction that Synapse knows.
        let report = program.apply("lock").await;
        assert_eq!(
            (figures(&report), &report["changes"][0]["action"]),
            ("succeeded: 1/1/0/0/0".to_owned(), &json!("send-notice")),
            "{trouble:?}"
        );
        assert_eq!(fake.world(|world| world.notices.len()), 1);
        assert_eq!(locks(&fake), 0);
        told_days_ago(&program, 15).await;
        let report = program.apply("lock").await;
        assert_eq!(
            (figures(&report), &report["changes"][0]["action"]),
            ("succeeded: 1/1/0/0/0".to_owned(), &json!("lock-account"))
        );
    }
}

#[tokio::test]
async fn a_user_who_comes_back_is_told_anew_the_next_time() {
    let fake = fake(&["a", "b"]);
    let program = on(&fake, TELL);
    assert_eq!(figures(&program.apply("lock").await), "succeeded: 2/2/0/0/0");
    // In the list, and only in the record.
    let now_ms = fake.world(|world| {
        comes_back(world, "a");
        let now_ms = world.now().timestamp_millis();
        world.user(&id("b")).last_seen_ms = Some(now_ms);
        now_ms
    });
    told_days_ago(&program, 15).await;
    assert_eq!(figures(&program.apply("lock").await), "succeeded: 0/0/0/0/0");
    // Synapse has forgotten that use since, and both have been away for long.
    fake.world(|world| {
        for name in ["a", "b"] {
            let user = world.user(&id(name));
            user.last_seen_ms = None;
            user.devices[0].last_seen_ms = Some(now_ms - 100 * DAY_MS);
        }
    });
    let report = program.apply("lock").await;
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0");
    assert!(report["changes"].as_array().unwrap().iter().all(|it| it["action"] == "send-notice"));
    assert_eq!((locks(&fake), fake.world(|world| world.notices.len())), (0, 4));
}

#[tokio::test]
async fn the_newest_of_list_record_and_devices_counts() {
    let fake = fake(&["by-device", "by-record", "unused"]);
    fake.world(|world| {
        let now_ms = world.now().timestamp_millis();
        world.user(&id("by-record")).last_seen_ms = Some(now_ms);
    });
    let recent = |world: &mut World| comes_back(world, "by-device");
    // Right after the list was read, as what is still in the memory of Synapse.
    fake.fault(Fault::new("GET", USERS, Trouble::Then(recent)).after(1));
    let report = on(&fake, "").dry_run("lock").await;
    assert_eq!(plain(&report), [format!("planned {} (last used DATE) (1)", id("unused"))]);
}

/// What happens between plan and change, and why the change is then skipped.
type Happened = (fn(&mut World), &'static str);

#[tokio::test]
async fn an_account_that_changed_since_the_plan_is_skipped() {
    let happened: [Happened; 6] = [
        (|world| comes_back(world, "a"), "the account was used since the plan"),
        (|world| world.user(&id("a")).admin = true, "the account changed since the plan: admin"),
        (|world| world.user(&id("a")).locked = true, "the account changed since the plan: locked"),
        (
            |world| world.user(&id("a")).deactivated = true,
            "the account changed since the plan: deactivated",
        ),
        (
            |world| world.user(&id("a")).user_type = Some("bot".to_owned()),
            "the account changed since the plan: bot",
        ),
        // Synapse would create it.
        (|world| drop(world.users.remove(&id("a"))), "the account no longer exists"),
    ];
    for (happens, why) in happened {
        let fake = fake(&["a"]);
        let devices = format!("{USERS}/{}/devices", id("a"));
        fake.fault(Fault::new("GET", &devices, Trouble::Then(happens)));
        let report = on(&fake, "").apply("lock").await;
        assert_eq!(figures(&report), "succeeded: 1/0/0/1/0", "{why}");
        assert_eq!((&report["changes"][0]["detail"], locks(&fake)), (&json!(why), 0));
    }
}

#[tokio::test]
async fn a_lock_whose_response_was_lost_counts_and_can_be_undone() {
    for (trouble, times) in [
        (Trouble::CutAfter, 1),
        (Trouble::ProxyAfter(504), 1),
        (Trouble::CutAfter, 4),
        (Trouble::CutBefore, 1),
        (Trouble::Limited { retry_after_ms: Some(10), retry_after_header: None }, 3),
        (Trouble::Proxy(502), 1),
    ] {
        let fake = fake(&["a"]);
        let program = on(&fake, "retries = { first_delay = \"1s\" }");
        fake.fault(Fault::new("PUT", USERS, trouble.clone()).times(times));
        let report = program.apply("lock").await;
        assert_eq!(figures(&report), "succeeded: 1/1/0/0/0", "{trouble:?} {times}");
        assert_eq!(locked(&fake), [id("a")]);
        assert_eq!(figures(&undo(&program, &report, &["--apply"]).await), "succeeded: 1/1/0/0/0");
        assert_eq!(locked(&fake), [""; 0]);
    }
}

#[tokio::test]
async fn a_response_that_contradicts_the_lock_is_a_failure() {
    let fake = fake(&["a"]);
    let program = on(&fake, "");
    let body = json!({"name": id("a"), "locked": false}).to_string();
    let answer = |status| Trouble::Answer { status, headers: vec![], body: body.clone() };
    fake.fault(Fault::new("PUT", USERS, answer(200)));
    let report = program.apply("lock").await;
    assert_eq!(figures(&report), "failed: 1/0/1/0/0");
    assert_eq!(report["changes"][0]["detail"], "Synapse did not lock the account");
    fake.fault(Fault::new("PUT", USERS, answer(201)));
    let report = program.apply("lock").await;
    let message = report["message"].as_str().unwrap();
    assert!(
        message.contains("Synapse created the account @a:fake.test, which existed just before"),
        "{message}"
    );
    fake.fault(Fault::new(
        "PUT",
        USERS,
        Trouble::Synapse(500, "M_UNKNOWN", "Internal server error"),
    ));
    assert_eq!(figures(&program.apply("lock").await), "failed: 1/0/1/0/0");
    assert_eq!(locked(&fake), [""; 0]);
}

#[tokio::test]
async fn a_killed_run_is_finished_by_the_next_and_every_lock_is_known() {
    let fake = Fake::start();
    fake.world(|world| {
        let user = used(world, 200);
        world.users(40, |_| user.clone());
        world.latency = std::time::Duration::from_millis(20);
    });
    let deactivate = "[jobs.gone]\nkind = \"deactivate-accounts\"\nlocked_for = \"30d\"\nerase = false\nmax_changes = 100\n";
    let program = Program::new(&fake.url(), TOKEN, &format!("{}{deactivate}", job("")));
    let mut child = program.command(&["run", "lock", "--apply", "--json"]).spawn().unwrap();
    until("some accounts are locked", 30, async || locked(&fake).len() >= 10).await;
    child.kill().await.unwrap();
    let before = locked(&fake).len();
    assert!(before < 40, "{before}");
    fake.forget();
    let report = program.apply("lock").await;
    assert_eq!((&report["outcome"], locked(&fake).len()), (&json!("succeeded"), 40));
    assert!(locks(&fake) <= 40 - before + 4, "nobody is locked twice");
    locked_days_ago(&program, 40).await;
    assert_eq!(figures(&program.dry_run("gone").await), "succeeded: 40/0/0/0/0");
    let ended = program.ended("lock").await;
    assert_eq!(ended, ["manual interrupted", "manual succeeded"]);
}

#[tokio::test]
async fn undo_unlocks_what_the_run_locked_and_is_still_locked_by_it() {
    let fake = fake(&["a", "by-hand", "gone", "off", "twice"]);
    let program = on(&fake, "");
    let first = program.apply("lock").await;
    assert_eq!(figures(&first), "succeeded: 5/5/0/0/0");
    fake.world(|world| {
        world.user(&id("by-hand")).locked = false;
        world.user(&id("twice")).locked = false;
        world.user(&id("off")).deactivated = true;
        world.users.remove(&id("gone"));
    });
    // It sees that two accounts were unlocked, and locks them again.
    assert_eq!(figures(&program.apply("lock").await), "succeeded: 2/2/0/0/0");
    fake.world(|world| world.user(&id("by-hand")).locked = false);
    assert_eq!(figures(&program.dry_run("lock").await), "succeeded: 1/0/0/0/0");
    fake.world(|world| world.user(&id("by-hand")).locked = true);
    let undone = undo(&program, &first, &["--apply"]).await;
    assert_eq!(figures(&undone), "succeeded: 1/1/0/0/0");
    assert_eq!(locked(&fake), ["by-hand", "off", "twice"].map(id));
    let message = undone["message"].as_str().unwrap();
    for part in [
        "2 items not restored: the account was unlocked, and locked again",
        "1 item not restored: the account was deactivated",
        "1 item not restored: the account no longer exists",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let again = undo(&program, &undone, &["--apply"]).await;
    let detail = again["changes"][0]["detail"].as_str().unwrap();
    assert_eq!(
        detail,
        "cannot be undone: the next run of the job locks the account again, if it is still unused"
    );
}

#[tokio::test]
async fn limits_refuse_a_plan_or_make_it_in_parts() {
    let fake = fake(&["a", "b", "c", "d", "e"]);
    let report = on(&fake, "max_changes = 4").apply("lock").await;
    assert_eq!(figures(&report), "refused: 5/0/0/0/5");
    let program = on(&fake, "at_most = 2");
    for (done, expected) in
        [(2, vec!["a", "b"]), (2, vec!["a", "b", "c", "d"]), (1, vec!["a", "b", "c", "d", "e"])]
    {
        let report = program.apply("lock").await;
        assert_eq!((&report["outcome"], &report["done"]), (&json!("succeeded"), &json!(done)));
        assert_eq!(locked(&fake), expected.into_iter().map(id).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn only_accounts_that_seem_unused_are_read_one_by_one() {
    let fake = Fake::start();
    fake.world(|world| {
        let (unused, recent) = (used(world, 200), used(world, 1));
        world.users(
            20_000,
            |number| if number % 200 == 0 { unused.clone() } else { recent.clone() },
        );
    });
    let program = on(&fake, "");
    assert_eq!(figures(&program.dry_run("lock").await), "succeeded: 100/0/0/0/0");
    let requests = fake.requests().len();
    assert!((203..=210).contains(&requests), "{requests}");
}

#[tokio::test]
async fn an_account_of_a_bridge_is_read_once() {
    let fake = Fake::start();
    fake.world(|world| {
        world.users(10, |_| User { appservice_id: Some("irc".to_owned()), ..User::default() });
    });
    let program = on(&fake, "never_used_after = \"90d\"");
    for devices in [10, 0] {
        fake.forget();
        let left_alone = program.dry_run("lock").await["left_alone"].clone();
        assert_eq!(left_alone, json!({"bridge": 10, "own-account": 1}));
        let read = fake.requests().iter().filter(|seen| seen.path.ends_with("/devices")).count();
        assert_eq!(read, devices);
    }
}

#[tokio::test]
async fn a_room_that_protects_nobody_refuses_the_run() {
    let fake = fake(&["a", "b"]);
    fake.world(|world| {
        world.room("!glass:fake.test").alias("#glass:fake.test").joined(&id("a"));
        world.emptied_room("!empty:fake.test", &id("b"), 3);
    });
    for (room, why) in [
        (
            "#none:fake.test",
            "`except_rooms` names #none:fake.test, which Synapse does not know or cannot read (404 M_NOT_FOUND: Room alias #none:fake.test not found): correct or remove it",
        ),
        (
            "!none:fake.test",
            "`except_rooms` names !none:fake.test, which Synapse does not know or cannot read (404 M_NOT_FOUND: Room not found): correct or remove it",
        ),
        (
            "!empty:fake.test",
            "`except_rooms` names !empty:fake.test, which has no local members and protects nobody: correct or remove it",
        ),
    ] {
        let report = on(&fake, &format!("except_rooms = [\"{room}\"]")).apply("lock").await;
        assert_eq!((&report["outcome"], &report["message"]), (&json!("refused"), &json!(why)));
    }
    let program = on(&fake, "except_rooms = [\"#glass:fake.test\"]");
    let report = program.apply("lock").await;
    assert_eq!((locked(&fake), &report["left_alone"]), (vec![id("b")], &json!({"excluded": 2})));
    let check = program.run(&["check", "--online"]).await;
    assert!(
        check
            .stdout
            .contains("finds the members of #glass:fake.test, who are never locked: 2 members"),
        "{check:?}"
    );
}

#[tokio::test]
async fn answers_that_make_no_sense_lock_nobody() {
    for (path, body) in [
        (USERS, json!({"users": [{"name": id("a"), "last_seen_ts": "yesterday"}], "total": 1})),
        ("/_synapse/admin/v2/users/@a:fake.test/devices", json!({"devices": {"a": 1}})),
        ("/_synapse/admin/v2/users/@a:fake.test/devices", json!({"devices": [{"device_id": 5}]})),
        ("/_synapse/admin/v2/users/@a:fake.test", json!({"name": id("a"), "creation_ts": []})),
    ] {
        let fake = fake(&["a"]);
        let answer = Trouble::Answer { status: 200, headers: vec![], body: body.to_string() };
        fake.fault(Fault::new("GET", path, answer).always());
        let report = on(&fake, "retries = { attempts = 1 }").apply("lock").await;
        assert_eq!(report["outcome"], "failed", "{body}: {report}");
        assert_eq!(locks(&fake), 0);
    }
}

#[tokio::test]
async fn an_account_that_cannot_be_read_fails_alone_and_six_in_a_row_fail_the_run() {
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    let fake = fake(&names);
    let broken = |name: &str| {
        let path = format!("{USERS}/{}", id(name));
        Fault::new("GET", &path, Trouble::Synapse(400, "M_UNKNOWN", "Can only look up local users"))
            .always()
    };
    fake.fault(broken("b"));
    let report = on(&fake, "").apply("lock").await;
    assert_eq!(figures(&report), "partial: 7/6/1/0/0");
    fake.world(|world| names.iter().for_each(|name| world.user(&id(name)).locked = false));
    for name in &names[2..] {
        fake.fault(broken(name));
    }
    let report = on(&fake, "").apply("lock").await;
    assert_eq!((&report["outcome"], locked(&fake)), (&json!("failed"), vec![]), "{report}");
}

#[tokio::test]
async fn keys_that_would_lock_too_early_or_have_no_effect_are_errors() {
    for (keys, expected) in [
        ("inactive_for = \"29d\"", "inactive_for = "),
        ("", "`inactive_for` is missing"),
        ("inactive_for = \"90d\"\nnever_used_after = \"1d\"", "never_used_after = "),
        ("inactive_for = \"90d\"\nnotice_before = \"7d\"", "`notice_before` has no effect"),
        ("inactive_for = \"90d\"\nnotice = \" \"", "the text is empty"),
        ("inactive_for = \"90d\"\nexcept_rooms = [\"glass\"]", "is not a valid room"),
    ] {
        let job = format!("[jobs.lock]\nkind = \"lock-inactive-accounts\"\n{keys}\n");
        let output = Program::new("http://127.0.0.1:9", TOKEN, &job).run(&["check"]).await;
        assert_eq!(output.code, 2, "{keys}");
        assert!(output.stderr.contains(expected), "{keys}: {}", output.stderr);
    }
    let fake = fake(&["a"]);
    fake.world(|world| world.clock_offset_seconds = 3600);
    let report = on(&fake, "").apply("lock").await;
    assert!(report["message"].as_str().unwrap().contains("synchronize the clocks"), "{report}");
    fake.world(|world| (world.clock_offset_seconds, world.version) = (0, "1.139.0".to_owned()));
    assert_eq!(on(&fake, "").apply("lock").await["outcome"], "refused");
}

/// A homeserver, the listeners of its MAS, and a configuration for both with these jobs.
pub struct WithMas {
    pub homeserver: Fake,
    pub internal: Fake,
    _public: Fake,
    pub program: Program,
}

impl WithMas {
    pub fn new(jobs: &str) -> Self {
        let homeserver = Fake::start();
        let (public, internal) = homeserver.mas();
        homeserver.world(|world| {
            world.auth_service.user("microglia");
        });
        let program = Program::with_config(&format!(
            "[daemon]\nstate_dir = \"state\"\n\n[homeservers.main]\nurl = \"{}\"\nmax_requests_per_second = \"unlimited\"\n[homeservers.main.mas]\nurl = \"{}\"\nadmin_url = \"{}\"\nclient_id = \"{CLIENT_ID}\"\nclient_secret_file = \"mas-client-secret\"\naccount = \"microglia\"\n\n{jobs}",
            homeserver.url(),
            public.url(),
            internal.url(),
        ));
        program.write("mas-client-secret", CLIENT_SECRET);
        Self { homeserver, internal, _public: public, program }
    }

    /// An account of MAS and of Synapse, unused for 200 days; returns its id in MAS.
    pub fn unused(&self, name: &str) -> String {
        self.homeserver.world(|world| {
            *world.user(&id(name)) = used(world, 200);
            world.auth_service.user(name)
        })
    }

    /// Whom MAS has locked.
    pub fn locked(&self) -> Vec<String> {
        self.homeserver.world(|world| {
            let users = world.auth_service.users.values();
            let mut locked: Vec<String> = users
                .filter(|user| user.locked_at.is_some())
                .map(|user| user.username.clone())
                .collect();
            locked.sort();
            locked
        })
    }
}

#[tokio::test]
async fn where_mas_manages_the_accounts_it_says_who_is_there_and_locks() {
    let mas = WithMas::new(&job(""));
    for kind in [SessionKind::OAuth2, SessionKind::Compatibility, SessionKind::Browser] {
        let user = mas.unused(&format!("uses-{kind:?}").to_lowercase());
        mas.homeserver.world(|world| {
            let now = world.now().to_rfc3339();
            let session = world.auth_service.user_session(kind, &user, "2020-01-01T00:00:00Z");
            session.last_active_at = Some(now);
        });
    }
    let began = mas.unused("logs-in");
    let alice = mas.unused("alice");
    let (boss, shut, guest) = (mas.unused("boss"), mas.unused("shut"), mas.unused("guest"));
    mas.homeserver.world(|world| {
        let now = world.now().to_rfc3339();
        world.auth_service.user_session(SessionKind::OAuth2, &began, &now);
        let ended =
            world.auth_service.user_session(SessionKind::OAuth2, &alice, "2020-01-01T00:00:00Z");
        ended.finished_at = Some("2020-01-02T00:00:00Z".to_owned());
        world.auth_service.users.get_mut(&boss).unwrap().admin = true;
        world.auth_service.users.get_mut(&shut).unwrap().locked_at =
            Some("2026-01-01T00:00:00Z".to_owned());
        world.auth_service.users.get_mut(&guest).unwrap().legacy_guest = true;
        // A bridge whose namespace is not its own.
        *world.user(&id("ghost")) = used(world, 200);
    });
    let run = mas.program.apply("lock").await;
    assert_eq!(plain(&run), ["done @alice:fake.test (last used DATE) (1)"]);
    assert_eq!(
        run["left_alone"],
        json!({"admin": 1, "guest": 1, "locked": 1, "not-in-mas": 1, "own-account": 1})
    );
    assert_eq!(mas.locked(), ["alice", "shut"]);
    assert_eq!(mas.homeserver.count("PUT", USERS), 0, "Synapse's own lock means nothing");

    let undone = undo(&mas.program, &run, &["--apply"]).await;
    assert_eq!(
        (figures(&undone), mas.locked()),
        ("succeeded: 1/1/0/0/0".to_owned(), vec!["shut".to_owned()])
    );
    // Somebody else has locked it long before.
    let run = mas.program.apply("lock").await;
    mas.homeserver.world(|world| {
        let long_ago = Some("2026-01-01T00:00:00Z".to_owned());
        world.auth_service.users.get_mut(&alice).unwrap().locked_at = long_ago;
    });
    let undone = undo(&mas.program, &run, &["--apply"]).await;
    assert_eq!(
        undone["message"],
        "1 item not restored: the account was unlocked, and locked again"
    );
    assert_eq!(mas.locked(), ["alice", "shut"]);
}

#[tokio::test]
async fn a_homeserver_and_a_configuration_that_differ_about_mas_are_refused() {
    let fake = fake(&["a"]);
    fake.world(|world| world.mas = true);
    let report = on(&fake, "").apply("lock").await;
    assert_eq!(report["outcome"], "refused");
    assert!(
        report["message"].as_str().unwrap().contains("configure [homeservers.NAME.mas]"),
        "{report}"
    );
    let mas = WithMas::new(&job(""));
    mas.unused("alice");
    mas.homeserver.fault(
        Fault::new(
            "GET",
            "/_matrix/client/v1/auth_metadata",
            Trouble::Synapse(404, "M_UNRECOGNIZED", "Unrecognized request"),
        )
        .always(),
    );
    let report = mas.program.apply("lock").await;
    assert_eq!(report["outcome"], "refused", "{report}");
    assert_eq!(mas.locked(), [""; 0]);
}
