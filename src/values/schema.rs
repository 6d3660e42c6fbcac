//! Config tables as typed keys: reading one collects every mistake, and `kinds` prints the same definition.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::values::string_enum::StringEnum;
use crate::values::text::nearest;

/// Something wrong in the config: where it is, what it is and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Bytes of the config text.
    pub span: Range<usize>,
    pub text: String,
}

impl ConfigError {
    pub fn new(span: Range<usize>, text: impl Into<String>) -> Self {
        Self { span, text: text.into() }
    }
}

/// A key as it is documented; made by `schema!` from the struct that is parsed.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    /// What a user has to write.
    pub value: fn() -> String,
    /// The default as TOML; `None` for a required key and for one that may be absent.
    pub default: Option<&'static str>,
    pub required: bool,
    /// The least and the greatest value as TOML, for numbers, durations and sizes.
    pub range: Option<(&'static str, &'static str)>,
    /// Whether the value is a number, a duration or a size, and so has to have a range.
    pub quantity: bool,
    pub about: &'static str,
}

/// A type that a config key can have.
pub trait Value: Sized {
    /// What a user has to write, as shown by `kinds` and in mistakes: "a length of time such as \"90d\"".
    const TYPE: &'static str;
    const OPTIONAL: bool = false;
    /// Whether values are numbers, durations or sizes, which have a range.
    const QUANTITY: bool = false;
    /// Whether a TOML integer may be such a value.
    const INTEGERS: bool = false;

    /// The same with what a list holds.
    fn describe() -> String {
        Self::TYPE.to_owned()
    }

    /// Reads the value, or adds at least one mistake.
    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self>;

    /// Whether the value lies in a range, whose ends are TOML and belong to it.
    fn is_within(&self, _least: &str, _greatest: &str) -> bool {
        true
    }

    /// What an absent key without a default means; `None` where it must be there.
    fn absent() -> Option<Self> {
        None
    }
}

/// Whether a value lies between two others, written as TOML.
pub fn between<T: Value + PartialOrd>(value: &T, least: &str, greatest: &str) -> bool {
    from_default::<T>(least).is_some_and(|least| *value >= least)
        && from_default::<T>(greatest).is_some_and(|greatest| *value <= greatest)
}

impl<T: StringEnum> Value for T {
    const TYPE: &'static str = <T as StringEnum>::TYPE;

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        read_text(value, <T as StringEnum>::TYPE, mistakes)
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
        mistakes: &mut Vec<ConfigError>,
    ) -> Option<T> {
        if let Some(value) = self.entries.get(key) {
            return T::parse(value, mistakes);
        }
        if let Some(default) = default {
            return from_default(default);
        }
        let absent = T::absent();
        if absent.is_none() {
            mistakes.push(ConfigError::new(
                self.span.clone(),
                format!("`{key}` is missing: add `{key} = …`, {}", T::describe()),
            ));
        }
        absent
    }

    /// Reads one key as [`Self::read`] does, and reports a value outside the key's range.
    pub fn read_within<T: Value>(
        &self,
        key: &str,
        default: Option<&str>,
        range: Option<(&str, &str)>,
        mistakes: &mut Vec<ConfigError>,
    ) -> Option<T> {
        let (Some((least, greatest)), Some(value)) = (range, self.entries.get(key)) else {
            return self.read(key, default, mistakes);
        };
        let mut own = Vec::new();
        let read = T::parse(value, &mut own);
        let out_of_range = match &read {
            Some(read) => !read.is_within(least, greatest),
            // A number that does not even fit into its type.
            None => matches!(value.get_ref(), DeValue::Integer(_)) && T::INTEGERS,
        };
        if out_of_range {
            let text = format!("expected {}, from {least} to {greatest}", T::describe());
            mistakes.push(ConfigError::new(value.span(), text));
            return None;
        }
        mistakes.append(&mut own);
        read
    }

    /// Reports each of these lists that is there and holds nothing.
    pub fn reject_empty(&self, lists: &[&str], mistakes: &mut Vec<ConfigError>) {
        for name in lists {
            let value = self.entries.get(*name);
            if value
                .is_some_and(|value| value.get_ref().as_array().is_some_and(|list| list.is_empty()))
            {
                mistakes.push(ConfigError::new(
                    self.span_of(name),
                    format!("`{name}` is empty: it needs at least one entry"),
                ));
            }
        }
    }

    /// Reports the keys that are in none of the lists.
    pub fn reject_unknown(&self, known: &[&[Key]], mistakes: &mut Vec<ConfigError>) {
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
    T::parse(&DeValue::parse(default).ok()?, &mut Vec::new())
}

