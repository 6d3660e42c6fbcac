//! `purge-local-media`: deletes uploads that have not been used for a long time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::batch_size::{BatchSize, Sample};
use super::job::{Context, Job, Needs, PlanError, ReadEstimate};
use crate::plan::change::{BatchPlan, Change, ChangeResult, Lane, MediaStore, Plan, Work};
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::{Action, Exempt, OwnerUsage};
use crate::synapse::{self, File, Reader, Version, Writer};
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
        files.sort_unstable_by(|a, b| (a.used_ms, &a.id).cmp(&(b.used_ms, &b.id)));
        let candidates = Candidates {
            until_ms: before.timestamp_millis(),
            files: files.into(),
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

struct Found {
    files: Vec<Candidate>,
    /// The accounts that the files belong to.
    owners: Vec<Box<str>>,
    /// Left out because Synapse kept them in an earlier run.
    kept: Vec<Candidate>,
}

impl Found {
    /// Adds the files of one account; `kept` are those that Synapse kept in earlier runs, with their last use.
    fn add<'a>(
        &mut self,
        files: impl Iterator<Item = &'a File>,
        user_id: String,
        kept: &HashMap<String, String>,
        plan: &mut Plan,
    ) {
        let owner = u32::try_from(self.owners.len()).unwrap_or(u32::MAX);
        let count_before = self.files.len() + self.kept.len();
        for file in files {
            if let Some(exempt) = exempt(file) {
                plan.leave_alone(exempt, || target(&file.media_id, &user_id));
                continue;
            }
            let used_ms = file.last_used_ms();
            let bytes = file.media_length.unwrap_or(0);
            let candidate = Candidate { used_ms, bytes, id: file.media_id.as_str().into(), owner };
            if kept.get(&file.media_id).is_some_and(|used| *used == used_ms.to_string()) {
                plan.leave_alone(Exempt::Kept, || target(&file.media_id, &user_id));
                self.kept.push(candidate);
            } else {
                self.files.push(candidate);
            }
        }
        if self.files.len() + self.kept.len() > count_before {
            self.owners.push(user_id.into());
        }
    }
}

/// A file that Synapse will delete unless it is an avatar, which the list does not show.
#[derive(Debug)]
struct Candidate {
    used_ms: i64,
    bytes: u64,
    id: Box<str>,
    /// Its index in the list of owners.
    owner: u32,
}

