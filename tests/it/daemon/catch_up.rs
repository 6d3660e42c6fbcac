//! Missed occurrences that wait for their window: parts of the daemon, with a clock that the test sets.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use microglia::config::{Config, Environment};
use microglia::history::History;
use microglia::history::state_dir::StateDir;
use microglia::observe::metrics::Metrics;
use microglia::plan::report::{Event, Mode, Outcome};
use microglia::runner::{LostCallWait, Runner};
use microglia::scheduler::RunOverrides;
use microglia::scheduler::supervisor::Supervisor;
use microglia::values::clock::Clock;

use super::*;
use crate::fake::{Fault, TOKEN, Trouble};
use crate::program::until;

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

/// The daemon without its listeners, with a clock that the test sets and that continues from there.
pub(super) struct Begun<'f> {
    fake: &'f Fake,
    pub(super) supervisor: Arc<Supervisor>,
    history: History,
    clock: Clock,
    set_at: Arc<Mutex<(DateTime<Utc>, Instant)>>,
}

impl<'f> Begun<'f> {
    pub(super) async fn at(fake: &'f Fake, program: &Program, time: &str) -> Self {
        let time: DateTime<Utc> = time.parse().unwrap();
        fake.world(|world| world.clock_offset_seconds = (time - now()).num_seconds());
        let set_at = Arc::new(Mutex::new((time, Instant::now())));
        let reading = Arc::clone(&set_at);
        let clock = Clock::of(move || {
            let (time, since) = *reading.lock().unwrap();
            time + since.elapsed()
        });
        let dir = StateDir::open(&program.path("state")).unwrap();
        let history = History::open(program.place(), clock.clone()).await.unwrap_or_else(|error| {
            History::unavailable(Some(program.place()), clock.clone(), &error.to_string())
        });
        let metrics = Arc::new(Metrics::new(clock.now()).unwrap());
        let runner = Runner {
            history: history.clone(),
            dir: Some(dir.clone()),
            clock: clock.clone(),
            lost_call_wait: LostCallWait::default(),
        };
        let (supervisor, owner) = Supervisor::new(runner, metrics, clock.clone());
        tokio::spawn(owner.run());
        supervisor.start(&config(program, &clock)).await.unwrap();
        Self { fake, supervisor, history, clock, set_at }
    }

    async fn reload(&self, program: &Program) {
        self.supervisor.adopt(&config(program, &self.clock)).await.unwrap();
    }

    /// Does what the ticker does when it looks at this time.
    async fn tick_at(&self, time: &str) {
        let time: DateTime<Utc> = time.parse().unwrap();
        if time > self.clock.now() {
            self.fake.world(|world| world.clock_offset_seconds = (time - now()).num_seconds());
            *self.set_at.lock().unwrap() = (time, Instant::now());
        }
        let due = self.supervisor.agenda.lock().unwrap().pop_due(self.clock.now());
        if let Some(due) = due {
            self.supervisor.wakes()(due);
        }
        // Everything that was sent before has been processed when this returns.
        self.supervisor.status().await;
    }

    pub(super) fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.supervisor.metrics_text(self.clock.now()).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")) && line.contains(label))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap());
        line.unwrap_or(0.0)
    }

    fn waits(&self) -> bool {
        self.metric("microglia_job_waiting", "") == 1.0
    }

    /// Stops it as `kill` does: active runs are interrupted.
    async fn cut_off(self) {
        self.supervisor.drain(Duration::ZERO).await;
        self.history.close().await;
    }

    fn skipped(&self, reason: &str) -> f64 {
        self.metric("microglia_job_skipped_total", &format!("reason=\"{reason}\""))
    }

    pub(super) async fn stop(self) {
        let start = Instant::now();
        self.supervisor.drain(Duration::from_secs(5)).await;
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        self.history.close().await;
    }
}

fn config(program: &Program, clock: &Clock) -> Arc<Config> {
    let path = program.path("microglia.toml");
    Arc::new(Config::load(&path, &Environment::default(), clock.now()).unwrap())
}