pub fn unknown_key(span: Range<usize>, name: &str, known: &[&str]) -> ConfigError {
    let hint = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("expected one of: {}", known.join(", ")),
    };
    ConfigError::new(span, format!("unknown key `{name}`, {hint}"))
}

/// Reads a string that parses itself; the parser's error says what to write instead.
pub fn read_text<T>(
    value: &Spanned<DeValue<'_>>,
    expected: &str,
    mistakes: &mut Vec<ConfigError>,
) -> Option<T>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let Some(text) = value.get_ref().as_str() else {
        mistakes.push(wrong_type(value, expected));
        return None;
    };
    text.parse()
        .map_err(|error| mistakes.push(ConfigError::new(value.span(), format!("{error}"))))
        .ok()
}

pub fn wrong_type(value: &Spanned<DeValue<'_>>, expected: &str) -> ConfigError {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    ConfigError::new(value.span(), format!("expected {expected}, found {found}"))
}

/// Makes quantities whose config value is a string that parses itself readable.
macro_rules! text_quantities {
    ($($type:ty: $expected:literal;)+) => { $(
        impl $crate::values::schema::Value for $type {
            const TYPE: &'static str = $expected;
            const QUANTITY: bool = true;

            fn is_within(&self, least: &str, greatest: &str) -> bool {
                $crate::values::schema::between(self, least, greatest)
            }

            fn parse(value: &toml::Spanned<toml::de::DeValue<'_>>, mistakes: &mut Vec<$crate::values::schema::ConfigError>) -> Option<Self> {
                $crate::values::schema::read_text(value, Self::TYPE, mistakes)
            }
        }
    )+ };
}

pub(crate) use text_quantities;

/// Makes types whose config value is a string that parses itself readable.
macro_rules! text_values {
    ($($type:ty: $expected:literal;)+) => { $(
        impl $crate::values::schema::Value for $type {
            const TYPE: &'static str = $expected;
            fn parse(value: &toml::Spanned<toml::de::DeValue<'_>>, mistakes: &mut Vec<$crate::values::schema::ConfigError>) -> Option<Self> {
                $crate::values::schema::read_text(value, Self::TYPE, mistakes)
            }
        }
    )+ };
}

pub(crate) use text_values;

text_values! { String: "a string"; std::path::PathBuf: "a path as a string"; }

impl Value for bool {
    const TYPE: &'static str = "true or false";

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        let read = value.get_ref().as_bool();
        if read.is_none() {
            mistakes.push(wrong_type(value, Self::TYPE));
        }
        read
    }
}

impl Value for u32 {
    const TYPE: &'static str = "a whole number";
    const QUANTITY: bool = true;
    const INTEGERS: bool = true;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        between(self, least, greatest)
    }

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        match value
            .get_ref()
            .as_integer()
            .map(|number| u32::from_str_radix(number.as_str(), number.radix()))
        {
            Some(Ok(number)) => return Some(number),
            Some(Err(_)) => {
                mistakes.push(ConfigError::new(value.span(), format!("expected {}", Self::TYPE)));
            }
            None => mistakes.push(wrong_type(value, Self::TYPE)),
        }
        None
    }
}

impl Value for u16 {
    const TYPE: &'static str = "a whole number";
    const QUANTITY: bool = true;
    const INTEGERS: bool = true;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        between(self, least, greatest)
    }

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        match value
            .get_ref()
            .as_integer()
            .map(|number| Self::from_str_radix(number.as_str(), number.radix()))
        {
            Some(Ok(number)) => return Some(number),
            Some(Err(_)) => {
                mistakes.push(ConfigError::new(value.span(), format!("expected {}", Self::TYPE)));
            }
            None => mistakes.push(wrong_type(value, Self::TYPE)),
        }
        None
    }
}

/// A number of items per second, above 0.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

impl Rate {
    /// The time between two items.
    pub fn interval(self) -> std::time::Duration {
        std::time::Duration::try_from_secs_f64(1.0 / self.0).unwrap_or(LONGEST_INTERVAL)
    }
}

/// Stands for the interval of a rate outside the range of every key.
const LONGEST_INTERVAL: std::time::Duration = std::time::Duration::from_hours(1);

impl Value for Rate {
    const TYPE: &'static str = "a number";
    const QUANTITY: bool = true;
    const INTEGERS: bool = true;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        between(self, least, greatest)
    }

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        let number: Option<f64> = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().parse().ok(),
            DeValue::Float(number) => number.as_str().parse().ok(),
            _ => None,
        };
        if number.is_none() {
            mistakes.push(wrong_type(value, Self::TYPE));
        }
        number.map(Self)
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
            const QUANTITY: bool = true;
            const INTEGERS: bool = true;

            fn is_within(&self, least: &str, greatest: &str) -> bool {
                self.number().is_none_or(|number| number.is_within(least, greatest))
            }

            fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
                match value.get_ref().as_str() {
                    Some("unlimited") => Some(Self::Unlimited),
                    Some(_) => {
                        mistakes.push(ConfigError::new(value.span(), format!("expected {}", Self::TYPE)));
                        None
                    }
                    None => <$number>::parse(value, mistakes).map(Self::Of),
                }
            }
        }
    )+ };
}

