//! One join.

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::jobs::mas_accounts::is_gone;
use crate::plan::change::{Change, ChangeResult, Check, Lane};
use crate::plan::report::Action;
use crate::synapse::{self, Membership, Reader, Writer};

pub(super) fn target(user_id: &str, room: &str) -> String {
    format!("{user_id} -> {room}")
}

#[derive(Debug)]
pub(super) struct Join {
    pub user_id: String,
    pub room: String,
    pub room_id: String,
    pub planned_membership: Option<Membership>,
    pub per_second: f64,
    pub can_check_membership: bool,
}

impl Change for Join {
    fn action(&self) -> Action {
        Action::JoinRoom
    }

    fn target(&self) -> String {
        target(&self.user_id, &self.room)
    }

    fn lane(&self) -> Lane {
        Lane::Room { room_id: self.room_id.clone(), per_second: self.per_second }
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, synapse::Error>> {
        Box::pin(async move {
            // A paced run takes long, and Synapse would join even a deactivated account, which could never leave again.
            let user = reader.user(&self.user_id).await?;
            let is_gone_in_synapse = user.deactivated || user.locked || user.suspended;
            if is_gone_in_synapse || is_gone(reader, &self.user_id).await? {
                return Ok(Check::Skip(
                    "the account was deactivated, locked or suspended since the plan".to_owned(),
                ));
            }
            if !self.can_check_membership {
                return Ok(Check::Proceed(None));
            }
            // Joining again would reset the room nickname of a user who joined, and bring back one who left.
            let now = reader.membership(&self.user_id, &self.room_id).await?;
            Ok(match now {
                now if now == self.planned_membership => {
                    Check::Proceed(now.map(|now| Value::from(now.as_str())))
                }
                now => Check::Skip(format!(
                    "the membership changed since the plan and is now `{}`",
                    now.map_or("none", Membership::as_str)
                )),
            })
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, synapse::Error>> {
        Box::pin(async move {
            writer.join(&self.room_id, &self.user_id).await?;
            Ok(ChangeResult::items(1))
        })
    }
}
