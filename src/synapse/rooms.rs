//! Queries about rooms: aliases, members, and the state that decides who may be joined.

use std::collections::HashMap;
use std::fmt;
use std::io::BufReader;
use std::time::Duration;

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::json::{Scalar, id, integers, object_or_default, optional_text, texts};
use super::reader::Reader;
use super::user_map::{MAX_USERS, UserMap, UserMapBuilder, UserSet};
use crate::http::{Error, one_line};
use crate::values::size::Size;
use crate::values::string_enum::string_enum;

string_enum! {
    /// What a membership event makes of a user.
    pub enum Membership {
        Join = "join",
        Invite = "invite",
        Knock = "knock",
        Leave = "leave",
        Ban = "ban",
    }
}

/// The latest membership event of one user in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberEvent {
    pub membership: Membership,
    /// Whether the user sent the event: true for someone who left, false for someone who was kicked.
    pub by_self: bool,
}

/// What decides whether an account may invite into a room, or send messages there.
#[derive(Debug, Clone)]
pub struct Permissions {
    pub public: bool,
    invite: i64,
    /// What it takes to send a message.
    send: i64,
    default: i64,
    users: HashMap<String, i64>,
    /// In rooms of version 12 and later, creators rank above every power level.
    creators: Vec<String>,
    /// The room that this one replaced.
    pub predecessor: Option<String>,
}

/// A state event, of whose content only the fields that are used are kept.
#[derive(Debug, Deserialize)]
struct StateEvent<C>
where
    C: for<'a> Deserialize<'a> + Default,
{
    #[serde(default, deserialize_with = "id")]
    sender: String,
    #[serde(default, deserialize_with = "id")]
    state_key: String,
    #[serde(default, deserialize_with = "object_or_default")]
    content: C,
}

#[derive(Debug, Default, Deserialize)]
struct Member {
    #[serde(default)]
    membership: Scalar,
}

#[derive(Debug, Default, Deserialize)]
struct SpaceChild {
    #[serde(default, deserialize_with = "texts")]
    via: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Tombstone {
    #[serde(default, deserialize_with = "optional_text")]
    replacement_room: Option<String>,
}

/// Content of which nothing is used.
#[derive(Debug, Default, Deserialize)]
struct Anything {}

#[derive(Debug, Default, Deserialize)]
struct Create {
    #[serde(default, deserialize_with = "optional_text")]
    room_version: Option<String>,
    #[serde(default, deserialize_with = "texts")]
    additional_creators: Vec<String>,
    #[serde(default, deserialize_with = "object_or_default")]
    predecessor: Predecessor,
}

#[derive(Debug, Default, Deserialize)]
struct Predecessor {
    #[serde(default, deserialize_with = "optional_text")]
    room_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct JoinRules {
    #[serde(default, deserialize_with = "optional_text")]
    join_rule: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct PowerLevels {
    #[serde(default)]
    invite: Scalar,
    #[serde(default)]
    users_default: Scalar,
    #[serde(default)]
    events_default: Scalar,
    #[serde(default, deserialize_with = "integers")]
    events: HashMap<String, i64>,
    #[serde(default, deserialize_with = "integers")]
    users: HashMap<String, i64>,
}

/// The type of the events that are messages.
pub(super) const MESSAGE: &str = "m.room.message";
pub(super) const ROOM_STATE: &str = "/_synapse/admin/v1/rooms/{}/state";
/// The most that the ids of a room's members may take: quoted, with a comma.
const MAX_MEMBERS: Size = Size(MAX_USERS as u64 * 258);
/// The most that their membership events may take; one of Synapse 1.163 has 600 to 1,500 bytes.
pub(super) const MAX_MEMBER_EVENTS: Size = Size(MAX_USERS as u64 * 2048);
/// How much longer the list of membership events may take to begin: 20,000 took 3 s where nothing was cached.
pub(super) const TIME_PER_MEMBER: Duration = Duration::from_millis(1);

impl Reader {
    /// Returns the room id behind an alias; the error is `M_NOT_FOUND` if there is no such alias.
    pub(crate) async fn resolve_alias(&self, alias: &str) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Alias {
            #[serde(deserialize_with = "id")]
            room_id: String,
        }
        let alias: Alias =
            self.get("/_matrix/client/v3/directory/room/{}", &[alias], vec![]).await?;
        Ok(alias.room_id)
    }

    /// Returns the users who are in the room, local and remote.
    pub(crate) async fn joined_members(&self, room_id: &str) -> Result<UserSet, Error> {
        #[derive(Deserialize)]
        struct Room {
            members: JoinedMembers,
        }
        let bounds = (MAX_MEMBERS, Duration::ZERO);
        let parse = |body| serde_json::from_reader(BufReader::new(body));
        let room: Room = self
            .get_streamed("/_synapse/admin/v1/rooms/{}/members", &[room_id], vec![], bounds, parse)
            .await?;
        Ok(room.members.0)
    }

    /// Returns the latest membership event of every user who ever had one in the room.
    ///
    /// `joined` is about how many are in it: Synapse loads all events before it responds.
    pub(crate) async fn member_events(
        &self,
        room_id: &str,
        joined: usize,
    ) -> Result<UserMap<MemberEvent>, Error> {
        let query = vec![("type", "m.room.member".to_owned())];
        let extra = TIME_PER_MEMBER.saturating_mul(u32::try_from(joined).unwrap_or(u32::MAX));
        let bounds = (MAX_MEMBER_EVENTS, extra);
        let parse = |body| serde_json::from_reader(BufReader::new(body));
        let room: State<Members> =
            self.get_streamed(ROOM_STATE, &[room_id], query, bounds, parse).await?;
        Ok(room.state.0)
    }

    /// Returns the ids of the rooms and spaces that a space names, sorted.
    ///
    /// Not from its hierarchy, which leaves out what the server is not in and fails on a space without local members.
    pub(crate) async fn space_children(&self, room_id: &str) -> Result<Vec<String>, Error> {
        let events: Vec<StateEvent<SpaceChild>> = self.state(room_id, "m.space.child").await?;
        // A child that was removed keeps its event, without servers to join through.
        let children = events.into_iter().filter(|event| !event.content.via.is_empty());
        let mut children: Vec<String> =
            children.map(|event| event.state_key).filter(|id| id.starts_with('!')).collect();
        children.sort();
        Ok(children)
    }

    /// Returns the room that replaced this one if it has a tombstone; an empty string if the tombstone names none.
    pub(crate) async fn replacement(&self, room_id: &str) -> Result<Option<String>, Error> {
        let First::<Tombstone>(tombstone) = self.state(room_id, "m.room.tombstone").await?;
        Ok(tombstone.map(|event| {
            one_line(event.content.replacement_room.as_deref().unwrap_or_default(), 255)
        }))
    }

    /// Returns the room that this one replaced.
    pub(crate) async fn predecessor(&self, room_id: &str) -> Result<Option<String>, Error> {
        let First::<Create>(create) = self.state(room_id, "m.room.create").await?;
        Ok(create.and_then(|event| event.content.predecessor.room_id))
    }

    pub(crate) async fn permissions(&self, room_id: &str) -> Result<Permissions, Error> {
        let First(rules) = self.state(room_id, "m.room.join_rules").await?;
        let First(levels) = self.state(room_id, "m.room.power_levels").await?;
        let First(create) = self.state(room_id, "m.room.create").await?;
        Ok(Permissions::new(rules, levels, create))
    }

    /// Whether a server admin blocked the room: Synapse then refuses every join to it.
    pub(crate) async fn is_blocked(&self, room_id: &str) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Block {
            block: bool,
        }
        let room: Block = self.get("/_synapse/admin/v1/rooms/{}/block", &[room_id], vec![]).await?;
        Ok(room.block)
    }

