//! Rooms without local members: their list, and what can still be read of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Deserialize;
use serde_json::json;

use super::json::{
    Scalar, count, id, object_or_default, optional_count, optional_id, optional_text, texts,
};
use super::page::MAX_PAGE_ROWS;
use super::pages::{PageToken, Pages};
use super::reader::Reader;
use super::rooms::Membership;
use crate::http::{Base, Error};

/// A room in which no local user is; of its state, Synapse keeps only this.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct EmptyRoom {
    #[serde(deserialize_with = "id")]
    pub room_id: String,
    #[serde(default, deserialize_with = "optional_id")]
    pub version: Option<String>,
    #[serde(deserialize_with = "count")]
    joined_local_members: u64,
}

/// What a room was while local users were in it, according to its events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FormerRoom {
    /// The id of the newest event that matters here: another one means that something happened in the room.
    pub newest: String,
    /// When that event was sent, in milliseconds since 1970.
    pub last_activity_ms: i64,
    pub name: Option<String>,
    /// The first is the canonical one.
    pub aliases: Vec<String>,
    pub encrypted: bool,
    /// Whether users of other servers were in the room, who may still be; `None` if its events do not tell.
    pub federated: Option<bool>,
    /// Local users whose invitation or knock is pending.
    pub invited: usize,
    /// When a local user was last invited, joined, or left after having joined, in milliseconds since 1970.
    pub last_member_ms: Option<i64>,
    /// Whether all events were read that the last three are about.
    pub is_complete: bool,
}

const ROOMS: &str = "/_synapse/admin/v1/rooms";
const MESSAGES: &str = "/_synapse/admin/v1/rooms/{}/messages";
const CONTEXT: &str = "/_synapse/admin/v1/rooms/{}/context/{}";
/// The most that Synapse returns.
const EVENTS_PER_PAGE: usize = 1000;
const MAX_EVENT_PAGES: usize = 10;
/// More are neither shown nor compared: any number of them fits into an event.
const MAX_ALIASES: usize = 50;

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(default, rename = "type", deserialize_with = "optional_text")]
    kind: Option<String>,
    #[serde(rename = "event_id", deserialize_with = "id")]
    id: String,
    #[serde(default, deserialize_with = "id")]
    sender: String,
    #[serde(default, deserialize_with = "optional_id")]
    state_key: Option<String>,
    #[serde(default, deserialize_with = "optional_count")]
    origin_server_ts: Option<u64>,
    #[serde(default, deserialize_with = "object_or_default")]
    content: Content,
}

#[derive(Debug, Default, Deserialize)]
struct Content {
    #[serde(default)]
    membership: Scalar,
    #[serde(default, deserialize_with = "optional_text")]
    name: Option<String>,
    #[serde(default, deserialize_with = "optional_text")]
    alias: Option<String>,
    #[serde(default, deserialize_with = "texts")]
    alt_aliases: Vec<String>,
}

impl Reader {
    /// Returns the rooms without local members, also those in which users of other servers still are.
    pub(crate) async fn empty_rooms(&self) -> Result<Vec<EmptyRoom>, Error> {
        #[derive(Deserialize)]
        struct Page {
            rooms: Vec<EmptyRoom>,
            next_batch: Option<PageToken>,
            #[serde(default, deserialize_with = "optional_count")]
            total_rooms: Option<u64>,
        }
        let mut pages = Pages::new(ROOMS, MAX_PAGE_ROWS);
        let mut rooms: HashMap<String, EmptyRoom> = HashMap::new();
        let mut from: Option<PageToken> = None;
        loop {
            let mut query = vec![
                ("empty_rooms", "true".to_owned()),
                // Rooms with as many members are sorted by their ids. For numbers, "b" is ascending.
                ("order_by", "joined_local_members".to_owned()),
                ("dir", "b".to_owned()),
            ];
            query.extend(from.as_ref().map(|from| ("from", from.to_string())));
            let page: Page = self.page(MAX_PAGE_ROWS, Base::Homeserver, ROOMS, &[], query).await?;
            from = pages.next(page.rooms.len(), page.total_rooms, page.next_batch)?;
            let empty = page.rooms.into_iter().filter(|room| room.joined_local_members == 0);
            rooms.extend(empty.map(|room| (room.room_id.clone(), room)));
            if from.is_none() {
                break;
            }
        }
        let mut rooms: Vec<EmptyRoom> = rooms.into_values().collect();
        rooms.sort_unstable_by(|a, b| a.room_id.cmp(&b.room_id));
        Ok(rooms)
    }

