//! Reports of events and of users.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::endpoints::{Answer, Answered, Call, Page, refused};
use super::world::World;

#[derive(Clone, Debug)]
pub struct Report {
    pub received_ms: i64,
    pub by: String,
    /// A user, or an event.
    pub about: String,
    /// Of an event. It is not listed where the room does not exist.
    pub room_id: Option<String>,
    /// `None`: the event was purged, and Synapse does not show the report itself.
    pub sender: Option<String>,
    pub reason: Option<String>,
}

fn event_row(world: &World, id: u64, report: &Report) -> Option<Value> {
    let room_id = report.room_id.as_deref()?;
    let room = world.rooms.get(room_id)?;
    Some(json!({
        "id": id, "received_ts": report.received_ms, "room_id": room_id, "event_id": report.about,
        "user_id": report.by, "score": null, "reason": report.reason, "sender": report.sender,
        "canonical_alias": null, "name": room.name,
    }))
}

fn user_row(id: u64, report: &Report) -> Value {
    json!({
        "id": id, "received_ts": report.received_ms, "target_user_id": report.about,
        "user_id": report.by, "reason": report.reason,
    })
}

/// Both lists are sorted by the time, not by the id.
fn page(world: &mut World, call: &Call, name: &str) -> Answered {
    let page = Page::of(world, call)?;
    let backwards = call.one_of("dir", &["b", "f"])? == "b";
    let mut rows: Vec<(i64, Value)> = match name {
        "event_reports" => world
            .event_reports
            .iter()
            .filter_map(|(id, it)| Some((it.received_ms, event_row(world, *id, it)?)))
            .collect(),
        _ => {
            world.user_reports.iter().map(|(id, it)| (it.received_ms, user_row(*id, it))).collect()
        }
    };
    rows.sort_by_key(|(received, _)| if backwards { -received } else { *received });
    let total = rows.len();
    let shown = rows.into_iter().skip(page.from).take(page.limit);
    let shown: Vec<Value> = shown.map(|(_, row)| row).collect();
    let mut body = json!({ "total": total });
    if let Some(next) = page.next(total, shown.len()) {
        body["next_token"] = next.into();
    }
    body[name] = shown.into();
    Ok(Answer::json(&body))
}

pub(super) fn events(world: &mut World, call: &Call) -> Answered {
    page(world, call, "event_reports")
}

pub(super) fn users(world: &mut World, call: &Call) -> Answered {
    page(world, call, "user_reports")
}

fn removed(reports: &mut BTreeMap<u64, Report>, call: &Call, what: &str) -> Answered {
    let Ok(id) = call.args[0].parse::<u64>() else {
        let error = "The report_id parameter must be a string representing a positive integer.";
        return refused(400, "M_INVALID_PARAM", error);
    };
    match reports.remove(&id) {
        Some(_) => Ok(Answer::json(&json!({}))),
        None => refused(404, "M_NOT_FOUND", &format!("{what} report not found")),
    }
}

pub(super) fn delete_event(world: &mut World, call: &Call) -> Answered {
    removed(&mut world.event_reports, call, "Event")
}

pub(super) fn delete_user(world: &mut World, call: &Call) -> Answered {
    removed(&mut world.user_reports, call, "User")
}

/// The report itself, which a client must not ask for: Synapse shows none whose event was purged.
pub(super) fn detail(world: &mut World, call: &Call) -> Answered {
    world.complain(format!("{} is read", call.seen.path));
    refused(404, "M_NOT_FOUND", "Event report not found")
}
