//! Rates, and limits that can be lifted.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::error::{ConfigError, wrong_type};
use super::value::{Value, between};

/// Items per second, above 0.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

/// Stands for the interval of a rate outside the range of every key.
const LONGEST_INTERVAL: Duration = Duration::from_hours(1);

impl Rate {
    /// The time between two items.
    pub fn interval(self) -> Duration {
        Duration::try_from_secs_f64(1.0 / self.0).unwrap_or(LONGEST_INTERVAL)
    }
}

impl Value for Rate {
    const TYPE: &'static str = "a number";
    const QUANTITY: bool = true;
    const INTEGERS: bool = true;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        between(self, least, greatest)
    }

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let number: Option<f64> = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().parse().ok(),
            DeValue::Float(number) => number.as_str().parse().ok(),
            _ => None,
        };
        if number.is_none() {
            errors.push(wrong_type(value, Self::TYPE));
        }
        number.map(Self)
    }

    fn canonical(&self, _: &Spanned<DeValue<'_>>) -> serde_json::Value {
        self.0.into()
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

            fn parse(
                value: &Spanned<DeValue<'_>>,
                errors: &mut Vec<ConfigError>,
            ) -> Option<Self> {
                match value.get_ref().as_str() {
                    Some("unlimited") => Some(Self::Unlimited),
                    Some(_) => {
                        let text = format!("expected {}", Self::TYPE);
                        errors.push(ConfigError::new(value.span(), text));
                        None
                    }
                    None => <$number>::parse(value, errors).map(Self::Of),
                }
            }

            fn canonical(&self, written: &Spanned<DeValue<'_>>) -> serde_json::Value {
                match self {
                    Self::Of(number) => number.canonical(written),
                    Self::Unlimited => "unlimited".into(),
                }
            }
        }
    )+ };
}

limits! { u32: "\"unlimited\" or a whole number"; Rate: "\"unlimited\" or a number"; }
