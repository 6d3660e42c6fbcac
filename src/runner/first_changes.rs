//! The first changes of a run with what became of them, for its report.

use std::collections::{BTreeMap, HashSet};

use crate::plan::report::{CHANGES_SHOWN, ChangeRecord, State};

const LIMIT: usize = CHANGES_SHOWN as usize;

/// The changes with the lowest numbers, as many of each state as a report can carry.
///
/// Numbers are those of the history. Each state has its own share: what is planned anew, or fails again, must not have
/// displaced what was done.
#[derive(Debug, Default)]
pub(super) struct FirstChanges {
    planned: BTreeMap<i64, ChangeRecord>,
    failed: BTreeMap<i64, ChangeRecord>,
    done: BTreeMap<i64, ChangeRecord>,
    /// Sent, with no response so far. All of them, because their items have to be counted.
    sent: BTreeMap<i64, ChangeRecord>,
}

impl FirstChanges {
    /// Replaces what was planned by a new plan, and what failed by what is planned again.
    pub fn plan(&mut self, first: i64, records: Vec<ChangeRecord>) {
        self.planned.clear();
        if !self.failed.is_empty() {
            let targets: HashSet<&str> =
                records.iter().map(|record| record.target.as_str()).collect();
            // A record that says what to put back is kept.
            self.failed.retain(|_, record| {
                record.before.is_some() || !targets.contains(record.target.as_str())
            });
        }
        for (seq, record) in (first..).zip(records) {
            self.insert(seq, record);
        }
    }

    /// Where to number a plan that the history did not number.
    pub fn next_seq(&self) -> i64 {
        let last = [&self.failed, &self.done, &self.sent]
            .into_iter()
            .filter_map(|changes| changes.last_key_value())
            .map(|(seq, _)| *seq)
            .max();
        last.map_or(0, |seq| seq + 1)
    }

    pub fn sent(&mut self, seq: i64, record: ChangeRecord) {
        self.planned.remove(&seq);
        self.sent.insert(seq, record);
    }

    /// Takes back [`sent`](Self::sent) for a change that could not be sent after all.
    pub fn not_sent(&mut self, seq: i64) {
        if let Some(record) = self.sent.remove(&seq) {
            self.insert(seq, ChangeRecord { before: None, ..record });
        }
    }

    /// Stores the result of a change; one that is still planned was not made.
    pub fn set_result(&mut self, seq: i64, mut record: ChangeRecord) {
        let earlier = self.planned.remove(&seq).into_iter().chain(self.sent.remove(&seq));
        if record.before.is_none() {
            record.before = earlier.filter_map(|earlier| earlier.before).next_back();
        }
        self.insert(seq, record);
    }

    fn insert(&mut self, seq: i64, record: ChangeRecord) {
        let changes = match record.state {
            State::Planned => &mut self.planned,
            State::Failed => &mut self.failed,
            State::Done | State::Skipped => &mut self.done,
        };
        if changes.len() < LIMIT || changes.last_key_value().is_some_and(|(last, _)| seq < *last) {
            changes.insert(seq, record);
        }
        if changes.len() > LIMIT {
            changes.pop_last();
        }
    }

    /// Marks what was sent and got no response as failed, and returns the number of items.
    pub fn fail_unanswered(&mut self, why: &str) -> u64 {
        let mut items = 0;
        for (seq, mut record) in std::mem::take(&mut self.sent) {
            items += record.count;
            record.state = State::Failed;
            record.detail = Some(why.to_owned());
            self.insert(seq, record);
        }
        items
    }

    /// Gives the reason why planned changes were not attempted.
    pub fn explain_planned(&mut self, why: &str) {
        for record in self.planned.values_mut() {
            record.detail.get_or_insert_with(|| why.to_owned());
        }
    }

    pub fn into_records(self) -> Vec<ChangeRecord> {
        let Self { mut planned, mut failed, mut done, mut sent } = self;
        planned.append(&mut failed);
        planned.append(&mut done);
        planned.append(&mut sent);
        planned.into_values().take(LIMIT).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::report::Action;

    fn record(target: &str, state: State) -> ChangeRecord {
        ChangeRecord {
            action: Action::JoinRoom,
            target: target.to_owned(),
            count: 1,
            state,
            detail: None,
            answer: None,
            before: None,
        }
    }

    fn planned(targets: std::ops::Range<usize>) -> Vec<ChangeRecord> {
        targets.map(|target| record(&target.to_string(), State::Planned)).collect()
    }

    fn lines(changes: FirstChanges) -> Vec<String> {
        let records = changes.into_records();
        records.iter().map(|record| format!("{} {}", record.state, record.target)).collect()
    }

    #[test]
    fn a_new_plan_replaces_planned_changes_and_failed_ones_that_it_contains() {
        let mut changes = FirstChanges::default();
        changes.plan(0, planned(0..4));
        changes.set_result(0, record("0", State::Done));
        changes.set_result(1, record("1", State::Failed));
        changes.set_result(
            2,
            ChangeRecord { before: Some(true.into()), ..record("2", State::Failed) },
        );
        assert_eq!(changes.next_seq(), 3);
        changes.plan(3, planned(1..4));
        assert_eq!(lines(changes), ["done 0", "failed 2", "planned 1", "planned 2", "planned 3"]);
    }

    #[test]
    fn the_first_thousand_are_kept_whatever_their_result() {
        let mut changes = FirstChanges::default();
        changes.plan(0, planned(0..3000));
        for seq in (0..2500).rev() {
            changes.set_result(seq, record(&seq.to_string(), State::Done));
        }
        let mut expected: Vec<String> = (0..1000).map(|seq| format!("done {seq}")).collect();
        let mut replanned = FirstChanges::default();
        replanned.plan(0, planned(0..3000));
        (500..2000)
            .for_each(|seq| replanned.set_result(seq, record(&seq.to_string(), State::Done)));
        replanned.plan(2000, planned(0..500));
        assert_eq!(lines(changes), expected);
        expected = (500..1500).map(|seq| format!("done {seq}")).collect();
        assert_eq!(lines(replanned), expected);
    }

    #[test]
    fn a_change_without_a_response_has_failed_and_keeps_what_it_replaced() {
        let mut changes = FirstChanges::default();
        changes.plan(0, planned(0..3));
        changes.sent(0, ChangeRecord { before: Some(1.into()), ..record("0", State::Planned) });
        changes.sent(1, ChangeRecord { before: Some(2.into()), ..record("1", State::Planned) });
        changes.set_result(0, record("0", State::Done));
        assert_eq!(changes.fail_unanswered("no answer"), 1);
        changes.explain_planned("cancelled");
        let told: Vec<_> = changes
            .into_records()
            .into_iter()
            .map(|change| (change.state, change.detail, change.before))
            .collect();
        assert_eq!(
            told,
            [
                (State::Done, None, Some(1.into())),
                (State::Failed, Some("no answer".to_owned()), Some(2.into())),
                (State::Planned, Some("cancelled".to_owned()), None),
            ]
        );
    }
}
