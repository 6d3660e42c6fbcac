//! Rounds: one pass over a list of a homeserver, in as many runs as it takes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use crate::synapse::Position;
use crate::values::clock::Timestamp;

/// How a kind reads its list in rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds {
    /// What the entries of the list are called, in the plural.
    pub entries: &'static str,
    pub plans: Plans,
}

/// Which runs of a round plan changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plans {
    /// Each run, for what it read.
    EachPortion,
    /// Only the run that reads the rest of the list, for all of it; the others keep what they read in a [`RoundFile`].
    WholeList,
}

/// How far a round has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Entries of the list that this round has read so far.
    pub read: u64,
    /// Entries of the list.
    pub total: u64,
    pub started_at: Timestamp,
    /// `None` until the round has read the whole list.
    pub finished_at: Option<Timestamp>,
}

impl Round {
    /// The part of the list that was read, from 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a ratio is rounded anyway")]
    pub fn progress(&self) -> f64 {
        match self.finished_at {
            Some(_) => 1.0,
            None if self.total == 0 => 0.0,
            None => (self.read as f64 / self.total as f64).min(1.0),
        }
    }
}

/// Where the round of a job stands between two runs.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundState {
    /// What the round is about: with another definition a new one starts.
    pub definition: String,
    pub started_at: Timestamp,
    /// When the last complete round ended.
    pub finished_at: Option<Timestamp>,
    pub read: u64,
    pub total: u64,
    /// Where the next run continues; `None` if it starts a new round.
    pub position: Option<Position>,
    /// What the runs of the round found so far, as the kind wrote it.
    pub findings: Option<Value>,
}

impl RoundState {
    pub fn round(&self) -> Round {
        Round {
            read: self.read,
            total: self.total,
            started_at: self.started_at,
            finished_at: self.finished_at.filter(|_| self.position.is_none()),
        }
    }
}

/// Where a kind keeps what the runs of a round read, if only the last one plans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundFile {
    pub path: PathBuf,
    /// What the round is about: a file of another definition is of no use.
    pub definition: String,
    /// A preview leaves the file as it is.
    pub is_read_only: bool,
}

impl RoundFile {
    /// Where a new version is written before it replaces the file.
    pub fn unfinished(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".new");
        path.into()
    }
}

/// What a run may read of a round.
#[derive(Debug, Clone)]
pub struct Portion {
    /// When the round started.
    pub started_at: Timestamp,
    /// `None` for the start of the list.
    pub from: Option<Position>,
    /// Entries that earlier runs of the round have read.
    pub read_before: u64,
    /// What earlier runs of the round found, as the kind wrote it.
    pub findings: Option<Value>,
    /// `None` if the run reads the rest of the list, however long that takes.
    pub until: Option<Instant>,
    /// No more entries are read once the plan has this many items.
    pub enough: Option<u64>,
    /// `None` if nothing is kept: each run plans, or reads the whole list.
    pub file: Option<RoundFile>,
}

impl Portion {
    /// Of a round that starts and ends with one run.
    pub fn whole_list(started_at: Timestamp) -> Self {
        Self {
            started_at,
            from: None,
            read_before: 0,
            findings: None,
            until: None,
            enough: None,
            file: None,
        }
    }

    /// Whether a plan of `items` is as large as the run may make it.
    pub fn is_enough(&self, items: u64) -> bool {
        self.enough.is_some_and(|enough| items >= enough)
    }

    /// Whether the time for reading is over.
    pub fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// What a run read of a round.
#[derive(Debug, Clone, PartialEq)]
pub struct PortionRead {
    /// Entries that this and earlier runs of the round read.
    pub read: u64,
    /// Entries of the list.
    pub total: u64,
    /// Whether this run started the round anew, because what earlier runs kept cannot be used.
    pub is_restart: bool,
    /// Where the next run continues; `None` at the end of the list.
    pub end: Option<Position>,
    /// The position after the entry of each change, in the order of the plan.
    pub changes: Vec<Position>,
    /// What this and earlier runs of the round found, for the next one.
    pub findings: Value,
}

impl PortionRead {
    /// Where the next run continues if only the first `made` changes were made; `None` at the start of the portion.
    ///
    /// An entry counts as read once all of its changes are made.
    pub fn position_after(&self, made: usize) -> Option<&Position> {
        let next = self.changes.get(made);
        let done = self.changes.get(..made).unwrap_or_default();
        done.iter().rev().find(|position| Some(*position) != next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(after: &str, offset: u64) -> Position {
        Position { after: after.to_owned(), offset }
    }

    #[test]
    fn an_entry_counts_as_read_once_all_of_its_changes_are_made() {
        let portion = PortionRead {
            read: 9,
            total: 100,
            is_restart: false,
            end: Some(position("@z", 9)),
            changes: vec![
                position("@a", 1),
                position("@b", 4),
                position("@b", 4),
                position("@c", 7),
            ],
            findings: Value::Null,
        };
        let resumes: Vec<Option<u64>> = (0..4)
            .map(|made| portion.position_after(made).map(|position| position.offset))
            .collect();
        assert_eq!(resumes, [None, Some(1), Some(1), Some(4)]);
    }

    #[test]
    fn a_portion_is_over_after_its_time_or_with_enough_changes() {
        let portion = Portion { enough: Some(5), ..Portion::whole_list(Timestamp::default()) };
        assert_eq!([4, 5].map(|items| portion.is_enough(items)), [false, true]);
        assert!(!portion.is_late());
        assert!(Portion { until: Some(Instant::now()), ..portion }.is_late());
    }

    #[test]
    fn progress_is_between_0_and_1_whatever_a_homeserver_reports() {
        let round = |read, total, finished_at| {
            Round { read, total, started_at: Timestamp::default(), finished_at }.progress()
        };
        assert!((round(18, 100, None) - 0.18).abs() < 1e-9);
        let ends =
            [round(5, 0, None), round(200, 100, None), round(1, 100, Some(Timestamp::default()))];
        assert_eq!(ends.map(f64::to_bits), [0.0_f64, 1.0, 1.0].map(f64::to_bits));
    }
}
