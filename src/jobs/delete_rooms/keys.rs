//! The keys of `delete-rooms`.

use crate::values::duration::HumanDuration;
use crate::values::glob::RoomGlob;
use crate::values::schema::schema;

schema! {
    pub struct Keys {
        /// How long no local user must have been in a room, counted from the run that first saw it empty or from the last membership of a local user, whichever is later. microglia cannot know how long a room has been empty before its first run: dry runs count.
        pub empty_for: HumanDuration where "\"2d\"" to "\"3650d\"",
        /// How long after it was shut down a room is purged, at the earliest, by a later run.
        pub purge_after: HumanDuration where "\"10m\"" to "\"30d\"" = "\"10m\"",
        /// Leaves encrypted rooms alone. To purge one deletes everybody's server-side backup of its message keys.
        pub keep_encrypted: bool = "true",
        /// Includes rooms with pending invitations or knocks of local users, which are ended by the shutdown.
        pub with_invites: bool = "false",
        /// Blocks the rooms: no local user can join them again.
        pub block: bool = "false",
        /// Rooms that are never deleted: ids, aliases or names, or globs over them. They are compared with the last name and the last aliases of a room, too.
        pub except_rooms: Vec<RoomGlob> = "[]",
    }
}
