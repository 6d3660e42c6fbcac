//! The list of rooms.

use std::collections::HashSet;

use serde::Deserialize;

use super::json::{count, id, optional_count, optional_text};
use super::page::MAX_PAGE_ROWS;
use super::pages::{PageToken, Pages};
use super::reader::Reader;
use crate::http::{Base, Error, one_line};

/// A room as Synapse lists it, and as it shows it alone.
///
/// Of one without local members neither name, alias nor encryption are known.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct RoomRow {
    #[serde(deserialize_with = "id")]
    pub room_id: String,
    #[serde(default, deserialize_with = "optional_text")]
    pub name: Option<String>,
    /// What the room says of itself: it may be the alias of another room.
    #[serde(default, deserialize_with = "optional_text")]
    pub canonical_alias: Option<String>,
    /// The algorithm; `None` if the room is not encrypted.
    #[serde(default, deserialize_with = "optional_text")]
    pub encryption: Option<String>,
    #[serde(default, deserialize_with = "count")]
    pub joined_members: u64,
    #[serde(default, deserialize_with = "count")]
    pub joined_local_members: u64,
    #[serde(default, deserialize_with = "optional_text")]
    pub creator: Option<String>,
    #[serde(default, deserialize_with = "optional_text")]
    room_type: Option<String>,
    /// How many pairs of type and state key the state has had: an event that replaces another one does not count.
    #[serde(default, deserialize_with = "count")]
    pub state_events: u64,
}

impl RoomRow {
    /// `#lobby:example.com !id`, or the id with the name.
    pub(crate) fn label(&self) -> String {
        const MAX_CHARS: usize = 80;
        match (&self.canonical_alias, &self.name) {
            (Some(alias), _) => format!("{} {}", one_line(alias, MAX_CHARS), self.room_id),
            (None, Some(name)) => format!("\"{}\" {}", one_line(name, MAX_CHARS), self.room_id),
            (None, None) => self.room_id.clone(),
        }
    }

    pub(crate) fn is_space(&self) -> bool {
        self.room_type.as_deref() == Some("m.space")
    }
}

const ROOMS: &str = "/_synapse/admin/v1/rooms";
/// How far rooms may have moved towards the start of the list while it is read.
const DRIFT: u64 = 100;

impl Reader {
    /// Returns all rooms, each once.
    ///
    /// In the order of what never changes, and with overlapping pages: a room that is purged meanwhile moves others from
    /// one page to the one before.
    pub(crate) async fn rooms(&self) -> Result<Vec<RoomRow>, Error> {
        #[derive(Deserialize)]
        struct Page {
            rooms: Vec<RoomRow>,
            next_batch: Option<PageToken>,
            #[serde(default, deserialize_with = "optional_count")]
            total_rooms: Option<u64>,
        }
        let mut pages = Pages::new(ROOMS, MAX_PAGE_ROWS);
        let (mut rooms, mut known) = (Vec::new(), HashSet::new());
        let mut from: Option<PageToken> = None;
        loop {
            let mut query = vec![("order_by", "version".to_owned())];
            query.extend(
                from.as_ref()
                    .and_then(PageToken::offset)
                    .map(|offset| ("from", offset.saturating_sub(DRIFT).to_string())),
            );
            let page: Page = self.page(MAX_PAGE_ROWS, Base::Homeserver, ROOMS, &[], query).await?;
            from = pages.next(page.rooms.len(), page.total_rooms, page.next_batch)?;
            rooms.extend(page.rooms.into_iter().filter(|room| known.insert(room.room_id.clone())));
            if from.is_none() {
                return Ok(rooms);
            }
        }
    }

    /// Returns how many rooms there are.
    pub(crate) async fn count_rooms(&self) -> Result<u64, Error> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(deserialize_with = "count")]
            total_rooms: u64,
        }
        let query = vec![("order_by", "version".to_owned()), ("limit", "1".to_owned())];
        let page: Page = self.get(ROOMS, &[], query).await?;
        Ok(page.total_rooms)
    }

    /// Returns one room; the error is `M_NOT_FOUND` if Synapse does not know it.
    pub(crate) async fn room(&self, room_id: &str) -> Result<RoomRow, Error> {
        self.get("/_synapse/admin/v1/rooms/{}", &[room_id], vec![]).await
    }
}
