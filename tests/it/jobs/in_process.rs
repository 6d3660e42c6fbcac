//! Jobs run through the library, for tests that would take minutes with the program.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use microglia::config::{Config, Environment};
use microglia::history::History;
use microglia::history::state_dir::StateDir;
use microglia::http::{Observer, Transport};
use microglia::mas::Connection;
use microglia::plan::report::{Event, Mode};
use microglia::runner::{HomeserverHandle, LostCallWait, RunParams, RunSlots, Runner, Stop};
use microglia::values::clock::Clock;
use serde_json::Value;

use crate::program::Program;

/// A second of standing still where the program waits for a minute.
pub const SOON: LostCallWait = LostCallWait {
    unchanged_for: Duration::from_secs(1),
    unobserved_for: Duration::from_secs(2),
    poll_interval: Duration::from_millis(50),
    external_ids_for: Duration::from_secs(2),
};

/// What a run did, and what it waited for.
pub struct Ran {
    pub report: Value,
    pub waited: Vec<String>,
}

/// Makes the changes of the program's job, in its state directory.
pub async fn apply(program: &Program, job: &str) -> Ran {
    run(program, job, Mode::Apply).await
}

/// Runs the program's job in its state directory, with the MAS of the homeserver `mas` where that is configured.
pub async fn run(program: &Program, job: &str, mode: Mode) -> Ran {
    let config = config(program);
    let settings = config.homeservers[&config.job(job).unwrap().homeserver].settings();
    run_over(Transport::new(settings, Arc::new(|_| {})).unwrap(), program, job, mode).await
}

/// As [`run`], over a connection of the test's own.
pub async fn run_over(transport: Transport, program: &Program, job: &str, mode: Mode) -> Ran {
    let (clock, config) = (Clock::system(), config(program));
    let spec = config.job(job).unwrap();
    let homeserver = &config.homeservers[&spec.homeserver];
    let handle = HomeserverHandle {
        transport: Arc::new(transport),
        mas: config.homeservers.get("mas").map(|homeserver| {
            let settings = homeserver.mas_settings(|_| None).unwrap();
            let observer: Observer = Arc::new(|_| {});
            Arc::new(Connection::new(settings, &observer, clock.clone()).unwrap())
        }),
        slots: RunSlots::Locks(homeserver.max_concurrent_runs),
        max_concurrent_requests: homeserver.max_concurrent_requests,
        yield_to: homeserver.yield_to.clone(),
    };
    let dir = StateDir::open(&config.daemon.state_dir).unwrap();
    let history = History::open(program.place(), clock.clone()).await.unwrap();
    let runner = Runner { history: history.clone(), dir: Some(dir), clock, lost_call_wait: SOON };
    let params = RunParams { mode, ..RunParams::manual(spec) };
    let waited = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&waited);
    let observe = Arc::new(move |event: Event| {
        if let Event::Waiting(why) = event {
            events.lock().unwrap().push(why);
        }
    });
    let report =
        Box::pin(runner.run(spec, &handle, &params, &Stop::default(), observe)).await.unwrap();
    history.close().await;
    let waited = waited.lock().unwrap().clone();
    Ran { report: serde_json::to_value(report).unwrap(), waited }
}

fn config(program: &Program) -> Config {
    let path = program.path("microglia.toml");
    Config::load(&path, &Environment::default(), Clock::system().now())
        .unwrap_or_else(|error| panic!("{error}"))
}
