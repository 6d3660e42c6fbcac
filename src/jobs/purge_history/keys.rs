//! The keys of `purge-history`, and which rooms they select.

use crate::plan::report::Exempt;
use crate::synapse::RoomRow;
use crate::values::age::{Age, AgeEntries};
use crate::values::clock::Timestamp;
use crate::values::duration::HumanDuration;
use crate::values::glob::RoomGlob;
use crate::values::matrix_id::RoomName;
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, NonEmpty, Table};

schema! {
    pub entries Entries {
        /// Deletes messages older than this, counted back from the start of the run. Set exactly one of `older_than` and `before`.
        pub older_than: Option<HumanDuration> where "\"0s\"" to "\"3650d\"",
        /// Deletes messages from before this time.
        pub before: Option<Timestamp>,
        /// Allows an age of less than 7 days.
        pub allow_recent: bool = "false",
        /// The rooms, as aliases (#room:example.com) or ids (!id). Set exactly one of `rooms` and `all_rooms`.
        pub rooms: Option<NonEmpty<RoomName>>,
        /// Selects all rooms in which local users are.
        pub all_rooms: bool = "false",
        /// Rooms that are left alone: ids, aliases or names, or globs over them.
        pub except_rooms: Vec<RoomGlob> = "[]",
        /// Selects only encrypted rooms.
        pub only_encrypted: bool = "false",
        /// Selects only rooms that are not encrypted.
        pub only_unencrypted: bool = "false",
        /// Leaves rooms with fewer old messages alone.
        pub min_events: u32 where "1" to "50000" = "1",
        /// Whether messages of local users are deleted from the database. With false, nobody can read them any more either, not even their senders, and nothing brings them back: they only take up space.
        pub delete_local_events: bool,
        /// Includes rooms whose own state says how long messages are kept (`m.room.retention`).
        pub ignore_retention: bool = "false",
    }
}

#[derive(Debug)]
pub(super) struct Keys {
    pub age: Age,
    /// `None` for all.
    pub rooms: Option<NonEmpty<RoomName>>,
    pub except_rooms: Vec<RoomGlob>,
    /// Whether only encrypted rooms are selected, or only others.
    pub encrypted: Option<bool>,
    pub min_events: u32,
    pub delete_local_events: bool,
    pub ignore_retention: bool,
}

impl Keys {
    pub fn read(
        table: &Table<'_, '_>,
        now: Timestamp,
        errors: &mut Vec<ConfigError>,
    ) -> Option<Self> {
        let entries = Entries::parse(table, errors);
        let age = AgeEntries {
            older_than: &entries.older_than,
            before: &entries.before,
            allow_recent: &entries.allow_recent,
        };
        let age = Age::combine(age, &table.span, now, errors);
        let (rooms, all_rooms) = (entries.rooms.value?, entries.all_rooms.value?);
        if rooms.is_some() == all_rooms {
            let text = match all_rooms {
                true => "`rooms` and `all_rooms` are mutually exclusive: remove one of them",
                false => {
                    "no room is selected: add `rooms = [\"#room:example.com\"]` or `all_rooms = true`"
                }
            };
            errors.push(ConfigError::new(table.span.clone(), text));
            return None;
        }
        let encrypted = match (entries.only_encrypted.value?, entries.only_unencrypted.value?) {
            (true, true) => {
                let text = "`only_encrypted` and `only_unencrypted` together select no room: remove one of them";
                errors.push(ConfigError::new(table.span_of("only_unencrypted"), text));
                return None;
            }
            (false, false) => None,
            (encrypted, _) => Some(encrypted),
        };
        Some(Self {
            age: age?,
            rooms,
            except_rooms: entries.except_rooms.value?,
            encrypted,
            min_events: entries.min_events.value?,
            delete_local_events: entries.delete_local_events.value?,
            ignore_retention: entries.ignore_retention.value?,
        })
    }

    /// Why a room is left alone, by its row in the list.
    pub fn exempt(&self, row: &RoomRow) -> Option<Exempt> {
        let names = [Some(&row.room_id), row.canonical_alias.as_ref(), row.name.as_ref()];
        let is_excluded = |name: &String| self.except_rooms.iter().any(|glob| glob.0.matches(name));
        let is_encrypted = row.encryption.is_some();
        [
            (row.joined_local_members == 0, Exempt::NoMembers),
            (row.joined_members > row.joined_local_members, Exempt::Federated),
            (names.into_iter().flatten().any(is_excluded), Exempt::Excluded),
            (self.encrypted == Some(true) && !is_encrypted, Exempt::NotEncrypted),
            (self.encrypted == Some(false) && is_encrypted, Exempt::Encrypted),
        ]
        .into_iter()
        .find_map(|(applies, exempt)| applies.then_some(exempt))
    }
}
