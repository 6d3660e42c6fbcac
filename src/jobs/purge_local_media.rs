//! `purge-local-media`: deletes uploads that have not been used for a long time.

mod batch;
mod candidates;
mod deletion;
mod exact;
mod file_spool;
mod in_use;
mod reading;
mod round_file;
mod selection;

use std::sync::Arc;

use serde_json::Value;

use super::account_state::Accounts;
use super::job::{CheckResult, Context, Job, Needs, PlanError, ReadEstimate, Undo};
use crate::plan::change::{BatchPlan, Plan, Work};
use crate::plan::facts::Topic;
use crate::plan::report::{Action, Event};
use crate::plan::round::{Plans, PortionRead, RoundFile, Rounds};
use crate::synapse::{self, Identity, Position, Reader, Version};
use crate::values::age::{Age, AgeEntries};
use crate::values::clock::Timestamp;
use crate::values::duration::HumanDuration;
use crate::values::glob::{Glob, UserGlob};
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, Key, NonEmpty, Table};
use crate::values::size::Size;
use crate::values::text::format_count;
use batch::{ReadIn, Rules};
use candidates::Candidates;
use reading::{OWNERS, Reading, unwritable};
use round_file::Saved;
use selection::{MediaTypeGlob, Selection};

schema! {
    pub entries Keys {
        /// Deletes files not accessed for this long, counted back from the start of the run, or of the first run of a round; a file that was never accessed counts from its upload. Set exactly one of `older_than` and `before`.
        pub older_than: Option<HumanDuration> where "\"0s\"" to "\"3650d\"",
        /// Deletes files not accessed since this time.
        pub before: Option<Timestamp>,
        /// Allows an age of less than 7 days.
        pub allow_recent: bool = "false",
        /// Deletes only files larger than this.
        pub larger_than: Size where "\"0B\"" to "\"1024TiB\"" = "\"0B\"",
        /// Keeps the avatars of users and rooms, and every file that was a user's avatar in a room, but not former avatars of rooms. In exact mode, keeps the avatars of users, and every file that the current state of a room refers to, such as avatars of rooms and members, and image packs; not former avatars.
        pub keep_avatars: bool = "true",
        /// The maximum number of files per call to Synapse. Batches start at 200 files and grow while a call takes less than about 10 s, or while most of its time does not depend on their size; they shrink when calls take more than 20 s, but not below 200.
        pub batch_files: u32 where "1" to "1000000" = "20000",
        /// On a homeserver with media in object storage: deletes the files from Synapse although their objects remain in the storage.
        pub orphan_objects: bool = "false",
        /// Exact mode: deletes only files of these accounts. With this key or any of the next five, files are chosen one by one and deleted by their ids.
        pub users: Option<NonEmpty<UserGlob>>,
        /// Exact mode: accounts whose files are never deleted.
        pub except_users: Option<Vec<UserGlob>>,
        /// Exact mode: deletes only files of accounts in these states; "locked" means locked or suspended. Under MAS, by what MAS says.
        pub accounts: Option<Accounts>,
        /// Exact mode: deletes only files of these media types, as the client that uploaded them said. Encrypted files are "application/octet-stream", whatever they contain.
        pub media_types: Option<NonEmpty<MediaTypeGlob>>,
        /// Exact mode: media types of which no file is deleted.
        pub except_media_types: Option<Vec<MediaTypeGlob>>,
        /// Exact mode: deletes only files that were uploaded under these names.
        pub upload_names: Option<NonEmpty<Glob>>,
    }
}

#[derive(Debug)]
pub struct PurgeLocalMedia {
    age: Age,
    larger_than: Size,
    keep_avatars: bool,
    batch_files: u32,
    orphan_objects: bool,
    /// What exact mode selects; `None` for the bulk mode.
    selection: Option<Arc<Selection>>,
    /// Whether `batch_files` is set in exact mode.
    ignores_batch_files: bool,
}