impl PurgeLocalMedia {
    async fn candidates(
        &self,
        context: &Context<'_>,
        before: Timestamp,
        kept: &HashMap<String, String>,
        plan: &mut Plan,
    ) -> Result<Found, PlanError> {
        // A file is uploaded before it is accessed: only accounts with uploads before the cut-off can have candidates.
        let owners = context.reader.media_owners(Some(before)).await?;
        context.expect_reading(ReadEstimate { what: OWNERS, items: owners.len() as u64 });
        let total = owners.iter().fold(0, |sum: u64, owner| sum.saturating_add(owner.media_count));
        let mut found = Found { files: Vec::new(), owners: Vec::new(), kept: Vec::new() };
        let (mut read, mut unlisted) = (0, 0);
        let mut lists = stream::iter(owners)
            .map(|owner| async move {
                let Some(user_id) = owner.user_id else {
                    return Ok((String::new(), owner.media_count, None));
                };
                match context.reader.files_of(&user_id, before).await {
                    Ok(files) => Ok((user_id, owner.media_count, Some(files))),
                    Err(error) if error.is_not_found() => Ok((user_id, owner.media_count, None)),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(context.concurrency);
        context.reading("files", 0, total);
        while let Some((user_id, count, files)) = lists.try_next().await? {
            read = count.saturating_add(read);
            context.reading("files", read.min(total), total);
            let Some(files) = files else {
                unlisted = count.saturating_add(unlisted);
                continue;
            };
            let old = files.iter().filter(|file| self.is_old(file, before));
            found.add(old, user_id, kept, plan);
        }
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
    files: Arc<[Candidate]>,
    owners: Vec<Box<str>>,
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

    fn remaining_files(&self) -> &[Candidate] {
        &self.files[self.next..self.end()]
    }

    /// Returns the largest number of files up to `length` that a cut-off can separate: files used in the same millisecond belong together.
    fn separable(&self, length: usize) -> usize {
        let mut length = length.min(self.files.len());
        while length > 0
            && length < self.files.len()
            && self.files[length].used_ms == self.files[length - 1].used_ms
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
        let before_ms = self.files.get(stop).map_or(self.until_ms, |first_kept| first_kept.used_ms);
        Some(Batch {
            before_ms,
            files: Arc::clone(&self.files),
            kept: Arc::clone(&self.kept),
            start,
            stop,
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

    fn items(&self) -> HashSet<String> {
        self.files.iter().map(|file| file.id.to_string()).collect()
    }

    fn truncate(&mut self, most: u64) -> u64 {
        let length = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(self.next);
        if length < self.files.len() {
            self.end = Some(self.separable(length).max(self.next));
        }
        (self.end() - self.next) as u64
    }

    fn bytes(&self) -> Option<u64> {
        Some(self.remaining_files().iter().map(|file| file.bytes).sum())
    }

    fn sample(&self) -> Vec<OwnerUsage> {
        let mut usage: Vec<OwnerUsage> = self
            .owners
            .iter()
            .map(|owner| OwnerUsage { user_id: owner.to_string(), files: 0, bytes: 0 })
            .collect();
        for file in self.remaining_files() {
            if let Some(owner) = usage.get_mut(file.owner as usize) {
                owner.files += 1;
                owner.bytes += file.bytes;
            }
        }
        usage.retain(|owner| owner.files > 0);
        usage.sort_unstable_by(|a, b| (b.bytes, &a.user_id).cmp(&(a.bytes, &b.user_id)));
        usage.truncate(SAMPLE_ACCOUNTS);
        usage
    }

    fn next(&mut self, last: Option<Duration>) -> Option<Box<dyn Change>> {
        Some(Box::new(self.next_batch(last)?))
    }
}

/// One call: it deletes all files used before a cut-off, of which earlier calls left these.
#[derive(Debug)]
struct Batch {
    before_ms: i64,
    files: Arc<[Candidate]>,
    /// Not planned, but deleted as well if Synapse no longer keeps them.
    kept: Arc<[Candidate]>,
    start: usize,
    stop: usize,
    larger_than: Size,
    keep_avatars: bool,
}

impl Batch {
    fn files(&self) -> &[Candidate] {
        &self.files[self.start..self.stop]
    }
}

impl Change for Batch {
    fn action(&self) -> Action {
        Action::PurgeLocalMedia
    }

    fn target(&self) -> String {
        format!("local files last accessed before {}", format_ms(self.before_ms))
    }

    fn count(&self) -> u64 {
        self.files().len() as u64
    }

    fn lane(&self) -> Lane {
        Lane::Media(MediaStore::Local { until: self.before() })
    }

    fn items(&self) -> Vec<(String, Option<u64>)> {
        self.files().iter().map(|file| (file.id.to_string(), Some(file.bytes))).collect()
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
        let known = self.files().iter().chain(self.kept.iter());
        let sizes: HashMap<&str, u64> = known.map(|file| (&*file.id, file.bytes)).collect();
        let files: Vec<(String, Option<u64>)> = deleted
            .into_iter()
            .map(|id| (sizes.get(id.as_str()).copied(), id))
            .map(|(bytes, id)| (id, bytes))
            .collect();
        let gone: HashSet<&str> = files.iter().map(|(id, _)| id.as_str()).collect();
        let facts: Vec<Fact> = self
            .files()
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
        let files: Vec<Candidate> = used
            .iter()
            .enumerate()
            .map(|(index, ms)| Candidate {
                used_ms: *ms,
                bytes: 1,
                id: format!("f{index}").into(),
                owner: 0,
            })
            .collect();
        let batch_size = BatchSize::new(batch, 1, batch);
        Candidates {
            until_ms: 1000,
            files: files.into(),
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
}
