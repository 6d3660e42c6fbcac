//! `microglia jobs`: a table of the jobs.

use std::collections::HashMap;
use std::path::Path;

use chrono::SecondsFormat;
use serde::Serialize;

use super::table::{figures, local, table, text};
use super::{Ended, load, look, print, print_json};
use crate::clock::{Clock, Timestamp};
use crate::config::JobSpec;
use crate::report::{Mode, Report};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// As a JSON list.
    #[arg(long)]
    json: bool,
}

/// A job as it is listed.
#[derive(Debug, Serialize)]
pub struct Listed {
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

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Ended> {
    let clock = Clock::system();
    let config = load(path, &clock)?;
    let history = look(&config, &clock).await?;
    let mut last_runs = history
        .last_runs()
        .await
        .map_err(|error| super::unreadable(&config.daemon.state_dir, &error))?;
    if options.json {
        return print_json(&listed(&config.jobs, &mut last_runs, clock.now()));
    }
    let mut rows = table(&["JOB", "KIND", "HOMESERVER", "SCHEDULE", "MODE", "NEXT", "LAST RUN"]);
    for job in &config.jobs {
        let schedule = job.schedule.as_ref().map_or("by hand only", |schedule| schedule.as_str());
        let next = match upcoming(job, clock.now(), 1).first() {
            _ if !job.common.enabled => "disabled".to_owned(),
            Some(next) => local(*next, job.zone.0),
            None => "-".to_owned(),
        };
        let last = last_runs.get(&job.name).map_or_else(
            || "never".to_owned(),
            |run| {
                let outcome = run.outcome.map_or("running", crate::report::Outcome::as_str);
                let mode = if run.mode == Mode::DryRun { " (dry run)" } else { "" };
                format!("{} {outcome}{mode}: {}", local(run.started_at, job.zone.0), figures(run))
            },
        );
        rows.add_row([
            &job.name,
            job.job.kind().name,
            &job.homeserver,
            schedule,
            job.common.mode.as_str(),
            &next,
            &last,
        ]);
    }
    print(&text(&rows))
}

pub(super) fn listed(
    jobs: &[JobSpec],
    last_runs: &mut HashMap<String, Report>,
    now: Timestamp,
) -> Vec<Listed> {
    jobs.iter()
        .map(|job| Listed {
            name: job.name.clone(),
            kind: job.job.kind().name,
            homeserver: job.homeserver.clone(),
            schedule: job.schedule.as_ref().map(|schedule| schedule.as_str().to_owned()),
            timezone: job.zone.to_string(),
            mode: job.common.mode,
            enabled: job.common.enabled,
            next_runs: upcoming(job, now, 3)
                .into_iter()
                .map(|next| {
                    next.with_timezone(&job.zone.0).to_rfc3339_opts(SecondsFormat::Secs, true)
                })
                .collect(),
            last_run: last_runs.remove(&job.name),
        })
        .collect()
}

/// The next moments at which the job is due; none where it is disabled or only run by hand.
pub(super) fn upcoming(job: &JobSpec, now: Timestamp, count: usize) -> Vec<Timestamp> {
    let Some(schedule) = job.schedule.as_ref().filter(|_| job.common.enabled) else {
        return Vec::new();
    };
    std::iter::successors(schedule.next(now, job.zone), |last| {
        schedule.next(last.to_utc(), job.zone)
    })
    .map(|next| next.to_utc())
    .take(count)
    .collect()
}
