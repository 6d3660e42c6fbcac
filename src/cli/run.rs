//! `microglia run JOB`: one run, now.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;

use super::client::Client;
use super::context::{become_owner, find_job, load, load_without_secrets};
use super::failure::Failure;
use super::left_alone::LeftAloneList;
use super::output::{print, print_json, print_message};
use super::report_text::{changes, summary};
use super::{log, run_in_daemon, run_in_process};
use crate::config::{Config, JobSpec};
use crate::plan::report::{Mode, Outcome, Report};
use crate::plan::round::Round;
use crate::runner::RunParams;
use crate::scheduler::RunOverrides;
use crate::values::clock::{Clock, Timestamp};
use crate::values::duration::HumanDuration;

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
pub(super) struct Options {
    /// The job's name.
    job: String,
    /// Only plan and report, whatever the configured mode.
    #[arg(long, conflicts_with = "apply")]
    dry_run: bool,
    /// Make the changes, whatever the configured mode.
    #[arg(long)]
    apply: bool,
    /// Allow a plan of up to N items, for this run only.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_changes: Option<u32>,
    /// Run outside the job's window and beyond its end, for this run only.
    #[arg(long)]
    ignore_window: bool,
    /// Read everything in a dry run, for a kind that reads in portions.
    #[arg(long, conflicts_with = "apply")]
    full: bool,
    /// List the items that the job left alone, up to 1,000.
    #[arg(long, short)]
    verbose: bool,
    /// Print the report as one JSON document.
    #[arg(long)]
    json: bool,
}

/// How many changes the summary is followed by.
pub(super) const CHANGES_PRINTED: usize = 20;

/// Stands in place of the list of `--verbose`.
const ELSEWHERE: &str =
    "  the items that were left alone are listed only by the replica that runs the job\n";

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Failure> {
    let clock = Clock::system();
    let config = load_without_secrets(path, &clock).await?;
    // Before root becomes the owner of the state directory, who may not be allowed to read the secrets.
    let with_secrets = load(path, &clock).await;
    become_owner(&config.daemon.state_dir)?;
    let daemon = connect(&config).await?;
    // Only the process that sends requests to the homeserver needs the token.
    let config = if daemon.is_some() { config } else { with_secrets? };
    let spec = find_job(&config, &options.job)?;
    if let Some(problem) = options.overrides().problem(spec) {
        return Err(Failure::Usage(problem));
    }
    start_log();
    for warning in &config.warnings {
        tracing::warn!(target: "microglia::config", "{}", warning.line());
    }
    let left_alone = Arc::new(LeftAloneList::default());
    let report = if let Some(client) = daemon {
        run_in_daemon::run(client, &config, spec, options.overrides(), &left_alone).await?
    } else {
        let params = options.overrides().params(spec);
        run_in_process::run(&config, spec, &params, &clock, Arc::clone(&left_alone)).await?
    };
    options.print(&report, spec, &left_alone, clock.now())?;
    match report.outcome {
        Some(Outcome::Succeeded) => Ok(()),
        _ => Err(Failure::Unsuccessful),
    }
}

/// Prints the plan of a job, made within `time_limit`; `None` where a daemon runs, which has another configuration.
pub(super) async fn preview(
    config: &Config,
    job: &str,
    time_limit: HumanDuration,
    clock: &Clock,
) -> Result<Option<Outcome>, Failure> {
    let mut spec = find_job(config, job)?.clone();
    Arc::make_mut(&mut spec.common).time_limit = time_limit;
    if connect(config).await?.is_some() {
        print_message(
            "A daemon is running: `microglia reload`, and `microglia run` shows the plan.",
        );
        return Ok(None);
    }
    start_log();
    let params = RunParams { mode: Mode::DryRun, ..RunParams::manual(&spec) };
    let left_alone = Arc::new(LeftAloneList::default());
    let report = run_in_process::run(config, &spec, &params, clock, left_alone).await?;
    print(&(summary(&report, spec.zone.0) + &changes(&report, CHANGES_PRINTED)))?;
    if report.outcome == Some(Outcome::Succeeded) && report.planned == Some(0) {
        print(nothing_planned(&report))?;
    }
    Ok(report.outcome)
}

