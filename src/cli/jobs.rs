//! `microglia jobs`: a table of the jobs.

use std::path::Path;

use super::table::{figures, local, standing, table, text, waits};
use super::{Ended, load_without_secrets, look, print, print_json, seen_now};
use crate::plan::report::Mode;
use crate::scheduler::job_list::{job_list, upcoming};
use crate::values::clock::Clock;
use crate::web::control::Connection;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// As a JSON list.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Ended> {
    let clock = Clock::system();
    let config = load_without_secrets(path, &clock).await?;
    let history = look(&config, &clock).await?;
    let mut last_runs = history
        .last_runs()
        .await
        .map_err(|error| super::unreadable(&config.daemon.state_dir, &error))?;
    for run in last_runs.values_mut() {
        *run = seen_now(&history, &config.daemon.state_dir, run.clone()).await?;
    }
    if options.json {
        return print_json(&job_list(&config.jobs, last_runs, clock.now()));
    }
    // One zone for the whole table, so that its rows compare; each time names it.
    let zone = config.daemon.timezone.0;
    let mut rows = table(&["JOB", "KIND", "HOMESERVER", "SCHEDULE", "MODE", "NEXT", "LAST RUN"]);
    for job in &config.jobs {
        let schedule = job.schedule.as_ref().map_or("by hand only", |schedule| schedule.as_str());
        let next = match upcoming(job, clock.now(), 1).first() {
            _ if !job.common.enabled => "disabled".to_owned(),
            Some(next) => local(*next, zone),
            None => "-".to_owned(),
        };
        let last = last_runs.get(&job.name).map_or_else(
            || "never".to_owned(),
            |run| {
                let mode = if run.mode == Mode::DryRun { " (dry run)" } else { "" };
                let waits = run
                    .waiting
                    .as_ref()
                    .map(|waiting| format!(" {}", waits(waiting, zone)))
                    .unwrap_or_default();
                format!(
                    "{} {}{mode}{waits}: {}",
                    local(run.started_at, zone),
                    standing(run),
                    figures(run)
                )
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
    let mut shown = text(&rows);
    let pause = history
        .pause(None)
        .await
        .map_err(|error| super::unreadable(&config.daemon.state_dir, &error))?;
    if pause.paused {
        shown.push_str("\npaused: nothing runs on schedule until `microglia resume`\n");
    }
    if let Ok(None) = Connection::open(&config.daemon.state_dir).await {
        let dir = config.daemon.state_dir.display();
        shown.push_str(&format!(
            "\nno daemon runs on {dir}: nothing runs on schedule until `microglia serve`\n"
        ));
    }
    print(&shown)
}
