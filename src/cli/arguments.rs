//! The arguments of the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::failure::EXIT_CODES;
use super::{approve, check, history, init, jobs, kinds, login, run, runs, undo};

/// Recurring housekeeping for Synapse, the Matrix homeserver.
///
/// Jobs are defined in a TOML file. Create a first one with `microglia init`, list the kinds of jobs with
/// `microglia kinds`, check the file with `microglia check --online`, preview a job with `microglia run JOB --dry-run`, and make its changes with
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
    /// Creates a first configuration, by questions on a terminal or by options
    ///
    /// Asks for what the options leave out, obtains the access token, and writes a commented configuration with the token
    /// file beside it. Never overwrites a file. All jobs are dry runs. In the end it checks the homeserver, and shows the
    /// plan of the first job and what to do next. Where the Matrix Authentication Service (MAS) manages the accounts, it
    /// creates the secret of a client instead, and prints what the configuration of MAS needs.
    Init(init::Options),
    /// Obtains an access token and writes it to the homeserver's `access_token_file`
    ///
    /// The account has to be a server admin. The device is always MICROGLIA, so that a second login adds no device; Synapse
    /// accepts earlier tokens of the device until --logout ends them all. A running daemon uses the new token from its next
    /// request on.
    Login(login::Options),
    /// Reports every error in the configuration, and when each job is due next
    Check(check::Options),
    /// Runs one job now, in its configured mode, and shows what it did
    Run(run::Options),
    /// Approves the plan of a run in approve mode, and has it applied
    ///
    /// A run plans again, and changes only what the approved plan contains and is still needed. Outside the job's window the
    /// daemon waits until it opens. A plan whose job was changed since cannot be approved.
    Approve(approve::Options),
    /// Rejects the plan of a run in approve mode
    Reject {
        /// The run that made the plan.
        run: i64,
    },
    /// Shows what it would take to restore what a run changed, and with --apply restores it
    ///
    /// What was changed since by others stays. The limits of the job apply. Files that were deleted and members that joined
    /// cannot be restored.
    Undo(undo::Options),
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
