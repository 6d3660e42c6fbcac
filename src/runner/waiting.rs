//! What a run waits for: a place among the runs, a moment, an answer; and what ends its waiting.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Ending, LOOK_FOR_PLACE, Phase, Run, RunSlots, Stopped, truncated};
use crate::plan::report::{Event, Mode, WaitReason, Waiting};
use crate::synapse::Silence;

/// How often to look whether the window is over while something is waited for.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);
/// How often to look whether the homeserver answers.
const LOOK_FOR_ANSWERS: Duration = Duration::from_millis(500);
/// A shorter silence is over before anybody wonders.
const HICCUP: Duration = Duration::from_secs(2);
/// A shorter wait is over before anybody reads of it.
const WORTH_RECORDING: Duration = Duration::from_secs(1);

impl Run<'_> {
    /// Waits for one of the homeserver's places for runs; it is given back on drop.
    pub(super) async fn place(&self, places: &RunSlots) -> Result<Box<dyn Send>, Ending> {
        if let Some(place) = self.free_place(places)? {
            return Ok(place);
        }
        let what = format!("another run on {} to end", self.spec.homeserver);
        self.tell(Event::Waiting(what.clone()));
        let place = self.waits(WaitReason::Slot, what, self.next_place(places)).await?;
        self.tell(Event::Resumed);
        Ok(place)
    }

    async fn next_place(&self, places: &RunSlots) -> Result<Box<dyn Send>, Ending> {
        match places {
            // In the order in which they came.
            RunSlots::Shared(places) => tokio::select! {
                place = Arc::clone(places).acquire_owned() => Ok(Box::new(place)),
                stopped = self.until_stopped() => Err(Ending::Stopped(stopped)),
            },
            RunSlots::Locks(_) => loop {
                self.pause(LOOK_FOR_PLACE).await.map_err(Ending::Stopped)?;
                if let Some(place) = self.free_place(places)? {
                    return Ok(place);
                }
            },
        }
    }

    /// Waits for what is no part of the work; a wait that lasts is recorded, so that other processes can tell.
    pub(super) async fn waits<T, E>(
        &self,
        reason: WaitReason,
        what: String,
        ready: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let before = self.enter(Phase::Waiting(what.clone()));
        let waiting = Waiting { what, since: truncated(self.runner.clock.now()) };
        *self.wait.lock().unwrap_or_else(PoisonError::into_inner) = Some((reason, Instant::now()));
        let mut ready = pin!(ready);
        let waited = if let Ok(waited) = timeout(WORTH_RECORDING, &mut ready).await {
            waited
        } else {
            self.record_wait(Some(waiting)).await;
            let waited = ready.await;
            self.record_wait(None).await;
            waited
        };
        self.count_wait();
        // A run that is stopped while it waits ends in this phase.
        if waited.is_ok() {
            self.enter(before);
        }
        waited
    }

    /// A run waits also where that cannot be recorded.
    async fn record_wait(&self, waiting: Option<Waiting>) {
        let report = {
            let mut report = self.report();
            report.waiting = waiting;
            report.clone()
        };
        if let Err(error) = self.runner.history.update_run(&report).await {
            tracing::debug!(target: "microglia::history", job = %report.job, "cannot record that the run waits: {error}");
        }
    }

    /// Adds the wait that is over, or that the end of the run cut short, to what the run waited.
    pub(super) fn count_wait(&self) {
        let over = self.wait.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((reason, since)) = over else { return };
        let mut report = self.report();
        report.waiting = None;
        report.waited_seconds += since.elapsed().as_secs_f64();
        if !report.waited_for.contains(&reason) {
            report.waited_for.push(reason);
        }
    }

    fn free_place(&self, places: &RunSlots) -> Result<Option<Box<dyn Send>>, Ending> {
        match places {
            RunSlots::Shared(places) => {
                let place = Arc::clone(places).try_acquire_owned().ok();
                Ok(place.map(|place| Box::new(place) as Box<dyn Send>))
            }
            RunSlots::Locks(places) => self.locked_place(*places),
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
                    tracing::warn!(target: "microglia::history", "the locks in the state directory cannot be used: {error}");
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

    /// Tells when the homeserver stops answering, and when it answers again.
    pub(super) async fn watch_answers(&self) -> Infallible {
        let mut silent_since: Option<Instant> = None;
        loop {
            tokio::time::sleep(LOOK_FOR_ANSWERS).await;
            let silence = self.reader.silence().filter(|silence| silence.since.elapsed() > HICCUP);
            match (silent_since, silence) {
                (None, Some(Silence { since, problem })) => {
                    silent_since = Some(since);
                    let since = truncated(self.runner.clock.now() - since.elapsed());
                    self.tell(Event::Silent { since, problem });
                }
                (Some(since), None) => {
                    silent_since = None;
                    self.tell(Event::Answering { after_seconds: since.elapsed().as_secs() });
                }
                _ => {}
            }
        }
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
            return Some(Stopped::RunOverrides(outcome));
        }
        if Instant::now() >= self.deadline {
            return Some(Stopped::TimeLimit);
        }
        let over = self.order.mode == Mode::Apply
            && self.window_end.is_some_and(|end| self.runner.clock.now() >= end);
        over.then_some(Stopped::Window)
    }
}
