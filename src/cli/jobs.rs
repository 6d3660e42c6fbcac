//! `microglia jobs`: a table of the jobs.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use chrono_tz::Tz;
use serde::Deserialize;

use super::client::Client;
use super::context::{find_homeserver, load_without_secrets};
use super::failure::Failure;
use super::output::{print, print_json};
use super::recorded::{current, open_history, unreadable};
use super::table::{format_counts, format_local, format_wait, new_table, status, table_text};
use crate::config::Config;
use crate::plan::report::{Mode, Report};
use crate::plan::round::Round;
use crate::scheduler::job_list::{ListedWait, job_list, upcoming};
use crate::values::clock::{Clock, Timestamp};
use crate::values::escape::line;
use crate::values::text::format_number;

/// How long the daemon may take to say what runs are waiting for: all else is known without it.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Print a JSON list.
    #[arg(long)]
    json: bool,
    /// Only jobs on this homeserver.
    #[arg(long, value_name = "NAME")]
    homeserver: Option<String>,
}

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Failure> {
    let clock = Clock::system();
    let mut config = load_without_secrets(path, &clock).await?;
    if let Some(homeserver) = &options.homeserver {
        find_homeserver(&config, homeserver)?;
        config.jobs.retain(|job| job.homeserver == *homeserver);
    }
    let dir = &config.daemon.state_dir;
    let history = open_history(&config).await?;
    let mut last_runs = history.last_runs().await.map_err(|error| unreadable(dir, &error))?;
    last_runs.retain(|job, _| config.job(job).is_some());
    for run in last_runs.values_mut() {
        *run = current(&history, dir, run.clone()).await?;
    }
    let daemon = Client::connect(dir).await;
    let no_daemon = matches!(daemon, Ok(None));
    let waits = match daemon {
        Ok(Some(daemon)) => waits(daemon).await,
        Ok(None) | Err(_) => HashMap::new(),
    };
    if options.json {
        return print_json(&job_list(config.jobs.iter(), last_runs, waits, clock.now()));
    }
    let mut text = job_table(&config, &last_runs, &waits, clock.now());
    let pause = history.pause().await.map_err(|error| unreadable(dir, &error))?;
    if pause.paused {
        text.push_str("\npaused: nothing runs on schedule until `microglia resume`\n");
    }
    if no_daemon {
        text.push_str(&format!(
            "\nno daemon is running on {}: nothing runs on schedule until `microglia serve`\n",
            dir.display()
        ));
    }
    print(&text)
}

/// What the runs that the daemon has not started yet are waiting for, by job; nothing where it does not say so in time.
async fn waits(daemon: Client) -> HashMap<String, ListedWait> {
    #[derive(Deserialize)]
    struct Job {
        name: String,
        #[serde(default)]
        waiting: Option<ListedWait>,
    }
    let asked = async { daemon.get(&["api", "v1", "jobs"]).await?.json::<Vec<Job>>() };
    let jobs = match tokio::time::timeout(DAEMON_TIMEOUT, asked).await {
        Ok(Ok(jobs)) => jobs,
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    jobs.into_iter().filter_map(|job| Some((job.name, job.waiting?))).collect()
}

/// How far a round has come, for a run that did not complete it.
fn format_progress(round: Round) -> String {
    match round.finished_at {
        Some(_) => String::new(),
        None => {
            format!("; {} of {} read", format_number(round.read), format_number(round.total))
        }
    }
}

fn job_table(
    config: &Config,
    last_runs: &HashMap<String, Report>,
    waits: &HashMap<String, ListedWait>,
    now: Timestamp,
) -> String {
    // One zone for the whole table, to make its rows comparable; each time names it.
    let zone = config.daemon.timezone.0;
    let mut rows =
        new_table(&["JOB", "KIND", "HOMESERVER", "SCHEDULE", "MODE", "NEXT", "LAST RUN"]);
    for job in &config.jobs {
        let schedule = job.schedule.as_ref().map_or("manual only", |schedule| schedule.as_str());
        let last_run = last_runs.get(&job.name);
        // A run under way says itself what it is waiting for.
        let wait =
            waits.get(&job.name).filter(|_| last_run.is_none_or(|run| run.waiting.is_none()));
        let next = match (wait, upcoming(job, now, 1).first()) {
            (Some(wait), _) => format_listed_wait(wait, zone),
            (None, _) if !job.common.enabled => "disabled".to_owned(),
            (None, Some(next)) => format_local(*next, zone),
            (None, None) => "-".to_owned(),
        };
        let last = last_run.map_or_else(
            || "never".to_owned(),
            |run| {
                let mode = if run.mode == Mode::DryRun { " (dry run)" } else { "" };
                let wait = run.waiting.as_ref();
                let wait = wait.map(|wait| format!(" {}", format_wait(wait, zone)));
                format!(
                    "{} {}{mode}{}: {}{}",
                    format_local(run.started_at, zone),
                    status(run),
                    wait.unwrap_or_default(),
                    format_counts(run),
                    run.round.map(format_progress).unwrap_or_default()
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

/// `waiting for its window until 2026-11-25 01:00:00 UTC, since 2026-11-24 20:30:00 UTC`.
fn format_listed_wait(wait: &ListedWait, zone: Tz) -> String {
    let (what, since) = (line(&wait.waiting.what), format_local(wait.waiting.since, zone));
    let until = wait.until.map(|until| format!(" until {}", format_local(until, zone)));
    format!("waiting for {what}{}, since {since}", until.unwrap_or_default())
}
