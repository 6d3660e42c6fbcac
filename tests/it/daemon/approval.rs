//! Plans that wait for a person: what is approved is done once, and nothing else.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Semaphore;

use super::*;
use crate::fake::{Fault, TOKEN, Trouble};
use crate::program::until;

const JOIN: &str = "/_synapse/admin/v1/join/";
const ADMIN: &str = "an-admin-token-of-tests";

/// A job in approve mode that sweeps all users into one room.
fn approving(more: &str) -> String {
    sweep("lobby", 1000, more).replace("mode = \"apply\"", "mode = \"approve\"")
}

/// Runs the job, which plans, and returns the run of the plan.
async fn planned(program: &Program) -> i64 {
    let report = program.json(&["run", "lobby", "--json"]).await;
    assert_eq!(report["outcome"], "succeeded", "{report}");
    assert_eq!(report["approval"]["state"], "pending", "{report}");
    report["id"].as_i64().unwrap()
}

async fn shown(program: &Program, run: i64) -> Value {
    program.json(&["runs", "show", &run.to_string(), "--json"]).await
}

async fn state(program: &Program, run: i64) -> String {
    shown(program, run).await["approval"]["state"].as_str().unwrap_or("none").to_owned()
}

async fn approve(program: &Program, run: i64) -> crate::program::Output {
    program.run(&["approve", &run.to_string()]).await
}

#[tokio::test]
async fn a_plan_changes_nothing_until_it_is_approved_and_is_applied_once() {
    let fake = with_lobby(3);
    let program = Program::new(&fake.url(), TOKEN, &approving(""));
    let daemon = program.serve().await;
    let run = planned(&program).await;
    let plan = shown(&program, run).await;
    assert_eq!(
        (&plan["mode"], &plan["planned"], &plan["done"]),
        (&json!("approve"), &json!(3), &json!(0))
    );
    assert_eq!(plan["changes"].as_array().unwrap().len(), 3);
    let waits = format!("for `microglia approve {run}` or `microglia reject {run}`");
    for command in [vec!["runs"], vec!["runs", "show", "1"]] {
        let output = program.run(&command).await;
        assert!(output.stdout.contains(&waits), "{output:?}");
    }
    assert!(daemon.log().contains(&format!("the plan waits {waits}")), "{}", daemon.log());
    assert_eq!(fake.count("POST", JOIN), 0);
    assert_eq!(daemon.of_job("lobby", "microglia_job_approval_pending", &[]).await, 1.0);
    let approved = approve(&program, run).await;
    assert_eq!(approved.code, 0, "{approved:?}");
    until("the members", 20, async || joined(&fake) == 3).await;
    until("the end", 20, async || program.ended("lobby").await.len() == 2).await;
    let plan = shown(&program, run).await;
    let applied = shown(&program, plan["approval"]["run"].as_i64().unwrap()).await;
    assert_eq!(plan["approval"]["state"], "approved");
    assert!(plan["approval"]["by"].as_str().unwrap().contains("uid"), "{plan}");
    assert_eq!(
        (&applied["trigger"], &applied["mode"], &applied["outcome"], &applied["done"]),
        (&json!("approval"), &json!("apply"), &json!("succeeded"), &json!(3))
    );
    until("the metric", 20, async || {
        daemon.of_job("lobby", "microglia_job_approval_pending", &[]).await == 0.0
    })
    .await;
    let again = approve(&program, run).await;
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("was approved by"), "{again:?}");
    assert_eq!(fake.count("POST", JOIN), 3);
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_new_since_the_plan_is_left_for_the_next_one() {
    let fake = with_lobby(3);
    let program = Program::new(&fake.url(), TOKEN, &approving(""));
    let run = planned(&program).await;
    fake.world(|world| {
        world.user("@aaa:fake.test");
        world.user("@zzz:fake.test");
        // Somebody else has done this one.
        world.rooms.get_mut("!lobby:fake.test").unwrap().joined("@user000001:fake.test");
    });
    let approved = approve(&program, run).await;
    assert_eq!(approved.code, 0, "{approved:?}");
    assert_eq!(fake.count("POST", JOIN), 2);
    let applied = shown(&program, run + 1).await;
    assert_eq!((&applied["done"], &applied["remaining"]), (&json!(2), &json!(2)), "{applied}");
    assert!(
        applied["message"]
            .as_str()
            .unwrap()
            .contains("2 items of this plan were not in the approved one"),
        "{applied}"
    );
    let next = shown(&program, planned(&program).await).await;
    assert_eq!(next["planned"], 2);
}

