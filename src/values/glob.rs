//! Globs over whole Matrix ids, external ids and names: `*` and `?`, all other characters literally.

use std::convert::Infallible;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::values::schema::text_values;

/// A pattern for a whole text; `*` matches any characters.
///
/// Historical Matrix ids may contain brackets and backslashes, which therefore have no special meaning.
#[derive(Debug, Clone)]
pub struct Glob {
    pub text: String,
    matcher: WildMatch,
}

impl Glob {
    pub fn matches(&self, text: &str) -> bool {
        self.matcher.matches(text)
    }
}

impl FromStr for Glob {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self { text: text.to_owned(), matcher: WildMatch::new(text) })
    }
}

/// Whether a name is a glob, where names contain neither * nor ?.
pub fn is_glob(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// A Matrix user id or a glob over whole ids.
#[derive(Debug, Clone)]
pub struct UserGlob(pub Glob);

impl FromStr for UserGlob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('@')
            && text.len() > 1
            && !text.contains('*')
            && !text.contains('?')
            && !text.contains(':')
        {
            return Err(format!(
                "{text:?} cannot match any user: expected a whole Matrix id such as \"{text}:example.com\""
            ));
        }
        if !text.starts_with(['@', '*']) {
            return Err(format!(
                "{text:?} cannot match any user: expected a Matrix id, or a glob over whole Matrix ids, that starts with `@` or `*`, such as \"@{text}:example.com\" or \"@bot-*\""
            ));
        }
        let Ok(glob) = text.parse();
        Ok(Self(glob))
    }
}

/// A room by its id, its alias or its name, or a glob over these.
#[derive(Debug, Clone)]
pub struct RoomGlob(pub Glob);

impl FromStr for RoomGlob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty text cannot match any room".to_owned());
        }
        if text.starts_with('#') && !text.contains(['*', '?', ':']) {
            return Err(format!(
                "{text:?} cannot match any alias, which includes its server: expected a text such as \"{text}:example.com\" or \"{text}:*\""
            ));
        }
        let Ok(glob) = text.parse();
        Ok(Self(glob))
    }
}

text_values! { Glob: "a glob with * and ?"; UserGlob: "a Matrix id or a glob over whole Matrix ids, starting with @ or *"; RoomGlob: "a room id, an alias or a name, or a glob over these"; }

/// The patterns that have matched something so far: one that never does is probably a typo, and reported.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Matched(std::collections::BTreeSet<usize>);

impl Matched {
    /// Records that the pattern at `index` has matched.
    pub fn record(&mut self, index: usize) {
        self.0.insert(index);
    }

    pub fn contains(&self, index: usize) -> bool {
        self.0.contains(&index)
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }
}

/// What `users` and `except_users` decide about an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    Chosen,
    /// Matched by `users` and by `except_users`.
    Excluded,
    Unmatched,
}

/// Matches an id against the patterns, and records which of them matched.
pub fn select(id: &str, users: &[UserGlob], except: &[UserGlob], seen: &mut Matched) -> Selection {
    let (mut included, mut excluded) = (false, false);
    for (index, glob) in users.iter().chain(except).enumerate() {
        if glob.0.matches(id) {
            seen.record(index);
            if index < users.len() {
                included = true;
            } else {
                excluded = true;
            }
        }
    }
    match (included, excluded) {
        (false, _) => Selection::Unmatched,
        (true, true) => Selection::Excluded,
        (true, false) => Selection::Chosen,
    }
}

/// The patterns that matched nothing, in the order of the configuration.
pub fn unmatched<'a>(
    users: &'a [UserGlob],
    except: &'a [UserGlob],
    seen: &Matched,
) -> Vec<&'a str> {
    users
        .iter()
        .chain(except)
        .enumerate()
        .filter(|(index, _)| !seen.contains(*index))
        .map(|(_, glob)| glob.0.text.as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> UserGlob {
        text.parse().unwrap()
    }

    #[test]
    fn a_glob_matches_every_character_of_historical_ids() {
        assert!(user("@*:hs").0.matches("@a/b.c=+:hs"));
        assert!(user("@a[1]{x}\\:hs").0.matches("@a[1]{x}\\:hs"));
        assert!(!user("@a[1]:hs").0.matches("@a1:hs"));
        assert!(!user("@a*").0.matches("@ba:hs"));
        assert!(user("@b?b:hs").0.matches("@büb:hs"));
    }

    #[test]
    fn a_pattern_that_cannot_match_any_user_is_rejected() {
        insta::assert_snapshot!("bob".parse::<UserGlob>().unwrap_err(), @r#""bob" cannot match any user: expected a Matrix id, or a glob over whole Matrix ids, that starts with `@` or `*`, such as "@bob:example.com" or "@bot-*""#);
        insta::assert_snapshot!("@bob".parse::<UserGlob>().unwrap_err(), @r#""@bob" cannot match any user: expected a whole Matrix id such as "@bob:example.com""#);
    }

    #[test]
    fn a_pattern_that_cannot_match_any_room_is_rejected() {
        insta::assert_snapshot!("#lobby".parse::<RoomGlob>().unwrap_err(), @r##""#lobby" cannot match any alias, which includes its server: expected a text such as "#lobby:example.com" or "#lobby:*""##);
        for text in ["!id", "#lobby*", "Old *", "*"] {
            assert!(text.parse::<RoomGlob>().is_ok(), "{text}");
        }
    }

    #[test]
    fn exceptions_win_and_unmatched_patterns_are_named() {
        let (users, except) =
            ([user("@a*"), user("@zz*")], [user("@admin:*"), user("@admin:hs"), user("@bob:hs")]);
        let mut seen = Matched::default();
        let selected = ["@alice:hs", "@admin:hs", "@bob:hs"]
            .map(|user| select(user, &users, &except, &mut seen));
        assert_eq!(selected, [Selection::Chosen, Selection::Excluded, Selection::Unmatched]);
        assert_eq!(unmatched(&users, &except, &seen), ["@zz*"]);
    }
}
