//! The plan of a media purge: files by their last use, deleted up to a cut-off that moves forward.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::yield_now;

use super::batch::{Batch, Candidate, Rules, file_of, format_ms};
use super::file_spool::{Position, Record, SHORTEST, Spool};
use crate::jobs::batch_size::{BatchSize, Sample};
use crate::plan::change::{BatchPlan, Change, Plan};
use crate::plan::report::{Action, Exempt, OwnerUsage};
use crate::synapse::MediaOwner;

/// Files of the first call, and the minimum of later ones: smaller calls would hardly be faster.
const FIRST_BATCH: i64 = 200;

/// A file that will be deleted: 12 bytes, sorted by its last use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// The last use in milliseconds, in two parts: a whole one would be aligned to 8 bytes.
    used_high: i32,
    used_low: u32,
    position: Position,
}

impl Entry {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "split into two halves"
    )]
    fn new(used_ms: i64, position: Position) -> Self {
        Self { used_high: (used_ms >> 32) as i32, used_low: used_ms as u32, position }
    }

    fn used_ms(self) -> i64 {
        i64::from(self.used_high) << 32 | i64::from(self.used_low)
    }
}

/// The candidates by last use, deleted up to a cut-off that moves forward.
#[derive(Debug)]
pub(super) struct Candidates {
    until_ms: i64,
    files: Vec<Entry>,
    records: Spool,
    /// With all their files; the owner of a record is an index of this.
    owners: Vec<OwnerUsage>,
    /// Left out because Synapse kept them in an earlier run.
    kept: Arc<[Candidate]>,
    /// The index of the first file after the cut-off.
    next: usize,
    /// Where `at_most` ends the plan.
    end: Option<usize>,
    /// Files of the last call.
    last_size: i64,
    batch_size: BatchSize,
    rules: Rules,
}

impl Candidates {
    /// Plans for the files of these records but those in `kept`: by id, when a file that Synapse kept was last used.
    pub(super) async fn of(
        records: Spool,
        owners: Vec<MediaOwner>,
        kept: &HashMap<String, String>,
        rules: Rules,
        max_batch: u32,
        plan: &mut Plan,
    ) -> io::Result<Self> {
        let usage = |owner: MediaOwner| {
            let user_id = owner.user_id.unwrap_or_default();
            OwnerUsage { user_id, files: 0, bytes: 0 }
        };
        let mut owners: Vec<OwnerUsage> = owners.into_iter().map(usage).collect();
        let (mut files, mut left_out) = (Vec::new(), Vec::new());
        // A vector that grows needs twice its size for a moment. Without the memory it has to.
        let most = records.length() / SHORTEST as u64;
        let _ = files.try_reserve_exact(usize::try_from(most).unwrap_or(0));
        let mut next = Some(0);
        while let Some(start) = next {
            next =
                records.scan_piece(start, |position, Record { used_ms, bytes, owner, id }| {
                    let Some(owner) = owners.get_mut(owner as usize) else { return Ok(()) };
                    if kept.get(&*id).is_some_and(|used| *used == used_ms.to_string()) {
                        plan.leave_alone(Exempt::Kept, || file_of(&id, &owner.user_id));
                        left_out.push(Candidate { used_ms, bytes, id });
                        return Ok(());
                    }
                    owner.files += 1;
                    owner.bytes = owner.bytes.saturating_add(bytes);
                    files.push(Entry::new(used_ms, position));
                    Ok(())
                })?;
            yield_now().await;
        }
        files.sort_unstable();
        Ok(Self {
            until_ms: rules.before.timestamp_millis(),
            files,
            records,
            owners,
            kept: left_out.into(),
            next: 0,
            end: None,
            last_size: 0,
            batch_size: BatchSize::new(FIRST_BATCH, FIRST_BATCH, i64::from(max_batch)),
            rules,
        })
    }

    /// How many files were left out because Synapse kept them in an earlier run.
    pub(super) fn kept(&self) -> u64 {
        self.kept.len() as u64
    }

    fn end(&self) -> usize {
        self.end.unwrap_or(self.files.len())
    }

    fn remaining_files(&self) -> &[Entry] {
        &self.files[self.next..self.end()]
    }