impl Job for PurgeLocalMedia {
    const KIND: &'static str = "purge-local-media";
    const ABOUT: &'static str = "Deletes files that local users uploaded and that have not been accessed for a long time. They cannot be restored: other servers may have cached copies, but microglia does not request them. \
        Skips quarantined and protected files, empty and pending uploads, and (keep_avatars) avatars: those in use, and former ones of users in rooms. \
        Does not recognize stickers, custom emoji or other files that rooms refer to: protect those in Synapse first. \
        With one of the keys users, except_users, accounts, media_types, except_media_types and upload_names (exact mode), chooses files one by one and deletes them by id: the plan names each file, and is exactly what is deleted. \
        Each file is read again just before, and left alone if it was used, protected or quarantined since. Also skips link previews, and (keep_avatars) what the state of any room refers to, stickers and custom emoji of its image packs among it: for that, the state of every room is read, one request each, as soon as there is a file to delete. \
        Takes a request per file: without these keys, far fewer. Needs Synapse 1.140. \
        If reading the files of all accounts takes several runs, these delete nothing before the last one has read the rest (in exact mode, each deletes what it has read); a file that was accessed since it was read is then planned, kept by Synapse and counted as skipped.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::PurgeLocalMedia;
    const UNDO: Undo = Undo::Impossible("files are gone for good");
    const ROUNDS: Option<Rounds> = Some(Rounds { entries: OWNERS, plans: Plans::WholeList });
    const NEEDS: Needs = Needs {
        synapse: Version(1, 78),
        clock: true,
        without_mas_client: None,
        plans_offline: false,
        media: true,
    };

    fn read(table: &Table<'_, '_>, now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let keys = Keys::parse(table, errors);
        let is_exact = keys.users.is_set
            || keys.except_users.is_set
            || keys.accounts.is_set
            || keys.media_types.is_set
            || keys.except_media_types.is_set
            || keys.upload_names.is_set;
        let age = AgeEntries {
            older_than: &keys.older_than,
            before: &keys.before,
            allow_recent: &keys.allow_recent,
        };
        let age = Age::combine(age, &table.span, now, errors);
        let selection = Selection {
            users: keys.users.value?.map(|users| users.to_vec()).unwrap_or_default(),
            except_users: keys.except_users.value?.unwrap_or_default(),
            accounts: keys.accounts.value?,
            media_types: keys.media_types.value?.map(|types| types.to_vec()).unwrap_or_default(),
            except_media_types: keys.except_media_types.value?.unwrap_or_default(),
            upload_names: keys.upload_names.value?.map(|names| names.to_vec()).unwrap_or_default(),
        };
        Some(Self {
            selection: is_exact.then(|| Arc::new(selection)),
            ignores_batch_files: is_exact && keys.batch_files.is_set,
            age: age?,
            larger_than: keys.larger_than.value?,
            keep_avatars: keys.keep_avatars.value?,
            batch_files: keys.batch_files.value?,
            orphan_objects: keys.orphan_objects.value?,
        })
    }

    fn rounds(&self) -> Option<Rounds> {
        let plans = if self.selection.is_some() { Plans::EachPortion } else { Plans::WholeList };
        Some(Rounds { entries: OWNERS, plans })
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let text = "`batch_files` has no effect: other keys of this job choose files one by one";
        self.ignores_batch_files.then(|| ("batch_files", text.to_owned())).into_iter().collect()
    }

    async fn check(&self, reader: &Reader, identity: &Identity) -> Vec<CheckResult> {
        let Some(selection) = &self.selection else { return Vec::new() };
        let answer = match exact::refusal(selection, identity, reader.mas().is_some()) {
            Some(refusal) => Err(refusal),
            None => Ok("yes".to_owned()),
        };
        vec![CheckResult { question: "can choose files one by one".to_owned(), answer }]
    }

    async fn read_estimate(&self, reader: &Reader) -> Result<Option<ReadEstimate>, synapse::Error> {
        if self.selection.is_some() && self.keep_avatars {
            let items = reader.count_media_owners().await? + reader.count_rooms().await?;
            return Ok(Some(ReadEstimate { what: "accounts with files and rooms", items }));
        }
        Ok(Some(ReadEstimate { what: OWNERS, items: reader.count_media_owners().await? }))
    }

    fn topic(&self) -> Option<Topic> {
        (self.keep_avatars && self.selection.is_none()).then_some(Topic::Kept)
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        if context.media_in_object_storage && !self.orphan_objects {
            return Err(PlanError::Refused(
                "this homeserver keeps its media in object storage, where Synapse deletes nothing: the objects would remain without any reference to them. \
                 Set `orphan_objects = true` if a lifecycle rule of the bucket deletes them"
                    .to_owned(),
            ));
        }
        if let Some(selection) = &self.selection {
            let before = self.age.past_cut_off(context.portion.started_at);
            let rules = self.rules(before.map_err(PlanError::Refused)?, ReadIn::OneRun);
            return exact::plan(selection, rules, context, plan).await;
        }
        self.plan_bulk(context, plan).await
    }
}

impl PurgeLocalMedia {
    fn rules(&self, before: Timestamp, read_in: ReadIn) -> Rules {
        let Self { larger_than, keep_avatars, .. } = *self;
        Rules { before, larger_than, keep_avatars, read_in }
    }

