//! Rooms with their figures, and the events in them that are older than a given time.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::{Value, json};

use super::json::{id, object_or_default, optional_count, optional_text, texts};
use super::reader::Reader;
use crate::http::Error;
use crate::values::clock::Timestamp;

/// The events before the first one that stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OldHistory {
    /// The id of the first event that stays.
    pub first_kept: String,
    /// When that was sent, in milliseconds since 1970.
    pub first_kept_ms: i64,
    /// Events before it that are not state, which is never deleted.
    pub events: u64,
    /// Whether there are more that were not counted.
    pub has_more: bool,
    /// Threads that lose the event that they begin with, and go on after it.
    pub threads: u64,
    /// Pinned events that go.
    pub pinned: u64,
    /// Whether events would go, too, that are not old: their place in the room does not follow their time.
    pub has_newer: bool,
}

const MESSAGES: &str = "/_synapse/admin/v1/rooms/{}/messages";
const CONTEXT: &str = "/_synapse/admin/v1/rooms/{}/context/{}";
/// The most that Synapse returns.
const EVENTS_PER_PAGE: usize = 1000;
const MAX_PAGES: usize = 50;

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "event_id", deserialize_with = "id")]
    id: String,
    #[serde(default)]
    state_key: Option<serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "optional_count")]
    origin_server_ts: Option<u64>,
    #[serde(default)]
    unsigned: Value,
}

impl Event {
    fn sent_ms(&self) -> i64 {
        i64::try_from(self.origin_server_ts.unwrap_or(0)).unwrap_or(i64::MAX)
    }

    /// When the last event of the thread was sent that begins with this one.
    fn last_of_thread_ms(&self) -> Option<i64> {
        let last = self.unsigned.pointer("/m.relations/m.thread/latest_event/origin_server_ts");
        last.and_then(Value::as_i64)
    }
}

#[derive(Debug, Deserialize)]
struct EventPage {
    chunk: Vec<Event>,
    #[serde(default, deserialize_with = "optional_text")]
    end: Option<String>,
}

impl Reader {
    /// Returns the events of a room before `time`, at most 50,000, or `None` if there is no event at all.
    ///
    /// Only for rooms without users of other servers, from which Synapse would fetch older events to fill the pages.
    pub(crate) async fn history_before(
        &self,
        room_id: &str,
        time: Timestamp,
    ) -> Result<Option<OldHistory>, Error> {
        #[derive(Deserialize)]
        struct Context {
            start: String,
            event: Event,
        }
        let Some(first_kept) = self.first_event_after(room_id, time).await? else {
            return Ok(None);
        };
        let query = vec![
            ("limit", "0".to_owned()),
            ("filter", json!({ "types": [], "lazy_load_members": true }).to_string()),
        ];
        let context: Context = self.get(CONTEXT, &[room_id, &first_kept], query).await?;
        let pinned: HashSet<String> = self.pinned_events(room_id).await?.into_iter().collect();
        let mut old = OldHistory {
            first_kept_ms: context.event.sent_ms(),
            first_kept,
            has_more: true,
            ..OldHistory::default()
        };
        let mut from = context.start;
        for _ in 0..MAX_PAGES {
            let query = vec![
                ("dir", "b".to_owned()),
                ("limit", EVENTS_PER_PAGE.to_string()),
                ("from", from),
            ];
            let page: EventPage = self.get(MESSAGES, &[room_id], query).await?;
            let is_last = page.chunk.len() < EVENTS_PER_PAGE;
            for event in page.chunk.iter().filter(|event| event.state_key.is_none()) {
                old.events += 1;
                old.has_newer |= event.sent_ms() >= time.timestamp_millis();
                old.pinned += u64::from(pinned.contains(&event.id));
                let goes_on = event.last_of_thread_ms() >= Some(old.first_kept_ms);
                old.threads += u64::from(goes_on);
            }
            let Some(end) = page.end.filter(|_| !is_last) else {
                old.has_more = false;
                break;
            };
            from = end;
        }
        Ok(Some(old))
    }

    /// Returns the first event since `time`, or else the newest one of the room, which is never purged.
    async fn first_event_after(
        &self,
        room_id: &str,
        time: Timestamp,
    ) -> Result<Option<String>, Error> {
        #[derive(Deserialize)]
        struct Found {
            #[serde(deserialize_with = "id")]
            event_id: String,
        }
        let endpoint = "/_synapse/admin/v1/rooms/{}/timestamp_to_event";
        let query = vec![("ts", time.timestamp_millis().to_string()), ("dir", "f".to_owned())];
        match self.get::<Found>(endpoint, &[room_id], query).await {
            Ok(found) => return Ok(Some(found.event_id)),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let query = vec![("dir", "b".to_owned()), ("limit", "1".to_owned())];
        let newest: EventPage = self.get(MESSAGES, &[room_id], query).await?;
        Ok(newest.chunk.into_iter().next().map(|event| event.id))
    }

    async fn pinned_events(&self, room_id: &str) -> Result<Vec<String>, Error> {
        #[derive(Default, Deserialize)]
        struct Pinned {
            #[serde(default, deserialize_with = "texts")]
            pinned: Vec<String>,
        }
        let pinned: Option<Pinned> = self.first_state(room_id, "m.room.pinned_events").await?;
        Ok(pinned.map(|pinned| pinned.pinned).unwrap_or_default())
    }

    /// Whether the room's own state says how long messages are kept, which Synapse may follow (`retention`).
    pub(crate) async fn has_own_retention(&self, room_id: &str) -> Result<bool, Error> {
        #[derive(Default, Deserialize)]
        struct Retention {
            #[serde(default, deserialize_with = "optional_count_or_none")]
            max_lifetime: Option<u64>,
        }
        let retention: Option<Retention> = self.first_state(room_id, "m.room.retention").await?;
        Ok(retention.is_some_and(|retention| retention.max_lifetime.is_some()))
    }

    async fn first_state<C>(
        &self,
        room_id: &str,
        event_type: &'static str,
    ) -> Result<Option<C>, Error>
    where
        C: for<'a> Deserialize<'a> + Default,
    {
        #[derive(Deserialize)]
        #[serde(bound = "")]
        struct StateEvent<C: for<'a> Deserialize<'a> + Default> {
            #[serde(default, deserialize_with = "object_or_default")]
            content: C,
        }
        #[derive(Deserialize)]
        #[serde(bound = "")]
        struct State<C: for<'a> Deserialize<'a> + Default> {
            state: Vec<StateEvent<C>>,
        }
        let query = vec![("type", event_type.to_owned())];
        let room: State<C> =
            self.get("/_synapse/admin/v1/rooms/{}/state", &[room_id], query).await?;
        Ok(room.state.into_iter().next().map(|event| event.content))
    }
}

/// A number; anything else, which any member with the power may write, counts as none.
fn optional_count_or_none<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    Ok(Value::deserialize(deserializer)?.as_u64())
}
