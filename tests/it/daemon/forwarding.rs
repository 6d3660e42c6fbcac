//! Several daemons on one PostgreSQL: commands work on each, whichever of them runs the job.

use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;

use super::replicas::{database, held, replica, sql};
use super::*;
use crate::fake::{Fault, Trouble};
use crate::program::{figures, on_postgres, signal, until};

/// Two replicas with the same jobs, of which the first runs them all.
struct Pair {
    url: String,
    programs: [Program; 2],
    holder: Daemon,
    standby: Daemon,
}

async fn pair(fake: &Fake, jobs: &str) -> Pair {
    let url = database().await;
    let programs = [(); 2].map(|()| replica(&url, &[("main", fake)], jobs));
    for program in &programs {
        program.write("admin-token", ADMIN);
        edit(program, "[daemon]\n", "[daemon]\nadmin_token_file = \"admin-token\"\n");
    }
    let holder = programs[0].serve().await;
    let standby = programs[1].serve().await;
    assert_eq!((held(&holder).await, held(&standby).await), (1, 0));
    Pair { url, programs, holder, standby }
}

const ADMIN: &str = "secret-of-the-tests";

impl Pair {
    /// What a command prints on the replica that does not run the jobs.
    async fn on_standby(&self, arguments: &[&str]) -> crate::program::Output {
        self.programs[1].run(arguments).await
    }

    /// Stops both when no request is left.
    async fn stop(self) -> [String; 2] {
        until("no request is left", 20, async || {
            sql(&self.url, "SELECT COUNT(*) FROM forwarded_requests").await == "0"
        })
        .await;
        [self.standby.stop().await, self.holder.stop().await]
    }
}

#[tokio::test]
async fn a_run_requested_on_another_replica_reports_as_one_that_runs_there() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(30);
    let fails = ping("fails", "mode = \"apply\"\nexpect = [204]");
    let pair = pair(&fake, &[sweep("lobby", 50, ""), fails].concat()).await;
    let dry = pair.on_standby(&["run", "lobby", "--dry-run"]).await;
    assert_eq!(dry.code, 0, "{dry:?}");
    assert!(dry.stdout.contains("30 planned"), "{dry:?}");
    assert_eq!(joined(&fake), 0);
    let many = pair.on_standby(&["run", "lobby", "--max-changes", "29", "--json"]).await;
    assert_eq!(many.code, 1, "{many:?}");
    let report: Value = serde_json::from_str(&many.stdout).unwrap();
    assert_eq!((&report["outcome"], joined(&fake)), (&"refused".into(), 0), "{report}");
    let ran = pair.on_standby(&["run", "lobby", "--json"]).await;
    assert_eq!((ran.code, joined(&fake)), (0, 30), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(figures(&report), "succeeded: 30/30/0/0/0");
    assert_eq!(report["trigger"], "manual");
    let id = report["id"].to_string();
    for program in &pair.programs {
        assert_eq!(program.json(&["runs", "show", &id, "--json"]).await, report);
    }
    let failed = pair.on_standby(&["run", "fails"]).await;
    assert!(failed.code == 1 && failed.stdout.contains("failed"), "{failed:?}");
    assert!(pair.holder.log().contains("a run was requested on the replica"));
    pair.stop().await;
}

#[tokio::test]
async fn a_request_that_cannot_be_carried_out_is_refused_on_every_replica_alike() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(200);
    let pair = pair(&fake, &[sweep("lobby", 10, ""), ping("ping", "")].concat()).await;
    for (command, code, why) in [
        (&["run", "loby"][..], 2, "unknown job \"loby\""),
        (&["run", "ping", "--max-changes", "7"], 2, "max_changes is not supported by request"),
        (&["cancel", "lobby"], 1, "lobby is not running"),
        (&["cancel", "loby"], 2, "unknown job \"loby\""),
    ] {
        for program in &pair.programs {
            let refused = program.run(command).await;
            assert_eq!(refused.code, code, "{command:?}: {refused:?}");
            assert!(refused.stderr.contains(why), "{command:?}: {refused:?}");
        }
    }
    assert_eq!(pair.standby.post("/api/v1/jobs/loby/run", ADMIN, "").await.0, 404);
    let caller = pair.programs[0].command(&["run", "lobby", "--json"]).spawn().unwrap();
    until("a join", 20, async || joined(&fake) > 0).await;
    for program in &pair.programs {
        let second = program.run(&["run", "lobby"]).await;
        assert_eq!(second.code, 1, "{second:?}");
        assert!(second.stderr.ends_with("lobby is already running (run 1)\n"), "{second:?}");
    }
    assert_eq!(pair.standby.post("/api/v1/jobs/lobby/run", ADMIN, "").await.0, 409);
    assert_eq!(pair.standby.post("/api/v1/jobs/lobby/cancel", ADMIN, "").await.0, 200);
    let report: Value =
        serde_json::from_slice(&caller.wait_with_output().await.unwrap().stdout).unwrap();
    assert_eq!(report["outcome"], "cancelled");
    let message = report["message"].as_str().unwrap();
    let by = format!("(process {})", pair.standby.pid());
    assert!(message.contains("127.0.0.1 (HTTP API) on the replica") && message.contains(&by));
    pair.stop().await;
}