    /// Plans calls that each delete all files up to a cut-off.
    async fn plan_bulk(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let round = OpenRound::of(context, plan).await;
        // Of the round: its runs look for the same files.
        let before = self.age.past_cut_off(round.started_at).map_err(PlanError::Refused)?;
        let read_in = if round.saved.is_some() { ReadIn::SeveralRuns } else { ReadIn::OneRun };
        let rules = self.rules(before, read_in);
        let reading = round.read(context, rules, plan).await?;
        let (total, unread) = (reading.owners.len() as u64, reading.unread());
        let read = total - unread;
        plan.portion = Some(PortionRead {
            read,
            total,
            is_restart: round.is_restart,
            // The file knows which accounts are left.
            end: (unread > 0).then(|| Position { after: String::new(), offset: read }),
            changes: Vec::new(),
            findings: Value::Null,
        });
        let unlisted = reading.unlisted_files();
        let Reading { owners, states, left_alone, records, has_read, .. } = reading;
        let records = records.finish().map_err(|error| unwritable(context, &error))?;
        let is_several_runs = unread > 0 || round.saved.is_some();
        if let Some(file) = writable_file(context).filter(|_| has_read && is_several_runs) {
            let accounts = owners.iter().zip(states).zip(left_alone);
            let accounts = accounts.map(|((owner, state), left_alone)| (owner, state, left_alone));
            let written = round_file::write(file, round.started_at, accounts, &records).await;
            written.map_err(|error| unwritable(context, &error))?;
        }
        if unread > 0 {
            return Ok(());
        }
        if unlisted > 0 {
            plan.notes.push(format!(
                "{} of accounts that Synapse does not list cannot be counted in advance",
                format_count(unlisted, "file", "files")
            ));
        }
        let known = context.facts.known();
        let candidates =
            Candidates::of(records, owners, known, rules, self.batch_files, plan).await;
        let candidates = candidates.map_err(|error| unwritable(context, &error))?;
        if candidates.kept() > 0 {
            plan.notes.push(format!(
                "{} that Synapse kept in an earlier run, most likely avatars, {} left out",
                format_count(candidates.kept(), "file", "files"),
                if candidates.kept() == 1 { "is" } else { "are" }
            ));
        }
        (plan.bytes, plan.sample) = (candidates.bytes(), candidates.sample());
        plan.work = Work::BatchPlan(Box::new(candidates));
        Ok(())
    }
}

/// The round that a run continues or starts.
struct OpenRound {
    started_at: Timestamp,
    saved: Option<Saved>,
    /// Whether what earlier runs saved cannot be used.
    is_restart: bool,
}

impl OpenRound {
    async fn of(context: &Context<'_>, plan: &mut Plan) -> Self {
        let portion = &context.portion;
        let Some(file) = portion.file.as_ref().filter(|_| portion.from.is_some()) else {
            return Self { started_at: portion.started_at, saved: None, is_restart: false };
        };
        match Saved::open(file, portion.started_at).await {
            Ok(saved) => {
                Self { started_at: portion.started_at, saved: Some(saved), is_restart: false }
            }
            Err(reason) => {
                let warning = format!("the round starts anew: {reason}");
                (context.emit)(Event::Warning(warning.clone()));
                plan.notes.push(warning);
                Self { started_at: context.started_at, saved: None, is_restart: true }
            }
        }
    }

    /// Reads the portion of the run, in addition to what earlier runs read.
    async fn read<'a>(
        &self,
        context: &'a Context<'a>,
        rules: Rules,
        plan: &mut Plan,
    ) -> Result<Reading<'a>, PlanError> {
        // A file is uploaded before it is accessed: only accounts with uploads before the cut-off can have candidates.
        let owners = context.reader.media_owners(Some(rules.before)).await?;
        let mut reading = Reading::new(context, rules, owners);
        if let Some(saved) = &self.saved {
            reading.take_over(saved, plan).await.map_err(|error| unwritable(context, &error))?;
        }
        let volume = ReadEstimate { what: OWNERS, items: reading.unread() };
        match writable_file(context) {
            _ if context.portion.until.is_none() => context.expect_reading(volume),
            // Before half an hour of requests, not after it.
            Some(file) if context.budget.round(volume).is_some() => {
                round_file::check_writable(file).map_err(|error| unwritable(context, &error))?;
            }
            _ => {}
        }
        reading.read(plan).await?;
        Ok(reading)
    }
}

/// The file that the run may replace.
fn writable_file<'a>(context: &'a Context<'_>) -> Option<&'a RoundFile> {
    context.portion.file.as_ref().filter(|file| !file.is_read_only)
}
