//! Waiting is visible to other processes, and is not part of the duration of a run.

use std::time::Duration;

use super::*;
use crate::fake::{Fault, TOKEN, Trouble};
use crate::program::{changes, figures, until};

/// One request that takes so long that what waits behind it can be looked at.
fn slow(fake: &Fake, path: &str) {
    let slow = Trouble::Delay(Duration::from_secs(6));
    fake.fault(Fault::new("GET", path, slow));
}

fn hold(name: &str) -> String {
    format!(
        "[jobs.{name}]\nkind = \"request\"\nmethod = \"GET\"\npath = \"/_matrix/client/versions?{name}\"\nmode = \"apply\"\n"
    )
}

fn report(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn seconds_between(from: &Value, to: &Value) -> f64 {
    let at = |value: &Value| DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap();
    (at(to) - at(from)).as_seconds_f64()
}

#[tokio::test]
async fn other_processes_see_that_a_run_waits_for_a_slot_and_waiting_is_not_counted_as_work() {
    let fake = Fake::start();
    slow(&fake, PING);
    let program =
        Program::new(&fake.url(), TOKEN, &format!("{}{}", hold("first"), ping("second", "")));
    let daemon = program.serve().await;
    let first = program.command(&["run", "first", "--json"]).spawn().unwrap();
    until("the first run", 20, async || fake.count("GET", PING) == 1).await;
    let second = program.command(&["run", "second", "--json"]).spawn().unwrap();
    until("the second run says that it waits", 20, async || {
        program.runs("second").await.first().is_some_and(|run| !run["waiting"].is_null())
    })
    .await;
    let run = program.runs("second").await.remove(0);
    assert_eq!(run["waiting"]["for"], "another run on main to end");
    let since = run["waiting"]["since"].as_str().unwrap();
    assert!(since >= run["started_at"].as_str().unwrap(), "{run}");
    let jobs = program.json(&["jobs", "--json"]).await;
    assert_eq!(jobs[1]["last_run"]["waiting"], run["waiting"]);
    let table = program.run(&["runs", "second"]).await.stdout;
    assert!(table.contains(" waiting "), "{table}");
    assert!(table.contains("for another run on main to end, since 20"), "{table}");
    let table = program.run(&["jobs"]).await.stdout;
    assert!(
        table.contains("waiting (dry run) for another run on main to end, since 20"),
        "{table}"
    );
    let shown = program.run(&["runs", "show", "2"]).await.stdout;
    assert!(shown.contains("  waiting for another run on main to end, since 20"), "{shown}");
    assert!(first.wait_with_output().await.unwrap().status.success());
    let report = report(&second.wait_with_output().await.unwrap());
    assert_eq!(report["outcome"], "succeeded");
    assert_eq!(report["waiting"], Value::Null);
    let waited = report["waited_seconds"].as_f64().unwrap();
    assert!(waited >= 1.0, "{report}");
    let lasted = seconds_between(&report["started_at"], &report["finished_at"]);
    let worked = daemon.of_job("second", "microglia_job_last_run_duration_seconds", &[]).await;
    assert!((lasted - waited - worked).abs() < 0.1, "{lasted} - {waited} is not {worked}");
    let shown = program.run(&["runs", "show", "2"]).await.stdout;
    assert!(shown.contains(" s (waited ") && shown.contains(" s for a slot): "), "{shown}");
    let log = daemon.stop().await;
    let ended = log.lines().find(|line| line.contains("run 2 succeeded")).unwrap();
    assert!(ended.contains(" s for a slot) ("), "{ended}");
}

#[tokio::test]
async fn a_run_that_waits_for_its_next_attempt_shows_its_number_and_what_failed() {
    let fake = Fake::start();
    let retries = "mode = \"apply\"\nretries = { attempts = 3, first_delay = \"300s\" }";
    // The wait of the fault, whatever the jitter.
    let limited = Trouble::Limited { retry_after_ms: Some(90_000), retry_after_header: None };
    fake.fault(Fault::new("GET", PING, limited).always());
    let program = Program::new(&fake.url(), TOKEN, &ping("late", retries));
    let daemon = program.serve().await;
    let run = program.command(&["run", "late", "--json"]).spawn().unwrap();
    until("the run says that it waits", 20, async || {
        program.runs("late").await.first().is_some_and(|run| !run["waiting"].is_null())
    })
    .await;
    let waiting = program.runs("late").await.remove(0);
    let what = waiting["waiting"]["for"].as_str().unwrap();
    assert!(what.starts_with("attempt 2 of 3 at 20"), "{what}");
    let why = waiting["message"].as_str().unwrap();
    assert!(why.contains("429 M_LIMIT_EXCEEDED"), "{why}");
    // Clients that may not read messages do not see what failed.
    let public = daemon.get_json("/api/v1/runs").await;
    assert_eq!(public[0]["waiting"], waiting["waiting"]);
    assert_eq!(public[0]["message"], Value::Null);
    assert_eq!(program.run(&["cancel", "late"]).await.code, 0);
    let report = report(&run.wait_with_output().await.unwrap());
    assert_eq!(figures(&report), "cancelled: 1/0/0/0/1");
    assert!(report["waited_seconds"].as_f64().unwrap() >= 1.0, "{report}");
    assert_eq!(
        changes(&report),
        ["planned GET /_matrix/client/versions (1): not attempted: the run was cancelled"]
    );
    let message = report["message"].as_str().unwrap();
    assert!(message.contains(" while waiting for attempt 2 of 3 at 20"), "{message}");
    daemon.stop().await;
}

#[tokio::test]
async fn the_message_of_a_run_cancelled_while_reading_says_so_and_by_whom() {
    let fake = with_lobby(2);
    let slow = Trouble::Delay(Duration::from_secs(30));
    fake.fault(Fault::new("GET", "/_synapse/admin/v2/users", slow).always());
    let admin = "[daemon]\nadmin_token_file = \"admin\"\n";
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 20, ""));
    edit(&program, "[daemon]\n", admin);
    program.write("admin", "a-secret-of-this-test");
    let daemon = program.serve().await;
    let run = program.command(&["run", "lobby", "--json"]).spawn().unwrap();
    until("the run", 20, async || !program.runs("lobby").await.is_empty()).await;
    let cancelled = daemon.post("/api/v1/jobs/lobby/cancel", "a-secret-of-this-test", "").await;
    assert_eq!(cancelled.0, 200, "{cancelled:?}");
    let report = report(&run.wait_with_output().await.unwrap());
    assert_eq!(
        report["message"],
        "cancelled by 127.0.0.1 (HTTP API) while reading; nothing was changed"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn an_outage_during_a_run_is_logged_once_with_its_start() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &ping("patient", "mode = \"apply\""));
    let daemon = program.serve().await;
    fake.go_down();
    let run = program.command(&["run", "patient", "--json"]).spawn().unwrap();
    until_log(&daemon, "patient: run 1: main has not responded since ").await;
    fake.come_up();
    let report = report(&run.wait_with_output().await.unwrap());
    assert_eq!(report["outcome"], "succeeded", "{report}");
    let log = daemon.stop().await;
    assert_eq!(log.matches("has not responded since").count(), 1, "{log}");
    assert!(log.contains(" UTC: "), "the log says what was seen instead of a response: {log}");
}

