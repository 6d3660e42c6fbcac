//! `join-rooms`: joins local users to rooms.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde_json::Value;

use super::job::{CheckResult, Context, Job, Needs, PlanError, Undo};
use super::mas_accounts::{GoneAccounts, is_gone};
use super::portion::{Next, PortionProgress, in_order};
use crate::plan::change::{Change, ChangeResult, Check, Lane, Plan, Work};
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::{Action, Exempt};
use crate::plan::round::{Plans, Rounds};
use crate::synapse::{
    self, Identity, MemberEvent, Membership, Permissions, Position, Reader, User, UserMap,
    UserPage, UserRow, UserSet, Version, Writer,
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

#[derive(Debug)]
pub struct JoinRooms {
    keys: Keys,
}

impl Job for JoinRooms {
    const KIND: &'static str = "join-rooms";
    const ABOUT: &'static str = "Joins local users to rooms that they are not in. Skips users who left or were kicked or banned (from the room, or from the one that it replaced), \
        deactivated, locked and suspended accounts, guests, bridge ghosts, bots and the daemon's own account. \
        Where [homeservers.NAME.mas] is configured, accounts that MAS has locked or deactivated, too, whatever Synapse says. \
        To a room that is not public, the daemon's account invites the users: it must be a member with the power to invite.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::JoinRoom;
    const UNDO: Undo = Undo::Impossible("the members would have to leave themselves");
    const ROUNDS: Option<Rounds> = Some(Rounds { entries: "accounts", plans: Plans::EachPortion });
    const NEEDS: Needs = Needs {
        synapse: Version(1, 123),
        clock: false,
        without_mas_client: None,
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, _now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        Some(Self { keys: Keys::parse(table, errors)? })
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let fast = self.keys.joins_per_second.0 > 0.5;
        fast.then(|| ("joins_per_second", "above 0.5 joins per second, the run uses up Synapse's rc_joins_per_room (1 per second by default), and in the meantime Synapse refuses other users who want to join the room".to_owned())).into_iter().collect()
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

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let identity = context.identity().await?;
        let findings = context.portion.findings.clone();
        let mut reading = Reading {
            job: self,
            context,
            identity,
            gone: GoneAccounts::read(context.reader, &identity.server_name).await?,
            rooms: self.open_rooms(context, identity, plan).await?,
            matched: findings
                .and_then(|found| serde_json::from_value(found).ok())
                .unwrap_or_default(),
            progress: PortionProgress::new(&context.portion),
            changes: Vec::new(),
        };
        let mut pages = context.reader.user_pages(context.portion.from.clone());
        while let Some(page) = pages.next().await? {
            if reading.page(page, pages.is_at_end(), plan).await? == Next::Stop {
                break;
            }
        }
        let Reading { rooms, matched, progress, changes, .. } = reading;
        if progress.is_complete() {
            for pattern in unmatched(&self.keys.users, &self.keys.except_users, &matched) {
                plan.notes.push(format!("`{pattern}` matched no account"));
            }
        }
        plan.some_up_to_date = rooms.iter().any(TargetRoom::is_usable);
        plan.portion = Some(progress.finish(serde_json::to_value(&matched).unwrap_or_default()));
        self.note_duration(&rooms, plan);
        plan.work = Work::Changes(
            changes.into_iter().map(|change| Box::new(change) as Box<dyn Change>).collect(),
        );
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

/// A room to join users to; what only a room with somebody to join needs is read once there is somebody.
struct TargetRoom {
    name: String,
    open: OpenRoom,
    /// The membership events of the room and of those that it replaced, newest room first.
    chain: Option<Vec<UserMap<MemberEvent>>>,
    permissions: Option<Permissions>,
    access: Access,
    /// Users to join in this run.
    joins: u32,
}

/// Whether the daemon's account may join others to a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    NotChecked,
    Allowed,
    /// The room is a problem of the plan.
    Failed,
}

impl TargetRoom {
    fn is_usable(&self) -> bool {
        self.access != Access::Failed
    }

    fn fail(&mut self, problem: String, plan: &mut Plan) {
        self.access = Access::Failed;
        plan.problem(Action::JoinRoom, &self.name, problem);
    }
}

/// A portion of the accounts while it is read.
struct Reading<'a> {
    job: &'a JoinRooms,
    context: &'a Context<'a>,
    identity: &'a Identity,
    gone: GoneAccounts,
    rooms: Vec<TargetRoom>,
    /// The patterns that have matched an account in this round.
    matched: Matched,
    progress: PortionProgress<'a>,
    changes: Vec<Join>,
}

/// What decides about an account that is missing in some room.
enum Record {
    /// In all rooms, or ruled out by its row or by what is known of it.
    NotRead,
    Read(Result<User, synapse::Error>),
}

impl Reading<'_> {
    async fn page(
        &mut self,
        page: UserPage,
        ends_list: bool,
        plan: &mut Plan,
    ) -> Result<Next, PlanError> {
        let UserPage { rows, offset, total } = page;
        self.progress.set_total(total);
        let ghosts = match (rows.first(), rows.last()) {
            (Some(first), Some(last)) => {
                self.context.facts.between(Topic::Ghost, &first.name, &last.name).await
            }
            _ => HashMap::new(),
        };
        self.complete_rooms(&rows, plan).await?;
        let last = rows.len().checked_sub(1).filter(|_| ends_list);
        let (job, context, identity) = (self.job, self.context, self.identity);
        let to_read: HashSet<String> = rows
            .iter()
            .filter(|row| job.is_chosen(row, identity) && !ghosts.contains_key(&row.name))
            .filter(|row| self.gone.exempt(&row.name).is_none())
            .filter(|row| !self.missing_in(&row.name).is_empty())
            .map(|row| row.name.clone())
            .collect();
        let mut records = std::pin::pin!(in_order(rows, context, |row| {
            let to_read = &to_read;
            async move {
                let record = match to_read.contains(&row.name) {
                    true => Record::Read(context.reader.user(&row.name).await),
                    false => Record::NotRead,
                };
                (row, record)
            }
        }));
        let (mut found, mut next) = (Vec::new(), Next::Read);
        while next == Next::Read
            && let Some((index, (row, record))) = records.next().await
        {
            let joins = match self.judge(&row, record, &ghosts, &mut found)? {
                Verdict::Join(exempt) => self.join(&row.name, exempt, plan).await?,
                Verdict::LeaveAlone(exempt) => self.leave_alone(&row.name, exempt, plan),
                Verdict::Ignore => 0,
            };
            let after = Position { after: row.name, offset: offset + index as u64 + 1 };
            next = self.progress.advance(after, &vec![1; joins], Some(index) == last);
            let (read, total) = self.progress.figures();
            context.reading("accounts", read, total);
        }
        context.facts.store(found).await;
        Ok(match next {
            Next::Read => self.progress.end_page(),
            Next::Stop => Next::Stop,
        })
    }

    /// The indices of the rooms that the account is not in.
    fn missing_in(&self, user_id: &str) -> Vec<usize> {
        let rooms = self.rooms.iter().enumerate();
        rooms
            .filter(|(_, room)| room.is_usable() && !room.open.members.contains(user_id))
            .filter(|(_, room)| {
                room.chain.as_ref().is_none_or(|chain| self.job.may_join(chain, user_id).is_ok())
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// Reads who left and who may invite, for each room that some account of the page is not in.
    async fn complete_rooms(&mut self, rows: &[UserRow], plan: &mut Plan) -> Result<(), PlanError> {
        let (job, identity, reader) = (self.job, self.identity, self.context.reader);
        for room in self.rooms.iter_mut().filter(|room| room.is_usable() && room.chain.is_none()) {
            let is_missing = |row: &&UserRow| !room.open.members.contains(&row.name);
            if !rows.iter().filter(is_missing).any(|row| job.is_chosen(row, identity)) {
                continue;
            }
            let complete = async {
                let permissions = reader.permissions(&room.open.room_id).await?;
                let predecessor = permissions.predecessor.clone();
                let chain = job.chain(reader, &room.open, predecessor).await?;
                Ok::<_, RoomError>((permissions, chain))
            };
            match complete.await {
                Ok((permissions, chain)) => {
                    (room.permissions, room.chain) = (Some(permissions), Some(chain));
                }
                Err(RoomError::Room(problem)) => room.fail(problem, plan),
                Err(RoomError::Run(failure)) => return Err(failure),
            }
        }
        Ok(())
    }

    fn judge(
        &mut self,
        row: &UserRow,
        record: Record,
        ghosts: &HashMap<String, String>,
        found: &mut Vec<Fact>,
    ) -> Result<Verdict, PlanError> {
        let Keys { users, except_users, .. } = &self.job.keys;
        let exempt = match select(&row.name, users, except_users, &mut self.matched) {
            Selection::Unmatched => return Ok(Verdict::Ignore),
            Selection::Excluded => Some(Exempt::Excluded),
            Selection::Chosen => {
                let exempt = self.job.exempt(row, self.identity);
                exempt.or_else(|| self.gone.exempt(&row.name))
            }
        };
        let ghost = || ghosts.contains_key(&row.name).then_some(Exempt::Bridge);
        if let Some(exempt) = exempt.or_else(ghost) {
            return Ok(Verdict::LeaveAlone(exempt));
        }
        let user = match record {
            Record::NotRead => return Ok(Verdict::Join(None)),
            // The account was deleted meanwhile.
            Record::Read(Err(error)) if error.is_not_found() => return Ok(Verdict::Ignore),
            Record::Read(user) => user?,
        };
        if let Some(appservice) = &user.appservice_id {
            let (key, value) = (user.name.clone(), appservice.clone());
            found.push(Fact { topic: Topic::Ghost, key, value });
        }
        let exempt = [
            (user.appservice_id.is_some(), Exempt::Bridge),
            (user.deactivated, Exempt::Deactivated),
            (user.locked, Exempt::Locked),
            (user.suspended, Exempt::Suspended),
        ];
        let exempt = exempt.into_iter().find_map(|(applies, exempt)| applies.then_some(exempt));
        Ok(Verdict::Join(exempt))
    }

    /// Counts an account in each room that it is not in; returns the number of joins, none.
    fn leave_alone(&self, user_id: &str, exempt: Exempt, plan: &mut Plan) -> usize {
        for room in self.rooms.iter().filter(|room| room.is_usable()) {
            if !room.open.members.contains(user_id) {
                plan.leave_alone(exempt, || target(user_id, &room.name));
            }
        }
        0
    }

    /// Plans the joins of an account, and returns their number; none if its record exempts it.
    async fn join(
        &mut self,
        user_id: &str,
        exempt: Option<Exempt>,
        plan: &mut Plan,
    ) -> Result<usize, PlanError> {
        let mut joins = 0;
        for room in self.rooms.iter_mut().filter(|room| room.is_usable()) {
            if room.open.members.contains(user_id) {
                continue;
            }
            let chain = room.chain.as_deref().unwrap_or_default();
            if let Some(exempt) = self.job.may_join(chain, user_id).err().or(exempt) {
                plan.leave_alone(exempt, || target(user_id, &room.name));
                continue;
            }
            let planned_membership =
                chain.first().and_then(|events| events.get(user_id)).map(|event| event.membership);
            check_access(self.context.reader, self.identity, room, plan).await?;
            if !room.is_usable() {
                continue;
            }
            room.joins += 1;
            joins += 1;
            self.changes.push(Join {
                user_id: user_id.to_owned(),
                planned_membership,
                room: room.name.clone(),
                room_id: room.open.room_id.clone(),
                per_second: self.job.keys.joins_per_second.0,
                can_check_membership: self.identity.version >= Version(1, 145),
            });
        }
        Ok(joins)
    }
}

/// What to do with an account of the list.
enum Verdict {
    /// Join it to the rooms that it is not in, unless its record exempts it.
    Join(Option<Exempt>),
    /// Its row, or what is known of it, exempts it.
    LeaveAlone(Exempt),
    Ignore,
}

/// Checks, once for a room and only if there is somebody to join, whether the daemon's account may do that.
async fn check_access(
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

impl JoinRooms {
    /// Reads the members of all rooms; a room that cannot be used becomes a problem of the plan.
    async fn open_rooms(
        &self,
        context: &Context<'_>,
        identity: &Identity,
        plan: &mut Plan,
    ) -> Result<Vec<TargetRoom>, PlanError> {
        let (mut rooms, mut known) = (Vec::new(), HashSet::new());
        let total = self.keys.rooms.len() as u64;
        for (index, RoomName(name)) in self.keys.rooms.iter().enumerate() {
            context.reading("rooms", index as u64, total);
            match self.open_room(context.reader, identity, name, &mut known).await {
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
        &self,
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

    /// Whether neither the patterns nor the row of the list rule an account out.
    fn is_chosen(&self, row: &UserRow, identity: &Identity) -> bool {
        let Keys { users, except_users, .. } = &self.keys;
        let selection = select(&row.name, users, except_users, &mut Matched::default());
        selection == Selection::Chosen && self.exempt(row, identity).is_none()
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

    /// Notes how long the joins to the room with the most of them take.
    fn note_duration(&self, rooms: &[TargetRoom], plan: &mut Plan) {
        let per_second = self.keys.joins_per_second.0;
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
            let is_gone_in_synapse = user.deactivated || user.locked || user.suspended;
            if is_gone_in_synapse || is_gone(reader, &self.user_id).await? {
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
