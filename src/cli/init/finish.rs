//! After the files are written: `check --online`, the plan of the first job, and what to do next.

use std::path::Path;
use std::time::Duration;

use super::super::check;
use super::super::context::{become_owner, load};
use super::super::failure::Failure;
use super::super::mas_settings::mas_steps;
use super::super::new_file::parent;
use super::super::output::{print, print_message};
use super::super::run;
use super::super::signals::signalled;
use super::draft::{Draft, SECRET_FILE};
use super::options::Options;
use crate::plan::report::Outcome;
use crate::values::clock::Clock;
use crate::values::duration::{HumanDuration, format_duration};

/// How long the first plan may take: a newcomer waits for it.
const PLAN_TIME_LIMIT: HumanDuration = HumanDuration(Duration::from_mins(2));

const DEFAULT_CONFIG: &str = "/etc/microglia/microglia.toml";
const UNIT: &str = "/usr/lib/systemd/system/microglia.service";

/// Checks what was written, shows the plan of the first job, and says what to do next.
pub(super) async fn finish(path: &Path, draft: &Draft, clock: &Clock) -> Result<(), Failure> {
    let Some(job) = draft.jobs.first().map(|job| job.kind.name) else { return Ok(()) };
    if let Some(mas) = &draft.mas {
        let secret_file = parent(path).join(SECRET_FILE);
        return print(&mas_steps(&mas.client_id, &secret_file, &command(path, "check --online")));
    }
    print_message("\nmicroglia check --online:");
    let options = check::Options::online();
    let checked = tokio::select! {
        checked = check::run(path, &options) => checked,
        () = signalled() => Err(Failure::Unsuccessful),
    };
    if let Err(failure) = checked {
        print_message("\nFix what is NO above.");
        print(&next_steps(path, draft, &[("check --online".to_owned(), "check again")]))?;
        return Err(failure);
    }
    let limit = format_duration(PLAN_TIME_LIMIT.0);
    print_message(&format!("\nThe plan of {job} (this takes at most {limit}):"));
    let config = load(path, clock).await?;
    become_owner(&config.daemon.state_dir)?;
    let outcome = Box::pin(run::preview(&config, job, PLAN_TIME_LIMIT, clock)).await?;
    if outcome == Some(Outcome::TimedOut) {
        print_message("This is a large homeserver: a run may take longer than this preview.");
    }
    let steps = [
        (format!("run {job}"), "show the plan again"),
        (format!("run {job} --apply"), "make the changes, now"),
    ];
    print(&next_steps(path, draft, &steps))?;
    match outcome {
        None | Some(Outcome::Succeeded | Outcome::TimedOut) => Ok(()),
        Some(_) => Err(Failure::Unsuccessful),
    }
}

/// Says what is missing beside a configuration that was only printed.
pub(super) fn advise_after_print(path: &Path, options: &Options, draft: &Draft) {
    let check = command(path, "check --online");
    let advice = if draft.mas.is_some() {
        format!(
            "and a secret for the client to {SECRET_FILE} beside it (openssl rand -hex 32, mode 0600). `{}` then prints what the configuration of MAS needs, and `{check}` checks everything.",
            command(path, "login")
        )
    } else if options.token_file.is_some() {
        format!("the token to {} beside it, and check both with `{check}`.", draft.token_file)
    } else {
        let login = command(path, "login --user NAME");
        format!("obtain a token with `{login}`, and check both with `{check}`.")
    };
    print_message(&format!("Write this to {}, {advice}", path.display()));
}

fn next_steps(path: &Path, draft: &Draft, first: &[(String, &str)]) -> String {
    let mut steps: Vec<(String, &str)> =
        first.iter().map(|(arguments, what)| (command(path, arguments), *what)).collect();
    let has_schedule = draft.schedule.is_some();
    if has_schedule {
        let serve = match path == Path::new(DEFAULT_CONFIG) && Path::new(UNIT).exists() {
            true => "sudo systemctl enable --now microglia".to_owned(),
            false => command(path, "serve"),
        };
        steps.push((serve, "run all jobs on schedule"));
    }
    let width = steps.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
    let steps: String =
        steps.iter().map(|(command, what)| format!("  {command:width$}  # {what}\n")).collect();
    let last = match has_schedule {
        true => "To make the changes on schedule, set mode = \"apply\" in the job in",
        false => "To run a job on schedule, add `schedule = \"30 3 * * *\"` to it in",
    };
    format!("\nNext:\n{steps}{last} {}.\n", path.display())
}

/// The command line of this program for this configuration.
fn command(path: &Path, command: &str) -> String {
    match path == Path::new(DEFAULT_CONFIG) {
        // Only root and the daemon can read the configuration.
        true => format!("sudo microglia {command}"),
        false => format!("microglia --config {} {command}", path.display()),
    }
}
