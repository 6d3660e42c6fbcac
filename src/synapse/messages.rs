//! Messages to rooms: whether a room can take them, sending them, and what people answer with reactions.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::json::{Scalar, id, object_or_default, optional_text};
use super::reader::Reader;
use super::rooms::MESSAGE;
use crate::http::{Base, Call, Error, Pacing, Repeat};
use crate::values::clock::Timestamp;

/// Sends messages, and changes nothing else.
#[derive(Debug, Clone)]
pub(crate) struct Messenger {
    reader: Reader,
}

/// Whether a room can take messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RoomForMessages {
    /// The id of the room.
    Usable(String),
    /// Why not, and what to do.
    Unusable(String),
}

/// A reaction to a message that was not taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reaction {
    pub event_id: String,
    pub sender: String,
    /// The emoji.
    pub key: String,
}

/// The field of a message that carries its id, by which it is found again.
const MESSAGE_ID: &str = "microglia.message_id";
/// How many pages of own messages, and of reactions, are read at most.
const MAX_PAGES: usize = 10;
const PER_PAGE: &str = "100";

/// A page of events, as most of the client API returns them.
#[derive(Debug, Deserialize)]
struct Page<E> {
    chunk: Vec<E>,
    #[serde(default, alias = "next_batch", deserialize_with = "optional_text")]
    end: Option<String>,
}

#[derive(Debug, Deserialize)]
struct OwnMessage {
    #[serde(deserialize_with = "id")]
    event_id: String,
    #[serde(default)]
    origin_server_ts: Scalar,
    #[serde(default, deserialize_with = "object_or_default")]
    content: OwnContent,
}

#[derive(Debug, Default, Deserialize)]
struct OwnContent {
    #[serde(default, rename = "microglia.message_id", deserialize_with = "optional_text")]
    message_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ReactionEvent {
    #[serde(deserialize_with = "id")]
    event_id: String,
    #[serde(deserialize_with = "id")]
    sender: String,
    /// Empty once it was redacted.
    #[serde(default, deserialize_with = "object_or_default")]
    content: ReactionContent,
}

#[derive(Debug, Default, Deserialize)]
struct ReactionContent {
    #[serde(default, rename = "m.relates_to", deserialize_with = "object_or_default")]
    relates_to: RelatesTo,
}

#[derive(Debug, Default, Deserialize)]
struct RelatesTo {
    #[serde(default, deserialize_with = "optional_text")]
    key: Option<String>,
}

impl Messenger {
    pub(crate) fn new(reader: Reader) -> Self {
        Self { reader }
    }

    /// Sends a message, and returns the id of its event.
    ///
    /// Synapse 1.163 keeps the id of the transaction for 24 hours, for each device: until then, sending it again returns
    /// the same event. `content` is an object.
    pub(crate) async fn send(
        &self,
        room_id: &str,
        message_id: &str,
        content: &Value,
    ) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Sent {
            #[serde(deserialize_with = "id")]
            event_id: String,
        }
        let mut body = content.clone();
        body[MESSAGE_ID] = message_id.into();
        let call = Call {
            method: Method::PUT,
            base: Base::Homeserver,
            endpoint: "/_matrix/client/v3/rooms/{}/send/m.room.message/{}",
            ids: &[room_id, message_id],
            query: vec![],
            body: Some(body),
            // Who sends it keeps it, and looks first whether it arrived.
            repeat: Repeat::Never,
            pacing: Pacing::Normal,
            timeout: Some(self.reader.transport.request_timeout()),
        };
        let never = CancellationToken::new();
        let response = self.reader.transport.send(&call, self.reader.session(&never)).await;
        self.reader.count_request();
        Ok(response?.decode::<Sent>()?.event_id)
    }
}

