//! What the state of a room, or the account data of a user, uses local files for: avatars, image packs and the like.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::json::{At, Scalar, parse};
use crate::http::one_line;

/// What a file is used for; the names are those that users gave, on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Usage {
    RoomAvatar,
    AvatarThumbnail,
    /// Of the pack with this name, which may be empty.
    PackAvatar(String),
    PackImage {
        pack: String,
        shortcode: String,
    },
    /// Named anywhere in an event of this type.
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UsedFile {
    pub media_id: String,
    pub usage: Usage,
}

/// The local files that a room or a user uses, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MediaUses {
    pub files: Vec<UsedFile>,
    pub has: HasMedia,
    /// Whether there are more than [`MAX_FILES`], of which the first were kept.
    pub is_cut_off: bool,
}

/// Where a room or a user has files, or may have some later: what is there can be replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HasMedia {
    pub packs: bool,
    pub avatar: bool,
    /// Other state that names files, or of a type that is not one of Matrix.
    pub others: bool,
}

/// The files of a room, or of a user, that are kept in memory. The largest known packs have some hundred images.
pub(crate) const MAX_FILES: usize = 5000;
/// Ids of Synapse have 24 characters.
const MAX_ID: usize = 128;
const MAX_NAME: usize = 60;

pub(super) const AVATAR: &str = "m.room.avatar";
/// The second one is the name of MSC2545 when it is stable.
pub(super) const ROOM_PACKS: [&str; 2] = ["im.ponies.room_emotes", "m.room.image_pack"];
const USER_PACKS: [&str; 2] = ["im.ponies.user_emotes", "m.image_pack"];

impl MediaUses {
    pub(super) fn merge(&mut self, other: Self) {
        let Self { files, has: HasMedia { packs, avatar, others }, is_cut_off } = other;
        let known: HashSet<String> = self.files.iter().map(|file| file.media_id.clone()).collect();
        self.files.extend(files.into_iter().filter(|file| !known.contains(&file.media_id)));
        self.has.packs |= packs;
        self.has.avatar |= avatar;
        self.has.others |= others;
        self.is_cut_off |= is_cut_off;
    }
}

/// Gathers uses while the response arrives.
#[derive(Debug, Clone)]
pub(super) struct Finder {
    /// What URIs of local files begin with.
    prefix: String,
    uses: MediaUses,
    known: HashSet<String>,
}

impl Finder {
    pub(super) fn new(server_name: &str) -> Self {
        let prefix = format!("mxc://{server_name}/");
        Self { prefix, uses: MediaUses::default(), known: HashSet::new() }
    }

    pub(super) fn of_state(mut self, body: impl Read) -> Result<MediaUses, serde_json::Error> {
        parse(body, At("state", Events(&mut self)))?;
        Ok(self.uses)
    }

    pub(super) fn of_account_data(
        mut self,
        body: impl Read,
    ) -> Result<MediaUses, serde_json::Error> {
        parse(body, At("account_data", At("global", AccountData(&mut self))))?;
        Ok(self.uses)
    }

    fn add_event(&mut self, event_type: &str, state_key: &str, content: Content) {
        match event_type {
            AVATAR if state_key.is_empty() => self.uses.has.avatar = true,
            _ if ROOM_PACKS.contains(&event_type) => {
                return self.add_pack(state_key, content);
            }
            "m.room.member" => return,
            _ => {
                self.uses.has.others |= !content.files.is_empty() || !event_type.starts_with("m.");
            }
        }
        let is_avatar = event_type == AVATAR && state_key.is_empty();
        for (place, id) in content.files {
            let usage = match place {
                Place::Thumbnail if is_avatar => Usage::AvatarThumbnail,
                _ if is_avatar => Usage::RoomAvatar,
                _ => Usage::Other(one_line(event_type, MAX_NAME)),
            };
            self.add(id, usage);
        }
        self.uses.is_cut_off |= content.is_cut_off;
    }

    /// A pack's own name, or else the state key, which tells several packs of a room apart.
    fn add_pack(&mut self, state_key: &str, content: Content) {
        self.uses.has.packs = true;
        let pack = content.pack_name.unwrap_or_else(|| one_line(state_key, MAX_NAME));
        for (place, id) in content.files {
            let usage = match place {
                Place::Image(shortcode) => Usage::PackImage { pack: pack.clone(), shortcode },
                Place::PackAvatar => Usage::PackAvatar(pack.clone()),
                // Such as those of older forms of packs.
                _ => Usage::PackImage { pack: pack.clone(), shortcode: String::new() },
            };
            self.add(id, usage);
        }
        self.uses.is_cut_off |= content.is_cut_off;
    }

