//! What is known from earlier runs: which files rooms and users use, and which of them this kind has protected.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;

use crate::jobs::job::Context;
use crate::plan::facts::{Fact, Topic};
use crate::synapse::HasMedia;
use crate::values::string_enum::string_enum;

/// What is known of a file that a room or a user uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// To be protected.
    Open,
    /// Protected by this kind.
    Ours,
    /// Protected by this kind, and not used there any more.
    Unused,
    /// Protected by somebody else, or gone: there is nothing to do.
    Settled,
    /// Left alone, and looked at again when its room is read again.
    Quarantined,
}

const MARKS: [(char, Mark); 5] = [
    ('?', Mark::Open),
    ('+', Mark::Ours),
    ('-', Mark::Unused),
    ('=', Mark::Settled),
    ('!', Mark::Quarantined),
];

/// The files of a room or a user, as one short text of the history: no row for each file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Uses {
    /// Of a room: the number of its state events before it was read. No room has 0, which means that it has to be read.
    pub state_events: u64,
    /// In milliseconds since 1970.
    pub read_ms: i64,
    pub has: HasMedia,
    /// Whether other state than avatars and packs counted.
    pub custom: bool,
    pub files: BTreeMap<String, Mark>,
}

impl Uses {
    pub fn has_files(&self, mark: Mark) -> bool {
        self.files.values().any(|of_file| *of_file == mark)
    }

    fn flags(&self) -> [(char, bool); 4] {
        let HasMedia { packs, avatar, others } = self.has;
        [('p', packs), ('a', avatar), ('o', others), ('c', self.custom)]
    }

    /// Takes note of what became of files since they were stored.
    fn update(&mut self, protected: &HashMap<String, Protected>) -> bool {
        let before = self.clone();
        self.files.retain(|id, mark| {
            match (protected.get(id), *mark) {
                (Some(Protected::Yes), Mark::Open | Mark::Settled | Mark::Quarantined) => {
                    *mark = Mark::Ours;
                }
                (Some(Protected::No), Mark::Unused) => return false,
                // It was undone: the job still protects it, unless it was changed.
                (Some(Protected::No | Protected::Sent), Mark::Ours) => *mark = Mark::Open,
                _ => {}
            }
            true
        });
        *self != before
    }
}

impl fmt::Display for Uses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} .", self.state_events, self.read_ms)?;
        for (letter, _) in self.flags().iter().filter(|(_, is_set)| *is_set) {
            write!(f, "{letter}")?;
        }
        for (id, mark) in &self.files {
            let letter = MARKS.iter().find(|(_, known)| known == mark).map_or('?', |(it, _)| *it);
            write!(f, " {letter}{id}")?;
        }
        Ok(())
    }
}

impl FromStr for Uses {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(' ');
        let mut next = || words.next().ok_or("a word is missing");
        let state_events = next()?.parse().map_err(|_| "not a number of state events")?;
        let read_ms = next()?.parse().map_err(|_| "not a time")?;
        let flags = next()?.strip_prefix('.').ok_or("no flags")?;
        let files = words.map(|word| {
            let letter = word.chars().next()?;
            let (_, mark) = MARKS.iter().find(|(known, _)| *known == letter)?;
            Some((word.get(1..)?.to_owned(), *mark))
        });
        Ok(Self {
            state_events,
            read_ms,
            has: HasMedia {
                packs: flags.contains('p'),
                avatar: flags.contains('a'),
                others: flags.contains('o'),
            },
            custom: flags.contains('c'),
            files: files.collect::<Option<_>>().ok_or("not a file")?,
        })
    }
}

/// Of keys that name a selection of users; the value is when uploads were last looked at.
const UPLOADS: &str = "uploads ";
/// A job that has not run for so long looks at all uploads again.
const MAX_UPLOADS_AGE_MS: i64 = 60 * 24 * 60 * 60 * 1000;
/// How many results may be lost when a run is cut off.
const STORE_AFTER: usize = 200;

string_enum! {
    /// What became of a file; the next plan adds it to what is known of rooms and users.
    pub enum Protected {
        /// By this kind.
        Yes = "yes",
        /// Not any more.
        No = "no",
        /// A request was sent, and the response may have been lost. Whatever the file is now, this kind made it so.
        Sent = "sent",
    }
}

impl Protected {
    pub fn fact(self, media_id: &str) -> Fact {
        let value = self.as_str().to_owned();
        Fact { topic: Topic::Protection, key: media_id.to_owned(), value }
    }
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    /// By the id of the room or user.
    uses: BTreeMap<String, Uses>,
    /// When uploads were last looked at, by the selection of users.
    uploads_seen_ms: HashMap<String, i64>,
    files: FileIndex,
    /// Files for which a request was sent, with or without a response.
    sent: Vec<String>,
    /// What is not stored yet.
    changed: BTreeSet<String>,
}

/// What all rooms and users together say of a file; by hash, since there may be a million.
#[derive(Debug, Default)]
struct FileIndex {
    hasher: RandomState,
    files: HashMap<u64, InAll>,
}

