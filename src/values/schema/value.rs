//! What a type must know to be the value of a key.

use std::fmt::Display;
use std::str::FromStr;

use toml::Spanned;
use toml::de::DeValue;

use super::error::{ConfigError, wrong_type};
use crate::values::string_enum::StringEnum;

/// A type that the value of a key can have.
pub trait Value: Sized {
    /// What a user has to write, as shown by `kinds` and in errors: "a duration such as \"90d\"".
    const TYPE: &'static str;
    const OPTIONAL: bool = false;
    /// Whether values are numbers, durations or sizes, which have a range.
    const QUANTITY: bool = false;
    /// Whether a TOML integer may be such a value.
    const INTEGERS: bool = false;

    /// [`Self::TYPE`], with the items of a list.
    fn describe() -> String {
        Self::TYPE.to_owned()
    }

    /// Parses the value, or adds at least one error.
    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self>;

    /// The value in one spelling, for fingerprints; never a secret.
    ///
    /// By default as it is written: right for types that have one spelling of each value.
    fn canonical(&self, written: &Spanned<DeValue<'_>>) -> serde_json::Value {
        as_written(written.get_ref())
    }

    /// Whether the value lies in a range, whose ends are TOML and belong to it.
    fn is_within(&self, _least: &str, _greatest: &str) -> bool {
        true
    }

    /// What an absent key without a default means; `None` for a required key.
    fn absent() -> Option<Self> {
        None
    }
}

/// Whether a value lies between two others, written as TOML.
pub fn between<T: Value + PartialOrd>(value: &T, least: &str, greatest: &str) -> bool {
    let end = |text: &str| T::parse(&DeValue::parse(text).ok()?, &mut Vec::new());
    end(least).is_some_and(|least| *value >= least)
        && end(greatest).is_some_and(|greatest| *value <= greatest)
}

fn as_written(value: &DeValue<'_>) -> serde_json::Value {
    match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Boolean(flag) => (*flag).into(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| number.as_str().into(), Into::into),
        DeValue::Float(number) => number.as_str().into(),
        DeValue::Datetime(date) => date.to_string().into(),
        DeValue::Array(items) => items.iter().map(|item| as_written(item.get_ref())).collect(),
        DeValue::Table(table) => table
            .iter()
            .map(|(key, item)| (key.get_ref().to_string(), as_written(item.get_ref())))
            .collect(),
    }
}

impl<T: StringEnum> Value for T {
    const TYPE: &'static str = <T as StringEnum>::TYPE;

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        parse_text(value, <T as StringEnum>::TYPE, errors)
    }
}

/// Parses a string by its [`FromStr`], whose error says what to write instead.
pub fn parse_text<T: FromStr<Err: Display>>(
    value: &Spanned<DeValue<'_>>,
    expected: &str,
    errors: &mut Vec<ConfigError>,
) -> Option<T> {
    let Some(text) = value.get_ref().as_str() else {
        errors.push(wrong_type(value, expected));
        return None;
    };
    text.parse()
        .map_err(|error: T::Err| errors.push(ConfigError::new(value.span(), error.to_string())))
        .ok()
}

/// Implements [`Value`] for quantities that are strings in the configuration, with their number for fingerprints.
macro_rules! text_quantities {
    ($($type:ty: $expected:literal, $number:expr;)+) => { $(
        impl $crate::values::schema::Value for $type {
            const TYPE: &'static str = $expected;
            const QUANTITY: bool = true;

            fn is_within(&self, least: &str, greatest: &str) -> bool {
                $crate::values::schema::between(self, least, greatest)
            }

            fn parse(
                value: &toml::Spanned<toml::de::DeValue<'_>>,
                errors: &mut Vec<$crate::values::schema::ConfigError>,
            ) -> Option<Self> {
                $crate::values::schema::parse_text(value, Self::TYPE, errors)
            }

            fn canonical(&self, _: &toml::Spanned<toml::de::DeValue<'_>>) -> serde_json::Value {
                let number: fn(&Self) -> u64 = $number;
                number(self).into()
            }
        }
    )+ };
}

pub(crate) use text_quantities;

/// Implements [`Value`] for types that are strings in the configuration.
///
/// A type that has several spellings of one value gives its canonical one after a comma.
macro_rules! text_values {
    ($($type:ty: $expected:literal $(, $canonical:expr)?;)+) => { $(
        impl $crate::values::schema::Value for $type {
            const TYPE: &'static str = $expected;

            fn parse(
                value: &toml::Spanned<toml::de::DeValue<'_>>,
                errors: &mut Vec<$crate::values::schema::ConfigError>,
            ) -> Option<Self> {
                $crate::values::schema::parse_text(value, Self::TYPE, errors)
            }

            $(fn canonical(&self, _: &toml::Spanned<toml::de::DeValue<'_>>) -> serde_json::Value {
                let canonical: fn(&Self) -> String = $canonical;
                canonical(self).into()
            })?
        }
    )+ };
}

pub(crate) use text_values;
