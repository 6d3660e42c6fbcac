//! `microglia runs`: recorded runs, and one of them with its changes.

use std::path::Path;

use chrono_tz::Tz;
use serde_json::json;

use super::context::{find_homeserver, find_job, load_without_secrets};
use super::failure::Failure;
use super::output::{print, print_json, print_message};
use super::recorded::{current, open_history, unreadable};
use super::report_text::{approval_text, changes, summary};
use super::table::{format_counts, format_local, format_wait, new_table, status, table_text};
use crate::config::Config;
use crate::history::{HistoryReader, Page};
use crate::plan::report::{CHANGES_SHOWN, Report};
use crate::values::clock::Clock;
use crate::values::duration::format_duration;
use crate::values::escape::line;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Option<Subcommand>,
    /// Only runs of this job.
    job: Option<String>,
    /// The maximum number of runs.
    #[arg(long, default_value_t = 20)]
    limit: u32,
    /// Print a JSON list.
    #[arg(long)]
    json: bool,
    /// Only runs on this homeserver.
    #[arg(long, value_name = "NAME")]
    homeserver: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Prints one run with its changes, and what they replaced
    Show(ShowOptions),
}

#[derive(Debug, clap::Args)]
struct ShowOptions {
    /// The run's id, as in `runs` and in the log.
    id: i64,
    /// The first change to print.
    #[arg(long, default_value_t = 0)]
    offset: u32,
    /// The maximum number of changes to print.
    #[arg(long, default_value_t = CHANGES_SHOWN)]
    limit: u32,
    /// Print the ids of the files that the run deleted instead.
    #[arg(long)]
    media: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Failure> {
    let clock = Clock::system();
    let config = load_without_secrets(path, &clock).await?;
    let history = open_history(&config).await?;
    match &options.command {
        None => list(&config, &history, options).await,
        Some(Subcommand::Show(options)) => show(&config, &history, options).await,
    }
}

async fn list(config: &Config, history: &HistoryReader, options: &Options) -> Result<(), Failure> {
    let dir = &config.daemon.state_dir;
    let (job, limit) = (options.job.as_deref(), options.limit);
    let recorded = match &options.homeserver {
        Some(homeserver) => history.runs_on(homeserver, job, limit).await,
        None => history.runs(job, limit).await,
    };
    let mut runs = Vec::new();
    for run in recorded.map_err(|error| unreadable(dir, &error))? {
        runs.push(current(history, dir, run).await?);
    }
    // A job or homeserver that was removed from the configuration still has its runs.
    if let Some(homeserver) = options.homeserver.as_ref().filter(|_| runs.is_empty())
        && history.runs_on(homeserver, None, 1).await.is_ok_and(|any| any.is_empty())
    {
        find_homeserver(config, homeserver)?;
    }
    if let Some(name) = options.job.as_ref().filter(|_| runs.is_empty()) {
        find_job(config, name)?;
    }
    if options.json {
        return print_json(&runs);
    }
    if runs.is_empty() {
        let job = options.job.as_ref().map(|job| format!(" of {job}"));
        let homeserver = options.homeserver.as_ref().map(|name| format!(" on {name}"));
        let what = job.unwrap_or_default() + &homeserver.unwrap_or_default();
        print_message(&format!("no run{what} is recorded in {}", dir.display()));
        return Ok(());
    }
    print(&run_table(&runs, config.daemon.timezone.0))
}

async fn show(
    config: &Config,
    history: &HistoryReader,
    options: &ShowOptions,
) -> Result<(), Failure> {
    let ShowOptions { id, offset, limit, media, json } = *options;
    let dir = &config.daemon.state_dir;
    let run = history.run(id, Page { offset, limit }).await;
    let run = run.map_err(|error| unreadable(dir, &error))?.ok_or_else(|| {
        Failure::Error(anyhow::anyhow!("there is no run {id}: `microglia runs` lists them"))
    })?;
    if media {
        return show_media(config, history, options).await;
    }
    let run = current(history, dir, run).await?;
    if json {
        return print_json(&run);
    }
    let shown = run.changes.as_ref().map_or(0, Vec::len);
    let mut text = summary(&run, config.daemon.timezone.0);
    text.push_str(&changes(&run, usize::MAX));
    if shown == limit as usize {
        text.push_str(&format!("There may be more: --offset {}\n", offset + limit));
    }
    print(&text)
}

async fn show_media(
    config: &Config,
    history: &HistoryReader,
    options: &ShowOptions,
) -> Result<(), Failure> {
    let files = history.files(options.id).await;
    let files = files.map_err(|error| unreadable(&config.daemon.state_dir, &error))?;
    if options.json {
        let files: Vec<_> =
            files.iter().map(|(id, bytes)| json!({ "media_id": id, "bytes": bytes })).collect();
        return print_json(&files);
    }
    print(&files.iter().map(|(id, _)| format!("{id}\n")).collect::<String>())
}

fn run_table(runs: &[Report], zone: Tz) -> String {
    let mut rows = new_table(&[
        "RUN", "STARTED", "JOB", "MODE", "TRIGGER", "OUTCOME", "TOOK", "ITEMS", "MESSAGE",
    ]);
    for run in runs {
        let message: Vec<String> = run
            .waiting
            .as_ref()
            .map(|waiting| format_wait(waiting, zone))
            .into_iter()
            .chain(approval_text(run, zone).map(|text| line(&text).into_owned()))
            .chain(run.message.as_deref().map(|message| line(message).into_owned()))
            .collect();
        rows.add_row([
            &run.id.unwrap_or_default().to_string(),
            &format_local(run.started_at, zone),
            &run.job,
            run.mode.as_str(),
            run.trigger.as_str(),
            status(run),
            &run.work_duration().map_or_else(|| "-".to_owned(), format_duration),
            &format_counts(run),
            &message.join("; "),
        ]);
    }
    table_text(&rows)
}