/// A job of the night, and its homeserver.
fn nightly(more: &str) -> (Fake, Program) {
    let fake = Fake::start();
    let keys =
        format!("mode = \"apply\"\nschedule = \"30 3 * * *\"\nwindow = \"03:00-05:00\"\n{more}");
    let program = Program::new(&fake.url(), TOKEN, &ping("night", &keys));
    (fake, program)
}

#[tokio::test]
async fn a_missed_occurrence_waits_for_the_window_across_restarts_and_runs_when_it_opens() {
    let (fake, program) = nightly("");
    Begun::at(&fake, &program, "2026-11-22T12:00:00Z").await.stop().await;
    for time in ["2026-11-23T12:00:00Z", "2026-11-23T20:00:00Z"] {
        let begun = Begun::at(&fake, &program, time).await;
        begun.tick_at(time).await;
        assert!(begun.waits());
        begun.stop().await;
        assert_eq!((fake.count("GET", PING), program.runs("night").await.len()), (0, 0));
    }
    let begun = Begun::at(&fake, &program, "2026-11-24T02:59:57Z").await;
    begun.tick_at("2026-11-24T02:59:58Z").await;
    assert!(begun.waits());
    begun.tick_at("2026-11-24T03:00:00Z").await;
    until("the run", 10, async || !program.ended("night").await.is_empty()).await;
    assert!(!begun.waits());
    begun.stop().await;
    let run = &program.runs("night").await[0];
    assert_eq!(
        (&run["trigger"], &run["outcome"], &run["scheduled_for"]),
        (&"catch-up".into(), &"succeeded".into(), &"2026-11-23T03:30:00Z".into())
    );
    let late =
        time_of(run, "started_at") - "2026-11-24T03:00:00Z".parse::<DateTime<Utc>>().unwrap();
    assert!(late >= TimeDelta::zero() && late < TimeDelta::seconds(3), "{run}");
    // It is dealt with.
    let begun = Begun::at(&fake, &program, "2026-11-24T03:10:00Z").await;
    begun.tick_at("2026-11-24T03:10:00Z").await;
    begun.stop().await;
    assert_eq!((fake.count("GET", PING), program.runs("night").await.len()), (1, 1));
}

#[tokio::test]
async fn the_age_of_a_missed_occurrence_counts_up_to_the_start_of_the_daemon() {
    let (fake, program) = nightly("catch_up = \"6h\"");
    Begun::at(&fake, &program, "2026-11-22T12:00:00Z").await.stop().await;
    // Young enough now, and it may grow old while it waits.
    let begun = Begun::at(&fake, &program, "2026-11-23T08:00:00Z").await;
    until("it waits", 5, async || begun.waits()).await;
    begun.stop().await;
    let begun = Begun::at(&fake, &program, "2026-11-23T12:00:00Z").await;
    until("it is skipped", 5, async || begun.skipped("missed") == 1.0).await;
    assert!(!begun.waits());
    begun.stop().await;
    assert_eq!((fake.count("GET", PING), program.runs("night").await.len()), (0, 0));
}

#[tokio::test]
async fn an_occurrence_outside_the_window_does_not_make_a_restart_forget_the_missed_one() {
    let fake = Fake::start();
    let keys = "mode = \"apply\"\nschedule = \"0 */6 * * *\"\nwindow = \"00:00-07:00\"";
    let program = Program::new(&fake.url(), TOKEN, &ping("six", keys));
    Begun::at(&fake, &program, "2026-11-22T20:00:00Z").await.stop().await;
    let begun = Begun::at(&fake, &program, "2026-11-23T11:59:59Z").await;
    assert!(begun.waits());
    begun.tick_at("2026-11-23T12:00:00Z").await;
    assert_eq!((begun.skipped("window"), begun.skipped("overlap")), (1.0, 0.0));
    assert!(begun.waits());
    begun.stop().await;
    let begun = Begun::at(&fake, &program, "2026-11-23T23:59:58Z").await;
    until("it waits", 2, async || begun.waits()).await;
    begun.tick_at("2026-11-24T00:00:00Z").await;
    until("the run", 10, async || !program.ended("six").await.is_empty()).await;
    begun.stop().await;
    assert_eq!(program.ended("six").await, ["schedule succeeded"]);
    // An occurrence outside the window does not count as missed afterwards.
    let begun = Begun::at(&fake, &program, "2026-11-24T01:00:00Z").await;
    begun.tick_at("2026-11-24T01:00:00Z").await;
    begun.stop().await;
    assert_eq!((fake.count("GET", PING), program.runs("six").await.len()), (1, 1));
}

