//! Which portion of a round a run reads, and where the next run continues.

use serde_json::json;
use tokio::time::Instant;

use super::context::{Abort, RunContext, truncated};
use super::params::{ApprovedPlan, Extent};
use super::round::RoundInProgress;
use super::round_files;
use super::tally::Tally;
use crate::history::Page;
use crate::plan::report::{Mode, Outcome};
use crate::plan::round::{Plans, Portion, RoundFile, RoundState};
use crate::values::clock::Timestamp;
use crate::values::fingerprint::Fingerprint;
use crate::values::text::format_number;

/// Whose round a run reads, and whether it moves that forward.
fn round_mode(run: &RunContext<'_>) -> (Mode, bool) {
    let configured = run.spec.common.mode;
    match (run.params.mode, configured) {
        // A person previews the next run.
        (Mode::DryRun, Mode::Apply | Mode::Approve) => (configured, false),
        // What plans and what applies an approved plan read the same round.
        (_, Mode::Approve) => (Mode::Approve, true),
        (mode, _) => (mode, true),
    }
}

/// Decides what a run reads; of a kind that reads everything in each run that is everything.
pub(super) async fn begin(
    run: &RunContext<'_>,
    tally: &mut Tally,
    server: &str,
) -> Result<Portion, Abort> {
    tally.round = None;
    let whole_list = Portion::whole_list(run.as_of(tally.report.started_at));
    let Some(rounds) = run.spec.job.rounds() else { return Ok(whole_list) };
    let definition = Fingerprint::of(&json!([run.spec.selection, server])).to_string();
    let plan_round = match &run.params.approved {
        Some(plan) if rounds.plans == Plans::WholeList => {
            Some(Box::pin(plan_round(run, plan)).await?)
        }
        _ => None,
    };
    let recorded = match run.history.round(&run.spec.name, round_mode(run).0).await {
        Ok(recorded) => recorded.filter(|round| round.definition == definition),
        Err(error) if run.is_dry_run() => {
            tracing::warn!(target: "microglia::history", "this dry run starts a round, because it is not known how far the last one came: {error}");
            None
        }
        Err(error) => return Err(Abort::Failed(format!("cannot read the history: {error}"))),
    };
    let finished_at = recorded.as_ref().and_then(|round| round.finished_at);
    let is_full = run.params.extent == Extent::Full;
    let before = recorded.filter(|round| round.position.is_some() && !is_full);
    let before = before.filter(|round| continues(run, round, plan_round));
    // Of another round nothing is touched.
    let is_apart = plan_round.is_some() && before.is_none();
    let before = before.unwrap_or(RoundState {
        definition,
        started_at: plan_round.unwrap_or_else(|| run.as_of(tally.report.started_at)),
        finished_at,
        read: 0,
        total: 0,
        position: None,
        findings: None,
    });
    let file =
        file(run, &before.definition).filter(|_| rounds.plans == Plans::WholeList && !is_apart);
    let until = match rounds.plans {
        // Nothing can be kept, or what became of a lost call shows only in a plan of everything.
        Plans::WholeList if file.is_none() || !tally.unanswered.is_empty() => None,
        // The approved plan is applied by this run, or by none.
        Plans::WholeList if plan_round.is_some() => None,
        _ => Some(Instant::now() + run.limits.time_for_changes() / 2),
    };
    let portion = if is_full {
        whole_list
    } else {
        Portion {
            started_at: before.started_at,
            from: before.position.clone(),
            read_before: before.read,
            findings: before.findings.clone(),
            until,
            enough: enough(run, tally).filter(|_| rounds.plans == Plans::EachPortion),
            file,
        }
    };
    let mut round = RoundInProgress::new(before, rounds);
    round.is_apart = is_apart;
    tally.round = Some(round);
    Ok(portion)
}

/// Whether the run continues the round, which is not complete; `plan_round` is that of the approved plan that it applies.
fn continues(run: &RunContext<'_>, round: &RoundState, plan_round: Option<Timestamp>) -> bool {
    match plan_round {
        // Only what that plan was made of has its cut-off.
        Some(started_at) => round.started_at == started_at,
        // A plan was made of it already: this one begins anew, with a later cut-off.
        None => run.params.mode != Mode::Approve || !is_read_to_the_end(round),
    }
}

/// When the round of an approved plan started, which is its cut-off.
async fn plan_round(run: &RunContext<'_>, plan: &ApprovedPlan) -> Result<Timestamp, Abort> {
    let report = run.history.run(plan.run, Page { offset: 0, limit: 0 }).await;
    let report =
        report.map_err(|error| Abort::Failed(format!("cannot read the history: {error}")))?;
    Ok(report.and_then(|report| report.round).map_or(plan.planned_at, |round| round.started_at))
}

/// Whether a plan was made of the round: the next run plans again with what was kept of it.
fn is_read_to_the_end(round: &RoundState) -> bool {
    round.position.is_some() && round.read >= round.total
}

/// Where the runs of the round keep what they read; `None` without a state directory.
fn file(run: &RunContext<'_>, definition: &str) -> Option<RoundFile> {
    let (mode, moves) = round_mode(run);
    Some(RoundFile {
        path: round_files::path(run.state_dir?, &run.spec.name, mode),
        definition: definition.to_owned(),
        is_read_only: !moves,
    })
}

/// How many more items the run may change; `None` without `at_most`.
fn enough(run: &RunContext<'_>, tally: &Tally) -> Option<u64> {
    let applied = tally.report.done + tally.report.skipped;
    run.at_most().map(|at_most| u64::from(at_most).saturating_sub(applied))
}

/// Records where the next run continues, and says so in the report.
///
/// A plan that was refused, or whose run failed before its changes, is made again by the next run.
pub(super) async fn end(run: &RunContext<'_>, tally: &mut Tally, outcome: Outcome) {
    let Some(round) = tally.round.take().filter(|_| tally.approved) else { return };
    let (mode, moves) = round_mode(run);
    let report = &tally.report;
    let is_made = match run.params.mode {
        Mode::DryRun => true,
        // What waits for approval is not made.
        Mode::Approve => report.planned == Some(0),
        Mode::Apply => report.remaining == Some(0) && report.failed == 0,
    };
    let Some(after) = round.after(outcome, is_made, truncated(run.clock.now())) else { return };
    let is_complete = after.position.is_none();
    tally.report.round = Some(after.round());
    let is_planned = round.rounds.plans == Plans::EachPortion || !round.is_incomplete();
    tally.plan.only_read = !is_planned;
    let (before, entries) = (round.before, round.rounds.entries);
    if !is_complete {
        let (read, total) = (format_number(after.read), format_number(after.total));
        tally.plan.notes.push(match (moves, run.params.extent) {
            (true, _) => format!("{read} of {total} {entries} read; the next run continues"),
            (false, _) => format!(
                "{entries} {} to {read} of {total} read, as the next run will; `--full` reads all",
                format_number(before.read + 1),
            ),
        });
        if !is_planned {
            tally.plan.notes.push("changes are planned once all are read".to_owned());
        }
    }
    let (id, job) = (tally.report.id, &run.spec.name);
    if !moves || round.is_apart {
        return;
    }
    match run.history.set_round(id, job, mode, &after).await {
        Ok(()) if is_complete => {
            if let Some(file) = file(run, &after.definition) {
                round_files::remove(&file);
            }
        }
        Ok(()) => {}
        Err(error) => {
            tracing::warn!(target: "microglia::history", job = %run.spec.name, "cannot record how far the round has come, and the next run reads the same {entries} again: {error}");
        }
    }
}
