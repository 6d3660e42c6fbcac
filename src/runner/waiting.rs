//! What a run waits for: a place among the runs, a moment, an answer; and what ends its waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Ending, LOOK_FOR_PLACE, Places, Run, Stopped};
use crate::report::{Event, Mode};

/// How often to look whether the window is over while something is waited for.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);

impl Run<'_> {
    /// Waits for one of the homeserver's places for runs; it is given back on drop.
    pub(super) async fn place(&self, places: &Places) -> Result<Box<dyn Send>, Ending> {
        if let Some(place) = self.free_place(places)? {
            return Ok(place);
        }
        self.tell(Event::Waiting(format!("for another run on {} to end", self.spec.homeserver)));
        let place: Box<dyn Send> = match places {
            // In the order in which they came.
            Places::Shared(places) => tokio::select! {
                place = Arc::clone(places).acquire_owned() => Box::new(place),
                stopped = self.until_stopped() => return Err(Ending::Stopped(stopped)),
            },
            Places::Locks(_) => loop {
                self.pause(LOOK_FOR_PLACE).await.map_err(Ending::Stopped)?;
                if let Some(place) = self.free_place(places)? {
                    break place;
                }
            },
        };
        self.tell(Event::Resumed);
        Ok(place)
    }

    fn free_place(&self, places: &Places) -> Result<Option<Box<dyn Send>>, Ending> {
        match places {
            Places::Shared(places) => {
                let place = Arc::clone(places).try_acquire_owned().ok();
                Ok(place.map(|place| Box::new(place) as Box<dyn Send>))
            }
            Places::Locks(places) => self.locked_place(*places),
        }
    }

    fn locked_place(&self, places: u32) -> Result<Option<Box<dyn Send>>, Ending> {
        let Some(dir) = &self.runner.dir else { return Ok(Some(Box::new(()))) };
        let address = self.reader.address().file_name();
        for place in 0..places {
            // The dot keeps it apart from the locks of jobs.
            match dir.try_lock(&format!("address-{address}.{place}")) {
                Ok(Some(lock)) => return Ok(Some(Box::new(lock))),
                Ok(None) => {}
                Err(error) if self.order.mode == Mode::DryRun => {
                    tracing::warn!("the locks in the state directory cannot be used: {error}");
                    return Ok(Some(Box::new(())));
                }
                Err(error) => {
                    return Err(Ending::Refused(format!(
                        "the locks in the state directory cannot be used: {error}"
                    )));
                }
            }
        }
        Ok(None)
    }

    /// Sleeps, unless the run is to stop first.
    pub(super) async fn pause(&self, wait: Duration) -> Result<(), Stopped> {
        self.wait_for(tokio::time::sleep(wait)).await
    }

    /// Waits for something that changes nothing, unless the run is to stop first.
    pub(super) async fn wait_for<T>(&self, ready: impl Future<Output = T>) -> Result<T, Stopped> {
        let ready = tokio::select! {
            stopped = self.until_stopped() => return Err(stopped),
            ready = ready => ready,
        };
        match self.stopped() {
            Some(stopped) => Err(stopped),
            None => Ok(ready),
        }
    }

    /// Waits until the run has to end before its next change.
    pub(super) async fn until_stopped(&self) -> Stopped {
        loop {
            if let Some(stopped) = self.stopped() {
                return stopped;
            }
            // The clock may be set, so that the end of the window is no moment that a timer knows.
            let look = match self.window_end {
                Some(_) => self.deadline.min(Instant::now() + LOOK_AT_CLOCK),
                None => self.deadline,
            };
            tokio::select! {
                () = self.stop.at_boundary.cancelled() => {}
                () = tokio::time::sleep_until(look) => {}
            }
        }
    }

    /// Whether the run has to end before its next change.
    pub(super) fn stopped(&self) -> Option<Stopped> {
        if let Some(outcome) = self.stop.outcome() {
            return Some(Stopped::Asked(outcome));
        }
        if Instant::now() >= self.deadline {
            return Some(Stopped::TimeLimit);
        }
        let over = self.order.mode == Mode::Apply
            && self.window_end.is_some_and(|end| self.runner.clock.now() >= end);
        over.then_some(Stopped::Window)
    }
}
