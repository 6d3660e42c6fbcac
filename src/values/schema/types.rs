//! The plain types of keys: numbers, text, secrets, times, lists and values of any shape.

use std::ops::Deref;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use toml::Spanned;
use toml::de::DeValue;

use super::error::{ConfigError, wrong_type};
use super::value::{Value, between, text_values};
use crate::values::clock::Timestamp;
use crate::values::fingerprint::Fingerprint;

text_values! { String: "a string"; PathBuf: "a path as a string"; }

impl Value for bool {
    const TYPE: &'static str = "true or false";

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let parsed = value.get_ref().as_bool();
        if parsed.is_none() {
            errors.push(wrong_type(value, Self::TYPE));
        }
        parsed
    }
}

macro_rules! whole_numbers {
    ($($type:ty)+) => { $(
        impl Value for $type {
            const TYPE: &'static str = "a whole number";
            const QUANTITY: bool = true;
            const INTEGERS: bool = true;

            fn is_within(&self, least: &str, greatest: &str) -> bool {
                between(self, least, greatest)
            }

            fn parse(
                value: &Spanned<DeValue<'_>>,
                errors: &mut Vec<ConfigError>,
            ) -> Option<Self> {
                let Some(number) = value.get_ref().as_integer() else {
                    errors.push(wrong_type(value, Self::TYPE));
                    return None;
                };
                let parsed = <$type>::from_str_radix(number.as_str(), number.radix());
                if parsed.is_err() {
                    let text = format!("expected {}", Self::TYPE);
                    errors.push(ConfigError::new(value.span(), text));
                }
                parsed.ok()
            }

            fn canonical(&self, _: &Spanned<DeValue<'_>>) -> serde_json::Value {
                (*self).into()
            }
        }
    )+ };
}

whole_numbers! { u16 u32 }

/// Only its fingerprint gets into the definition that is hashed.
impl Value for SecretString {
    const TYPE: &'static str = "a string";

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let Some(text) = value.get_ref().as_str() else {
            errors.push(wrong_type(value, <Self as Value>::TYPE));
            return None;
        };
        Some(Self::from(text))
    }

    fn canonical(&self, _: &Spanned<DeValue<'_>>) -> serde_json::Value {
        Fingerprint::of_bytes(self.expose_secret().as_bytes()).to_string().into()
    }
}

/// A date and time with its offset, as TOML writes it: `2023-01-01T00:00:00Z`.
impl Value for Timestamp {
    const TYPE: &'static str = "a date and time such as 2023-01-01T00:00:00Z, without quotes";

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let Some(date) = value.get_ref().as_datetime() else {
            errors.push(wrong_type(value, <Self as Value>::TYPE));
            return None;
        };
        let parsed = DateTime::parse_from_rfc3339(&date.to_string());
        if parsed.is_err() {
            let text =
                format!("expected {}: the time or the offset is missing", <Self as Value>::TYPE);
            errors.push(ConfigError::new(value.span(), text));
        }
        parsed.ok().map(|time| time.with_timezone(&Utc))
    }

    fn canonical(&self, _: &Spanned<DeValue<'_>>) -> serde_json::Value {
        self.to_rfc3339().into()
    }
}

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

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        T::parse(value, errors).map(Some)
    }

    fn canonical(&self, written: &Spanned<DeValue<'_>>) -> serde_json::Value {
        self.as_ref().map_or(serde_json::Value::Null, |value| value.canonical(written))
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

/// Every item is parsed, and each error in the list reported.
impl<T: Value> Value for Vec<T> {
    const TYPE: &'static str = "a list";
    const QUANTITY: bool = T::QUANTITY;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        self.iter().all(|item| item.is_within(least, greatest))
    }

    fn describe() -> String {
        format!("a list, each item {}", T::describe())
    }

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let Some(items) = value.get_ref().as_array() else {
            errors.push(wrong_type(value, &Self::describe()));
            return None;
        };
        let parsed: Vec<Option<T>> = items.iter().map(|item| T::parse(item, errors)).collect();
        parsed.into_iter().collect()
    }

    fn canonical(&self, written: &Spanned<DeValue<'_>>) -> serde_json::Value {
        let items = written.get_ref().as_array().into_iter().flat_map(|items| items.iter());
        self.iter().zip(items).map(|(item, written)| item.canonical(written)).collect()
    }
}

/// A list with at least one item.
#[derive(Debug, Clone)]
pub struct NonEmpty<T>(Vec<T>);

impl<T> Deref for NonEmpty<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Value> Value for NonEmpty<T> {
    const TYPE: &'static str = Vec::<T>::TYPE;
    const QUANTITY: bool = Vec::<T>::QUANTITY;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        self.0.is_within(least, greatest)
    }

    fn describe() -> String {
        Vec::<T>::describe()
    }

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let items = Vec::parse(value, errors)?;
        if items.is_empty() {
            errors.push(ConfigError::new(value.span(), "the list is empty: add at least one item"));
            return None;
        }
        Some(Self(items))
    }

    fn canonical(&self, written: &Spanned<DeValue<'_>>) -> serde_json::Value {
        self.0.canonical(written)
    }
}

/// Any TOML value as JSON, for bodies that are sent as they are.
impl Value for serde_json::Value {
    const TYPE: &'static str = "any value";

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.as_ref().into()),
            DeValue::Boolean(flag) => Some((*flag).into()),
            DeValue::Datetime(date) => Some(date.to_string().into()),
            DeValue::Integer(number) => {
                let parsed = i64::from_str_radix(number.as_str(), number.radix());
                if parsed.is_err() {
                    let text = "this number does not fit into 64 bits";
                    errors.push(ConfigError::new(value.span(), text));
                }
                parsed.ok().map(Self::from)
            }
            DeValue::Float(number) => {
                let parsed = number.as_str().parse().ok().and_then(serde_json::Number::from_f64);
                if parsed.is_none() {
                    let text = "this number cannot be represented in JSON";
                    errors.push(ConfigError::new(value.span(), text));
                }
                parsed.map(Self::Number)
            }
            DeValue::Array(_) => Vec::<Self>::parse(value, errors).map(Self::Array),
            DeValue::Table(table) => table
                .iter()
                .map(|(key, item)| Some((key.get_ref().to_string(), Self::parse(item, errors)?)))
                .collect::<Option<serde_json::Map<String, Self>>>()
                .map(Self::Object),
        }
    }

    fn canonical(&self, _: &Spanned<DeValue<'_>>) -> Self {
        self.clone()
    }
}
