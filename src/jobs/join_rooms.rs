//! `join-rooms`: joins local users to rooms.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::job::{CheckResult, Context, Job, Needs, PlanError, ReadEstimate};
use crate::plan::change::{Change, ChangeResult, Check, Lane, Plan, Work};
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::{Action, Exempt};
use crate::synapse::{
    self, Identity, MemberEvent, Membership, Permissions, Reader, UserMap, UserRow, UserSet,
    Version, Writer,
};
use crate::values::clock::Timestamp;
use crate::values::duration::format_duration;
use crate::values::glob::{Matched, Selection, UserGlob, select, unmatched};
use crate::values::schema::schema;
use crate::values::schema::text_values;
use crate::values::schema::{ConfigError, Key, NonEmpty, Rate, Table};
use crate::values::string_enum::string_enum;
use crate::values::text::format_count;

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
        /// Joins per second into one room. They count towards Synapse's `rc_joins_per_room`: with a higher rate, Synapse refuses other users who want to join the room.
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

#[derive(Debug)]
pub struct JoinRooms {
    keys: Keys,
}

impl Job for JoinRooms {
    const KIND: &'static str = "join-rooms";
    const ABOUT: &'static str = "Joins local users to rooms that they are not in. Skips users who left or were kicked or banned (from the room, or from the one that it replaced), \
        deactivated, locked and suspended accounts, guests, bridge ghosts, bots and the daemon's own account. \
        To a room that is not public, the daemon's account invites the users: it must be a member with the power to invite.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::JoinRoom;
    const NEEDS: Needs = Needs {
        synapse: Version(1, 123),
        clock: false,
        not_under_mas: None,
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, _now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        Some(Self { keys: Keys::parse(table, errors)? })
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let fast = self.keys.joins_per_second.0 > 0.5;
        fast.then(|| ("joins_per_second", "above 0.5 joins per second, the run uses up Synapse's rc_joins_per_room (1 per second by default), and Synapse refuses other users who want to join the room meanwhile".to_owned())).into_iter().collect()
    }

    async fn check(&self, reader: &Reader, identity: &Identity) -> Vec<CheckResult> {
        let mut answers = Vec::new();
        for RoomName(name) in self.keys.rooms.iter() {
            let access = async {
                let room = open(reader, identity, resolve(reader, name).await?).await?;
                let permissions = reader.permissions(&room.room_id).await?;
                check_may_join_others(reader, identity, &room, &permissions).await?;
                Ok(if permissions.public {
                    "yes, the room is public"
                } else {
                    "yes, by invitation"
                }
                .to_owned())
            };
            let answer = access.await.map_err(|error| match error {
                RoomError::Room(problem) => problem,
                RoomError::Run(failure) => failure.to_string(),
            });
            answers.push(CheckResult { question: format!("may join users to {name}"), answer });
        }
        answers
    }

    fn topic(&self) -> Option<Topic> {
        Some(Topic::Ghost)
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let identity = context.identity().await?;
        let ghosts = context.facts.known();
        let listed =
            context.reader.users(|done, total| context.reading("accounts", done, total)).await?;
        let candidates = self.candidates(listed, identity, ghosts, plan);
        let mut rooms = Vec::new();
        let mut known = HashSet::new();
        for (index, RoomName(name)) in self.keys.rooms.iter().enumerate() {
            context.reading("rooms", index as u64, self.keys.rooms.len() as u64);
            match self.plan_room(context, identity, name, &candidates, &mut known, plan).await {
                Ok(room) => rooms.extend(room),
                Err(RoomError::Room(problem)) => plan.problem(Action::JoinRoom, name, problem),
                Err(RoomError::Run(failure)) => return Err(failure),
            }
        }
        context.reading("rooms", self.keys.rooms.len() as u64, self.keys.rooms.len() as u64);
        self.drop_excluded(context, &mut rooms, plan).await?;
        check_rooms(context.reader, identity, &mut rooms, plan).await?;
        self.fill(plan, rooms, identity);
        Ok(())
    }
}

/// More upgrades than any room has had. The predecessor of a room is whatever its creator wrote, so the chain may be endless.
const MAX_CHAIN: usize = 100;

