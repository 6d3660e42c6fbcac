//! What ends a run before its work is done: a request to stop, the time limit, the window.

use std::time::Duration;

use tokio::time::Instant;

use super::stop::Stop;
use crate::plan::report::Outcome;
use crate::values::clock::{Clock, Timestamp};

/// How often to compare the clock with the end of the window.
const CLOCK_POLL: Duration = Duration::from_secs(1);

pub(super) struct Limits<'a> {
    pub stop: &'a Stop,
    pub deadline: Instant,
    pub window_end: Option<Timestamp>,
    pub clock: &'a Clock,
}

/// Why a run has to end before its next change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    Requested(Outcome),
    TimeLimit,
    Window,
}

impl Limits<'_> {
    pub fn stopped(&self) -> Option<Stopped> {
        if let Some(outcome) = self.stop.outcome() {
            Some(Stopped::Requested(outcome))
        } else if Instant::now() >= self.deadline {
            Some(Stopped::TimeLimit)
        } else if self.window_end.is_some_and(|end| self.clock.now() >= end) {
            Some(Stopped::Window)
        } else {
            None
        }
    }

    pub async fn until_stopped(&self) -> Stopped {
        loop {
            if let Some(stopped) = self.stopped() {
                return stopped;
            }
            // The clock may be set, so no timer knows when the window ends.
            let wake = match self.window_end {
                Some(_) => self.deadline.min(Instant::now() + CLOCK_POLL),
                None => self.deadline,
            };
            tokio::select! {
                () = self.stop.requested() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Waits for something that changes nothing, unless the run has to stop first.
    pub async fn unless_stopped<T>(&self, ready: impl Future<Output = T>) -> Result<T, Stopped> {
        let ready = tokio::select! {
            stopped = self.until_stopped() => return Err(stopped),
            ready = ready => ready,
        };
        match self.stopped() {
            Some(stopped) => Err(stopped),
            None => Ok(ready),
        }
    }

    pub async fn sleep(&self, wait: Duration) -> Result<(), Stopped> {
        self.unless_stopped(tokio::time::sleep(wait)).await
    }

    /// The time until the time limit or the end of the window, whichever is earlier.
    pub fn time_for_changes(&self) -> Duration {
        let left = self.window_end.map(|end| end - self.clock.now());
        let window = left.map(|left| left.to_std().unwrap_or_default());
        self.time_left().min(window.unwrap_or(Duration::MAX))
    }

    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}
