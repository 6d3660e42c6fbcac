//! The report and the advice of a manual run.

use std::sync::Arc;

use chrono::TimeDelta;
use microglia::config::{Config, Environment};
use microglia::history::History;
use microglia::history::state_dir::StateDir;
use microglia::http::Transport;
use microglia::plan::report::Mode;
use microglia::runner::{HomeserverHandle, LostCallWait, RunParams, RunSlots, Runner, Stop};
use microglia::values::clock::{Clock, Timestamp};
use serde_json::{Value, json};

use crate::fake::{Fake, TOKEN, User};
use crate::program::{Program, figures, until};

/// 2022-01-01.
const LONG_AGO_MS: i64 = 1_640_995_200_000;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// A homeserver whose accounts have this many ids of `saml`, one each.
fn with_ids(count: usize) -> Fake {
    let fake = Fake::start();
    fake.world(|world| world.users(count, |i| User::default().external("saml", &i.to_string())));
    fake
}

fn sweep(keys: &str) -> String {
    format!(
        "[jobs.sweep]\nkind = \"remove-external-ids\"\nproviders = [\"saml\"]\naccounts = \"all\"\n{keys}\n"
    )
}

/// A window that opens in two hours, for an hour.
fn closed_window() -> String {
    let at = |hours| (Clock::system().now() + TimeDelta::hours(hours)).format("%H:%M");
    format!("window = \"{}-{}\"", at(2), at(3))
}

#[tokio::test]
async fn with_at_most_every_count_describes_what_this_run_would_do() {
    let fake = Fake::start();
    fake.world(|world| {
        world.users(2, |_| User::default());
        for day in 0..30 {
            let (owner, bytes) = if day < 7 { (0, 1000) } else { (1, 2048) };
            let owner = format!("@user00000{owner}:fake.test");
            world.media(&owner, &format!("file{day}"), bytes, LONG_AGO_MS + day * DAY_MS, None);
        }
    });
    let job = "[jobs.purge]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\nat_most = 7\n";
    let program = Program::new(&fake.url(), TOKEN, job);
    let plan = program.dry_run("purge").await;
    assert_eq!(figures(&plan), "succeeded: 7/0/0/0/23");
    assert_eq!(plan["bytes_planned"], 7000);
    assert_eq!(
        plan["sample"],
        json!([{ "user_id": "@user000000:fake.test", "files": 7, "bytes": 7000 }])
    );
    let left = "23 more (46.0 KiB) are left for later runs by at_most";
    assert_eq!(plan["message"], left);
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 7/7/0/0/23");
    assert_eq!(
        (&report["bytes_planned"], &report["bytes_freed"], &report["message"]),
        (&json!(7000), &json!(7000), &json!(left))
    );

    let ids = with_ids(3);
    let program = Program::new(&ids.url(), TOKEN, &sweep("at_most = 2"));
    let report = program.apply("sweep").await;
    // No more accounts are read than it takes to find two ids, so nobody knows how many remain.
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/null");
    let message = report["message"].as_str().unwrap();
    assert!(message.starts_with("2 of the planned ids are "), "{message}");
    assert!(message.ends_with("; 3 of 4 accounts read; the next run continues"), "{message}");
}

#[tokio::test]
async fn a_dry_run_advises_only_what_would_work() {
    let fake = with_ids(2);
    let program = Program::new(&fake.url(), TOKEN, &sweep(&closed_window()));
    let looked = program.run(&["run", "sweep", "--dry-run"]).await.stdout;
    let advice = looked.lines().last().unwrap();
    assert!(
        advice.contains("opens at ")
            && advice.contains(": microglia run sweep --apply --ignore-window"),
        "{looked}"
    );
    let refused = program.run(&["run", "sweep", "--apply"]).await;
    assert!(
        refused.code == 1 && refused.stdout.contains("`--ignore-window` ignores the window once"),
        "{refused:?}"
    );
    assert_eq!(fake.count("PUT", "/"), 0);
    let made = program.run(&["run", "sweep", "--apply", "--ignore-window", "--json"]).await;
    let report = serde_json::from_str(&made.stdout).unwrap();
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0");
    let nothing = program.run(&["run", "sweep", "--dry-run"]).await;
    assert!(!nothing.stdout.contains("--apply"), "{nothing:?}");
    assert_eq!(
        nothing.stdout.lines().last(),
        Some("Nothing was changed, and there is nothing to change.")
    );
}