#[tokio::test]
async fn a_plan_is_rejected_superseded_or_expires_and_then_nothing_is_done() {
    let fake = with_lobby(2);
    let program = Program::new(&fake.url(), TOKEN, &approving(""));
    let rejected = planned(&program).await;
    let output = program.run(&["reject", &rejected.to_string()]).await;
    assert_eq!(output.code, 0, "{output:?}");
    let superseded = planned(&program).await;
    let newer = planned(&program).await;
    assert_eq!(state(&program, rejected).await, "rejected");
    assert_eq!(state(&program, superseded).await, "superseded");
    assert_eq!(state(&program, newer).await, "pending");
    for run in [rejected, superseded] {
        let output = approve(&program, run).await;
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains(&format!("the plan of run {run} was ")), "{output:?}");
    }
    program.write(
        "microglia.toml",
        &program
            .read("microglia.toml")
            .replace("mode = \"approve\"", "mode = \"approve\"\napproval_ttl = \"1s\""),
    );
    let daemon = program.serve().await;
    let expired = planned(&program).await;
    until("the end of its time", 20, async || state(&program, expired).await == "expired").await;
    let output = approve(&program, expired).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("was expired at"), "{output:?}");
    assert_eq!(fake.count("POST", JOIN), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_plan_of_an_older_definition_is_superseded_and_says_what_changed() {
    let fake = with_lobby(2);
    let program = Program::new(&fake.url(), TOKEN, &approving(""));
    let run = planned(&program).await;
    add_key(&program, "except_users = [\"@user000001:*\"]");
    let daemon = program.serve().await;
    until("the new definition", 20, async || state(&program, run).await == "superseded").await;
    let plan = shown(&program, run).await;
    assert_eq!(plan["approval"]["detail"], "the job was changed since: `except_users`", "{plan}");
    // What only decides when the job runs does not matter.
    let run = planned(&program).await;
    daemon.stop().await;
    add_key(&program, "time_limit = \"2h\"");
    assert_eq!(approve(&program, run).await.code, 0);
    assert_eq!(joined(&fake), 1);
}

/// Adds a key to the job.
fn add_key(program: &Program, key: &str) {
    let config = program.read("microglia.toml");
    program.write("microglia.toml", &format!("{config}{key}\n"));
}

#[tokio::test]
async fn a_plan_above_max_changes_needs_the_limit_to_be_lifted_once() {
    let fake = with_lobby(3);
    let program = Program::new(&fake.url(), TOKEN, &approving("max_changes = 2"));
    let run = planned(&program).await;
    let message = shown(&program, run).await["message"].to_string();
    assert!(message.contains("more than max_changes = 2"), "{message}");
    for daemon in [false, true] {
        let daemon = if daemon { Some(program.serve().await) } else { None };
        let output = approve(&program, run).await;
        assert_eq!(output.code, 1, "{output:?}");
        assert!(output.stderr.contains("--max-changes 3"), "{output:?}");
        assert_eq!(state(&program, run).await, "pending");
        if let Some(daemon) = daemon {
            daemon.stop().await;
        }
    }
    let output = program.run(&["approve", &run.to_string(), "--max-changes", "3"]).await;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(joined(&fake), 3);
}

#[tokio::test]
async fn at_most_cuts_what_is_applied_and_not_what_is_planned() {
    let fake = with_lobby(3);
    let program = Program::new(&fake.url(), TOKEN, &approving("at_most = 2\nusers = [\"@user*\"]"));
    let run = planned(&program).await;
    let output = approve(&program, run).await;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(joined(&fake), 2);
}

#[tokio::test]
async fn an_approved_plan_waits_for_the_window_and_survives_kill_9() {
    let fake = with_lobby(2);
    let now = now();
    // Closed now, and for hours.
    let window = format!(
        "window = \"{}-{}\"",
        (now + TimeDelta::hours(3)).format("%H:%M"),
        (now + TimeDelta::hours(5)).format("%H:%M")
    );
    let program = Program::new(&fake.url(), TOKEN, &approving(&window));
    let run = planned(&program).await;
    let output = approve(&program, run).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("nothing was decided"), "{output:?}");
    let daemon = program.serve().await;
    let output = approve(&program, run).await;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("waits for the job's window, which opens at"), "{output:?}");
    daemon.kill().await;
    assert_eq!(state(&program, run).await, "approved");
    let config = program.read("microglia.toml").replace(&window, "");
    program.write("microglia.toml", &config);
    let daemon = program.serve().await;
    until("the members", 20, async || joined(&fake) == 2).await;
    until("the end", 20, async || program.ended("lobby").await.len() == 2).await;
    assert_eq!(fake.count("POST", JOIN), 2);
    daemon.stop().await;
}

