//! `purge-local-media`: deletes uploads that have not been used for a long time.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::batch_size::{BatchSize, Sample};
use super::file_spool::{Position, Record, Spool, SpoolWriter};
use super::job::{Context, Job, Needs, PlanError, ReadEstimate};
use crate::plan::change::{BatchPlan, Change, ChangeResult, Check, Lane, MediaStore, Plan, Work};
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::{Action, Exempt, OwnerUsage};
use crate::synapse::{self, File, MediaOwner, Reader, Version, Writer};
use crate::values::age::{Age, AgeEntries};
use crate::values::clock::{Timestamp, format_time};
use crate::values::duration::HumanDuration;
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, Key, Table};
use crate::values::size::Size;
use crate::values::text::format_count;

schema! {
    pub entries Keys {
        /// Deletes files not accessed for this long, counted back from the start of the run; a file that was never accessed counts from its upload. Set exactly one of `older_than` and `before`.
        pub older_than: Option<HumanDuration> where "\"0s\"" to "\"3650d\"",
        /// Deletes files not accessed since this time.
        pub before: Option<Timestamp>,
        /// Allows an age of less than 7 days.
        pub allow_recent: bool = "false",
        /// Deletes only files larger than this.
        pub larger_than: Size where "\"0B\"" to "\"1024TiB\"" = "\"0B\"",
        /// Keeps the avatars of users and rooms, and every file that was a user's avatar in a room, but not former avatars of rooms.
        pub keep_avatars: bool = "true",
        /// The maximum number of files per call to Synapse. Batches start at 200 files and grow while a call takes less than about 10 s, or while most of its time does not depend on their size; they shrink when calls take more than 20 s, but not below 200.
        pub batch_files: u32 where "1" to "1000000" = "20000",
        /// On a homeserver with media in object storage: deletes the files from Synapse although their objects remain in the storage.
        pub orphan_objects: bool = "false",
    }
}

#[derive(Debug)]
pub struct PurgeLocalMedia {
    age: Age,
    larger_than: Size,
    keep_avatars: bool,
    batch_files: u32,
    orphan_objects: bool,
}

impl Job for PurgeLocalMedia {
    const KIND: &'static str = "purge-local-media";
    const ABOUT: &'static str = "Deletes files that local users uploaded and that have not been accessed for a long time. They cannot be restored: other servers may have cached copies, but microglia does not request them. \
        Skips quarantined and protected files, empty and pending uploads, and (keep_avatars) avatars: those in use, and former ones of users in rooms. \
        Does not recognize stickers, custom emoji or other files that rooms refer to: protect those in Synapse first.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::PurgeLocalMedia;
    const NEEDS: Needs = Needs {
        synapse: Version(1, 78),
        clock: true,
        not_under_mas: None,
        plans_offline: false,
        media: true,
    };

    fn read(table: &Table<'_, '_>, now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let keys = Keys::parse(table, errors);
        let age = AgeEntries {
            older_than: &keys.older_than,
            before: &keys.before,
            allow_recent: &keys.allow_recent,
        };
        let age = Age::combine(age, &table.span, now, errors);
        Some(Self {
            age: age?,
            larger_than: keys.larger_than.value?,
            keep_avatars: keys.keep_avatars.value?,
            batch_files: keys.batch_files.value?,
            orphan_objects: keys.orphan_objects.value?,
        })
    }

    async fn read_estimate(&self, reader: &Reader) -> Result<Option<ReadEstimate>, synapse::Error> {
        Ok(Some(ReadEstimate { what: OWNERS, items: reader.count_media_owners().await? }))
    }

