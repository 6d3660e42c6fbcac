//! `purge-local-media`: deletes uploads that nobody has used for long.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::steps::{Call, Step};
use crate::jobs::job::{Context, Job, Needs, PlanError, ReadEstimate};
use crate::plan::change::{BatchPlan, Change, ChangeResult, Fact, Lane, Plan, Store, Topic, Work};
use crate::plan::report::{Action, Exempt, OwnerUsage};
use crate::synapse::{self, File, Reader, Version, Writer};
use crate::values::age::{Age, Moment};
use crate::values::clock::{Timestamp, format_time};
use crate::values::duration::HumanDuration;
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, Key, Table};
use crate::values::size::Size;
use crate::values::text::format_count;

schema! {
    #[expect(dead_code, reason = "`Age::read` reads its keys itself, so that it judges them where another key is wrong")]
    pub struct Keys {
        /// Only files not accessed for this long, counted back from the start of the run; a file never accessed counts from its upload. Exactly one of `older_than` and `before`.
        pub older_than: Option<HumanDuration> where "\"0s\"" to "\"3650d\"",
        /// Only files not accessed since this moment.
        pub before: Option<Moment>,
        /// Allows an age under 7 days.
        pub allow_recent: bool = "false",
        /// Only files larger than this.
        pub larger_than: Size where "\"0B\"" to "\"1024TiB\"" = "\"0B\"",
        /// Keeps the avatars of users and rooms, and every file that was a user's avatar in some room; not a room's former avatars.
        pub keep_avatars: bool = "true",
        /// The most files of one call to Synapse. Batches start at 200 files and grow while a call takes less than about 10 s, or while most of its time does not depend on their size; they shrink when calls take more than 20 s, never below 200.
        pub batch_files: u32 where "1" to "1000000" = "20000",
        /// Where the homeserver keeps its media in object storage: deletes the entries although Synapse never deletes the objects.
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
    const ABOUT: &'static str = "Deletes files that local users uploaded and that nobody accessed for long. They are gone for good: no other server is asked to keep them. \
        Leaves alone what is quarantined or protected, empty and pending uploads, and (keep_avatars) avatars: those in use, and the former ones of users in rooms. \
        Does not know stickers, custom emoji or files in use by rooms: protect those in Synapse first.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::PurgeLocalMedia;
    const NEEDS: Needs = Needs {
        synapse: Version(1, 78),
        clock: true,
        not_under_mas: None,
        plans_offline: false,
        media: true,
    };

    fn read(
        table: &Table<'_, '_>,
        now: Timestamp,
        mistakes: &mut Vec<ConfigError>,
    ) -> Option<Self> {
        let (keys, age) = (Keys::read(table, mistakes), Age::read(table, now, mistakes));
        let (Keys { larger_than, keep_avatars, batch_files, orphan_objects, .. }, age) =
            (keys?, age?);
        Some(Self { age, larger_than, keep_avatars, batch_files, orphan_objects })
    }

    async fn read_estimate(&self, reader: &Reader) -> Result<Option<ReadEstimate>, synapse::Error> {
        Ok(Some(ReadEstimate { what: OWNERS, items: reader.count_media_owners().await? }))
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        if context.media_in_object_storage && !self.orphan_objects {
            return Err(PlanError::Refused(
                "this homeserver keeps its media in object storage, where Synapse deletes nothing: the objects would stay, and nothing would know them any more. \
                 Set `orphan_objects = true` if a lifecycle rule of the bucket removes them"
                    .to_owned(),
            ));
        }
        let before = self.age.past_cut_off(context.started_at).map_err(PlanError::Refused)?;
        let kept = if self.keep_avatars {
            context.memory.facts(Topic::Kept).await?
        } else {
            HashMap::new()
        };
        let found = self.candidates(context, before, &kept, plan).await?;
        if !found.kept.is_empty() {
            plan.notes.push(format!(
                "{} that Synapse kept before, most likely avatars, {} left out",
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
            sent: 0,
            step: Step::new(FIRST_BATCH, FIRST_BATCH, i64::from(self.batch_files)),
            larger_than: self.larger_than,
            keep_avatars: self.keep_avatars,
        };
        (plan.bytes, plan.sample) = (candidates.bytes(), candidates.sample());
        plan.work = Work::BatchPlan(Box::new(candidates));
        Ok(())
    }
}

/// Files of the first call, and of every later one at least: smaller calls would hardly be faster.
const FIRST_BATCH: i64 = 200;
/// What is asked about one by one.
const OWNERS: &str = "accounts with files";
/// Accounts of the sample.
const SAMPLE: usize = 10;

struct Found {
    files: Vec<Candidate>,
    /// The accounts that the files belong to.
    owners: Vec<Box<str>>,
    /// Left out because Synapse kept them before.
    kept: Vec<Candidate>,
}

/// A file that Synapse would delete as far as a list can tell: it does not show avatars.
#[derive(Debug)]
struct Candidate {
    used_ms: i64,
    bytes: u64,
    id: Box<str>,
    /// Its place among the owners.
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
        // A file is older than its last access: only who uploaded before the moment can have candidates.
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
            let owner = u32::try_from(found.owners.len()).unwrap_or(u32::MAX);
            let before_it = found.files.len() + found.kept.len();
            for file in files.iter().filter(|file| self.is_old(file, before)) {
                if let Some(exempt) = exempt(file) {
                    plan.leave_alone(exempt, || target(&file.media_id, &user_id));
                    continue;
                }
                let bytes = file.media_length.unwrap_or(0);
                let id = file.media_id.as_str().into();
                let candidate = Candidate { used_ms: file.last_used_ms(), bytes, id, owner };
                if kept
                    .get(&file.media_id)
                    .is_some_and(|used| *used == file.last_used_ms().to_string())
                {
                    plan.leave_alone(Exempt::Kept, || target(&file.media_id, &user_id));
                    found.kept.push(candidate);
                    continue;
                }
                found.files.push(candidate);
            }
            if found.files.len() + found.kept.len() > before_it {
                found.owners.push(user_id.into());
            }
        }
        if unlisted > 0 {
            plan.notes.push(format!(
                "{} of accounts that Synapse does not list cannot be counted beforehand",
                format_count(unlisted, "file", "files")
            ));
        }
        Ok(found)
    }

    /// Whether age and size choose the file; one without a size is chosen, and exempt.
    fn is_old(&self, file: &File, before: Timestamp) -> bool {
        file.last_used_ms() < before.timestamp_millis()
            && file.media_length.is_none_or(|bytes| bytes == 0 || bytes > self.larger_than.0)
    }
}

/// Synapse's own rule (1.163, `get_local_media_ids`), but for avatars, which no list shows.
fn exempt(file: &File) -> Option<Exempt> {
    match () {
        () if file.quarantined_by.is_some() => Some(Exempt::Quarantined),
        () if file.safe_from_quarantine => Some(Exempt::Protected),
        () if file.media_length.is_none_or(|bytes| bytes == 0) => Some(Exempt::Empty),
        () => None,
    }
}

fn target(media_id: &str, user_id: &str) -> String {
    format!("{media_id} of {user_id}")
}

/// The candidates in the order of their last use, deleted by a cut-off that walks upward.
#[derive(Debug)]
struct Candidates {
    until_ms: i64,
    files: Arc<[Candidate]>,
    owners: Vec<Box<str>>,
    kept: Arc<[Candidate]>,
    /// The first file that is not behind the cut-off yet.
    next: usize,
    /// Where `at_most` ends the walk.
    end: Option<usize>,
    /// Files of the last call.
    sent: i64,
    step: Step,
    larger_than: Size,
    keep_avatars: bool,
}

impl Candidates {
    fn end(&self) -> usize {
        self.end.unwrap_or(self.files.len())
    }

    fn left_files(&self) -> &[Candidate] {
        &self.files[self.next..self.end()]
    }

    /// The largest number of files up to `length` that a cut-off can part from the rest: files used in the same millisecond go together.
    fn parting(&self, length: usize) -> usize {
        let mut length = length.min(self.files.len());
        while length > 0
            && length < self.files.len()
            && self.files[length].used_ms == self.files[length - 1].used_ms
        {
            length -= 1;
        }
        length
    }
}

impl BatchPlan for Candidates {
    fn action(&self) -> Action {
        Action::PurgeLocalMedia
    }

    fn target(&self) -> String {
        format!("local files last accessed before {}", spoken_ms(self.until_ms))
    }

    fn left(&self) -> Option<u64> {
        Some((self.end() - self.next) as u64)
    }

    fn things(&self) -> HashSet<String> {
        self.files.iter().map(|file| file.id.to_string()).collect()
    }

    fn keep(&mut self, most: u64) -> u64 {
        let length = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(self.next);
        if length < self.files.len() {
            self.end = Some(self.parting(length).max(self.next));
        }
        (self.end() - self.next) as u64
    }

    fn bytes(&self) -> Option<u64> {
        Some(self.left_files().iter().map(|file| file.bytes).sum())
    }

    fn sample(&self) -> Vec<OwnerUsage> {
        let mut shares: Vec<OwnerUsage> = self
            .owners
            .iter()
            .map(|owner| OwnerUsage { user_id: owner.to_string(), files: 0, bytes: 0 })
            .collect();
        for file in self.left_files() {
            if let Some(share) = shares.get_mut(file.owner as usize) {
                share.files += 1;
                share.bytes += file.bytes;
            }
        }
        shares.retain(|share| share.files > 0);
        shares.sort_unstable_by(|a, b| (b.bytes, &a.user_id).cmp(&(a.bytes, &b.user_id)));
        shares.truncate(SAMPLE);
        shares
    }

    fn next(&mut self, last: Option<Duration>) -> Option<Box<dyn Change>> {
        let (start, end) = (self.next, self.end());
        if start >= end {
            return None;
        }
        let last = last.map(|took| Call { size: self.sent, took });
        let size = usize::try_from(self.step.next(last)).unwrap_or(1);
        let mut stop = self.parting((start + size).min(end));
        if stop <= start {
            // More files of one millisecond than a batch holds: they cannot be parted.
            stop = (start + 1..=end).find(|stop| self.parting(*stop) == *stop).unwrap_or(end);
        }
        self.next = stop;
        self.sent = i64::try_from(stop - start).unwrap_or(i64::MAX);
        let before_ms = self.files.get(stop).map_or(self.until_ms, |first_kept| first_kept.used_ms);
        Some(Box::new(Batch {
            before_ms,
            files: Arc::clone(&self.files),
            kept: Arc::clone(&self.kept),
            start,
            stop,
            larger_than: self.larger_than,
            keep_avatars: self.keep_avatars,
        }))
    }
}

/// One call: everything used before a moment, of which earlier calls left these files.
#[derive(Debug)]
struct Batch {
    before_ms: i64,
    files: Arc<[Candidate]>,
    /// Not planned, and gone with the others where Synapse does not keep them any more.
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
        format!("local files last accessed before {}", spoken_ms(self.before_ms))
    }

    fn count(&self) -> u64 {
        self.files().len() as u64
    }

    fn lane(&self) -> Lane {
        Lane::Media(Store::Local { until: self.before() })
    }

    fn things(&self) -> Vec<(String, Option<u64>)> {
        self.files().iter().map(|file| (file.id.to_string(), Some(file.bytes))).collect()
    }

    fn make<'a>(
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
            "most likely avatars; its log names files that it could not delete"
        } else {
            "used meanwhile, or not to be deleted: its log says why"
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
            // Only avatars stay what they are; anything else is planned again the next night.
            facts: if self.keep_avatars { facts } else { Vec::new() },
            answer: None,
        }
    }
}

