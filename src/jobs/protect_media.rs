//! `protect-media`: protects files that rooms and users have in use, so that a purge of local media keeps them.

mod keys;
mod memory;
mod planning;
mod protection;
mod reading;

use chrono::TimeDelta;

use super::job::{Context, Job, Needs, PlanError, ReadEstimate, Undo};
use crate::plan::change::{Plan, Work};
use crate::plan::facts::Topic;
use crate::plan::report::Action;
use crate::synapse::{self, Reader, Version};
use crate::values::clock::Timestamp;
use crate::values::schema::{ConfigError, Key, Table};
use keys::Keys;
use memory::Memory;
use planning::Planning;

#[derive(Debug)]
pub struct ProtectMedia {
    keys: Keys,
}

/// Who uploads a picture saves the pack with it within this time.
const UNTIL_SAVED: TimeDelta = TimeDelta::hours(1);

impl Job for ProtectMedia {
    const KIND: &'static str = "protect-media";
    const ABOUT: &'static str = "Protects local files that are in use, so that a purge of local media keeps them: images of image packs (custom emoji and stickers) of rooms (`im.ponies.room_emotes`, `m.room.image_pack`) and of users (`im.ponies.user_emotes`, `m.image_pack`), avatars of packs, and avatars of rooms with their thumbnails. Schedule it before the purge. \
        A protected file can no longer be quarantined, until somebody unprotects it: `rooms` and `creators` limit whose files are protected. \
        It guards only against the purge by age, which purge-local-media uses (its exact mode spares protected files by itself), and Synapse's `media_retention`: who deletes a file by its id, or all files of a user, deletes protected ones, too. \
        Leaves alone files that are quarantined or protected already, files of other servers, and rooms without local members. A file that somebody unprotects by hand is not protected again. \
        The first run reads every room, and every account that ever uploaded a file. Later runs read only rooms with more state events than before: their number grows with each new avatar, pack or member, but not when an avatar or pack replaces another one. Rooms and users that have one are therefore read again in turn, 25 in each run, packs first, and each of them by the first run after six days; no purge deletes a file of less than seven days, unless it has `allow_recent`. \
        Of all other users, those are read who have uploaded something since the last run: a pack of files that others uploaded is found when its owner uploads something.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::ProtectMedia;
    const UNDO: Undo = Undo::By(protection::restoration);
    const NEEDS: Needs = Needs {
        // The first one that returns a file by its id.
        synapse: Version(1, 140),
        clock: false,
        without_mas_client: None,
        plans_offline: false,
        media: true,
    };

    fn read(table: &Table<'_, '_>, _now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        Some(Self { keys: Keys::parse(table, errors)? })
    }

    fn topic(&self) -> Option<Topic> {
        Some(Topic::MediaUses)
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let is_open_to_all = self.keys.custom && self.keys.select_all();
        is_open_to_all.then(|| ("custom", "everybody who may send state to a room, and so everybody who may create one, can have any file protected, which can then no longer be quarantined: limit that with `rooms` or `creators`".to_owned())).into_iter().collect()
    }

    async fn read_estimate(&self, reader: &Reader) -> Result<Option<ReadEstimate>, synapse::Error> {
        let items = reader.count_rooms().await? + reader.count_media_owners().await?;
        Ok(Some(ReadEstimate { what: planning::SOURCES, items }))
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let server_name = &context.identity().await?.server_name;
        // Before the state of the rooms, which is then at least as new as the number of its events.
        let rooms = context.reader.rooms().await?;
        let memory = Memory::load(context).await;
        let mut planning = Planning::new(&self.keys, context, server_name, memory);
        planning.forget_gone_rooms(&rooms).await?;
        let rooms = self.keys.select_rooms(rooms, plan);
        let uploaders = self.uploaders(context, &planning.memory).await?;
        let sources =
            reading::to_read(&self.keys, &planning.memory, rooms, uploaders, context.started_at);
        let all_users_read = planning.read(sources, plan).await?;
        let mut changes = planning.protections(plan).await?;
        changes.extend(planning.unprotections(plan).await?);
        planning.memory.store(context).await;
        planning.memory.forget_sent(context).await;
        if all_users_read {
            let selection = self.keys.users_fingerprint().to_string();
            let seen_ms = context.started_at.timestamp_millis();
            planning.memory.set_uploads_seen(context, &selection, seen_ms).await;
        }
        plan.some_up_to_date = true;
        plan.work = Work::Changes(changes);
        Ok(())
    }
}

impl ProtectMedia {
    /// Returns the selected users who have uploaded something since they were last looked at.
    async fn uploaders(
        &self,
        context: &Context<'_>,
        memory: &Memory,
    ) -> Result<Vec<String>, PlanError> {
        let seen_ms = memory.uploads_seen_ms(&self.keys.users_fingerprint().to_string());
        let since = seen_ms.and_then(Timestamp::from_timestamp_millis).map(|at| at - UNTIL_SAVED);
        let uploaders = context.reader.uploaders_since(since).await?;
        let ids = uploaders.into_iter().filter_map(|uploader| uploader.user_id);
        Ok(ids.filter(|id| id.starts_with('@') && self.keys.selects_user(id)).collect())
    }
}
