//! What `check --online` asks about the rooms to which the daemon reports.

use super::check::Results;
use super::failure::Failure;
use crate::config::Notification;
use crate::synapse::{Reader, RoomForMessages, Whoami};

impl Results<'_> {
    /// Checks whether messages arrive exactly once, and whether those who may decide can.
    pub(super) async fn check_notification(
        &mut self,
        notification: &Notification,
        reader: &Reader,
        whoami: &Whoami,
    ) -> Result<(), Failure> {
        let name = &notification.name;
        let question = format!("{name} device");
        match &whoami.device_id {
            Some(_) => self.yes(&question, "yes")?,
            None => self.no(&question, "the access token belongs to no device, so that Synapse cannot tell a message that is sent again from a new one: use the token of a login, such as `microglia login` obtains")?,
        }
        let question = format!("{name} can send to its room");
        match reader.room_for_messages(&notification.room, &whoami.user_id).await {
            Ok(RoomForMessages::Usable(id)) if id == notification.room => {
                self.yes(&question, "yes")?;
            }
            Ok(RoomForMessages::Usable(id)) => self.yes(&question, &format!("yes, {id}"))?,
            Ok(RoomForMessages::Unusable(problem)) => self.no(&question, &problem)?,
            Err(error) => self.failed(&question, &error)?,
        }
        let server = whoami.user_id.split_once(':').map_or("", |(_, server)| server);
        for approver in &notification.approvers {
            if approver.server_name() != server {
                let problem = format!(
                    "{} has no account on {server}: its reactions do not count; remove it from `approvers`",
                    approver.0
                );
                self.no(&format!("{name} approver"), &problem)?;
            }
        }
        Ok(())
    }
}
