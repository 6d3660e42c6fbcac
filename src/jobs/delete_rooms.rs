//! `delete-rooms`: deletes rooms in which no local user is any more.

mod deletion;
mod keys;
mod memory;
mod reading;

use std::collections::HashSet;

use futures_util::{StreamExt, stream};

use super::job::{Context, Job, Needs, PlanError, Undo};
use crate::plan::change::{Change, Plan, Work};
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::{Action, Exempt};
use crate::synapse::{EmptyRoom, RoomTasks, Version};
use crate::values::clock::{Timestamp, format_time};
use crate::values::schema::{ConfigError, Key, Table};
use keys::Keys;
use memory::Memory;
use reading::{Candidate, Verdict};

#[derive(Debug)]
pub struct DeleteRooms {
    keys: Keys,
}

impl Job for DeleteRooms {
    const KIND: &'static str = "delete-rooms";
    const ABOUT: &'static str = "Deletes rooms in which no local user has been for a long time. One run shuts a room down, so that clients of invited users notice, and a later one purges it. \
        Nobody can join a room again that was only on this homeserver, but until it is purged former members can read it, and its aliases are taken. \
        Skips rooms with local members; with invitations or knocks of local users, unless `with_invites` is true; rooms that Synapse purges itself (`forgotten_room_retention_period`); and, unless `keep_encrypted` is false, encrypted rooms: \
        a purge deletes everybody's server-side backup of the room's message keys, also of users who may join it again on another server. \
        Rooms are deleted one at a time, with a pause of two seconds, because Synapse responds slowly to others meanwhile. \
        An invitation that another server sends after the last local user has left is not visible, and is rejected.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::PurgeRoom;
    const PURGES_ROOMS: bool = true;
    const UNDO: Undo = Undo::Impossible("a purged room is gone for good");
    const NEEDS: Needs = Needs {
        synapse: Version(1, 130),
        clock: true,
        without_mas_client: None,
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, _now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        Some(Self { keys: Keys::parse(table, errors)? })
    }

    fn topic(&self) -> Option<Topic> {
        Some(Topic::EmptyRoom)
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let deletes_keys = !self.keys.keep_encrypted;
        deletes_keys.then(|| ("keep_encrypted", "to purge an encrypted room also deletes everybody's server-side backup of its message keys: who joins it again on another server cannot read what was sent before".to_owned())).into_iter().collect()
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let server_name = &context.identity().await?.server_name;
        let mut first_due = FirstDue::default();
        let candidates = self.candidates(context, plan, &mut first_due).await?;
        plan.some_up_to_date = true;
        let total = candidates.len() as u64;
        let read = |candidate: Candidate| async {
            let room_id = &candidate.room.room_id;
            let former = context.reader.former_room(room_id, server_name).await;
            (candidate, former)
        };
        let mut reading =
            stream::iter(candidates.into_iter().map(read)).buffered(context.concurrency);
        let (mut changes, mut done) = (Vec::<Box<dyn Change>>::new(), 0);
        while let Some((candidate, former)) = reading.next().await {
            done += 1;
            context.reading("empty rooms", done, total);
            let former = match former {
                Ok(Some(former)) => former,
                Ok(None) => {
                    plan.leave_alone(Exempt::NoHistory, || candidate.room.room_id);
                    continue;
                }
                Err(error) if error.is_about_target() => {
                    plan.problem(Action::PurgeRoom, &candidate.room.room_id, error.message());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            match self.keys.judge(candidate, former, server_name, context.started_at) {
                Verdict::Delete(deletion) => changes.push(Box::new(deletion)),
                Verdict::LeaveAlone { reason, target, due } => {
                    first_due.add(due);
                    plan.leave_alone(reason, || target);
                }
            }
        }
        plan.notes.extend(first_due.0.map(|due| {
            let empty_for = self.keys.empty_for;
            format!("the next room will have been empty for {empty_for} on {}", format_time(due))
        }));
        plan.work = Work::Changes(changes);
        Ok(())
    }
}

/// When the next room will have been empty for long enough.
#[derive(Debug, Default)]
struct FirstDue(Option<Timestamp>);

impl FirstDue {
    fn add(&mut self, due: Option<Timestamp>) {
        self.0 = self.0.into_iter().chain(due).min();
    }
}

impl DeleteRooms {
    /// Returns the rooms that have to be read, and remembers when each empty room was first seen.
    async fn candidates(
        &self,
        context: &Context<'_>,
        plan: &mut Plan,
        first_due: &mut FirstDue,
    ) -> Result<Vec<Candidate>, PlanError> {
        let rooms = context.reader.empty_rooms().await?;
        let mut tasks = context.reader.room_tasks(None).await?;
        forget_others(context, &rooms).await;
        let (mut candidates, mut facts) = (Vec::new(), Vec::new());
        for room in rooms {
            let tasks = tasks.remove(&room.room_id).unwrap_or_default();
            let (memory, fact) = remember(context, &room, &tasks);
            facts.extend(fact);
            let candidate = Candidate { room, memory, tasks };
            match self.keys.judge_unread(&candidate, context.started_at) {
                Ok(()) => candidates.push(candidate),
                Err((reason, due)) => {
                    first_due.add(due);
                    plan.leave_alone(reason, || candidate.room.room_id);
                }
            }
        }
        context.facts.store(facts).await;
        // The end of a deletion that has begun comes first: they are made one at a time.
        candidates.sort_by_key(|candidate| candidate.tasks.under_way.is_none());
        Ok(candidates)
    }
}

/// Returns what is known of an empty room, and the fact to store if that is new.
fn remember(context: &Context<'_>, room: &EmptyRoom, tasks: &RoomTasks) -> (Memory, Option<Fact>) {
    let text = context.facts.known().get(&room.room_id);
    let known: Option<Memory> = text.and_then(|text| text.parse().ok());
    let seen_ms = known.map_or(context.started_at.timestamp_millis(), |known| known.seen_ms);
    let shut_down_ms = known.and_then(|known| known.shut_down_ms).max(tasks.done_ms);
    let memory = Memory { seen_ms, shut_down_ms };
    (memory, (known != Some(memory)).then(|| memory.fact(&room.room_id)))
}

/// Forgets the rooms that were empty before, and were joined again or deleted since.
async fn forget_others(context: &Context<'_>, rooms: &[EmptyRoom]) {
    let empty: HashSet<&str> = rooms.iter().map(|room| room.room_id.as_str()).collect();
    let known = context.facts.known().keys();
    let gone = known.filter(|room_id| !empty.contains(room_id.as_str())).cloned().collect();
    context.facts.forget(Topic::EmptyRoom, gone).await;
}
