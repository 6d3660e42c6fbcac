//! How long to wait before the next request, according to a response.

use std::time::Duration;

use chrono::DateTime;

use crate::values::clock::Timestamp;

/// A longer wait counts as this.
const MAX: Duration = Duration::from_hours(24);

/// Parses `retry_after_ms` of Matrix's error envelope; anything but a number from 0 up is ignored.
pub(super) fn from_envelope(milliseconds: &serde_json::Value) -> Option<Duration> {
    let milliseconds = milliseconds.as_f64().filter(|milliseconds| *milliseconds >= 0.0)?;
    Some(Duration::from_secs_f64((milliseconds / 1000.0).min(MAX.as_secs_f64())))
}

/// Parses the `Retry-After` header (RFC 9110): a number of seconds, or an HTTP date.
///
/// The wait until a date counts from the response's own `Date` where it has one, because the clock of the server may
/// differ from `now`, the local one. A date in the past means no wait.
pub(super) fn from_header(value: &str, date: Option<&str>, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if value.is_empty() {
        return None;
    }
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that exceed a u64 are more than MAX.
        let seconds = value.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(MAX));
    }
    let until = parse_date(value)?;
    let now = date.and_then(parse_date).unwrap_or(now);
    Some((until - now).to_std().unwrap_or_default().min(MAX))
}

fn parse_date(text: &str) -> Option<Timestamp> {
    DateTime::parse_from_rfc2822(text).ok().map(|date| date.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_a_number_of_seconds_or_a_date() {
        let now = "2026-11-23T03:30:00Z".parse().unwrap();
        let seconds =
            |value: &str, date| from_header(value, date, now).map(|wait| wait.as_secs_f64());
        for (value, wait) in [
            ("7", Some(7.0)),
            (" 7 ", Some(7.0)),
            ("99999999999999999999999999", Some(86_400.0)),
            ("", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("Mon, 23 Nov 2026 03:30:42 GMT", Some(42.0)),
            ("Mon, 23 Nov 2026 03:29:00 GMT", Some(0.0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(86_400.0)),
            ("31 Dec 262142 23:59:59 +0000", Some(86_400.0)),
            ("Mon, 23 Nov 2026", None),
        ] {
            assert_eq!(seconds(value, None), wait, "{value:?}");
        }
        let date = Some("Mon, 23 Nov 2026 03:40:00 GMT");
        assert_eq!(seconds("Mon, 23 Nov 2026 03:40:05 GMT", date), Some(5.0));
        assert_eq!(seconds("Mon, 23 Nov 2026 03:30:05 GMT", Some("today")), Some(5.0));
    }

    #[test]
    fn the_envelope_is_a_number_of_milliseconds() {
        for (value, wait) in [
            (serde_json::json!(1500), Some(Duration::from_millis(1500))),
            (serde_json::json!(0), Some(Duration::ZERO)),
            (serde_json::json!(1e300), Some(MAX)),
            (serde_json::json!(-5), None),
            (serde_json::json!("1500"), None),
            (serde_json::json!(null), None),
        ] {
            assert_eq!(from_envelope(&value), wait, "{value}");
        }
    }
}
