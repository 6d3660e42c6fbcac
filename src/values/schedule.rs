//! When a job is due: cron patterns, time zones and windows, as pure functions of a timestamp.

mod words;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Duration, NaiveTime, TimeZone, Utc};
use chrono_tz::Tz;
use croner4::Cron;
use croner4::errors::CronError;
use croner4::parser::{CronParser, Seconds, Year};

use crate::values::clock::Timestamp;
use crate::values::schema::text_values;
use crate::values::text::nearest;

/// A cron pattern of five fields, six with leading seconds, or a nickname such as `@daily`; where both day of month and day of week are given, either may match.
///
/// Kept as text: a parsed pattern is 5 KiB, and parsing one takes 14 µs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(Box<str>);

/// An IANA time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone(pub Tz);

/// Hours of the day in which a run may work, such as `01:00-06:00`; it may cross midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    start: NaiveTime,
    end: NaiveTime,
}

impl Schedule {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// One spelling whatever the spaces, the case of names, a leading `0` for seconds, or a nickname.
    fn canonical(&self) -> String {
        let nickname = NICKNAMES.iter().find(|(name, _)| self.0.strip_prefix('@') == Some(*name));
        let pattern = nickname.map_or(&*self.0, |(_, pattern)| pattern).to_ascii_uppercase();
        let fields: Vec<&str> = pattern.split_whitespace().collect();
        match &fields[..] {
            ["0", five @ ..] if five.len() == 5 => five.join(" "),
            fields => fields.join(" "),
        }
    }

    /// The first occurrence after `time`, strictly.
    ///
    /// A fixed time that a clock change skips occurs right after the gap; one that the clocks show twice occurs the first time.
    /// Lists and intervals, such as `15,45 2 * * *` or `*/10 2 * * *`, follow the local clock: they skip what it skips, and
    /// occur twice where it repeats.
    pub fn next(&self, time: Timestamp, zone: Zone) -> Option<DateTime<Tz>> {
        self.after(time, zone).next()
    }

    /// The occurrences after `time`, strictly: the pattern is parsed once for all of them.
    pub fn after(&self, time: Timestamp, zone: Zone) -> impl Iterator<Item = DateTime<Tz>> + use<> {
        let (cron, mut last) = (recent_pattern(&self.0).ok(), time);
        std::iter::from_fn(move || {
            let cron = cron.as_ref()?;
            let mut after = last.with_timezone(&zone.0);
            // A search that starts inside a repeated hour must not return a time in the past.
            for _ in 0..4 {
                let found = cron.find_next_occurrence(&after, false).ok()?;
                if found > last {
                    last = found.to_utc();
                    return Some(found);
                }
                after += Duration::minutes(30);
            }
            None
        })
    }

    /// The last occurrence after `from` and at or before `until`.
    pub fn last(&self, from: Timestamp, until: Timestamp, zone: Zone) -> Option<Timestamp> {
        // Looks back in growing steps, so that it never iterates over every minute of a year.
        const STEP_MINUTES: [i64; 5] = [1, 60, 25 * 60, 33 * 24 * 60, 367 * 24 * 60];
        let starts = STEP_MINUTES.map(|minutes| (until - Duration::minutes(minutes)).max(from));
        for start in starts.into_iter().chain([from]) {
            let occurrences = self.after(start, zone).map(|next| next.to_utc());
            if let Some(last) = occurrences.take_while(|next| *next <= until).last() {
                return Some(last);
            }
        }
        None
    }

    /// The first occurrence after `time` inside the window; `None` where the next 400 openings have none.
    pub fn next_in(&self, window: Window, time: Timestamp, zone: Zone) -> Option<Timestamp> {
        let mut next = self.next(time, zone)?.to_utc();
        for _ in 0..400 {
            if window.contains(next, zone) {
                return Some(next);
            }
            let opens = window.start_after(next, zone);
            next = self.next(opens - Duration::milliseconds(1), zone)?.to_utc();
        }
        None
    }

    /// Whether it gives fixed times of day rather than an interval such as every ten minutes.
    pub fn is_fixed(&self) -> bool {
        pattern(&self.0).is_ok_and(|cron| cron.determine_job_type() == croner4::JobType::FixedTime)
    }
}

