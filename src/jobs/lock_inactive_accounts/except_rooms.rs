//! The members of rooms who are never locked.

use super::keys::Keys;
use crate::jobs::job::PlanError;
use crate::synapse::{self, Identity, Reader, UserSet};
use crate::values::matrix_id::RoomName;

/// The members of all rooms in `except_rooms`.
pub(super) struct ExceptedMembers(Vec<UserSet>);

impl ExceptedMembers {
    /// Reads the members of each room; a room that cannot be read must not make its members lose their protection.
    pub async fn read(
        keys: &Keys,
        reader: &Reader,
        identity: &Identity,
    ) -> Result<Self, PlanError> {
        let mut rooms = Vec::new();
        for room in &keys.except_rooms {
            rooms.push(members(reader, &identity.server_name, room).await?);
        }
        Ok(Self(rooms))
    }

    pub fn contain(&self, user_id: &str) -> bool {
        self.0.iter().any(|members| members.contains(user_id))
    }
}

/// The members of a room, of whom at least one is local.
pub(super) async fn members(
    reader: &Reader,
    server_name: &str,
    RoomName(room): &RoomName,
) -> Result<UserSet, PlanError> {
    let unreadable = |error: synapse::Error| match error.is_not_found() || error.is_about_target() {
        true => PlanError::Refused(format!(
            "`except_rooms` names {room}, which Synapse does not know or cannot read ({}): correct or remove it",
            error.message()
        )),
        false => PlanError::Synapse(error),
    };
    let room_id = match room.starts_with('#') {
        true => reader.resolve_alias(room).await.map_err(unreadable)?,
        false => room.clone(),
    };
    let members = reader.joined_members(&room_id).await.map_err(unreadable)?;
    let is_local =
        |user: &str| user.split_once(':').is_some_and(|(_, server)| server == server_name);
    if !members.ids().any(is_local) {
        return Err(PlanError::Refused(format!(
            "`except_rooms` names {room}, which has no local members and protects nobody: correct or remove it"
        )));
    }
    Ok(members)
}
