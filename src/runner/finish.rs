//! The last phase of a run: its outcome, its message, its last record.

use std::time::Duration;

use super::context::{Abort, RunContext, truncated};
use super::limits::Stopped;
use super::portion;
use super::stop::LEASE_LOST;
use super::tally::{Activity, PlanFigures, Tally};
use super::waiting;
use crate::history::{self, History};
use crate::plan::report::{Approval, ApprovalState, Mode, Outcome, Report};
use crate::values::text::{format_count, format_number};

/// The detail of a change that was sent and got no response before the run ended.
const UNANSWERED: &str = "no response arrived before the run ended: the change may have been made";
/// How often to try again to record the end of a run, for example while the disk is full.
const SAVE_RETRY_DELAY: Duration = Duration::from_secs(5);

/// The outcome of a run and the first sentence of its message.
pub(super) struct Verdict {
    pub outcome: Outcome,
    pub message: Option<String>,
}

impl Verdict {
    pub fn new(outcome: Outcome, message: String) -> Self {
        Self { outcome, message: Some(message) }
    }
}

/// Judges a run by its last attempt.
pub(super) fn verdict(
    run: &RunContext<'_>,
    tally: &mut Tally,
    ended: Result<(), Abort>,
) -> Verdict {
    // Nothing is left of what cannot be counted, either.
    if ended.is_ok() {
        tally.report.remaining.get_or_insert(0);
    }
    tally.count_remaining();
    let report = &tally.report;
    match ended {
        Ok(()) => finished(tally),
        Err(Abort::Stopped(stopped)) => stopped_verdict(run, tally, stopped),
        // Refused means that nothing was changed.
        Err(Abort::Refused(why)) if report.done == 0 => Verdict::new(Outcome::Refused, why),
        Err(Abort::Refused(why) | Abort::Failed(why)) => Verdict::new(Outcome::Failed, why),
        Err(Abort::LeaseLost) => {
            let position = position(tally, "between two changes");
            Verdict::new(Outcome::Interrupted, format!("interrupted by {LEASE_LOST} {position}"))
        }
        Err(Abort::Synapse(error)) => Verdict::new(Outcome::Failed, error.to_string()),
    }
}

fn stopped_verdict(run: &RunContext<'_>, tally: &Tally, stopped: Stopped) -> Verdict {
    let report = &tally.report;
    match stopped {
        Stopped::Window if !tally.approved => {
            Verdict::new(Outcome::Failed, window_ended_early(run, tally))
        }
        Stopped::Window => Verdict::new(
            if report.failed == 0 { Outcome::Succeeded } else { Outcome::Partial },
            format!(
                "stopped at the end of the job's window; {} left",
                format_number(report.remaining.unwrap_or(0))
            ),
        ),
        Stopped::TimeLimit => Verdict::new(Outcome::TimedOut, time_limit_reached(run, tally)),
        Stopped::Requested(outcome) => {
            let position = position(tally, "between two changes");
            Verdict::new(outcome, format!("{} {position}", run.limits.stop.describe()))
        }
    }
}

fn finished(tally: &Tally) -> Verdict {
    let Tally { report, plan, .. } = tally;
    if report.failed == 0 {
        return Verdict { outcome: Outcome::Succeeded, message: None };
    }
    let changed = report.done + report.skipped > 0;
    // Targets that need nothing count as a success only if no change was tried and failed.
    let rest_is_up_to_date = report.failed == plan.problems
        && (plan.some_up_to_date
            || (report.mode != Mode::Apply && report.planned > Some(plan.problems)));
    let outcome = if changed || rest_is_up_to_date { Outcome::Partial } else { Outcome::Failed };
    let targets = format_count(report.failed, "target", "targets");
    Verdict::new(outcome, format!("{targets} failed: see the changes for the reasons"))
}

/// The verdict about a run that did not wait for the change under way.
pub(super) fn stopped_immediately(run: &RunContext<'_>, tally: &Tally) -> Verdict {
    let stop = run.limits.stop;
    let message = format!(
        "{} {}; stopped immediately {}, without waiting for the change in progress",
        stop.describe(),
        position(tally, "in the middle of a change"),
        stop.urgency()
    );
    Verdict::new(stop.outcome().unwrap_or(Outcome::Cancelled), message)
}

/// `while reading; nothing was changed`, `between two changes; 12 of 30 changes made`.
fn position(tally: &Tally, applying: &str) -> String {
    let report = &tally.report;
    let activity = match &tally.activity {
        Activity::Reading => "while reading".to_owned(),
        Activity::Waiting(what) => format!("while waiting for {what}"),
        Activity::Applying => applying.to_owned(),
    };
    if report.mode != Mode::Apply {
        return activity;
    }
    if !tally.approved {
        return format!("{activity}; nothing was changed");
    }
    let made = match report.planned {
        Some(planned) => {
            let planned = format_count(planned, "change", "changes");
            format!("{} of {planned}", format_number(report.done))
        }
        None => format_count(report.done, "change", "changes"),
    };
    format!("{activity}; {made} made")
}

fn window_ended_early(run: &RunContext<'_>, tally: &Tally) -> String {
    let requests = run.reader.completed_requests();
    let so_far = tally.reading.as_ref().and_then(|reading| reading.so_far(requests));
    match (&tally.activity, so_far) {
        (Activity::Waiting(what), _) => {
            format!("the job's window ended while the run was waiting for {what}")
        }
        (_, Some(so_far)) => format!("the job's window ended while the run was reading {so_far}"),
        (_, None) => "the job's window ended before the first change".to_owned(),
    }
}