#[tokio::test]
async fn a_run_uses_the_configuration_of_the_time_at_which_it_starts() {
    for (from, to, runs) in [
        ("mode = \"apply\"", "mode = \"dry-run\"", 1),
        ("mode = \"apply\"", "mode = \"apply\"\nenabled = false", 0),
        ("30 3 * * *", "40 3 * * *", 0),
    ] {
        let (fake, program) = nightly("");
        Begun::at(&fake, &program, "2026-11-22T12:00:00Z").await.stop().await;
        let begun = Begun::at(&fake, &program, "2026-11-23T02:59:56Z").await;
        begun.stop().await;
        let begun = Begun::at(&fake, &program, "2026-11-24T02:59:56Z").await;
        until("it waits", 2, async || begun.waits()).await;
        edit(&program, from, to);
        begun.reload(&program).await;
        begun.tick_at("2026-11-24T03:00:02Z").await;
        until("the run", 10, async || program.ended("night").await.len() == runs).await;
        begun.stop().await;
        let ran = program.runs("night").await;
        assert_eq!((ran.len(), fake.count("GET", PING)), (runs, 0), "{to}: {ran:?}");
        assert!(ran.iter().all(|run| run["mode"] == "dry-run"), "{ran:?}");
    }
}

#[tokio::test]
async fn a_job_that_waits_to_be_caught_up_can_be_run_manually_and_its_waiting_run_cancelled() {
    let (fake, program) = nightly("");
    Begun::at(&fake, &program, "2026-11-22T12:00:00Z").await.stop().await;
    let begun = Begun::at(&fake, &program, "2026-11-23T12:00:00Z").await;
    until("it waits", 5, async || begun.waits()).await;
    let overrides = RunOverrides { mode: Some(Mode::DryRun), ..RunOverrides::default() };
    let mut events = begun.supervisor.run("night", overrides).await.unwrap();
    let mut received = Vec::new();
    while let Some(event) = events.recv().await {
        received.push(event);
    }
    assert!(
        matches!(received.last(), Some(Event::Ended(report)) if report.outcome == Some(Outcome::Succeeded)),
        "{received:?}"
    );
    assert!(begun.waits(), "a manual run does not replace it");
    begun.supervisor.cancel("night", "a test").await.unwrap();
    assert!(!begun.waits());
    let refused = begun.supervisor.cancel("night", "a test").await.unwrap_err();
    assert_eq!(refused.to_string(), "night is not running");
    begun.stop().await;
    // What was cancelled is not missed afterwards.
    let begun = Begun::at(&fake, &program, "2026-11-24T03:00:00Z").await;
    begun.tick_at("2026-11-24T03:00:01Z").await;
    begun.stop().await;
    assert_eq!(program.ended("night").await, ["manual succeeded"]);
    assert_eq!(fake.count("GET", PING), 0);
}