#[tokio::test]
async fn a_run_on_another_replica_is_cancelled_by_command_and_by_ctrl_c() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(200);
    let pair = pair(&fake, &sweep("lobby", 10, "")).await;
    for by_command in [true, false] {
        let before = joined(&fake);
        let caller = pair.programs[1].command(&["run", "lobby", "--json"]).spawn().unwrap();
        until("a join", 20, async || joined(&fake) > before).await;
        let place = format!("running on {}", name_of(&pair.url, &pair.holder).await);
        for program in &pair.programs {
            let table = program.run(&["jobs"]).await.stdout;
            assert!(table.contains(&place), "{table}");
        }
        if by_command {
            let cancelled = pair.on_standby(&["cancel", "lobby"]).await;
            let said = "lobby: the run will end at the next change boundary\n";
            assert_eq!((cancelled.code, cancelled.stdout.as_str()), (0, said));
        } else {
            signal(caller.id().unwrap(), "INT");
        }
        let ended = caller.wait_with_output().await.unwrap();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(report["outcome"], "cancelled", "{report}");
        let done = usize::try_from(report["done"].as_u64().unwrap()).unwrap();
        assert_eq!(before + done, joined(&fake));
        assert_eq!(report["remaining"], 200 - joined(&fake));
    }
    pair.stop().await;
}

/// The name of a replica, as others see it.
async fn name_of(url: &str, daemon: &Daemon) -> String {
    let process = format!("%(process {})", daemon.pid());
    sql(url, &format!("SELECT name FROM replicas WHERE name LIKE '{process}'")).await
}

#[tokio::test]
async fn a_request_made_on_all_replicas_at_once_runs_once() {
    if on_postgres() {
        return;
    }
    let fake = Fake::start();
    let release = Arc::new(Semaphore::new(0));
    fake.fault(Fault::new("GET", PING, Trouble::Held(Arc::clone(&release))).always());
    let pair = pair(&fake, &ping("ping", "mode = \"apply\"")).await;
    let command = ["run", "ping"];
    let runs = [0, 1, 1].map(|program| pair.programs[program].run(&command));
    let mut ended: FuturesUnordered<_> = runs.into_iter().collect();
    for _ in 0..2 {
        let refused = ended.next().await.unwrap();
        assert!(refused.stderr.contains("ping is already running"), "{refused:?}");
    }
    release.add_permits(1);
    let ran = ended.next().await.unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    drop(ended);
    assert_eq!(fake.count("GET", PING), 1);
    assert_eq!(pair.programs[0].ended("ping").await, ["manual succeeded"]);
    pair.stop().await;
}

#[tokio::test]
async fn the_successor_of_a_replica_that_was_killed_carries_out_what_was_requested_of_it() {
    if on_postgres() {
        return;
    }
    let fake = Fake::start();
    let pair = pair(&fake, &ping("ping", "mode = \"apply\"")).await;
    pair.holder.signal("STOP");
    let asked = pair.programs[1].command(&["run", "ping", "--json"]).spawn().unwrap();
    until("the request", 10, async || {
        sql(&pair.url, "SELECT COUNT(*) FROM forwarded_requests WHERE taken_by IS NULL").await
            == "1"
    })
    .await;
    pair.holder.kill().await;
    let ran = asked.wait_with_output().await.unwrap();
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((&report["id"], &report["outcome"]), (&1.into(), &"succeeded".into()));
    assert_eq!(fake.count("GET", PING), 1);
    pair.standby.stop().await;
}

#[tokio::test]
async fn a_run_whose_replica_is_killed_is_reported_as_interrupted() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(400);
    let pair = pair(&fake, &sweep("lobby", 10, "")).await;
    let asked = pair.programs[1].command(&["run", "lobby", "--json"]).spawn().unwrap();
    until("a join", 20, async || joined(&fake) > 0).await;
    pair.holder.kill().await;
    let ran = asked.wait_with_output().await.unwrap();
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(report["outcome"], "interrupted", "{report}");
    until("the takeover", 20, async || held(&pair.standby).await == 1).await;
    assert_eq!(pair.programs[1].ended("lobby").await, ["manual interrupted"]);
    pair.standby.stop().await;
}

