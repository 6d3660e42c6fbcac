//! Which local files rooms and users refer to: avatars of rooms and members, image packs and the like.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::json::{At, parse};
use super::media_uses::{AVATAR, Finder, MediaUses, ROOM_PACKS};
use super::reader::Reader;
use super::room_list::RoomRow;
use super::rooms::{MAX_MEMBER_EVENTS, ROOM_STATE, TIME_PER_MEMBER};
use crate::http::Error;

/// Local files by id, of which only hashes are kept: a homeserver may have a million avatars.
///
/// A collision, which is all but impossible, makes a file a member that is none.
#[derive(Debug, Clone)]
pub(crate) struct FileSet {
    /// What URIs of local files begin with.
    prefix: Arc<str>,
    hashes: HashSet<u64>,
}

impl FileSet {
    pub fn new(server_name: &str) -> Self {
        Self { prefix: format!("mxc://{server_name}/").into(), hashes: HashSet::new() }
    }

    pub fn contains(&self, media_id: &str) -> bool {
        self.hashes.contains(&hash(media_id))
    }

    /// Adds every local file that the text names.
    pub fn add_named(&mut self, text: &str) {
        for (start, prefix) in text.match_indices(&*self.prefix) {
            let rest = text.get(start + prefix.len()..).unwrap_or_default();
            let is_end = |letter: char| !letter.is_ascii_alphanumeric() && !"-_".contains(letter);
            self.hashes.insert(hash(rest.split(is_end).next().unwrap_or_default()));
        }
    }

    pub fn extend(&mut self, other: Self) {
        self.hashes.extend(other.hashes);
    }
}

fn hash(media_id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    media_id.hash(&mut hasher);
    hasher.finish()
}

/// Which part of a room's state to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatePart {
    /// One request, for which Synapse loads the memberships, too, and waits until it has joined the room completely.
    All,
    /// A request for each type of event that has avatars or image packs.
    AvatarsAndPacks,
}

impl Reader {
    /// Returns the local files that the current state of a room names, in any event.
    pub(crate) async fn files_in_state(
        &self,
        room: &RoomRow,
        server_name: &str,
    ) -> Result<FileSet, Error> {
        let members = u32::try_from(room.joined_members).unwrap_or(u32::MAX);
        let bounds = (MAX_MEMBER_EVENTS, TIME_PER_MEMBER.saturating_mul(members));
        let none = FileSet::new(server_name);
        let find = move |body| {
            let mut files = none.clone();
            parse(body, At("state", Named(&mut files)))?;
            Ok(files)
        };
        self.get_streamed(ROOM_STATE, &[&room.room_id], vec![], bounds, find).await
    }

    /// Returns what the current state of a room uses local files for; nothing if no local user is in it.
    ///
    /// Avatars of members are left out.
    pub(crate) async fn media_uses_of_room(
        &self,
        room: &RoomRow,
        server_name: &str,
        part: StatePart,
    ) -> Result<MediaUses, Error> {
        let members = u32::try_from(room.joined_members).unwrap_or(u32::MAX);
        let (types, extra): (&[Option<&str>], _) = match part {
            StatePart::All => (&[None], TIME_PER_MEMBER.saturating_mul(members)),
            StatePart::AvatarsAndPacks => {
                (&[Some(AVATAR), Some(ROOM_PACKS[0]), Some(ROOM_PACKS[1])], Duration::ZERO)
            }
        };
        let mut uses = MediaUses::default();
        for event_type in types {
            let query = event_type.map(|name| ("type", name.to_owned())).into_iter().collect();
            let finder = Finder::new(server_name);
            let find = move |body| finder.clone().of_state(body);
            let bounds = (MAX_MEMBER_EVENTS, extra);
            uses.merge(self.get_streamed(ROOM_STATE, &[&room.room_id], query, bounds, find).await?);
        }
        Ok(uses)
    }

    /// Returns the files of a user's own image packs (`GET /v1/users/<id>/accountdata`).
    ///
    /// The error is `M_NOT_FOUND` for an unknown account.
    pub(crate) async fn media_uses_of_user(
        &self,
        user_id: &str,
        server_name: &str,
    ) -> Result<MediaUses, Error> {
        let finder = Finder::new(server_name);
        let find = move |body| finder.clone().of_account_data(body);
        let endpoint = "/_synapse/admin/v1/users/{}/accountdata";
        let bounds = (MAX_MEMBER_EVENTS, Duration::ZERO);
        self.get_streamed(endpoint, &[user_id], vec![], bounds, find).await
    }
}

/// Adds the files that any text within a value names.
struct Named<'a>(&'a mut FileSet);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Named<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.add_named(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Named(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while entries.next_key::<IgnoredAny>()?.is_some() {
            entries.next_value_seed(Named(self.0))?;
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(response: &str) -> Result<FileSet, serde_json::Error> {
        let mut files = FileSet::new("hs.test");
        parse(response.as_bytes(), At("state", Named(&mut files)))?;
        Ok(files)
    }

    #[test]
    fn every_local_file_in_any_text_of_the_state_is_found() {
        let files = named(
            r#"{"state": [
                {"type": "m.room.avatar", "content": {"url": "mxc://hs.test/avatar", "info": {"thumbnail_url": "mxc://hs.test/thumb"}}},
                {"type": "m.room.member", "content": {"avatar_url": "mxc://other.test/remote", "n": [1, -1, 1.5, null, true]}},
                {"type": "pack", "content": {"images": {"a": {"url": "mxc:\/\/hs.test\/escaped"}}, "html": "<img src='mxc://hs.test/one'> mxc://hs.test/two?x"}}
            ], "next": "mxc://hs.test/outside"}"#,
        )
        .unwrap();
        for id in ["avatar", "thumb", "escaped", "one", "two"] {
            assert!(files.contains(id), "{id}");
        }
        for id in ["remote", "outside", "ava", ""] {
            assert!(!files.contains(id), "{id}");
        }
    }

    #[test]
    fn a_response_without_state_is_not_taken_for_a_room_without_files() {
        assert!(named("{}").unwrap_err().to_string().starts_with("missing field `state`"));
        assert!(named(r#"{"state": []}"#).is_ok());
        assert!(named("[]").is_err());
    }
}