/// Why a room, or the whole run, cannot be planned.
enum RoomError {
    Room(String),
    Run(PlanError),
}

impl From<synapse::Error> for RoomError {
    fn from(error: synapse::Error) -> Self {
        if error.is_about_target() { Self::Room(error.message()) } else { Self::Run(error.into()) }
    }
}

/// A room and the users to join to it.
struct RoomPlan {
    name: String,
    open: OpenRoom,
    /// `None` if nobody is to be joined.
    permissions: Option<Permissions>,
    missing: Vec<Missing>,
}

/// An account that `users` matches.
struct Candidate {
    user_id: String,
    /// Why it is not joined to any room, as far as the list of accounts tells.
    exempt: Option<Exempt>,
}

struct Missing {
    user_id: String,
    /// The membership in this room when it was planned.
    membership: Option<Membership>,
}

impl JoinRooms {
    /// Returns the accounts that `users` selects, and notes the patterns without a match.
    fn candidates(
        &self,
        listed: Vec<UserRow>,
        identity: &Identity,
        ghosts: &HashMap<String, String>,
        plan: &mut Plan,
    ) -> Vec<Candidate> {
        let Keys { users, except_users, .. } = &self.keys;
        let mut seen = Matched::default();
        let candidates = listed
            .into_iter()
            .filter_map(|row| {
                let exempt = match select(&row.name, users, except_users, &mut seen) {
                    Selection::Unmatched => return None,
                    Selection::Excluded => Some(Exempt::Excluded),
                    Selection::Chosen => self.exempt(&row, identity),
                };
                let ghost = || ghosts.contains_key(&row.name).then_some(Exempt::Bridge);
                Some(Candidate { exempt: exempt.or_else(ghost), user_id: row.name })
            })
            .collect();
        for pattern in unmatched(users, except_users, &seen) {
            plan.notes.push(format!("`{pattern}` matched no account"));
        }
        candidates
    }

    /// Removes accounts that must not be joined from all rooms.
    async fn drop_excluded(
        &self,
        context: &Context<'_>,
        rooms: &mut [RoomPlan],
        plan: &mut Plan,
    ) -> Result<(), PlanError> {
        let excluded = self.excluded_accounts(context, rooms).await?;
        for room in rooms {
            let name = &room.name;
            room.missing.retain(|missing| {
                let Some(exempt) = excluded.get(&missing.user_id) else { return true };
                if let Some(exempt) = *exempt {
                    plan.leave_alone(exempt, || target(&missing.user_id, name));
                }
                false
            });
        }
        Ok(())
    }

    /// Judges by the list of accounts, which shows neither bridge ghosts nor suspension.
    fn exempt(&self, row: &UserRow, identity: &Identity) -> Option<Exempt> {
        let bot = matches!(row.user_type.as_deref(), Some("bot" | "support"));
        [
            (row.name == identity.account.name, Exempt::OwnAccount),
            (row.deactivated, Exempt::Deactivated),
            (row.locked, Exempt::Locked),
            (row.is_guest, Exempt::Guest),
            (bot && !self.keys.include_bots, Exempt::Bot),
        ]
        .into_iter()
        .find_map(|(applies, exempt)| applies.then_some(exempt))
    }

    /// Returns `None` if another entry of `rooms` refers to the same room.
    async fn plan_room(
        &self,
        context: &Context<'_>,
        identity: &Identity,
        name: &str,
        candidates: &[Candidate],
        known: &mut HashSet<String>,
        plan: &mut Plan,
    ) -> Result<Option<RoomPlan>, RoomError> {
        let reader = context.reader;
        let room_id = resolve(reader, name).await?;
        if !known.insert(room_id.clone()) {
            return Ok(None);
        }
        let open = open(reader, identity, room_id).await?;
        let mut outside: Vec<&str> = Vec::new();
        for Candidate { user_id, exempt } in candidates {
            match exempt {
                _ if open.members.contains(user_id) => {}
                Some(exempt) => plan.leave_alone(*exempt, || target(user_id, name)),
                None => outside.push(user_id),
            }
        }
        if outside.is_empty() {
            let (permissions, missing) = (None, Vec::new());
            return Ok(Some(RoomPlan { name: name.to_owned(), open, permissions, missing }));
        }
        let permissions = reader.permissions(&open.room_id).await?;
        let events = self.chain(reader, &open, permissions.predecessor.clone()).await?;
        let mut missing = Vec::new();
        for user in outside {
            match self.may_join(&events, user) {
                Ok(()) => missing.push(Missing {
                    user_id: user.to_owned(),
                    membership: events[0].get(user).map(|event| event.membership),
                }),
                Err(exempt) => plan.leave_alone(exempt, || target(user, name)),
            }
        }
        Ok(Some(RoomPlan { name: name.to_owned(), open, permissions: Some(permissions), missing }))
    }

