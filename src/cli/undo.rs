//! `microglia undo RUN`: restores what a run changed, as far as that is possible.

use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;

use super::approve::recorded_run;
use super::context::{become_owner, find_job, load, load_without_secrets};
use super::failure::Failure;
use super::left_alone::LeftAloneList;
use super::output::{print, print_json};
use super::report_text::{changes, summary};
use super::run::{CHANGES_PRINTED, connect, start_log};
use super::{run_in_daemon, run_in_process};
use crate::plan::report::{Mode, Outcome};
use crate::scheduler::RunOverrides;
use crate::values::clock::Clock;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The run to undo, as in `runs` and in the log.
    run: i64,
    /// Restore what the run changed, instead of only showing what would be restored.
    #[arg(long)]
    apply: bool,
    /// Allow a plan of up to N items, for this run only.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_changes: Option<u32>,
    /// Print the report as one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Failure> {
    let clock = Clock::system();
    let config = load_without_secrets(path, &clock).await?;
    // Before root becomes the owner of the state directory, who may not be allowed to read the secrets.
    let with_secrets = load(path, &clock).await;
    become_owner(&config.daemon.state_dir)?;
    let daemon = connect(&config).await?;
    let config = if daemon.is_some() { config } else { with_secrets? };
    let undone = recorded_run(&config, options.run).await?;
    let spec = find_job(&config, &undone.job)?;
    let mode = if options.apply { Mode::Apply } else { Mode::DryRun };
    let overrides = RunOverrides {
        mode: Some(mode),
        max_changes: options.max_changes,
        undo: Some(options.run),
        ..RunOverrides::default()
    };
    if let Some(problem) = overrides.problem(spec) {
        return Err(Failure::Error(anyhow!("{problem}")));
    }
    start_log();
    let left_alone = Arc::new(LeftAloneList::default());
    let report = if let Some(client) = daemon {
        run_in_daemon::run(client, &config, spec, overrides, &left_alone).await?
    } else {
        let params = overrides.params(spec);
        run_in_process::run(&config, spec, &params, &clock, left_alone).await?
    };
    if options.json {
        print_json(&report)?;
    } else {
        let mut text = summary(&report, spec.zone.0) + &changes(&report, CHANGES_PRINTED);
        if !options.apply && report.outcome == Some(Outcome::Succeeded) {
            text.push_str(&match report.planned {
                Some(0) => "Nothing was changed, and there is nothing to restore.\n".to_owned(),
                _ => format!(
                    "Nothing was changed. To restore this: microglia undo {} --apply\n",
                    options.run
                ),
            });
        }
        print(&text)?;
    }
    match report.outcome {
        Some(Outcome::Succeeded) => Ok(()),
        _ => Err(Failure::Unsuccessful),
    }
}
