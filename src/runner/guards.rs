//! The second phase of an attempt: checks a plan against the guards, and records it.

use super::context::{Abort, RunContext, unrecorded};
use super::read::ReadPlan;
use super::round::Attempted;
use super::tally::{PlanFigures, Tally};
use super::unanswered;
use crate::plan::change::{Plan, Problem, Work};
use crate::plan::report::{ChangeRecord, Event, Mode, State};
use crate::values::schema::Limit;
use crate::values::size::Size;
use crate::values::text::{format_count, format_number};

/// A plan that passed all guards.
pub(super) struct Approved {
    pub read: ReadPlan,
    /// The number of its first change in the history.
    pub first_seq: i64,
}

/// Checks the plan; `None` in a dry run, which ends here.
pub(super) async fn guard(
    run: &RunContext<'_>,
    tally: &mut Tally,
    mut read: ReadPlan,
) -> Result<Option<Approved>, Abort> {
    let plan = &mut read.plan;
    let unknown = unanswered::resolve(run, tally, plan, &read.server).await?;
    let problems = plan.problems.len() as u64 + unknown;
    let applied = tally.report.done + tally.report.skipped;
    if let (Some(round), Some(portion)) = (&mut tally.round, plan.portion.take()) {
        // A restart of the round of an approved plan keeps its cut-off.
        let started_at = match &run.params.approved {
            Some(_) => round.before.started_at,
            None => tally.report.started_at,
        };
        round.plan_made(portion, started_at);
    }
    let unapproved = Box::pin(keep_approved(run, tally, plan)).await?;
    // Whoever approves the plan decides about all of it.
    let at_most = run.at_most().filter(|_| run.params.mode != Mode::Approve);
    let cut = cut(plan, at_most, applied);
    // Only of what this run would change.
    let mut notes = plan.warnings();
    notes.append(&mut plan.notes);
    notes.extend(cut.note);
    if unapproved > 0 {
        let items = format_count(unapproved, "item", "items");
        notes.push(format!(
            "{items} of this plan were not in the approved one, and are left for the next plan"
        ));
    }
    tally.plan = PlanFigures {
        problems,
        some_up_to_date: plan.some_up_to_date,
        left_for_later: cut.left + unapproved,
        only_read: false,
        notes,
    };
    let items = cut.kept.map(|kept| applied + kept);
    report_plan(tally, plan, items);
    run.emit(Event::Planned { planned: tally.report.planned, bytes: plan.bytes });
    let named = std::mem::take(&mut plan.left_alone_named);
    if !named.is_empty() {
        let all: u64 = plan.left_alone.values().sum();
        let more = all.saturating_sub(named.len() as u64);
        run.emit(Event::LeftAlone { named, more });
    }
    let mut refusal = cut.refusal.or_else(|| above_max_changes(run, items?));
    if run.params.mode == Mode::Approve {
        tally.plan.notes.extend(refusal.take());
    }
    let first_seq = record_plan(run, tally, plan).await?;
    if let Some(refusal) = refusal {
        return Err(Abort::Refused(refusal));
    }
    tally.approved = true;
    if run.only_plans() {
        if run.is_dry_run() {
            settle_all(tally, &read.plan);
        }
        return Ok(None);
    }
    Ok(Some(Approved { read, first_seq }))
}

/// A dry run has looked at all changes that a run would make.
fn settle_all(tally: &mut Tally, plan: &Plan) {
    if let (Some(round), Work::Changes(changes)) = (&mut tally.round, &plan.work) {
        (0..changes.len()).for_each(|index| round.settle(index, Attempted::Made));
    }
}

/// Keeps what a person approved, if the run applies an approved plan; returns the number of the other items.
///
/// A plan whose changes are sized while it is applied is limited by the moment at which it was made.
async fn keep_approved(
    run: &RunContext<'_>,
    tally: &mut Tally,
    plan: &mut Plan,
) -> Result<u64, Abort> {
    let (Some(approved), Work::Changes(changes)) = (&run.params.approved, &mut plan.work) else {
        return Ok(0);
    };
    let planned = run.history.planned(approved.run).await;
    let planned = planned
        .map_err(|error| Abort::Failed(format!("cannot read the approved plan: {error}")))?;
    let (mut kept, mut unapproved) = (Vec::new(), 0);
    let mut index = 0;
    changes.retain(|change| {
        let is_approved = planned.contains(&(change.action(), change.target()));
        if is_approved {
            kept.push(index);
        } else {
            unapproved += change.count();
        }
        index += 1;
        is_approved
    });
    plan.add_up_usage();
    if let Some(round) = &mut tally.round {
        round.keep(kept);
    }
    Ok(unapproved)
}

/// What `at_most` does to a plan.
#[derive(Debug, Default)]
struct Cut {
    /// Items of the plan; `None` if they cannot be counted.
    kept: Option<u64>,
    left: u64,
    note: Option<String>,
    refusal: Option<String>,
}