    pub(crate) async fn is_encrypted(&self, room_id: &str) -> Result<bool, Error> {
        let First::<Anything>(encryption) = self.state(room_id, "m.room.encryption").await?;
        Ok(encryption.is_some())
    }

    /// Reads the state events of one type. Synapse below 1.123 ignores the filter and returns all state.
    async fn state<S>(&self, room_id: &str, event_type: &'static str) -> Result<S, Error>
    where
        S: for<'a> Deserialize<'a>,
    {
        let query = vec![("type", event_type.to_owned())];
        let room: State<S> = self.get(ROOM_STATE, &[room_id], query).await?;
        Ok(room.state)
    }
}

/// The first of a list of state events; the others are skipped.
struct First<C>(Option<StateEvent<C>>)
where
    C: for<'a> Deserialize<'a> + Default;

impl<'de, C> Deserialize<'de> for First<C>
where
    C: for<'a> Deserialize<'a> + Default,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FirstVisitor<C>(std::marker::PhantomData<C>);

        impl<'de, C> Visitor<'de> for FirstVisitor<C>
        where
            C: for<'a> Deserialize<'a> + Default,
        {
            type Value = First<C>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of state events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<First<C>, A::Error> {
                let first = events.next_element()?;
                while events.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }

        deserializer.deserialize_seq(FirstVisitor(std::marker::PhantomData))
    }
}

#[derive(Deserialize)]
struct State<S> {
    state: S,
}

/// The user ids of a list, of which none is kept as a string of its own.
struct JoinedMembers(UserSet);

impl<'de> Deserialize<'de> for JoinedMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct JoinedVisitor;

        impl<'de> Visitor<'de> for JoinedVisitor {
            type Value = JoinedMembers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of ids")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut ids: A) -> Result<Self::Value, A::Error> {
                let mut members = UserMapBuilder::new();
                while let Some(id) = ids.next_element::<String>()? {
                    members.insert(&id, ()).map_err(A::Error::custom)?;
                }
                Ok(JoinedMembers(members.build()))
            }
        }

        deserializer.deserialize_seq(JoinedVisitor)
    }
}

