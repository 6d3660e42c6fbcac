//! The keys of `protect-media`, and which rooms they select.

use crate::plan::change::Plan;
use crate::plan::report::Exempt;
use crate::synapse::RoomRow;
use crate::values::fingerprint::Fingerprint;
use crate::values::glob::{Glob, Matched, RoomGlob, UserGlob};
use crate::values::schema::NonEmpty;
use crate::values::schema::schema;

schema! {
    pub struct Keys {
        /// The rooms whose avatars and image packs are protected: ids, aliases or names, or globs over these.
        pub rooms: NonEmpty<RoomGlob> = "[\"*\"]",
        /// Rooms of these that are left out, in the same form.
        pub except_rooms: Vec<RoomGlob> = "[]",
        /// The users whose packs are protected, and whose rooms: ids or globs over whole Matrix ids. Of a room, the creator counts.
        pub creators: NonEmpty<UserGlob> = "[\"*\"]",
        /// Also protects every other local file that the state of these rooms names (`mxc://…` anywhere in an event), except avatars of members. Whoever may send state to such a room can then have any file protected.
        pub custom: bool = "false",
        /// Unprotects files that this kind has protected and that no room or user has in use any more, as far as the job has read them. Otherwise they stay protected, and those of rooms that were deleted are forgotten.
        pub unprotect_unused: bool = "false",
    }
}

impl Keys {
    /// Returns the rooms to protect files of, and notes which patterns matched none.
    pub fn select_rooms(&self, rooms: Vec<RoomRow>, plan: &mut Plan) -> Vec<RoomRow> {
        let mut included = Patterns::new(self.rooms.iter().map(|glob| &glob.0));
        let mut excluded = Patterns::new(self.except_rooms.iter().map(|glob| &glob.0));
        let mut created = Patterns::new(self.creators.iter().map(|glob| &glob.0));
        let mut selected = Vec::new();
        for room in rooms {
            let names = [Some(&room.room_id), room.canonical_alias.as_ref(), room.name.as_ref()];
            let is_included = included.match_any(&names);
            let is_excluded = excluded.match_any(&names);
            let is_created = created.match_any(&[room.creator.as_ref()]);
            if !is_included || !is_created {
                continue;
            }
            if is_excluded {
                plan.leave_alone(Exempt::Excluded, || room.label());
            } else if room.joined_local_members == 0 {
                // Synapse has no state of it.
                plan.leave_alone(Exempt::NoMembers, || room.label());
            } else {
                selected.push(room);
            }
        }
        plan.notes.extend(included.without_match("in `rooms` matched no room"));
        plan.notes.extend(excluded.without_match("in `except_rooms` matched no room"));
        plan.notes.extend(created.without_match("in `creators` created no room"));
        selected
    }

    /// Whether the packs of this user are protected.
    pub fn selects_user(&self, user_id: &str) -> bool {
        self.creators.iter().any(|glob| glob.0.matches(user_id))
    }

    /// Names the selection of users: another one has to look at all uploads.
    pub fn users_fingerprint(&self) -> Fingerprint {
        let texts: Vec<&str> = self.creators.iter().map(|glob| glob.0.text.as_str()).collect();
        Fingerprint::of_bytes(texts.join("\n").as_bytes())
    }

    /// Whether anybody can have their files protected.
    pub fn select_all(&self) -> bool {
        let is_all = |glob: &Glob| glob.text == "*";
        self.rooms.iter().any(|glob| is_all(&glob.0))
            && self.creators.iter().any(|glob| is_all(&glob.0))
    }
}

/// The patterns of a key, and which of them have matched.
struct Patterns<'a> {
    globs: Vec<&'a Glob>,
    matched: Matched,
}

impl<'a> Patterns<'a> {
    fn new(globs: impl Iterator<Item = &'a Glob>) -> Self {
        Self { globs: globs.collect(), matched: Matched::default() }
    }

    fn match_any(&mut self, names: &[Option<&String>]) -> bool {
        let mut is_match = false;
        for (index, glob) in self.globs.iter().enumerate() {
            if names.iter().flatten().any(|name| glob.matches(name)) {
                self.matched.record(index);
                is_match = true;
            }
        }
        is_match
    }

    fn without_match(&self, what: &str) -> Vec<String> {
        let globs = self.globs.iter().enumerate();
        let unmatched = globs.filter(|(index, _)| !self.matched.contains(*index));
        unmatched.map(|(_, glob)| format!("`{}` {what}", glob.text)).collect()
    }
}
