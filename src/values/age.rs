//! The age from which a purge deletes media: relative to the run, or a fixed time.

use std::ops::Range;

use chrono::TimeDelta;

use crate::values::clock::{self, Timestamp};
use crate::values::duration::{HumanDuration, format_duration};
use crate::values::schema::{ConfigError, Entry};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    OlderThan(HumanDuration),
    Before(Timestamp),
}

/// A lower age is more often a typo than intended, and Synapse still uses younger URL previews.
const MIN_DAYS: i64 = 7;

/// The keys of a purge that give its age.
#[derive(Clone, Copy)]
pub struct AgeEntries<'a> {
    pub older_than: &'a Entry<Option<HumanDuration>>,
    pub before: &'a Entry<Option<Timestamp>>,
    pub allow_recent: &'a Entry<bool>,
}

impl Age {
    /// As [`Self::cut_off`]; an error where that is in the future, since Synapse would delete everything.
    pub fn past_cut_off(self, at: Timestamp) -> Result<Timestamp, String> {
        let cut_off = self.cut_off(at);
        if cut_off <= at {
            Ok(cut_off)
        } else {
            Err(format!(
                "the cutoff {} is in the future: everything would be deleted",
                clock::format_time(cut_off)
            ))
        }
    }

    /// The time before which media is old, for a run that started at `at`.
    pub fn cut_off(self, at: Timestamp) -> Timestamp {
        match self {
            Self::OlderThan(duration) => at - duration.as_chrono(),
            Self::Before(time) => time,
        }
    }

    /// Combines the keys: exactly one of `older_than` and `before`, and not recent without `allow_recent`.
    ///
    /// `table` is where a missing age is reported. What is wrong with one key alone has been reported already.
    pub fn combine(
        entries: AgeEntries<'_>,
        table: &Range<usize>,
        now: Timestamp,
        errors: &mut Vec<ConfigError>,
    ) -> Option<Self> {
        let AgeEntries { older_than, before, allow_recent } = entries;
        if older_than.is_set && before.is_set {
            let text = "`older_than` and `before` are mutually exclusive: remove one of them";
            errors.push(ConfigError::new(before.span.clone(), text));
            return None;
        }
        if !older_than.is_set && !before.is_set {
            let text =
                "no age is set: add `older_than = \"180d\"` or `before = 2023-01-01T00:00:00Z`";
            errors.push(ConfigError::new(table.clone(), text));
            return None;
        }
        let (age, span) = match (older_than.value?, before.value?) {
            (Some(duration), _) => (Self::OlderThan(duration), &older_than.span),
            (None, time) => (Self::Before(time?), &before.span),
        };
        if let Err(text) = age.check(allow_recent.value?, now) {
            errors.push(ConfigError::new(span.clone(), text));
            return None;
        }
        Some(age)
    }

    fn check(self, allow_recent: bool, now: Timestamp) -> Result<(), String> {
        let cut_off = self.cut_off(now);
        if cut_off > now {
            return Err(format!(
                "{} is in the future: `before` must be a time in the past",
                clock::format_time(cut_off)
            ));
        }
        if !allow_recent && cut_off > now - TimeDelta::days(MIN_DAYS) {
            let age = format_duration((now - cut_off).to_std().unwrap_or_default());
            return Err(format!(
                "an age of {age} is below the minimum of {MIN_DAYS} days: use at least \"{MIN_DAYS}d\", or set `allow_recent = true` if this is intended"
            ));
        }
        Ok(())
    }
}
