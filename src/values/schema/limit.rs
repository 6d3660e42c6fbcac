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

/// A rate limit that can be lifted, or left to the program.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RateLimit {
    Of(Rate),
    Unlimited,
    /// As high as the homeserver bears, and at most this.
    Auto(Rate),
}

impl RateLimit {
    /// The word "auto": no homeserver that was measured answers more than a third of this.
    pub const AUTO: Self = Self::Auto(Rate(1000.0));

    /// The fixed number, if it is one.
    pub fn number(self) -> Option<Rate> {
        match self {
            Self::Of(rate) => Some(rate),
            Self::Unlimited | Self::Auto(_) => None,
        }
    }

    /// Returns the limit that keeps to both.
    #[must_use]
    pub fn lower(self, other: Self) -> Self {
        let least = |one: Rate, other: Rate| Rate(one.0.min(other.0));
        match (self, other) {
            (Self::Unlimited, limit) | (limit, Self::Unlimited) => limit,
            (Self::Of(one), Self::Of(other)) => Self::Of(least(one, other)),
            (Self::Auto(one) | Self::Of(one), Self::Auto(other) | Self::Of(other)) => {
                Self::Auto(least(one, other))
            }
        }
    }
}

impl Value for RateLimit {
    const TYPE: &'static str = "\"auto\", \"unlimited\" or a number";
    const QUANTITY: bool = true;
    const INTEGERS: bool = true;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        self.number().is_none_or(|rate| rate.is_within(least, greatest))
    }

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        match value.get_ref().as_str() {
            Some("auto") => Some(Self::AUTO),
            Some("unlimited") => Some(Self::Unlimited),
            Some(_) => {
                errors.push(ConfigError::new(value.span(), format!("expected {}", Self::TYPE)));
                None
            }
            None => Rate::parse(value, errors).map(Self::Of),
        }
    }

    fn canonical(&self, written: &Spanned<DeValue<'_>>) -> serde_json::Value {
        match self {
            Self::Of(rate) => rate.canonical(written),
            Self::Unlimited => "unlimited".into(),
            Self::Auto(_) => "auto".into(),
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
