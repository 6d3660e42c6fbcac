//! The list of jobs, for the command line and for HTTP.

use std::collections::HashMap;
use std::hash::BuildHasher;

use chrono::SecondsFormat;
use serde::Serialize;

use crate::config::JobSpec;
use crate::plan::report::{Mode, Report};
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
    pub last_run: Option<Report>,
}

/// The jobs as `jobs --json` prints them.
pub fn job_list<'a>(
    jobs: impl Iterator<Item = &'a JobSpec>,
    mut last_runs: HashMap<String, Report, impl BuildHasher>,
    now: Timestamp,
) -> Vec<ListedJob> {
    jobs.map(|job| ListedJob {
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
