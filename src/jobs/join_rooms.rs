//! `join-rooms`: sweeps users into the rooms they should be in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::jobs::job::{CheckResult, Context, Job, Needs, PlanError, ReadEstimate};
use crate::plan::change::{Change, ChangeResult, Check, Fact, Lane, Plan, Topic, Work};
use crate::plan::report::{Action, Exempt};
use crate::synapse::{
    self, Identity, MemberEvent, Membership, Permissions, Reader, UserRow, Version, Writer,
};
use crate::values::clock::Timestamp;
use crate::values::duration::format_duration;
use crate::values::glob::{Matched, Selection, UserGlob, select, unmatched};
use crate::values::schema::schema;
use crate::values::schema::text_values;
use crate::values::schema::{ConfigError, Key, Rate, Table};
use crate::values::string_enum::string_enum;
use crate::values::text::format_count;

schema! {
    pub struct Keys {
        /// The rooms, as aliases (#room:example.com) or ids (!id).
        pub rooms: Vec<RoomName>,
        /// Whom to sweep in: ids or globs over whole Matrix ids.
        pub users: Vec<UserGlob> = "[\"*\"]",
        /// Never these.
        pub except_users: Vec<UserGlob> = "[]",
        /// Whom to join again: "never" anybody who left, "left" who left of their own accord, "kicked" those and who was kicked. Nobody banned, ever.
        pub rejoin: Rejoin = "\"never\"",
        /// Joins a second into one room; Synapse counts them against `rc_joins_per_room`, so that more locks real users out of the room.
        pub joins_per_second: Rate where "0.001" to "10000" = "0.5",
        /// Also accounts whose `user_type` is bot or support.
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
    const ABOUT: &'static str = "Joins local users to rooms they are not in. Leaves alone who is in already, who left or was kicked or banned (here or in the room that this one replaced), \
        and every deactivated, locked or suspended account, guest, bridge ghost, bot and the daemon's own account. \
        Into a room that is not public the daemon's account invites: it must be in there and may invite.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::JoinRoom;
    const NEEDS: Needs = Needs {
        synapse: Version(1, 123),
        clock: false,
        not_under_mas: None,
        plans_offline: false,
        media: false,
    };

    fn read(
        table: &Table<'_, '_>,
        _now: Timestamp,
        mistakes: &mut Vec<ConfigError>,
    ) -> Option<Self> {
        table.reject_empty(&["rooms", "users"], mistakes);
        Some(Self { keys: Keys::read(table, mistakes)? })
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let fast = self.keys.joins_per_second.0 > 0.5;
        fast.then(|| ("joins_per_second", "above 0.5 joins a second a sweep uses up Synapse's rc_joins_per_room (1 a second by default), and real users are refused in that room for as long".to_owned())).into_iter().collect()
    }

    async fn check(&self, reader: &Reader, identity: &Identity) -> Vec<CheckResult> {
        let mut answers = Vec::new();
        for RoomName(name) in &self.keys.rooms {
            let access = async {
                let room = open(reader, identity, id_of(reader, name).await?).await?;
                let permissions = reader.permissions(&room.room_id).await?;
                may_bring_in(reader, identity, &room, &permissions).await?;
                Ok(if permissions.public { "yes, it is public" } else { "yes, by invitation" }
                    .to_owned())
            };
            let answer = access.await.map_err(|trouble| match trouble {
                Trouble::Room(problem) => problem,
                Trouble::Run(failure) => failure.to_string(),
            });
            answers.push(CheckResult { question: format!("may join users to {name}"), answer });
        }
        answers
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let identity = context.identity().await?;
        let ghosts = context.memory.facts(Topic::Ghost).await?;
        let mut seen = Matched::default();
        let listed =
            context.reader.users(|done, total| context.reading("accounts", done, total)).await?;
        let wanted: Vec<ListedJob> = listed
            .into_iter()
            .filter_map(|row| {
                let exempt =
                    match select(&row.name, &self.keys.users, &self.keys.except_users, &mut seen) {
                        Selection::Unmatched => return None,
                        Selection::Excluded => Some(Exempt::Excluded),
                        Selection::Chosen => self.exempt(&row, identity),
                    };
                let ghost = || ghosts.contains_key(&row.name).then_some(Exempt::Bridge);
                Some(ListedJob { exempt: exempt.or_else(ghost), user_id: row.name })
            })
            .collect();
        for pattern in unmatched(&self.keys.users, &self.keys.except_users, &seen) {
            plan.notes.push(format!("`{pattern}` matched no account"));
        }
        let mut rooms = Vec::new();
        let mut known = HashSet::new();
        for (index, RoomName(name)) in self.keys.rooms.iter().enumerate() {
            context.reading("rooms", index as u64, self.keys.rooms.len() as u64);
            match self.look_at(context, identity, name, &wanted, &mut known, plan).await {
                Ok(room) => rooms.extend(room),
                Err(Trouble::Room(problem)) => plan.problem(Action::JoinRoom, name, problem),
                Err(Trouble::Run(failure)) => return Err(failure),
            }
        }
        context.reading("rooms", self.keys.rooms.len() as u64, self.keys.rooms.len() as u64);
        let unfit = self.unfit(context, &rooms).await?;
        for room in &mut rooms {
            let name = &room.name;
            room.missing.retain(|missing| match unfit.get(&missing.user_id) {
                None => true,
                Some(exempt) => {
                    if let Some(exempt) = *exempt {
                        plan.leave_alone(exempt, || target(&missing.user_id, name));
                    }
                    false
                }
            });
            // Checked last: a room in which only ghosts are missing needs no power to invite.
            let asked = match (room.missing.is_empty(), &room.permissions) {
                (false, Some(permissions)) => {
                    may_bring_in(context.reader, identity, &room.open, permissions).await
                }
                _ => Ok(()),
            };
            match asked {
                Ok(()) => plan.some_fine = true,
                Err(Trouble::Room(problem)) => {
                    room.missing.clear();
                    plan.problem(Action::JoinRoom, &room.name, problem);
                }
                Err(Trouble::Run(failure)) => return Err(failure),
            }
        }
        self.fill(plan, rooms, identity);
        Ok(())
    }
}

/// No room was upgraded more often: each upgrade names a room before it, and anybody can write any name there.
const MOST_ROOMS: usize = 100;

/// What keeps a room from being worked on, or the whole run.
enum Trouble {
    Room(String),
    Run(PlanError),
}

impl From<synapse::Error> for Trouble {
    fn from(error: synapse::Error) -> Self {
        if error.is_about_target() { Self::Room(error.message()) } else { Self::Run(error.into()) }
    }
}

/// A room with those who are missing there and did not leave it.
struct RoomPlan {
    name: String,
    open: OpenRoom,
    /// Read only where somebody is missing.
    permissions: Option<Permissions>,
    missing: Vec<Missing>,
}

/// An account that `users` matches.
struct ListedJob {
    user_id: String,
    /// Why it is joined to no room, as far as the list of accounts shows.
    exempt: Option<Exempt>,
}

struct Missing {
    user_id: String,
    /// The membership in this room at the time of the plan.
    was: Option<Membership>,
}

impl JoinRooms {
    /// What the list of accounts tells; ghosts and suspension show only one by one.
    fn exempt(&self, row: &UserRow, identity: &Identity) -> Option<Exempt> {
        let bot = matches!(row.user_type.as_deref(), Some("bot" | "support"));
        match () {
            () if row.name == identity.account.name => Some(Exempt::OwnAccount),
            () if row.deactivated => Some(Exempt::Deactivated),
            () if row.locked => Some(Exempt::Locked),
            () if row.is_guest => Some(Exempt::Guest),
            () if bot && !self.keys.include_bots => Some(Exempt::Bot),
            () => None,
        }
    }

    /// `None` for a room that another name led to before.
    async fn look_at(
        &self,
        context: &Context<'_>,
        identity: &Identity,
        name: &str,
        wanted: &[ListedJob],
        known: &mut HashSet<String>,
        plan: &mut Plan,
    ) -> Result<Option<RoomPlan>, Trouble> {
        let reader = context.reader;
        let room_id = id_of(reader, name).await?;
        if !known.insert(room_id.clone()) {
            return Ok(None);
        }
        let open = open(reader, identity, room_id).await?;
        let mut outside: Vec<&str> = Vec::new();
        for ListedJob { user_id, exempt } in wanted {
            match exempt {
                _ if open.inside.contains(user_id) => {}
                Some(exempt) => plan.leave_alone(*exempt, || target(user_id, name)),
                None => outside.push(user_id),
            }
        }
        if outside.is_empty() {
            let (permissions, missing) = (None, Vec::new());
            return Ok(Some(RoomPlan { name: name.to_owned(), open, permissions, missing }));
        }
        let permissions = reader.permissions(&open.room_id).await?;
        let events = self.chain(reader, &open.room_id, permissions.predecessor.clone()).await?;
        let mut missing = Vec::new();
        for user in outside {
            match self.welcome(&events, user) {
                Ok(()) => missing.push(Missing {
                    user_id: user.to_owned(),
                    was: events[0].get(user).map(|event| event.membership),
                }),
                Err(exempt) => plan.leave_alone(exempt, || target(user, name)),
            }
        }
        Ok(Some(RoomPlan { name: name.to_owned(), open, permissions: Some(permissions), missing }))
    }

    /// The membership events of the room and of those that it replaced, newest room first.
    async fn chain(
        &self,
        reader: &Reader,
        room_id: &str,
        predecessor: Option<String>,
    ) -> Result<Vec<HashMap<String, MemberEvent>>, Trouble> {
        let mut chain = vec![reader.member_events(room_id).await?];
        let (mut next, mut visited) = (predecessor, HashSet::from([room_id.to_owned()]));
        while let Some(room) = next.take().filter(|room| visited.insert(room.clone())) {
            if visited.len() > MOST_ROOMS {
                return Err(Trouble::Room(format!(
                    "the rooms that it replaced do not end: {MOST_ROOMS} were read"
                )));
            }
            match reader.member_events(&room).await {
                Ok(events) => chain.push(events),
                // A room that was purged, or that nobody from here ever was in, holds no memory to respect.
                Err(error) if error.is_not_found() => break,
                Err(error) => return Err(error.into()),
            }
            next = reader.predecessor(&room).await?;
        }
        Ok(chain)
    }

    /// Whether the user may be joined, by the latest word there is: an invitation or a knock is none about the rooms before.
    fn welcome(&self, chain: &[HashMap<String, MemberEvent>], user: &str) -> Result<(), Exempt> {
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

    /// Asks about everybody who is missing somewhere: ghosts, whom it remembers, and the suspended are left out.
    ///
    /// Without a reason for an account that is gone.
    async fn unfit(
        &self,
        context: &Context<'_>,
        rooms: &[RoomPlan],
    ) -> Result<HashMap<String, Option<Exempt>>, PlanError> {
        let asked: BTreeSet<String> = rooms
            .iter()
            .flat_map(|room| room.missing.iter().map(|missing| missing.user_id.clone()))
            .collect();
        let total = asked.len() as u64;
        context.expect_reading(ReadEstimate { what: "missing accounts", items: total });
        let (mut unfit, mut ghosts, mut done) = (HashMap::new(), Vec::new(), 0);
        let mut answers = stream::iter(asked)
            .map(|user_id| async move { (context.reader.user(&user_id).await, user_id) })
            .buffer_unordered(context.concurrency);
        while let Some((answer, user_id)) = answers.next().await {
            done += 1;
            context.reading("missing accounts", done, total);
            let user = match answer {
                Err(error) if error.is_not_found() => {
                    unfit.insert(user_id, None);
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
            let exempt = match () {
                () if user.appservice_id.is_some() => Some(Exempt::Bridge),
                () if user.deactivated => Some(Exempt::Deactivated),
                () if user.locked => Some(Exempt::Locked),
                () if user.suspended => Some(Exempt::Suspended),
                () => None,
            };
            if exempt.is_some() {
                unfit.insert(user_id, exempt);
            }
            // Written as it goes: a sweep over many ghosts that is cut off must not begin from nothing.
            if ghosts.len() == 500 {
                context.memory.remember(&std::mem::take(&mut ghosts)).await;
            }
        }
        context.memory.remember(&ghosts).await;
        Ok(unfit)
    }

    fn fill(&self, plan: &mut Plan, rooms: Vec<RoomPlan>, identity: &Identity) {
        let can_look_again = identity.version >= Version(1, 145);
        let per_second = self.keys.joins_per_second.0;
        let mut changes: Vec<Box<dyn Change>> = Vec::new();
        let mut sizes = BTreeMap::new();
        for room in rooms {
            for missing in room.missing {
                *sizes.entry(room.name.clone()).or_insert(0_u32) += 1;
                changes.push(Box::new(Join {
                    user_id: missing.user_id,
                    was: missing.was,
                    room: room.name.clone(),
                    room_id: room.open.room_id.clone(),
                    per_second,
                    can_look_again,
                }));
            }
        }
        if let Some((room, joins)) =
            sizes.iter().max_by_key(|(_, joins)| **joins).filter(|(_, joins)| **joins > 60)
        {
            let takes = std::time::Duration::from_secs_f64(f64::from(*joins) / per_second);
            plan.notes.push(format!(
                "at {per_second} joins a second the {} into {room} take about {}",
                format_count(u64::from(*joins), "join", "joins"),
                format_duration(takes)
            ));
        }
        plan.work = Work::Changes(changes);
    }
}

/// A room that can be looked at.
struct OpenRoom {
    room_id: String,
    inside: HashSet<String>,
}

/// Asks for what is behind an alias: once, since it may point elsewhere a moment later.
async fn id_of(reader: &Reader, name: &str) -> Result<String, Trouble> {
    if !name.starts_with('#') {
        return Ok(name.to_owned());
    }
    reader.resolve_alias(name).await.map_err(|error| match error.is_not_found() {
        true => Trouble::Room(format!(
            "there is no such alias ({}): mend `rooms`, or make the alias",
            error.message()
        )),
        false => remote_alias(error),
    })
}

/// Finds out who is in the room; one that is gone, closed or left by everybody is trouble.
async fn open(reader: &Reader, identity: &Identity, room_id: String) -> Result<OpenRoom, Trouble> {
    let joined = reader.joined_members(&room_id).await.map_err(|error| match error.is_not_found() {
        true => Trouble::Room("Synapse does not know this room: mend `rooms`; to join a remote room, let one local user join it first".to_owned()),
        false => error.into(),
    })?;
    if let Some(new) = reader.replacement(&room_id).await? {
        let new = if new.is_empty() { "its alias or its successor".to_owned() } else { new };
        return Err(Trouble::Room(format!(
            "the room was upgraded and is closed: put {new} into `rooms` in its place"
        )));
    }
    if !joined
        .iter()
        .any(|user| user.split_once(':').is_some_and(|(_, server)| server == identity.server_name))
    {
        return Err(Trouble::Room("nobody from here is in the room, and Synapse knows nothing of it any more: let one local user join it first, or take it out of `rooms`".to_owned()));
    }
    Ok(OpenRoom { room_id, inside: joined.into_iter().collect() })
}

/// Whether Synapse would let our account bring others in.
async fn may_bring_in(
    reader: &Reader,
    identity: &Identity,
    room: &OpenRoom,
    permissions: &Permissions,
) -> Result<(), Trouble> {
    let account = &identity.account.name;
    if !permissions.public && !room.inside.contains(account) {
        return Err(Trouble::Room(format!(
            "the room is not public and {account} is not in it: invite {account} and let it join, with the power to invite"
        )));
    }
    if !permissions.public && !permissions.may_invite(account) {
        return Err(Trouble::Room(format!(
            "the room is not public and {account} may not invite there: raise its power level to that of `invite`"
        )));
    }
    if reader.is_blocked(&room.room_id).await? {
        return Err(Trouble::Room(
            "the room is blocked on this homeserver: unblock it, or take it out of `rooms`"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Another server that cannot be asked for its alias is that room's trouble, not ours.
fn remote_alias(error: synapse::Error) -> Trouble {
    match &error.cause {
        synapse::Cause::Synapse { status: 502, .. } => Trouble::Room(format!(
            "the alias belongs to another server, which cannot be asked now ({}): use the room id, or a local alias",
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
    was: Option<Membership>,
    per_second: f64,
    can_look_again: bool,
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
            // A paced sweep takes long, and Synapse would join a deactivated account, never to leave again.
            let user = reader.user(&self.user_id).await?;
            if user.deactivated || user.locked || user.suspended {
                return Ok(Check::Skip(
                    "the account was deactivated, locked or suspended since the plan".to_owned(),
                ));
            }
            if !self.can_look_again {
                return Ok(Check::Go(None));
            }
            // Who joined meanwhile would lose a nickname, who left would be brought back.
            let now = reader.membership(&self.user_id, &self.room_id).await?;
            Ok(match now {
                now if now == self.was => Check::Go(now.map(|now| Value::from(now.as_str()))),
                now => Check::Skip(format!(
                    "the membership changed since the plan: it is `{}` now",
                    now.map_or("none", Membership::as_str)
                )),
            })
        })
    }

    fn make<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, synapse::Error>> {
        Box::pin(async move {
            writer.join(&self.room_id, &self.user_id).await?;
            Ok(ChangeResult::things(1))
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
                "{text:?} is no alias: an alias names its server, such as \"{text}:example.com\""
            )),
            _ => Err(format!(
                "{text:?} is no room: write an alias (\"#room:example.com\") or a room id (\"!…\")"
            )),
        }
    }
}

text_values! { RoomName: "an alias such as \"#room:example.com\" or a room id"; }
