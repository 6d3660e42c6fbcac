//! The round of a run: what it read, and which of its changes are over.

use crate::plan::report::Outcome;
use crate::plan::round::{PortionRead, RoundState};
use crate::values::clock::Timestamp;

/// The round of a run whose kind reads in portions.
#[derive(Debug)]
pub(super) struct RoundInProgress {
    /// As it stood before the run.
    pub before: RoundState,
    /// What the entries of the list are called.
    pub entries: &'static str,
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

impl RoundInProgress {
    pub fn new(before: RoundState, entries: &'static str) -> Self {
        Self { before, entries, read: None, changes: Vec::new() }
    }

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
    pub fn after(&self, outcome: Outcome, now: Timestamp) -> Option<RoundState> {
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