#[tokio::test]
async fn a_plan_whose_run_was_killed_is_finished_by_the_next_start() {
    let fake = with_lobby(200);
    fake.fault(Fault::new("POST", JOIN, Trouble::Delay(Duration::from_millis(10))).always());
    let program = Program::new(&fake.url(), TOKEN, &approving(""));
    let run = planned(&program).await;
    let daemon = program.serve().await;
    assert_eq!(approve(&program, run).await.code, 0);
    until("some members", 20, async || joined(&fake) > 20).await;
    daemon.kill().await;
    fake.world(|world| {
        world.user("@late:fake.test");
    });
    let daemon = program.serve().await;
    until("all members", 40, async || joined(&fake) == 200).await;
    until("the end", 20, async || program.ended("lobby").await.len() == 3).await;
    assert_eq!(program.ended("lobby").await[1..], ["approval interrupted", "approval succeeded"]);
    let everybody: Vec<String> = fake
        .requests()
        .iter()
        .filter(|seen| seen.method == "POST")
        .map(|seen| seen.body.clone())
        .collect();
    assert!(everybody.iter().all(|body| !body.contains("@late")), "{everybody:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_media_plan_is_applied_with_the_cut_off_of_the_plan() {
    let mut world = World::new();
    world.user("@a:fake.test");
    let old = (now() - TimeDelta::days(100)).timestamp_millis();
    world.media("@a:fake.test", "old", 100, old, None);
    let fake = Fake::of(world);
    let job =
        "[jobs.lobby]\nkind = \"purge-local-media\"\nmode = \"approve\"\nolder_than = \"90d\"\n";
    let program = Program::new(&fake.url(), TOKEN, job);
    let run = planned(&program).await;
    let plan = shown(&program, run).await;
    assert_eq!(plan["planned"], 1);
    // Was not old enough for the plan, and is now.
    let nearly = time_of(&plan, "started_at") - TimeDelta::days(90) + TimeDelta::milliseconds(1);
    fake.world(|world| {
        world.media("@a:fake.test", "nearly", 100, nearly.timestamp_millis(), None);
    });
    assert_eq!(program.dry_run("lobby").await["planned"], 2);
    let output = approve(&program, run).await;
    assert_eq!(output.code, 0, "{output:?}");
    let left: Vec<String> = fake.world(|world| world.files().keys().cloned().collect());
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].contains("nearly"), "{left:?}");
}

#[tokio::test]
async fn the_api_approves_with_the_admin_token_and_names_nobody_without_it() {
    let fake = with_lobby(2);
    let program = Program::new(&fake.url(), TOKEN, &approving(""));
    program.write("admin-token", ADMIN);
    let config = program.read("microglia.toml");
    program.write(
        "microglia.toml",
        &config.replace("[daemon]\n", "[daemon]\nadmin_token_file = \"admin-token\"\n"),
    );
    let daemon = program.serve().await;
    let run = planned(&program).await;
    let path = format!("/api/v1/runs/{run}/approve");
    assert_eq!(daemon.post(&path, "", "").await.0, 401);
    assert_eq!(daemon.post("/api/v1/runs/99999/approve", ADMIN, "").await.0, 404);
    assert_eq!(daemon.post(&path, ADMIN, "{\"limit\": 1}").await.0, 400);
    let (status, body) = daemon.post(&path, ADMIN, "").await;
    assert_eq!(status, 202, "{body}");
    until("the members", 20, async || joined(&fake) == 2).await;
    assert_eq!(daemon.post(&path, ADMIN, "").await.0, 409);
    assert_eq!(daemon.post(&format!("/api/v1/runs/{run}/reject"), ADMIN, "").await.0, 409);
    let (_, public) = daemon.get(&format!("/api/v1/runs/{run}")).await;
    let public: Value = serde_json::from_str(&public).unwrap();
    assert_eq!(
        (&public["approval"]["state"], &public["approval"]["by"]),
        (&json!("approved"), &Value::Null)
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_plan_of_a_job_that_is_no_longer_in_approve_mode_is_not_applied() {
    let fake = with_lobby(2);
    let program = Program::new(&fake.url(), TOKEN, &approving(""));
    let run = planned(&program).await;
    let config = program.read("microglia.toml");
    program.write("microglia.toml", &config.replace("\"approve\"", "\"dry-run\""));
    let output = approve(&program, run).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("the job was changed since"), "{output:?}");
    let daemon = program.serve().await;
    until("its end", 20, async || state(&program, run).await == "superseded").await;
    assert_eq!(fake.count("POST", JOIN), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn an_approved_plan_is_applied_once_another_process_has_let_go_of_the_job() {
    const MEMBERS: &str = "/_synapse/admin/v1/rooms/";
    let fake = with_lobby(2);
    let program = Program::new(&fake.url(), TOKEN, &approving(""));
    let run = planned(&program).await;
    let release = Arc::new(Semaphore::new(0));
    fake.fault(Fault::new("GET", MEMBERS, Trouble::Held(Arc::clone(&release))));
    let before = fake.count("GET", MEMBERS);
    let mut other = program.command(&["run", "lobby", "--dry-run"]).spawn().unwrap();
    until("the other run", 20, async || fake.count("GET", MEMBERS) > before).await;
    let daemon = program.serve().await;
    let output = approve(&program, run).await;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(fake.count("POST", JOIN), 0);
    release.add_permits(1);
    until("the members", 60, async || joined(&fake) == 2).await;
    assert!(other.wait().await.unwrap().success());
    assert_eq!(fake.count("POST", JOIN), 2);
    daemon.stop().await;
}