/// Cuts the plan to what `at_most` allows beyond the items that earlier attempts applied.
fn cut(plan: &mut Plan, at_most: Option<u32>, applied: u64) -> Cut {
    let count = plan.count();
    let (Some(items), Some(at_most)) = (count, at_most) else {
        return Cut { kept: count, ..Cut::default() };
    };
    let bytes = plan.bytes.unwrap_or(0);
    let allowed = u64::from(at_most).saturating_sub(applied);
    let kept = plan.truncate(allowed);
    let left = items.saturating_sub(kept);
    let (mut note, mut refusal) = (None, None);
    if kept == 0 && left > 0 && allowed > 0 {
        refusal = Some(format!(
            "`at_most = {at_most}` is smaller than the first indivisible batch of the plan, so nothing would ever be done: raise it"
        ));
    } else if left > 0 {
        note = Some(left_for_later(left, bytes.saturating_sub(plan.bytes.unwrap_or(0))));
    }
    Cut { kept: Some(kept), left, note, refusal }
}

/// What `at_most` leaves out of this run, in one sentence.
fn left_for_later(items: u64, bytes: u64) -> String {
    let size = if bytes > 0 { format!(" ({})", Size(bytes)) } else { String::new() };
    let are = if items == 1 { "is" } else { "are" };
    format!("{} more{size} {are} left for later runs by at_most", format_number(items))
}

/// Puts the counts of a plan into the report; `items` includes what was applied before.
fn report_plan(tally: &mut Tally, plan: &Plan, items: Option<u64>) {
    let Tally { report, plan: figures, .. } = tally;
    report.failed = figures.problems;
    report.remaining = items.map(|_| figures.left_for_later);
    report.sample.clone_from(&plan.sample);
    report.left_alone.clone_from(&plan.left_alone);
    report.planned = items.map(|items| items + figures.problems);
    report.bytes_planned =
        plan.bytes.map(|bytes| bytes.saturating_add(report.bytes_freed.unwrap_or(0)));
    if plan.bytes.is_some() {
        report.bytes_freed.get_or_insert(0);
    }
}

fn above_max_changes(run: &RunContext<'_>, items: u64) -> Option<String> {
    let Limit::Of(max_changes) = run.params.max_changes else { return None };
    if !run.spec.job.kind().counts || items <= u64::from(max_changes) {
        return None;
    }
    let preview = match run.params.mode {
        Mode::DryRun => "in apply mode none of it would be applied".to_owned(),
        Mode::Approve => {
            return Some(format!(
                "the plan has {}, more than max_changes = {max_changes}: if it is correct, approve it with `--max-changes {items}`",
                format_count(items, "item", "items"),
            ));
        }
        Mode::Apply => format!("preview it with `microglia run {} --dry-run`", run.spec.name),
    };
    Some(format!(
        "the plan has {}, more than max_changes = {max_changes}: {preview}; if it is correct, run it once with `--max-changes {items}`, raise max_changes, or set at_most to apply it in parts",
        format_count(items, "item", "items"),
    ))
}

/// Writes the plan into the history; a dry run continues if that fails.
async fn record_plan(run: &RunContext<'_>, tally: &mut Tally, plan: &Plan) -> Result<i64, Abort> {
    let records = records(plan, run.params.mode);
    let recorded = async {
        let first = run.history.record_plan(tally.report.id, &records).await?;
        // A run that is cut off must be known to have planned this much.
        run.history.update_run(&tally.report).await?;
        Ok(first)
    }
    .await;
    let first = recorded.as_ref().ok().copied().unwrap_or_else(|| tally.changes.next_seq());
    tally.changes.plan(first, records);
    match recorded {
        Ok(_) => Ok(first),
        Err(error) if run.is_dry_run() => {
            tracing::warn!(target: "microglia::history", "the plan is not recorded: {error}");
            Ok(first)
        }
        Err(error) => Err(Abort::Failed(unrecorded(&error))),
    }
}

fn records(plan: &Plan, mode: Mode) -> Vec<ChangeRecord> {
    let changes: Vec<ChangeRecord> = match &plan.work {
        Work::Changes(changes) => changes.iter().map(|change| change.record()).collect(),
        // Batches are recorded call by call as they are applied.
        Work::BatchPlan(_) if mode == Mode::Apply => Vec::new(),
        Work::BatchPlan(batches) if batches.remaining() == Some(0) => Vec::new(),
        Work::BatchPlan(batches) => vec![ChangeRecord {
            action: batches.action(),
            target: batches.target(),
            count: batches.remaining().unwrap_or(0),
            state: State::Planned,
            detail: None,
            answer: None,
            before: None,
        }],
    };
    changes.into_iter().chain(plan.problems.iter().map(Problem::record)).collect()
}
