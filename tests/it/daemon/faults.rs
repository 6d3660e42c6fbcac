//! Faults that the daemon survives: failing homeservers, revoked tokens, full disks.

use super::*;
use crate::fake::{Fault, TOKEN, Trouble};
use crate::program::until;

#[tokio::test]
async fn a_homeserver_that_is_down_limits_or_hides_behind_a_proxy_recovers_by_itself() {
    let fake = Fake::start();
    fake.go_down();
    let more = "mode = \"apply\"\nschedule = \"* * * * * *\"\nretries = { attempts = 1 }";
    let program = Program::new(&fake.url(), TOKEN, &ping("often", more));
    let daemon = program.serve().await;
    let last =
        async || program.runs("often").await.into_iter().rfind(|run| !run["outcome"].is_null());
    let ended = async |outcome: &str, words: &str| {
        last().await.is_some_and(|run| {
            run["outcome"] == outcome && run["message"].as_str().unwrap_or("").contains(words)
        })
    };
    until("a failure", 30, async || ended("failed", "").await).await;
    assert_eq!(daemon.get("/healthz").await, (200, "ok\n".to_owned()));
    let down = "ready\nhomeserver main: down\n".to_owned();
    assert_eq!(daemon.get("/readyz").await, (200, down));
    let up = async || daemon.metric("microglia_homeserver_up", &["main"]).await;
    assert_eq!(up().await, Some(0.0));
    assert!(daemon.of_job("often", "microglia_job_consecutive_failures", &[]).await >= 1.0);
    fake.come_up();
    until("it recovers", 30, async || ended("succeeded", "").await && up().await == Some(1.0))
        .await;
    assert_eq!(daemon.of_job("often", "microglia_job_consecutive_failures", &[]).await, 0.0);
    fake.fault(Fault::new("*", "/", Trouble::Proxy(502)).always());
    until("a failure", 30, async || ended("failed", "502").await && up().await == Some(0.0)).await;
    assert_eq!(daemon.get("/healthz").await.0, 200);
    fake.no_more_faults();
    until("it recovers", 30, async || ended("succeeded", "").await).await;
    let limited = Trouble::Limited { retry_after_ms: Some(20), retry_after_header: None };
    fake.fault(Fault::new("*", "/", limited).times(15));
    fake.fault(Fault::new("GET", PING, Trouble::CutBody).times(1));
    let before = program.runs("often").await.len();
    until("it gets through", 60, async || {
        program.runs("often").await.len() > before + 2 && ended("succeeded", "").await
    })
    .await;
    assert_eq!(daemon.get("/healthz").await.0, 200);
    daemon.stop().await;
}

#[tokio::test]
async fn a_token_that_is_revoked_during_a_run_ends_it_and_a_rotated_one_is_used_at_once() {
    let fake = with_lobby(60);
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 20, ""));
    let daemon = program.serve().await;
    let caller = program.command(&["run", "lobby", "--json"]).spawn().unwrap();
    until("a join", 20, async || joined(&fake) >= 2).await;
    fake.world(|world| world.tokens.remove(TOKEN));
    let ended = caller.wait_with_output().await.unwrap();
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(report["outcome"], "failed", "{report}");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("write a valid token of a server admin to"), "{message}");
    assert_eq!(report["done"], joined(&fake));
    let valid = async || daemon.metric("microglia_homeserver_token_valid", &["main"]).await;
    assert_eq!(valid().await, Some(0.0));
    assert_eq!(daemon.metric("microglia_homeserver_up", &["main"]).await, Some(1.0));
    let refused = "ready\nhomeserver main: up, token rejected\n".to_owned();
    assert_eq!(daemon.get("/readyz").await, (200, refused));
    fake.world(|world| world.token("rotated", "@microglia:fake.test").admin_scope = true);
    program.write("token", "rotated\n");
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    // An emptied file is logged once, and the previous token stays in use.
    program.write("token", "");
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    assert_eq!(daemon.log().matches("token is empty").count(), 1);
    assert_eq!((joined(&fake), valid().await), (60, Some(1.0)));
    daemon.stop().await;
}

