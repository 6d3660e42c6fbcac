//! Fields of responses whose form varies, or must not be trusted.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufReader, Read};
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::values::clock::Timestamp;

/// A scalar value. An array or an object becomes [`Scalar::Other`] without being kept in memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Unsigned(u64),
    Negative(i64),
    Text(String),
    #[default]
    Other,
}

impl Scalar {
    pub(super) fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns an integer, also one that is written as a string, as power levels of old rooms are.
    pub(super) fn to_integer(&self) -> Option<i64> {
        match self {
            Self::Unsigned(number) => i64::try_from(*number).ok(),
            Self::Negative(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;

        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar::Unsigned(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(u64::try_from(value).map_or(Scalar::Negative(value), Scalar::Unsigned))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Scalar, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Scalar, A::Error> {
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }

        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// A boolean: SQLite, and older versions of Synapse, return 0 and 1 for some of them; null counts as false.
pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Bool(flag) => Ok(flag),
        Scalar::Unsigned(number) => Ok(number != 0),
        Scalar::Negative(_) => Ok(true),
        Scalar::Null => Ok(false),
        other => Err(D::Error::custom(format!("expected a boolean, found {other:?}"))),
    }
}

/// An id of Matrix or Synapse. They have 255 bytes at most; a far longer one would fill history and log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
struct Id(String);

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const MAX_BYTES: usize = 1024;
        if text.len() <= MAX_BYTES {
            Ok(Self(text))
        } else {
            Err(format!("an id of {} bytes is too long", text.len()))
        }
    }
}

pub(super) fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Id::deserialize(deserializer)?.0)
}

/// An id or null.
pub(super) fn optional_id<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Ok(Option::<Id>::deserialize(deserializer)?.map(|id| id.0))
}

pub(super) fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    /// More than the members of any room and the files of any media purge.
    const MAX_IDS: usize = 2_000_000;
    struct IdsVisitor;

    impl<'de> Visitor<'de> for IdsVisitor {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of ids")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<String>, A::Error> {
            let mut ids = Vec::new();
            while let Some(Id(id)) = items.next_element()? {
                if ids.len() == MAX_IDS {
                    return Err(A::Error::custom("the list has more than 2,000,000 ids"));
                }
                ids.push(id);
            }
            Ok(ids)
        }
    }

    deserializer.deserialize_seq(IdsVisitor)
}

/// A number of items or bytes: a negative one or null counts as 0, one beyond any real value as a limit far above that.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(optional_count(deserializer)?.unwrap_or(0))
}

/// The same, but null counts as `None`.
pub(super) fn optional_count<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    /// Fits into the integers of JSON and SQLite; a `u64` holds the sum of four thousand of them.
    const MAX: u64 = 1 << 52;
    match Scalar::deserialize(deserializer)? {
        Scalar::Unsigned(number) => Ok(Some(number.min(MAX))),
        Scalar::Negative(_) => Ok(Some(0)),
        Scalar::Null => Ok(None),
        other => Err(D::Error::custom(format!("expected an integer, found {other:?}"))),
    }
}

/// A time in milliseconds since 1970; null, 0 and negative numbers count as `None`, and what no clock shows as the end of time.
pub(super) fn milliseconds<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Timestamp>, D::Error> {
    time(deserializer, 1)
}

/// The same in seconds.
pub(super) fn seconds<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Timestamp>, D::Error> {
    time(deserializer, 1000)
}

fn time<'de, D: Deserializer<'de>>(
    deserializer: D,
    unit_ms: i64,
) -> Result<Option<Timestamp>, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Unsigned(0) | Scalar::Negative(_) | Scalar::Null => Ok(None),
        Scalar::Unsigned(number) => {
            let ms = i64::try_from(number).ok().and_then(|number| number.checked_mul(unit_ms));
            let at = ms.and_then(Timestamp::from_timestamp_millis);
            Ok(Some(at.unwrap_or(Timestamp::MAX_UTC)))
        }
        other => Err(D::Error::custom(format!("expected a time, found {other:?}"))),
    }
}

/// The integer of a field that may contain anything; `None` for any other type.
pub(super) fn optional_integer<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<i64>, D::Error> {
    Ok(Scalar::deserialize(deserializer)?.to_integer())
}

/// The text of a field that may contain anything; `None` for any other type.
pub(super) fn optional_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Ok(Scalar::deserialize(deserializer)?.into_text())
}

/// Visits scalars as the default of the visitor's value.
macro_rules! scalars_are_default {
    () => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Default::default())
        }

        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(Default::default())
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }

        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }

        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
    };
}

/// An event of 64 KiB, the limit of Matrix, holds fewer entries; more are ignored.
const MAX_ENTRIES: usize = 20_000;

/// The texts of a list; anything else in it, or instead of it, is ignored.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct TextsVisitor;

    impl<'de> Visitor<'de> for TextsVisitor {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any value")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<String>, A::Error> {
            let mut texts = Vec::new();
            while let Some(item) = items.next_element::<Scalar>()? {
                texts.extend(item.into_text().filter(|_| texts.len() < MAX_ENTRIES));
            }
            Ok(texts)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Vec<String>, A::Error> {
            while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(Vec::new())
        }

        scalars_are_default!();
    }

    deserializer.deserialize_any(TextsVisitor)
}

