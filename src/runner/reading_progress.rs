//! How far a run has got with reading, and how long it would take to finish.

use std::time::Duration;

use tokio::time::Instant;

use crate::values::duration::{format_duration, rounded_up};
use crate::values::text::format_number;

/// The list that a run reads at present.
#[derive(Debug)]
pub(super) struct ReadingProgress {
    /// What the list contains; empty before the first response.
    what: String,
    done: u64,
    total: u64,
    /// When reading the list began, and how many requests had been completed by then.
    since: (Instant, u64),
    /// When its last progress was reported, and how many requests had been completed by then.
    last: (Instant, u64),
}

impl ReadingProgress {
    pub(super) fn begin(answered: u64) -> Self {
        let now = (Instant::now(), answered);
        Self { what: String::new(), done: 0, total: 0, since: now, last: now }
    }

    pub(super) fn advance(&mut self, what: &str, done: u64, total: u64, answered: u64) {
        if self.what != what {
            what.clone_into(&mut self.what);
            self.since = self.last;
        }
        (self.done, self.total) = (done, total);
        self.last = (Instant::now(), answered);
    }

    /// How far the reading has got; `None` if nothing has been read yet.
    pub(super) fn so_far(&self, answered: u64) -> Option<String> {
        Some(self.progress(answered)?.so_far())
    }

    /// The advice for a run that began at `start` and reached its time limit; `None` if nothing has been read yet.
    pub(super) fn unfinished(&self, start: Instant, answered: u64) -> Option<String> {
        let before = self.since.0.saturating_duration_since(start);
        Some(self.progress(answered)?.unfinished(before))
    }

    fn progress(&self, answered: u64) -> Option<Progress<'_>> {
        let (since, answered_before) = self.since;
        (!self.what.is_empty()).then(|| Progress {
            what: &self.what,
            done: self.done,
            total: self.total,
            took: since.elapsed(),
            requests: answered.saturating_sub(answered_before),
        })
    }
}

struct Progress<'a> {
    what: &'a str,
    done: u64,
    total: u64,
    /// The time that this list took so far.
    took: Duration,
    /// Requests in that time.
    requests: u64,
}

#[expect(clippy::cast_precision_loss, reason = "rounded figures do as well")]
impl Progress<'_> {
    fn so_far(&self) -> String {
        let Self { what, done, total, took, requests } = self;
        let of = if *total > 0 { format!(" of {}", format_number(*total)) } else { String::new() };
        let rate = *requests as f64 / took.as_secs_f64().max(0.001);
        let rate = if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") };
        format!(
            "{what}: {}{of} in {} at {rate} requests a second",
            format_number(*done),
            format_duration(*took)
        )
    }

    /// `before` is how long the run took before it began with this list.
    fn unfinished(&self, before: Duration) -> String {
        let Self { done, total, took, .. } = self;
        let needed = (0 < *done && done < total)
            .then(|| Duration::try_from_secs_f64(took.as_secs_f64() * *total as f64 / *done as f64))
            .and_then(Result::ok)
            .map(|all| {
                format!(" to at least {}", format_duration(rounded_up(all.saturating_add(before))))
            })
            .unwrap_or_default();
        format!("reading {}; raise time_limit{needed}", self.so_far())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_so_far_predicts_the_total_duration() {
        let shown = |what, done, total, before, took, requests| {
            let [before, took] = [before, took].map(Duration::from_secs);
            Progress { what, done, total, took, requests }.unfinished(before)
        };
        insta::assert_snapshot!(
            [
                shown("accounts", 180_000, 1_000_000, 0, 3600, 180_000),
                shown("files", 5, 10, 1800, 1800, 900),
                shown("accounts", 0, 1_000_000, 0, 3600, 3),
                shown("rooms", 7, 0, 0, 60, 7),
                shown("accounts", 1, u64::MAX, 0, 3600, 1),
            ]
            .join("\n"),
            @"
        reading accounts: 180,000 of 1,000,000 in 1 h at 50 requests a second; raise time_limit to at least 5 h 40 min
        reading files: 5 of 10 in 30 min at 0.5 requests a second; raise time_limit to at least 1 h 30 min
        reading accounts: 0 of 1,000,000 in 1 h at 0.0 requests a second; raise time_limit
        reading rooms: 7 in 1 min at 0.1 requests a second; raise time_limit
        reading accounts: 1 of 18,446,744,073,709,551,615 in 1 h at 0.0 requests a second; raise time_limit
        "
        );
    }
}
