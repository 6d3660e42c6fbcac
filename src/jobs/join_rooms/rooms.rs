//! The rooms of a `join-rooms` job: which they are, who is or was in them, and whether the daemon's account may join others.

use std::collections::HashSet;

use super::keys::Keys;
use crate::jobs::job::{Context, PlanError};
use crate::plan::change::Plan;
use crate::plan::report::Action;
use crate::synapse::{self, Identity, MemberEvent, Permissions, Reader, UserMap, UserSet};
use crate::values::duration::format_duration;
use crate::values::matrix_id::RoomName;
use crate::values::text::format_count;

/// More upgrades than any room has had. The predecessor of a room is whatever its creator wrote, so the chain may be endless.
const MAX_CHAIN: usize = 100;

/// Why a room, or the whole run, cannot be planned.
pub(super) enum RoomError {
    Room(String),
    Run(PlanError),
}

impl RoomError {
    pub fn into_text(self) -> String {
        match self {
            Self::Room(problem) => problem,
            Self::Run(failure) => failure.to_string(),
        }
    }
}

impl From<synapse::Error> for RoomError {
    fn from(error: synapse::Error) -> Self {
        if error.is_about_target() { Self::Room(error.message()) } else { Self::Run(error.into()) }
    }
}

/// A room that the job names, or that a space brings in.
#[derive(Debug, Clone)]
pub(super) struct NamedRoom {
    /// What the plan shows.
    pub name: String,
    pub id_or_alias: String,
    pub origin: Origin,
}

/// Where a room or a space is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Job,
    Space,
}

impl Origin {
    /// How to leave it out; `key` is the list of the job.
    pub fn leave_out(self, key: &str) -> String {
        match self {
            Self::Job => format!("remove it from `{key}`"),
            Self::Space => "add it to `except_rooms`".to_owned(),
        }
    }

    /// Fails if the room or space has a tombstone.
    pub async fn check_replaced(
        self,
        reader: &Reader,
        room_id: &str,
        key: &str,
    ) -> Result<(), RoomError> {
        let Some(new) = reader.replacement(room_id).await? else { return Ok(()) };
        let what = if key == "spaces" { "space" } else { "room" };
        let new = if new.is_empty() { format!("its alias or the new {what}") } else { new };
        let list = match self {
            Self::Job => format!("`{key}`"),
            Self::Space => "the space above it".to_owned(),
        };
        Err(RoomError::Room(format!(
            "the {what} was replaced by an upgrade: replace it in {list} with {new}"
        )))
    }
}

impl NamedRoom {
    pub fn of_job(RoomName(name): &RoomName) -> Self {
        Self { name: name.clone(), id_or_alias: name.clone(), origin: Origin::Job }
    }
}

/// A room to join users to; what only a room with somebody to join needs is read once there is somebody.
pub(super) struct TargetRoom {
    pub name: String,
    pub origin: Origin,
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
    named: Vec<NamedRoom>,
    context: &Context<'_>,
    identity: &Identity,
    plan: &mut Plan,
) -> Result<Vec<TargetRoom>, PlanError> {
    let (mut rooms, mut known) = (Vec::new(), HashSet::new());
    let total = named.len() as u64;
    for (index, room) in named.into_iter().enumerate() {
        context.reading("rooms", index as u64, total);
        match open_room(context.reader, identity, &room, &mut known).await {
            Ok(room) => rooms.extend(room),
            Err(RoomError::Room(problem)) => plan.problem(Action::JoinRoom, &room.name, problem),
            Err(RoomError::Run(failure)) => return Err(failure),
        }
    }
    context.reading("rooms", total, total);
    Ok(rooms)
}

/// Returns `None` if the same room was named before.
async fn open_room(
    reader: &Reader,
    identity: &Identity,
    room: &NamedRoom,
    known: &mut HashSet<String>,
) -> Result<Option<TargetRoom>, RoomError> {
    let room_id = resolve(reader, &room.id_or_alias, "rooms").await?;
    if !known.insert(room_id.clone()) {
        return Ok(None);
    }
    Ok(Some(TargetRoom {
        name: room.name.clone(),
        origin: room.origin,
        open: open(reader, identity, room_id, room.origin).await?,
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
    match check_may_join_others(reader, identity, &room.open, permissions, room.origin).await {
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

/// Resolves an alias in a list of the job. Done once per run: the alias may point to another room later.
pub(super) async fn resolve(reader: &Reader, name: &str, key: &str) -> Result<String, RoomError> {
    if !name.starts_with('#') {
        return Ok(name.to_owned());
    }
    reader.resolve_alias(name).await.map_err(|error| match error.is_not_found() {
        true => RoomError::Room(format!(
            "the alias does not exist ({}): fix `{key}`, or create the alias",
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
    origin: Origin,
) -> Result<OpenRoom, RoomError> {
    let joined = reader.joined_members(&room_id).await.map_err(|error| match error.is_not_found() {
        true => RoomError::Room(match origin {
            Origin::Job => "Synapse does not know this room: fix `rooms`; a remote room needs one local member first".to_owned(),
            Origin::Space => "Synapse does not know this room: let one local user join it first, or add it to `except_rooms`".to_owned(),
        }),
        false => error.into(),
    })?;
    origin.check_replaced(reader, &room_id, "rooms").await?;
    if !joined
        .ids()
        .any(|user| user.split_once(':').is_some_and(|(_, server)| server == identity.server_name))
    {
        return Err(RoomError::Room(format!(
            "the room has no local members, and Synapse no longer tracks it: let one local user join it first, or {}",
            origin.leave_out("rooms")
        )));
    }
    Ok(OpenRoom { room_id, members: joined })
}

/// Checks that Synapse allows the daemon's account to join others to the room.
pub(super) async fn check_may_join_others(
    reader: &Reader,
    identity: &Identity,
    room: &OpenRoom,
    permissions: &Permissions,
    origin: Origin,
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
        return Err(RoomError::Room(format!(
            "the room is blocked on this homeserver: unblock it, or {}",
            origin.leave_out("rooms")
        )));
    }
    Ok(())
}

/// Another server that does not resolve its alias affects only that room, not the run.
pub(super) fn alias_error(error: synapse::Error) -> RoomError {
    match &error.cause {
        synapse::Cause::Synapse { status: 502, .. } => RoomError::Room(format!(
            "the alias belongs to another server, which did not resolve it ({}): use the room id, or a local alias",
            error.message()
        )),
        _ => error.into(),
    }
}