    fn add(&mut self, media_id: String, usage: Usage) {
        if self.known.contains(&media_id) {
            return;
        }
        if self.uses.files.len() == MAX_FILES {
            self.uses.is_cut_off = true;
            return;
        }
        self.known.insert(media_id.clone());
        self.uses.files.push(UsedFile { media_id, usage });
    }
}

/// Where in the content of an event a text is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Content,
    Info,
    Thumbnail,
    Images,
    /// Anywhere in the image with this shortcode.
    Image(String),
    Pack,
    PackAvatar,
    PackName,
    Elsewhere,
}

impl Place {
    fn below(&self, key: &str) -> Self {
        match (self, key) {
            (Self::Content, "info") => Self::Info,
            (Self::Content, "images") => Self::Images,
            (Self::Content, "pack") => Self::Pack,
            (Self::Info, "thumbnail_url") => Self::Thumbnail,
            (Self::Images, shortcode) => Self::Image(one_line(shortcode, MAX_NAME)),
            (Self::Image(_), _) => self.clone(),
            (Self::Pack, "avatar_url") => Self::PackAvatar,
            (Self::Pack, "display_name") => Self::PackName,
            _ => Self::Elsewhere,
        }
    }
}

/// The local files that the content of one event names, whatever its type, which may follow it.
#[derive(Debug, Default)]
struct Content {
    files: Vec<(Place, String)>,
    pack_name: Option<String>,
    is_cut_off: bool,
}

impl Content {
    fn add(&mut self, prefix: &str, place: &Place, text: &str) {
        if *place == Place::PackName {
            let name = one_line(text, MAX_NAME);
            self.pack_name = Some(name).filter(|name| !name.is_empty());
            return;
        }
        for (start, _) in text.match_indices(prefix) {
            let rest = text.get(start + prefix.len()..).unwrap_or_default();
            let is_end = |letter: char| !letter.is_ascii_alphanumeric() && !"-_".contains(letter);
            let id = rest.split(is_end).next().unwrap_or_default();
            if self.files.len() == MAX_FILES {
                self.is_cut_off = true;
            } else if (1..=MAX_ID).contains(&id.len()) {
                self.files.push((place.clone(), id.to_owned()));
            }
        }
    }
}

/// The events of a room's state.
struct Events<'a>(&'a mut Finder);

impl<'de> DeserializeSeed<'de> for Events<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Events<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of state events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<(), A::Error> {
        while events.next_element_seed(Event(self.0))?.is_some() {}
        Ok(())
    }
}

struct Event<'a>(&'a mut Finder);

impl<'de> DeserializeSeed<'de> for Event<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Event<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a state event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let (mut event_type, mut state_key) = (Scalar::Null, Scalar::Null);
        let mut content = Content::default();
        while let Some(key) = entries.next_key::<String>()? {
            match key.as_str() {
                "type" => event_type = entries.next_value()?,
                "state_key" => state_key = entries.next_value()?,
                "content" => {
                    let prefix = &self.0.prefix;
                    let content = &mut content;
                    entries.next_value_seed(Walk { prefix, place: &Place::Content, content })?;
                }
                _ => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        let [event_type, state_key] =
            [event_type, state_key].map(|text| text.into_text().unwrap_or_default());
        self.0.add_event(&event_type, &state_key, content);
        Ok(())
    }
}

/// The account data of a user, by its type.
struct AccountData<'a>(&'a mut Finder);

impl<'de> DeserializeSeed<'de> for AccountData<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for AccountData<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with account data")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            if !USER_PACKS.contains(&key.as_str()) {
                entries.next_value::<IgnoredAny>()?;
                continue;
            }
            let (prefix, mut content) = (&self.0.prefix, Content::default());
            let walk = Walk { prefix, place: &Place::Content, content: &mut content };
            entries.next_value_seed(walk)?;
            self.0.add_pack("", content);
        }
        Ok(())
    }
}