    fn topic(&self) -> Option<Topic> {
        self.keep_avatars.then_some(Topic::Kept)
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        if context.media_in_object_storage && !self.orphan_objects {
            return Err(PlanError::Refused(
                "this homeserver keeps its media in object storage, where Synapse deletes nothing: the objects would remain without any reference to them. \
                 Set `orphan_objects = true` if a lifecycle rule of the bucket deletes them"
                    .to_owned(),
            ));
        }
        let before = self.age.past_cut_off(context.started_at).map_err(PlanError::Refused)?;
        let found = self.candidates(context, before, context.facts.known(), plan).await?;
        if !found.kept.is_empty() {
            plan.notes.push(format!(
                "{} that Synapse kept in an earlier run, most likely avatars, {} left out",
                format_count(found.kept.len() as u64, "file", "files"),
                if found.kept.len() == 1 { "is" } else { "are" }
            ));
        }
        let mut files = found.files;
        files.sort_unstable();
        let candidates = Candidates {
            until_ms: before.timestamp_millis(),
            files,
            records: found.records.finish().map_err(|error| unwritable(context, &error))?,
            owners: found.owners,
            kept: found.kept.into(),
            next: 0,
            end: None,
            last_size: 0,
            batch_size: BatchSize::new(FIRST_BATCH, FIRST_BATCH, i64::from(self.batch_files)),
            larger_than: self.larger_than,
            keep_avatars: self.keep_avatars,
        };
        (plan.bytes, plan.sample) = (candidates.bytes(), candidates.sample());
        plan.work = Work::BatchPlan(Box::new(candidates));
        Ok(())
    }
}

/// Files of the first call, and the minimum of later ones: smaller calls would hardly be faster.
const FIRST_BATCH: i64 = 200;
/// What is read one by one.
const OWNERS: &str = "accounts with files";
/// Accounts in the sample of a plan.
const SAMPLE_ACCOUNTS: usize = 10;

/// The most files for which memory is reserved in advance: the number comes from the homeserver.
const MAX_RESERVED: usize = 50_000_000;

struct Found<'a> {
    files: Vec<Entry>,
    records: SpoolWriter<'a>,
    /// The accounts that the files belong to.
    owners: Vec<OwnerUsage>,
    /// Left out because Synapse kept them in an earlier run.
    kept: Vec<Candidate>,
}

impl Found<'_> {
    /// Adds files of one account; `kept` are those that Synapse kept in earlier runs, with their last use.
    fn add<'a>(
        &mut self,
        files: impl Iterator<Item = &'a File>,
        owner: &mut Option<u32>,
        user_id: &str,
        kept: &HashMap<String, String>,
        plan: &mut Plan,
    ) -> io::Result<()> {
        for file in files {
            if let Some(exempt) = exempt(file) {
                plan.leave_alone(exempt, || target(&file.media_id, user_id));
                continue;
            }
            let used_ms = file.last_used_ms();
            let (bytes, id) = (file.media_length.unwrap_or(0), file.media_id.as_str().into());
            if kept.get(&file.media_id).is_some_and(|used| *used == used_ms.to_string()) {
                plan.leave_alone(Exempt::Kept, || target(&file.media_id, user_id));
                self.kept.push(Candidate { used_ms, bytes, id });
                continue;
            }
            let owner = *owner.get_or_insert_with(|| {
                self.owners.push(OwnerUsage { user_id: user_id.to_owned(), files: 0, bytes: 0 });
                u32::try_from(self.owners.len() - 1).unwrap_or(u32::MAX)
            });
            if let Some(usage) = self.owners.get_mut(owner as usize) {
                usage.files += 1;
                usage.bytes = usage.bytes.saturating_add(bytes);
            }
            let position = self.records.push(&Record { bytes, owner, id })?;
            self.files.push(Entry::new(used_ms, position));
        }
        Ok(())
    }
}

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

/// A file with all that is known of it.
#[derive(Debug)]
struct Candidate {
    used_ms: i64,
    bytes: u64,
    id: Box<str>,
}

/// What was read of an account's files.
enum Listed {
    Page(Vec<File>),
    /// Synapse does not list the account.
    Unlisted,
    End,
}

fn unwritable(context: &Context<'_>, error: &io::Error) -> PlanError {
    let directory = context.spool_directory.unwrap_or(Path::new("memory")).display();
    PlanError::Refused(format!(
        "the list of files cannot be kept in {directory} ({error}): it takes about 40 bytes per file, free some space there"
    ))
}

/// Reads the files of one account, page by page.
fn listed<'a>(
    context: &'a Context<'_>,
    owner: &'a MediaOwner,
    before: Timestamp,
) -> BoxStream<'a, Result<Listed, synapse::Error>> {
    let end = stream::once(async { Ok(Listed::End) });
    let Some(user_id) = &owner.user_id else {
        return stream::once(async { Ok(Listed::Unlisted) }).chain(end).boxed();
    };
    let pages = context.reader.file_pages(user_id, before).map(|page| match page {
        Err(error) if error.is_not_found() => Ok(Listed::Unlisted),
        page => page.map(Listed::Page),
    });
    pages.chain(end).boxed()
}

