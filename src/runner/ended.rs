//! How a run ended: its outcome, its words, its last record.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Ending, Phase, Run, Stopped, truncated};
use crate::history::{self, History};
use crate::plan::report::{Mode, Outcome, Report};
use crate::values::text::{format_count, format_number};

/// Said of a change that was sent and not answered before the run ended.
const UNANSWERED: &str = "no answer came before the run ended: it may have been made";
/// How often to try to record the end of a run that could not be recorded, as on a full disk.
const SAVE_AGAIN: Duration = Duration::from_secs(5);

impl Run<'_> {
    pub(super) fn verdict(&self, ending: Ending) -> (Outcome, Option<String>) {
        let mut report = self.report();
        // Nothing is left of what cannot be counted, either.
        if matches!(ending, Ending::Finished) {
            report.remaining.get_or_insert(0);
        }
        self.count_remaining(&mut report);
        let changed = report.done + report.skipped > 0;
        let problems = self.problems.load(Ordering::Relaxed);
        // Targets that need nothing are half of the truth only where no change was tried and failed.
        let rest_is_fine = report.failed == problems
            && (self.some_fine.load(Ordering::Relaxed)
                || (report.mode == Mode::DryRun && report.planned > Some(problems)));
        match ending {
            Ending::Finished if report.failed == 0 => (Outcome::Succeeded, None),
            Ending::Finished if changed || rest_is_fine => {
                (Outcome::Partial, Some(failures(report.failed)))
            }
            Ending::Finished => (Outcome::Failed, Some(failures(report.failed))),
            Ending::Stopped(Stopped::Window) if !self.judged.load(Ordering::Relaxed) => {
                (Outcome::Failed, Some(self.window_ended_early()))
            }
            Ending::Stopped(Stopped::Window) if report.failed == 0 => (
                Outcome::Succeeded,
                Some(format!(
                    "stopped at the end of the job's window; {} left",
                    format_number(report.remaining.unwrap_or(0))
                )),
            ),
            Ending::Stopped(Stopped::Window) => (
                Outcome::Partial,
                Some(format!(
                    "stopped at the end of the job's window; {} left",
                    format_number(report.remaining.unwrap_or(0))
                )),
            ),
            Ending::Stopped(Stopped::TimeLimit) => {
                (Outcome::TimedOut, Some(self.time_limit_reached()))
            }
            Ending::Stopped(Stopped::RunOverrides(outcome)) => {
                (outcome, Some(format!("{} {}", self.stop.in_words(), self.stopped_where(&report))))
            }
            // Refused means that nothing was changed.
            Ending::Refused(why) if report.done == 0 => (Outcome::Refused, Some(why)),
            Ending::Refused(why) | Ending::Failed(why) | Ending::Again { because: why, .. } => {
                (Outcome::Failed, Some(why))
            }
        }
    }

    pub(super) fn stopped_at_once(&self) -> (Outcome, Option<String>) {
        let message = format!(
            "{} {}; stopped at once {}, without waiting for the change under way",
            self.stop.in_words(),
            self.stopped_where(&self.report()),
            self.stop.hurry.get().map_or("", String::as_str)
        );
        (self.stop.outcome().unwrap_or(Outcome::Cancelled), Some(message))
    }

    /// `while reading; nothing was changed`, `between two changes; 12 of 30 changes made`.
    fn stopped_where(&self, report: &Report) -> String {
        let phase = match &*self.phase.lock().unwrap_or_else(PoisonError::into_inner) {
            Phase::Reading => "while reading".to_owned(),
            Phase::Waiting(what) => format!("while waiting for {what}"),
            Phase::Changing => "between two changes".to_owned(),
        };
        let made = match report.planned {
            _ if report.mode == Mode::DryRun => return phase,
            _ if !self.judged.load(Ordering::Relaxed) => "nothing was changed".to_owned(),
            Some(planned) => {
                let of = format_count(planned, "change", "changes");
                format!("{} of {of} made", format_number(report.done))
            }
            None => format!("{} made", format_count(report.done, "change", "changes")),
        };
        format!("{phase}; {made}")
    }

    fn window_ended_early(&self) -> String {
        let so_far =
            self.reading().as_ref().and_then(|reading| reading.so_far(self.reader.answered()));
        match so_far {
            Some(so_far) => format!("the job's window ended while the run was reading {so_far}"),
            None => "the job's window ended before it could begin".to_owned(),
        }
    }

    fn time_limit_reached(&self) -> String {
        let time_limit = self.spec.common.time_limit;
        let start = self.deadline - time_limit.0;
        let unfinished = self
            .reading()
            .as_ref()
            .and_then(|reading| reading.unfinished(start, self.reader.answered()));
        let reached = format!("the time limit of {time_limit} was reached");
        unfinished.map_or(reached.clone(), |unfinished| format!("{reached}; {unfinished}"))
    }

    fn count_remaining(&self, report: &mut Report) {
        if self.order.mode == Mode::Apply
            && let Some(planned) = report.planned
        {
            let unmade = planned.saturating_sub(report.done + report.failed + report.skipped);
            report.remaining = Some(unmade + self.left_by_at_most.load(Ordering::Relaxed));
        }
    }

    pub(super) async fn close(&self, outcome: Outcome, message: Option<String>) -> Report {
        self.count_wait();
        let history = &self.runner.history;
        let (id, mode) = {
            let report = self.report();
            (report.id, report.mode)
        };
        let unknown =
            if mode == Mode::Apply { history.fail_unanswered(id, UNANSWERED).await } else { Ok(0) };
        if let Some(why) = not_attempted(outcome).filter(|_| mode == Mode::Apply)
            && let Err(error) = history.explain_planned(id, why).await
        {
            tracing::debug!(target: "microglia::history", "cannot record why changes were not attempted: {error}");
        }
        let mut report = self.report().clone();
        let unknown = unknown.unwrap_or(0);
        report.failed += unknown;
        let outcome = match outcome {
            Outcome::Succeeded if unknown > 0 => Outcome::Partial,
            outcome => outcome,
        };
        if unknown > 0 {
            let job = &report.job;
            tracing::warn!(target: "microglia::audit", %job, run = id.unwrap_or_default(), "{job}: run {}: {} may have been made: no answer came", id.unwrap_or_default(), format_count(unknown, "thing", "things"));
        }
        self.count_remaining(&mut report);
        report.waited_seconds = (report.waited_seconds * 10.0).round() / 10.0;
        report.finished_at = Some(truncated(self.runner.clock.now()));
        report.outcome = Some(outcome);
        let notes = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        let sentences: Vec<String> = message.into_iter().chain(notes).collect();
        report.message = (!sentences.is_empty()).then(|| sentences.join("; "));
        if let Err(error) = history.update_run(&report).await {
            tracing::error!(target: "microglia::history", job = %report.job, "the end of run {} cannot be recorded yet: {error}", id.unwrap_or_default());
            tokio::spawn(save_later(history.clone(), report.clone()));
        }
        if let (Some(id), None) = (id, &report.changes)
            && let Ok(Some(stored)) = history.run(id, history::Page::default()).await
        {
            report.changes = stored.changes;
        }
        report.changes.get_or_insert_default();
        report
    }
}

/// Records the end of a run as soon as that is possible; until then it is listed as running.
async fn save_later(history: History, report: Report) {
    loop {
        tokio::time::sleep(SAVE_AGAIN).await;
        let unanswered = history.fail_unanswered(report.id, UNANSWERED).await;
        if unanswered.is_ok() && history.update_run(&report).await.is_ok() {
            return;
        }
    }
}

/// Said of the changes that are still planned when a run was stopped.
fn not_attempted(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Cancelled => Some("not attempted: the run was cancelled"),
        Outcome::Interrupted => Some("not attempted: the run was interrupted"),
        Outcome::TimedOut => Some("not attempted: the time limit was reached"),
        _ => None,
    }
}

fn failures(failed: u64) -> String {
    format!("{} failed: the changes say why", format_count(failed, "target", "targets"))
}
