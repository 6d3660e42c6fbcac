//! `join-rooms`: joins local users to rooms.

mod join;
mod keys;
mod reading;
mod rooms;

use super::job::{CheckResult, Context, Job, Needs, PlanError, Undo};
use super::mas_accounts::GoneAccounts;
use super::portion::{Next, PortionProgress};
use super::room_name::RoomName;
use crate::plan::change::{Change, Plan, Work};
use crate::plan::report::Action;
use crate::plan::round::{Plans, Rounds};
use crate::synapse::{Identity, Reader, Version};
use crate::values::clock::Timestamp;
use crate::values::glob::unmatched;
use crate::values::schema::{ConfigError, Key, Table};
use keys::Keys;
use reading::Reading;
use rooms::{
    RoomError, TargetRoom, check_may_join_others, note_duration, open, open_rooms, resolve,
};

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
            keys: &self.keys,
            context,
            identity,
            gone: GoneAccounts::read(context.reader, &identity.server_name).await?,
            rooms: open_rooms(&self.keys, context, identity, plan).await?,
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
