//! The round of a run: what it read, and which of its changes are over.

use crate::plan::report::Outcome;
use crate::plan::round::{Plans, PortionRead, RoundState, Rounds};
use crate::synapse::Position;
use crate::values::clock::Timestamp;

/// The round of a run whose kind reads in portions.
#[derive(Debug)]
pub(super) struct RoundInProgress {
    /// As it stood before the run.
    pub before: RoundState,
    pub rounds: Rounds,
    read: Option<PortionRead>,
    /// What became of the changes of the portion.
    changes: Vec<Attempted>,
    /// Which of them the run makes, in its order; `None` for all.
    kept: Option<Vec<usize>>,
    /// Whether the run reads for itself, and leaves the job's round as it is.
    pub is_apart: bool,
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
    pub fn new(before: RoundState, rounds: Rounds) -> Self {
        Self { before, rounds, read: None, changes: Vec::new(), kept: None, is_apart: false }
    }

    /// Takes over what the plan of a run that started at `started_at` read.
    pub fn plan_made(&mut self, read: PortionRead, started_at: Timestamp) {
        if read.is_restart {
            let (read, position, findings) = (0, None, None);
            self.before =
                RoundState { started_at, read, position, findings, ..self.before.clone() };
        }
        self.changes = vec![Attempted::No; read.changes.len()];
        self.kept = None;
        self.read = Some(read);
    }

    /// Reduces the changes that the run makes to those at `indices`.
    pub fn keep(&mut self, indices: Vec<usize>) {
        self.kept = Some(indices);
    }

    /// Records what became of the change at `index` of what the run makes.
    pub fn settle(&mut self, index: usize, attempted: Attempted) {
        let kept = self.kept.as_ref().map(|kept| kept.get(index).copied());
        let index = kept.map_or(index, |kept| kept.unwrap_or(usize::MAX));
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
    ///
    /// `is_made` says whether all changes of the plan need no other attempt, for a plan that is not a list of changes.
    pub fn after(&self, outcome: Outcome, is_made: bool, now: Timestamp) -> Option<RoundState> {
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
        after.read = read.read;
        after.position = read.end.clone().or_else(|| self.kept(is_made));
        after.findings = after.position.as_ref().map(|_| read.findings.clone());
        if after.position.is_none() {
            after.finished_at = Some(now);
        }
        Some(after)
    }

    /// The end of the list, if the next run plans again with what the runs of this round kept.
    ///
    /// A round of a single run keeps nothing: the next run starts a new one.
    fn kept(&self, is_made: bool) -> Option<Position> {
        let keeps = self.rounds.plans == Plans::WholeList && self.before.position.is_some();
        let offset = self.read.as_ref()?.read;
        (keeps && !is_made).then(|| Position { after: String::new(), offset })
    }
}