    /// Returns the membership events of the room and of those that it replaced, newest room first.
    async fn chain(
        &self,
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

    /// Decides by the newest room in which the user joined, left or was banned; invitations and knocks do not count.
    fn may_join(&self, chain: &[UserMap<MemberEvent>], user: &str) -> Result<(), Exempt> {
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
        match (left.map(|event| event.by_self), self.keys.rejoin) {
            (None, _)
            | (Some(true), Rejoin::Left | Rejoin::Kicked)
            | (Some(false), Rejoin::Kicked) => Ok(()),
            (Some(true), Rejoin::Never) => Err(Exempt::Left),
            (Some(false), Rejoin::Never | Rejoin::Left) => Err(Exempt::Kicked),
        }
    }

    /// Reads every account that is to be joined, and returns those that must not be: bridge ghosts, suspended accounts, …
    ///
    /// The value is `None` for an account that no longer exists.
    async fn excluded_accounts(
        &self,
        context: &Context<'_>,
        rooms: &[RoomPlan],
    ) -> Result<HashMap<String, Option<Exempt>>, PlanError> {
        let user_ids: BTreeSet<String> = rooms
            .iter()
            .flat_map(|room| room.missing.iter().map(|missing| missing.user_id.clone()))
            .collect();
        let total = user_ids.len() as u64;
        context.expect_reading(ReadEstimate { what: "missing accounts", items: total });
        let (mut excluded, mut ghosts, mut done) = (HashMap::new(), Vec::new(), 0);
        let mut answers = stream::iter(user_ids)
            .map(|user_id| async move { (context.reader.user(&user_id).await, user_id) })
            .buffer_unordered(context.concurrency);
        while let Some((answer, user_id)) = answers.next().await {
            done += 1;
            context.reading("missing accounts", done, total);
            let user = match answer {
                Err(error) if error.is_not_found() => {
                    excluded.insert(user_id, None);
                    continue;
                }
                answer => answer?,
            };
            if let Some(appservice) = &user.appservice_id {
                ghosts.push(Fact {
                    topic: Topic::Ghost,
                    key: user_id.clone(),
                    value: appservice.clone(),
                });
            }
            let exempt = [
                (user.appservice_id.is_some(), Exempt::Bridge),
                (user.deactivated, Exempt::Deactivated),
                (user.locked, Exempt::Locked),
                (user.suspended, Exempt::Suspended),
            ]
            .into_iter()
            .find_map(|(applies, exempt)| applies.then_some(exempt));
            if exempt.is_some() {
                excluded.insert(user_id, exempt);
            }
            // Written in batches: an interrupted run must not have to read all ghosts again.
            if ghosts.len() == 500 {
                context.facts.store(std::mem::take(&mut ghosts)).await;
            }
        }
        context.facts.store(ghosts).await;
        Ok(excluded)
    }

    fn fill(&self, plan: &mut Plan, rooms: Vec<RoomPlan>, identity: &Identity) {
        let can_check_membership = identity.version >= Version(1, 145);
        let per_second = self.keys.joins_per_second.0;
        let mut changes: Vec<Box<dyn Change>> = Vec::new();
        let mut sizes = BTreeMap::new();
        for room in rooms {
            for missing in room.missing {
                *sizes.entry(room.name.clone()).or_insert(0_u32) += 1;
                changes.push(Box::new(Join {
                    user_id: missing.user_id,
                    planned_membership: missing.membership,
                    room: room.name.clone(),
                    room_id: room.open.room_id.clone(),
                    per_second,
                    can_check_membership,
                }));
            }
        }
        if let Some((room, joins)) =
            sizes.iter().max_by_key(|(_, joins)| **joins).filter(|(_, joins)| **joins > 60)
        {
            let takes = std::time::Duration::from_secs_f64(f64::from(*joins) / per_second);
            plan.notes.push(format!(
                "at {per_second} joins per second, the {} to {room} take about {}",
                format_count(u64::from(*joins), "join", "joins"),
                format_duration(takes)
            ));
        }
        plan.work = Work::Changes(changes);
    }
}

/// Drops the rooms to which the daemon's account may not join others.
///
/// Done last: a room with nobody to join needs no power to invite.
async fn check_rooms(
    reader: &Reader,
    identity: &Identity,
    rooms: &mut [RoomPlan],
    plan: &mut Plan,
) -> Result<(), PlanError> {
    for room in rooms {
        let allowed = match (room.missing.is_empty(), &room.permissions) {
            (false, Some(permissions)) => {
                check_may_join_others(reader, identity, &room.open, permissions).await
            }
            _ => Ok(()),
        };
        match allowed {
            Ok(()) => plan.some_up_to_date = true,
            Err(RoomError::Room(problem)) => {
                room.missing.clear();
                plan.problem(Action::JoinRoom, &room.name, problem);
            }
            Err(RoomError::Run(failure)) => return Err(failure),
        }
    }
    Ok(())
}

/// A room that exists and has local members.
struct OpenRoom {
    room_id: String,
    members: UserSet,
}

/// Resolves an alias. Done once per run: the alias may point to another room later.
async fn resolve(reader: &Reader, name: &str) -> Result<String, RoomError> {
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
async fn open(
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
async fn check_may_join_others(
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

fn target(user_id: &str, room: &str) -> String {
    format!("{user_id} -> {room}")
}

#[derive(Debug)]
struct Join {
    user_id: String,
    room: String,
    room_id: String,
    planned_membership: Option<Membership>,
    per_second: f64,
    can_check_membership: bool,
}

impl Change for Join {
    fn action(&self) -> Action {
        Action::JoinRoom
    }

    fn target(&self) -> String {
        target(&self.user_id, &self.room)
    }

    fn lane(&self) -> Lane {
        Lane::Room { room_id: self.room_id.clone(), per_second: self.per_second }
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, synapse::Error>> {
        Box::pin(async move {
            // A paced run takes long, and Synapse would join even a deactivated account, which could never leave again.
            let user = reader.user(&self.user_id).await?;
            if user.deactivated || user.locked || user.suspended {
                return Ok(Check::Skip(
                    "the account was deactivated, locked or suspended since the plan".to_owned(),
                ));
            }
            if !self.can_check_membership {
                return Ok(Check::Proceed(None));
            }
            // Joining again would reset the room nickname of a user who joined, and bring back one who left.
            let now = reader.membership(&self.user_id, &self.room_id).await?;
            Ok(match now {
                now if now == self.planned_membership => {
                    Check::Proceed(now.map(|now| Value::from(now.as_str())))
                }
                now => Check::Skip(format!(
                    "the membership changed since the plan and is now `{}`",
                    now.map_or("none", Membership::as_str)
                )),
            })
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, synapse::Error>> {
        Box::pin(async move {
            writer.join(&self.room_id, &self.user_id).await?;
            Ok(ChangeResult::items(1))
        })
    }
}

/// An alias or a room id; rooms of version 12 have ids without a server name.
#[derive(Debug, Clone)]
pub struct RoomName(String);

impl std::str::FromStr for RoomName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.chars().next() {
            Some('!') if text.len() > 1 => Ok(Self(text.to_owned())),
            Some('#') if text.contains(':') => Ok(Self(text.to_owned())),
            Some('#') => Err(format!(
                "{text:?} is not a valid alias: an alias includes its server, such as \"{text}:example.com\""
            )),
            _ => Err(format!(
                "{text:?} is not a valid room: expected an alias (\"#room:example.com\") or a room id (\"!…\")"
            )),
        }
    }
}

text_values! { RoomName: "an alias such as \"#room:example.com\" or a room id"; }