/// How many rooms and users a file has which mark in.
#[derive(Debug, Clone, Copy, Default)]
struct InAll {
    used: u32,
    ours: u32,
    settled: u32,
}

impl FileIndex {
    fn add(&mut self, uses: &Uses) {
        for (id, mark) in &uses.files {
            let of_file = self.files.entry(self.hasher.hash_one(id)).or_default();
            of_file.used += u32::from(*mark != Mark::Unused);
            of_file.ours += u32::from(matches!(mark, Mark::Ours | Mark::Unused));
            of_file.settled += u32::from(*mark == Mark::Settled);
        }
    }

    fn remove(&mut self, uses: &Uses) {
        for (id, mark) in &uses.files {
            let of_file = self.files.entry(self.hasher.hash_one(id)).or_default();
            of_file.used -= u32::from(*mark != Mark::Unused);
            of_file.ours -= u32::from(matches!(mark, Mark::Ours | Mark::Unused));
            of_file.settled -= u32::from(*mark == Mark::Settled);
        }
    }

    fn get(&self, id: &str) -> InAll {
        self.files.get(&self.hasher.hash_one(id)).copied().unwrap_or_default()
    }
}

impl Memory {
    /// Reads what earlier runs stored, together with what became of their plans.
    pub async fn load(context: &Context<'_>) -> Self {
        let stored = context.facts.between(Topic::Protection, "", "\u{10ffff}").await;
        let parsed = stored.into_iter().map(|(id, text)| Some((id, text.parse().ok()?)));
        let protected: HashMap<String, Protected> = parsed.flatten().collect();
        let mut memory = Self::default();
        for (key, value) in context.facts.known() {
            if let Some(selection) = key.strip_prefix(UPLOADS) {
                let seen_ms = value.parse().ok().map(|ms: i64| (selection.to_owned(), ms));
                memory.uploads_seen_ms.extend(seen_ms);
            } else if let Ok(mut uses) = value.parse::<Uses>() {
                if uses.update(&protected) {
                    memory.changed.insert(key.clone());
                }
                memory.files.add(&uses);
                memory.uses.insert(key.clone(), uses);
            }
        }
        memory.store(context).await;
        let (sent, known): (Vec<_>, Vec<_>) =
            protected.into_iter().partition(|(_, protected)| *protected == Protected::Sent);
        let known = known.into_iter().map(|(id, _)| id).collect();
        context.facts.forget(Topic::Protection, known).await;
        memory.sent = sent.into_iter().map(|(id, _)| id).collect();
        memory
    }

    pub fn get(&self, id: &str) -> Option<&Uses> {
        self.uses.get(id)
    }

    pub fn rooms(&self) -> impl Iterator<Item = (&String, &Uses)> {
        self.uses.iter().filter(|(id, _)| id.starts_with('!'))
    }

    pub fn users(&self) -> impl Iterator<Item = (&String, &Uses)> {
        self.uses.iter().filter(|(id, _)| id.starts_with('@'))
    }

    /// What is to be done about a file, by what is known of it anywhere.
    pub fn mark_of(&self, media_id: &str) -> Mark {
        match self.files.get(media_id) {
            InAll { ours: 1.., .. } => Mark::Ours,
            InAll { settled: 1.., .. } => Mark::Settled,
            _ => Mark::Open,
        }
    }

    /// The files that this kind has protected and nothing uses any more, each once, with a room or user that did.
    pub fn unused(&self) -> BTreeMap<&str, &str> {
        let mut unused = BTreeMap::new();
        for (id, uses) in &self.uses {
            for (media_id, mark) in &uses.files {
                if *mark == Mark::Unused && self.files.get(media_id).used == 0 {
                    unused.entry(media_id.as_str()).or_insert(id.as_str());
                }
            }
        }
        unused
    }

    pub fn set(&mut self, id: &str, uses: Uses) {
        self.files.add(&uses);
        if let Some(before) = self.uses.insert(id.to_owned(), uses) {
            self.files.remove(&before);
        }
        self.changed.insert(id.to_owned());
    }

    /// Sets what is known of files, wherever they are in use.
    pub fn settle(&mut self, marks: &HashMap<String, Mark>) {
        if !marks.is_empty() {
            self.edit(|files| {
                let unsettled = files
                    .iter_mut()
                    .filter(|(_, mark)| matches!(mark, Mark::Open | Mark::Quarantined));
                for (id, mark) in unsettled {
                    *mark = marks.get(id).copied().unwrap_or(*mark);
                }
            });
        }
    }

    /// Forgets files that nothing uses any more.
    pub fn forget_unused(&mut self, media_ids: &BTreeSet<String>) {
        if !media_ids.is_empty() {
            self.edit(|files| {
                files.retain(|id, mark| *mark != Mark::Unused || !media_ids.contains(id));
            });
        }
    }