impl Reader {
    /// Whether the account `me` can send messages to a room, which is given by its id or an alias.
    pub(crate) async fn room_for_messages(
        &self,
        room: &str,
        me: &str,
    ) -> Result<RoomForMessages, Error> {
        let unusable = |why: String| Ok(RoomForMessages::Unusable(why));
        let room_id = match room.starts_with('#') {
            false => room.to_owned(),
            true => match self.resolve_alias(room).await {
                Ok(room_id) => room_id,
                Err(error) if error.is_not_found() => {
                    return unusable(format!(
                        "there is no room {room}: create it, or correct `room`"
                    ));
                }
                Err(error) => return Err(error),
            },
        };
        if !self.is_joined(&room_id, me).await? {
            return unusable(format!(
                "{me} is not in the room {room}: invite it, and join with its token (POST /_matrix/client/v3/join/{room_id})"
            ));
        }
        if let Some(replacement) = self.replacement(&room_id).await? {
            return unusable(match replacement.as_str() {
                "" => format!("the room {room} was closed: choose another one"),
                new => format!("the room {room} was replaced by {new}: set `room` to that"),
            });
        }
        if self.is_encrypted(&room_id).await? {
            return unusable(format!(
                "the room {room} is encrypted, and messages would stand in it unencrypted, with a warning: choose a room without encryption"
            ));
        }
        if !self.permissions(&room_id).await?.may_send_messages(me) {
            return unusable(format!(
                "{me} may not send messages to the room {room}: raise its power level there"
            ));
        }
        Ok(RoomForMessages::Usable(room_id))
    }

    async fn is_joined(&self, room_id: &str, user_id: &str) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Member {
            #[serde(default)]
            membership: Scalar,
        }
        let endpoint = "/_matrix/client/v3/rooms/{}/state/m.room.member/{}";
        match self.get::<Member>(endpoint, &[room_id, user_id], vec![]).await {
            Ok(member) => Ok(member.membership.into_text().as_deref() == Some("join")),
            // Of a room in which the account never was, Synapse says nothing.
            Err(error) if matches!(error.status(), Some(403 | 404)) && !error.is_about_token() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the event of a message that was sent since `since`, if it arrived.
    pub(crate) async fn find_message(
        &self,
        room_id: &str,
        message_id: &str,
        (me, since): (&str, Timestamp),
    ) -> Result<Option<String>, Error> {
        let filter = json!({ "types": [MESSAGE], "senders": [me] }).to_string();
        let mut from: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut query = vec![
                ("dir", "b".to_owned()),
                ("limit", PER_PAGE.to_owned()),
                ("filter", filter.clone()),
            ];
            query.extend(from.map(|from| ("from", from)));
            let page: Page<OwnMessage> =
                self.get("/_matrix/client/v3/rooms/{}/messages", &[room_id], query).await?;
            let found = page
                .chunk
                .iter()
                .find(|event| event.content.message_id.as_deref() == Some(message_id));
            if let Some(found) = found {
                return Ok(Some(found.event_id.clone()));
            }
            let is_older = |event: &OwnMessage| {
                event.origin_server_ts.to_integer().is_some_and(|at| at < since.timestamp_millis())
            };
            match page.end {
                Some(end) if !page.chunk.iter().any(is_older) => from = Some(end),
                _ => break,
            }
        }
        Ok(None)
    }

    /// Returns the reactions to a message that were not taken back, oldest first.
    pub(crate) async fn reactions(
        &self,
        room_id: &str,
        event_id: &str,
    ) -> Result<Vec<Reaction>, Error> {
        let endpoint = "/_matrix/client/v1/rooms/{}/relations/{}/m.annotation/m.reaction";
        let (mut reactions, mut from) = (Vec::new(), None::<String>);
        for _ in 0..MAX_PAGES {
            let mut query = vec![("dir", "f".to_owned()), ("limit", PER_PAGE.to_owned())];
            query.extend(from.map(|from| ("from", from)));
            let page: Page<ReactionEvent> = self.get(endpoint, &[room_id, event_id], query).await?;
            reactions.extend(page.chunk.into_iter().filter_map(|event| {
                let key = event.content.relates_to.key?;
                Some(Reaction { event_id: event.event_id, sender: event.sender, key })
            }));
            from = page.end;
            if from.is_none() {
                break;
            }
        }
        Ok(reactions)
    }
}
