//! The command line: one command a file, no logic of its own.

mod check;
mod jobs;
mod kinds;
mod left_alone;
mod log;
mod man;
mod progress;
mod remote;
mod run;
mod runs;
mod serve;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, Environment, LoadError};
use crate::history::state_dir::{become_owner, is_locked};
use crate::history::{self, History, Page};
use crate::plan::report::Report;
use crate::values::clock::Clock;
use crate::values::escape;
use crate::web::health::Probe;

/// Recurring housekeeping for Synapse, the Matrix homeserver.
///
/// Reads a TOML file of jobs. Start with `microglia kinds`, write the file, let `microglia check --online` look at it,
/// look at what a job would do with `microglia run JOB --dry-run`, and do it with `microglia run JOB --apply`.
#[derive(Debug, Parser)]
#[command(name = "microglia", version, max_term_width = 100, after_help = after_help())]
pub struct Cli {
    /// The config file.
    #[arg(
        long,
        global = true,
        env = "MICROGLIA_CONFIG",
        default_value = "/etc/microglia/microglia.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// Printed by `--help` and in the man page.
const EXIT_CODES: [(&str, &str); 3] = [
    ("0", "succeeded (a dry run that worked is a success)"),
    ("1", "the run, the reload or `check --online` did not succeed, or the job is already running"),
    ("2", "wrong usage, or a mistake in the config file"),
];

fn after_help() -> String {
    let codes = EXIT_CODES.map(|(code, meaning)| format!("{code} {meaning}")).join("; ");
    format!(
        "Exit codes: {codes}.\n\
         Environment: RUST_LOG sets the levels of the log on stderr, MICROGLIA_LOG_FORMAT=json its form."
    )
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the scheduler and the HTTP listener in the foreground until SIGTERM or SIGINT
    Serve,
    /// Reports every mistake of the config, and when each job is due
    Check(check::Options),
    /// Runs one job now, in its configured mode, and shows what it did
    Run(run::Options),
    /// Shows the jobs: when they are due, and how they went
    Jobs(jobs::Options),
    /// Shows recorded runs, newest first
    Runs(runs::Options),
    /// Shows what each kind of job does, and every key it takes
    Kinds(kinds::Options),
    /// Asks the running daemon to reload the config, and waits
    Reload,
    /// Ends a job's run in the daemon at its next change boundary
    Cancel {
        /// The job's name.
        job: String,
    },
    /// Stops all scheduled runs, beyond a restart of the daemon
    Pause,
    /// Restarts scheduled runs
    Resume,
    /// Checks that the running daemon is healthy
    ///
    /// Asks over the control socket, or at daemon.listen where that does not answer. Works with a config that has mistakes.
    Healthcheck {
        /// Check that runs can start and be recorded. A homeserver that is down does not fail this check; it is in the output.
        #[arg(long)]
        ready: bool,
    },
    /// Prints a completion script for a shell
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Prints the man page
    Man,
}

/// What ends a command without success.
#[derive(Debug)]
pub enum Ended {
    /// The thing asked for did not succeed; what there is to say is said.
    Unsuccessful,
    /// The config has errors, which are printed already.
    Reported,
    /// A mistake of the user's, in the config or on the command line.
    Usage(String),
    Error(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Ended {
    fn from(error: E) -> Self {
        let error = error.into();
        match error.downcast::<LoadError>() {
            Ok(mistakes) => Self::Usage(mistakes.to_string()),
            Err(error) => Self::Error(error),
        }
    }
}

/// Runs the command line and answers the exit code that interface and `--help` promise.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    // Each thread keeps freed memory for itself: in 10,000 runs a daemon grew by 4.3 MiB with two, by 3.4 with one.
    let threads = if matches!(cli.command, Command::Serve) { 1 } else { 2 };
    let ended = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(Ended::from)
        .and_then(|runtime| {
            let ended = runtime.block_on(async {
                let ends_in_order = matches!(cli.command, Command::Serve | Command::Run(_));
                tokio::select! {
                    ended = Box::pin(command(cli)) => ended,
                    () = signalled(), if !ends_in_order => Err(Ended::Unsuccessful),
                }
            });
            // What a blocking thread still does, such as looking up a name, must not hold up the exit.
            runtime.shutdown_background();
            ended
        });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Unsuccessful) => ExitCode::FAILURE,
        Err(Ended::Reported) => ExitCode::from(2),
        Err(Ended::Usage(text)) => {
            say_error(&text);
            ExitCode::from(2)
        }
        Err(Ended::Error(error))
            if error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(Ended::Error(error)) => {
            say_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Waits for SIGTERM or SIGINT, which the first process of a container would else ignore.
async fn signalled() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
}

async fn command(cli: Cli) -> Result<(), Ended> {
    let path = cli.config;
    match cli.command {
        Command::Serve => Box::pin(serve::run(&path)).await,
        Command::Reload => remote::reload(&path).await,
        Command::Cancel { job } => remote::cancel(&path, &job).await,
        Command::Pause => remote::pause(&path, true).await,
        Command::Resume => remote::pause(&path, false).await,
        Command::Healthcheck { ready } => {
            let probe = if ready { Probe::Readiness } else { Probe::Health };
            remote::healthcheck(&path, probe).await
        }
        Command::Check(options) => Box::pin(check::run(&path, &options)).await,
        Command::Run(options) => Box::pin(run::run(&path, &options)).await,
        Command::Jobs(options) => Box::pin(jobs::run(&path, &options)).await,
        Command::Runs(options) => Box::pin(runs::run(&path, &options)).await,
        Command::Kinds(options) => kinds::run(&options),
        Command::Man => man::run(Cli::command()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "microglia", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// What the environment says where the config is silent.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn environment() -> Environment {
    let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    Environment {
        listen: std::env::var("MICROGLIA_LISTEN").ok().filter(|text| !text.is_empty()),
        // systemd joins several directories with colons; the first is ours.
        state_directory: std::env::var("STATE_DIRECTORY")
            .ok()
            .and_then(|dirs| dirs.split(':').next().map(PathBuf::from))
            .filter(|dir| !dir.as_os_str().is_empty()),
        credentials_directory: path("CREDENTIALS_DIRECTORY"),
    }
}

async fn load(path: &Path, clock: &Clock) -> Result<Config, Ended> {
    let now = clock.now();
    Ok(blocking(path, move |path, environment| Config::load(path, &environment, now)).await??)
}

async fn load_without_secrets(path: &Path, clock: &Clock) -> Result<Config, Ended> {
    let now = clock.now();
    let load =
        move |path: &Path, environment| Config::load_without_secrets(path, &environment, now);
    Ok(blocking(path, load).await??)
}

/// Reads the configuration on a blocking thread: its files may be on a file system that stalls.
async fn blocking<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce(&Path, Environment) -> T + Send + 'static,
) -> Result<T, anyhow::Error> {
    let (path, environment) = (path.to_owned(), environment());
    Ok(tokio::task::spawn_blocking(move || read(&path, environment)).await?)
}

/// Has a process of root become the owner of the state directory, before anything in it is opened.
fn enter(dir: &Path) -> Result<(), Ended> {
    become_owner(dir)?;
    Ok(())
}

/// The history as far as there is one, to look at.
async fn look(config: &Config, clock: &Clock) -> Result<History, Ended> {
    let dir = &config.daemon.state_dir;
    enter(dir)?;
    let looked = History::open_read_only(dir, clock.clone()).await;
    match looked {
        Ok(Some(history)) => Ok(history),
        Ok(None) => Ok(History::none(clock.clone(), "there is no history yet")),
        Err(error) => Err(unreadable(dir, &error)),
    }
}

/// Shows a run that was cut off without a word as interrupted: its record has no end, and nobody holds its job's lock.
async fn seen_now(history: &History, dir: &Path, run: Report) -> Result<Report, Ended> {
    // Where the lock cannot be read, somebody may be at work.
    if run.outcome.is_some() || is_locked(dir, &run.job).unwrap_or(true) {
        return Ok(run);
    }
    let failed = |error| unreadable(dir, &error);
    let id = run.id.unwrap_or_default();
    // It may have ended since it was read.
    let again = history.run(id, Page { offset: 0, limit: 0 }).await.map_err(failed)?;
    match again.map(|again| Report { changes: run.changes.clone(), ..again }) {
        Some(ended) if ended.outcome.is_some() => Ok(ended),
        _ => history.as_interrupted(run).await.map_err(failed),
    }
}

fn unreadable(dir: &Path, error: &history::Error) -> Ended {
    Ended::Error(anyhow::anyhow!(
        "the history in {} cannot be read ({error}): use sudo, or the daemon's own user",
        dir.display()
    ))
}

/// Prints what was asked for; what could steer a terminal is escaped.
fn print(text: &str) -> Result<(), Ended> {
    print_raw(&escape::lines(text))
}

fn print_raw(text: &str) -> Result<(), Ended> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()?;
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Ended> {
    // JSON has escapes of its own.
    print_raw(&serde_json::to_string_pretty(value)?)
}

/// Says something beside what was asked for; what could steer a terminal is escaped.
fn say(text: &str) {
    use std::io::Write;
    // Where nobody reads it, it need not be said.
    let _ = writeln!(std::io::stderr(), "{}", escape::lines(text));
}

fn say_error(text: &str) {
    say(&format!("{}: {text}", coloured("error", "31")));
}

fn say_warning(text: &str) {
    say(&format!("{}: {text}", coloured("warning", "33")));
}

/// Bold and in a colour where stderr is a terminal and nobody asked for plain text (<https://no-color.org>).
fn coloured(word: &str, colour: &str) -> String {
    if stderr_takes_colours() { format!("\x1b[1;{colour}m{word}\x1b[0m") } else { word.to_owned() }
}

#[expect(clippy::disallowed_methods, reason = "this module reads the environment")]
fn stderr_takes_colours() -> bool {
    use std::io::IsTerminal;
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    !plain && std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
