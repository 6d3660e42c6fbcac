//! `microglia approve RUN` and `microglia reject RUN`: decisions about a plan that waits for a person.

use std::path::Path;
use std::sync::Arc;

use anyhow::anyhow;
use serde::Deserialize;
use serde_json::json;

use super::context::{become_owner, find_job, load, load_without_secrets};
use super::failure::Failure;
use super::left_alone::LeftAloneList;
use super::output::print;
use super::recorded::{open_history, unreadable};
use super::report_text::{changes, summary};
use super::run::{CHANGES_PRINTED, connect, start_log};
use super::run_in_process;
use crate::config::Config;
use crate::history::state_dir::{StateDir, this_user};
use crate::history::{Decision, History, Page};
use crate::plan::report::{ApprovalState, Outcome, Report};
use crate::runner::{ApprovedPlan, RunParams};
use crate::scheduler::{above_max_changes, not_waiting};
use crate::values::clock::{Clock, format_time};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The run that made the plan, as in `runs` and in the log.
    run: i64,
    /// Allow a plan of up to N items, for this plan only.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_changes: Option<u32>,
}

/// What the daemon says about an approval.
#[derive(Deserialize)]
struct Approved {
    job: String,
    run: Option<i64>,
    waits_for: Option<String>,
}

pub(super) async fn approve(path: &Path, options: &Options) -> Result<(), Failure> {
    let clock = Clock::system();
    let config = load_without_secrets(path, &clock).await?;
    // Before root becomes the owner of the state directory, who may not be allowed to read the secrets.
    let with_secrets = load(path, &clock).await;
    become_owner(&config.daemon.state_dir)?;
    let Some(client) = connect(&config).await? else {
        return Box::pin(approve_here(&with_secrets?, options, &clock)).await;
    };
    let id = options.run.to_string();
    let body = serde_json::to_vec(&json!({ "max_changes": options.max_changes }))?;
    let reply = client.post_with(&["api", "v1", "runs", &id, "approve"], body).await?;
    let Approved { job, run, waits_for } = reply.succeeded()?.json()?;
    print(&match (run, waits_for) {
        (Some(run), _) => format!(
            "{job}: the plan of run {id} is approved, and applied by run {run}: microglia runs show {run}"
        ),
        (None, Some(what)) => {
            format!("{job}: the plan of run {id} is approved, and waits for {what}")
        }
        (None, None) => format!("{job}: the plan of run {id} is approved"),
    })
}

/// Approves a plan and applies it in this process, where no daemon runs.
async fn approve_here(config: &Config, options: &Options, clock: &Clock) -> Result<(), Failure> {
    let plan = recorded_run(config, options.run).await?;
    let spec = find_job(config, &plan.job)?;
    if plan.approval.as_ref().is_none_or(|approval| approval.state != ApprovalState::Pending) {
        return Err(Failure::Error(anyhow!("{}", not_waiting(&plan))));
    }
    if let Some(problem) = above_max_changes(&plan, spec, options.max_changes) {
        return Err(Failure::Error(anyhow!("{problem}")));
    }
    if let Some(window) = spec.common.window.filter(|_| spec.is_outside_window(clock.now())) {
        let opens = window.start_after(clock.now(), spec.zone);
        return Err(Failure::Error(anyhow!(
            "outside the job's window {window}, which opens at {}, and no daemon is running that would wait for it: nothing was decided",
            format_time(opens)
        )));
    }
    start_log();
    let approved =
        ApprovedPlan { run: options.run, planned_at: plan.started_at, by: Some(this_user()) };
    let params = RunParams::of_approved(spec, approved, options.max_changes);
    let left_alone = Arc::new(LeftAloneList::default());
    let report = run_in_process::run(config, spec, &params, clock, left_alone).await?;
    print(&(summary(&report, spec.zone.0) + &changes(&report, CHANGES_PRINTED)))?;
    match report.outcome {
        Some(Outcome::Succeeded) => Ok(()),
        _ => Err(Failure::Unsuccessful),
    }
}

pub(super) async fn reject(path: &Path, run: i64) -> Result<(), Failure> {
    let clock = Clock::system();
    let config = load_without_secrets(path, &clock).await?;
    become_owner(&config.daemon.state_dir)?;
    if let Some(client) = connect(&config).await? {
        let path = ["api", "v1", "runs", &run.to_string(), "reject"];
        client.post(&path).await?.succeeded()?;
    } else {
        let plan = recorded_run(&config, run).await?;
        let dir = StateDir::open(&config.daemon.state_dir)?;
        let place = config.daemon.history.of(&dir).map_err(|why| anyhow!("{why}"))?;
        let history = History::open(place, clock).await.map_err(|error| anyhow!("{error}"))?;
        let by = this_user();
        let decision = Decision { state: ApprovalState::Rejected, by, max_changes: None };
        let decided = history.decide(run, &decision).await;
        history.close().await;
        if !decided.map_err(|error| anyhow!("cannot write the history: {error}"))? {
            return Err(Failure::Error(anyhow!("{}", not_waiting(&plan))));
        }
    }
    print(&format!("the plan of run {run} is rejected"))
}

/// The report of a run that was recorded.
pub(super) async fn recorded_run(config: &Config, run: i64) -> Result<Report, Failure> {
    let history = open_history(config).await?;
    let found = history.run(run, Page { offset: 0, limit: 0 }).await;
    let found = found.map_err(|error| unreadable(&config.daemon.state_dir, &error))?;
    found.ok_or_else(|| {
        Failure::Error(anyhow!("there is no run {run}: `microglia runs` lists them"))
    })
}