fn spoken_ms(ms: i64) -> String {
    format_time(Timestamp::from_timestamp_millis(ms).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(used: &[i64], batch: i64) -> Candidates {
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
        let step = Step::new(batch, 1, batch);
        Candidates {
            until_ms: 1000,
            files: files.into(),
            owners: Vec::new(),
            kept: Arc::default(),
            next: 0,
            end: None,
            sent: 0,
            step,
            larger_than: Size(0),
            keep_avatars: true,
        }
    }

    fn calls(mut walk: Candidates) -> Vec<(i64, u64)> {
        let mut calls = Vec::new();
        while let Some(change) = walk.next(Some(Duration::from_secs(10))) {
            let target = change.target();
            let ms = target
                .strip_prefix("local files last accessed before 1970-01-01 00:00:0")
                .map_or(1000, |rest| rest[..1].parse::<i64>().unwrap());
            calls.push((ms, change.count()));
        }
        calls
    }

    #[test]
    fn the_cut_off_walks_upward_and_the_last_call_reaches_the_end() {
        let mut files = walk(&[10, 20, 30, 40, 50], 2);
        let moments: Vec<(u64, String)> =
            std::iter::from_fn(|| files.next(Some(Duration::from_secs(10))))
                .map(|change| (change.count(), format!("{change:?}")))
                .collect();
        let cut_offs: Vec<&str> =
            moments.iter().map(|(_, text)| text.split(['{', ',']).nth(1).unwrap().trim()).collect();
        assert_eq!(cut_offs, ["before_ms: 30", "before_ms: 50", "before_ms: 1000"]);
        assert_eq!(moments.iter().map(|(count, _)| *count).collect::<Vec<_>>(), [2, 2, 1]);
    }

    #[test]
    fn files_of_one_millisecond_go_together_and_at_most_never_takes_more() {
        assert_eq!(
            calls(walk(&[10, 20, 20, 20, 30], 2))
                .iter()
                .map(|(_, count)| *count)
                .collect::<Vec<_>>(),
            [1, 3, 1]
        );
        let mut files = walk(&[10, 20, 20, 20, 30], 100);
        assert_eq!(files.keep(3), 1);
        let only = files.next(None).unwrap();
        assert_eq!((only.count(), files.left(), files.next(None).is_none()), (1, Some(0), true));
        assert_eq!(walk(&[20, 20], 100).keep(1), 0);
    }
}
