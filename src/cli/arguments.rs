//! The arguments of the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::failure::EXIT_CODES;
use super::{check, history, jobs, kinds, run, runs};

/// Recurring housekeeping for Synapse, the Matrix homeserver.
///
/// Jobs are defined in a TOML file. List the kinds of jobs with `microglia kinds`, write the file, check it with
/// `microglia check --online`, preview a job with `microglia run JOB --dry-run`, and make its changes with
/// `microglia run JOB --apply`.
#[derive(Debug, Parser)]
#[command(name = "microglia", version, max_term_width = 100, after_help = after_help())]
pub(super) struct Cli {
    /// The configuration file.
    #[arg(
        long,
        global = true,
        env = "MICROGLIA_CONFIG",
        default_value = "/etc/microglia/microglia.toml",
        value_name = "FILE"
    )]
    pub(super) config: PathBuf,
    #[command(subcommand)]
    pub(super) command: Command,
}

fn after_help() -> String {
    let codes = EXIT_CODES.map(|(code, meaning)| format!("{code} {meaning}")).join("; ");
    format!(
        "Exit codes: {codes}.\n\
         Environment: RUST_LOG sets the levels of the log on stderr, MICROGLIA_LOG_FORMAT=json selects JSON."
    )
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs the scheduler and the HTTP listener in the foreground until SIGTERM or SIGINT
    Serve,
    /// Reports every error in the configuration, and when each job is due next
    Check(check::Options),
    /// Runs one job now, in its configured mode, and shows what it did
    Run(run::Options),
    /// Shows the jobs with their next occurrence and last run
    Jobs(jobs::Options),
    /// Shows recorded runs, newest first
    Runs(runs::Options),
    /// Moves the history between SQLite and PostgreSQL
    History(history::Options),
    /// Shows what each kind of job does, and its keys
    Kinds(kinds::Options),
    /// Asks the running daemon to reload the configuration, and waits for the result
    Reload,
    /// Ends a job's run at its next change boundary
    Cancel {
        /// The job's name.
        job: String,
    },
    /// Pauses all scheduled runs, even across restarts of the daemon
    Pause,
    /// Resumes scheduled runs
    Resume,
    /// Checks that the running daemon is healthy
    ///
    /// Uses the control socket, or daemon.listen if the socket does not respond. Works even if the configuration has errors.
    Healthcheck {
        /// Check that runs can start and be recorded. A homeserver that is down is reported but does not fail this check.
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
