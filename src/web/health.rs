//! Health and readiness.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::history::History;
use crate::observe::metrics::{HomeserverState, Metrics};
use crate::scheduler::ticker::Ticker;

/// Checks the ticker, the history, and what is known of the homeservers.
pub(crate) struct Health {
    pub(super) ticker: Arc<Ticker>,
    history: History,
    metrics: Arc<Metrics>,
    last_write: Mutex<Option<Write>>,
}

/// An attempt to write the history.
struct Write {
    began: Instant,
    problem: Option<String>,
}

/// What is checked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Probe {
    /// The process and its ticker are alive.
    Health,
    /// Runs can start and be recorded.
    Readiness,
}

/// A history on a disk that hangs must not keep a probe waiting.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);

impl Health {
    pub(crate) fn new(ticker: Arc<Ticker>, history: History, metrics: Arc<Metrics>) -> Self {
        Self { ticker, history, metrics, last_write: Mutex::default() }
    }

    /// Returns the text of the response, as an error where the check failed.
    pub(super) async fn check(&self, probe: Probe) -> Result<String, String> {
        self.ticks()?;
        match probe {
            Probe::Health => Ok("ok\n".to_owned()),
            Probe::Readiness => {
                let homeservers = self.homeservers();
                match self.history_problem().await {
                    None => Ok(format!("ready\n{homeservers}")),
                    Some(problem) => Err(format!(
                        "the history cannot be written: runs in apply mode are refused: {problem}\n{homeservers}"
                    )),
                }
            }
        }
    }

    fn ticks(&self) -> Result<(), String> {
        let ticked = self.ticker.alive();
        ticked
            .map(drop)
            .map_err(|ago| format!("the ticker has not ticked for {} s\n", ago.as_secs()))
    }

    /// Writes to the history once for all probes that wait: none must wait for the writes of many others.
    async fn history_problem(&self) -> Option<String> {
        let requested = Instant::now();
        let mut last = self.last_write.lock().await;
        if let Some(write) = last.as_ref().filter(|write| write.began >= requested) {
            return write.problem.clone();
        }
        let began = Instant::now();
        let problem =
            match tokio::time::timeout(HISTORY_TIMEOUT, self.history.check_writable()).await {
                Ok(written) => written.err().map(|error| error.to_string()),
                Err(_) => Some(format!("no write within {} s", HISTORY_TIMEOUT.as_secs())),
            };
        *last = Some(Write { began, problem: problem.clone() });
        problem
    }

    /// One line per homeserver. None of them affects readiness: restarting the daemon repairs no homeserver.
    fn homeservers(&self) -> String {
        let line = |(name, state)| format!("homeserver {name}: {}\n", describe(state));
        self.metrics.homeservers.states().into_iter().map(line).collect()
    }
}

fn describe(state: HomeserverState) -> &'static str {
    match (state.up, state.token_valid) {
        (None, _) => "not checked yet",
        (Some(false), _) => "down",
        (Some(true), None) => "up, token not checked yet",
        (Some(true), Some(true)) => "up, token valid",
        (Some(true), Some(false)) => "up, token rejected",
    }
}
