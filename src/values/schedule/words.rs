//! A schedule in words.

use super::{Schedule, recent_pattern};

const WEEKDAYS: [(&str, &str); 7] = [
    ("SUN", "Sunday"),
    ("MON", "Monday"),
    ("TUE", "Tuesday"),
    ("WED", "Wednesday"),
    ("THU", "Thursday"),
    ("FRI", "Friday"),
    ("SAT", "Saturday"),
];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Schedule {
    /// `every day at 03:30`; a pattern for which there are no such words is described field by field.
    pub fn in_words(&self) -> String {
        let canonical = self.canonical();
        let fields: Vec<&str> = canonical.split(' ').collect();
        words(&fields).unwrap_or_else(|| described(&self.0))
    }
}

/// Of five fields in upper case.
fn words(fields: &[&str]) -> Option<String> {
    let [minute, hour, day, month, weekday] = fields else { return None };
    if *hour == "*" || hour.starts_with("*/") {
        let is_daily = [*day, *month, *weekday] == ["*", "*", "*"];
        return is_daily.then(|| interval(minute, hour)).flatten();
    }
    let times = times(minute, hour)?;
    let days = match (*day, *month, *weekday) {
        ("*", "*", "*") => "every day".to_owned(),
        ("*", "*", days) => weekdays(days)?,
        (day, "*", "*") => format!("on day {} of every month", number(day, 1, 31)?),
        (day, month, "*") => {
            let month = usize::try_from(number(month, 1, 12)?).ok()?;
            format!("every year on {} {}", number(day, 1, 31)?, MONTHS.get(month - 1)?)
        }
        _ => return None,
    };
    Some(format!("{days} at {times}"))
}

/// `every 15 minutes`, `every 6 hours`.
fn interval(minute: &str, hour: &str) -> Option<String> {
    if hour == "*" {
        return match minute {
            "*" | "*/1" => Some("every minute".to_owned()),
            "0" => Some("every hour".to_owned()),
            _ => match minute.strip_prefix("*/") {
                Some(step) => {
                    let step = number(step, 2, 59)?;
                    // Cron begins anew in each hour.
                    (60 % step == 0).then(|| format!("every {step} minutes"))
                }
                None => Some(format!("every hour at minute {}", number(minute, 0, 59)?)),
            },
        };
    }
    let step = number(hour.strip_prefix("*/")?, 2, 23)?;
    let minute = number(minute, 0, 59)?;
    let at = if minute == 0 { String::new() } else { format!(" at minute {minute}") };
    (24 % step == 0).then(|| format!("every {step} hours{at}"))
}

/// `03:30`, `06:00 and 18:00`.
fn times(minute: &str, hour: &str) -> Option<String> {
    const MAX_TIMES: usize = 4;
    let minute = number(minute, 0, 59)?;
    let hours: Option<Vec<u32>> = hour.split(',').map(|hour| number(hour, 0, 23)).collect();
    let mut hours = hours.filter(|hours| hours.len() <= MAX_TIMES)?;
    hours.sort_unstable();
    Some(listed(hours.into_iter().map(|hour| format!("{hour:02}:{minute:02}")).collect()))
}

/// `every Sunday`, `Monday to Friday`, `every Monday and Thursday`.
fn weekdays(field: &str) -> Option<String> {
    let name = |day: &str| {
        let numbered = number(day, 0, 7).and_then(|day| usize::try_from(day % 7).ok());
        let index = numbered.or_else(|| WEEKDAYS.iter().position(|(short, _)| *short == day))?;
        Some(WEEKDAYS.get(index)?.1)
    };
    if let Some((first, last)) = field.split_once('-') {
        return Some(format!("{} to {}", name(first)?, name(last)?));
    }
    let days: Option<Vec<String>> =
        field.split(',').map(|day| name(day).map(str::to_owned)).collect();
    Some(format!("every {}", listed(days?)))
}

fn number(text: &str, least: u32, greatest: u32) -> Option<u32> {
    text.parse().ok().filter(|number| (least..=greatest).contains(number))
}

/// `a, b and c`.
fn listed(mut items: Vec<String>) -> String {
    let Some(last) = items.pop() else { return String::new() };
    if items.is_empty() { last } else { format!("{} and {last}", items.join(", ")) }
}

/// What the parser of patterns says of one, as part of a sentence.
fn described(text: &str) -> String {
    let Ok(cron) = recent_pattern(text) else { return text.to_owned() };
    let description = cron.describe();
    let mut chars = description.trim_end_matches('.').chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_schedules_are_said_as_people_say_them() {
        for (pattern, words) in [
            ("* * * * *", "every minute"),
            ("*/15 * * * *", "every 15 minutes"),
            ("0 * * * *", "every hour"),
            ("@hourly", "every hour"),
            ("20 * * * *", "every hour at minute 20"),
            ("0 */6 * * *", "every 6 hours"),
            ("30 */6 * * *", "every 6 hours at minute 30"),
            ("30 3 * * *", "every day at 03:30"),
            ("0  30 3 * * *", "every day at 03:30"),
            ("0 18,6 * * *", "every day at 06:00 and 18:00"),
            ("@weekly", "every Sunday at 00:00"),
            ("0 4 * * 7", "every Sunday at 04:00"),
            ("0 4 * * mon,thu", "every Monday and Thursday at 04:00"),
            ("0 4 * * 1-5", "Monday to Friday at 04:00"),
            ("0 5 1 * *", "on day 1 of every month at 05:00"),
            ("@yearly", "every year on 1 January at 00:00"),
        ] {
            assert_eq!(pattern.parse::<Schedule>().unwrap().in_words(), words, "{pattern}");
        }
    }

    #[test]
    fn every_other_schedule_is_described_without_claiming_less_than_it_does() {
        for pattern in ["*/7 * * * *", "0 3 13 * 5", "0 3 * 6 1", "*/10 2 * * *", "15 30 3 * * *"] {
            let words = pattern.parse::<Schedule>().unwrap().in_words();
            assert!(!words.is_empty() && !words.ends_with('.'), "{pattern}: {words}");
            assert!(!words.starts_with("every day at"), "{pattern}: {words}");
        }
    }
}
