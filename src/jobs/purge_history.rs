//! `purge-history`: deletes old messages of rooms.

mod keys;
mod purge;

use std::collections::HashSet;

use super::job::{Context, Job, Needs, PlanError, Undo};
use crate::plan::change::{Change, Plan, Work};
use crate::plan::report::{Action, Exempt};
use crate::synapse::{self, OldHistory, Reader, RoomRow, Version};
use crate::values::clock::Timestamp;
use crate::values::schema::{ConfigError, Key, Table};
use crate::values::text::{format_count, format_number, join_some};
use keys::{Entries, Keys};
use purge::Purge;

#[derive(Debug)]
pub struct PurgeHistory {
    keys: Keys,
}

impl Job for PurgeHistory {
    const KIND: &'static str = "purge-history";
    const ABOUT: &'static str = "Deletes messages that are older than an age from rooms of this homeserver. State, such as members and names, is kept, and so is the newest event of a room. Media of the messages stays until a purge of media. \
        Replies and threads lose the message that they refer to, and permalinks and the search lead to nothing. \
        Skips rooms in which users of other servers are: Synapse would fetch the messages from there again; rooms without local members; and, unless `ignore_retention` is true, rooms whose own state says how long messages are kept (`m.room.retention`). \
        Synapse frees part of the space some minutes later: the run pauses for a second between two rooms.";
    const KEYS: &'static [Key] = Entries::KEYS;
    const ACTION: Action = Action::PurgeHistory;
    const PURGES_ROOMS: bool = true;
    const UNDO: Undo = Undo::Impossible("purged messages are gone for good");
    const NEEDS: Needs = Needs {
        synapse: Version(1, 156),
        clock: true,
        without_mas_client: None,
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        Some(Self { keys: Keys::read(table, now, errors)? })
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let hides = !self.keys.delete_local_events;
        hides.then(|| ("delete_local_events", "false hides the messages of local users all the same, from everybody and for good, and frees nothing: they stay in the database only".to_owned())).into_iter().collect()
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let before = self.keys.age.past_cut_off(context.started_at).map_err(PlanError::Refused)?;
        let rooms = self.rooms(context, plan).await?;
        let (mut changes, mut losses) = (Vec::<Box<dyn Change>>::new(), Losses::default());
        let total = rooms.len() as u64;
        for (index, row) in rooms.into_iter().enumerate() {
            context.reading("rooms", index as u64, total);
            match self.judge(context.reader, &row, before).await {
                Ok(Judged::Purge(old)) => {
                    losses.add(&row, &old);
                    let delete_local_events = self.keys.delete_local_events;
                    changes.push(Box::new(Purge { row, old, before, delete_local_events }));
                }
                Ok(Judged::LeaveAlone(reason)) => {
                    plan.some_up_to_date = true;
                    plan.leave_alone(reason, || row.label());
                }
                Ok(Judged::NothingOld) => plan.some_up_to_date = true,
                Ok(Judged::Problem(problem)) => {
                    plan.problem(Action::PurgeHistory, &row.label(), problem);
                }
                Err(error) if error.is_about_target() => {
                    plan.problem(Action::PurgeHistory, &row.label(), error.message());
                }
                Err(error) => return Err(error.into()),
            }
        }
        context.reading("rooms", total, total);
        plan.notes.extend(losses.describe());
        plan.work = Work::Changes(changes);
        Ok(())
    }
}

enum Judged {
    Purge(OldHistory),
    LeaveAlone(Exempt),
    NothingOld,
    Problem(&'static str),
}

impl PurgeHistory {
    /// Returns the rooms that the job names, each once.
    async fn rooms(
        &self,
        context: &Context<'_>,
        plan: &mut Plan,
    ) -> Result<Vec<RoomRow>, PlanError> {
        let Some(names) = &self.keys.rooms else { return Ok(context.reader.rooms().await?) };
        let (mut rooms, mut known) = (Vec::new(), HashSet::new());
        for name in names.iter() {
            let found = async {
                let room_id = match name.0.starts_with('#') {
                    true => context.reader.resolve_alias(&name.0).await?,
                    false => name.0.clone(),
                };
                context.reader.room(&room_id).await
            };
            match found.await {
                Ok(row) if known.insert(row.room_id.clone()) => rooms.push(row),
                Ok(_) => {}
                // Another server that does not resolve its alias affects only that room.
                Err(error) if error.is_about_target() || error.status() == Some(502) => {
                    plan.problem(Action::PurgeHistory, &name.0, error.message());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(rooms)
    }

    async fn judge(
        &self,
        reader: &Reader,
        row: &RoomRow,
        before: Timestamp,
    ) -> Result<Judged, synapse::Error> {
        let keys = &self.keys;
        if let Some(reason) = keys.exempt(row) {
            return Ok(Judged::LeaveAlone(reason));
        }
        let old = match reader.history_before(&row.room_id, before).await? {
            Some(old) if old.events > 0 => old,
            _ => return Ok(Judged::NothingOld),
        };
        if old.events < u64::from(keys.min_events) {
            return Ok(Judged::LeaveAlone(Exempt::FewEvents));
        }
        if old.has_newer {
            return Ok(Judged::Problem(
                "messages that are not old would go, too: their place in the room does not follow their time, as after an import by a bridge",
            ));
        }
        if !keys.ignore_retention && reader.has_own_retention(&row.room_id).await? {
            return Ok(Judged::LeaveAlone(Exempt::OwnRetention));
        }
        Ok(Judged::Purge(old))
    }
}

/// What else people miss after a purge.
#[derive(Debug, Default)]
struct Losses {
    threads: u64,
    pinned: u64,
    rooms: Vec<String>,
}

impl Losses {
    fn add(&mut self, row: &RoomRow, old: &OldHistory) {
        self.threads += old.threads;
        self.pinned += old.pinned;
        if old.threads + old.pinned > 0 {
            self.rooms.push(row.label());
        }
    }

    fn describe(&self) -> Option<String> {
        let rooms: Vec<&str> = self.rooms.iter().map(String::as_str).collect();
        (!rooms.is_empty()).then(|| {
            format!(
                "{} of threads that go on, and {} go, in {}",
                format_count(self.threads, "first message", "first messages"),
                match self.pinned {
                    1 => "1 pinned message".to_owned(),
                    pinned => format!("{} pinned messages", format_number(pinned)),
                },
                join_some(&rooms)
            )
        })
    }
}
