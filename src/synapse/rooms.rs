//! Rooms: aliases, members, and the state that says who may be joined and by whom.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::error::{self, Error};
use super::reader::Reader;
use super::{id, ids};

/// What a room remembers of one user: the latest membership event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberEvent {
    /// `join`, `invite`, `knock`, `leave` or `ban`.
    pub membership: String,
    /// Whether the user made the event: someone who left did, someone who was kicked did not.
    pub by_self: bool,
}

/// What decides whether an account may invite into a room.
#[derive(Debug, Clone)]
pub struct Permissions {
    pub public: bool,
    invite: i64,
    default: i64,
    users: HashMap<String, i64>,
    /// Creators of a room of version 12 or later stand above every level.
    creators: Vec<String>,
    /// The room that this one replaced.
    pub predecessor: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default, deserialize_with = "id")]
    sender: String,
    #[serde(default, deserialize_with = "id")]
    state_key: String,
    #[serde(default)]
    content: Value,
}

impl Reader {
    /// The id behind an alias; `M_NOT_FOUND` where it leads nowhere.
    pub async fn resolve_alias(&self, alias: &str) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(deserialize_with = "id")]
            room_id: String,
        }
        let answer: Answer =
            self.get("/_matrix/client/v3/directory/room/{}", &[alias], vec![]).await?;
        Ok(answer.room_id)
    }

    /// Who is in the room now, from here and from elsewhere.
    pub async fn joined_members(&self, room_id: &str) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(deserialize_with = "ids")]
            members: Vec<String>,
        }
        let answer: Answer =
            self.get("/_synapse/admin/v1/rooms/{}/members", &[room_id], vec![]).await?;
        Ok(answer.members)
    }

    /// Everybody whom the room remembers: who is in, left, was kicked, banned, invited, or knocks.
    pub async fn member_events(
        &self,
        room_id: &str,
    ) -> Result<HashMap<String, MemberEvent>, Error> {
        let events = self.state(room_id, "m.room.member").await?;
        Ok(events
            .into_iter()
            .map(|event| {
                let membership =
                    error::line(event.content["membership"].as_str().unwrap_or_default(), 20);
                let by_self = event.sender == event.state_key;
                (event.state_key, MemberEvent { membership, by_self })
            })
            .collect())
    }

    /// The room that replaced this one, where it is tombstoned; an empty text where the tombstone names none.
    pub async fn replacement(&self, room_id: &str) -> Result<Option<String>, Error> {
        let tombstone = self.state(room_id, "m.room.tombstone").await?;
        Ok(tombstone.first().map(|event| {
            error::line(event.content["replacement_room"].as_str().unwrap_or_default(), 255)
        }))
    }

    /// The room that this one replaced.
    pub async fn predecessor(&self, room_id: &str) -> Result<Option<String>, Error> {
        let create = self.state(room_id, "m.room.create").await?;
        Ok(create.first().and_then(predecessor))
    }

    pub async fn permissions(&self, room_id: &str) -> Result<Permissions, Error> {
        let rules = self.state(room_id, "m.room.join_rules").await?;
        let levels = self.state(room_id, "m.room.power_levels").await?;
        let create = self.state(room_id, "m.room.create").await?;
        Ok(Permissions::new(rules.first(), levels.first(), create.first()))
    }

    /// Whether server admins blocked the room: Synapse refuses every join to it then.
    pub async fn is_blocked(&self, room_id: &str) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Answer {
            block: bool,
        }
        let answer: Answer =
            self.get("/_synapse/admin/v1/rooms/{}/block", &[room_id], vec![]).await?;
        Ok(answer.block)
    }

    /// State events of one type; the filter exists since Synapse 1.123, older ones answer with all state.
    async fn state(&self, room_id: &str, kind: &'static str) -> Result<Vec<Event>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            state: Vec<Event>,
        }
        let answer: Answer = self
            .get("/_synapse/admin/v1/rooms/{}/state", &[room_id], vec![("type", kind.to_owned())])
            .await?;
        Ok(answer.state)
    }
}

fn predecessor(create: &Event) -> Option<String> {
    create.content["predecessor"]["room_id"].as_str().map(str::to_owned)
}

impl Permissions {
    fn new(rules: Option<&Event>, levels: Option<&Event>, create: Option<&Event>) -> Self {
        let version: u32 = create
            .and_then(|event| event.content["room_version"].as_str()?.parse().ok())
            .unwrap_or(1);
        let mut creators = Vec::new();
        if let Some(create) = create.filter(|_| version >= 12) {
            creators.push(create.sender.clone());
            creators.extend(
                create.content["additional_creators"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .map(str::to_owned),
            );
        }
        let users: HashMap<String, i64> = match levels {
            Some(levels) => levels.content["users"]
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(user, level)| Some((user.clone(), number(level)?)))
                .collect(),
            // Without the event the creator alone has power (Matrix specification, authorization rules).
            None => create.map(|event| (event.sender.clone(), 100)).into_iter().collect(),
        };
        let level = |key: &str| levels.and_then(|levels| number(&levels.content[key])).unwrap_or(0);
        Self {
            public: rules.is_some_and(|rules| rules.content["join_rule"] == "public"),
            invite: level("invite"),
            default: level("users_default"),
            users,
            creators,
            predecessor: create.and_then(predecessor),
        }
    }

    pub fn may_invite(&self, user_id: &str) -> bool {
        self.creators.iter().any(|creator| creator == user_id)
            || self.users.get(user_id).copied().unwrap_or(self.default) >= self.invite
    }
}

/// Power levels in old rooms may be strings.
fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(sender: &str, content: Value) -> Event {
        Event { sender: sender.to_owned(), state_key: String::new(), content }
    }

    #[test]
    fn the_creator_of_a_new_room_stands_above_its_power_levels() {
        let levels = event("@c:hs", json!({"invite": 50, "users": {"@m:hs": 50}}));
        let create =
            event("@c:hs", json!({"room_version": "12", "additional_creators": ["@d:hs"]}));
        let permissions = Permissions::new(None, Some(&levels), Some(&create));
        assert_eq!(
            ["@c:hs", "@d:hs", "@m:hs", "@x:hs"].map(|user| permissions.may_invite(user)),
            [true, true, true, false]
        );
    }

    #[test]
    fn levels_of_old_rooms_may_be_strings_and_absent_ones_have_defaults() {
        let levels =
            event("@c:hs", json!({"invite": "50", "users_default": 10, "users": {"@m:hs": "50"}}));
        let create = event("@c:hs", json!({"room_version": "5"}));
        let permissions = Permissions::new(None, Some(&levels), Some(&create));
        assert_eq!(["@m:hs", "@c:hs"].map(|user| permissions.may_invite(user)), [true, false]);
        let open = Permissions::new(None, Some(&event("@c:hs", json!({}))), Some(&create));
        assert!(open.may_invite("@anybody:hs"));
    }
}
