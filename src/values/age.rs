//! How old something must be before a purge takes it: counted back from the run, or a fixed moment.

use chrono::{DateTime, TimeDelta, Utc};
use toml::Spanned;
use toml::de::DeValue;

use crate::values::clock::{self, Timestamp};
use crate::values::duration::{HumanDuration, format_duration};
use crate::values::schema::{ConfigError, Table, Value, wrong_type};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    OlderThan(HumanDuration),
    Before(Timestamp),
}

/// Below this an age is more often a slip than a wish, and URL previews are still in use.
const YOUNGEST: u64 = 7;

impl Age {
    /// The moment as below, refused where it would lie in the future: Synapse would delete everything.
    pub fn past_cut_off(self, at: Timestamp) -> Result<Timestamp, String> {
        let cut_off = self.cut_off(at);
        if cut_off <= at {
            Ok(cut_off)
        } else {
            Err(format!(
                "{} is in the future, and everything would be older",
                clock::format_time(cut_off)
            ))
        }
    }

    /// The moment before which things are old, for a run that started at `at`.
    pub fn cut_off(self, at: Timestamp) -> Timestamp {
        match self {
            Self::OlderThan(length) => at - length.as_chrono(),
            Self::Before(moment) => moment,
        }
    }

    /// Puts `older_than` and `before` together: exactly one, and not young unless `allow_recent` says so.
    ///
    /// What is wrong with one of these keys alone is not said here, but where the kind's keys are read.
    pub fn read(
        table: &Table<'_, '_>,
        now: Timestamp,
        mistakes: &mut Vec<ConfigError>,
    ) -> Option<Self> {
        let said_elsewhere = &mut Vec::new();
        let older_than =
            table.read::<Option<HumanDuration>>("older_than", None, said_elsewhere).flatten();
        let before = table.read::<Option<Moment>>("before", None, said_elsewhere).flatten();
        let allow_recent: bool = table.read("allow_recent", Some("false"), said_elsewhere)?;
        if table.has("older_than") && table.has("before") {
            mistakes.push(ConfigError::new(
                table.span_of("before"),
                "`older_than` and `before` are both given: keep exactly one",
            ));
            return None;
        }
        let (age, key) = match (older_than, before) {
            (Some(length), None) => (Self::OlderThan(length), "older_than"),
            (None, Some(Moment(moment))) => (Self::Before(moment), "before"),
            _ => {
                if !table.has("older_than") && !table.has("before") {
                    mistakes.push(ConfigError::new(table.span.clone(), "an age is missing: add `older_than = \"180d\"`, or `before = 2023-01-01T00:00:00Z`"));
                }
                return None;
            }
        };
        let cut_off = age.cut_off(now);
        if cut_off > now {
            mistakes.push(ConfigError::new(
                table.span_of(key),
                format!(
                    "{} is in the future: nothing but a moment in the past makes sense here",
                    clock::format_time(cut_off)
                ),
            ));
            return None;
        }
        if !allow_recent && cut_off > now - TimeDelta::days(i64::try_from(YOUNGEST).unwrap_or(7)) {
            let age = format_duration((now - cut_off).to_std().unwrap_or_default());
            mistakes.push(ConfigError::new(table.span_of(key), format!("this is {age}, younger than {YOUNGEST} days: write at least \"{YOUNGEST}d\", or set `allow_recent = true` if it is meant")));
            return None;
        }
        Some(age)
    }
}

/// A date and time with its offset, as TOML writes it: `2023-01-01T00:00:00Z`.
#[derive(Debug, Clone, Copy)]
pub struct Moment(pub Timestamp);

impl Value for Moment {
    const TYPE: &'static str = "a moment such as 2023-01-01T00:00:00Z, without quotes";

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        let Some(date) = value.get_ref().as_datetime() else {
            mistakes.push(wrong_type(value, Self::TYPE));
            return None;
        };
        let moment = DateTime::parse_from_rfc3339(&date.to_string())
            .map(|moment| Self(moment.with_timezone(&Utc)));
        if moment.is_err() {
            mistakes.push(ConfigError::new(
                value.span(),
                format!("expected {}: a date needs its time and its offset", Self::TYPE),
            ));
        }
        moment.ok()
    }
}