/// Connects to the daemon that owns the state directory; `None` where there is none.
pub(super) async fn connect(config: &Config) -> Result<Option<Client>, Failure> {
    let dir = &config.daemon.state_dir;
    Client::connect(dir).await.map_err(|error| {
        Failure::Error(anyhow!(
            "a daemon may be running on {}, but its socket cannot be used ({error}): use sudo, or the daemon's own user",
            dir.display()
        ))
    })
}

/// On a terminal the progress bar and the summary show what the log would.
pub(super) fn start_log() {
    log::start(match std::io::stderr().is_terminal() {
        true => "warn,sqlx=error,microglia::run=off",
        false => "warn,sqlx=error,microglia::audit=info",
    });
}

impl Options {
    fn mode(&self) -> Option<Mode> {
        match (self.dry_run, self.apply) {
            (true, _) => Some(Mode::DryRun),
            (_, true) => Some(Mode::Apply),
            (false, false) => None,
        }
    }

    fn overrides(&self) -> RunOverrides {
        RunOverrides {
            mode: self.mode(),
            max_changes: self.max_changes,
            ignore_window: self.ignore_window,
            full: self.full,
            undo: None,
            fingerprint: None,
        }
    }

    fn print(
        &self,
        report: &Report,
        spec: &JobSpec,
        left_alone: &LeftAloneList,
        now: Timestamp,
    ) -> Result<(), Failure> {
        let named = if self.verbose { left_alone.text() } else { String::new() };
        let left_alone = match self.verbose && named.is_empty() && !report.left_alone.is_empty() {
            // The history keeps no names of what was not changed.
            true => ELSEWHERE.to_owned(),
            false => named,
        };
        if !self.json {
            return print(&(report_text(report, spec, self, now) + &left_alone));
        }
        if !left_alone.is_empty() {
            print_message(left_alone.trim_end());
        }
        print_json(report)
    }
}

fn report_text(report: &Report, spec: &JobSpec, options: &Options, now: Timestamp) -> String {
    let mut text = summary(report, spec.zone.0);
    text.push_str(&changes(report, CHANGES_PRINTED));
    if report.mode != Mode::Apply && report.outcome == Some(Outcome::Succeeded) {
        text.push_str(&advice(report, spec, options, now));
    }
    text
}

/// Only an empty plan that ends a round says that there is nothing to change.
fn nothing_planned(report: &Report) -> &'static str {
    match report.round {
        Some(Round { finished_at: None, .. }) => {
            "Nothing was changed, and nothing is planned so far.\n"
        }
        _ => "Nothing was changed, and there is nothing to change.\n",
    }
}

/// What to do after a successful dry run.
fn advice(report: &Report, spec: &JobSpec, options: &Options, now: Timestamp) -> String {
    if report.planned == Some(0) {
        return nothing_planned(report).to_owned();
    }
    if let (Some(id), Some(_)) = (report.id, &report.approval) {
        return format!(
            "Nothing was changed. To make these changes: microglia approve {id}; not to make them: microglia reject {id}\n"
        );
    }
    let mut flags =
        options.max_changes.map(|limit| format!(" --max-changes {limit}")).unwrap_or_default();
    let mut advice = "Nothing was changed.".to_owned();
    flags.push_str(" --apply");
    if let Some(window) = spec.common.window.filter(|_| spec.is_outside_window(now)) {
        let opens = window.start_after(now, spec.zone).with_timezone(&spec.zone.0);
        advice.push_str(&format!(
            " The job's window {window} opens at {}.",
            opens.format("%Y-%m-%d %H:%M %Z")
        ));
        flags.push_str(" --ignore-window");
    }
    advice.push_str(&format!(" To make these changes now: microglia run {}{flags}", spec.name));
    advice.push_str(if spec.common.mode == Mode::DryRun {
        "; on schedule: set mode = \"apply\" in the job\n"
    } else {
        "\n"
    });
    advice
}
