//! From what is read to a plan: which files are to be protected, and which no longer.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures_util::{StreamExt, stream};

use super::keys::Keys;
use super::memory::{Mark, Memory, Uses};
use super::protection::ProtectionChange;
use super::reading::{Read, Source};
use crate::jobs::job::{Context, PlanError, ReadEstimate};
use crate::plan::change::{Change, Plan};
use crate::plan::report::{Action, Exempt};
use crate::synapse::{Error, File, MAX_FILES, MediaUses, Protection, RoomRow, Usage};
use crate::values::text::{format_count, format_number, join_some};

/// What is read, one request for each or a few.
pub(super) const SOURCES: &str = "rooms and users";
/// The plan is in memory; what it leaves out, the next one contains.
const MAX_PLANNED: usize = 100_000;

pub(super) struct Planning<'a> {
    keys: &'a Keys,
    context: &'a Context<'a>,
    server_name: &'a str,
    pub memory: Memory,
    /// Files that may have to be protected, each once, with their targets.
    candidates: Vec<(String, String)>,
    known_candidates: HashSet<String>,
    /// How many more there are.
    left_over: u64,
    /// Users who have no packs any more.
    without_packs: Vec<String>,
}

impl<'a> Planning<'a> {
    pub fn new(
        keys: &'a Keys,
        context: &'a Context<'a>,
        server_name: &'a str,
        memory: Memory,
    ) -> Self {
        Self {
            keys,
            context,
            server_name,
            memory,
            candidates: Vec::new(),
            known_candidates: HashSet::new(),
            left_over: 0,
            without_packs: Vec::new(),
        }
    }

    /// Forgets rooms that do not exist any more; files that are to be unprotected are remembered until they are.
    pub async fn forget_gone_rooms(&mut self, rooms: &[RoomRow]) -> Result<(), PlanError> {
        let listed: HashSet<&str> = rooms.iter().map(|room| room.room_id.as_str()).collect();
        let missing: Vec<(String, Uses)> = self
            .memory
            .rooms()
            .filter(|(id, _)| !listed.contains(id.as_str()))
            .map(|(id, uses)| (id.clone(), uses.clone()))
            .collect();
        let mut gone = Vec::new();
        for (id, mut uses) in missing {
            // Synapse's list lacks rooms while it computes its statistics again.
            if uses.has_files(Mark::Ours) && self.context.reader.knows_room(&id).await? {
                continue;
            }
            uses.files.retain(|_, mark| matches!(mark, Mark::Ours | Mark::Unused));
            if uses.files.is_empty() || !self.keys.unprotect_unused {
                gone.push(id);
            } else if uses.has_files(Mark::Ours) {
                uses.files.values_mut().for_each(|mark| *mark = Mark::Unused);
                self.memory.set(&id, uses);
            }
        }
        self.memory.forget(self.context, gone).await;
        Ok(())
    }

    /// Reads what rooms and users have in use; returns whether every user could be read.
    pub async fn read(&mut self, sources: Vec<Source>, plan: &mut Plan) -> Result<bool, PlanError> {
        let (keys, context, server_name) = (self.keys, self.context, self.server_name);
        let total = sources.len() as u64;
        context.expect_reading(ReadEstimate { what: SOURCES, items: total });
        let known: Vec<Option<Uses>> =
            sources.iter().map(|source| self.memory.get(source.id()).cloned()).collect();
        // In order: where several name a file, the first one is shown, in this plan and in the next one.
        let mut reading = stream::iter(sources.into_iter().zip(known))
            .map(|(source, known)| async move {
                let read = source.read(keys, known.as_ref(), context.reader, server_name).await;
                (source, known.unwrap_or_default(), read)
            })
            .buffered(context.concurrency);
        let (mut done, mut all_users_read, mut cut_off) = (0, true, Vec::new());
        while let Some((source, known, read)) = reading.next().await {
            done += 1;
            context.reading(SOURCES, done, total);
            match read {
                Ok(Read::Uses { uses, is_complete }) => {
                    cut_off.extend(uses.is_cut_off.then(|| source.label()));
                    self.add(&source, known, uses, is_complete);
                }
                // What was protected for a room is looked after when the next list lacks it.
                Ok(Read::Gone) if matches!(source, Source::Room(_)) => {}
                Ok(Read::Gone) => self.add(&source, known, MediaUses::default(), true),
                Err(error) if error.is_about_target() => {
                    all_users_read &= matches!(source, Source::Room(_));
                    plan.problem(Action::ProtectMedia, &source.label(), error.message());
                }
                Err(error) => return Err(error.into()),
            }
            self.memory.store_some(context).await;
        }
        self.memory.forget(context, std::mem::take(&mut self.without_packs)).await;
        if !cut_off.is_empty() {
            let names: Vec<&str> = cut_off.iter().map(String::as_str).collect();
            let most = format_number(MAX_FILES as u64);
            plan.notes.push(format!(
                "more than {most} files are in use, of which only the first are protected, in {}",
                join_some(&names)
            ));
        }
        Ok(all_users_read)
    }

