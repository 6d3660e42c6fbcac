//! When jobs run: schedules, overlap, slots, windows, splay and catching up.

use std::time::Duration;

use super::*;
use crate::fake::{Fault, TOKEN, Trouble};
use crate::program::until;

#[tokio::test]
async fn a_job_can_run_every_second_and_splay_separates_two_jobs_of_one_homeserver() {
    let fake = Fake::start();
    let every = "schedule = \"* * * * * *\"";
    let hour = (now() + TimeDelta::hours(3)).hour();
    let window = format!("window = \"{hour:02}:00-{hour:02}:30\"\n{every}");
    let jobs = [
        ping("plain", every),
        ping("splayed", "schedule = \"*/3 * * * * *\"\nsplay = \"2s\""),
        ping("outside", &window),
        ping("disabled", &format!("enabled = false\n{every}")),
        ping("manual", ""),
    ];
    let program = Program::new(&fake.url(), TOKEN, &jobs.concat());
    let daemon = program.serve().await;
    until("two splayed runs", 30, async || program.ended("splayed").await.len() >= 2).await;
    let of: Vec<_> =
        program.runs("plain").await.iter().map(|run| time_of(run, "scheduled_for")).collect();
    assert!(of.len() >= 3 && of.windows(2).all(|two| two[0] < two[1]), "{of:?}");
    let consecutive = of.windows(2).filter(|two| two[1] - two[0] == TimeDelta::seconds(1)).count();
    assert!(consecutive * 2 >= of.len(), "{of:?}");
    let delays: Vec<i64> = program
        .runs("splayed")
        .await
        .iter()
        .map(|run| (time_of(run, "started_at") - time_of(run, "scheduled_for")).num_milliseconds())
        .collect();
    let (least, most) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
    assert!(*most < 3000 && most - least < 1000, "a fixed delay below the bound: {delays:?}");
    assert!(daemon.of_job("outside", "microglia_job_skipped_total", &["window"]).await >= 3.0);
    for idle in ["outside", "disabled", "manual"] {
        assert_eq!(program.ended(idle).await, Vec::<String>::new(), "{idle}");
    }
    // A dry run of this kind asks nothing; probes do.
    assert_eq!(fake.count("*", PING), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_thousand_jobs_due_in_the_same_second_all_run() {
    let fake = Fake::start();
    let (_program, daemon) = a_thousand_jobs_to_come(&fake).await;
    until("all of them", 300, async || {
        // 4 MB each time.
        tokio::time::sleep(Duration::from_secs(1)).await;
        daemon.metric("microglia_run_duration_seconds_count", &["request"]).await == Some(1000.0)
    })
    .await;
    assert_eq!(daemon.metric("microglia_start_delay_seconds_count", &[]).await, Some(1000.0));
    let (_, metrics) = daemon.get("/metrics").await;
    let ended = metrics.lines().filter(|line| line.contains("outcome=\"succeeded\"} 1"));
    // Each once as a run that was counted and once as the last outcome.
    assert_eq!(ended.count(), 2000);
    daemon.stop().await;
}

/// A daemon that is ready before its jobs are due, however slow the machine.
async fn a_thousand_jobs_to_come(fake: &Fake) -> (Program, Daemon) {
    for lead_seconds in [8, 30, 120] {
        let at = now() + TimeDelta::seconds(lead_seconds);
        let schedule =
            format!("schedule = \"{} {} {} * * *\"", at.second(), at.minute(), at.hour());
        let jobs: String =
            (0..1000).map(|number| ping(&format!("job-{number}"), &schedule)).collect();
        let program = Program::new(&fake.url(), TOKEN, &jobs);
        let more = "[homeservers.main]\nmax_concurrent_runs = 1000\n";
        edit(&program, "[homeservers.main]\n", more);
        let daemon = program.serve().await;
        if now() < at {
            return (program, daemon);
        }
        daemon.stop().await;
    }
    panic!("the daemon took two minutes to start");
}

#[tokio::test]
async fn an_occurrence_during_a_run_is_skipped_or_queued() {
    let fake = Fake::start();
    fake.fault(Fault::new("GET", PING, Trouble::Delay(Duration::from_millis(3500))).always());
    let every = "mode = \"apply\"\nschedule = \"* * * * * *\"";
    let jobs =
        [ping("skips", every), ping("queues", &format!("overlap = \"queue\"\n{every}"))].concat();
    let program = Program::new(&fake.url(), TOKEN, &jobs);
    edit(&program, "[homeservers.main]\n", "[homeservers.main]\nmax_concurrent_runs = 2\n");
    let daemon = program.serve().await;
    until("two runs each", 30, async || {
        program.runs("skips").await.len() >= 2 && program.runs("queues").await.len() >= 2
    })
    .await;
    let (skips, queues) = (program.runs("skips").await, program.runs("queues").await);
    assert!(
        time_of(&skips[1], "scheduled_for") + TimeDelta::seconds(1)
            > time_of(&skips[0], "finished_at")
    );
    assert!(time_of(&queues[1], "scheduled_for") < time_of(&queues[0], "finished_at"));
    assert!(time_of(&queues[1], "started_at") >= time_of(&queues[0], "finished_at"));
    for job in ["skips", "queues"] {
        assert!(daemon.of_job(job, "microglia_job_skipped_total", &["overlap"]).await >= 1.0);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_slow_or_unreachable_homeserver_delays_no_other() {
    let (slow, quick) = (Fake::start(), Fake::start());
    slow.fault(Fault::new("GET", PING, Trouble::Delay(Duration::from_millis(1500))).always());
    let every = "mode = \"apply\"\nschedule = \"* * * * * *\"\nretries = { attempts = 1 }";
    let jobs: String = [("a", "slow"), ("b", "slow"), ("c", "quick"), ("d", "dead")]
        .map(|(job, homeserver)| ping(job, &format!("homeserver = \"{homeserver}\"\n{every}")))
        .concat();
    let homeservers: String =
        [("slow", slow.url()), ("quick", quick.url()), ("dead", "http://127.0.0.1:9".to_owned())]
            .map(|(name, url)| {
                format!("[homeservers.{name}]\nurl = \"{url}\"\naccess_token_file = \"token\"\n")
            })
            .concat();
    let program =
        Program::with_config(&format!("[daemon]\nstate_dir = \"state\"\n{homeservers}{jobs}"));
    program.write("token", TOKEN);
    let daemon = program.serve().await;
    let ended = async |job: &str| program.ended(job).await.len();
    until("runs everywhere", 60, async || {
        ended("a").await >= 1
            && ended("b").await >= 1
            && ended("c").await >= 4
            && ended("d").await >= 1
    })
    .await;
    assert_eq!(slow.max_concurrent(), 1, "one run at a time");
    assert!(program.ended("c").await.iter().all(|run| run == "schedule succeeded"));
    assert!(program.ended("d").await.iter().all(|run| run == "schedule failed"));
    until("one waits for its place", 10, async || {
        let waiting = async |job| daemon.of_job(job, "microglia_job_waiting", &[]).await;
        waiting("a").await + waiting("b").await == 1.0
    })
    .await;
    for (homeserver, up) in [("slow", 1.0), ("quick", 1.0), ("dead", 0.0)] {
        let label = format!("homeserver=\"{homeserver}\"");
        assert_eq!(daemon.metric("microglia_homeserver_up", &[&label]).await, Some(up));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn occurrences_while_the_daemon_was_down_run_once() {
    let fake = Fake::start();
    let hourly = hourly();
    let jobs = [
        ping("missed", &hourly),
        ping("too-old", &format!("catch_up = \"10m\"\n{hourly}")),
        ping("off", &format!("catch_up = \"off\"\n{hourly}")),
        ping("changed", &hourly),
        ping("disabled", &hourly),
    ];
    let program = Program::new(&fake.url(), TOKEN, &jobs.concat());
    was_down(&program).await;
    for job in ["missed", "too-old", "off", "changed", "disabled"] {
        assert_eq!(program.ended(job).await, Vec::<String>::new(), "{job} at a first start");
    }
    let config = program.read("microglia.toml");
    let different = config
        .replace(&ping("changed", &hourly), &ping("changed", "schedule = \"@hourly\""))
        .replace(
            &ping("disabled", &hourly),
            &ping("disabled", &format!("enabled = false\n{hourly}")),
        );
    program.write("microglia.toml", &different);
    let daemon = program.serve().await;
    until("the missed one", 20, async || !program.ended("missed").await.is_empty()).await;
    assert_eq!(daemon.of_job("too-old", "microglia_job_skipped_total", &["missed"]).await, 1.0);
    assert_eq!(daemon.of_job("off", "microglia_job_skipped_total", &["missed"]).await, 1.0);
    daemon.stop().await;
    let run = &program.runs("missed").await[0];
    let late = time_of(run, "started_at") - time_of(run, "scheduled_for");
    assert!(late < TimeDelta::minutes(60), "the last of many: {run}");
    program.write("microglia.toml", &config);
    program.serve().await.stop().await;
    assert_eq!(program.ended("missed").await, ["catch-up succeeded"]);
    for job in ["too-old", "off", "changed", "disabled"] {
        assert_eq!(program.ended(job).await, Vec::<String>::new(), "{job}");
    }
}

#[tokio::test]
async fn an_interrupted_run_is_caught_up_only_once() {
    let fake = Fake::start();
    fake.fault(Fault::new("GET", PING, Trouble::Hang).always());
    let job = ping("hangs", &format!("mode = \"apply\"\n{}", hourly()));
    let program = Program::new(&fake.url(), TOKEN, &job);
    was_down(&program).await;
    for times in 1..=2 {
        let daemon = program.serve().await;
        until("the request", 20, async || fake.count("GET", PING) == times).await;
        daemon.kill().await;
    }
    fake.no_more_faults();
    let daemon = program.serve().await;
    assert_eq!(program.ended("hangs").await, ["catch-up interrupted", "catch-up interrupted"]);
    assert_eq!(daemon.of_job("hangs", "microglia_job_running", &[]).await, 0.0);
    let interrupted = ["mode=\"apply\"", "outcome=\"interrupted\""];
    assert_eq!(daemon.of_job("hangs", "microglia_job_runs_total", &interrupted).await, 1.0);
    assert_eq!(daemon.of_job("hangs", "microglia_job_consecutive_failures", &[]).await, 2.0);
    until_log(&daemon, "hangs: run 2 interrupted: microglia exited").await;
    daemon.stop().await;
    assert_eq!(program.runs("hangs").await.len(), 2);
}

#[tokio::test]
async fn a_request_that_must_not_be_repeated_is_not_caught_up_after_a_kill() {
    let fake = Fake::start();
    fake.fault(Fault::new("POST", PING, Trouble::Hang).always());
    let job = ping("once", &format!("mode = \"apply\"\n{}", hourly())).replace("GET", "POST");
    let program = Program::new(&fake.url(), TOKEN, &job);
    was_down(&program).await;
    let daemon = program.serve().await;
    until("the request", 20, async || fake.count("POST", PING) == 1).await;
    daemon.kill().await;
    let daemon = program.serve().await;
    until("the end of the record", 20, async || {
        program.ended("once").await == ["catch-up interrupted"]
    })
    .await;
    daemon.stop().await;
    assert_eq!((fake.count("POST", PING), program.runs("once").await.len()), (1, 1));
}

#[tokio::test]
async fn attempts_count_across_a_restart() {
    let fake = Fake::start();
    fake.fault(Fault::new("GET", PING, Trouble::Proxy(502)).always());
    let more = "mode = \"apply\"\ntime_limit = \"10h\"\nretries = { attempts = 2, first_delay = \"1h\", max_delay = \"1h\" }\nrepeatable = true";
    let program =
        Program::new(&fake.url(), TOKEN, &ping("flaky", &format!("{more}\n{}", hourly())));
    was_down(&program).await;
    let daemon = program.serve().await;
    until_log(&daemon, "(attempt 2 of 2)").await;
    assert_eq!(daemon.of_job("flaky", "microglia_job_waiting", &[]).await, 1.0);
    assert_eq!(daemon.of_job("flaky", "microglia_job_retries_total", &[]).await, 1.0);
    daemon.kill().await;
    let daemon = program.serve().await;
    until("the end", 20, async || program.ended("flaky").await.len() == 2).await;
    daemon.stop().await;
    let attempts: Vec<Value> =
        program.runs("flaky").await.iter().map(|run| run["attempts"].clone()).collect();
    assert_eq!(attempts, [1, 2]);
    assert_eq!(program.ended("flaky").await, ["catch-up interrupted", "catch-up failed"]);
}