#[tokio::test]
async fn an_occurrence_due_when_the_window_opens_and_a_missed_one_are_one_run() {
    for (wakes, overlap) in [(1, "skip"), (1, "queue"), (2, "skip"), (2, "queue")] {
        let fake = Fake::start();
        fake.fault(Fault::new("GET", PING, Trouble::Delay(Duration::from_secs(1))).always());
        let keys = format!(
            "mode = \"apply\"\nschedule = \"0 3 * * *\"\nwindow = \"03:00-05:00\"\noverlap = \"{overlap}\""
        );
        let program = Program::new(&fake.url(), TOKEN, &ping("night", &keys));
        Begun::at(&fake, &program, "2026-11-22T12:00:00Z").await.stop().await;
        let begun = Begun::at(&fake, &program, "2026-11-24T02:59:58Z").await;
        assert!(begun.waits());
        for _ in 0..wakes {
            begun.tick_at("2026-11-24T03:00:00Z").await;
        }
        until("the end", 10, async || !program.ended("night").await.is_empty()).await;
        begun.tick_at("2026-11-24T03:00:10Z").await;
        begun.stop().await;
        assert_eq!(program.ended("night").await, ["schedule succeeded"], "{overlap}");
        assert_eq!(program.runs("night").await[0]["scheduled_for"], "2026-11-24T03:00:00Z");
        assert_eq!(fake.count("GET", PING), 1, "{overlap}");
    }
}

/// A job that is due every six hours at any time of the day, and its homeserver.
fn six_hourly(more: &str) -> (Fake, Program) {
    let fake = Fake::start();
    let keys = format!("mode = \"apply\"\nschedule = \"0 */6 * * *\"\n{more}");
    let program = Program::new(&fake.url(), TOKEN, &ping("six", &keys));
    (fake, program)
}

#[tokio::test]
async fn an_interrupted_run_is_caught_up_even_if_an_occurrence_was_skipped_during_it() {
    let (fake, program) = six_hourly("");
    fake.fault(Fault::new("GET", PING, Trouble::Hang));
    let begun = Begun::at(&fake, &program, "2026-11-23T05:59:59Z").await;
    begun.tick_at("2026-11-23T06:00:00Z").await;
    until("its request", 5, async || fake.count("GET", PING) == 1).await;
    begun.tick_at("2026-11-23T12:00:00Z").await;
    assert_eq!(begun.skipped("overlap"), 1.0);
    begun.cut_off().await;
    let begun = Begun::at(&fake, &program, "2026-11-23T12:30:00Z").await;
    until("it is caught up", 5, async || program.ended("six").await.len() == 2).await;
    begun.stop().await;
    assert_eq!(program.ended("six").await, ["schedule interrupted", "catch-up succeeded"]);
    assert_eq!(program.runs("six").await[1]["scheduled_for"], "2026-11-23T12:00:00Z");
}

#[tokio::test]
async fn a_fixed_time_is_not_run_again_when_the_clock_was_set_back_and_the_daemon_restarted() {
    let fake = Fake::start();
    let jobs = [
        ping("fixed", "mode = \"apply\"\nschedule = \"30 3 * * *\""),
        ping("often", "mode = \"apply\"\nschedule = \"*/10 * * * *\""),
    ];
    let program = Program::new(&fake.url(), TOKEN, &jobs.concat());
    let begun = Begun::at(&fake, &program, "2026-11-23T03:29:59Z").await;
    for job in ["fixed", "often"] {
        begun.tick_at("2026-11-23T03:30:00Z").await;
        until("the run", 5, async || program.ended(job).await.len() == 1).await;
    }
    begun.stop().await;
    let begun = Begun::at(&fake, &program, "2026-11-23T02:35:00Z").await;
    let next = |job: &str| begun.supervisor.agenda.lock().unwrap().time(job).unwrap().to_rfc3339();
    assert_eq!(next("fixed"), "2026-11-24T03:30:00+00:00");
    assert_eq!(next("often"), "2026-11-23T02:40:00+00:00");
    begun.stop().await;
}