/// The daemon after a word of the shell's.
fn with_limits(program: &Program, first: &str) -> tokio::process::Command {
    let serve = program.command(&["serve"]);
    let mut command = tokio::process::Command::new("sh");
    // The signal would end it where a full disk only says no.
    command
        .args(["-c", &format!("trap '' XFSZ; {first} exec \"$0\" \"$@\"")])
        .arg(serve.as_std().get_program())
        .args(serve.as_std().get_args())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The daemon started where its files may not grow.
fn on_full_disk(program: &Program) -> tokio::process::Command {
    with_limits(program, "prlimit --pid $$ --fsize=1:unlimited;")
}

/// A daemon whose files may grow no further, or may again: to a program that is a full disk.
fn disk_is_full(daemon: &Daemon, full: bool) {
    let limit = if full { "--fsize=1:unlimited" } else { "--fsize=unlimited" };
    let pid = daemon.pid().to_string();
    let set = std::process::Command::new("prlimit").args(["--pid", &pid, limit]).status();
    assert!(set.unwrap().success());
}

#[tokio::test]
async fn a_full_disk_ends_and_refuses_runs_that_make_changes_and_nothing_else() {
    let fake = with_lobby(100);
    let jobs = [sweep("lobby", 50, ""), ping("looks", "schedule = \"* * * * * *\"")].concat();
    let program = Program::new(&fake.url(), TOKEN, &jobs);
    let daemon = program.serve_as(with_limits(&program, "")).await;
    assert_eq!(daemon.get("/readyz").await.0, 200);
    let run = program.command(&["run", "lobby", "--json"]).spawn().unwrap();
    until("some joins", 20, async || joined(&fake) >= 10).await;
    disk_is_full(&daemon, true);
    let run = run.wait_with_output().await.unwrap();
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("what cannot be recorded is not done"), "{message}");
    let (before, done) = (joined(&fake), report["done"].as_u64().unwrap());
    // Beside those recorded, the one in flight.
    let done = usize::try_from(done).unwrap();
    assert!(before == done || before == done + 1, "{before} and {report}");
    let (status, why) = daemon.get("/readyz").await;
    let refused = "the history cannot be written: runs in apply mode are refused";
    assert!(status == 503 && why.starts_with(refused), "{status} {why}");
    assert_eq!(daemon.get("/healthz").await.0, 200);
    assert!(daemon.metric("microglia_history_write_errors_total", &[]).await > Some(0.0));
    let again = program.json(&["run", "lobby", "--json"]).await;
    assert_eq!(again["outcome"], "refused", "{again}");
    assert_eq!(joined(&fake), before);
    let dry = program.dry_run("lobby").await;
    assert_eq!((&dry["outcome"], &dry["id"]), (&"succeeded".into(), &Value::Null), "{dry}");
    assert_eq!(dry["changes"].as_array().unwrap().len(), 100 - before);
    let ran = async || {
        let labels = ["mode=\"dry-run\"", "outcome=\"succeeded\""];
        daemon.of_job("looks", "microglia_job_runs_total", &labels).await
    };
    let so_far = ran().await;
    until("the schedule to continue", 20, async || ran().await > so_far).await;
    until_log(&daemon, "this dry run is not recorded").await;
    disk_is_full(&daemon, false);
    assert_eq!(daemon.get("/readyz").await.0, 200);
    // What could not be recorded then is recorded by itself.
    until("the end of the first run", 20, async || {
        program.runs("lobby").await[0]["outcome"] == report["outcome"]
    })
    .await;
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    assert_eq!((joined(&fake), fake.count("POST", JOIN)), (100, 100));
    daemon.stop().await;
}