/// Membership events by user; those without a membership are skipped.
#[derive(Debug)]
struct Members(UserMap<MemberEvent>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of membership events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<Members, A::Error> {
                let mut members = UserMapBuilder::new();
                while let Some(event) = events.next_element::<StateEvent<Member>>()? {
                    let membership = event.content.membership.into_text();
                    if let Some(membership) = membership.and_then(|text| text.parse().ok()) {
                        let by_self = event.sender == event.state_key;
                        members
                            .insert(&event.state_key, MemberEvent { membership, by_self })
                            .map_err(A::Error::custom)?;
                    }
                }
                Ok(Members(members.build()))
            }
        }

        deserializer.deserialize_seq(MembersVisitor)
    }
}

impl Permissions {
    fn new(
        rules: Option<StateEvent<JoinRules>>,
        levels: Option<StateEvent<PowerLevels>>,
        create: Option<StateEvent<Create>>,
    ) -> Self {
        let (mut creators, mut predecessor, mut creator) = (Vec::new(), None, None);
        if let Some(StateEvent { sender, content, .. }) = create {
            let version = content.room_version.and_then(|version| version.parse().ok());
            if version.unwrap_or(1_u32) >= 12 {
                creators.push(sender.clone());
                creators.extend(content.additional_creators);
            }
            predecessor = content.predecessor.room_id;
            creator = Some(sender);
        }
        let without_event = || PowerLevels {
            // Without the event only the creator has power (Matrix specification, authorization rules).
            users: creator.map(|creator| (creator, 100)).into_iter().collect(),
            ..PowerLevels::default()
        };
        let levels = levels.map_or_else(without_event, |event| event.content);
        Self {
            public: rules.is_some_and(|event| event.content.join_rule.as_deref() == Some("public")),
            invite: levels.invite.to_integer().unwrap_or(0),
            send: levels
                .events
                .get(MESSAGE)
                .copied()
                .or(levels.events_default.to_integer())
                .unwrap_or(0),
            default: levels.users_default.to_integer().unwrap_or(0),
            users: levels.users,
            creators,
            predecessor,
        }
    }

    pub(crate) fn may_invite(&self, user_id: &str) -> bool {
        self.reaches(user_id, self.invite)
    }

    pub(crate) fn may_send_messages(&self, user_id: &str) -> bool {
        self.reaches(user_id, self.send)
    }

    fn reaches(&self, user_id: &str, level: i64) -> bool {
        self.creators.iter().any(|creator| creator == user_id)
            || self.users.get(user_id).copied().unwrap_or(self.default) >= level
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn event<C>(sender: &str, content: &Value) -> Option<StateEvent<C>>
    where
        C: for<'a> Deserialize<'a> + Default,
    {
        let list = json!([{"sender": sender, "content": content}, {"sender": "@other:hs"}]);
        serde_json::from_value::<First<C>>(list).unwrap().0
    }

    #[test]
    fn the_creator_of_a_new_room_ranks_above_its_power_levels() {
        let levels = event("@c:hs", &json!({"invite": 50, "users": {"@m:hs": 50}}));
        let create =
            event("@c:hs", &json!({"room_version": "12", "additional_creators": ["@d:hs"]}));
        let permissions = Permissions::new(None, levels, create);
        assert_eq!(
            ["@c:hs", "@d:hs", "@m:hs", "@x:hs"].map(|user| permissions.may_invite(user)),
            [true, true, true, false]
        );
    }

    #[test]
    fn levels_of_old_rooms_may_be_strings_and_absent_ones_have_defaults() {
        let levels =
            event("@c:hs", &json!({"invite": "50", "users_default": 10, "users": {"@m:hs": "50"}}));
        let create = || event("@c:hs", &json!({"room_version": "5"}));
        let permissions = Permissions::new(None, levels, create());
        assert_eq!(["@m:hs", "@c:hs"].map(|user| permissions.may_invite(user)), [true, false]);
        let open = Permissions::new(None, event("@c:hs", &json!({})), create());
        assert!(open.may_invite("@anybody:hs"));
        let without_levels = Permissions::new(None, None, create());
        assert!(without_levels.may_invite("@c:hs"));
    }

    #[test]
    fn membership_events_of_any_form_are_read_and_those_without_a_membership_skipped() {
        let list = json!([
            {"sender": "@a:hs", "state_key": "@a:hs", "content": {"membership": "leave", "displayname": [["x"]]}},
            {"sender": "@a:hs", "state_key": "@b:hs", "content": {"membership": "leave"}},
            {"sender": "@a:hs", "state_key": "@c:hs", "content": {"membership": ["join"]}},
            {"sender": "@a:hs", "state_key": "@d:hs", "content": 5},
            {},
        ]);
        let Members(members) = serde_json::from_value(list).unwrap();
        let leave = |by_self| MemberEvent { membership: Membership::Leave, by_self };
        assert_eq!(members.len(), 2);
        assert_eq!(members.get("@a:hs"), Some(&leave(true)));
        assert_eq!(members.get("@b:hs"), Some(&leave(false)));
    }
}