impl PurgeLocalMedia {
    async fn candidates<'a>(
        &self,
        context: &Context<'a>,
        before: Timestamp,
        kept: &HashMap<String, String>,
        plan: &mut Plan,
    ) -> Result<Found<'a>, PlanError> {
        // A file is uploaded before it is accessed: only accounts with uploads before the cut-off can have candidates.
        let owners = context.reader.media_owners(Some(before)).await?;
        context.expect_reading(ReadEstimate { what: OWNERS, items: owners.len() as u64 });
        let total = owners.iter().fold(0, |sum: u64, owner| sum.saturating_add(owner.media_count));
        let mut files = Vec::new();
        // A vector that grows needs twice its size for a moment. Without the memory it has to.
        let _ = files.try_reserve_exact(usize::try_from(total).unwrap_or(0).min(MAX_RESERVED));
        let records = SpoolWriter::new(context.spool_directory);
        let mut found = Found { files, records, owners: Vec::new(), kept: Vec::new() };
        let mut indices: Vec<Option<u32>> = vec![None; owners.len()];
        let (mut read, mut unlisted) = (0, 0);
        let owners = &owners;
        let mut lists = stream::iter(0..owners.len())
            .map(|number| {
                let owner = &owners[number];
                listed(context, owner, before).map_ok(move |listed| (number, owner, listed)).boxed()
            })
            .flatten_unordered(context.concurrency);
        context.reading("files", 0, total);
        while let Some((number, owner, listed)) = lists.try_next().await? {
            match (listed, indices.get_mut(number)) {
                (Listed::Page(files), Some(index)) => {
                    let old = files.iter().filter(|file| self.is_old(file, before));
                    let user_id = owner.user_id.as_deref().unwrap_or_default();
                    let added = found.add(old, index, user_id, kept, plan);
                    added.map_err(|error| unwritable(context, &error))?;
                }
                (Listed::Unlisted, _) => unlisted = owner.media_count.saturating_add(unlisted),
                _ => {
                    read = owner.media_count.saturating_add(read);
                    context.reading("files", read.min(total), total);
                }
            }
        }
        drop(lists);
        if unlisted > 0 {
            plan.notes.push(format!(
                "{} of accounts that Synapse does not list cannot be counted in advance",
                format_count(unlisted, "file", "files")
            ));
        }
        Ok(found)
    }

    /// Whether age and size select the file; one without a size is selected and then exempt.
    fn is_old(&self, file: &File, before: Timestamp) -> bool {
        file.last_used_ms() < before.timestamp_millis()
            && file.media_length.is_none_or(|bytes| bytes == 0 || bytes > self.larger_than.0)
    }
}

/// Synapse's own rule (1.163, `get_local_media_ids`), except for avatars, which no list shows.
fn exempt(file: &File) -> Option<Exempt> {
    if file.quarantined_by.is_some() {
        Some(Exempt::Quarantined)
    } else if file.safe_from_quarantine {
        Some(Exempt::Protected)
    } else if file.media_length.is_none_or(|bytes| bytes == 0) {
        Some(Exempt::Empty)
    } else {
        None
    }
}

fn target(media_id: &str, user_id: &str) -> String {
    format!("{media_id} of {user_id}")
}

/// The candidates by last use, deleted up to a cut-off that moves forward.
#[derive(Debug)]
struct Candidates {
    until_ms: i64,
    files: Vec<Entry>,
    records: Spool,
    /// With all their files.
    owners: Vec<OwnerUsage>,
    kept: Arc<[Candidate]>,
    /// The index of the first file after the cut-off.
    next: usize,
    /// Where `at_most` ends the plan.
    end: Option<usize>,
    /// Files of the last call.
    last_size: i64,
    batch_size: BatchSize,
    larger_than: Size,
    keep_avatars: bool,
}

