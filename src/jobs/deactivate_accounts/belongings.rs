//! What goes with an account.

use std::collections::HashSet;

use crate::jobs::account::Account;
use crate::jobs::unused_account::Memory;
use crate::synapse::{Device, Error, Reader, display_line};
use crate::values::text::{format_count, join_some};

/// The rooms in which only one local user is: without that one, nobody can read or join a local room any more.
pub(super) async fn rooms_of_one(reader: &Reader) -> Result<HashSet<String>, Error> {
    let rooms = reader.rooms().await?.into_iter();
    Ok(rooms.filter(|room| room.joined_local_members == 1).map(|room| room.room_id).collect())
}

/// `@a:hs (locked 2026-01-02, 2 devices: "Phone", ABCDEF, a key backup, 3 invitations, the last member of 1 room: !id)`.
pub(super) async fn describe(
    reader: &Reader,
    account: &Account,
    memory: Memory,
    rooms_of_one: &HashSet<String>,
) -> Result<String, Error> {
    let user_id = &account.user.name;
    let rooms = reader.rooms_of_user(user_id).await?;
    let mut parts = Vec::new();
    parts.extend(memory.locked_at().map(|at| format!("locked {}", at.format("%Y-%m-%d"))));
    parts.extend(devices(&account.devices));
    if reader.has_key_backup(user_id).await? {
        parts.push("a key backup".to_owned());
    }
    if rooms.invitations > 0 {
        parts.push(format_count(rooms.invitations, "invitation", "invitations"));
    }
    let mut left_empty: Vec<&str> = rooms
        .joined
        .iter()
        .map(String::as_str)
        .filter(|room| rooms_of_one.contains(*room))
        .collect();
    left_empty.sort_unstable();
    if !left_empty.is_empty() {
        let count = format_count(left_empty.len() as u64, "room", "rooms");
        parts.push(format!("the last local member of {count}: {}", join_some(&left_empty)));
    }
    Ok(format!("{user_id} ({})", parts.join(", ")))
}

/// `2 devices: "Phone", ABCDEF`; `None` without devices.
fn devices(devices: &[Device]) -> Vec<String> {
    const MAX_CHARS: usize = 40;
    let shown = |device: &Device| match device.display_name.as_deref().map(str::trim) {
        None | Some("") => display_line(&device.id, MAX_CHARS),
        Some(name) => format!("\"{}\"", display_line(name, MAX_CHARS)),
    };
    let (dehydrated, others): (Vec<&Device>, Vec<&Device>) =
        devices.iter().partition(|device| device.dehydrated);
    let mut parts = Vec::new();
    if !others.is_empty() {
        let mut names: Vec<String> = others.into_iter().map(shown).collect();
        names.sort_unstable();
        let count = format_count(names.len() as u64, "device", "devices");
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        parts.push(format!("{count}: {}", join_some(&names)));
    }
    if !dehydrated.is_empty() {
        parts.push("a dehydrated device".to_owned());
    }
    parts
}
