//! The state of a run so far; one task owns it, and each phase passes it on to the next.

use tokio::time::Instant;

use super::first_changes::FirstChanges;
use super::reading_progress::ReadingProgress;
use super::round::RoundInProgress;
use crate::plan::change::ChangeResult;
use crate::plan::report::{ChangeRecord, Mode, Report, State, WaitReason};

pub(super) struct Tally {
    pub report: Report,
    pub changes: FirstChanges,
    pub activity: Activity,
    /// The current wait; it counts even if the run ends during it.
    pub wait: Option<(WaitReason, Instant)>,
    /// When the run last saw that Synapse is not busy on its own account.
    pub looked_at: Option<Instant>,
    /// How far the attempt has read; `None` while it does something else.
    pub reading: Option<ReadingProgress>,
    pub plan: PlanFigures,
    /// `None` for a kind that reads everything in each run.
    pub round: Option<RoundInProgress>,
    /// Whether a plan passed the guards.
    pub approved: bool,
    /// Sent changes whose response was lost; the next plan shows whether they took effect.
    pub unanswered: Vec<Unanswered>,
    /// Targets that were skipped when they were read again, with their number of items.
    pub skipped: Vec<(String, u64)>,
}

/// What a run is doing, for the message of a run that is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Activity {
    Reading,
    /// Completes "waiting for".
    Waiting(String),
    Applying,
}

/// What the report needs from the last plan besides its own counts.
#[derive(Debug, Default)]
pub(super) struct PlanFigures {
    /// Targets that could not be worked on.
    pub problems: u64,
    /// Whether some target could be read and needs nothing.
    pub some_up_to_date: bool,
    /// Items that `at_most` or an approval leaves for later runs.
    pub left_for_later: u64,
    /// Whether the run only read a portion of what a later run plans for.
    pub only_read: bool,
    /// Sentences for the message.
    pub notes: Vec<String>,
}

pub(super) struct Unanswered {
    pub seq: i64,
    pub record: ChangeRecord,
    /// Each item with its bytes.
    pub items: Vec<(String, Option<u64>)>,
}

impl Tally {
    pub fn new(report: Report) -> Self {
        Self {
            report,
            changes: FirstChanges::default(),
            activity: Activity::Reading,
            wait: None,
            looked_at: None,
            reading: None,
            plan: PlanFigures::default(),
            round: None,
            approved: false,
            unanswered: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Counts the result of a change.
    pub fn count_result(&mut self, seq: i64, record: &ChangeRecord, result: &ChangeResult) {
        self.changes.set_result(seq, record.clone());
        let report = &mut self.report;
        report.done = report.done.saturating_add(result.done);
        report.skipped += result.skipped;
        report.failed += if record.state == State::Failed { record.count } else { 0 };
        report.bytes_freed = report.bytes_freed.map(|freed| freed.saturating_add(result.bytes));
        // Synapse may delete files that no list showed.
        let known = report.done.saturating_add(report.skipped + report.failed);
        report.planned = report.planned.map(|planned| planned.max(known));
    }

    pub fn count_remaining(&mut self) {
        let report = &mut self.report;
        if report.mode == Mode::Apply
            && let Some(planned) = report.planned
        {
            let unmade = planned.saturating_sub(report.done + report.failed + report.skipped);
            report.remaining = Some(unmade + self.plan.left_for_later);
        }
        // Nobody knows what the rest of the list holds.
        if report.remaining == Some(0)
            && self.round.as_ref().is_some_and(RoundInProgress::is_incomplete)
        {
            report.remaining = None;
        }
    }
}