impl Candidates {
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
            larger_than: self.larger_than,
            keep_avatars: self.keep_avatars,
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
        let Ok(usage) = self.remaining_usage() else { return Vec::new() };
        let mut usage: Vec<&OwnerUsage> = usage.iter().filter(|owner| owner.files > 0).collect();
        usage.sort_unstable_by(|a, b| (b.bytes, &a.user_id).cmp(&(a.bytes, &b.user_id)));
        usage.truncate(SAMPLE_ACCOUNTS);
        usage.into_iter().cloned().collect()
    }

    fn next(&mut self, last: Option<Duration>) -> Option<Box<dyn Change>> {
        Some(Box::new(self.next_batch(last)?))
    }
}

/// One call: it deletes all files used before a cut-off, of which earlier calls left these.
#[derive(Debug)]
struct Batch {
    before_ms: i64,
    files: Vec<Candidate>,
    /// Why the files cannot be read again.
    unreadable: Option<String>,
    /// Not planned, but deleted as well if Synapse no longer keeps them.
    kept: Arc<[Candidate]>,
    larger_than: Size,
    keep_avatars: bool,
}

impl Change for Batch {
    fn action(&self) -> Action {
        Action::PurgeLocalMedia
    }

    fn target(&self) -> String {
        format!("local files last accessed before {}", format_ms(self.before_ms))
    }

    fn count(&self) -> u64 {
        self.files.len() as u64
    }

    fn lane(&self) -> Lane {
        Lane::Media(MediaStore::Local { until: self.before() })
    }

    fn items(&self) -> Vec<(String, Option<u64>)> {
        self.files.iter().map(|file| (file.id.to_string(), Some(file.bytes))).collect()
    }

    fn check<'a>(&'a self, _reader: &'a Reader) -> BoxFuture<'a, Result<Check, synapse::Error>> {
        Box::pin(async {
            match &self.unreadable {
                None => Ok(Check::Proceed(None)),
                Some(problem) => Err(synapse::Error::not_sent(format!(
                    "the list of files in the state directory cannot be read: {problem}"
                ))),
            }
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, synapse::Error>> {
        Box::pin(async move {
            let deleted = writer
                .delete_local_media(self.before(), self.larger_than.0, self.keep_avatars)
                .await?;
            Ok(self.outcome(deleted))
        })
    }
}

impl Batch {
    fn before(&self) -> Timestamp {
        Timestamp::from_timestamp_millis(self.before_ms).unwrap_or_default()
    }

    fn outcome(&self, deleted: Vec<String>) -> ChangeResult {
        let known = self.files.iter().chain(self.kept.iter());
        let sizes: HashMap<&str, u64> = known.map(|file| (&*file.id, file.bytes)).collect();
        let files: Vec<(String, Option<u64>)> = deleted
            .into_iter()
            .map(|id| (sizes.get(id.as_str()).copied(), id))
            .map(|(bytes, id)| (id, bytes))
            .collect();
        let gone: HashSet<&str> = files.iter().map(|(id, _)| id.as_str()).collect();
        let facts: Vec<Fact> = self
            .files
            .iter()
            .filter(|file| !gone.contains(&*file.id))
            .map(|file| Fact {
                topic: Topic::Kept,
                key: file.id.to_string(),
                value: file.used_ms.to_string(),
            })
            .collect();
        let (done, skipped) = (files.len() as u64, facts.len() as u64);
        let kept = if self.keep_avatars {
            "most likely avatars; Synapse's log names files that it could not delete"
        } else {
            "accessed since the plan, or not deletable: see Synapse's log"
        };
        ChangeResult {
            done,
            skipped,
            bytes: files.iter().filter_map(|(_, bytes)| *bytes).fold(0, u64::saturating_add),
            detail: (skipped > 0).then(|| {
                format!(
                    "Synapse kept {} of this batch, {kept}",
                    format_count(skipped, "file", "files")
                )
            }),
            files,
            // Only an avatar is kept for good; anything else is planned again by the next run.
            facts: if self.keep_avatars { facts } else { Vec::new() },
            answer: None,
        }
    }
}

fn format_ms(ms: i64) -> String {
    format_time(Timestamp::from_timestamp_millis(ms).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(used: &[i64], batch: i64) -> Candidates {
        let mut records = SpoolWriter::new(None);
        let file = |(index, ms): (usize, &i64)| {
            let record = Record { bytes: 1, owner: 0, id: format!("f{index}").into() };
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
            larger_than: Size(0),
            keep_avatars: true,
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
                    .push(&Record { bytes: 1, owner: 0, id: "f".into() })
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
