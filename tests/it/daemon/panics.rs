//! A bug in a kind: its run ends as panicked, and the job is run again when it is due.

use std::sync::{Arc, PoisonError};

use microglia::config::{Config, Environment};
use microglia::history::History;
use microglia::history::state_dir::StateDir;
use microglia::jobs::job::{Context, Job, Needs, PlanError, Undo};
use microglia::observe::metrics::Metrics;
use microglia::plan::report::Action;
use microglia::runner::{LostCallWait, Runner};
use microglia::scheduler::supervisor::Supervisor;
use microglia::scheduler::ticker::Ticker;
use microglia::synapse::Version;
use microglia::values::clock::{Clock, Timestamp};
use microglia::values::schema::{ConfigError, Key, Table};

use super::ping;
use crate::fake::TOKEN;
use crate::program::{Program, until};

#[derive(Debug)]
struct Panics;

impl Job for Panics {
    const KIND: &'static str = "panics";
    const ABOUT: &'static str = "Panics.";
    const KEYS: &'static [Key] = &[];
    const ACTION: Action = Action::Request;
    const UNDO: Undo = Undo::Impossible("it changes nothing");
    const NEEDS: Needs = Needs {
        synapse: Version(0, 0),
        clock: false,
        without_mas_client: None,
        plans_offline: true,
        media: false,
    };

    fn read(_: &Table<'_, '_>, _: Timestamp, _: &mut Vec<ConfigError>) -> Option<Self> {
        None
    }

    async fn plan(
        &self,
        _: &Context<'_>,
        _: &mut microglia::plan::change::Plan,
    ) -> Result<(), PlanError> {
        std::panic::panic_any("it is a test")
    }
}

/// No kind panics that we know of, so that this one is put where the program's own would be.
#[tokio::test]
async fn a_panic_ends_the_run_and_the_job_stays_scheduled() {
    let program =
        Program::new("http://127.0.0.1:9", TOKEN, &ping("a", "schedule = \"* * * * * *\""));
    let (clock, path) = (Clock::system(), program.path("microglia.toml"));
    let mut config = Config::load(&path, &Environment::default(), clock.now()).unwrap();
    config.jobs[0].job = Arc::new(Panics);
    let dir = StateDir::open(&config.daemon.state_dir).unwrap();
    let history = History::open(program.place(), clock.clone()).await.unwrap();
    let metrics = Arc::new(Metrics::new(clock.now()).unwrap());
    let runner = Runner {
        history: history.clone(),
        dir: Some(dir),
        clock: clock.clone(),
        lost_call_wait: LostCallWait::default(),
    };
    let (supervisor, owner) = Supervisor::new(runner, Arc::clone(&metrics), clock.clone());
    let owner = tokio::spawn(owner.run());
    supervisor.adopt(&Arc::new(config)).await.unwrap();
    let mut ticker =
        Ticker::start(Arc::clone(&supervisor.agenda), clock, supervisor.wakes()).await.unwrap();
    until("two runs", 20, async || program.ended("a").await.len() >= 2).await;
    ticker.stop().await;
    assert!(!owner.is_finished());
    assert!(supervisor.agenda.lock().unwrap_or_else(PoisonError::into_inner).time("a").is_some());
    for run in program.runs("a").await.iter().take(2) {
        assert_eq!(run["outcome"], "panicked");
        assert_eq!(run["message"], "a bug in microglia, please report it: it is a test");
    }
    let text = supervisor.metrics_text(Clock::system().now()).unwrap();
    let counted = |outcome: &str| {
        let labels = format!("mode=\"dry-run\",outcome=\"{outcome}\"}} ");
        let line = text
            .lines()
            .find(|line| line.starts_with("microglia_job_runs_total{") && line.contains(&labels));
        line.map(|line| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap())
    };
    assert!(counted("panicked") >= Some(2), "{text}");
    assert_eq!(counted("succeeded"), Some(0), "{text}");
}
