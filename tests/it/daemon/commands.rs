//! Commands that talk to the running daemon through its socket.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;
use crate::fake::{Fault, TOKEN, Trouble};
use crate::program::{signal, until};

#[tokio::test]
async fn a_manual_run_is_run_by_the_daemon_and_shows_its_progress_and_its_report() {
    let fake = Fake::start();
    // The transport sends it four times by itself, and then the run tries again.
    fake.fault(Fault::new("GET", PING, Trouble::Proxy(502)).times(4));
    let more = "mode = \"apply\"\nrepeatable = true\nretries = { first_delay = \"1s\" }";
    let jobs = [ping("by-hand", more), ping("fails", "mode = \"apply\"\nexpect = [204]")].concat();
    let program = Program::new(&fake.url(), TOKEN, &jobs);
    let daemon = program.serve().await;
    let ran = program.run(&["run", "by-hand"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.starts_with("run 1: by-hand (request on main), apply, "), "{}", ran.stdout);
    assert!(daemon.log().contains("retrying in 0 s (attempt 2 of 3)"), "{}", daemon.log());
    assert!(daemon.log().contains("by-hand: run 1 started (apply, manual)"), "{}", daemon.log());
    until_log(&daemon, "by-hand: run 1 succeeded").await;
    let dry = program.dry_run("by-hand").await;
    assert_eq!((&dry["mode"], &dry["trigger"]), (&"dry-run".into(), &"manual".into()));
    let failed = program.run(&["run", "fails", "--json"]).await;
    assert_eq!(failed.code, 1, "{failed:?}");
    let report: Value = serde_json::from_str(&failed.stdout).unwrap();
    assert_eq!(report["outcome"], "failed");
    assert_eq!(report["changes"][0]["state"], "failed");
    assert_eq!(program.run(&["run", "unknown"]).await.code, 2);
    // A job that the daemon has not loaded yet.
    let config = program.read("microglia.toml");
    program.write("microglia.toml", &(config + &ping("new", "")));
    let new = program.run(&["run", "new"]).await;
    assert_eq!(new.code, 2, "{new:?}");
    assert!(new.stderr.contains("microglia reload"), "{}", new.stderr);
    daemon.stop().await;
}

#[tokio::test]
async fn commands_need_no_secrets_while_a_daemon_is_running() {
    let fake = Fake::start();
    let program = with_admin(&fake, &ping("a", "mode = \"apply\""));
    let daemon = program.serve().await;
    for secret in ["token", "admin-token"] {
        std::fs::remove_file(program.path(secret)).unwrap();
    }
    for command in [&["run", "a"][..], &["jobs"], &["runs"], &["runs", "show", "1"]] {
        let said = program.run(command).await;
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{command:?}");
    }
    assert_eq!(fake.count("GET", PING), 1);
    daemon.stop().await;
    assert_eq!(program.run(&["runs"]).await.code, 0);
    let alone = program.run(&["run", "a"]).await;
    assert_eq!(alone.code, 2, "{alone:?}");
    assert!(
        alone.stderr.contains("token does not exist: create it with `microglia login`"),
        "{alone:?}"
    );
}

#[tokio::test]
async fn a_run_can_be_stopped_while_the_configuration_has_errors() {
    let fake = with_lobby(200);
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 10, ""));
    let daemon = program.serve().await;
    let good = program.read("microglia.toml");
    let caller = program.command(&["run", "lobby", "--json"]).spawn().unwrap();
    until("a join", 20, async || joined(&fake) > 0).await;
    program.write("microglia.toml", &good.replace("rooms", "roms"));
    for command in [&["pause"][..], &["resume"], &["cancel", "lobby"]] {
        let said = program.run(command).await;
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{command:?}");
    }
    let report: Value =
        serde_json::from_slice(&caller.wait_with_output().await.unwrap().stdout).unwrap();
    assert_eq!(report["outcome"], "cancelled");
    daemon.stop().await;
    let said = program.run(&["cancel", "lobby"]).await;
    assert_eq!(said.code, 2, "without a daemon its errors are reported: {said:?}");
    program.write("microglia.toml", &good);
    let said = program.run(&["cancel", "lobby"]).await;
    assert!(said.code == 1 && said.stderr.contains("no daemon is running on"), "{said:?}");
}

