//! Starting, stopping, and notifying systemd.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use super::*;
use crate::fake::{Fault, TOKEN, Trouble};
use crate::program::until;

#[tokio::test]
async fn systemd_is_notified_of_start_reload_watchdog_and_stop() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &ping("a", "schedule = \"30 3 * * *\""));
    let socket = UnixDatagram::bind(program.path("notify")).unwrap();
    socket.set_nonblocking(true).unwrap();
    // systemd names the process that is to ping.
    let serve = program.command(&["serve"]);
    let mut command = tokio::process::Command::new("sh");
    command
        .args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""])
        .arg(serve.as_std().get_program())
        .args(serve.as_std().get_args())
        .env("NOTIFY_SOCKET", program.path("notify"))
        .env("WATCHDOG_USEC", "600000")
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut daemon = program.serve_as(command).await;
    let mut messages: Vec<String> = Vec::new();
    let receive = |messages: &mut Vec<String>| {
        let mut buffer = [0; 4096];
        while let Ok(length) = socket.recv(&mut buffer) {
            messages.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    };
    for _ in 0..100 {
        receive(&mut messages);
        if messages.iter().filter(|message| message.starts_with("WATCHDOG=1")).count() >= 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let pings = messages.iter().filter(|message| message.starts_with("WATCHDOG=1")).count();
    assert!(pings >= 3, "{messages:?}");
    assert!(
        messages[0].starts_with("READY=1\nSTATUS=1 job, 0 running, next a at "),
        "{messages:?}"
    );
    assert!(messages[0].contains("03:30:00 UTC"), "{messages:?}");
    messages.clear();
    daemon.signal("HUP");
    for _ in 0..100 {
        receive(&mut messages);
        if messages.iter().any(|message| message.starts_with("READY=1")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    messages.retain(|message| !message.starts_with("WATCHDOG=1"));
    assert!(
        messages[0].starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "in one datagram: {messages:?}"
    );
    assert!(messages[1].starts_with("READY=1\nSTATUS="), "{messages:?}");
    daemon.signal("TERM");
    assert_eq!(daemon.exit().await, 0);
    receive(&mut messages);
    let stopping = "STOPPING=1\nEXTEND_TIMEOUT_USEC=45000000";
    assert!(
        messages.iter().any(|message| message.trim_end() == stopping),
        "the grace of 30 s and 15 s for what follows it: {messages:?}"
    );
}

#[tokio::test]
async fn a_low_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &ping("a", ""));
    let serve = program.command(&["serve"]);
    let mut command = tokio::process::Command::new("sh");
    command
        .args(["-c", "ulimit -S -n 256 && ulimit -H -n 4096 && exec \"$0\" \"$@\""])
        .arg(serve.as_std().get_program())
        .args(serve.as_std().get_args())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let daemon = program.serve_as(command).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let files: Vec<&str> = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(files, ["4096", "4096", "files"]);
}

#[tokio::test]
async fn a_stop_ends_a_run_at_the_next_change_boundary_and_the_next_start_finishes_it() {
    let fake = with_lobby(40);
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 10, &hourly()));
    was_down(&program).await;
    let daemon = program.serve().await;
    until("some joins", 20, async || joined(&fake) >= 3).await;
    let start = Instant::now();
    let log = daemon.stop().await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(log.contains("stopping: no new runs are started"), "{log}");
    let runs = program.runs("lobby").await;
    assert_eq!(program.ended("lobby").await, ["catch-up interrupted"]);
    assert_eq!((&runs[0]["done"], &runs[0]["failed"]), (&joined(&fake).into(), &0.into()));
    assert_eq!(runs[0]["remaining"], 40 - joined(&fake));
    let daemon = program.serve().await;
    until("the rest", 20, async || program.ended("lobby").await.len() == 2).await;
    daemon.stop().await;
    assert_eq!(program.ended("lobby").await, ["catch-up interrupted", "catch-up succeeded"]);
    assert_eq!((joined(&fake), fake.count("POST", JOIN)), (40, 40), "nobody was joined twice");
    program.serve().await.stop().await;
    assert_eq!(program.runs("lobby").await.len(), 2);
}