    /// Takes note of what a room or user has in use.
    fn add(&mut self, source: &Source, known: Uses, uses: MediaUses, is_complete: bool) {
        let (state_events, is_selected) = match source {
            Source::Room(room) => (room.state_events, true),
            Source::User { is_selected, .. } => (0, *is_selected),
        };
        let MediaUses { files, has, .. } = uses;
        let mut new = Uses {
            state_events: if is_complete { state_events } else { 0 },
            read_ms: self.context.started_at.timestamp_millis(),
            has,
            custom: self.keys.custom || known.custom,
            files: BTreeMap::new(),
        };
        for file in files {
            let is_custom = matches!(file.usage, Usage::Other(_));
            let is_wanted = is_selected && (self.keys.custom || !is_custom);
            // Another job may have protected it, or this one before its keys were changed.
            if !is_wanted && !known.files.contains_key(&file.media_id) {
                continue;
            }
            let mark = self.memory.mark_of(&file.media_id);
            if mark == Mark::Open && is_wanted {
                let target = format!("{} ({})", file.media_id, describe(&file.usage, source));
                self.add_candidate(file.media_id.clone(), target);
            }
            // What only another job wants is open until that job reads it.
            if mark != Mark::Open || is_wanted {
                new.files.insert(file.media_id, mark);
            }
        }
        for (media_id, mark) in known.files {
            let is_ours = matches!(mark, Mark::Ours | Mark::Unused);
            if !is_complete {
                new.files.entry(media_id).or_insert(mark);
            } else if is_ours {
                new.files.entry(media_id).or_insert(Mark::Unused);
            }
        }
        if let Source::User { id, .. } = source
            && !has.packs
            && new.files.is_empty()
        {
            // Nearly all users have none: only those who do are remembered.
            self.without_packs.extend(self.memory.get(id).map(|_| id.clone()));
            return;
        }
        self.memory.set(source.id(), new);
    }

    fn add_candidate(&mut self, media_id: String, target: String) {
        if self.known_candidates.contains(&media_id) {
            return;
        }
        if self.candidates.len() == MAX_PLANNED {
            self.left_over += 1;
            return;
        }
        self.known_candidates.insert(media_id.clone());
        self.candidates.push((media_id, target));
    }