#[tokio::test]
async fn a_job_has_one_run_at_a_time_and_is_cancelled_by_command_or_ctrl_c() {
    let fake = with_lobby(200);
    let program = with_admin(&fake, &sweep("lobby", 10, ""));
    let daemon = program.serve().await;
    let idle = program.run(&["cancel", "lobby"]).await;
    assert_eq!((idle.code, idle.stderr.as_str()), (1, "error: lobby is not running\n"));
    for by_command in [true, false] {
        let before = joined(&fake);
        let caller = program.command(&["run", "lobby", "--json"]).spawn().unwrap();
        until("a join", 20, async || joined(&fake) > before).await;
        let id = program.runs("lobby").await.last().unwrap()["id"].clone();
        let second = program.run(&["run", "lobby"]).await;
        let already = format!("error: lobby is already running (run {id})\n");
        assert!(second.code == 1 && second.stderr.ends_with(&already), "{second:?}");
        assert_eq!(daemon.post("/api/v1/jobs/lobby/run", "secret-of-the-tests", "").await.0, 409);
        assert_eq!(daemon.of_job("lobby", "microglia_job_running", &[]).await, 1.0);
        if by_command {
            assert_eq!(program.run(&["cancel", "lobby"]).await.code, 0);
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
    daemon.stop().await;
}

#[tokio::test]
async fn a_pause_stops_scheduled_runs_survives_a_restart_and_is_shown() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &ping("often", "schedule = \"* * * * * *\""));
    let daemon = program.serve().await;
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(0.0));
    let due = "microglia_job_success_due_timestamp_seconds";
    assert!(daemon.of_job("often", due, &[]).await > 0.0);
    let paused = program.run(&["pause"]).await;
    assert_eq!(
        (paused.code, paused.stdout.as_str()),
        (0, "paused: nothing runs on schedule until `microglia resume`\n")
    );
    daemon.stop().await;
    let before = program.runs("often").await.len();
    let daemon = program.serve().await;
    assert!(daemon.log().contains("paused since before the start"), "{}", daemon.log());
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(1.0));
    assert_eq!(daemon.of_job("often", due, &[]).await, 0.0);
    let skipped = async || daemon.of_job("often", "microglia_job_skipped_total", &["paused"]).await;
    until("skipped ones", 20, async || skipped().await >= 2.0).await;
    assert_eq!(program.runs("often").await.len(), before);
    let table = program.run(&["jobs"]).await.stdout;
    assert!(table.contains("paused: nothing runs on schedule until `microglia resume`"), "{table}");
    // It can still be run manually.
    assert_eq!(program.run(&["run", "often"]).await.code, 0);
    assert_eq!(program.run(&["resume"]).await.code, 0);
    until("runs again", 20, async || program.runs("often").await.len() > before + 1).await;
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(0.0));
    let table = program.run(&["jobs"]).await.stdout;
    assert!(!table.contains("paused") && !table.contains("no daemon"), "{table}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_pause_state_that_cannot_be_read_counts_as_paused() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &ping("often", "schedule = \"* * * * * *\""));
    program.serve().await.stop().await;
    let before = program.runs("often").await.len();
    program.sql("INSERT OR REPLACE INTO switches VALUES ('paused', 'unreadable')").await;
    let daemon = program.serve().await;
    assert!(daemon.log().contains("cannot read the pause state"), "{}", daemon.log());
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(1.0));
    let skipped = async || daemon.of_job("often", "microglia_job_skipped_total", &["paused"]).await;
    until("skipped ones", 20, async || skipped().await >= 2.0).await;
    assert_eq!(program.runs("often").await.len(), before);
    assert_eq!(program.run(&["resume"]).await.code, 0);
    until("runs again", 20, async || program.runs("often").await.len() > before).await;
    daemon.stop().await;
    assert!(!program.serve().await.stop().await.contains("cannot read the pause state"));
}