#[tokio::test]
async fn the_history_of_an_older_daemon_that_still_runs_can_be_read() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &ping("old", ""));
    assert_eq!(program.run(&["run", "old"]).await.code, 0);
    for column in ["waiting_for", "waiting_since", "waited_seconds", "waited_for"] {
        program.sql(&format!("ALTER TABLE runs DROP COLUMN {column}")).await;
    }
    program.sql("ALTER TABLE changes DROP COLUMN answer").await;
    let shown = program.run(&["runs", "show", "1"]).await;
    assert!(shown.stdout.contains("  succeeded after 0."), "{shown:?}");
    assert_eq!(program.runs("old").await[0]["waited_seconds"], 0.0);
}

#[tokio::test]
async fn a_run_that_was_not_started_yet_shows_in_the_list_of_jobs_what_it_is_waiting_for() {
    let fake = Fake::start();
    slow(&fake, PING);
    let jobs = [
        ping("held", "schedule = \"* * * * * *\"\nsplay = \"7d\""),
        ping("queued", "mode = \"apply\"\nschedule = \"* * * * * *\"\noverlap = \"queue\""),
    ];
    let program = Program::new(&fake.url(), TOKEN, &jobs.concat());
    let daemon = program.serve().await;
    until("both wait", 20, async || {
        let jobs = program.json(&["jobs", "--json"]).await;
        jobs[0]["waiting"]["for"] == "its splay"
            && jobs[1]["waiting"]["for"] == "the run under way to end"
    })
    .await;
    // Also over TCP and without a token: it names nobody.
    let listed = daemon.get_json("/api/v1/jobs").await;
    let held = &listed[0]["waiting"];
    let (since, until) = (held["since"].as_str().unwrap(), held["until"].as_str().unwrap());
    assert!(since < until, "{held}");
    let table = program.run(&["jobs"]).await.stdout;
    let row = table.lines().find(|line| line.starts_with("held")).unwrap();
    assert!(row.contains(" waiting for its splay until 20"), "{table}");
    assert!(row.contains(" UTC, since 20"), "{table}");
    daemon.kill().await;
    let jobs = program.json(&["jobs", "--json"]).await;
    assert_eq!(jobs[0]["waiting"], Value::Null, "nothing waits where no daemon runs");
}
