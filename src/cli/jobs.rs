//! `microglia jobs`: a table of the jobs.

use std::collections::HashMap;
use std::path::Path;

use super::client::Client;
use super::context::load_without_secrets;
use super::failure::Failure;
use super::output::{print, print_json};
use super::recorded::{current, open_history, unreadable};
use super::table::{format_counts, format_local, format_wait, new_table, status, table_text};
use crate::config::Config;
use crate::plan::report::{Mode, Report};
use crate::scheduler::job_list::{job_list, upcoming};
use crate::values::clock::{Clock, Timestamp};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Print a JSON list.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Failure> {
    let clock = Clock::system();
    let config = load_without_secrets(path, &clock).await?;
    let dir = &config.daemon.state_dir;
    let history = open_history(&config).await?;
    let mut last_runs = history.last_runs().await.map_err(|error| unreadable(dir, &error))?;
    for run in last_runs.values_mut() {
        *run = current(&history, dir, run.clone()).await?;
    }
    if options.json {
        return print_json(&job_list(config.jobs.iter(), last_runs, clock.now()));
    }
    let mut text = job_table(&config, &last_runs, clock.now());
    let pause = history.pause().await.map_err(|error| unreadable(dir, &error))?;
    if pause.paused {
        text.push_str("\npaused: nothing runs on schedule until `microglia resume`\n");
    }
    if let Ok(None) = Client::connect(dir).await {
        text.push_str(&format!(
            "\nno daemon runs on {}: nothing runs on schedule until `microglia serve`\n",
            dir.display()
        ));
    }
    print(&text)
}

fn job_table(config: &Config, last_runs: &HashMap<String, Report>, now: Timestamp) -> String {
    // One zone for the whole table, to make its rows comparable; each time names it.
    let zone = config.daemon.timezone.0;
    let mut rows =
        new_table(&["JOB", "KIND", "HOMESERVER", "SCHEDULE", "MODE", "NEXT", "LAST RUN"]);
    for job in &config.jobs {
        let schedule = job.schedule.as_ref().map_or("by hand only", |schedule| schedule.as_str());
        let next = match upcoming(job, now, 1).first() {
            _ if !job.common.enabled => "disabled".to_owned(),
            Some(next) => format_local(*next, zone),
            None => "-".to_owned(),
        };
        let last = last_runs.get(&job.name).map_or_else(
            || "never".to_owned(),
            |run| {
                let mode = if run.mode == Mode::DryRun { " (dry run)" } else { "" };
                let wait = run.waiting.as_ref();
                let wait = wait.map(|wait| format!(" {}", format_wait(wait, zone)));
                format!(
                    "{} {}{mode}{}: {}",
                    format_local(run.started_at, zone),
                    status(run),
                    wait.unwrap_or_default(),
                    format_counts(run)
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
    table_text(&rows)
}
