//! Rounds: lists that are read in as many runs as it takes.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::fake::{Fake, TOKEN, User};
use crate::program::{Program, figures, until};

const USER: &str = "/_synapse/admin/v2/users/";

fn old(id: &str) -> User {
    User::default().external("oidc-old", id).external("saml", id)
}

/// A homeserver with `count` accounts `@u000…` that hold an id.
fn homeserver(count: usize) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        for n in 0..count {
            let name = format!("u{n:03}");
            *world.user(&format!("@{name}:fake.test")) = old(&name);
        }
    });
    fake
}

/// A job that removes ids; `pace` are keys of the homeserver, `keys` those of the job.
fn program(fake: &Fake, pace: &str, keys: &str) -> Program {
    let job = format!(
        "{pace}\n\n[jobs.ids]\nkind = \"remove-external-ids\"\nproviders = [\"oidc-old\"]\naccounts = \"all\"\n{keys}\n"
    );
    let program = Program::new(&fake.url(), TOKEN, &job);
    let config = program.read("microglia.toml");
    if pace.contains("max_requests_per_second") {
        let unlimited = "max_requests_per_second = \"unlimited\"\n";
        program.write("microglia.toml", &config.replacen(unlimited, "", 1));
    }
    program
}

/// How often each account was read since the requests were last forgotten.
fn reads(fake: &Fake) -> BTreeMap<String, usize> {
    let mut reads = BTreeMap::new();
    for seen in fake.requests() {
        if let Some(user) = seen.path.strip_prefix(USER).filter(|_| seen.method == "GET") {
            *reads.entry(user.to_owned()).or_default() += 1;
        }
    }
    reads
}

fn message(report: &Value) -> &str {
    report["message"].as_str().unwrap_or("none")
}

fn round(report: &Value) -> String {
    let round = &report["round"];
    let state = if round["finished_at"].is_null() { "goes on" } else { "complete" };
    format!("{} of {}, {state}", round["read"], round["total"])
}

#[tokio::test]
async fn a_list_that_takes_longer_than_a_run_is_read_once_in_several_runs() {
    let fake = homeserver(150);
    let slow = "max_requests_per_second = 50";
    let program = program(
        &fake,
        slow,
        "time_limit = \"2s\"\nmax_changes = \"unlimited\"\nmode = \"dry-run\"",
    );
    let (mut runs, mut planned) = (0, 0);
    loop {
        let report = program.json(&["run", "ids", "--json"]).await;
        runs += 1;
        planned += report["planned"].as_u64().unwrap();
        assert_eq!(report["outcome"], "succeeded", "{report}");
        if round(&report).ends_with("complete") {
            assert_eq!(round(&report), "151 of 151, complete");
            break;
        }
        let read = report["round"]["read"].as_u64().unwrap();
        let expected = format!("{read} of 151 accounts read; the next run continues");
        assert!(message(&report).contains(&expected), "{report}");
        assert!(runs < 20, "the round does not end: {report}");
    }
    assert!(runs > 1, "the list was read in one run");
    assert_eq!(planned, 150);
    let twice: Vec<_> = reads(&fake)
        .into_iter()
        .filter(|(user, times)| *times != 1 && !user.contains("microglia"))
        .collect();
    assert_eq!(twice, []);

    fake.forget();
    let report = program.json(&["run", "ids", "--json"]).await;
    assert!(
        reads(&fake).contains_key("%40u000%3Afake.test")
            || reads(&fake).contains_key("@u000:fake.test"),
        "a new round begins: {report}"
    );
}

