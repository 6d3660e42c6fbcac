//! Schedules in words, as people say them: `every night at 03:30`.

use crate::values::schedule::Schedule;

/// What people can write besides cron.
pub(super) const EXAMPLES: &str = "\"every night at 03:30\", \"every hour\", \"every 15 minutes\", \"every sunday at 4:00\", \"every month\", \"never\" (manual only), or cron such as \"30 3 * * *\"";

/// The time of day where none is given: at night.
const NIGHT: (u32, u32) = (3, 30);

const WEEKDAYS: [&str; 7] =
    ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

/// Parses words, or cron; `None` means that jobs are only run by hand.
pub(super) fn parse_schedule(text: &str) -> Result<Option<Schedule>, String> {
    let lower = text.trim().to_ascii_lowercase();
    if matches!(lower.as_str(), "never" | "manual" | "manually" | "by hand") {
        return Ok(None);
    }
    let looks_like_cron = lower.starts_with('@')
        || lower.starts_with(|c: char| c.is_ascii_digit() || c == '*') && lower.contains(' ');
    let cron = match looks_like_cron {
        true => text.trim().to_owned(),
        false => in_words(&lower)
            .ok_or_else(|| format!("cannot read the schedule {text:?}: write {EXAMPLES}"))?,
    };
    cron.parse().map(Some)
}

fn in_words(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    let (when, time) = match words.iter().position(|word| *word == "at") {
        Some(at) => (&words[..at], Some(time_of_day(&words[at + 1..])?)),
        None => (&words[..], None),
    };
    let when = match when {
        ["every" | "each", rest @ ..] => rest,
        all => all,
    };
    let (hour, minute) = time.unwrap_or(NIGHT);
    Some(match when {
        ["night" | "day" | "daily" | "nightly"] => format!("{minute} {hour} * * *"),
        ["hour" | "hourly"] if time.is_none() => "@hourly".to_owned(),
        [count, "minutes"] if time.is_none() => {
            let count = divisor(count, 60)?;
            format!("*/{count} * * * *")
        }
        [count, "hours"] if time.is_none() => {
            let count = divisor(count, 24)?;
            format!("0 */{count} * * *")
        }
        ["week" | "weekly"] => format!("{minute} {hour} * * 0"),
        ["month" | "monthly"] => format!("{minute} {hour} 1 * *"),
        [day] => {
            let day = day.strip_suffix('s').unwrap_or(day);
            let number = WEEKDAYS.iter().position(|weekday| *weekday == day)?;
            format!("{minute} {hour} * * {number}")
        }
        _ => return None,
    })
}

/// A number of minutes or hours that makes equal intervals: cron begins anew in each hour or day.
fn divisor(text: &str, whole: u32) -> Option<u32> {
    text.parse().ok().filter(|count| *count > 0 && *count < whole && whole.is_multiple_of(*count))
}

/// `03:30`, `3:30`, `3`, `3:30 am`, `3pm`, `midnight`, `noon`.
fn time_of_day(words: &[&str]) -> Option<(u32, u32)> {
    let text = words.concat();
    let (clock, half) = match text.as_str() {
        "midnight" => return Some((0, 0)),
        "noon" => return Some((12, 0)),
        text => match (text.strip_suffix("am"), text.strip_suffix("pm")) {
            (Some(clock), _) => (clock, Some(0)),
            (_, Some(clock)) => (clock, Some(12)),
            _ => (text, None),
        },
    };
    let (hour, minute) = clock.split_once(':').unwrap_or((clock, "0"));
    let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
    let hour = match half {
        Some(_) if !(1..=12).contains(&hour) => return None,
        Some(half) => hour % 12 + half,
        None => hour,
    };
    (hour < 24 && minute < 60).then_some((hour, minute))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_in_words_become_cron() {
        for (words, cron) in [
            ("every night at 03:30", "30 3 * * *"),
            ("Every day at 3:30 PM", "30 15 * * *"),
            ("daily at midnight", "0 0 * * *"),
            ("nightly", "30 3 * * *"),
            ("every night at 12am", "0 0 * * *"),
            ("every hour", "@hourly"),
            ("hourly", "@hourly"),
            ("every 15 minutes", "*/15 * * * *"),
            ("every 6 hours", "0 */6 * * *"),
            ("every sunday at 4:00", "0 4 * * 0"),
            ("mondays at 5", "0 5 * * 1"),
            ("weekly", "30 3 * * 0"),
            ("every month at 02:00", "0 2 1 * *"),
            ("0 4 * * 1-5", "0 4 * * 1-5"),
            ("@weekly", "@weekly"),
        ] {
            let parsed = parse_schedule(words).unwrap().unwrap();
            assert_eq!(parsed.as_str(), cron, "{words}");
        }
        assert_eq!(parse_schedule("never"), Ok(None));
    }

    #[test]
    fn what_cannot_be_read_is_explained() {
        for words in [
            "",
            "sometimes",
            "every 7 minutes",
            "every 0 minutes",
            "every night at 25:00",
            "every night at 13pm",
            "every hour at 3:00",
            "every someday",
            "every night at",
        ] {
            let error = parse_schedule(words).unwrap_err();
            assert!(
                error.starts_with(&format!("cannot read the schedule {words:?}: write")),
                "{error}"
            );
        }
        let error = parse_schedule("99 3 * * *").unwrap_err();
        assert!(error.starts_with("invalid schedule \"99 3 * * *\""), "{error}");
    }
}
