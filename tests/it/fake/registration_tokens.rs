//! Registration tokens, which Synapse has only where it manages the accounts itself.

use serde_json::{Value, json};

use super::endpoints::{Answer, Answered, Call, refused};
use super::world::World;

#[derive(Clone, Debug, Default)]
pub struct RegistrationToken {
    /// `None` without a limit.
    pub uses_allowed: Option<u64>,
    pub pending: u64,
    pub completed: u64,
    pub expiry_ms: Option<i64>,
}

fn row(name: &str, token: &RegistrationToken) -> Value {
    json!({
        "token": name, "uses_allowed": token.uses_allowed, "pending": token.pending,
        "completed": token.completed, "expiry_time": token.expiry_ms,
    })
}

fn only_without_mas(world: &World) -> Result<(), Answer> {
    match world.mas {
        true => refused(404, "M_UNRECOGNIZED", "Unrecognized request"),
        false => Ok(()),
    }
}

fn not_found(name: &str) -> Answered {
    refused(404, "M_NOT_FOUND", &format!("No such registration token: {name}"))
}

pub(super) fn list(world: &mut World, _: &Call) -> Answered {
    only_without_mas(world)?;
    let tokens = world.registration_tokens.iter().map(|(name, token)| row(name, token));
    Ok(Answer::json(&json!({"registration_tokens": tokens.collect::<Vec<_>>()})))
}

pub(super) fn one(world: &mut World, call: &Call) -> Answered {
    only_without_mas(world)?;
    let name = &call.args[0];
    match world.registration_tokens.get(name) {
        Some(token) => Ok(Answer::json(&row(name, token))),
        None => not_found(name),
    }
}

pub(super) fn delete(world: &mut World, call: &Call) -> Answered {
    only_without_mas(world)?;
    let name = &call.args[0];
    let Some(token) = world.registration_tokens.remove(name) else { return not_found(name) };
    let is_expired = token.expiry_ms.is_some_and(|at| at <= world.now().timestamp_millis());
    let is_used_up = token.uses_allowed.is_some_and(|allowed| token.completed >= allowed);
    if token.pending > 0 || token.uses_allowed == Some(0) || !(is_expired || is_used_up) {
        world.complain(format!("{name} is deleted: {token:?}"));
    }
    Ok(Answer::json(&json!({})))
}