    fn edit(&mut self, edit: impl Fn(&mut BTreeMap<String, Mark>)) {
        for (id, uses) in &mut self.uses {
            let before = uses.clone();
            edit(&mut uses.files);
            if before != *uses {
                self.files.add(uses);
                self.files.remove(&before);
                self.changed.insert(id.clone());
            }
        }
    }

    /// Forgets rooms and users.
    pub async fn forget(&mut self, context: &Context<'_>, ids: Vec<String>) {
        for id in &ids {
            if let Some(before) = self.uses.remove(id) {
                self.files.remove(&before);
            }
            self.changed.remove(id);
        }
        context.facts.forget(Topic::MediaUses, ids).await;
    }

    /// Whether this kind protected a file that is protected, although no response says so.
    pub fn was_sent(&self, media_id: &str) -> bool {
        self.sent.iter().any(|sent| sent == media_id)
    }

    /// Forgets what was sent, once all files have been looked at.
    pub async fn forget_sent(&mut self, context: &Context<'_>) {
        context.facts.forget(Topic::Protection, std::mem::take(&mut self.sent)).await;
    }

    pub fn uploads_seen_ms(&self, selection: &str) -> Option<i64> {
        self.uploads_seen_ms.get(selection).copied()
    }

    /// Stores when uploads were looked at, and forgets what jobs that do not run any more stored.
    pub async fn set_uploads_seen(&mut self, context: &Context<'_>, selection: &str, at_ms: i64) {
        let key = |selection: &str| format!("{UPLOADS}{selection}");
        let fact = Fact { topic: Topic::MediaUses, key: key(selection), value: at_ms.to_string() };
        context.facts.store(vec![fact]).await;
        let is_old = |(other, ms): &(&String, &i64)| {
            *other != selection && **ms < at_ms.saturating_sub(MAX_UPLOADS_AGE_MS)
        };
        let old = self.uploads_seen_ms.iter().filter(is_old).map(|(old, _)| key(old)).collect();
        context.facts.forget(Topic::MediaUses, old).await;
    }

    pub async fn store_some(&mut self, context: &Context<'_>) {
        if self.changed.len() >= STORE_AFTER {
            self.store(context).await;
        }
    }

    pub async fn store(&mut self, context: &Context<'_>) {
        let changed = std::mem::take(&mut self.changed);
        let fact = |key: String| {
            let value = self.uses.get(&key)?.to_string();
            Some(Fact { topic: Topic::MediaUses, key, value })
        };
        context.facts.store(changed.into_iter().filter_map(fact).collect()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(text: &str) -> Uses {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_remembered_is_read_again() {
        for text in ["0 0 .", "12 1700000000000 .p +a -b", "7 5 .paoc !-x =_y ?z"] {
            assert_eq!(uses(text).to_string(), text);
        }
        assert_eq!(uses("7 5 . !-x ?z").files["-x"], Mark::Quarantined);
        for broken in ["", "5", "5 6", "5 6 p", "x 6 .", "5 x .", "5 6 . a", "5 6 . ", "5 6 . +é x"]
        {
            assert!(broken.parse::<Uses>().is_err(), "{broken:?}");
        }
    }

    #[test]
    fn what_became_of_files_is_added_to_what_is_known_of_their_rooms() {
        let became = |protected| {
            let ids = ["a", "b", "c", "d", "e"];
            let before = uses("1 1 . +a -b =c !d ?e +f");
            let mut room = before.clone();
            let ids = ids.map(|id| (id.to_owned(), protected));
            assert_eq!(room.update(&HashMap::from(ids)), room != before);
            room.to_string()
        };
        assert_eq!(became(Protected::Yes), "1 1 . +a -b +c +d +e +f");
        assert_eq!(became(Protected::No), "1 1 . ?a =c !d ?e +f");
        assert_eq!(became(Protected::Sent), "1 1 . ?a -b =c !d ?e +f");
    }

    #[test]
    fn a_file_is_unused_when_the_last_room_does_not_use_it() {
        let mut memory = Memory::default();
        memory.set("!a", uses("1 1 . +x -y =z"));
        memory.set("!b", uses("1 1 . -x +y"));
        memory.set("@c", uses("0 1 . ?w"));
        assert_eq!(memory.unused(), BTreeMap::new());
        let marks = ["w", "x", "y", "z"].map(|id| memory.mark_of(id));
        assert_eq!(marks, [Mark::Open, Mark::Ours, Mark::Ours, Mark::Settled]);
        memory.set("!a", uses("1 1 . -x -y"));
        assert_eq!(memory.unused(), BTreeMap::from([("x", "!a")]));
        assert_eq!(memory.mark_of("z"), Mark::Open);
        memory.settle(&HashMap::from([("w".to_owned(), Mark::Settled)]));
        assert_eq!(memory.get("@c").unwrap().to_string(), "0 1 . =w");
        memory.forget_unused(&BTreeSet::from(["x".to_owned(), "y".to_owned()]));
        assert_eq!(memory.get("!a").unwrap().to_string(), "1 1 .");
        assert_eq!(memory.get("!b").unwrap().to_string(), "1 1 . +y");
    }
}
