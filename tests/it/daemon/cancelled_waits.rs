//! A change that only waits is dropped at once, because nothing was sent. One that was sent is waited for.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use microglia::config::{Config, Environment};
use microglia::history::History;
use microglia::history::state_dir::StateDir;
use microglia::http::Transport;
use microglia::plan::report::{Event, Outcome};
use microglia::runner::{HomeserverHandle, LostCallWait, RunParams, RunSlots, Runner, Stop};
use microglia::synapse::Reader;
use microglia::values::clock::Clock;

use super::*;
use crate::fake::{Fault, TOKEN, Trouble};
use crate::program::{changes, figures, until};

const ACCOUNT: &str = "/_synapse/admin/v2/users/";
/// What `Reader::version` asks for.
const VERSION: &str = "/_synapse/admin/v1/server_version";

/// A wait that must be dropped; [`GIVEN_UP`] shows whether it was.
const LONG: Trouble = Trouble::Limited { retry_after_ms: Some(50_000), retry_after_header: None };
/// What took less than this did not sit out [`LONG`], however slow the machine.
const GIVEN_UP: Duration = Duration::from_secs(45);

/// A homeserver whose accounts all have an id that is to be removed.
fn with_ids(users: usize) -> Fake {
    let mut world = World::new();
    world.users(users, |number| User::default().external("saml", &format!("s{number}")));
    Fake::of(world)
}

fn removal(more: &str) -> String {
    format!(
        "[jobs.ids]\nkind = \"remove-external-ids\"\nmode = \"apply\"\nproviders = [\"saml\"]\naccounts = \"all\"\n{more}\n"
    )
}

#[tokio::test]
async fn a_cancelled_run_drops_waiting_changes_and_waits_for_sent_ones() {
    let fake = with_ids(2);
    // The first account's response takes two seconds; the second one is never sent.
    fake.fault(Fault::new("PUT", &format!("{ACCOUNT}@user000001"), LONG).always());
    let slow = Trouble::Delay(Duration::from_secs(2));
    fake.fault(Fault::new("PUT", &format!("{ACCOUNT}@user000000"), slow).after(1));
    let program = Program::new(&fake.url(), TOKEN, &removal(""));
    let daemon = program.serve().await;
    let caller = program.command(&["run", "ids", "--json"]).spawn().unwrap();
    until("both requests", 20, async || fake.count("PUT", ACCOUNT) == 3).await;
    let start = Instant::now();
    assert_eq!(program.run(&["cancel", "ids"]).await.code, 0);
    let ended = caller.wait_with_output().await.unwrap();
    let took = start.elapsed();
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert!(took < GIVEN_UP, "{took:?}");
    assert_eq!(figures(&report), "cancelled: 2/1/0/0/1");
    assert_eq!(
        changes(&report),
        [
            "done @user000000:fake.test -> saml:s0 (1)",
            "planned @user000001:fake.test -> saml:s1 (1): not attempted: the run was cancelled"
        ]
    );
    let message = report["message"].as_str().unwrap();
    assert!(message.starts_with("cancelled by "), "{message}");
    assert!(message.contains(" between two changes; 1 of 2 changes made; "), "{message}");
    let owner = std::fs::metadata(program.path("token")).unwrap();
    let uid = format!("uid {}", std::os::unix::fs::MetadataExt::uid(&owner));
    assert!(message.contains(&uid), "{message}");
    assert!(daemon.log().contains("ids: run cancelled by "), "{}", daemon.log());
    assert_eq!(fake.count("PUT", ACCOUNT), 3, "nothing more was sent");
    daemon.stop().await;
}

#[tokio::test]
async fn the_time_limit_ends_waiting_changes() {
    let fake = with_lobby(3);
    fake.fault(Fault::new("POST", JOIN, LONG).after(1).always());
    let more = "time_limit = \"8s\"";
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 20, more));
    let start = Instant::now();
    let report = program.apply("lobby").await;
    assert!(start.elapsed() < GIVEN_UP, "{:?}", start.elapsed());
    assert_eq!(figures(&report), "timed-out: 3/1/0/0/2");
    assert_eq!(
        report["message"],
        "the time limit of 8s was reached; 2 of 4 accounts read; the next run continues"
    );
    assert_eq!((joined(&fake), fake.count("POST", JOIN)), (1, 2));
}

#[tokio::test]
async fn a_media_purge_that_only_waits_is_not_lost_at_the_time_limit() {
    let fake = Fake::start();
    fake.world(|world| {
        world.user("@a:fake.test");
        world.media("@a:fake.test", "file", 100, 1_600_000_000_000, None).bytes = Some(100);
    });
    fake.fault(Fault::new("POST", "/_synapse/admin/v1/media/delete", LONG));
    let purge = "[jobs.purge]\nkind = \"purge-local-media\"\nmode = \"apply\"\nolder_than = \"90d\"\ntime_limit = \"8s\"\n";
    let program = Program::new(&fake.url(), TOKEN, purge);
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "timed-out: 1/0/0/0/1");
    // The next one need not wait until the statistics stop changing.
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 1/1/0/0/0");
}

#[tokio::test]
async fn a_stop_ends_waiting_changes_and_the_next_start_makes_them() {
    let fake = with_lobby(3);
    fake.fault(Fault::new("POST", JOIN, LONG).after(1).always());
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 20, &hourly()));
    was_down(&program).await;
    let daemon = program.serve().await;
    until("a join that waits", 20, async || fake.count("POST", JOIN) == 2).await;
    let start = Instant::now();
    daemon.stop().await;
    assert!(start.elapsed() < GIVEN_UP, "{:?}", start.elapsed());
    assert_eq!(figures(&program.runs("lobby").await[0]), "interrupted: 3/1/0/0/2");
    fake.no_more_faults();
    let daemon = program.serve().await;
    until("the rest", 20, async || program.ended("lobby").await.len() == 2).await;
    daemon.stop().await;
    assert_eq!(program.ended("lobby").await[1], "catch-up succeeded");
    assert_eq!((joined(&fake), fake.count("POST", JOIN)), (3, 4), "nobody was joined twice");
}