fn time_limit_reached(run: &RunContext<'_>, tally: &Tally) -> String {
    let time_limit = run.spec.common.time_limit;
    if let Activity::Waiting(what) = &tally.activity {
        return format!("the time limit of {time_limit} was reached while waiting for {what}");
    }
    let (start, requests) = (run.limits.deadline - time_limit.0, run.reader.completed_requests());
    let unfinished = tally.reading.as_ref().and_then(|reading| reading.unfinished(start, requests));
    let advice = unfinished.map_or_else(String::new, |unfinished| format!("; {unfinished}"));
    format!("the time limit of {time_limit} was reached{advice}")
}

/// Completes the report of a run, and records its end.
pub(super) async fn finish(run: &RunContext<'_>, mut tally: Tally, verdict: Verdict) -> Report {
    let Verdict { mut outcome, message } = verdict;
    waiting::count(&mut tally);
    let unknown = tally.changes.fail_unanswered(UNANSWERED);
    tally.report.failed += unknown;
    if outcome == Outcome::Succeeded && unknown > 0 {
        outcome = Outcome::Partial;
    }
    if unknown > 0 {
        let Report { job, id, .. } = &tally.report;
        let (id, items) = (id.unwrap_or_default(), format_count(unknown, "item", "items"));
        tracing::warn!(target: "microglia::audit", %job, run = id, "{job}: run {id}: {items} may have been changed: no response arrived");
    }
    tally.count_remaining();
    let not_attempted = not_attempted(outcome).filter(|_| !run.only_plans());
    if let Some(why) = not_attempted {
        tally.changes.explain_planned(why);
    }
    portion::end(run, &mut tally, outcome).await;
    let Tally { mut report, changes, plan, .. } = tally;
    let only_read = plan.only_read;
    report.waited_seconds = (report.waited_seconds * 10.0).round() / 10.0;
    report.finished_at = Some(truncated(run.clock.now()));
    report.outcome = Some(outcome);
    report.approval = approval_of(run, &report, &plan);
    let sentences: Vec<String> =
        message.into_iter().chain(plan.notes).chain(run.reader.rate_summary()).collect();
    report.message = (!sentences.is_empty()).then(|| sentences.join("; "));
    let definition = (report.mode == Mode::Approve && is_plan(outcome) && !only_read)
        .then(|| run.plan_definition());
    record_end(run.history, &report, not_attempted, definition.as_deref()).await;
    report.changes = Some(changes.into_records());
    report
}

/// Whether a run in approve mode ended with a plan that replaces older ones.
fn is_plan(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Succeeded | Outcome::Partial)
}

/// What a person has to decide about the plan of a run in approve mode; `None` where it would change nothing.
fn approval_of(run: &RunContext<'_>, report: &Report, plan: &PlanFigures) -> Option<Approval> {
    let has_changes = report.planned != Some(plan.problems);
    let waits = report.mode == Mode::Approve && report.outcome.is_some_and(is_plan) && has_changes;
    waits.then(|| Approval {
        state: ApprovalState::Pending,
        expires_at: truncated(run.clock.now() + run.spec.common.approval_ttl.0),
        by: None,
        decided_at: None,
        run: None,
        detail: None,
    })
}

async fn record_end(
    history: &History,
    report: &Report,
    not_attempted: Option<&str>,
    definition: Option<&str>,
) {
    let unanswered = match report.mode {
        Mode::Apply => history.fail_unanswered(report.id, UNANSWERED).await.map(|_| ()),
        Mode::DryRun | Mode::Approve => Ok(()),
    };
    if let Some(why) = not_attempted
        && let Err(error) = history.explain_planned(report.id, why).await
    {
        tracing::debug!(target: "microglia::history", "cannot record why changes were not attempted: {error}");
    }
    if let Err(error) = unanswered.and(record(history, report, definition).await) {
        let id = report.id.unwrap_or_default();
        tracing::error!(target: "microglia::history", job = %report.job, "cannot record the end of run {id}, trying again every {} s: {error}", SAVE_RETRY_DELAY.as_secs());
        let definition = definition.map(str::to_owned);
        tokio::spawn(record_end_later(history.clone(), report.clone(), definition));
    }
}

/// Records the end of a run; `definition` is that of its job, if its plan is to be decided about.
async fn record(
    history: &History,
    report: &Report,
    definition: Option<&str>,
) -> Result<(), history::Error> {
    match definition {
        Some(definition) => history.end_planning(report, definition).await,
        None => history.update_run(report).await,
    }
}

/// Records the end of a run as soon as that is possible; until then it is listed as running.
async fn record_end_later(history: History, report: Report, definition: Option<String>) {
    loop {
        tokio::time::sleep(SAVE_RETRY_DELAY).await;
        let unanswered = history.fail_unanswered(report.id, UNANSWERED).await;
        if unanswered.is_ok() && record(&history, &report, definition.as_deref()).await.is_ok() {
            return;
        }
    }
}

/// The detail of changes that are still planned when a run was stopped.
fn not_attempted(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Cancelled => Some("not attempted: the run was cancelled"),
        Outcome::Interrupted => Some("not attempted: the run was interrupted"),
        Outcome::TimedOut => Some("not attempted: the time limit was reached"),
        _ => None,
    }
}