thread_local! {
    /// The patterns that were used last: the jobs of hundreds of homeservers have few different ones.
    static RECENT: RefCell<VecDeque<(Box<str>, Arc<Cron>)>> = const { RefCell::new(VecDeque::new()) };
}

/// How many patterns each thread keeps, of 5 KiB each.
const MAX_RECENT: usize = 8;

fn recent_pattern(text: &str) -> Result<Arc<Cron>, CronError> {
    RECENT.with_borrow_mut(|recent| {
        if let Some((_, cron)) = recent.iter().find(|(known, _)| **known == *text) {
            return Ok(Arc::clone(cron));
        }
        let cron = Arc::new(pattern(text)?);
        recent.truncate(MAX_RECENT - 1);
        recent.push_front((text.into(), Arc::clone(&cron)));
        Ok(cron)
    })
}

fn pattern(text: &str) -> Result<Cron, CronError> {
    CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build().parse(text)
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(nickname) = text.strip_prefix('@') {
            if !NICKNAMES.iter().any(|(known, _)| *known == nickname) {
                return Err(unknown_nickname(nickname));
            }
        } else {
            let fields = text.split_whitespace().count();
            if fields != 5 && fields != 6 {
                return Err(format!(
                    "invalid schedule {text:?}: expected five fields (minute, hour, day of month, month, day of week), or six with leading seconds, found {fields}; for 03:30 every night write \"30 3 * * *\""
                ));
            }
        }
        if let Some(problem) = out_of_range(text) {
            return Err(format!("invalid schedule {text:?}: {problem}"));
        }
        let cron = pattern(text).map_err(|_| format!("invalid schedule {text:?}: {RANGES}"))?;
        cron.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, false)
            .map_err(|_| format!("the schedule {text:?} never occurs: this date does not exist"))?;
        Ok(Self(text.into()))
    }
}

const NICKNAMES: [(&str, &str); 5] = [
    ("hourly", "0 * * * *"),
    ("daily", "0 0 * * *"),
    ("weekly", "0 0 * * 0"),
    ("monthly", "0 0 1 * *"),
    ("yearly", "0 0 1 1 *"),
];

const RANGES: &str = "minutes are 0-59, hours 0-23, days 1-31, months 1-12 or JAN-DEC, days of the week 0-7 or SUN-SAT";

fn unknown_nickname(nickname: &str) -> String {
    let hint = match nearest(nickname, NICKNAMES.iter().map(|(known, _)| *known)) {
        Some(near) => format!("did you mean \"@{near}\"?"),
        None => "expected @hourly, @daily, @weekly, @monthly or @yearly".to_owned(),
    };
    format!("invalid schedule \"@{nickname}\" ({hint})")
}

/// The first number in a pattern that is out of range: "minute 75 is out of range (0-59)".
fn out_of_range(text: &str) -> Option<String> {
    const FIELDS: [(&str, u32, u32); 6] = [
        ("second", 0, 59),
        ("minute", 0, 59),
        ("hour", 0, 23),
        ("day of month", 1, 31),
        ("month", 1, 12),
        ("day of week", 0, 7),
    ];
    let given: Vec<&str> = text.split_whitespace().collect();
    let fields = FIELDS.iter().skip(FIELDS.len().saturating_sub(given.len()));
    fields.zip(given).find_map(|((name, least, greatest), given)| {
        // A number after `/` is a step; `L`, `W` and `#` are left to the parser.
        given
            .split(',')
            .filter_map(|part| part.split('/').next())
            .flat_map(|part| part.split('-'))
            .filter_map(|number| number.parse::<u32>().ok())
            .find(|number| !(least..=greatest).contains(&number))
            .map(|number| format!("{name} {number} is out of range ({least}-{greatest})"))
    })
}

impl FromStr for Zone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            let hint = match nearest(text, chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name())) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "expected an IANA name such as \"Europe/Berlin\" or \"UTC\"".to_owned(),
            };
            format!("unknown time zone {text:?} ({hint})")
        })
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.name())
    }
}