/// The program's job run by the library, at a clock and a rate of the test's own.
async fn run_at(
    program: &Program,
    clock: Clock,
    stop: &Stop,
    more: impl Fn(&Event, &Arc<Transport>) + Send + Sync + 'static,
) -> Value {
    let config =
        Config::load(&program.path("microglia.toml"), &Environment::default(), clock.now())
            .unwrap();
    let homeserver = &config.homeservers["main"];
    let transport = Arc::new(Transport::new(homeserver.settings(), Arc::new(|_| {})).unwrap());
    let handle = HomeserverHandle {
        transport: Arc::clone(&transport),
        mas: None,
        slots: RunSlots::Locks(1),
        max_concurrent_requests: homeserver.max_concurrent_requests,
        yield_to: homeserver.yield_to.clone(),
    };
    let dir = StateDir::open(&program.path("state")).unwrap();
    let history = History::open(program.place(), clock.clone()).await.unwrap();
    let runner = Runner { history, dir: Some(dir), clock, lost_call_wait: LostCallWait::default() };
    let spec = &config.jobs[0];
    let observe = Arc::new(move |event: Event| more(&event, &transport));
    let params = RunParams::manual(spec);
    let report = Box::pin(runner.run(spec, &handle, &params, stop, observe)).await.unwrap();
    serde_json::to_value(report).unwrap()
}

/// A clock that stops until the test sets it.
#[derive(Clone)]
struct StoppedClock(Arc<Mutex<DateTime<Utc>>>);

impl StoppedClock {
    fn at(time: &str) -> Self {
        Self(Arc::new(Mutex::new(time.parse().unwrap())))
    }

    fn set(&self, time: &str) {
        *self.0.lock().unwrap() = time.parse().unwrap();
    }

    fn clock(&self) -> Clock {
        let time = Arc::clone(&self.0);
        Clock::of(move || *time.lock().unwrap())
    }
}

#[tokio::test]
async fn the_end_of_the_window_ends_a_wait_for_a_change_a_retry_or_the_plan() {
    let window = "window = \"01:00-06:00\"";
    let cases = [
        ("PUT", ACCOUNT, LONG, "succeeded: 2/0/0/0/2"),
        ("GET", "/_synapse/admin/v2/users", LONG, "failed: null/0/0/0/null"),
        (
            "PUT",
            ACCOUNT,
            Trouble::Limited { retry_after_ms: Some(100_000), retry_after_header: None },
            "failed: 2/0/0/0/2",
        ),
    ];
    for (method, path, trouble, expected) in cases {
        let fake = with_ids(2);
        fake.fault(Fault::new(method, path, trouble.clone()).always());
        let program = Program::new(&fake.url(), TOKEN, &removal(window));
        let (clock, start) = (StoppedClock::at("2026-11-23T05:59:00Z"), Instant::now());
        let (stop, at_retry) = (Stop::default(), clock.clone());
        let run = run_at(&program, clock.clock(), &stop, move |event, _| {
            if let Event::Retrying { .. } = event {
                at_retry.set("2026-11-23T06:00:00Z");
            }
        });
        let end_window = async {
            until("the request that has to wait", 60, async || fake.count(method, path) > 0).await;
            // A wait for a retry begins after the response, which the event reports.
            if !matches!(trouble, Trouble::Limited { retry_after_ms: Some(100_000), .. }) {
                clock.set("2026-11-23T06:00:00Z");
            }
        };
        let (report, ()) = tokio::join!(run, end_window);
        assert!(start.elapsed() < GIVEN_UP, "{:?}: {report}", start.elapsed());
        assert_eq!(figures(&report), expected, "{report}");
        assert!(report["message"].as_str().unwrap().contains("window"), "{report}");
    }
}

#[tokio::test]
async fn a_cancelled_run_waits_neither_for_the_rate_limit_nor_for_a_free_request() {
    for places in ["max_concurrent_requests = 1", "max_concurrent_requests = 60"] {
        let fake = Fake::start();
        let program = Program::new(&fake.url(), TOKEN, &ping("a", "mode = \"apply\""));
        let rate = format!("max_requests_per_second = 5\n{places}");
        edit(&program, "max_requests_per_second = \"unlimited\"", &rate);
        let (stop, others) = (Stop::default(), Mutex::new(Vec::new()));
        // Others take every turn of the next minute before the run's only change.
        let run = run_at(&program, Clock::system(), &stop, move |event, transport| {
            if let Event::Planned { .. } = event {
                for _ in 0..300 {
                    let reader = Reader::new(Arc::clone(transport), Clock::system());
                    others
                        .lock()
                        .unwrap()
                        .push(tokio::spawn(async move { reader.version().await }));
                }
            }
        });
        let cancel = async {
            until("the other requests", 60, async || fake.count("GET", VERSION) >= 10).await;
            stop.at_boundary(Outcome::Cancelled);
            Instant::now()
        };
        let (report, cancelled) = tokio::join!(run, cancel);
        let took = cancelled.elapsed();
        assert!(took < Duration::from_secs(30), "{places}: {took:?}");
        assert_eq!(figures(&report), "cancelled: 1/0/0/0/1", "{places}");
        assert_eq!(fake.count("GET", PING), 0);
    }
}