#[tokio::test]
async fn a_request_that_nobody_takes_or_answers_ends_with_an_error_that_says_so() {
    if on_postgres() {
        return;
    }
    let fake = Fake::start();
    let pair = pair(&fake, &ping("ping", "mode = \"apply\"")).await;
    let name = name_of(&pair.url, &pair.holder).await;
    // Its lease stays valid, and it does nothing.
    pair.holder.signal("STOP");
    sql(&pair.url, "UPDATE leases SET expires_at = now() + interval '1 hour'").await;
    let waiting = "SELECT COUNT(*) FROM forwarded_requests WHERE taken_by IS NULL";
    let asked = pair.programs[1].command(&["run", "ping"]).spawn().unwrap();
    until("the request", 10, async || sql(&pair.url, waiting).await == "1").await;
    sql(&pair.url, "UPDATE forwarded_requests SET expires_at = now()").await;
    let ended = asked.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    let why = format!("the replica {name} runs ping and did not take the request within 30 s");
    assert!(said.contains(&why), "{said}");
    let asked = pair.programs[1].command(&["cancel", "ping"]).spawn().unwrap();
    until("the request", 10, async || sql(&pair.url, waiting).await == "1").await;
    // As if it had been killed right after it took the request.
    sql(&pair.url, "UPDATE forwarded_requests SET taken_by = (SELECT holder FROM leases)").await;
    sql(&pair.url, "UPDATE leases SET expires_at = now()").await;
    let ended = asked.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    let why = format!("the replica {name} took the request and has not answered");
    assert!(said.contains(&why), "{said}");
    pair.holder.signal("CONT");
    assert_eq!(fake.count("GET", PING), 0);
    pair.stop().await;
}

#[tokio::test]
async fn no_more_requests_are_recorded_than_replicas_can_be_asked_for() {
    if on_postgres() {
        return;
    }
    let fake = Fake::start();
    let pair = pair(&fake, &ping("ping", "mode = \"apply\"")).await;
    let many = "INSERT INTO forwarded_requests (homeserver, job, request, asked_by, expires_at)
        SELECT 'x', 'x', 'x', 'x', now() + interval '%' FROM generate_series(1, 100)";
    sql(&pair.url, &many.replace('%', "1 minute")).await;
    let refused = pair.on_standby(&["run", "ping"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("too many requests wait for other replicas"), "{refused:?}");
    sql(&pair.url, "DELETE FROM forwarded_requests").await;
    sql(&pair.url, &many.replace('%', "-11 minutes")).await;
    assert_eq!(pair.on_standby(&["run", "ping"]).await.code, 0, "old ones are deleted");
    pair.stop().await;
}

#[tokio::test]
async fn replicas_with_different_configurations_are_named_and_run_no_job_that_differs() {
    if on_postgres() {
        return;
    }
    let fake = Fake::start();
    let pair = pair(&fake, &ping("ping", "mode = \"apply\"")).await;
    assert!(!pair.on_standby(&["jobs"]).await.stdout.contains("configurations"));
    edit(&pair.programs[1], "mode = \"apply\"", "mode = \"apply\"\nexpect = [204]");
    let edited = pair.on_standby(&["run", "ping"]).await;
    assert!(edited.code == 1 && edited.stderr.contains("was edited since"), "{edited:?}");
    assert_eq!(pair.on_standby(&["reload"]).await.code, 0);
    let differs = pair.on_standby(&["run", "ping"]).await;
    assert_eq!(differs.code, 1, "{differs:?}");
    assert!(differs.stderr.contains("has another definition of it"), "{differs:?}");
    assert_eq!(fake.count("GET", PING), 0);
    let mut names =
        [name_of(&pair.url, &pair.holder).await, name_of(&pair.url, &pair.standby).await];
    names.sort_unstable();
    let line = format!("replicas have different configurations ({}): ", names.join(" / "));
    for program in &pair.programs {
        until("the line", 20, async || program.run(&["jobs"]).await.stdout.contains(&line)).await;
    }
    let jobs = pair.standby.get_json("/api/v1/jobs").await;
    let groups: Vec<Vec<&str>> = names.iter().map(|name| vec![name.as_str()]).collect();
    assert_eq!(jobs[0]["different_configurations"], serde_json::json!(groups));
    pair.stop().await;
}

#[tokio::test]
async fn the_job_list_of_each_replica_and_of_a_machine_without_one_says_where_jobs_run() {
    if on_postgres() {
        return;
    }
    let fake = Fake::start();
    let pair = pair(&fake, &ping("ping", "mode = \"apply\"")).await;
    assert_eq!(pair.on_standby(&["run", "ping"]).await.code, 0);
    let name = name_of(&pair.url, &pair.holder).await;
    for daemon in [&pair.holder, &pair.standby] {
        let jobs = daemon.get_json("/api/v1/jobs").await;
        assert_eq!(jobs[0]["replica"], name);
        assert_eq!(jobs[0]["last_run"]["outcome"], "succeeded");
        assert_eq!(jobs[0]["different_configurations"], Value::Null);
    }
    let Pair { programs, holder, standby, .. } = pair;
    standby.kill().await;
    let table = programs[1].run(&["jobs"]).await.stdout;
    assert!(table.contains("no daemon is running on "), "{table}");
    assert!(table.ends_with(&format!(": the jobs run on {name}\n")), "{table}");
    holder.stop().await;
    let table = programs[1].run(&["jobs"]).await.stdout;
    assert!(table.contains("nothing runs on schedule until `microglia serve`"), "{table}");
}