#[tokio::test]
async fn a_history_that_cannot_be_opened_at_the_start_is_opened_as_soon_as_possible() {
    let fake = with_lobby(3);
    let jobs = [
        sweep("lobby", 50, "schedule = \"* * * * * *\""),
        ping("paused", "schedule = \"* * * * * *\""),
    ];
    let program = Program::new(&fake.url(), TOKEN, &jobs[1]);
    let daemon = program.serve().await;
    assert_eq!(program.run(&["pause"]).await.code, 0);
    daemon.stop().await;
    program.write("microglia.toml", &(program.read("microglia.toml") + &jobs[0]));
    let (kept, aside) = (program.path("state/history.db"), program.path("aside.db"));
    std::fs::rename(&kept, &aside).unwrap();
    std::fs::create_dir(&kept).unwrap();
    let daemon = program.serve().await;
    let ran = async |job: &str| {
        daemon.of_job(job, "microglia_job_runs_total", &["apply", "succeeded"]).await
    };
    let refused = program.json(&["run", "lobby", "--json"]).await;
    assert_eq!(refused["outcome"], "refused", "{refused}");
    let dry = program.dry_run("lobby").await;
    assert_eq!((&dry["outcome"], &dry["id"]), (&"succeeded".into(), &Value::Null), "{dry}");
    let (status, why) = daemon.get("/readyz").await;
    assert!(status == 503 && why.contains("the history cannot be opened: "), "{status} {why}");
    // The pause state is unknown, so runs count as paused.
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(1.0));
    assert!(daemon.log().contains("cannot read the pause state"));
    assert_eq!((joined(&fake), ran("lobby").await), (0, 0.0));
    std::fs::remove_dir(&kept).unwrap();
    std::fs::rename(&aside, &kept).unwrap();
    until_log(&daemon, "the history is open").await;
    until_log(&daemon, "scheduled runs have been paused since before the start").await;
    assert_eq!(ran("lobby").await, 0.0);
    let (status, body) = daemon.get("/readyz").await;
    assert!(status == 200 && body.starts_with("ready\n"), "{status} {body}");
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(1.0));
    assert_eq!(joined(&fake), 0);
    assert_eq!(program.run(&["resume"]).await.code, 0);
    until("the sweep", 20, async || joined(&fake) == 3).await;
    daemon.stop().await;
    // What was refused before the history was there is nowhere recorded.
    let runs = program.runs("lobby").await;
    assert!(runs.iter().all(|run| run["outcome"] == "succeeded"), "{runs:?}");
}

#[tokio::test]
async fn a_deleted_history_is_no_longer_written_and_a_new_one_replaces_it() {
    let fake = with_lobby(2);
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 50, ""));
    let daemon = program.serve().await;
    assert_eq!(program.run(&["pause"]).await.code, 0);
    for file in ["history.db", "history.db-wal", "history.db-shm"] {
        std::fs::remove_file(program.path("state").join(file)).unwrap();
    }
    std::fs::remove_dir_all(program.path("state/locks")).unwrap();
    let (status, why) = daemon.get("/readyz").await;
    let problem = "history.db was deleted or replaced while it was open";
    assert!(status == 503 && why.contains(problem), "{status} {why}");
    let refused = program.json(&["run", "lobby", "--json"]).await;
    assert_eq!(refused["outcome"], "refused", "{refused}");
    assert_eq!(joined(&fake), 0);
    until_log(&daemon, "the history is open").await;
    assert!(daemon.log().contains(problem), "{}", daemon.log());
    assert_eq!(daemon.get("/readyz").await.0, 200);
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    assert_eq!((joined(&fake), program.runs("lobby").await.len()), (2, 1));
    daemon.stop().await;
    let daemon = program.serve().await;
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(1.0), "a pause is not lost");
    daemon.stop().await;
}

#[tokio::test]
async fn a_pause_can_be_read_even_if_the_disk_is_full_at_the_start() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &ping("looks", "schedule = \"* * * * * *\""));
    let runs = async |daemon: &Daemon| {
        daemon.of_job("looks", "microglia_job_runs_total", &["dry-run", "succeeded"]).await
    };
    let daemon = program.serve().await;
    daemon.stop().await;
    for paused in [0.0, 1.0] {
        let daemon = program.serve_as(on_full_disk(&program)).await;
        assert_eq!(daemon.get("/readyz").await.0, 503);
        assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(paused));
        if paused == 0.0 {
            until("dry runs", 20, async || runs(&daemon).await >= 1.0).await;
        }
        disk_is_full(&daemon, false);
        until_log(&daemon, "the history is open").await;
        assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(paused));
        assert_eq!(program.run(&["pause"]).await.code, 0);
        daemon.stop().await;
    }
}

