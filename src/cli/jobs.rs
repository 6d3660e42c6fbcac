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
use crate::config::{Config, Homeserver};
use crate::daemon::REPLICA;
use crate::history::Replicas;
use crate::plan::report::{ApprovalState, Mode, Report};
use crate::plan::round::Round;
use crate::scheduler::job_list::{ListedWait, Sharing, job_list, upcoming};
use crate::scheduler::lease_times::LeaseTimes;
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
    let ttl = LeaseTimes::default().ttl;
    let replicas = history.replicas(ttl).await.map_err(|error| unreadable(dir, &error))?;
    let address = |homeserver: &Homeserver| homeserver.address().as_str().to_owned();
    let addresses = config.homeservers.values();
    let addresses = addresses.map(|homeserver| (homeserver.name.clone(), address(homeserver)));
    let sharing: Sharing = (replicas, addresses.collect());
    let daemon = Client::connect(dir).await;
    let no_daemon = matches!(daemon, Ok(None));
    let waits = match daemon {
        Ok(Some(daemon)) => waits(daemon).await,
        Ok(None) | Err(_) => HashMap::new(),
    };
    if options.json {
        return print_json(&job_list(config.jobs.iter(), last_runs, waits, &sharing, clock.now()));
    }
    let others = other_daemons(&sharing.0, dir);
    let runs_on = if others.is_empty() { None } else { Some(&sharing) };
    let mut text = job_table(&config, &last_runs, &waits, runs_on, clock.now());
    let pause = history.pause().await.map_err(|error| unreadable(dir, &error))?;
    if pause.paused {
        text.push_str("\npaused: nothing runs on schedule until `microglia resume`\n");
    }
    let groups = sharing.0.by_configuration();
    if !groups.is_empty() {
        let groups: Vec<String> = groups.iter().map(|names| names.join(", ")).collect();
        text.push_str(&format!(
            "\nreplicas have different configurations ({}): give all the same jobs and homeservers, and run `microglia reload` on each\n",
            line(&groups.join(" / "))
        ));
    }
    if no_daemon {
        let others = match others.is_empty() {
            true => "nothing runs on schedule until `microglia serve`".to_owned(),
            false => format!("the jobs run on {}", line(&others.join(", "))),
        };
        text.push_str(&format!("\nno daemon is running on {}: {others}\n", dir.display()));
    }
    print(&text)
}

/// The names of the daemons on other state directories; empty where at most one daemon uses the history.
fn other_daemons(replicas: &Replicas, dir: &Path) -> Vec<String> {
    let here = std::fs::read_to_string(dir.join(REPLICA)).unwrap_or_default();
    let elsewhere = replicas.seen.iter().filter(|replica| replica.id != here.trim());
    elsewhere.map(|replica| replica.name.clone()).collect()
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
    runs_on: Option<&Sharing>,
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
                let mode = match run.mode {
                    Mode::DryRun => " (dry run)",
                    Mode::Approve => " (plan)",
                    Mode::Apply => "",
                };
                let approval = run.approval.as_ref().map(|approval| match approval.state {
                    ApprovalState::Pending => {
                        format!("; waits for `microglia approve {}`", run.id.unwrap_or_default())
                    }
                    state => format!("; {state}"),
                });
                let wait = run.waiting.as_ref();
                let wait = wait.map(|wait| format!(" {}", format_wait(wait, zone)));
                let replica = runs_on.filter(|_| run.outcome.is_none());
                let replica = replica.and_then(|(replicas, addresses)| {
                    replicas.holders.get(addresses.get(&job.homeserver)?)
                });
                let replica = replica.map(|name| format!(" on {}", line(name)));
                format!(
                    "{} {}{mode}{}{}: {}{}{}",
                    format_local(run.started_at, zone),
                    status(run),
                    replica.unwrap_or_default(),
                    wait.unwrap_or_default(),
                    format_counts(run),
                    run.round.map(format_progress).unwrap_or_default(),
                    approval.unwrap_or_default()
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
