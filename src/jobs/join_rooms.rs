//! `join-rooms`: joins local users to rooms.

mod join;
mod keys;
mod reading;
mod rooms;
mod spaces;

use std::collections::HashSet;

use super::job::{CheckResult, Context, Job, Needs, PlanError, Undo};
use super::mas_accounts::GoneAccounts;
use super::portion::{Next, PortionProgress};
use crate::plan::change::{Change, Plan, Work};
use crate::plan::report::Action;
use crate::plan::round::{Plans, Rounds};
use crate::synapse::{Identity, Reader, Version};
use crate::values::clock::Timestamp;
use crate::values::glob::unmatched;
use crate::values::matrix_id::RoomName;
use crate::values::schema::{ConfigError, Key, Table};
use crate::values::text::format_count;
use keys::Keys;
use reading::Reading;
use rooms::{
    NamedRoom, RoomError, TargetRoom, check_may_join_others, note_duration, open, open_rooms,
    resolve,
};
use spaces::Spaces;

#[derive(Debug)]
pub struct JoinRooms {
    keys: Keys,
}

impl Job for JoinRooms {
    const KIND: &'static str = "join-rooms";
    const ABOUT: &'static str = "Joins local users to rooms, or to the rooms of spaces, that they are not in. Skips users who left or were kicked or banned (from the room, or from the one that it replaced), \
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
        let keys = Keys::parse(table, errors)?;
        if keys.rooms.is_none() && keys.spaces.is_none() {
            let text = "`rooms` is missing: add `rooms = …` or `spaces = …`, a list, each item an alias such as \"#room:example.com\" or a room id";
            errors.push(ConfigError::new(table.span.clone(), text));
        }
        for key in ["except_rooms", "max_depth", "allow_creators"] {
            if keys.spaces.is_none() && table.span_of(key) != table.span {
                let text = format!("`{key}` has no effect: it is about rooms of `spaces`");
                errors.push(ConfigError::new(table.span_of(key), text));
            }
        }
        Some(Self { keys })
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let fast = self.keys.joins_per_second.0 > 0.5;
        fast.then(|| ("joins_per_second", "above 0.5 joins per second, the run uses up Synapse's rc_joins_per_room (1 per second by default), and in the meantime Synapse refuses other users who want to join the room".to_owned())).into_iter().collect()
    }

    async fn check(&self, reader: &Reader, identity: &Identity) -> Vec<CheckResult> {
        let mut rooms: Vec<NamedRoom> = self.keys.rooms().iter().map(NamedRoom::of_job).collect();
        let mut answers = self.check_spaces(reader, &mut rooms).await;
        let mut known = HashSet::new();
        rooms.retain(|room| known.insert(room.id_or_alias.clone()));
        for NamedRoom { name, id_or_alias, origin } in rooms {
            let access = async {
                let room_id = resolve(reader, &id_or_alias, "rooms").await?;
                let room = open(reader, identity, room_id, origin).await?;
                let permissions = reader.permissions(&room.room_id).await?;
                check_may_join_others(reader, identity, &room, &permissions, origin).await?;
                Ok(if permissions.public {
                    "yes, the room is public"
                } else {
                    "yes, by invitation"
                }
                .to_owned())
            };
            let answer = access.await.map_err(RoomError::into_text);
            answers.push(CheckResult { question: format!("may join users to {name}"), answer });
        }
        answers
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let identity = context.identity().await?;
        let mut named: Vec<NamedRoom> = self.keys.rooms().iter().map(NamedRoom::of_job).collect();
        named.extend(Spaces::new(&self.keys, context.reader).await?.plan(plan).await?);
        let findings = context.portion.findings.clone();
        let mut reading = Reading {
            keys: &self.keys,
            context,
            identity,
            gone: GoneAccounts::read(context.reader, &identity.server_name).await?,
            rooms: open_rooms(named, context, identity, plan).await?,
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
        note_duration(&self.keys, &rooms, plan);
        plan.work = Work::Changes(
            changes.into_iter().map(|change| Box::new(change) as Box<dyn Change>).collect(),
        );
        Ok(())
    }
}

impl JoinRooms {
    /// Checks whether each space and those below it can be read, and adds the rooms that they bring in.
    async fn check_spaces(&self, reader: &Reader, rooms: &mut Vec<NamedRoom>) -> Vec<CheckResult> {
        let question = |space: &str| format!("finds the rooms of {space}");
        let mut spaces = match Spaces::new(&self.keys, reader).await {
            Ok(spaces) => spaces,
            Err(failure) => {
                let question = "resolves the aliases in `except_rooms`".to_owned();
                return vec![CheckResult { question, answer: Err(failure.to_string()) }];
            }
        };
        let mut answers = Vec::new();
        for RoomName(space) in self.keys.spaces() {
            let found = match spaces.rooms_of(space).await {
                Ok(found) => found,
                Err(error) => {
                    let answer = Err(error.into_text());
                    answers.push(CheckResult { question: question(space), answer });
                    continue;
                }
            };
            let count = format_count(found.rooms.len() as u64, "room", "rooms");
            if found.problems.is_empty() {
                answers.push(CheckResult { question: question(space), answer: Ok(count) });
            }
            answers.extend(found.problems.into_iter().map(|(space, problem)| CheckResult {
                question: question(&space),
                answer: Err(problem),
            }));
            rooms.extend(found.rooms);
        }
        answers
    }
}
