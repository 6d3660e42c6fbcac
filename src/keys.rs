//! Config tables as typed keys: reading one collects every mistake, and `kinds` prints the same definition.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::words::nearest;

/// Something wrong in the config: where it is, what it is and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Bytes of the config text.
    pub span: Range<usize>,
    pub text: String,
}

impl Mistake {
    pub fn new(span: Range<usize>, text: impl Into<String>) -> Self {
        Self { span, text: text.into() }
    }
}

/// A key as it is documented; made by [`keys!`](crate::keys!) from the struct that is parsed.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    /// What a user has to write.
    pub value: fn() -> String,
    /// The default as TOML; `None` for a required key and for one that may be absent.
    pub default: Option<&'static str>,
    pub required: bool,
    pub about: &'static str,
}

/// A type that a config key can have.
pub trait Value: Sized {
    /// What a user has to write, as shown by `kinds` and in mistakes: "a length of time such as \"90d\"".
    const TYPE: &'static str;
    const OPTIONAL: bool = false;

    /// The same with what a list holds.
    fn describe() -> String {
        Self::TYPE.to_owned()
    }

    /// Reads the value, or adds at least one mistake.
    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self>;

    /// What an absent key without a default means; `None` where it must be there.
    fn absent() -> Option<Self> {
        None
    }
}

/// A table of the config, with the place that a missing key is reported at.
pub struct Table<'a, 'i> {
    pub entries: &'a DeTable<'i>,
    pub span: Range<usize>,
}

impl Table<'_, '_> {
    /// Where the key's value stands, or the table's own place.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        self.entries.get(key).map_or_else(|| self.span.clone(), Spanned::span)
    }

    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Reads one key; an absent one takes its default.
    pub fn read<T: Value>(
        &self,
        key: &str,
        default: Option<&str>,
        mistakes: &mut Vec<Mistake>,
    ) -> Option<T> {
        if let Some(value) = self.entries.get(key) {
            return T::read(value, mistakes);
        }
        if let Some(default) = default {
            return from_default(default);
        }
        let absent = T::absent();
        if absent.is_none() {
            mistakes.push(Mistake::new(
                self.span.clone(),
                format!("`{key}` is missing: add `{key} = …`, {}", T::describe()),
            ));
        }
        absent
    }

    /// Reports each of these lists that is there and holds nothing.
    pub fn reject_empty(&self, lists: &[&str], mistakes: &mut Vec<Mistake>) {
        for name in lists {
            let value = self.entries.get(*name);
            if value
                .is_some_and(|value| value.get_ref().as_array().is_some_and(|list| list.is_empty()))
            {
                mistakes.push(Mistake::new(
                    self.span_of(name),
                    format!("`{name}` is empty: it needs at least one entry"),
                ));
            }
        }
    }

    /// Reports the keys that are in none of the lists.
    pub fn reject_unknown(&self, known: &[&[Key]], mistakes: &mut Vec<Mistake>) {
        let names: Vec<&str> =
            known.iter().flat_map(|keys| keys.iter().map(|key| key.name)).collect();
        for key in self.entries.keys() {
            let name = key.get_ref().as_ref();
            if !names.contains(&name) {
                mistakes.push(unknown_key(key.span(), name, &names));
            }
        }
    }
}

/// A default of the table of keys; those are tested to be readable.
pub fn from_default<T: Value>(default: &str) -> Option<T> {
    T::read(&DeValue::parse(default).ok()?, &mut Vec::new())
}

pub fn unknown_key(span: Range<usize>, name: &str, known: &[&str]) -> Mistake {
    let hint = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("expected one of: {}", known.join(", ")),
    };
    Mistake::new(span, format!("unknown key `{name}`, {hint}"))
}

/// Reads a string that parses itself; the parser's error says what to write instead.
pub fn read_text<T>(
    value: &Spanned<DeValue<'_>>,
    expected: &str,
    mistakes: &mut Vec<Mistake>,
) -> Option<T>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let Some(text) = value.get_ref().as_str() else {
        mistakes.push(wrong_type(value, expected));
        return None;
    };
    text.parse().map_err(|error| mistakes.push(Mistake::new(value.span(), format!("{error}")))).ok()
}

pub fn wrong_type(value: &Spanned<DeValue<'_>>, expected: &str) -> Mistake {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    Mistake::new(value.span(), format!("expected {expected}, found {found}"))
}

/// Makes types whose config value is a string that parses itself readable.
#[macro_export]
macro_rules! text_values {
    ($($type:ty: $expected:literal;)+) => { $(
        impl $crate::keys::Value for $type {
            const TYPE: &'static str = $expected;
            fn read(value: &toml::Spanned<toml::de::DeValue<'_>>, mistakes: &mut Vec<$crate::keys::Mistake>) -> Option<Self> {
                $crate::keys::read_text(value, Self::TYPE, mistakes)
            }
        }
    )+ };
}

text_values! { String: "a string"; std::path::PathBuf: "a path as a string"; }

impl Value for bool {
    const TYPE: &'static str = "true or false";

    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let read = value.get_ref().as_bool();
        if read.is_none() {
            mistakes.push(wrong_type(value, Self::TYPE));
        }
        read
    }
}

impl Value for u32 {
    const TYPE: &'static str = "a whole number of at least 1";

    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        match value
            .get_ref()
            .as_integer()
            .map(|number| u32::from_str_radix(number.as_str(), number.radix()))
        {
            Some(Ok(number)) if number >= 1 => return Some(number),
            Some(_) => {
                mistakes.push(Mistake::new(value.span(), format!("expected {}", Self::TYPE)));
            }
            None => mistakes.push(wrong_type(value, Self::TYPE)),
        }
        None
    }
}

