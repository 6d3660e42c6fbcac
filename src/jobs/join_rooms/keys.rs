//! The keys of `join-rooms`, and which accounts they select.

use crate::jobs::room_name::RoomName;
use crate::plan::report::Exempt;
use crate::synapse::{Identity, MemberEvent, Membership, UserMap, UserRow};
use crate::values::glob::{Matched, Selection, UserGlob, select};
use crate::values::schema::schema;
use crate::values::schema::{NonEmpty, Rate};
use crate::values::string_enum::string_enum;

schema! {
    pub struct Keys {
        /// The rooms, as aliases (#room:example.com) or ids (!id).
        pub rooms: NonEmpty<RoomName>,
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
    /// Whether neither the patterns nor the row of the list rule an account out.
    pub fn is_chosen(&self, row: &UserRow, identity: &Identity) -> bool {
        let Self { users, except_users, .. } = self;
        let selection = select(&row.name, users, except_users, &mut Matched::default());
        selection == Selection::Chosen && self.exempt(row, identity).is_none()
    }

    /// Judges by the list of accounts, which shows neither bridge ghosts nor suspension.
    pub fn exempt(&self, row: &UserRow, identity: &Identity) -> Option<Exempt> {
        let bot = matches!(row.user_type.as_deref(), Some("bot" | "support"));
        [
            (row.name == identity.account.name, Exempt::OwnAccount),
            (row.deactivated, Exempt::Deactivated),
            (row.locked, Exempt::Locked),
            (row.is_guest, Exempt::Guest),
            (bot && !self.include_bots, Exempt::Bot),
        ]
        .into_iter()
        .find_map(|(applies, exempt)| applies.then_some(exempt))
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