#[tokio::test]
async fn an_occurrence_skipped_because_one_was_queued_does_not_count_as_missed() {
    let (fake, program) = six_hourly("overlap = \"queue\"");
    fake.fault(Fault::new("GET", PING, Trouble::Delay(Duration::from_secs(1))).times(2));
    let begun = Begun::at(&fake, &program, "2026-11-23T05:59:59Z").await;
    for occurrence in ["2026-11-23T06:00:00Z", "2026-11-23T12:00:00Z", "2026-11-23T18:00:00Z"] {
        begun.tick_at(occurrence).await;
    }
    assert_eq!(begun.skipped("overlap"), 1.0);
    until("both", 10, async || program.ended("six").await.len() == 2).await;
    begun.stop().await;
    let begun = Begun::at(&fake, &program, "2026-11-23T18:30:00Z").await;
    begun.tick_at("2026-11-23T18:30:00Z").await;
    begun.stop().await;
    assert_eq!(program.ended("six").await, ["schedule succeeded", "schedule succeeded"]);
}

#[tokio::test]
async fn a_run_that_must_not_repeat_its_request_is_caught_up_if_nothing_was_sent() {
    let fake = Fake::start();
    let post = |name: &str| {
        let keys = "mode = \"apply\"\nschedule = \"0 */6 * * *\"";
        ping(name, keys).replace("GET", "POST")
    };
    fake.fault(Fault::new("POST", PING, Trouble::Hang));
    let program = Program::new(&fake.url(), TOKEN, &[post("one"), post("two")].concat());
    let begun = Begun::at(&fake, &program, "2026-11-23T05:59:59Z").await;
    begun.tick_at("2026-11-23T06:00:00Z").await;
    until("its request", 5, async || fake.count("POST", PING) == 1).await;
    begun.tick_at("2026-11-23T06:00:00Z").await;
    let is_waiting = async |job: &str| {
        program.runs(job).await.first().is_some_and(|run| !run["waiting"].is_null())
    };
    until("the other one", 20, async || is_waiting("one").await || is_waiting("two").await).await;
    let (waits, sent) = if is_waiting("one").await { ("one", "two") } else { ("two", "one") };
    begun.cut_off().await;
    let begun = Begun::at(&fake, &program, "2026-11-23T06:30:00Z").await;
    until("it is caught up", 20, async || program.ended(waits).await.len() == 2).await;
    begun.stop().await;
    assert_eq!(program.runs(waits).await[1]["trigger"], "catch-up");
    assert_eq!(program.ended(sent).await, ["schedule interrupted"]);
    assert_eq!(fake.count("POST", PING), 2, "one of each");
}

#[tokio::test]
async fn a_run_in_progress_when_the_history_is_opened_is_not_run_again() {
    let fake = Fake::start();
    let keys = "mode = \"apply\"\nschedule = \"0 */6 * * *\"\nsplay = \"4s\"";
    let jobs: String = (0..40).map(|number| ping(&format!("job-{number}"), keys)).collect();
    let program = Program::new(&fake.url(), TOKEN, &jobs);
    let spec = {
        let fits = |splay: Duration| splay > Duration::from_secs(1) && splay.as_secs() < 3;
        let jobs = config(&program, &Clock::system()).jobs.clone();
        jobs.into_iter().find(|job| fits(job.splay())).expect("one of forty that fits")
    };
    let job = spec.name.as_str();
    Begun::at(&fake, &program, "2026-11-23T05:59:00Z").await.stop().await;
    let begun = Begun::at(&fake, &program, "2026-11-23T05:59:59Z").await;
    begun.tick_at("2026-11-23T06:00:00Z").await;
    // While it waits for its splay another file takes the history's place, as a backup would.
    let file = |name: &str| program.path("state").join(name);
    std::fs::copy(file("history.db"), file("copy.db")).unwrap();
    for gone in ["history.db-wal", "history.db-shm"] {
        std::fs::remove_file(file(gone)).unwrap();
    }
    std::fs::rename(file("copy.db"), file("history.db")).unwrap();
    begun.supervisor.open_history().await.unwrap();
    assert_eq!(program.ended(job).await, Vec::<String>::new());
    begun.tick_at("2026-11-23T06:00:04Z").await;
    until("the run", 60, async || program.ended(job).await.len() == 1).await;
    begun.tick_at("2026-11-23T06:00:10Z").await;
    begun.stop().await;
    assert_eq!(program.ended(job).await, ["schedule succeeded"]);
}