impl Value for u16 {
    const TYPE: &'static str = "a whole number from 0 to 65535";

    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        match value
            .get_ref()
            .as_integer()
            .map(|number| Self::from_str_radix(number.as_str(), number.radix()))
        {
            Some(Ok(number)) => return Some(number),
            Some(Err(_)) => {
                mistakes.push(Mistake::new(value.span(), format!("expected {}", Self::TYPE)));
            }
            None => mistakes.push(wrong_type(value, Self::TYPE)),
        }
        None
    }
}

/// A number of things a second, above 0 and up to a million.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate(pub f64);

impl Value for Rate {
    const TYPE: &'static str = "a number above 0";

    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let number: Option<f64> = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().parse().ok(),
            DeValue::Float(number) => number.as_str().parse().ok(),
            _ => {
                mistakes.push(wrong_type(value, Self::TYPE));
                return None;
            }
        };
        let rate = number.filter(|rate| *rate > 0.0 && *rate <= 1e6).map(Self);
        if rate.is_none() {
            mistakes.push(Mistake::new(
                value.span(),
                format!("expected {}, at most a million", Self::TYPE),
            ));
        }
        rate
    }
}

/// A limit that can be lifted by the word "unlimited".
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit<T> {
    Of(T),
    Unlimited,
}

impl<T: Copy> Limit<T> {
    pub fn number(self) -> Option<T> {
        match self {
            Self::Of(number) => Some(number),
            Self::Unlimited => None,
        }
    }
}

macro_rules! limits {
    ($($number:ty: $expected:literal;)+) => { $(
        impl Value for Limit<$number> {
            const TYPE: &'static str = $expected;

            fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
                match value.get_ref().as_str() {
                    Some("unlimited") => Some(Self::Unlimited),
                    Some(_) => {
                        mistakes.push(Mistake::new(value.span(), format!("expected {}", Self::TYPE)));
                        None
                    }
                    None => <$number>::read(value, mistakes).map(Self::Of),
                }
            }
        }
    )+ };
}

limits! { u32: "a whole number of at least 1, or \"unlimited\""; Rate: "a number above 0, or \"unlimited\""; }

impl<T: Value> Value for Option<T> {
    const TYPE: &'static str = T::TYPE;
    const OPTIONAL: bool = true;

    fn describe() -> String {
        T::describe()
    }

    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        T::read(value, mistakes).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// A value with its place, for mistakes that are found only when several keys are looked at together.
impl<T: Value> Value for Spanned<T> {
    const TYPE: &'static str = T::TYPE;

    fn describe() -> String {
        T::describe()
    }

    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        T::read(value, mistakes).map(|inner| Self::new(value.span(), inner))
    }
}

/// A list whose items are all looked at, so that each mistake in it is reported.
impl<T: Value> Value for Vec<T> {
    const TYPE: &'static str = "a list";

    fn describe() -> String {
        format!("a list, each of it {}", T::describe())
    }

    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let Some(items) = value.get_ref().as_array() else {
            mistakes.push(wrong_type(value, &Self::describe()));
            return None;
        };
        let read: Vec<Option<T>> = items.iter().map(|item| T::read(item, mistakes)).collect();
        read.into_iter().collect()
    }
}

/// Any TOML value as JSON, for bodies that are sent as they are.
impl Value for serde_json::Value {
    const TYPE: &'static str = "any value";

    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.as_ref().into()),
            DeValue::Boolean(flag) => Some((*flag).into()),
            DeValue::Datetime(date) => Some(date.to_string().into()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| {
                    mistakes
                        .push(Mistake::new(value.span(), "this number does not fit into 64 bits"));
                })
                .ok()
                .map(Self::from),
            DeValue::Float(number) => {
                let number = number.as_str().parse().ok().and_then(serde_json::Number::from_f64);
                if number.is_none() {
                    mistakes.push(Mistake::new(value.span(), "JSON has no such number"));
                }
                number.map(Self::Number)
            }
            DeValue::Array(_) => Vec::<Self>::read(value, mistakes).map(Self::Array),
            DeValue::Table(table) => table
                .iter()
                .map(|(key, item)| Some((key.get_ref().to_string(), Self::read(item, mistakes)?)))
                .collect::<Option<serde_json::Map<String, Self>>>()
                .map(Self::Object),
        }
    }
}

/// Defines a struct that is read from a config table, and the documentation of its keys.
///
/// A field's doc comment is the text that `kinds` prints, its `= "…"` the default as TOML. `read` reports every mistake,
/// not just the first; a key that is not a field is for the caller to reject, who may share the table among several structs.
#[macro_export]
macro_rules! keys {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[doc = $about:literal])+ pub $field:ident: $type:ty $(= $default:literal)?,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $name {
            $($(#[doc = $about])+ pub $field: $type,)*
        }

        impl $name {
            pub const KEYS: &'static [$crate::keys::Key] = &[$($crate::keys::Key {
                name: stringify!($field),
                value: <$type as $crate::keys::Value>::describe,
                default: $crate::keys!(@default $($default)?),
                required: !<$type as $crate::keys::Value>::OPTIONAL && $crate::keys!(@default $($default)?).is_none(),
                about: concat!($($about),+),
            },)*];

            pub fn read(table: &$crate::keys::Table<'_, '_>, mistakes: &mut Vec<$crate::keys::Mistake>) -> Option<Self> {
                $(let $field = table.read::<$type>(stringify!($field), $crate::keys!(@default $($default)?), mistakes);)*
                Some(Self { $($field: $field?,)* })
            }
        }
    };
    (@default) => { None::<&'static str> };
    (@default $default:literal) => { Some($default) };
}