    /// The accounts with the files that are left.
    fn remaining_usage(&self) -> io::Result<Cow<'_, [OwnerUsage]>> {
        if self.remaining_files().len() == self.files.len() {
            return Ok(Cow::Borrowed(&self.owners));
        }
        let mut owners = self.owners.clone();
        for owner in &mut owners {
            (owner.files, owner.bytes) = (0, 0);
        }
        for file in self.remaining_files() {
            let record = self.records.read(file.position)?;
            if let Some(owner) = owners.get_mut(record.owner as usize) {
                owner.files += 1;
                owner.bytes = owner.bytes.saturating_add(record.bytes);
            }
        }
        Ok(Cow::Owned(owners))
    }

    fn read(&self, files: &[Entry]) -> io::Result<Vec<Candidate>> {
        let read = |file: &Entry| {
            let Record { bytes, id, .. } = self.records.read(file.position)?;
            Ok(Candidate { used_ms: file.used_ms(), bytes, id })
        };
        files.iter().map(read).collect()
    }

    /// Returns the largest number of files up to `length` that a cut-off can separate: files used in the same millisecond belong together.
    fn separable(&self, length: usize) -> usize {
        let mut length = length.min(self.files.len());
        while length > 0
            && length < self.files.len()
            && self.files[length].used_ms() == self.files[length - 1].used_ms()
        {
            length -= 1;
        }
        length
    }

    fn next_batch(&mut self, last: Option<Duration>) -> Option<Batch> {
        let (start, end) = (self.next, self.end());
        if start >= end {
            return None;
        }
        let last = last.map(|took| Sample { size: self.last_size, took });
        let size = usize::try_from(self.batch_size.next(last)).unwrap_or(1);
        let mut stop = self.separable((start + size).min(end));
        if stop <= start {
            // More files of one millisecond than a batch holds: they cannot be separated.
            stop = (start + 1..=end).find(|stop| self.separable(*stop) == *stop).unwrap_or(end);
        }
        self.next = stop;
        self.last_size = i64::try_from(stop - start).unwrap_or(i64::MAX);
        let before_ms =
            self.files.get(stop).map_or(self.until_ms, |first_kept| first_kept.used_ms());
        let (files, unreadable) = match self.read(&self.files[start..stop]) {
            Ok(files) => (files, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        Some(Batch {
            before_ms,
            files,
            unreadable,
            kept: Arc::clone(&self.kept),
            rules: self.rules,
        })
    }
}

impl BatchPlan for Candidates {
    fn action(&self) -> Action {
        Action::PurgeLocalMedia
    }

    fn target(&self) -> String {
        format!("local files last accessed before {}", format_ms(self.until_ms))
    }

    fn remaining(&self) -> Option<u64> {
        Some((self.end() - self.next) as u64)
    }

    fn planned_among(&self, items: &HashSet<&str>) -> HashSet<String> {
        let mut planned = HashSet::new();
        let scanned = self.records.scan(|file| {
            if items.contains(&*file.id) {
                planned.insert(file.id.into());
            }
        });
        for file in &*self.kept {
            planned.remove(&*file.id);
        }
        match scanned {
            Ok(()) => planned,
            // What cannot be told counts as not done.
            Err(_) => items.iter().map(|item| (*item).to_owned()).collect(),
        }
    }

    fn truncate(&mut self, most: u64) -> u64 {
        let length = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(self.next);
        if length < self.files.len() {
            self.end = Some(self.separable(length).max(self.next));
        }
        (self.end() - self.next) as u64
    }

    fn bytes(&self) -> Option<u64> {
        let usage = self.remaining_usage().ok()?;
        Some(usage.iter().fold(0, |sum, owner| sum.saturating_add(owner.bytes)))
    }

    fn sample(&self) -> Vec<OwnerUsage> {
        self.remaining_usage().map(|usage| OwnerUsage::sample(usage.iter())).unwrap_or_default()
    }

    fn next(&mut self, last: Option<Duration>) -> Option<Box<dyn Change>> {
        Some(Box::new(self.next_batch(last)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::ReadIn;
    use super::super::file_spool::SpoolWriter;
    use super::*;
    use crate::values::clock::Timestamp;
    use crate::values::size::Size;

    fn candidates(used: &[i64], batch: i64) -> Candidates {
        let mut records = SpoolWriter::new(None);
        let file = |(index, ms): (usize, &i64)| {
            let id = format!("f{index}").into();
            let record = Record { used_ms: *ms, bytes: 1, owner: 0, id };
            Entry::new(*ms, records.push(&record).unwrap())
        };
        let files = used.iter().enumerate().map(file).collect();
        let batch_size = BatchSize::new(batch, 1, batch);
        Candidates {
            until_ms: 1000,
            files,
            records: records.finish().unwrap(),
            owners: Vec::new(),
            kept: Arc::default(),
            next: 0,
            end: None,
            last_size: 0,
            batch_size,
            rules: Rules {
                before: Timestamp::default(),
                larger_than: Size(0),
                keep_avatars: true,
                read_in: ReadIn::OneRun,
            },
        }
    }

    /// The cut-off in milliseconds and the number of files of each call.
    fn batches(files: &mut Candidates) -> Vec<(i64, u64)> {
        let next = || files.next_batch(Some(Duration::from_secs(10)));
        std::iter::from_fn(next).map(|batch| (batch.before_ms, batch.count())).collect()
    }

    #[test]
    fn the_cutoff_moves_forward_and_the_last_call_reaches_the_end() {
        let mut files = candidates(&[10, 20, 30, 40, 50], 2);
        assert_eq!(batches(&mut files), [(30, 2), (50, 2), (1000, 1)]);
    }

    #[test]
    fn files_of_one_millisecond_stay_together_and_at_most_is_never_exceeded() {
        let mut files = candidates(&[10, 20, 20, 20, 30], 2);
        assert_eq!(batches(&mut files), [(20, 1), (30, 3), (1000, 1)]);
        let mut files = candidates(&[10, 20, 20, 20, 30], 100);
        assert_eq!(files.truncate(3), 1);
        let only = files.next(None).unwrap();
        assert_eq!(
            (only.count(), files.remaining(), files.next(None).is_none()),
            (1, Some(0), true)
        );
        assert_eq!(candidates(&[20, 20], 100).truncate(1), 0);
    }

    #[test]
    fn a_file_takes_twelve_bytes_and_sorts_by_its_last_use() {
        assert_eq!(size_of::<Entry>(), 12);
        let at = |used_ms| {
            Entry::new(
                used_ms,
                SpoolWriter::new(None)
                    .push(&Record { used_ms, bytes: 1, owner: 0, id: "f".into() })
                    .unwrap(),
            )
        };
        let times =
            [i64::MIN, -(1 << 40), -1, 0, 1, 0xFFFF_FFFF, 1 << 32, 1_700_000_000_000, i64::MAX];
        assert!(times.map(at).is_sorted());
        assert_eq!(times.map(|time| at(time).used_ms()), times);
    }

    #[test]
    fn only_planned_files_among_those_asked_about_are_named() {
        let files = candidates(&[10, 20], 2);
        let planned = files.planned_among(&HashSet::from(["f1", "f2"]));
        assert_eq!(planned, HashSet::from(["f1".to_owned()]));
    }
}