    /// Returns what an emptied room was; `None` if Synapse has no event of it.
    ///
    /// Synapse drops a room's current state when the last local user leaves, but keeps the events. The timeline lacks state
    /// that came with a join to a room of another server, or was kept when its history was purged. In such rooms, the state
    /// before the newest event is read as well.
    pub(crate) async fn former_room(
        &self,
        room_id: &str,
        server_name: &str,
    ) -> Result<Option<FormerRoom>, Error> {
        #[derive(Deserialize)]
        struct Page {
            chunk: Vec<Event>,
            #[serde(default, deserialize_with = "optional_text")]
            end: Option<String>,
        }
        let types = ["m.room.member", "m.room.create"].iter().chain(STATE_TYPES);
        let filter = json!({ "types": types.collect::<Vec<_>>() }).to_string();
        let mut timeline = Timeline::new(server_name);
        let mut from: Option<String> = None;
        for _ in 0..MAX_EVENT_PAGES {
            let mut query = vec![
                ("dir", "b".to_owned()),
                ("limit", EVENTS_PER_PAGE.to_string()),
                ("filter", filter.clone()),
            ];
            query.extend(from.map(|from| ("from", from)));
            let page: Page = self.get(MESSAGES, &[room_id], query).await?;
            let is_last = page.chunk.len() < EVENTS_PER_PAGE;
            page.chunk.iter().for_each(|event| timeline.add(event));
            from = page.end.filter(|_| !is_last);
            if from.is_none() {
                timeline.former.is_complete = true;
                break;
            }
        }
        let (mut former, is_whole) = timeline.finish();
        if former.newest.is_empty() {
            return Ok(None);
        }
        if !is_whole {
            self.add_former_state(room_id, &mut former).await?;
        }
        Ok(Some(former))
    }

    async fn add_former_state(&self, room_id: &str, former: &mut FormerRoom) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Context {
            state: Vec<Event>,
        }
        // Without lazy loading, Synapse reads every membership event before it applies the filter.
        let filter = json!({ "types": STATE_TYPES, "lazy_load_members": true }).to_string();
        let query = vec![("limit", "0".to_owned()), ("filter", filter)];
        let context: Context = self.get(CONTEXT, &[room_id, &former.newest], query).await?;
        (former.name, former.aliases) = (None, Vec::new());
        for Event { kind, state_key, content, .. } in &context.state {
            match kind.as_deref().filter(|_| state_key.as_deref() == Some("")) {
                Some("m.room.name") => former.name.clone_from(&content.name),
                Some("m.room.canonical_alias") => former.aliases = content.aliases(),
                Some("m.room.encryption") => former.encrypted = true,
                _ => {}
            }
        }
        Ok(())
    }
}

const STATE_TYPES: &[&str] = &["m.room.name", "m.room.canonical_alias", "m.room.encryption"];

impl Content {
    fn aliases(&self) -> Vec<String> {
        self.alias.iter().chain(&self.alt_aliases).take(MAX_ALIASES).cloned().collect()
    }
}

/// The events of a room, newest first.
struct Timeline<'a> {
    server_name: &'a str,
    former: FormerRoom,
    /// Whether the room was created here.
    created_here: bool,
    named: bool,
    has_alias: bool,
    /// The last memberships of local users.
    members: HashMap<String, Membership>,
    /// When local users left whose membership before that was not read yet.
    leaves: HashMap<String, i64>,
}

impl<'a> Timeline<'a> {
    fn new(server_name: &'a str) -> Self {
        Self {
            server_name,
            former: FormerRoom::default(),
            created_here: false,
            named: false,
            has_alias: false,
            members: HashMap::new(),
            leaves: HashMap::new(),
        }
    }

    fn is_local(&self, user_id: &str) -> bool {
        user_id.split_once(':').is_some_and(|(_, server)| server == self.server_name)
    }

    fn add(&mut self, event: &Event) {
        let Some(state_key) = &event.state_key else { return };
        let sent_ms = i64::try_from(event.origin_server_ts.unwrap_or(0)).unwrap_or(i64::MAX);
        if self.former.newest.is_empty() {
            self.former.newest.clone_from(&event.id);
            self.former.last_activity_ms = sent_ms;
        }
        match event.kind.as_deref() {
            Some("m.room.member") => self.add_member(state_key, &event.content, sent_ms),
            Some("m.room.create") => self.created_here = self.is_local(&event.sender),
            Some("m.room.encryption") => self.former.encrypted = true,
            Some("m.room.name") if !std::mem::replace(&mut self.named, true) => {
                self.former.name.clone_from(&event.content.name);
            }
            Some("m.room.canonical_alias") if !std::mem::replace(&mut self.has_alias, true) => {
                self.former.aliases = event.content.aliases();
            }
            _ => {}
        }
    }

