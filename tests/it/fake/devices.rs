//! The deletion of devices.

use serde_json::{Value, json};

use super::endpoints::{Answer, Answered, Call, refused};
use super::world::World;

/// Says nothing of what it deleted, whatever it was told to delete.
pub(super) fn delete(world: &mut World, call: &Call) -> Answered {
    let user_id = &call.args[0];
    let body = call.object()?;
    let Some(devices) = body.get("devices") else {
        return refused(400, "M_MISSING_PARAM", "Missing params: ['devices']");
    };
    let mut complaints = Vec::new();
    let Some(user) = world.users.get_mut(user_id) else {
        return refused(404, "M_NOT_FOUND", "Unknown user");
    };
    // Synapse takes what is no list, too.
    let ids = devices.as_array().map_or(&[][..], Vec::as_slice);
    let ids: Vec<&str> = ids.iter().filter_map(Value::as_str).collect();
    if !(1..=50).contains(&ids.len()) {
        complaints.push(format!("{} devices in one request", ids.len()));
    }
    for device in user.devices.iter().filter(|device| ids.contains(&device.id.as_str())) {
        if device.dehydrated || device.last_seen_ms.is_none() || user.appservice_id.is_some() {
            complaints.push(format!("{device:?} of {user_id} is deleted"));
        }
    }
    user.devices.retain(|device| !ids.contains(&device.id.as_str()));
    if world.mas {
        complaints.push(format!("devices of {user_id} are deleted in Synapse, under MAS"));
    }
    for complaint in complaints {
        world.complain(complaint);
    }
    Ok(Answer::json(&json!({})))
}