/// Adds the files that any text within a value names.
struct Walk<'a> {
    prefix: &'a str,
    place: &'a Place,
    content: &'a mut Content,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.content.add(self.prefix, self.place, text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { prefix, place, content } = self;
        let place = &place.below("");
        while items.next_element_seed(Walk { prefix, place, content })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Self { prefix, place, content } = self;
        while let Some(key) = entries.next_key::<String>()? {
            let place = &place.below(&key);
            entries.next_value_seed(Walk { prefix, place, content })?;
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
    use serde_json::{Value, json};

    use super::*;

    fn of_state(response: &str) -> Result<MediaUses, serde_json::Error> {
        Finder::new("hs.test").of_state(response.as_bytes())
    }

    fn event(event_type: &str, state_key: &str, content: &Value) -> Value {
        // The content comes before the type.
        let rest = json!({"type": event_type, "state_key": state_key, "sender": "@a:hs.test"});
        let text = format!("{{\"content\": {content}, {}", &rest.to_string()[1..]);
        serde_json::from_str(&text).unwrap()
    }

    fn shown(uses: &MediaUses) -> Vec<String> {
        uses.files.iter().map(|file| format!("{} {:?}", file.media_id, file.usage)).collect()
    }

    #[test]
    fn avatars_packs_and_other_state_are_told_apart() {
        let pack = json!({
            "images": {
                "cat": {"url": "mxc://hs.test/cat", "info": {"thumbnail_url": "mxc://hs.test/kitten", "w": 1.5}},
                "far": {"url": "mxc://hs.test.evil/far"},
                "odd": [null, true, -1, 1, "mxc://hs.test/odd"],
            },
            "pack": {"display_name": "Cats\n& dogs", "avatar_url": "mxc://hs.test/face"},
        });
        let state = json!({"state": [
            event("m.room.avatar", "", &json!({"url": "mxc://hs.test/avatar", "info": {"thumbnail_url": "mxc://hs.test/thumb"}})),
            event("im.ponies.room_emotes", "a", &pack),
            event("m.room.image_pack", "b", &json!({"images": {"dog": {"url": "mxc://hs.test/dog"}, "cat": {"url": "mxc://hs.test/cat"}}})),
            event("im.ponies.room_emotes", "c", &json!({"short": {"old": "mxc://hs.test/old"}})),
            event("m.room.member", "@a:hs.test", &json!({"avatar_url": "mxc://hs.test/member"})),
            event("org.example", "", &json!({"html": "<img src='mxc://hs.test/one'> mxc://hs.test/two?x"})),
            event("m.room.topic", "", &json!("mxc://hs.test/")),
        ]});
        let uses = of_state(&state.to_string()).unwrap();
        insta::assert_snapshot!(shown(&uses).join("\n"), @r#"
        thumb AvatarThumbnail
        avatar RoomAvatar
        kitten PackImage { pack: "Cats & dogs", shortcode: "cat" }
        cat PackImage { pack: "Cats & dogs", shortcode: "cat" }
        odd PackImage { pack: "Cats & dogs", shortcode: "odd" }
        face PackAvatar("Cats & dogs")
        dog PackImage { pack: "b", shortcode: "dog" }
        old PackImage { pack: "c", shortcode: "" }
        one Other("org.example")
        two Other("org.example")
        "#);
        let has = HasMedia { packs: true, avatar: true, others: true };
        assert_eq!((uses.has, uses.is_cut_off), (has, false));
        let plain = json!({"state": [event("m.room.name", "", &json!({"name": "x"}))]});
        assert_eq!(of_state(&plain.to_string()).unwrap(), MediaUses::default());
    }

    #[test]
    fn the_packs_of_a_user_are_in_the_global_account_data() {
        let pack = |id: &str| json!({"images": {"x": {"url": format!("mxc://hs.test/{id}")}}});
        let data = json!({"account_data": {
            "rooms": {"!a:hs.test": {"im.ponies.user_emotes": pack("room")}},
            "global": {"im.ponies.user_emotes": pack("old"), "m.image_pack": pack("new"), "m.direct": pack("no")},
        }});
        let uses = Finder::new("hs.test").of_account_data(data.to_string().as_bytes()).unwrap();
        let ids: Vec<&str> = uses.files.iter().map(|file| file.media_id.as_str()).collect();
        assert_eq!((ids, uses.has.packs), (vec!["old", "new"], true));
    }

    #[test]
    fn a_room_of_any_size_takes_bounded_memory() {
        let images: serde_json::Map<String, Value> = (0..=MAX_FILES)
            .map(|number| (format!("{number}"), json!({"url": format!("mxc://hs.test/f{number}")})))
            .collect();
        let long = format!("mxc://hs.test/{}", "x".repeat(MAX_ID + 1));
        let state = json!({"state": [
            event("m.room.avatar", "", &json!({"url": long})),
            event("m.room.image_pack", "", &json!({"images": images})),
        ]});
        let uses = of_state(&state.to_string()).unwrap();
        assert_eq!((uses.files.len(), uses.is_cut_off), (MAX_FILES, true));
    }

    #[test]
    fn a_response_without_state_is_not_taken_for_a_room_without_files() {
        assert!(of_state("{}").unwrap_err().to_string().starts_with("missing field `state`"));
        assert!(of_state(r#"{"state": {}}"#).is_err());
        assert!(of_state(r#"{"state": []} x"#).is_err());
        let without = br#"{"account_data": {"rooms": {}}}"#.as_slice();
        assert!(Finder::new("hs.test").of_account_data(without).is_err());
    }
}
