//! Times, figures and outcomes as the status page shows them.

use std::time::Duration;

use chrono::{Datelike, SecondsFormat};
use chrono_tz::Tz;

use crate::plan::report::{Mode, Outcome, Report};
use crate::values::clock::Timestamp;
use crate::values::duration::format_duration;
use crate::values::size::Size;
use crate::values::text::{format_count, format_number};

/// A point in time, in all its forms.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    /// For `datetime`.
    pub(super) iso: String,
    /// Complete, with the time zone.
    pub(super) title: String,
    /// `2 h ago`, `in 5 min`.
    pub(super) relative: String,
    /// `23 Nov 03:30`.
    pub(super) absolute: String,
}

impl Moment {
    pub(super) fn of(time: Timestamp, zone: Tz, now: Timestamp) -> Self {
        let local = time.with_timezone(&zone);
        let this_year = local.year() == now.with_timezone(&zone).year();
        let format = if this_year { "%-d %b %H:%M" } else { "%-d %b %Y %H:%M" };
        Self {
            iso: time.to_rfc3339_opts(SecondsFormat::Secs, true),
            title: format!("{} ({})", local.format("%Y-%m-%d %H:%M:%S %Z"), zone.name()),
            relative: relative(time, now),
            absolute: local.format(format).to_string(),
        }
    }
}

fn relative(time: Timestamp, now: Timestamp) -> String {
    let distance = (time - now).abs().to_std().unwrap_or_default();
    match (distance.as_secs(), time > now) {
        (0..10, true) => "now".to_owned(),
        (0..10, false) => "just now".to_owned(),
        (_, true) => format!("in {}", rough(distance)),
        (_, false) => format!("{} ago", rough(distance)),
    }
}

/// A duration without the smaller of its units where the larger one says enough.
fn rough(duration: Duration) -> String {
    let (seconds, minute, hour, day) = (duration.as_secs(), 60, 3600, 86_400);
    let unit = match seconds {
        0..60 => 1,
        60..36_000 => minute,
        36_000..604_800 => hour,
        _ => day,
    };
    format_duration(Duration::from_secs(seconds / unit * unit))
}

/// The class that colours an outcome; `None` is a run without an end.
pub(super) fn tone(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        None => "run",
        Some(Outcome::Succeeded) => "ok",
        Some(Outcome::Partial | Outcome::Refused | Outcome::Cancelled | Outcome::Interrupted) => {
            "warn"
        }
        Some(Outcome::Failed | Outcome::TimedOut | Outcome::Panicked) => "bad",
    }
}

/// What became of a run, in one or two words.
pub(super) fn status(run: &Report) -> &'static str {
    match (run.outcome, &run.waiting) {
        (Some(outcome), _) => outcome.as_str(),
        (None, Some(_)) => "waiting",
        (None, None) => "running",
    }
}

/// What a run did, or planned: `41 external ids removed`, `12,408 files, 31.2 GiB planned`.
pub(super) fn figures(run: &Report) -> String {
    if run.mode == Mode::Apply {
        let mut parts = vec![match (run.done, run.outcome) {
            (0, Some(outcome)) if outcome != Outcome::Succeeded => "nothing was changed".to_owned(),
            (done, _) => changed(&run.kind, done),
        }];
        for (count, name) in [(run.failed, "failed"), (run.skipped, "skipped")] {
            if count > 0 {
                parts.push(format!("{} {name}", format_number(count)));
            }
        }
        if let Some(bytes) = run.bytes_freed.filter(|bytes| *bytes > 0) {
            parts.push(format!("{} freed", Size(bytes)));
        }
        return parts.join(", ");
    }
    match (run.planned, run.bytes_planned) {
        (Some(planned), Some(bytes)) if planned > 0 => {
            format!("{}, {} planned", items(&run.kind, planned), Size(bytes))
        }
        (Some(planned), _) => format!("{} planned", items(&run.kind, planned)),
        (None, Some(bytes)) => format!("{} planned", Size(bytes)),
        (None, None) => match run.outcome {
            Some(_) => "no plan".to_owned(),
            None => "no plan yet".to_owned(),
        },
    }
}

/// The items of a kind: what they are called, and what happens to them.
struct Items {
    one: &'static str,
    many: &'static str,
    changed: &'static str,
}

fn items_of(kind: &str) -> Items {
    let (one, many, changed) = match kind {
        "purge-local-media" | "purge-remote-media" => ("file", "files", "deleted"),
        "join-rooms" => ("member", "members", "joined"),
        "remove-external-ids" => ("external id", "external ids", "removed"),
        "delete-rooms" => ("room", "rooms", "shut down or purged"),
        "purge-history" => ("room", "rooms", "purged"),
        "protect-media" => ("file", "files", "protected or unprotected"),
        // A notice is told about an account, too.
        "lock-inactive-accounts" => ("account", "accounts", "told or locked"),
        "deactivate-accounts" => ("account", "accounts", "deactivated"),
        "delete-stale-devices" => ("device", "devices", "deleted"),
        "delete-registration-tokens" => ("registration token", "registration tokens", "deleted"),
        "delete-event-reports" | "delete-user-reports" => ("report", "reports", "deleted"),
        "request" => ("request", "requests", "sent"),
        _ => ("item", "items", "changed"),
    };
    Items { one, many, changed }
}

/// `12,408 files`.
pub(super) fn items(kind: &str, count: u64) -> String {
    let Items { one, many, .. } = items_of(kind);
    format_count(count, one, many)
}

/// `12,408 files deleted`.
pub(super) fn changed(kind: &str, count: u64) -> String {
    format!("{} {}", items(kind, count), items_of(kind).changed)
}

/// `files`.
pub(super) fn items_label(kind: &str) -> &'static str {
    items_of(kind).many
}

/// `files deleted`, under a figure.
pub(super) fn changed_label(kind: &str) -> String {
    let Items { many, changed, .. } = items_of(kind);
    format!("{many} {changed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_relative_absolute_and_complete() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let moment = |time: &str| Moment::of(time.parse().unwrap(), Tz::Europe__Berlin, now);
        let Moment { iso, title, relative, absolute } = moment("2026-11-24T02:30:00Z");
        assert_eq!(
            [iso, title, relative, absolute],
            [
                "2026-11-24T02:30:00Z",
                "2026-11-24 03:30:00 CET (Europe/Berlin)",
                "9 h 30 min ago",
                "24 Nov 03:30"
            ]
        );
        assert_eq!(moment("2025-11-24T02:30:00Z").absolute, "24 Nov 2025 03:30");
        for (time, expected) in [
            ("2026-11-24T11:59:58Z", "just now"),
            ("2026-11-24T11:59:15Z", "45 s ago"),
            ("2026-11-24T11:56:40Z", "3 min ago"),
            ("2026-11-24T17:12:59Z", "in 5 h 12 min"),
            ("2026-11-26T10:59:00Z", "in 1 d 22 h"),
            ("2026-12-24T12:00:00Z", "in 30 d"),
            ("2026-11-24T12:00:03Z", "now"),
        ] {
            assert_eq!(moment(time).relative, expected);
        }
    }
}