#[tokio::test]
async fn a_run_that_exceeds_the_shutdown_grace_is_interrupted_recorded_and_reported_to_its_client()
{
    let fake = Fake::start();
    fake.world(|world| {
        world.user("@a:fake.test");
        world.media("@a:fake.test", "file", 100, 1_600_000_000_000, None).bytes = Some(100);
    });
    fake.fault(Fault::new("POST", "/_synapse/admin/v1/media/delete", Trouble::Hang).always());
    let purge =
        "[jobs.purge]\nkind = \"purge-local-media\"\nmode = \"apply\"\nolder_than = \"90d\"\n";
    let program = Program::new(&fake.url(), TOKEN, purge);
    edit(&program, "[daemon]\n", "[daemon]\nshutdown_grace = \"1s\"\n");
    let mut daemon = program.serve().await;
    let caller = program.command(&["run", "purge", "--json"]).spawn().unwrap();
    until("the call", 20, async || fake.count("POST", "/_synapse/admin/v1/media/delete") == 1)
        .await;
    let start = Instant::now();
    daemon.signal("TERM");
    // While it drains, it still responds.
    assert_eq!(daemon.get("/healthz").await.0, 200);
    assert_eq!(daemon.exit().await, 0, "{}", daemon.log());
    let took = start.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
    let output = caller.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["outcome"], "interrupted");
    assert_eq!(report["changes"][0]["state"], "failed", "{report}");
    assert_eq!(
        report["changes"][0]["detail"],
        "no response arrived before the run ended: the change may have been made"
    );
    assert_eq!(program.ended("purge").await, ["manual interrupted"]);
}

#[tokio::test]
async fn a_second_signal_ends_the_daemon_immediately() {
    let fake = Fake::start();
    fake.fault(Fault::new("GET", PING, Trouble::Hang).always());
    let program = with_admin(&fake, &ping("hangs", "mode = \"apply\""));
    let mut daemon = program.serve().await;
    assert_eq!(daemon.post("/api/v1/jobs/hangs/run", "secret-of-the-tests", "").await.0, 202);
    until("the request", 20, async || fake.count("GET", PING) == 1).await;
    daemon.signal("TERM");
    until_log(&daemon, "stopping 1 run: up to 30 s").await;
    assert_eq!(daemon.post("/api/v1/jobs/hangs/run", "secret-of-the-tests", "").await.0, 503);
    daemon.signal("TERM");
    let start = Instant::now();
    assert_eq!(daemon.exit().await, 1);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    until_log(&daemon, "stopped immediately by a second signal").await;
    program.serve().await.stop().await;
    assert_eq!(program.ended("hangs").await, ["manual interrupted"]);
}

#[tokio::test]
async fn a_day_of_twenty_jobs_without_events_logs_forty_lines() {
    let fake = Fake::start();
    let jobs: String =
        (0..20).map(|number| ping(&format!("job-{number:02}"), "mode = \"apply\"")).collect();
    let program = with_admin(&fake, &jobs);
    let daemon = program.serve().await;
    let lines = || {
        let log = daemon.log();
        let quiet = log.lines().filter(|line| !line.contains("microglia::audit"));
        quiet.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = lines().len();
    for number in 0..20 {
        let path = format!("/api/v1/jobs/job-{number:02}/run");
        assert_eq!(daemon.post(&path, "secret-of-the-tests", "").await.0, 202);
    }
    until("all ended", 30, async || {
        daemon.metric("microglia_run_duration_seconds_count", &[]).await == Some(20.0)
    })
    .await;
    let day = lines().split_off(before);
    let waits = day.iter().filter(|line| line.contains(" waiting for another run")).count();
    assert_eq!(day.len() - waits, 40, "{day:#?}");
    // The form for machines carries the same as fields.
    daemon.stop().await;
    let mut command = program.command(&["serve"]);
    command.env("MICROGLIA_LOG_FORMAT", "json");
    let daemon = program.serve_as(command).await;
    assert_eq!(program.run(&["run", "job-00"]).await.code, 0);
    let log = daemon.stop().await;
    let ended: Value = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .find(|line: &Value| line["outcome"] == "succeeded")
        .unwrap();
    assert_eq!(
        (&ended["job"], &ended["run"], &ended["done"]),
        (&"job-00".into(), &21.into(), &1.into())
    );
}