/// A minute passes in each second.
const SIXTY_TIMES_AS_FAST: &str = "+0 x60";

/// Starts the daemon with another clock, by Debian's faketime(1).
pub(super) async fn serve_with_clock(program: &Program, clock: &str) -> Daemon {
    let serve = program.command(&["serve"]);
    let mut command = tokio::process::Command::new("faketime");
    command
        .args(["-f", clock, "setpriv", "--pdeathsig", "KILL"])
        .arg(serve.as_std().get_program())
        .args(serve.as_std().get_args())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    program.serve_as(command).await
}

#[tokio::test]
#[ignore = "an hour in a minute: it needs faketime(1), which `apt-get install faketime` brings"]
async fn an_outage_of_an_hour_needs_no_intervention() {
    const JOBS: usize = 20;
    let give_ids = |fake: &Fake, when: &str| {
        fake.world(|world| {
            for number in 0..JOBS {
                let user = std::mem::take(world.user(&format!("@{when}{number}:fake.test")));
                *world.user(&format!("@{when}{number}:fake.test")) =
                    user.external(&format!("p{number:02}"), &format!("{when}{number}"));
            }
        });
    };
    let ids_left = |fake: &Fake| {
        fake.world(|world| world.users.values().flat_map(|user| &user.external_ids).count())
    };
    let fake = Fake::start();
    give_ids(&fake, "before");
    let jobs: String = (0..JOBS)
        .map(|number| {
            format!(
                "[jobs.job-{number:02}]\nkind = \"remove-external-ids\"\nmode = \"apply\"\nproviders = [\"p{number:02}\"]\naccounts = \"all\"\nschedule = \"{}-59/10 * * * *\"\n",
                number % 10
            )
        })
        .collect();
    let program = Program::new(&fake.url(), TOKEN, &jobs);
    let mut daemon = serve_with_clock(&program, SIXTY_TIMES_AS_FAST).await;
    let failing = async |daemon: &Daemon| {
        let mut failing = 0;
        for number in 0..JOBS {
            let name = "microglia_job_consecutive_failures";
            let failures = daemon.of_job(&format!("job-{number:02}"), name, &[]).await;
            failing += usize::from(failures > 0.0);
        }
        failing
    };
    until("a good round", 40, async || ids_left(&fake) == 0).await;
    assert_eq!(failing(&daemon).await, 0);
    fake.go_down();
    give_ids(&fake, "during");
    let hour = std::time::Instant::now();
    until("all fail", 40, async || failing(&daemon).await == JOBS).await;
    while hour.elapsed() < std::time::Duration::from_mins(1) {
        // A hiccup of the machine of 80 ms is five seconds without a tick here, and passes.
        until("it is healthy and ready", 10, async || {
            daemon.get("/healthz").await.0 == 200 && daemon.get("/readyz").await.0 == 200
        })
        .await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    assert_eq!(daemon.metric("microglia_homeserver_up", &["main"]).await, Some(0.0));
    fake.come_up();
    until("all are well", 40, async || ids_left(&fake) == 0 && failing(&daemon).await == 0).await;
    assert_eq!(daemon.metric("microglia_homeserver_up", &["main"]).await, Some(1.0));
    // faketime waits for the program that it started, and ends with it.
    let own = format!("pgrep -P {}", daemon.pid());
    let own = std::process::Command::new("sh").args(["-c", &own]).output().unwrap();
    let own = String::from_utf8_lossy(&own.stdout).trim().parse();
    crate::program::signal(own.unwrap_or(daemon.pid()), "TERM");
    assert_eq!(daemon.exit().await, 0, "{}", daemon.log());
    for number in 0..JOBS {
        let runs = program.runs(&format!("job-{number:02}")).await;
        let failed = runs.iter().filter(|run| run["outcome"] == "failed").count();
        assert!((4..=8).contains(&failed), "one every ten minutes: {failed}");
        assert_eq!(runs.last().unwrap()["outcome"], "succeeded");
        assert!(runs.iter().all(|run| run["done"].as_u64().unwrap() <= 1));
    }
}
