//! The list of jobs, for the command line and for HTTP.

use std::collections::HashMap;
use std::hash::BuildHasher;

use chrono::SecondsFormat;
use serde::{Deserialize, Serialize};

use super::job_state::{Wait, WaitFor};
use crate::config::JobSpec;
use crate::history::Replicas;
use crate::plan::report::{Mode, Report, Waiting};
use crate::values::clock::Timestamp;

/// A job in the list.
#[derive(Debug, Serialize)]
pub struct ListedJob {
    pub name: String,
    pub kind: &'static str,
    pub homeserver: String,
    pub schedule: Option<String>,
    pub timezone: String,
    pub mode: Mode,
    pub enabled: bool,
    /// With the offset of the job's time zone.
    pub next_runs: Vec<String>,
    pub waiting: Option<ListedWait>,
    pub last_run: Option<Report>,
    /// The daemon that runs the job, where several may share the history; `None` while none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// The names of the daemons that share the history, those with the same configuration together, if they differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub different_configurations: Vec<Vec<String>>,
}

/// What the next run of a job, or the one under way, is waiting for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedWait {
    #[serde(flatten)]
    pub waiting: Waiting,
    /// `None` where nobody knows.
    pub until: Option<Timestamp>,
}

impl From<Wait> for ListedWait {
    fn from(wait: Wait) -> Self {
        let (what, until) = match wait.what {
            WaitFor::Splay { until } => ("its splay", Some(until)),
            WaitFor::Window { opens } => ("its window", Some(opens)),
            WaitFor::RunUnderWay => ("the run under way to end", None),
        };
        Self { waiting: Waiting { what: what.to_owned(), since: wait.occurrence }, until }
    }
}

/// The daemons that share the history, and the addresses of the homeservers by name.
pub type Sharing = (Replicas, HashMap<String, String>);

/// The jobs as `jobs --json` prints them; `waits` is what the scheduler knows of runs that were not started yet.
pub fn job_list<'a>(
    jobs: impl Iterator<Item = &'a JobSpec>,
    mut last_runs: HashMap<String, Report, impl BuildHasher>,
    mut waits: HashMap<String, ListedWait, impl BuildHasher>,
    (replicas, addresses): &Sharing,
    now: Timestamp,
) -> Vec<ListedJob> {
    let different_configurations = replicas.by_configuration();
    jobs.map(|job| ListedJob {
        replica: addresses
            .get(&job.homeserver)
            .and_then(|address| replicas.holders.get(address).cloned()),
        different_configurations: different_configurations.clone(),
        waiting: last_runs
            .get(&job.name)
            .and_then(|run| run.waiting.clone())
            .map(|waiting| ListedWait { waiting, until: None })
            .or_else(|| waits.remove(&job.name)),
        name: job.name.clone(),
        kind: job.job.kind().name,
        homeserver: job.homeserver.clone(),
        schedule: job.schedule.as_ref().map(|schedule| schedule.as_str().to_owned()),
        timezone: job.zone.to_string(),
        mode: job.common.mode,
        enabled: job.common.enabled,
        next_runs: upcoming(job, now, 3)
            .into_iter()
            .map(|next| next.with_timezone(&job.zone.0).to_rfc3339_opts(SecondsFormat::Secs, true))
            .collect(),
        last_run: last_runs.remove(&job.name),
    })
    .collect()
}

/// The next occurrences at which the job can run; none if it is disabled or manual only.
pub fn upcoming(job: &JobSpec, now: Timestamp, count: usize) -> Vec<Timestamp> {
    let Some(schedule) = job.schedule.as_ref().filter(|_| job.common.enabled) else {
        return Vec::new();
    };
    match job.common.window {
        Some(_) => {
            std::iter::successors(job.next(now), |last| job.next(*last)).take(count).collect()
        }
        None => schedule.after(now, job.zone).map(|next| next.to_utc()).take(count).collect(),
    }
}