/// The integers of an object by their keys; anything else in it, or instead of it, is ignored.
pub(super) fn integers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<HashMap<String, i64>, D::Error> {
    struct IntegersVisitor;

    impl<'de> Visitor<'de> for IntegersVisitor {
        type Value = HashMap<String, i64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any value")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            Ok(HashMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut integers = HashMap::new();
            while let Some((key, value)) = entries.next_entry::<String, Scalar>()? {
                if integers.len() < MAX_ENTRIES {
                    integers.extend(value.to_integer().map(|integer| (key, integer)));
                }
            }
            Ok(integers)
        }

        scalars_are_default!();
    }

    deserializer.deserialize_any(IntegersVisitor)
}

/// An object; the default of `T` for anything else.
pub(super) fn object_or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    struct ObjectVisitor<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for ObjectVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any value")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<T, A::Error> {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            Ok(T::default())
        }

        fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(entries))
        }

        scalars_are_default!();
    }

    deserializer.deserialize_any(ObjectVisitor(PhantomData))
}

/// Parses a response while it is read, without its JSON form in memory.
pub(super) fn parse<S>(body: impl Read, seed: S) -> Result<(), serde_json::Error>
where
    S: for<'de> DeserializeSeed<'de, Value = ()>,
{
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(body));
    seed.deserialize(&mut json)?;
    json.end()
}

/// The value of one entry of an object, which must be there.
pub(super) struct At<S>(pub &'static str, pub S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for At<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for At<S> {
    type Value = S::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with {}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<S::Value, A::Error> {
        let Self(name, seed) = self;
        let (mut seed, mut found) = (Some(seed), None);
        while let Some(key) = entries.next_key::<String>()? {
            match seed.take_if(|_| key == name) {
                Some(seed) => found = Some(entries.next_value_seed(seed)?),
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        found.ok_or_else(|| A::Error::missing_field(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_flags_accept_what_synapse_returns_and_nothing_else() {
        #[derive(Deserialize)]
        struct Row {
            #[serde(default, deserialize_with = "optional_count")]
            count: Option<u64>,
            #[serde(default, deserialize_with = "flag")]
            flag: bool,
        }
        let row = |text: &str| {
            serde_json::from_str::<Row>(text)
                .map(|row| (row.count, row.flag))
                .map_err(|error| error.to_string().split(" at line").next().unwrap().to_owned())
        };
        assert_eq!(row(r#"{"count": 5, "flag": 1}"#), Ok((Some(5), true)));
        assert_eq!(row(r#"{"count": -5, "flag": true}"#), Ok((Some(0), true)));
        assert_eq!(row(r#"{"count": null, "flag": null}"#), Ok((None, false)));
        assert_eq!(row(r#"{"count": 18446744073709551615}"#), Ok((Some(1 << 52), false)));
        assert_eq!(row(r#"{"count": [[0], {}]}"#), Err("expected an integer, found Other".into()));
        assert_eq!(
            row(r#"{"flag": "yes"}"#),
            Err("expected a boolean, found Text(\"yes\")".into())
        );
    }

    #[test]
    fn fields_of_room_state_may_contain_anything() {
        #[derive(Default, Deserialize)]
        struct Content {
            #[serde(default, deserialize_with = "optional_text")]
            text: Option<String>,
            #[serde(default, deserialize_with = "texts")]
            texts: Vec<String>,
            #[serde(default, deserialize_with = "integers")]
            integers: HashMap<String, i64>,
        }
        #[derive(Deserialize)]
        struct Event {
            #[serde(default, deserialize_with = "object_or_default")]
            content: Content,
        }
        let read = |content: &str| {
            let event: Event =
                serde_json::from_str(&format!(r#"{{"content": {content}}}"#)).unwrap();
            let mut integers: Vec<_> = event.content.integers.into_iter().collect();
            integers.sort();
            (event.content.text, event.content.texts, integers)
        };
        let nothing = (None, vec![], vec![]);
        for content in ["null", "5", "-5", "1.5", "true", "\"x\"", "[1, [2]]", "{}"] {
            assert_eq!(read(content), nothing, "{content}");
        }
        for field in ["null", "5", "-5", "1.5", "true"] {
            let content = format!(r#"{{"text": {field}, "texts": {field}, "integers": {field}}}"#);
            assert_eq!(read(&content), nothing, "{content}");
        }
        assert_eq!(
            read(
                r#"{"text": "a", "texts": ["b", 5, ["c"], {"d": 1}, "e"],
                "integers": {"f": 1, "g": "2", "h": [3], "i": 18446744073709551615, "j": -4}}"#
            ),
            (
                Some("a".to_owned()),
                vec!["b".to_owned(), "e".to_owned()],
                vec![("f".to_owned(), 1), ("g".to_owned(), 2), ("j".to_owned(), -4)]
            )
        );
        assert_eq!(read(r#"{"text": ["a"], "texts": {"b": 1}, "integers": ["c"]}"#), nothing);
    }
}