    fn add_member(&mut self, user_id: &str, content: &Content, sent_ms: i64) {
        if !self.is_local(user_id) {
            self.former.federated = Some(true);
            return;
        }
        let Scalar::Text(membership) = &content.membership else { return };
        let Ok(membership) = membership.parse::<Membership>() else { return };
        if let Entry::Vacant(vacant) = self.members.entry(user_id.to_owned()) {
            vacant.insert(membership);
            if let Membership::Leave | Membership::Ban = membership {
                self.leaves.insert(user_id.to_owned(), sent_ms);
            }
        } else if let Some(left_ms) = self.leaves.remove(user_id) {
            // The end of an invitation is not the end of a membership.
            if !matches!(membership, Membership::Invite | Membership::Knock) {
                self.saw_member(left_ms);
            }
        }
        if !matches!(membership, Membership::Leave | Membership::Ban) {
            self.saw_member(sent_ms);
        }
    }

    fn saw_member(&mut self, at_ms: i64) {
        let last = &mut self.former.last_member_ms;
        *last = Some(last.map_or(at_ms, |last| last.max(at_ms)));
    }

    /// Returns also whether the timeline contains all state: rooms of this server alone lack none.
    fn finish(mut self) -> (FormerRoom, bool) {
        for left_ms in std::mem::take(&mut self.leaves).into_values() {
            self.saw_member(left_ms);
        }
        let Self { mut former, created_here, members, .. } = self;
        let pending =
            |membership: &&Membership| matches!(membership, Membership::Invite | Membership::Knock);
        former.invited = members.values().filter(pending).count();
        let is_whole = former.is_complete && created_here && former.federated.is_none();
        if is_whole {
            former.federated = Some(false);
        }
        (former, is_whole)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn former(events: &[Value]) -> (FormerRoom, bool) {
        let mut timeline = Timeline::new("hs");
        timeline.former.is_complete = true;
        for (index, event) in events.iter().enumerate() {
            let mut event = event.clone();
            event["event_id"] = format!("${index}").into();
            timeline.add(&serde_json::from_value(event).unwrap());
        }
        timeline.finish()
    }

    fn member(user: &str, membership: &str, sent_ms: i64) -> Value {
        json!({"type": "m.room.member", "state_key": user, "origin_server_ts": sent_ms, "content": {"membership": membership}})
    }

    fn state(event_type: &str, content: &Value) -> Value {
        json!({"type": event_type, "state_key": "", "sender": "@a:hs", "origin_server_ts": 1, "content": content})
    }

    #[test]
    fn a_room_is_what_its_newest_events_say() {
        let events = [
            member("@a:hs", "leave", 90),
            state("m.room.name", &json!({"name": "New"})),
            state(
                "m.room.canonical_alias",
                &json!({"alias": "#a:hs", "alt_aliases": ["#b:hs", 5]}),
            ),
            state("m.room.name", &json!({"name": "Old"})),
            state("m.room.canonical_alias", &json!({"alias": "#old:hs"})),
            state("m.room.encryption", &json!({})),
            member("@a:hs", "join", 10),
            state("m.room.create", &json!({})),
        ];
        let expected = FormerRoom {
            newest: "$0".to_owned(),
            last_activity_ms: 90,
            name: Some("New".to_owned()),
            aliases: vec!["#a:hs".to_owned(), "#b:hs".to_owned()],
            encrypted: true,
            federated: Some(false),
            invited: 0,
            last_member_ms: Some(90),
            is_complete: true,
        };
        assert_eq!(former(&events), (expected, true));
    }

    #[test]
    fn only_the_timeline_of_a_room_of_this_server_alone_contains_all_state() {
        let create = state("m.room.create", &json!({}));
        let whole = |events: &[Value]| former(events).1;
        assert!(whole(&[member("@a:hs", "leave", 2), create.clone()]));
        // Joined over federation, or its history was purged.
        assert!(!whole(&[member("@a:hs", "leave", 2)]));
        // Another server may have sent state while no local user was in the room.
        assert!(!whole(&[member("@a:hs", "leave", 2), member("@b:far", "join", 1), create]));
    }

    #[test]
    fn the_end_of_an_invitation_is_not_the_end_of_a_membership() {
        let last = |events: &[Value]| {
            let former = former(events).0;
            (former.last_member_ms, former.invited)
        };
        let joined = || member("@a:hs", "join", 10);
        let left = || member("@a:hs", "leave", 20);
        assert_eq!(last(&[left(), joined()]), (Some(20), 0));
        let (invite, rejected) = (member("@b:hs", "invite", 15), member("@b:hs", "leave", 90));
        assert_eq!(last(&[left(), invite.clone(), joined()]), (Some(20), 1));
        assert_eq!(last(&[rejected.clone(), left(), invite, joined()]), (Some(20), 0));
        // Without the event before it, a leave counts.
        assert_eq!(last(&[rejected, left(), joined()]), (Some(90), 0));
        assert_eq!(last(&[member("@b:hs", "knock", 30), left(), joined()]), (Some(30), 1));
        assert_eq!(last(&[member("@b:hs", "ban", 40), left(), joined()]), (Some(40), 0));
    }
}