#[tokio::test]
async fn success_is_due_in_the_window_and_after_a_pause_even_when_the_daemon_was_restarted() {
    let (fake, program) = six_hourly("window = \"05:00-07:00\"\ntime_limit = \"2h\"");
    let due = |begun: &Begun<'_>| {
        let due = begun.metric("microglia_job_success_due_timestamp_seconds", "");
        #[expect(clippy::cast_possible_truncation, reason = "whole seconds")]
        DateTime::from_timestamp(due as i64, 0).unwrap().to_rfc3339()
    };
    let begun = Begun::at(&fake, &program, "2026-11-23T12:00:00Z").await;
    assert_eq!(due(&begun), "2026-11-25T08:00:00+00:00");
    begun.supervisor.pause(true).await.unwrap();
    begun.stop().await;
    let begun = Begun::at(&fake, &program, "2026-11-29T12:00:00Z").await;
    assert_eq!(due(&begun), "1970-01-01T00:00:00+00:00", "absent");
    begun.supervisor.pause(false).await.unwrap();
    begun.stop().await;
    let begun = Begun::at(&fake, &program, "2026-11-29T12:10:00Z").await;
    assert_eq!(due(&begun), "2026-12-01T08:00:00+00:00");
    begun.stop().await;
}

#[tokio::test]
async fn the_last_run_and_the_last_success_of_a_job_are_not_forgotten() {
    let (fake, program) = six_hourly("");
    let begun = Begun::at(&fake, &program, "2026-11-23T05:59:59Z").await;
    for (run, occurrence) in ["06:00", "12:00", "18:00"].iter().enumerate() {
        if run == 2 {
            fake.world(|world| world.tokens.remove(TOKEN));
        }
        begun.tick_at(&format!("2026-11-23T{occurrence}:00Z")).await;
        until("the run", 5, async || program.ended("six").await.len() == run + 1).await;
    }
    assert_eq!(begun.history.delete_runs_before(now() + TimeDelta::days(365)).await.unwrap(), 1);
    begun.stop().await;
    let left = ["schedule succeeded", "schedule failed"];
    assert_eq!(program.ended("six").await, left);
    let shown = program.json(&["runs", "show", "2", "--json"]).await;
    assert_eq!((&shown["done"], &shown["changes"]), (&1.into(), &Value::Array(vec![])));
    let begun = Begun::at(&fake, &program, "2026-11-23T18:30:00Z").await;
    assert!(begun.metric("microglia_job_last_success_timestamp_seconds", "") > 0.0);
    assert_eq!(begun.metric("microglia_job_consecutive_failures", ""), 1.0);
    begun.stop().await;
}

#[tokio::test]
async fn a_homeserver_that_hangs_delays_no_other_probe_and_is_probed_once_at_a_time() {
    let (quick, hangs) = (Fake::start(), Fake::start());
    hangs.fault(Fault::new("GET", WHOAMI, Trouble::Hang).always());
    let homeservers: String = [("quick", quick.url()), ("hangs", hangs.url())]
        .map(|(name, url)| {
            format!("[homeservers.{name}]\nurl = \"{url}\"\naccess_token_file = \"token\"\n")
        })
        .concat();
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n{homeservers}{}",
        ping("a", "homeserver = \"quick\"")
    ));
    program.write("token", TOKEN);
    let begun = Begun::at(&quick, &program, "2026-11-22T12:00:00Z").await;
    for times in 1..=3 {
        until("the quick one", 20, async || {
            let probed = quick.count("GET", "/_synapse/admin/v2/users/") >= times;
            if !probed {
                begun.supervisor.probe_all();
            }
            probed
        })
        .await;
    }
    assert_eq!(hangs.count("GET", WHOAMI), 1);
    begun.stop().await;
}
