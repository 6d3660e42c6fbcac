//! Durations as users write them: `"90d"`, `"12h"`, `"10m"`, `"30s"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::values::schema::text_quantities;

/// A whole number of days, hours, minutes or seconds, at most ten years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

const DAY: u64 = 86_400;
const MAX_SECONDS: u64 = 3650 * DAY;

impl HumanDuration {
    pub fn days(days: u64) -> Self {
        Self(Duration::from_secs(days * DAY))
    }

    pub fn as_chrono(self) -> chrono::TimeDelta {
        chrono::TimeDelta::seconds(i64::try_from(self.0.as_secs()).unwrap_or(i64::MAX / 1000))
    }
}

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let wrong = || {
            format!(
                "invalid duration {text:?}: expected a number and a unit, such as \"90d\", \"12h\", \"10m\" or \"30s\""
            )
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => DAY,
            "" => {
                return Err(format!(
                    "invalid duration {text:?}: the unit is missing (did you mean \"{number}d\" (days), \"{number}h\", \"{number}m\" (minutes) or \"{number}s\"?)"
                ));
            }
            _ => return Err(other_unit(text, number, unit).unwrap_or_else(wrong)),
        };
        number
            .checked_mul(seconds)
            .filter(|total| *total <= MAX_SECONDS)
            .map(|total| Self(Duration::from_secs(total)))
            .ok_or_else(|| {
                format!(
                    "invalid duration {text:?}: the maximum is \"{}d\" (ten years)",
                    MAX_SECONDS / DAY
                )
            })
    }
}

/// Explains units that people write and that are not accepted.
fn other_unit(text: &str, number: u64, unit: &str) -> Option<String> {
    let days = |each: u64| number.saturating_mul(each);
    let advice = match unit.to_ascii_lowercase().trim() {
        "w" | "week" | "weeks" => format!("weeks are not supported, use days: \"{}d\"", days(7)),
        "mo" | "mon" | "month" | "months" => {
            format!("months are not supported, use days: \"{}d\"", days(30))
        }
        "y" | "yr" | "year" | "years" => {
            format!("years are not supported, use days: \"{}d\"", days(365))
        }
        "ms" => "the smallest unit is the second, such as \"1s\"".to_owned(),
        "d" | "day" | "days" => format!("write days as \"{number}d\""),
        "h" | "hour" | "hours" => format!("write hours as \"{number}h\""),
        "min" | "mins" | "minute" | "minutes" => format!("write minutes as \"{number}m\""),
        "s" | "sec" | "second" | "seconds" => format!("write seconds as \"{number}s\""),
        _ => return None,
    };
    Some(format!("invalid duration {text:?}: {advice}"))
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        for (unit, size) in [("d", DAY), ("h", 3600), ("m", 60)] {
            if seconds >= size && seconds.is_multiple_of(size) {
                return write!(f, "{}{unit}", seconds / size);
            }
        }
        write!(f, "{seconds}s")
    }
}

text_quantities! { HumanDuration: "a duration such as \"90d\", \"12h\", \"10m\" or \"30s\"", |duration| duration.0.as_secs(); }

/// A duration in at most two units: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => pair(seconds / 60, "min", seconds % 60, "s"),
        3600..DAY => pair(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => pair(seconds / DAY, "d", seconds % DAY / 3600, "h"),
    }
}

/// Rounds up to whole hours, ten minutes, minutes or ten seconds, whichever fits the duration.
pub fn rounded_up(duration: Duration) -> Duration {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    let unit = match seconds {
        0..120 => 10,
        120..3600 => 60,
        3600..DAY => 600,
        _ => 3600,
    };
    Duration::from_secs(seconds.div_ceil(unit).saturating_mul(unit))
}

fn pair(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large} {large_unit}")
    } else {
        format!("{large} {large_unit} {small} {small_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_units_are_read_and_written_back() {
        for (text, seconds) in
            [("90d", 7_776_000), ("12h", 43_200), ("10m", 600), ("30s", 30), ("0s", 0)]
        {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!((duration.0.as_secs(), duration.to_string()), (seconds, text.to_owned()));
        }
    }

    #[test]
    fn other_units_are_rejected_with_what_to_write_instead() {
        let error = |text: &str| text.parse::<HumanDuration>().unwrap_err();
        insta::assert_snapshot!(error("6mo"), @r#"invalid duration "6mo": months are not supported, use days: "180d""#);
        insta::assert_snapshot!(error("2w"), @r#"invalid duration "2w": weeks are not supported, use days: "14d""#);
        insta::assert_snapshot!(error("1y"), @r#"invalid duration "1y": years are not supported, use days: "365d""#);
        insta::assert_snapshot!(error("90"), @r#"invalid duration "90": the unit is missing (did you mean "90d" (days), "90h", "90m" (minutes) or "90s"?)"#);
        insta::assert_snapshot!(error("-5d"), @r#"invalid duration "-5d": expected a number and a unit, such as "90d", "12h", "10m" or "30s""#);
        insta::assert_snapshot!(error("99999999999999999999d"), @r#"invalid duration "99999999999999999999d": expected a number and a unit, such as "90d", "12h", "10m" or "30s""#);
        insta::assert_snapshot!(error("99999999d"), @r#"invalid duration "99999999d": the maximum is "3650d" (ten years)"#);
    }

    #[test]
    fn a_duration_is_rounded_up_to_a_round_number() {
        let rounded = [1, 61, 121, 3541, 20_000, 90_001]
            .map(|seconds| format_duration(rounded_up(Duration::from_secs(seconds))));
        assert_eq!(rounded, ["10 s", "1 min 10 s", "3 min", "1 h", "5 h 40 min", "1 d 2 h"]);
    }

    #[test]
    fn durations_are_formatted_in_two_units_at_most() {
        let formatted = [400, 12_000, 200_000, 7_500_000, 273_600_000]
            .map(|ms| format_duration(Duration::from_millis(ms)));
        assert_eq!(formatted, ["0.4 s", "12 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"]);
    }
}
