//! `microglia run JOB`: one run, now.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::left_alone::Named;
use super::progress::Progress;
use super::remote::unexpected;
use super::runs::{changes, summary};
use super::{Ended, enter, load, load_without_secrets, log, print, print_json, say};
use crate::config::{Config, JobSpec};
use crate::history::History;
use crate::history::state_dir::StateDir;
use crate::plan::report::{Event, Mode, Outcome, Report};
use crate::runner::{HomeserverHandle, RunParams, RunSlots, Runner, Settle, Stop, WindowRule};
use crate::scheduler::supervisor::{Refusal, RunOverrides};
use crate::synapse::{Limits, Settings, Transport};
use crate::values::clock::{Clock, Timestamp};
use crate::values::schema::Limit;
use crate::values::text::unknown;
use crate::web::control::{Connection, Request, Response};

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
pub(super) struct Options {
    /// The job's name.
    job: String,
    /// Plans and reports, whatever mode the config says.
    #[arg(long, conflicts_with = "apply")]
    dry_run: bool,
    /// Makes the changes, whatever mode the config says.
    #[arg(long)]
    apply: bool,
    /// Allows a plan of so many things this once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_changes: Option<u32>,
    /// Runs outside the job's window, and beyond its end, this once.
    #[arg(long)]
    ignore_window: bool,
    /// Names what the rules of the kind left alone, up to 1,000 of it.
    #[arg(long, short)]
    verbose: bool,
    /// Prints the report as one JSON document.
    #[arg(long)]
    json: bool,
}

/// Changes shown below the summary.
const SHOWN: usize = 20;

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Ended> {
    let clock = Clock::system();
    let config = load_without_secrets(path, &clock).await?;
    // Before root becomes the owner of the state directory, who may not be allowed to read the secrets.
    let with_secrets = load(path, &clock).await;
    enter(&config.daemon.state_dir)?;
    let connection = connection(&config).await?;
    // Only who asks the homeserver needs the token.
    let config = if connection.is_some() { config } else { with_secrets? };
    let spec = job(&config, &options.job)?;
    if options.max_changes.is_some() && !spec.job.kind().counts {
        return Err(Ended::Usage(format!(
            "--max-changes means nothing for {}, which cannot count beforehand",
            spec.job.kind().name
        )));
    }
    let terminal = std::io::stderr().is_terminal();
    // On a terminal the bar and the summary show what the lines would say.
    log::start(if terminal {
        "warn,sqlx=error,microglia::telling=off"
    } else {
        "warn,sqlx=error,microglia::audit=info"
    });
    for warning in &config.warnings {
        tracing::warn!("{}", warning.line());
    }
    let order = RunParams {
        mode: match (options.dry_run, options.apply) {
            (true, _) => Mode::DryRun,
            (_, true) => Mode::Apply,
            (false, false) => spec.common.mode,
        },
        max_changes: options.max_changes.map_or(spec.common.max_changes, Limit::Of),
        window: if options.ignore_window { WindowRule::Ignore } else { WindowRule::Keep },
        ..RunParams::manual(spec)
    };
    let named = Arc::new(Named::default());
    let report = match connection {
        Some(connection) => in_daemon(connection, &config, spec, options, &named).await?,
        None => Box::pin(here(&config, spec, &order, &clock, Arc::clone(&named))).await?,
    };
    if options.json {
        let left_alone = named.text();
        if options.verbose && !left_alone.is_empty() {
            say(left_alone.trim_end());
        }
        print_json(&report)?;
    } else {
        let mut text = shown(&report, spec, options, clock.now());
        if options.verbose {
            text.push_str(&named.text());
        }
        print(&text)?;
    }
    match report.outcome {
        Some(Outcome::Succeeded) => Ok(()),
        _ => Err(Ended::Unsuccessful),
    }
}

pub(super) fn job<'a>(config: &'a Config, name: &str) -> Result<&'a JobSpec, Ended> {
    config.job(name).ok_or_else(|| {
        let names: Vec<&str> = config.jobs.iter().map(|job| job.name.as_str()).collect();
        let several: Vec<&str> =
            names.iter().copied().filter(|known| known.split('@').next() == Some(name)).collect();
        Ended::Usage(match several.is_empty() {
            true => unknown("job", name, &names),
            false => format!(
                "job `{name}` runs on several homeservers: name one of {}",
                several.join(", ")
            ),
        })
    })
}

/// To the daemon that holds the state directory; `None` where there is none.
async fn connection(config: &Config) -> Result<Option<Connection>, Ended> {
    let dir = &config.daemon.state_dir;
    Connection::open(dir).await.map_err(|error| {
        Ended::Error(anyhow::anyhow!(
            "a daemon may run on {}, and its socket cannot be used ({error}): use sudo, or the daemon's own user",
            dir.display()
        ))
    })
}