impl Window {
    pub fn contains(self, time: Timestamp, zone: Zone) -> bool {
        let local = time.with_timezone(&zone.0).time();
        if self.start < self.end {
            self.start <= local && local < self.end
        } else {
            self.start <= local || local < self.end
        }
    }

    /// The first end of the window after `time`.
    pub fn end_after(self, time: Timestamp, zone: Zone) -> Timestamp {
        next_time_of_day(self.end, time, zone)
    }

    /// The first start of the window after `time`.
    pub fn start_after(self, time: Timestamp, zone: Zone) -> Timestamp {
        next_time_of_day(self.start, time, zone)
    }
}

fn next_time_of_day(time_of_day: NaiveTime, after: Timestamp, zone: Zone) -> Timestamp {
    let mut day = after.with_timezone(&zone.0).date_naive();
    loop {
        let mut local = day.and_time(time_of_day);
        // A time that a clock change skips counts as the first one after the gap.
        let found = loop {
            match zone.0.from_local_datetime(&local).earliest() {
                Some(found) => break found.with_timezone(&Utc),
                None => local += Duration::minutes(15),
            }
        };
        if found > after {
            return found;
        }
        day += Duration::days(1);
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("invalid window {text:?}: expected two times of day, such as \"01:00-06:00\"")
        };
        let (start, end) = text.split_once('-').ok_or_else(wrong)?;
        let time =
            |part: &str| NaiveTime::parse_from_str(part.trim(), "%H:%M").map_err(|_| wrong());
        let (start, end) = (time(start)?, time(end)?);
        if start == end {
            return Err(format!(
                "the window {text:?} is empty: remove the key to allow the whole day"
            ));
        }
        Ok(Self { start, end })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start.format("%H:%M"), self.end.format("%H:%M"))
    }
}