#[tokio::test]
async fn at_most_ends_the_reading_and_the_next_run_continues_after_it() {
    let fake = homeserver(8);
    let program = program(&fake, "max_concurrent_requests = 1", "at_most = 3");
    let mut shown = Vec::new();
    for _ in 0..4 {
        let report = program.apply("ids").await;
        shown.push(format!("{} {}: {}", figures(&report), round(&report), message(&report)));
    }
    insta::assert_snapshot!(shown.join("\n"), @"
    succeeded: 3/3/0/0/null 4 of 9, goes on: 4 of 9 accounts read; the next run continues
    succeeded: 3/3/0/0/null 7 of 9, goes on: 7 of 9 accounts read; the next run continues
    succeeded: 2/2/0/0/0 9 of 9, complete: none
    succeeded: 0/0/0/0/0 9 of 9, complete: `oidc-old` held by nobody; seen: `saml` 8
    ");
    let gets: Vec<usize> =
        reads(&fake).into_iter().filter(|(user, _)| user.contains("u00")).map(|(_, n)| n).collect();
    // Each is read once for the plan, and again before and after its change.
    assert_eq!(gets.len(), 8);
}

#[tokio::test]
async fn accounts_that_come_and_go_between_two_runs_make_no_other_account_be_skipped() {
    let fake = homeserver(300);
    let program = program(&fake, "", "at_most = 100\nmode = \"dry-run\"");
    let first = program.json(&["run", "ids", "--json"]).await;
    assert_eq!(first["planned"], 100);
    fake.world(|world| {
        for n in 0..99 {
            world.users.remove(&format!("@u{n:03}:fake.test"));
        }
        for n in 0..150 {
            *world.user(&format!("@a{n:03}:fake.test")) = old(&format!("a{n:03}"));
        }
    });
    let second = program.json(&["run", "ids", "--json"]).await;
    let targets: Vec<&str> = second["changes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|change| change["target"].as_str())
        .collect();
    let expected: Vec<String> =
        (100..200).map(|n| format!("@u{n:03}:fake.test -> oidc-old:u{n:03}")).collect();
    assert_eq!(targets, expected);
    fake.world(|world| {
        for n in 0..150 {
            world.users.remove(&format!("@a{n:03}:fake.test"));
        }
        for n in 99..200 {
            world.users.remove(&format!("@u{n:03}:fake.test"));
        }
    });
    let third = program.json(&["run", "ids", "--json"]).await;
    assert_eq!(third["changes"][0]["target"], "@u200:fake.test -> oidc-old:u200");
    assert_eq!(third["planned"], 100);
}

#[tokio::test]
async fn a_refused_plan_is_made_again_and_a_changed_definition_starts_a_new_round() {
    let fake = homeserver(6);
    let program = program(&fake, "", "at_most = 4");
    assert_eq!(round(&program.apply("ids").await), "5 of 7, goes on");
    let config = program.read("microglia.toml");
    program.write("microglia.toml", &config.replace("at_most = 4", "max_changes = 1"));
    for _ in 0..2 {
        assert_eq!(figures(&program.apply("ids").await), "refused: 2/0/0/0/2");
    }
    fake.world(|world| {
        *world.user("@u000:fake.test") = old("again");
    });
    program.write(
        "microglia.toml",
        &config.replace("at_most = 4", "external_ids = [\"again\", \"u*\"]"),
    );
    let report = program.apply("ids").await;
    assert_eq!(figures(&report), "succeeded: 3/3/0/0/0");
    assert_eq!(round(&report), "7 of 7, complete");
}

#[tokio::test]
async fn a_preview_of_an_apply_job_shows_the_next_portion_and_moves_nothing() {
    let fake = homeserver(6);
    let program = program(&fake, "", "at_most = 2\nmode = \"apply\"");
    program.apply("ids").await;
    let mut shown = Vec::new();
    for arguments in [
        &["run", "ids", "--dry-run", "--json"][..],
        &["run", "ids", "--dry-run", "--full", "--json"],
        &["run", "ids", "--dry-run", "--json"],
    ] {
        let report = program.json(arguments).await;
        shown.push(format!("{} {}: {}", figures(&report), round(&report), message(&report)));
    }
    insta::assert_snapshot!(shown.join("\n"), @"
    succeeded: 2/0/0/0/null 5 of 7, goes on: accounts 4 to 5 of 7 read, as the next run will; `--full` reads all
    succeeded: 4/0/0/0/0 7 of 7, complete: none
    succeeded: 2/0/0/0/null 5 of 7, goes on: accounts 4 to 5 of 7 read, as the next run will; `--full` reads all
    ");
    let wrong = program.run(&["run", "ids", "--full"]).await;
    assert_eq!(wrong.code, 2);
    insta::assert_snapshot!(wrong.stderr.trim(), @"error: full is only for dry runs: other runs read a portion, and the next run continues");
}

#[tokio::test]
async fn deactivated_accounts_without_a_matching_id_are_read_once_in_thirty_days() {
    let fake = Fake::start();
    fake.world(|world| {
        for name in ["none", "other", "held"] {
            let mut user = User { deactivated: true, ..User::default() };
            if name != "none" {
                user = user.external(if name == "held" { "oidc-old" } else { "saml" }, name);
            }
            *world.user(&format!("@{name}:fake.test")) = user;
        }
        *world.user("@active:fake.test") = User::default();
    });
    let program = program(&fake, "", "mode = \"dry-run\"");
    let read = async |arguments: &[&str]| {
        fake.forget();
        let report = program.json(arguments).await;
        assert_eq!(figures(&report), "succeeded: 1/0/0/0/0");
        let names = ["none", "other", "held", "active"];
        names.map(|name| reads(&fake).keys().any(|user| user.contains(name)))
    };
    let portion = ["run", "ids", "--json"];
    assert_eq!(read(&portion).await, [true, true, true, true]);
    assert_eq!(read(&portion).await, [false, false, true, true]);
    assert_eq!(read(&["run", "ids", "--full", "--json"]).await, [true, true, true, true]);
    program.sql("UPDATE facts SET value = '[0,[]]' WHERE topic = 'deactivated-ids'").await;
    assert_eq!(read(&portion).await, [true, true, true, true]);
}

#[tokio::test]
async fn progress_of_a_round_is_in_the_metrics_also_after_a_restart() {
    let fake = homeserver(7);
    let program = program(&fake, "", "at_most = 4\nmode = \"apply\"");
    let ratio = "microglia_job_round_progress_ratio";
    let daemon = program.serve().await;
    assert!(daemon.of_job("ids", ratio, &[]).await.abs() < 1e-9);
    program.apply("ids").await;
    until("the progress of the round is shown", 10, || async {
        (daemon.of_job("ids", ratio, &[]).await - 0.625).abs() < 1e-9
    })
    .await;
    daemon.stop().await;
    let daemon = program.serve().await;
    assert!((daemon.of_job("ids", ratio, &[]).await - 0.625).abs() < 1e-9);
    let last = "microglia_job_last_round_timestamp_seconds";
    assert_eq!(daemon.metric(last, &["job_name=\"ids\""]).await, None);
    program.apply("ids").await;
    until("the round is complete", 10, || async {
        daemon.metric(last, &["job_name=\"ids\""]).await.is_some()
    })
    .await;
    assert!((daemon.of_job("ids", ratio, &[]).await - 1.0).abs() < 1e-9);
    daemon.stop().await;
}