/// Has the daemon run the job, which is the only one that runs where it lives.
async fn in_daemon(
    mut connection: Connection,
    config: &Config,
    spec: &JobSpec,
    options: &Options,
    named: &Named,
) -> Result<Report, Ended> {
    let mode = match (options.dry_run, options.apply) {
        (true, _) => Some(Mode::DryRun),
        (_, true) => Some(Mode::Apply),
        (false, false) => None,
    };
    let fingerprint = config
        .homeservers
        .get(&spec.homeserver)
        .map(|homeserver| spec.fingerprint(homeserver.fingerprint()));
    let asked = RunOverrides {
        mode,
        max_changes: options.max_changes,
        ignore_window: options.ignore_window,
        fingerprint,
    };
    connection.ask(&Request::Run { job: spec.name.clone(), asked }).await?;
    let progress = Progress::new(&spec.homeserver);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut asked_to_stop = false;
    loop {
        let response = tokio::select! {
            response = connection.next() => response?,
            _ = interrupt.recv() => {
                if asked_to_stop {
                    say(&format!("the run goes on in the daemon: microglia runs {}", spec.name));
                    return Err(Ended::Unsuccessful);
                }
                asked_to_stop = true;
                say(&format!("\nstopping {} after the change under way; once more to leave it alone", spec.name));
                if let Some(mut other) = Connection::open(&config.daemon.state_dir).await? {
                    other.ask(&Request::Cancel { job: spec.name.clone() }).await?;
                }
                continue;
            }
        };
        match response {
            Some(Response::Event(event)) => {
                progress.hear(&event);
                named.hear(&event);
            }
            Some(Response::Report(report)) => {
                progress.hear(&Event::Ended(report.clone()));
                return Ok(*report);
            }
            Some(Response::Refused(refusal @ Refusal::Unknown(_))) => {
                return Err(Ended::Usage(format!(
                    "the running daemon says: {refusal} (it knows what it last loaded: `microglia reload`)"
                )));
            }
            Some(other) => return Err(unexpected(other)),
            None => {
                return Err(Ended::Error(anyhow::anyhow!(
                    "the daemon went away: `microglia runs {}` shows what it did",
                    spec.name
                )));
            }
        }
    }
}

/// Runs the job in this process.
async fn here(
    config: &Config,
    spec: &JobSpec,
    order: &RunParams,
    clock: &Clock,
    named: Arc<Named>,
) -> Result<Report, Ended> {
    let homeserver = config
        .homeservers
        .get(&spec.homeserver)
        .ok_or_else(|| anyhow::anyhow!("no homeserver {}", spec.homeserver))?;
    let (runs, limits) = config
        .limits(&homeserver.address())
        .ok_or_else(|| anyhow::anyhow!("no homeserver {}", spec.homeserver))?;
    let settings = Settings { limits: Arc::new(Limits::new(limits)), ..homeserver.settings() };
    let transport = Transport::new(settings, Arc::new(|_| {})).map_err(anyhow::Error::msg)?;
    let place = HomeserverHandle {
        transport: Arc::new(transport),
        places: RunSlots::Locks(runs),
        max_concurrent_requests: limits.max_concurrent_requests,
    };
    let (dir, history) = open(config, clock).await;
    let runner =
        Runner { history: history.clone(), dir, clock: clock.clone(), settle: Settle::default() };
    let (stop, progress, name) =
        (Stop::default(), Progress::new(&spec.homeserver), spec.name.clone());
    let told = crate::observe::run_log::log(&spec.name, &spec.homeserver);
    let tell = Arc::new(move |event: Event| {
        progress.hear(&event);
        named.hear(&event);
        told(event);
    });
    let signals = tokio::spawn(stopped_by_signals(stop.clone(), name));
    let report = runner.run(spec, &place, order, &stop, tell).await;
    signals.abort();
    history.close().await;
    report.map_err(|busy| {
        super::say_error(&busy.to_string());
        Ended::Unsuccessful
    })
}

/// The state directory and its history, or the reason why there are none.
async fn open(config: &Config, clock: &Clock) -> (Option<StateDir>, History) {
    let path = &config.daemon.state_dir;
    let problem = |error: &dyn std::fmt::Display| {
        format!(
            "the state directory {} cannot be used ({error}): run as the daemon's user, or set daemon.state_dir",
            path.display()
        )
    };
    match StateDir::open(path) {
        Err(error) => (None, History::none(clock.clone(), &problem(&error))),
        Ok(dir) => match History::open(&dir, clock.clone()).await {
            Ok(history) => (Some(dir), history),
            Err(error) => (Some(dir), History::none(clock.clone(), &problem(&error))),
        },
    }
}

/// The first signal ends the run between two changes, the second at once.
async fn stopped_by_signals(stop: Stop, job: String) {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let mut next = async || {
        tokio::select! { _ = interrupt.recv() => "SIGINT (Ctrl-C)", _ = terminate.recv() => "SIGTERM" }
    };
    let first = next().await;
    say(&format!("\nstopping {job} after the change under way; once more to stop at once"));
    stop.cancelled_by(first);
    let second = next().await;
    stop.now(Outcome::Cancelled, &format!("by a second signal, {second}"));
}

fn shown(report: &Report, spec: &JobSpec, options: &Options, now: Timestamp) -> String {
    let mut text = summary(report, spec.zone.0);
    text.push_str(&changes(report, SHOWN));
    if report.mode == Mode::DryRun && report.outcome == Some(Outcome::Succeeded) {
        text.push_str(&advice(report, spec, options, now));
    }
    text
}

/// What to do after a dry run that succeeded.
fn advice(report: &Report, spec: &JobSpec, options: &Options, now: Timestamp) -> String {
    if report.planned == Some(0) {
        return "Nothing was changed, and there is nothing to change.\n".to_owned();
    }
    let mut flags =
        options.max_changes.map(|most| format!(" --max-changes {most}")).unwrap_or_default();
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
