//! Which files are in use: avatars of users, and what the state of rooms refers to.

use std::collections::HashMap;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::deletion::Exact;
use crate::jobs::job::{Context, PlanError, ReadEstimate};
use crate::synapse::{Error, FileSet, MediaOwner};

/// Which files are in use, and what else the list of accounts shows.
pub(super) struct InUse {
    files: FileSet,
    /// How many rooms were read; `None` until the first file is found that may be in use.
    pub rooms: Option<u64>,
    /// Whether accounts with files are deactivated and locked; empty if that does not matter.
    pub listed: HashMap<String, (bool, bool)>,
}

impl InUse {
    /// Reads the avatars of all accounts, and the states of those with files, which are sorted.
    pub async fn read(
        exact: &Exact,
        context: &Context<'_>,
        owners: &[MediaOwner],
    ) -> Result<Self, PlanError> {
        let (mut files, mut listed) = (FileSet::new(&exact.server_name), HashMap::new());
        let by_state = exact.selection.accounts.is_some();
        if by_state || exact.rules.keep_avatars {
            let mut pages = context.reader.user_pages(None);
            while let Some(page) = pages.next().await? {
                for row in page.rows {
                    files.add_named(row.avatar_url.as_deref().unwrap_or_default());
                    let name = |owner: &MediaOwner| owner.user_id.as_deref().cmp(&Some(&row.name));
                    if by_state && owners.binary_search_by(name).is_ok() {
                        listed.insert(row.name, (row.deactivated, row.locked));
                    }
                }
            }
        }
        Ok(Self { files, rooms: None, listed })
    }

    /// The files in use, for which the rooms are read when it matters for the first time.
    pub async fn files(
        &mut self,
        exact: &Exact,
        context: &Context<'_>,
    ) -> Result<&FileSet, PlanError> {
        if self.rooms.is_none() {
            let rooms = add_files_of_rooms(&mut self.files, context, &exact.server_name).await?;
            self.rooms = Some(rooms);
        }
        Ok(&self.files)
    }
}

/// Reads the state of all rooms, and adds the local files that it names.
///
/// Synapse tells of no file where it is used, and a changed avatar shows in no list of rooms: a request for each.
/// Returns the number of rooms.
async fn add_files_of_rooms(
    files: &mut FileSet,
    context: &Context<'_>,
    server_name: &str,
) -> Result<u64, Error> {
    let rooms = context.reader.rooms().await?;
    let total = rooms.len() as u64;
    context.expect_reading(ReadEstimate { what: "rooms", items: total });
    let mut states = stream::iter(rooms)
        .map(|room| async move {
            match context.reader.files_in_state(&room, server_name).await {
                // Purged since it was listed.
                Err(error) if error.is_not_found() => Ok(FileSet::new(server_name)),
                files => files,
            }
        })
        .buffer_unordered(context.concurrency);
    let mut read = 0;
    while let Some(named) = states.try_next().await? {
        files.extend(named);
        read += 1;
        context.reading("rooms", read, total);
    }
    Ok(total)
}