#[tokio::test]
async fn the_daemon_ignores_the_window_for_one_run_on_request() {
    let fake = with_ids(2);
    let program = Program::new(&fake.url(), TOKEN, &sweep(&closed_window()));
    let config = program.read("microglia.toml");
    program.write(
        "microglia.toml",
        &config.replace("[daemon]\n", "[daemon]\nadmin_token_file = \"admin\"\n"),
    );
    program.write("admin", "secret-of-the-tests");
    let daemon = program.serve().await;
    assert_eq!(program.apply("sweep").await["outcome"], "refused");
    let made = program.json(&["run", "sweep", "--apply", "--ignore-window", "--json"]).await;
    assert_eq!(figures(&made), "succeeded: 2/2/0/0/0");
    let ask = "/api/v1/jobs/sweep/run";
    let mut outcomes = Vec::new();
    for body in [r#"{"mode": "apply", "ignore_window": true}"#, r#"{"mode": "apply"}"#] {
        let (status, answer) = daemon.post(ask, "secret-of-the-tests", body).await;
        assert_eq!(status, 202, "{answer}");
        let runs = outcomes.len() + 3;
        until("the run's end", 20, async || program.ended("sweep").await.len() == runs).await;
        outcomes.push(program.ended("sweep").await.pop().unwrap());
    }
    assert_eq!(outcomes, ["manual succeeded", "manual refused"]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_run_that_cannot_finish_reading_says_how_far_it_got_and_what_it_would_take() {
    let fake = Fake::start();
    fake.world(|world| {
        world.users(400, |_| User::default());
        for n in 0..400 {
            let owner = format!("@user{n:06}:fake.test");
            world.media(&owner, &format!("file{n}"), 10, LONG_AGO_MS, None);
        }
    });
    let job =
        "[jobs.sweep]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\ntime_limit = \"3s\"\n";
    let program = Program::new(&fake.url(), TOKEN, job);
    let config = program.read("microglia.toml");
    let limited = config
        .replace("requests_per_second = \"unlimited\"", "requests_per_second = 50")
        .replace("[daemon]\n", "[daemon]\nadmin_token_file = \"admin\"\n");
    program.write("microglia.toml", &limited);
    program.write("admin", "secret-of-the-tests");
    let warning = "reading 400 accounts with files at 50 requests per second takes at least 8.0 s, but time_limit is 3s: raise it to at least 10 s";
    let ran = program.run(&["run", "sweep", "--dry-run", "--full", "--json"]).await;
    assert!(ran.stderr.contains(warning), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(figures(&report), "timed-out: null/0/0/0/null");
    let message = report["message"].as_str().unwrap();
    let rest = message
        .strip_prefix("the time limit of 3s was reached; reading files: ")
        .unwrap_or_else(|| panic!("{message}"));
    assert!(
        rest.contains(" of 400 in ")
            && rest.contains(" requests a second; raise time_limit to at least "),
        "{message}"
    );
    let shown = program.run(&["runs", "show", "1"]).await.stdout;
    assert!(shown.contains("timed-out after 3.") && shown.contains(": no plan\n"), "{shown}");
    let recorded = &program.json(&["runs", "--json"]).await[0];
    assert_eq!((&recorded["remaining"], &recorded["message"]), (&Value::Null, &json!(message)));

    let daemon = program.serve().await;
    let items = async |state: &str| {
        let labels = ["job_name=\"sweep\"", &format!("state=\"{state}\"")];
        daemon.metric("microglia_job_last_run_items", &labels).await
    };
    assert_eq!((items("done").await, items("remaining").await), (Some(0.0), None));
    daemon.stop().await;
}

#[tokio::test]
async fn a_window_that_ends_while_a_run_reads_says_how_far_it_got() {
    let fake = Arc::new(with_ids(400));
    let program = Program::new(&fake.url(), TOKEN, &sweep("window = \"01:00-06:00\""));
    let config = program.read("microglia.toml");
    program.write(
        "microglia.toml",
        &config.replace("requests_per_second = \"unlimited\"", "requests_per_second = 50"),
    );
    let clock = {
        let fake = Arc::clone(&fake);
        let inside: Timestamp = "2026-11-23T05:59:00Z".parse().unwrap();
        Clock::of(move || {
            let over = fake.count("GET", "/_synapse/admin/v2/users/") > 20;
            inside + TimeDelta::minutes(i64::from(over))
        })
    };
    let path = program.path("microglia.toml");
    let config = Config::load(&path, &Environment::default(), clock.now()).unwrap();
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
    let params = RunParams { mode: Mode::Apply, ..RunParams::manual(spec) };
    let stop = Stop::default();
    let report = runner.run(spec, &handle, &params, &stop, Arc::new(|_| {})).await.unwrap();
    let report = serde_json::to_value(report).unwrap();
    assert_eq!(figures(&report), "failed: null/0/0/0/null");
    let message = report["message"].as_str().unwrap();
    assert!(
        message.starts_with("the job's window ended while the run was reading accounts: ")
            && message.contains(" of 401 in ")
            && message.ends_with(" requests a second"),
        "{message}"
    );
}

#[tokio::test]
async fn items_left_alone_are_counted_and_listed_by_reason() {
    let fake = Fake::start();
    let at = |name: &str| format!("@{name}:fake.test");
    fake.world(|world| {
        world.user(&at("fine"));
        world.user(&at("excluded"));
        world.user(&at("dead")).deactivated = true;
        world.user(&at("locked")).locked = true;
        world.user(&at("suspended")).suspended = true;
        world.user(&at("bot")).user_type = Some("bot".to_owned());
        world.user(&at("ghost")).appservice_id = Some("irc".to_owned());
        for name in ["left", "kicked", "banned", "inside"] {
            world.user(&at(name));
        }
        let admin = world.admin();
        let room = world.room("!lobby:fake.test");
        room.left(&at("left")).kicked(&at("kicked"), &admin).banned(&at("banned"), &admin);
        room.joined(&at("inside"));
    });
    let job = "[jobs.join]\nkind = \"join-rooms\"\nmode = \"apply\"\nrooms = [\"!lobby:fake.test\"]\nexcept_users = [\"@excluded:*\"]\njoins_per_second = 1000\n";
    let program = Program::new(&fake.url(), TOKEN, job);
    let expected = json!({
        "left": 1, "kicked": 1, "banned": 1, "deactivated": 1, "locked": 1, "suspended": 1,
        "bot": 1, "bridge": 1, "excluded": 1,
    });
    let printed = program.run(&["run", "join", "--dry-run", "-v"]).await.stdout;
    assert!(
        printed.contains("\n  left alone: 1 left, 1 kicked, 1 banned, 1 deactivated, 1 locked, 1 suspended, 1 bot, 1 bridge, 1 excluded\n")
            && printed.contains("\n  left alone (banned): @banned:fake.test -> !lobby:fake.test\n"),
        "{printed}"
    );
    assert!(!program.run(&["run", "join", "--dry-run"]).await.stdout.contains("@banned"));
    let daemon = program.serve().await;
    let ran = program.run(&["run", "join", "--apply", "--json", "--verbose"]).await;
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (figures(&report).as_str(), &report["left_alone"]),
        ("succeeded: 1/1/0/0/0", &expected)
    );
    assert!(ran.stderr.contains("left alone (bridge): @ghost:fake.test -> "), "{}", ran.stderr);
    // What the run learned about the ghost is counted alike.
    let again = program.dry_run("join").await;
    assert_eq!(again["left_alone"], expected);
    let stored = program.json(&["runs", "show", "3", "--json"]).await;
    assert_eq!(stored["left_alone"], expected);
    daemon.stop().await;
}

#[tokio::test]
async fn items_left_alone_are_listed_up_to_a_limit() {
    let fake = Fake::start();
    fake.world(|world| {
        world.users(1200, |i| User { deactivated: i > 0, ..User::default() });
        *world.user("@only:fake.test") = User::default().external("saml", "only");
        world.user("@admin:fake.test").admin = true;
    });
    let keys = "keep_last = true\nexcept_users = [\"@user000000:*\"]";
    let job = sweep(keys).replace("\"all\"", "\"active\"");
    let program = Program::new(&fake.url(), TOKEN, &job);
    let ran = program.run(&["run", "sweep", "-v"]).await.stdout;
    assert!(
        ran.contains(
            "  left alone: 1 own-account, 1 excluded, 1 admin, 1,199 not-selected, 1 last-id\n"
        ),
        "{ran}"
    );
    let named = ran.lines().filter(|line| line.starts_with("  left alone (")).count();
    assert_eq!((named, ran.contains("\n  and 203 more left alone\n")), (1000, true), "{ran}");
}

#[tokio::test]
async fn files_that_are_left_alone_are_counted_by_reason() {
    let fake = Fake::start();
    fake.world(|world| {
        let owner = "@alice:fake.test";
        world.user(owner);
        for (id, bytes) in [("old", 10), ("held", 10), ("safe", 10), ("none", 0), ("face", 10)] {
            world.media(owner, id, bytes, LONG_AGO_MS, None);
        }
        world.file_mut("held").unwrap().quarantined = true;
        world.file_mut("safe").unwrap().protected = true;
        world.file_mut("face").unwrap().avatar = true;
    });
    let job = "[jobs.purge]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\n";
    let program = Program::new(&fake.url(), TOKEN, job);
    let first = program.apply("purge").await;
    let mut expected = json!({ "quarantined": 1, "protected": 1, "empty": 1 });
    assert_eq!(
        (figures(&first).as_str(), &first["left_alone"]),
        ("succeeded: 2/1/0/1/0", &expected)
    );
    expected["kept"] = json!(1);
    assert_eq!(program.dry_run("purge").await["left_alone"], expected);
}

#[tokio::test]
async fn a_history_of_an_older_version_keeps_its_counts() {
    let fake = with_ids(1);
    let program = Program::new(&fake.url(), TOKEN, &sweep(""));
    std::fs::create_dir(program.path("state")).unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(program.path("state/history.db"))
        .create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let mut migrator = sqlx::migrate!("src/history/migrations/sqlite");
    let old = migrator.migrations.iter().filter(|migration| migration.version <= 2);
    migrator.migrations = old.cloned().collect::<Vec<_>>().into();
    migrator.run(&pool).await.unwrap();
    for (planned, outcome) in [("7", "succeeded"), ("NULL", "timed-out")] {
        let insert = format!(
            "INSERT INTO runs (job, kind, homeserver, mode, cause, started_at, outcome, planned, remaining) \
             VALUES ('sweep', 'remove-external-ids', 'main', 'apply', 'manual', 1, '{outcome}', {planned}, 5 * ({planned} IS NOT NULL))"
        );
        sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&pool).await.unwrap();
    }
    pool.close().await;
    let before = program.runs("sweep").await;
    assert_eq!((before.len(), &before[0]["remaining"]), (2, &json!(5)));
    assert_eq!(figures(&program.apply("sweep").await), "succeeded: 1/1/0/0/0");
    let runs: Vec<String> = program.runs("sweep").await.iter().map(figures).collect();
    assert_eq!(
        runs,
        ["succeeded: 7/0/0/0/5", "timed-out: null/0/0/0/null", "succeeded: 1/1/0/0/0"]
    );
}
