//! After the files are written: `check --online`, the plan of the first job, and what to do next.

use std::path::Path;
use std::time::Duration;

use super::super::check;
use super::super::context::{become_owner, load};
use super::super::failure::Failure;
use super::super::output::{print, print_message};
use super::super::run;
use super::super::signals::signalled;
use crate::plan::report::Outcome;
use crate::values::clock::Clock;
use crate::values::duration::HumanDuration;

/// How long the first plan may take: a newcomer waits for it.
const PLAN_TIME_LIMIT: HumanDuration = HumanDuration(Duration::from_mins(2));

const DEFAULT_CONFIG: &str = "/etc/microglia/microglia.toml";
const UNIT: &str = "/usr/lib/systemd/system/microglia.service";

pub(super) async fn finish(path: &Path, job: &str, clock: &Clock) -> Result<(), Failure> {
    print_message("\nmicroglia check --online:");
    let options = check::Options::online();
    let checked = tokio::select! {
        checked = check::run(path, &options) => checked,
        () = signalled() => Err(Failure::Unsuccessful),
    };
    if let Err(failure) = checked {
        print_message(&format!(
            "\nFix what is NO above, then: {}",
            command(path, "check --online")
        ));
        return Err(failure);
    }
    print_message(&format!("\nThe plan of {job}, in {PLAN_TIME_LIMIT} at most:"));
    let config = load(path, clock).await?;
    become_owner(&config.daemon.state_dir)?;
    let outcome = Box::pin(run::preview(&config, job, PLAN_TIME_LIMIT, clock)).await?;
    if outcome == Some(Outcome::TimedOut) {
        print_message("This is a large homeserver: a run may take longer than this preview.");
    }
    print(&next_steps(path, job))?;
    match outcome {
        None | Some(Outcome::Succeeded | Outcome::TimedOut) => Ok(()),
        Some(_) => Err(Failure::Unsuccessful),
    }
}

fn next_steps(path: &Path, job: &str) -> String {
    let serve = match path == Path::new(DEFAULT_CONFIG) && Path::new(UNIT).exists() {
        true => "sudo systemctl enable --now microglia".to_owned(),
        false => command(path, "serve"),
    };
    let steps = [
        (command(path, &format!("run {job}")), "show the plan again"),
        (command(path, &format!("run {job} --apply")), "make the changes, now"),
        (serve, "run all jobs on schedule"),
    ];
    let width = steps.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
    let steps: String =
        steps.iter().map(|(command, what)| format!("  {command:width$}  # {what}\n")).collect();
    format!(
        "\nNext:\n{steps}To make the changes on schedule, set mode = \"apply\" in the job in {}.\n",
        path.display()
    )
}

/// The command line of this program for this configuration.
fn command(path: &Path, command: &str) -> String {
    match path == Path::new(DEFAULT_CONFIG) {
        true => format!("microglia {command}"),
        false => format!("microglia --config {} {command}", path.display()),
    }
}