text_values! {
    Schedule: "a cron pattern such as \"30 3 * * *\", or @hourly, @daily, @weekly, @monthly, @yearly", Schedule::canonical;
    Zone: "an IANA time zone such as \"Europe/Berlin\"", Zone::to_string;
    Window: "two times of day such as \"01:00-06:00\"", Window::to_string;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timestamp(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn zone(text: &str) -> Zone {
        text.parse().unwrap()
    }

    #[test]
    fn an_error_in_a_schedule_is_explained() {
        let refusal = |text: &str| text.parse::<Schedule>().unwrap_err();
        insta::assert_snapshot!(refusal("30 3 * *"), @r#"invalid schedule "30 3 * *": expected five fields (minute, hour, day of month, month, day of week), or six with leading seconds, found 4; for 03:30 every night write "30 3 * * *""#);
        insta::assert_snapshot!(refusal("0 0 30 2 *"), @r#"the schedule "0 0 30 2 *" never occurs: this date does not exist"#);
        insta::assert_snapshot!(refusal("@dayly"), @r#"invalid schedule "@dayly" (did you mean "@daily"?)"#);
        insta::assert_snapshot!("Europe/Berln".parse::<Zone>().unwrap_err(), @r#"unknown time zone "Europe/Berln" (did you mean "Europe/Berlin"?)"#);
        insta::assert_snapshot!(refusal("75 3 * * *"), @r#"invalid schedule "75 3 * * *": minute 75 is out of range (0-59)"#);
        insta::assert_snapshot!(refusal("0 0-30/5,99 25 * * *"), @r#"invalid schedule "0 0-30/5,99 25 * * *": minute 99 is out of range (0-59)"#);
        insta::assert_snapshot!(refusal("0 0 * 13 FOO"), @r#"invalid schedule "0 0 * 13 FOO": month 13 is out of range (1-12)"#);
        assert!(
            refusal("0 0 * * FOO").starts_with("invalid schedule \"0 0 * * FOO\": minutes are")
        );
    }

    #[test]
    fn day_of_month_and_day_of_week_together_mean_or() {
        let schedule: Schedule = "0 0 13 * 5".parse().unwrap();
        let first = schedule.next(timestamp("2026-11-10T00:00:00Z"), zone("UTC")).unwrap();
        assert_eq!(first.to_rfc3339(), "2026-11-13T00:00:00+00:00");
        let second = schedule.next(first.with_timezone(&Utc), zone("UTC")).unwrap();
        assert_eq!(second.to_rfc3339(), "2026-11-20T00:00:00+00:00");
    }

    #[test]
    fn the_last_occurrence_is_found_however_long_ago_the_search_begins() {
        let last = |schedule: &str, from: &str| {
            let schedule: Schedule = schedule.parse().unwrap();
            let found =
                schedule.last(timestamp(from), timestamp("2026-11-23T12:00:30Z"), zone("UTC"));
            found.map(|found| found.to_rfc3339())
        };
        let of = |text: &str| Some(text.to_owned());
        assert_eq!(last("* * * * *", "2020-01-01T00:00:00Z"), of("2026-11-23T12:00:00+00:00"));
        assert_eq!(last("30 3 * * *", "2020-01-01T00:00:00Z"), of("2026-11-23T03:30:00+00:00"));
        assert_eq!(last("0 0 29 2 *", "2020-01-01T00:00:00Z"), of("2024-02-29T00:00:00+00:00"));
        assert_eq!(last("* * * * *", "2026-11-23T12:00:00Z"), None);
    }

    #[test]
    fn a_schedule_that_never_occurs_in_its_window_is_found() {
        let ever = |schedule: &str, window: &str| {
            let (schedule, window): (Schedule, Window) =
                (schedule.parse().unwrap(), window.parse().unwrap());
            schedule.next_in(window, timestamp("2026-11-23T12:00:00Z"), zone("UTC")).is_some()
        };
        for (schedule, window) in [
            ("* * * * * *", "11:00-11:01"),
            ("0 */6 * * *", "05:00-07:00"),
            ("0 3 29 2 1", "22:00-03:01"),
            ("59 59 23 31 12 *", "23:59-00:00"),
            ("@yearly", "23:00-00:30"),
        ] {
            assert!(ever(schedule, window), "{schedule} {window}");
        }
        for (schedule, window) in [
            ("30 2 * * *", "03:00-04:00"),
            ("0 3 1 1 *", "22:00-03:00"),
            ("0 */6 * * *", "01:00-05:59"),
        ] {
            assert!(!ever(schedule, window), "{schedule} {window}");
        }
    }

    #[test]
    fn a_window_over_midnight_contains_both_sides() {
        let (window, berlin): (Window, _) = ("22:00-04:00".parse().unwrap(), zone("Europe/Berlin"));
        let inside = ["2026-11-23T21:30:00Z", "2026-11-24T02:59:00Z"]
            .map(|text| window.contains(timestamp(text), berlin));
        let outside = ["2026-11-23T20:59:00Z", "2026-11-24T03:00:00Z"]
            .map(|text| window.contains(timestamp(text), berlin));
        assert_eq!((inside, outside), ([true; 2], [false; 2]));
        assert_eq!(
            window.end_after(timestamp("2026-11-23T21:30:00Z"), berlin),
            timestamp("2026-11-24T03:00:00Z")
        );
    }

    #[test]
    fn a_window_that_ends_in_the_gap_ends_right_after_it() {
        let window: Window = "01:00-02:30".parse().unwrap();
        assert_eq!(
            window.end_after(timestamp("2027-03-28T00:30:00Z"), zone("Europe/Berlin")),
            timestamp("2027-03-28T01:00:00Z")
        );
    }

    fn next(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let (schedule, zone): (Schedule, Zone) = (schedule.parse().unwrap(), zone.parse().unwrap());
        let mut found = Vec::new();
        let mut after = timestamp(after);
        for _ in 0..count {
            let next = schedule.next(after, zone).unwrap();
            found.push(next.to_rfc3339());
            after = next.to_utc();
        }
        found
    }

    #[test]
    fn a_time_in_the_gap_runs_right_after_it_once_and_the_days_around_at_their_time() {
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2027-03-27T00:00:00Z", 3),
            ["2027-03-27T02:30:00+01:00", "2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]
        );
        assert_eq!(
            next("30 2 * * *", "America/New_York", "2027-03-14T05:00:00Z", 2),
            ["2027-03-14T03:00:00-04:00", "2027-03-15T02:30:00-04:00"]
        );
        assert_eq!(
            next("15 2 * * *", "Australia/Lord_Howe", "2027-10-02T12:00:00Z", 2),
            ["2027-10-03T02:30:00+11:00", "2027-10-04T02:15:00+11:00"]
        );
    }

    #[test]
    fn a_time_that_occurs_twice_runs_once_the_first_time() {
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 2),
            ["2027-10-31T02:30:00+02:00", "2027-11-01T02:30:00+01:00"]
        );
        assert_eq!(
            next("30 1 * * *", "America/New_York", "2027-11-07T00:00:00Z", 2),
            ["2027-11-07T01:30:00-04:00", "2027-11-08T01:30:00-05:00"]
        );
    }

    #[test]
    fn a_time_before_the_gap_runs_once_and_the_next_days_are_not_an_hour_off() {
        assert_eq!(
            next("30 1 * * *", "Europe/Berlin", "2027-03-27T12:00:00Z", 2),
            ["2027-03-28T01:30:00+01:00", "2027-03-29T01:30:00+02:00"]
        );
        assert_eq!(
            next("30 9 * * *", "Europe/Berlin", "2027-03-27T08:30:00Z", 1),
            ["2027-03-28T09:30:00+02:00"]
        );
        assert_eq!(
            next("30 9 * * *", "Europe/Berlin", "2027-10-30T07:30:00Z", 1),
            ["2027-10-31T09:30:00+01:00"]
        );
        assert_eq!(
            next("30 3 * * *", "America/New_York", "2027-03-13T08:30:00Z", 1),
            ["2027-03-14T03:30:00-04:00"]
        );
    }

    #[test]
    fn hourly_jobs_run_in_both_hours_of_the_repeated_one() {
        assert_eq!(
            next("0 * * * *", "Europe/Berlin", "2027-10-30T23:30:00Z", 4),
            [
                "2027-10-31T02:00:00+02:00",
                "2027-10-31T02:00:00+01:00",
                "2027-10-31T03:00:00+01:00",
                "2027-10-31T04:00:00+01:00"
            ]
        );
        assert_eq!(
            next("*/10 * * * *", "Europe/Berlin", "2027-10-31T01:15:00Z", 1),
            ["2027-10-31T02:20:00+01:00"]
        );
    }

    #[test]
    fn a_list_of_times_follows_the_local_clock() {
        assert_eq!(
            next("15,45 2 * * *", "Europe/Berlin", "2027-03-27T12:00:00Z", 2),
            ["2027-03-29T02:15:00+02:00", "2027-03-29T02:45:00+02:00"]
        );
        assert_eq!(
            next("15,45 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 4),
            [
                "2027-10-31T02:15:00+02:00",
                "2027-10-31T02:45:00+02:00",
                "2027-10-31T02:15:00+01:00",
                "2027-10-31T02:45:00+01:00"
            ]
        );
    }

    #[test]
    fn utc_has_no_daylight_saving_time() {
        assert_eq!(
            next("30 2 28 3 *", "UTC", "2027-03-27T00:00:00Z", 2),
            ["2027-03-28T02:30:00+00:00", "2028-03-28T02:30:00+00:00"]
        );
    }

    proptest! {
        #[test]
        fn occurrences_strictly_increase_and_are_never_in_the_past(
            start in 1_767_225_600_i64..1_861_920_000,
            zone in prop::sample::select(vec!["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Kathmandu"]),
            schedule in prop::sample::select(vec!["* * * * *", "*/10 * * * *", "0 * * * *", "30 1 * * *", "30 2 * * *", "15,45 2 * * *", "0 3 1 * 1", "*/7 1-3 * * *", "30 30 2 * * *"]),
        ) {
            let (schedule, zone): (Schedule, Zone) = (schedule.parse().unwrap(), zone.parse().unwrap());
            let mut last = Timestamp::from_timestamp(start, 0).unwrap();
            for _ in 0..50 {
                let next = schedule.next(last, zone).unwrap().to_utc();
                prop_assert!(next > last);
                last = next;
            }
        }
    }
}