#[tokio::test]
async fn the_control_socket_is_private_to_its_owner_and_may_have_a_long_path() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &ping("a", ""));
    let deep = format!("state/{}", ["a-name-of-some-length"; 8].join("/"));
    edit(&program, "\"state\"", &format!("\"{deep}\""));
    assert!(program.path(&deep).as_os_str().len() > 107);
    let nobody = program.run(&["reload"]).await;
    assert_eq!(nobody.code, 1, "{nobody:?}");
    assert!(
        nobody.stderr.starts_with("error: no daemon is running on the state directory"),
        "{nobody:?}"
    );
    let mut daemon = program.serve().await;
    let socket = program.path(&deep).join("control.sock");
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(program.run(&["reload"]).await.code, 0);
    assert_eq!(program.run(&["run", "a"]).await.code, 0);
    assert!(daemon.log().contains("a: run 1 started"), "it ran in the daemon: {}", daemon.log());
    let mut second = program.command(&["serve"]);
    second.env("MICROGLIA_LISTEN", "127.0.0.1:0");
    let second = second.output().await.unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another daemon is running on the state directory"), "{said}");
    assert_eq!(program.run(&["reload"]).await.code, 0, "the first one is unharmed");
    daemon.signal("INT");
    assert_eq!(daemon.exit().await, 0);
    assert!(!socket.exists());
}

#[tokio::test]
async fn healthcheck_finds_the_daemon_even_if_the_edited_configuration_has_errors() {
    let fake = Fake::start();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let program = Program::new(&fake.url(), TOKEN, &ping("a", ""));
    edit(&program, "[daemon]\n", &format!("[daemon]\nlisten = \"0.0.0.0:{port}\"\n"));
    assert_eq!(program.run(&["healthcheck"]).await.code, 1);
    let daemon = program.serve().await;
    edit(&program, "kind = \"request\"", "kind = \"nonsense\"");
    for arguments in [&["healthcheck"][..], &["healthcheck", "--ready"]] {
        let answer = program.run(arguments).await;
        assert_eq!(answer.code, 0, "{answer:?}");
    }
    daemon.stop().await;
    assert_eq!(program.run(&["healthcheck"]).await.code, 1);
}

#[tokio::test]
async fn healthcheck_finds_a_daemon_whose_listen_was_edited_or_whose_socket_was_deleted() {
    let fake = Fake::start();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let program = Program::new(&fake.url(), TOKEN, &ping("a", ""));
    let old = format!("[daemon]\nlisten = \"127.0.0.1:{port}\"\n");
    edit(&program, "[daemon]\n", &old);
    let daemon = program.serve().await;
    edit(&program, &old, "[daemon]\nlisten = \"127.0.0.1:1\"\n");
    assert_eq!(program.run(&["reload"]).await.code, 0);
    let healthy = program.run(&["healthcheck"]).await;
    assert_eq!((healthy.code, healthy.stdout.as_str()), (0, "ok\n"), "{healthy:?}");
    let ready = program.run(&["healthcheck", "--ready"]).await;
    assert_eq!(ready.code, 0, "{ready:?}");
    assert!(ready.stdout.starts_with("ready\nhomeserver main: "), "{ready:?}");
    std::fs::remove_file(program.path("state/control.sock")).unwrap();
    let unknown = program.run(&["healthcheck"]).await;
    assert_eq!(unknown.code, 1, "{unknown:?}");
    assert!(unknown.stderr.contains("cannot reach http://127.0.0.1:1/healthz"), "{unknown:?}");
    edit(&program, "127.0.0.1:1\"", &format!("127.0.0.1:{port}\""));
    assert_eq!(program.run(&["healthcheck", "--ready"]).await.code, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_run_that_the_command_line_started_first_is_not_disturbed_by_the_daemon() {
    let fake = Fake::start();
    fake.fault(Fault::new("GET", PING, Trouble::Delay(Duration::from_secs(4))));
    let more = "mode = \"apply\"\nschedule = \"* * * * * *\"";
    let program = Program::new(&fake.url(), TOKEN, &ping("a", more));
    let here = program.command(&["run", "a", "--json"]).spawn().unwrap();
    until("its request", 20, async || fake.count("GET", PING) == 1).await;
    let daemon = program.serve().await;
    let skipped = async || daemon.of_job("a", "microglia_job_skipped_total", &["overlap"]).await;
    until("a skipped one", 10, async || skipped().await >= 1.0).await;
    assert_eq!(program.runs("a").await[0]["outcome"], Value::Null, "it is still running");
    let report = here.wait_with_output().await.unwrap();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!((&report["id"], &report["outcome"]), (&1.into(), &"succeeded".into()), "{report}");
    until("its own turn", 10, async || program.ended("a").await.len() >= 2).await;
    assert_eq!(program.ended("a").await[..2], ["manual succeeded", "schedule succeeded"]);
    daemon.stop().await;
}
