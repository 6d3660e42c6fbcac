//! The rooms of a `join-rooms` job: which they are, who is or was in them, and whether the daemon's account may join others.

use std::collections::HashSet;

use super::keys::Keys;
use crate::jobs::job::{Context, PlanError};
use crate::jobs::room_name::RoomName;
use crate::plan::change::Plan;
use crate::plan::report::Action;
use crate::synapse::{self, Identity, MemberEvent, Permissions, Reader, UserMap, UserSet};
use crate::values::duration::format_duration;
use crate::values::text::format_count;

/// More upgrades than any room has had. The predecessor of a room is whatever its creator wrote, so the chain may be endless.
const MAX_CHAIN: usize = 100;

/// Why a room, or the whole run, cannot be planned.
pub(super) enum RoomError {
    Room(String),
    Run(PlanError),
}

impl From<synapse::Error> for RoomError {
    fn from(error: synapse::Error) -> Self {
        if error.is_about_target() { Self::Room(error.message()) } else { Self::Run(error.into()) }
    }
}

/// A room to join users to; what only a room with somebody to join needs is read once there is somebody.
pub(super) struct TargetRoom {
    pub name: String,
    pub open: OpenRoom,
    /// The membership events of the room and of those that it replaced, newest room first.
    pub chain: Option<Vec<UserMap<MemberEvent>>>,
    pub permissions: Option<Permissions>,
    pub access: Access,
    /// Users to join in this run.
    pub joins: u32,
}

/// Whether the daemon's account may join others to a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    NotChecked,
    Allowed,
    /// The room is a problem of the plan.
    Failed,
}

impl TargetRoom {
    pub fn is_usable(&self) -> bool {
        self.access != Access::Failed
    }

    pub fn fail(&mut self, problem: String, plan: &mut Plan) {
        self.access = Access::Failed;
        plan.problem(Action::JoinRoom, &self.name, problem);
    }
}

/// Reads the members of all rooms; a room that cannot be used becomes a problem of the plan.
pub(super) async fn open_rooms(
    keys: &Keys,
    context: &Context<'_>,
    identity: &Identity,
    plan: &mut Plan,
) -> Result<Vec<TargetRoom>, PlanError> {
    let (mut rooms, mut known) = (Vec::new(), HashSet::new());
    let total = keys.rooms.len() as u64;
    for (index, RoomName(name)) in keys.rooms.iter().enumerate() {
        context.reading("rooms", index as u64, total);
        match open_room(context.reader, identity, name, &mut known).await {
            Ok(room) => rooms.extend(room),
            Err(RoomError::Room(problem)) => plan.problem(Action::JoinRoom, name, problem),
            Err(RoomError::Run(failure)) => return Err(failure),
        }
    }
    context.reading("rooms", total, total);
    Ok(rooms)
}

/// Returns `None` if another entry of `rooms` refers to the same room.
async fn open_room(
    reader: &Reader,
    identity: &Identity,
    name: &str,
    known: &mut HashSet<String>,
) -> Result<Option<TargetRoom>, RoomError> {
    let room_id = resolve(reader, name).await?;
    if !known.insert(room_id.clone()) {
        return Ok(None);
    }
    Ok(Some(TargetRoom {
        name: name.to_owned(),
        open: open(reader, identity, room_id).await?,
        chain: None,
        permissions: None,
        access: Access::NotChecked,
        joins: 0,
    }))
}

/// Checks, once for a room and only if there is somebody to join, whether the daemon's account may do that.
pub(super) async fn check_access(
    reader: &Reader,
    identity: &Identity,
    room: &mut TargetRoom,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let (Access::NotChecked, Some(permissions)) = (room.access, &room.permissions) else {
        return Ok(());
    };
    match check_may_join_others(reader, identity, &room.open, permissions).await {
        Ok(()) => room.access = Access::Allowed,
        Err(RoomError::Room(problem)) => room.fail(problem, plan),
        Err(RoomError::Run(failure)) => return Err(failure),
    }
    Ok(())
}

/// Notes how long the joins to the room with the most of them take.
pub(super) fn note_duration(keys: &Keys, rooms: &[TargetRoom], plan: &mut Plan) {
    let per_second = keys.joins_per_second.0;
    let largest = rooms.iter().filter(|room| room.is_usable()).max_by_key(|room| room.joins);
    if let Some(TargetRoom { name, joins, .. }) = largest.filter(|room| room.joins > 60) {
        let takes = std::time::Duration::from_secs_f64(f64::from(*joins) / per_second);
        plan.notes.push(format!(
            "at {per_second} joins per second, the {} to {name} take about {}",
            format_count(u64::from(*joins), "join", "joins"),
            format_duration(takes)
        ));
    }
}