    /// Returns the changes that protect files; those that are protected already, quarantined or gone are left alone.
    pub async fn protections(
        &mut self,
        plan: &mut Plan,
    ) -> Result<Vec<Box<dyn Change>>, PlanError> {
        let candidates = std::mem::take(&mut self.candidates);
        let (mut changes, mut marks, mut gone) = (Vec::<Box<dyn Change>>::new(), HashMap::new(), 0);
        for ((media_id, target), file) in self.look_at(candidates).await {
            let mark = match file {
                Ok(file) if file.quarantined_by.is_some() => {
                    plan.leave_alone(Exempt::Quarantined, || target);
                    Mark::Quarantined
                }
                Ok(file) if file.safe_from_quarantine && self.memory.was_sent(&media_id) => {
                    Mark::Ours
                }
                Ok(file) if file.safe_from_quarantine => {
                    plan.leave_alone(Exempt::Protected, || target);
                    Mark::Settled
                }
                Ok(_) => {
                    let protection = Protection::Protect;
                    changes.push(Box::new(ProtectionChange { protection, media_id, target }));
                    continue;
                }
                Err(error) if error.is_not_found() => {
                    gone += 1;
                    Mark::Settled
                }
                Err(error) if error.is_about_target() => {
                    plan.problem(Action::ProtectMedia, &target, error.message());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            marks.insert(media_id, mark);
        }
        self.memory.settle(&marks);
        if gone > 0 {
            let files = format_count(gone, "file in use does", "files in use do");
            plan.notes.push(format!("{files} not exist any more"));
        }
        if self.left_over > 0 {
            let files = format_count(self.left_over, "file is", "files are");
            plan.notes.push(format!("{files} left for the next run"));
        }
        Ok(changes)
    }

    /// Returns the changes that unprotect what this kind protected and nothing uses any more, if the job wants that.
    pub async fn unprotections(
        &mut self,
        plan: &mut Plan,
    ) -> Result<Vec<Box<dyn Change>>, PlanError> {
        let unused = self.memory.unused();
        if !self.keys.unprotect_unused {
            if !unused.is_empty() {
                let files = format_count(unused.len() as u64, "file", "files");
                plan.notes.push(format!("{files} that this kind protected are not in use any more (`unprotect_unused = true` unprotects such files)"));
            }
            return Ok(Vec::new());
        }
        let candidates = unused.into_iter().take(MAX_PLANNED).map(|(file, place)| {
            (file.to_owned(), format!("{file} (not in use any more in {place})"))
        });
        let candidates = candidates.collect();
        let (mut changes, mut settled) = (Vec::<Box<dyn Change>>::new(), BTreeSet::new());
        for ((media_id, target), file) in self.look_at(candidates).await {
            match file {
                Ok(file) if file.safe_from_quarantine => {
                    let protection = Protection::Unprotect;
                    changes.push(Box::new(ProtectionChange { protection, media_id, target }));
                }
                // Somebody else unprotected it.
                Ok(_) => {
                    settled.insert(media_id);
                }
                Err(error) if error.is_not_found() => {
                    settled.insert(media_id);
                }
                Err(error) if error.is_about_target() => {
                    plan.problem(Action::UnprotectMedia, &target, error.message());
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.memory.forget_unused(&settled);
        Ok(changes)
    }

    /// Reads files, each with one request.
    async fn look_at(
        &self,
        candidates: Vec<(String, String)>,
    ) -> Vec<((String, String), Result<File, Error>)> {
        let (context, server_name) = (self.context, self.server_name);
        let total = candidates.len() as u64;
        let looks = candidates.into_iter().map(|candidate| async move {
            let file = context.reader.file(server_name, &candidate.0).await;
            (candidate, file)
        });
        let mut looks = stream::iter(looks).buffered(context.concurrency);
        let mut files = Vec::new();
        while let Some(file) = looks.next().await {
            files.push(file);
            context.reading("files", files.len() as u64, total);
        }
        files
    }
}

/// `image "cat" of the pack "Cats" in #lobby:example.com !id`.
fn describe(usage: &Usage, source: &Source) -> String {
    let pack = |name: &str| match name {
        "" => "an image pack".to_owned(),
        name => format!("the image pack \"{name}\""),
    };
    let place = match source {
        Source::Room(room) => format!("in {}", room.label()),
        Source::User { id, .. } => format!("of {id}"),
    };
    match usage {
        Usage::RoomAvatar => format!("avatar {place}"),
        Usage::AvatarThumbnail => format!("thumbnail of the avatar {place}"),
        Usage::PackAvatar(name) => format!("avatar of {} {place}", pack(name)),
        Usage::PackImage { pack: name, shortcode } if shortcode.is_empty() => {
            format!("in {} {place}", pack(name))
        }
        Usage::PackImage { pack: name, shortcode } => {
            format!("image \"{shortcode}\" of {} {place}", pack(name))
        }
        Usage::Other(event_type) => format!("{event_type} {place}"),
    }
}
