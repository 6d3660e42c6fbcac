//! Which rooms and users a run reads, and reading them.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use super::keys::Keys;
use super::memory::{Mark, Memory, Uses};
use crate::synapse::{Cause, Error, MediaUses, Reader, RoomRow, StatePart};
use crate::values::clock::Timestamp;

/// Where files are in use.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Room(RoomRow),
    User {
        id: String,
        /// Whether new files of the user are protected.
        is_selected: bool,
    },
}

/// What was read of a source.
pub(super) enum Read {
    Uses {
        uses: MediaUses,
        /// Whether all of it was read that the job and the memory are about.
        is_complete: bool,
    },
    /// It does not exist any more.
    Gone,
}

/// How many sources are read again in each run although nothing shows that they changed.
const AGAIN_EACH_RUN: usize = 25;
/// Others are read again after so many hours, and at most this many more: within a week, where a job runs daily.
const AGAIN_AFTER_HOURS: u32 = 72;
const AGAIN_SPREAD_HOURS: u32 = 72;
/// A room with more state events is read by their type, since nearly all of them are memberships.
const MANY_STATE_EVENTS: u64 = 1000;

impl Source {
    pub fn id(&self) -> &str {
        match self {
            Self::Room(room) => &room.room_id,
            Self::User { id, .. } => id,
        }
    }

    pub fn label(&self) -> String {
        match self {
            Self::Room(room) => room.label(),
            Self::User { id, .. } => id.clone(),
        }
    }

    pub async fn read(
        &self,
        keys: &Keys,
        known: Option<&Uses>,
        reader: &Reader,
        server_name: &str,
    ) -> Result<Read, Error> {
        let custom = keys.custom || known.is_some_and(|known| known.custom);
        let read = match self {
            Self::User { id, .. } => reader.media_uses_of_user(id, server_name).await,
            Self::Room(room) => {
                let part = part_of(room, known.is_some(), custom);
                match reader.media_uses_of_room(room, server_name, part).await {
                    // Synapse may wait for other servers, until it has joined the room completely.
                    Err(error) if part == StatePart::All && is_lost(&error) => {
                        let part = StatePart::AvatarsAndPacks;
                        let uses = reader.media_uses_of_room(room, server_name, part).await?;
                        return Ok(Read::Uses { uses, is_complete: !custom });
                    }
                    read => read,
                }
            }
        };
        match read {
            Ok(uses) => Ok(Read::Uses { uses, is_complete: true }),
            Err(error) if error.is_not_found() => Ok(Read::Gone),
            Err(error) => Err(error),
        }
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(error.cause, Cause::Lost(_))
}

/// One request is cheaper than three, where it does not load thousands of memberships or wait for other servers.
fn part_of(room: &RoomRow, is_known: bool, custom: bool) -> StatePart {
    let is_local = room.joined_members == room.joined_local_members;
    let is_small = room.state_events <= MANY_STATE_EVENTS;
    match custom || is_small && (is_local || is_known) {
        true => StatePart::All,
        false => StatePart::AvatarsAndPacks,
    }
}

/// Returns what to read, in the order of ids.
///
/// New rooms and users; rooms with more state events than before; those with files that are still to be protected. An
/// avatar or pack that replaces another one shows nowhere else: rooms and users that have one are read again in turn.
pub(super) fn to_read(
    keys: &Keys,
    memory: &Memory,
    rooms: Vec<RoomRow>,
    uploaders: Vec<String>,
    now: Timestamp,
) -> Vec<Source> {
    let mut found: BTreeMap<String, Source> = BTreeMap::new();
    let mut in_turn = Vec::new();
    for room in rooms {
        let known = memory.get(&room.room_id);
        if known.is_none_or(|known| has_changed(keys, known, &room)) {
            found.insert(room.room_id.clone(), Source::Room(room));
        } else if let Some(known) = known.filter(|known| may_change_unseen(keys, known)) {
            in_turn.push((turn(known), Source::Room(room)));
        }
    }
    let user = |id: String| Source::User { is_selected: keys.selects_user(&id), id };
    found.extend(uploaders.into_iter().map(|id| (id.clone(), user(id))));
    for (id, known) in memory.users() {
        match known.has_files(Mark::Open) {
            true => drop(found.insert(id.clone(), user(id.clone()))),
            false if found.contains_key(id) => {}
            false => in_turn.push((turn(known), user(id.clone()))),
        }
    }
    in_turn.sort_by_key(|(turn, _)| *turn);
    for (index, ((_, read_ms), source)) in in_turn.into_iter().enumerate() {
        if index < AGAIN_EACH_RUN || is_due(source.id(), read_ms, now) {
            found.insert(source.id().to_owned(), source);
        }
    }
    found.into_values().collect()
}

fn has_changed(keys: &Keys, known: &Uses, room: &RoomRow) -> bool {
    known.state_events != room.state_events
        || known.has_files(Mark::Open)
        || keys.custom && !known.custom
}

/// Whether there is something that can be replaced without changing the number of state events.
fn may_change_unseen(keys: &Keys, known: &Uses) -> bool {
    known.has.packs || known.has.avatar || keys.custom && known.has.others
}

/// Packs come before avatars, whose files a purge keeps by default, and what was not read for long before the rest.
fn turn(known: &Uses) -> (bool, i64) {
    (!known.has.packs, known.read_ms)
}

/// The time depends on the id, so that rooms which were all read in one night are not read again in one night.
fn is_due(id: &str, read_ms: i64, now: Timestamp) -> bool {
    let sum = id.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let after = TimeDelta::hours(i64::from(AGAIN_AFTER_HOURS + sum % (AGAIN_SPREAD_HOURS + 1)));
    now.timestamp_millis().saturating_sub(read_ms) >= after.num_milliseconds()
}
