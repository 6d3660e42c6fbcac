//! Messages in rooms, and the reactions to them.

use serde_json::{Value, json};

use super::endpoints::{Answer, Answered, Call, refused};
use super::world::World;

/// An event that a client sent into a room.
#[derive(Clone, Debug)]
pub struct Message {
    pub room_id: String,
    pub sender: String,
    pub event_id: String,
    /// Of the transaction; empty for what a test put there.
    pub txn_id: String,
    pub content: Value,
    pub reactions: Vec<(String, String)>,
    sent_ms: i64,
}

impl Message {
    /// The text of the message.
    pub fn body(&self) -> &str {
        self.content["body"].as_str().unwrap_or_default()
    }
}

fn is_joined(world: &World, room_id: &str, user_id: &str) -> bool {
    let member = world.rooms.get(room_id).and_then(|room| room.members.get(user_id));
    member.is_some_and(|member| member.membership == "join")
}

fn only_members(world: &World, call: &Call) -> Result<String, Answer> {
    let room_id = call.args[0].clone();
    if is_joined(world, &room_id, &call.caller) {
        return Ok(room_id);
    }
    let error = format!("User {} not in room {room_id}", call.caller);
    refused(403, "M_FORBIDDEN", &error)
}

/// The same transaction of the same device is the same event.
pub(super) fn send(world: &mut World, call: &Call) -> Answered {
    let room_id = only_members(world, call)?;
    if world.mas && call.device_id.is_none() {
        return refused(500, "M_UNKNOWN", "Internal server error");
    }
    let txn_id = call.args[1].clone();
    let same = world.messages.iter().find(|it| it.txn_id == txn_id && it.sender == call.caller);
    if let Some(same) = same {
        return Ok(Answer::json(&json!({"event_id": same.event_id})));
    }
    let Ok(content) = serde_json::from_str(&call.seen.body) else {
        return refused(400, "M_NOT_JSON", "Content not JSON.");
    };
    let event_id = format!("$event{}", world.messages.len());
    let sent_ms = world.now().timestamp_millis();
    world.messages.push(Message {
        room_id,
        sender: call.caller.clone(),
        event_id: event_id.clone(),
        txn_id,
        content,
        reactions: Vec::new(),
        sent_ms,
    });
    Ok(Answer::json(&json!({"event_id": event_id})))
}

/// All in one page, newest first.
pub(super) fn list(world: &mut World, call: &Call) -> Answered {
    let room_id = only_members(world, call)?;
    let chunk: Vec<Value> = world
        .messages
        .iter()
        .rev()
        .filter(|message| message.room_id == room_id)
        .map(|message| {
            json!({
                "type": "m.room.message", "room_id": message.room_id, "sender": message.sender,
                "event_id": message.event_id, "content": message.content,
                "origin_server_ts": message.sent_ms,
            })
        })
        .collect();
    Ok(Answer::json(&json!({"chunk": chunk, "start": "t1"})))
}

pub(super) fn relations(world: &mut World, call: &Call) -> Answered {
    let room_id = only_members(world, call)?;
    let message = world.messages.iter().find(|message| message.event_id == call.args[1]);
    let Some(message) = message else {
        return refused(404, "M_NOT_FOUND", "Unknown parent event.");
    };
    let chunk: Vec<Value> = message
        .reactions
        .iter()
        .enumerate()
        .map(|(number, (sender, key))| {
            json!({
                "type": "m.reaction", "room_id": room_id, "sender": sender,
                "event_id": format!("{}-reaction{number}", message.event_id),
                "content": {"m.relates_to": {
                    "rel_type": "m.annotation", "event_id": message.event_id, "key": key,
                }},
            })
        })
        .collect();
    Ok(Answer::json(&json!({"chunk": chunk})))
}

pub(super) fn member(world: &mut World, call: &Call) -> Answered {
    only_members(world, call)?;
    let member = &world.rooms[&call.args[0]].members.get(&call.args[1]);
    match member {
        Some(member) => Ok(Answer::json(&json!({"membership": member.membership}))),
        None => refused(404, "M_NOT_FOUND", "Event not found."),
    }
}