/// Returns the membership events of the room and of those that it replaced, newest room first.
pub(super) async fn chain(
    reader: &Reader,
    room: &OpenRoom,
    predecessor: Option<String>,
) -> Result<Vec<UserMap<MemberEvent>>, RoomError> {
    // A room had about as many members as the one that replaced it.
    let joined = room.members.len();
    let mut chain = vec![reader.member_events(&room.room_id, joined).await?];
    let (mut next, mut visited) = (predecessor, HashSet::from([room.room_id.clone()]));
    while let Some(room) = next.take().filter(|room| visited.insert(room.clone())) {
        if visited.len() > MAX_CHAIN {
            return Err(RoomError::Room(format!(
                "the chain of rooms that it replaced does not end: {MAX_CHAIN} were read"
            )));
        }
        match reader.member_events(&room, joined).await {
            Ok(events) => chain.push(events),
            // A room that was purged, or never had local members, has no membership events.
            Err(error) if error.is_not_found() => break,
            Err(error) => return Err(error.into()),
        }
        next = reader.predecessor(&room).await?;
    }
    Ok(chain)
}

/// A room that exists and has local members.
pub(super) struct OpenRoom {
    pub room_id: String,
    pub members: UserSet,
}

/// Resolves an alias. Done once per run: the alias may point to another room later.
pub(super) async fn resolve(reader: &Reader, name: &str) -> Result<String, RoomError> {
    if !name.starts_with('#') {
        return Ok(name.to_owned());
    }
    reader.resolve_alias(name).await.map_err(|error| match error.is_not_found() {
        true => RoomError::Room(format!(
            "the alias does not exist ({}): fix `rooms`, or create the alias",
            error.message()
        )),
        false => alias_error(error),
    })
}

/// Reads the members of a room; fails if it is unknown, was replaced, or has no local members.
pub(super) async fn open(
    reader: &Reader,
    identity: &Identity,
    room_id: String,
) -> Result<OpenRoom, RoomError> {
    let joined = reader.joined_members(&room_id).await.map_err(|error| match error.is_not_found() {
        true => RoomError::Room("Synapse does not know this room: fix `rooms`; a remote room needs one local member first".to_owned()),
        false => error.into(),
    })?;
    if let Some(new) = reader.replacement(&room_id).await? {
        let new = if new.is_empty() { "its alias or the new room".to_owned() } else { new };
        return Err(RoomError::Room(format!(
            "the room was replaced by an upgrade: replace it in `rooms` with {new}"
        )));
    }
    if !joined
        .ids()
        .any(|user| user.split_once(':').is_some_and(|(_, server)| server == identity.server_name))
    {
        return Err(RoomError::Room("the room has no local members, and Synapse no longer tracks it: let one local user join it first, or remove it from `rooms`".to_owned()));
    }
    Ok(OpenRoom { room_id, members: joined })
}

/// Checks that Synapse allows the daemon's account to join others to the room.
pub(super) async fn check_may_join_others(
    reader: &Reader,
    identity: &Identity,
    room: &OpenRoom,
    permissions: &Permissions,
) -> Result<(), RoomError> {
    let account = &identity.account.name;
    if !permissions.public && !room.members.contains(account) {
        return Err(RoomError::Room(format!(
            "the room is not public and {account} is not a member: invite and join {account}, and give it the power to invite"
        )));
    }
    if !permissions.public && !permissions.may_invite(account) {
        return Err(RoomError::Room(format!(
            "the room is not public and {account} may not invite: raise its power level to that of `invite`"
        )));
    }
    if reader.is_blocked(&room.room_id).await? {
        return Err(RoomError::Room(
            "the room is blocked on this homeserver: unblock it, or remove it from `rooms`"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Another server that does not resolve its alias affects only that room, not the run.
fn alias_error(error: synapse::Error) -> RoomError {
    match &error.cause {
        synapse::Cause::Synapse { status: 502, .. } => RoomError::Room(format!(
            "the alias belongs to another server, which did not resolve it ({}): use the room id, or a local alias",
            error.message()
        )),
        _ => error.into(),
    }
}
