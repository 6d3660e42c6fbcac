//! Which portion of a round a run reads, and where the next run continues.

use serde_json::json;
use tokio::time::Instant;

use super::context::{Abort, RunContext, truncated};
use super::params::Extent;
use super::tally::Tally;
use crate::plan::report::{Mode, Outcome};
use crate::plan::round::{Portion, PortionRead, RoundState};
use crate::values::clock::Timestamp;
use crate::values::fingerprint::Fingerprint;
use crate::values::text::format_number;

/// The round of a run whose kind reads in portions.
#[derive(Debug)]
pub(super) struct RoundInProgress {
    /// As it stood before the run.
    before: RoundState,
    /// What the entries of the list are called.
    entries: &'static str,
    read: Option<PortionRead>,
    /// What became of the changes of the portion.
    changes: Vec<Attempted>,
}

/// Whether a change of the portion needs no other attempt in this round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempted {
    No,
    Made,
    /// Not attempted again in this round, unless it is what ended the run.
    Failed,
}

/// Whose round a run reads, and whether it moves that forward.
fn round_mode(run: &RunContext<'_>) -> (Mode, bool) {
    let configured = run.spec.common.mode;
    match (run.params.mode, configured) {
        // A person previews the next run.
        (Mode::DryRun, Mode::Apply) => (Mode::Apply, false),
        (mode, _) => (mode, true),
    }
}

/// Decides what a run reads; of a kind that reads everything in each run that is everything.
pub(super) async fn begin(
    run: &RunContext<'_>,
    tally: &mut Tally,
    server: &str,
) -> Result<Portion, Abort> {
    let whole_list =
        Portion { from: None, read_before: 0, findings: None, until: None, enough: None };
    tally.round = None;
    let Some(entries) = run.spec.job.kind().rounds else { return Ok(whole_list) };
    let definition = Fingerprint::of(&json!([run.spec.selection, server])).to_string();
    let recorded = run.history.round(&run.spec.name, round_mode(run).0).await;
    let recorded = recorded
        .map_err(|error| Abort::Failed(format!("cannot read the history: {error}")))?
        .filter(|round| round.definition == definition);
    let finished_at = recorded.as_ref().and_then(|round| round.finished_at);
    let is_full = run.params.extent == Extent::Full;
    let before = recorded.filter(|round| round.position.is_some() && !is_full);
    let before = before.unwrap_or(RoundState {
        definition,
        started_at: tally.report.started_at,
        finished_at,
        read: 0,
        total: 0,
        position: None,
        findings: None,
    });
    let portion = if is_full {
        whole_list
    } else {
        Portion {
            from: before.position.clone(),
            read_before: before.read,
            findings: before.findings.clone(),
            until: Some(Instant::now() + run.limits.time_for_changes() / 2),
            enough: enough(run, tally),
        }
    };
    tally.round = Some(RoundInProgress { before, entries, read: None, changes: Vec::new() });
    Ok(portion)
}

/// How many more items the run may change; `None` without `at_most`.
fn enough(run: &RunContext<'_>, tally: &Tally) -> Option<u64> {
    let applied = tally.report.done + tally.report.skipped;
    run.at_most().map(|at_most| u64::from(at_most).saturating_sub(applied))
}

impl RoundInProgress {
    /// Takes over what the plan read.
    pub fn plan_made(&mut self, read: PortionRead) {
        self.changes = vec![Attempted::No; read.changes.len()];
        self.read = Some(read);
    }

    /// Records what became of the change at `index` of the plan.
    pub fn settle(&mut self, index: usize, attempted: Attempted) {
        if let Some(change) = self.changes.get_mut(index) {
            *change = attempted;
        }
    }

    /// Whether more of the list is left to be read.
    pub fn is_incomplete(&self) -> bool {
        self.read.as_ref().is_some_and(|read| read.end.is_some())
    }

    /// How many changes from the first on need no other attempt.
    fn made(&self, outcome: Outcome) -> usize {
        let attempted = |change: &&Attempted| **change != Attempted::No;
        let made = self.changes.iter().take_while(attempted).count();
        if outcome != Outcome::Failed {
            return made;
        }
        let changes = self.changes.get(..made).unwrap_or_default();
        changes.iter().rposition(|change| *change == Attempted::Made).map_or(0, |last| last + 1)
    }

    /// Where the round stands after the run, which ended at `now`; `None` if nothing was read.
    fn after(&self, outcome: Outcome, now: Timestamp) -> Option<RoundState> {
        let (read, made) = (self.read.as_ref()?, self.made(outcome));
        let mut after = RoundState { total: read.total, ..self.before.clone() };
        if made < read.changes.len() {
            let start = self.before.position.as_ref().map_or(0, |position| position.offset);
            if let Some(position) = read.position_after(made) {
                after.read = after.read.saturating_add(position.offset.saturating_sub(start));
                after.position = Some(position.clone());
                after.findings = Some(read.findings.clone());
            }
            return Some(after);
        }
        after.read = after.read.saturating_add(read.read);
        after.position.clone_from(&read.end);
        after.findings = read.end.as_ref().map(|_| read.findings.clone());
        if read.end.is_none() {
            after.finished_at = Some(now);
        }
        Some(after)
    }
}

/// Records where the next run continues, and says so in the report.
///
/// A plan that was refused, or whose run failed before its changes, is made again by the next run.
pub(super) async fn end(run: &RunContext<'_>, tally: &mut Tally, outcome: Outcome) {
    let Some(round) = tally.round.take().filter(|_| tally.approved) else { return };
    let (mode, moves) = round_mode(run);
    let Some(after) = round.after(outcome, truncated(run.clock.now())) else { return };
    let is_complete = after.position.is_none();
    tally.report.round = Some(after.round());
    let RoundInProgress { before, entries, .. } = round;
    if !is_complete {
        let (read, total) = (format_number(after.read), format_number(after.total));
        tally.plan.notes.push(match (moves, run.params.extent) {
            (true, _) => format!("{read} of {total} {entries} read; the next run continues"),
            (false, _) => format!(
                "{entries} {} to {read} of {total} read, as the next run will; `--full` reads all",
                format_number(before.read + 1),
            ),
        });
    }
    let (id, job) = (tally.report.id, &run.spec.name);
    if moves && let Err(error) = run.history.set_round(id, job, mode, &after).await {
        tracing::warn!(target: "microglia::history", job = %run.spec.name, "cannot record how far the round has come, and the next run reads the same {entries} again: {error}");
    }
}
