//! Values by user id, in little memory: a room may have hundreds of thousands of members.

use std::fmt;

/// Of a user id, which may not be longer than 255 bytes; the text of all of them is one string.
#[derive(Debug, Clone, Copy)]
struct Entry<V> {
    start: u32,
    length: u16,
    value: V,
}

/// A map from user ids, which is filled once and then only read.
#[derive(Clone)]
pub struct UserMap<V> {
    ids: String,
    /// Sorted by id.
    entries: Vec<Entry<V>>,
}

pub type UserSet = UserMap<()>;

/// More than the members of any room.
pub(super) const MAX_USERS: usize = 2_000_000;

/// Collects the entries of a map.
pub(super) struct UserMapBuilder<V>(UserMap<V>);

#[derive(Debug, thiserror::Error)]
pub(super) enum TooMuch {
    #[error("the list has more than 2,000,000 ids")]
    Users,
    #[error("an id of {0} bytes is too long")]
    Id(usize),
}

impl<V: Copy> UserMapBuilder<V> {
    pub(super) fn new() -> Self {
        Self(UserMap { ids: String::new(), entries: Vec::new() })
    }

    pub(super) fn insert(&mut self, id: &str, value: V) -> Result<(), TooMuch> {
        const MAX_BYTES: usize = 1024;
        let UserMap { ids, entries } = &mut self.0;
        let too_long = || TooMuch::Id(id.len());
        let length = u16::try_from(id.len()).map_err(|_| too_long())?;
        if id.len() > MAX_BYTES {
            return Err(too_long());
        }
        if entries.len() == MAX_USERS {
            return Err(TooMuch::Users);
        }
        let start = u32::try_from(ids.len()).map_err(|_| TooMuch::Users)?;
        ids.push_str(id);
        entries.push(Entry { start, length, value });
        Ok(())
    }

    /// Of several entries for one id, the last one counts.
    pub(super) fn build(self) -> UserMap<V> {
        let UserMap { ids, mut entries } = self.0;
        entries.sort_by(|a, b| text(&ids, a).cmp(text(&ids, b)));
        entries.dedup_by(|later, earlier| {
            let is_same = text(&ids, later) == text(&ids, earlier);
            if is_same {
                *earlier = *later;
            }
            is_same
        });
        UserMap { ids, entries }
    }
}

fn text<'a, V>(ids: &'a str, entry: &Entry<V>) -> &'a str {
    let start = entry.start as usize;
    ids.get(start..start + usize::from(entry.length)).unwrap_or_default()
}

impl<V> UserMap<V> {
    pub fn get(&self, id: &str) -> Option<&V> {
        let found = self.entries.binary_search_by(|entry| text(&self.ids, entry).cmp(id)).ok()?;
        self.entries.get(found).map(|entry| &entry.value)
    }

    pub fn contains(&self, id: &str) -> bool {
        self.get(id).is_some()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| text(&self.ids, entry))
    }
}

impl<V: fmt::Debug> fmt::Debug for UserMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.entries.iter().map(|entry| (text(&self.ids, entry), &entry.value)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_an_id_counts() {
        let mut builder = UserMapBuilder::new();
        for (id, value) in [("@b:hs", 1), ("@a:hs", 2), ("@b:hs", 3), ("", 4)] {
            builder.insert(id, value).unwrap();
        }
        let map = builder.build();
        assert_eq!(format!("{map:?}"), r#"{"": 4, "@a:hs": 2, "@b:hs": 3}"#);
        assert_eq!((map.get("@b:hs"), map.get("@c:hs"), map.len()), (Some(&3), None, 3));
    }

    #[test]
    fn a_member_takes_little_more_than_its_id() {
        let mut builder = UserMapBuilder::new();
        for number in 0..10_000 {
            builder.insert(&format!("@user{number:06}:example.com"), ()).unwrap();
        }
        let map = builder.build();
        assert_eq!((map.ids.len(), size_of::<Entry<()>>()), (230_000, 8));
    }

    #[test]
    fn an_id_beyond_any_real_length_is_an_error() {
        let mut builder = UserMapBuilder::new();
        let mut error = |length| builder.insert(&"x".repeat(length), ()).unwrap_err().to_string();
        assert_eq!(error(1025), "an id of 1025 bytes is too long");
        assert_eq!(error(100_000), "an id of 100000 bytes is too long");
    }
}
