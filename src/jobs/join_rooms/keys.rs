//! The keys of `join-rooms`, and which accounts they select.

use crate::jobs::account::{exempt_by_record, exempt_by_row};
use crate::plan::report::Exempt;
use crate::synapse::{Identity, MemberEvent, Membership, User, UserMap, UserRow};
use crate::values::glob::{Glob, Matched, Selection, UserGlob, select};
use crate::values::matrix_id::RoomName;
use crate::values::schema::schema;
use crate::values::schema::{NonEmpty, Rate};
use crate::values::string_enum::string_enum;

schema! {
    pub struct Keys {
        /// The rooms, as aliases (#room:example.com) or ids (!id). Required unless there are `spaces`.
        pub rooms: Option<NonEmpty<RoomName>>,
        /// Spaces, as aliases or ids: the rooms in them and in the spaces below them. Users are not joined to the spaces themselves, unless those are in `rooms`.
        pub spaces: Option<NonEmpty<RoomName>>,
        /// Rooms and spaces that are left out of `spaces`: ids, aliases, or globs over ids, main aliases and names. What is below such a space is left out, unless it is in another one.
        pub except_rooms: Vec<Glob> = "[]",
        /// How many levels of spaces are read; 1 reads only the given ones.
        pub max_depth: u32 where "1" to "20" = "5",
        /// The users whose rooms spaces may bring in: ids or globs over the whole Matrix id of the room's creator. Otherwise, whoever may edit a space can have users joined to any room.
        pub allow_creators: NonEmpty<UserGlob> = "[\"*\"]",
        /// The users to join: ids or globs over whole Matrix ids.
        pub users: NonEmpty<UserGlob> = "[\"*\"]",
        /// Users who are never joined.
        pub except_users: Vec<UserGlob> = "[]",
        /// Which former members are joined again: "never" for none, "left" for those who left on their own, "kicked" for those and users who were kicked. Banned users are never joined.
        pub rejoin: Rejoin = "\"never\"",
        /// The maximum number of joins per second into one room. They count towards Synapse's `rc_joins_per_room`: with a higher rate, Synapse refuses other users who want to join the room.
        pub joins_per_second: Rate where "0.001" to "10000" = "0.5",
        /// Includes accounts whose `user_type` is bot or support.
        pub include_bots: bool = "false",
    }
}

string_enum! {
    pub enum Rejoin {
        Never = "never",
        Left = "left",
        Kicked = "kicked",
    }
}

impl Keys {
    pub fn rooms(&self) -> &[RoomName] {
        self.rooms.as_deref().unwrap_or_default()
    }

    pub fn spaces(&self) -> &[RoomName] {
        self.spaces.as_deref().unwrap_or_default()
    }

    /// Whether neither the patterns nor the row of the list rule an account out.
    pub fn is_chosen(&self, row: &UserRow, identity: &Identity) -> bool {
        let Self { users, except_users, .. } = self;
        let selection = select(&row.name, users, except_users, &mut Matched::default());
        selection == Selection::Chosen && self.exempt(row, identity).is_none()
    }

    /// Judges by the list of accounts, which shows neither bridge ghosts nor suspension.
    pub fn exempt(&self, row: &UserRow, identity: &Identity) -> Option<Exempt> {
        exempt_by_row(row, identity).find(|exempt| self.leaves_alone(*exempt))
    }

    /// Judges by an account's record.
    pub fn exempt_by_record(&self, user: &User, identity: &Identity) -> Option<Exempt> {
        exempt_by_record(user, identity).find(|exempt| self.leaves_alone(*exempt))
    }

    fn leaves_alone(&self, exempt: Exempt) -> bool {
        match exempt {
            Exempt::Bot => !self.include_bots,
            Exempt::Admin | Exempt::OtherType => false,
            _ => true,
        }
    }

    /// Decides by the newest room in which the user joined, left or was banned; invitations and knocks do not count.
    pub fn may_join(&self, chain: &[UserMap<MemberEvent>], user: &str) -> Result<(), Exempt> {
        let mut left = None;
        for event in chain.iter().filter_map(|events| events.get(user)) {
            match event.membership {
                Membership::Ban => return Err(Exempt::Banned),
                // Bans, kicks and leaves in earlier rooms do not matter to a user who joined a later one.
                Membership::Join => break,
                Membership::Leave => left = left.or(Some(event)),
                Membership::Invite | Membership::Knock => {}
            }
        }
        match (left.map(|event| event.by_self), self.rejoin) {
            (None, _)
            | (Some(true), Rejoin::Left | Rejoin::Kicked)
            | (Some(false), Rejoin::Kicked) => Ok(()),
            (Some(true), Rejoin::Never) => Err(Exempt::Left),
            (Some(false), Rejoin::Never | Rejoin::Left) => Err(Exempt::Kicked),
        }
    }
}