limits! { u32: "\"unlimited\" or a whole number"; Rate: "\"unlimited\" or a number"; }

impl<T: Value> Value for Option<T> {
    const TYPE: &'static str = T::TYPE;
    const OPTIONAL: bool = true;
    const QUANTITY: bool = T::QUANTITY;
    const INTEGERS: bool = T::INTEGERS;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        self.as_ref().is_none_or(|value| value.is_within(least, greatest))
    }

    fn describe() -> String {
        T::describe()
    }

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        T::parse(value, mistakes).map(Some)
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

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        T::parse(value, mistakes).map(|inner| Self::new(value.span(), inner))
    }
}

/// A list whose items are all looked at, so that each mistake in it is reported.
impl<T: Value> Value for Vec<T> {
    const TYPE: &'static str = "a list";
    const QUANTITY: bool = T::QUANTITY;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        self.iter().all(|item| item.is_within(least, greatest))
    }

    fn describe() -> String {
        format!("a list, each of it {}", T::describe())
    }

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        let Some(items) = value.get_ref().as_array() else {
            mistakes.push(wrong_type(value, &Self::describe()));
            return None;
        };
        let read: Vec<Option<T>> = items.iter().map(|item| T::parse(item, mistakes)).collect();
        read.into_iter().collect()
    }
}

/// Any TOML value as JSON, for bodies that are sent as they are.
impl Value for serde_json::Value {
    const TYPE: &'static str = "any value";

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.as_ref().into()),
            DeValue::Boolean(flag) => Some((*flag).into()),
            DeValue::Datetime(date) => Some(date.to_string().into()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| {
                    mistakes.push(ConfigError::new(
                        value.span(),
                        "this number does not fit into 64 bits",
                    ));
                })
                .ok()
                .map(Self::from),
            DeValue::Float(number) => {
                let number = number.as_str().parse().ok().and_then(serde_json::Number::from_f64);
                if number.is_none() {
                    mistakes.push(ConfigError::new(value.span(), "JSON has no such number"));
                }
                number.map(Self::Number)
            }
            DeValue::Array(_) => Vec::<Self>::parse(value, mistakes).map(Self::Array),
            DeValue::Table(table) => table
                .iter()
                .map(|(key, item)| Some((key.get_ref().to_string(), Self::parse(item, mistakes)?)))
                .collect::<Option<serde_json::Map<String, Self>>>()
                .map(Self::Object),
        }
    }
}

/// Defines a struct that is read from a config table, and the documentation of its keys.
///
/// A field's doc comment is the text that `kinds` prints, its `where "…" to "…"` the range and its `= "…"` the default as
/// TOML. `parse` reports every mistake,
/// not just the first; a key that is not a field is for the caller to reject, who may share the table among several structs.
macro_rules! schema {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[doc = $about:literal])+ pub $field:ident: $type:ty $(where $least:literal to $greatest:literal)? $(= $default:literal)?,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        pub struct $name {
            $($(#[doc = $about])+ pub $field: $type,)*
        }

        impl $name {
            pub const KEYS: &'static [$crate::values::schema::Key] = &[$($crate::values::schema::Key {
                name: stringify!($field),
                value: <$type as $crate::values::schema::Value>::describe,
                default: $crate::values::schema::schema!(@default $($default)?),
                required: !<$type as $crate::values::schema::Value>::OPTIONAL && $crate::values::schema::schema!(@default $($default)?).is_none(),
                range: $crate::values::schema::schema!(@range $($least $greatest)?),
                quantity: <$type as $crate::values::schema::Value>::QUANTITY,
                about: concat!($($about),+),
            },)*];

            pub fn parse(table: &$crate::values::schema::Table<'_, '_>, mistakes: &mut Vec<$crate::values::schema::ConfigError>) -> Option<Self> {
                $(let $field = table.read_within::<$type>(stringify!($field), $crate::values::schema::schema!(@default $($default)?), $crate::values::schema::schema!(@range $($least $greatest)?), mistakes);)*
                Some(Self { $($field: $field?,)* })
            }
        }
    };
    (@range) => { None::<(&'static str, &'static str)> };
    (@range $least:literal $greatest:literal) => { Some(($least, $greatest)) };
    (@default) => { None::<&'static str> };
    (@default $default:literal) => { Some($default) };
}

pub(crate) use schema;
