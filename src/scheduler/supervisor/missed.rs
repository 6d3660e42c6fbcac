//! What the history knows at a start: a pause, and what was missed or cut off, which is caught up once, in the job's window.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;

use super::{Adopted, Entry, Supervisor};
use crate::config::{Config, JobSpec};
use crate::history::{self, Pause, ScheduleState};
use crate::observe::metrics::Skipped;
use crate::plan::report::{Outcome, Report, Trigger};
use crate::runner::RunParams;
use crate::values::clock::{Timestamp, format_time};

/// An occurrence that is to be caught up. It holds up nothing: the job may be run by hand meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Missed {
    pub(super) occurrence: Timestamp,
    /// Attempts of the interrupted run that its run goes on with.
    attempts_made: u32,
}

/// How often what waits for its window looks at the clock and the config: either may be changed, and timers sleep when the machine does.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Supervisor {
    /// Adopts the first config, and takes up what the history knows: a pause, what was interrupted, and what was missed.
    pub async fn start(self: &Arc<Self>, config: &Config) -> Result<Adopted, anyhow::Error> {
        self.recall(self.runner.history.pause(self.runner.dir.as_ref()).await);
        let ended = self.end_interrupted().await;
        let adopted = self.adopt(config).await?;
        self.count_interrupted(&ended);
        let known = self.upsert_schedules().await;
        Self::written(self.catch_up(&known).await);
        Ok(adopted)
    }

    /// Opens a history that is not open; what was refused meanwhile for want of it counts as missed.
    pub async fn open_history(self: &Arc<Self>) -> Result<(), history::Error> {
        let (Some(dir), history) = (&self.runner.dir, &self.runner.history) else { return Ok(()) };
        history.open_now(dir, |pause| self.recall(pause)).await?;
        tracing::info!(target: "microglia::scheduler", "the history is open: runs in apply mode are no longer refused");
        let pause = self.state().pause;
        if pause.paused {
            // It may be another history than the one in which that was written.
            Self::written(history.set_pause(pause).await);
        }
        let ended = self.end_interrupted().await;
        let known = self.upsert_schedules().await;
        self.describe(&known).await;
        self.count_interrupted(&ended);
        Self::written(self.catch_up(&known).await);
        Ok(())
    }

    /// Ends the record of every run that was cut off without a word.
    async fn end_interrupted(&self) -> Vec<Report> {
        let ended = match &self.runner.dir {
            Some(dir) => Self::written(self.runner.history.end_interrupted(dir).await),
            None => Vec::new(),
        };
        for run in &ended {
            let (job, id) = (&run.job, run.id.unwrap_or_default());
            let message = run.message.as_deref().unwrap_or_default();
            tracing::warn!(target: "microglia::run", %job, homeserver = %run.homeserver, run = id, outcome = "interrupted", "{job}: run {id} interrupted: {message}");
        }
        ended
    }

    /// They ended in no process that counted them.
    fn count_interrupted(&self, ended: &[Report]) {
        for run in ended {
            self.metrics.jobs.update(&run.job, |series| {
                *series.runs.entry((run.mode, Outcome::Interrupted)).or_default() += 1;
            });
        }
    }

    /// Recalls whether scheduled runs were paused; where that cannot be read, they are: somebody may have stopped what destroys.
    fn recall(&self, pause: Result<Pause, history::Error>) {
        let mut state = self.state();
        match pause {
            Ok(pause) => {
                if pause.paused {
                    tracing::warn!(
                        target: "microglia::scheduler",
                        "scheduled runs are paused since before the start: nothing runs on schedule until `microglia resume`"
                    );
                }
                if std::mem::take(&mut state.pause_assumed) {
                    state.pause = pause;
                } else {
                    // One that was asked for since the start stays.
                    state.pause.paused |= pause.paused;
                    state.pause.resumed_at = state.pause.resumed_at.max(pause.resumed_at);
                }
            }
            Err(error) => {
                tracing::error!(
                    target: "microglia::scheduler",
                    "whether scheduled runs are paused cannot be read ({error}), so that they are: nothing runs on schedule until it can be, or `microglia resume`"
                );
                state.pause_assumed |= !state.pause.paused;
                state.pause.paused = true;
            }
        }
        self.metrics.paused.set(f64::from(u8::from(state.pause.paused)));
    }

    /// Has what came while the daemon was down, or had no history, and what was interrupted, run once.
    async fn catch_up(
        self: &Arc<Self>,
        known: &HashMap<String, ScheduleState>,
    ) -> Result<(), history::Error> {
        let interrupted = self.runner.history.interrupted().await?;
        let now = self.clock.now();
        let specs: Vec<Arc<JobSpec>> =
            self.state().jobs.values().map(|entry| Arc::clone(&entry.spec)).collect();
        for spec in specs.iter().filter(|spec| spec.common.enabled) {
            let job = &spec.name;
            let (Some(schedule), Some(known)) = (&spec.schedule, known.get(job)) else { continue };
            if let Some(last) = known.watermark.filter(|last| *last > now) {
                // The clock was set back since.
                self.agenda().remember(job, last, now);
            }
            // What is due from here on is on the agenda.
            let until = match self.agenda().next(job) {
                Some(next) if next <= now => next - TimeDelta::milliseconds(1),
                _ => now,
            };
            // What was dealt with may have been of another schedule.
            let from = known.watermark.map_or(known.since, |moment| moment.max(known.since));
            let missed = schedule.last(from, until, spec.zone);
            let left = interrupted
                .iter()
                .find(|run| run.job == *job && run.mode == spec.common.mode)
                // What must not be sent twice may have been sent when the run was cut off.
                .filter(|run| spec.job.is_repeatable() || run.done + run.failed == 0)
                .and_then(|run| Some((run.scheduled_for?, run.attempts)))
                .filter(|(occurrence, _)| {
                    known.watermark == Some(*occurrence) && *occurrence > known.since
                });
            // An occurrence that came after the interrupted one stands for it.
            let (occurrence, attempts_made) = match (missed, left) {
                (Some(missed), _) => (missed, 0),
                (None, Some((occurrence, attempts)))
                    if self.runner.history.interruptions(job, occurrence).await? <= 1 =>
                {
                    (occurrence, attempts.min(spec.common.retries.attempts - 1))
                }
                _ => continue,
            };
            let young =
                spec.common.catch_up.0.is_some_and(|age| now - occurrence <= age.as_chrono());
            match () {
                () if self.is_paused() => self.skip(job, Some(until), Skipped::Paused),
                () if !young => self.skip(job, Some(until), Skipped::Missed),
                () => self.miss(spec, Missed { occurrence, attempts_made }),
            }
        }
        Ok(())
    }

    fn miss(self: &Arc<Self>, spec: &JobSpec, missed: Missed) {
        let job = spec.name.clone();
        {
            let mut state = self.state();
            let Some(entry) = state.jobs.get_mut(&job) else { return };
            // Its run may have begun since the history was asked.
            if entry.begun >= Some(missed.occurrence) {
                return;
            }
            entry.missed = Some(missed);
        }
        let when = spec
            .common
            .window
            .filter(|_| spec.is_outside_window(self.clock.now()))
            .map(|window| format!(" when its window {window} opens"))
            .unwrap_or_default();
        tracing::info!(target: "microglia::scheduler", %job, "{job}: the occurrence of {} was missed or interrupted, and is caught up{when}", format_time(missed.occurrence));
        if self.still_waits(&job) && !std::mem::replace(&mut self.state().looks_at_missed, true) {
            self.tasks.spawn(Arc::clone(self).look_at_missed());
        }
    }

    /// Looks whether anything that was missed can start, until nothing is left.
    async fn look_at_missed(self: Arc<Self>) {
        while let Err(_goes_on) = tokio::time::timeout(LOOK_AGAIN, self.draining.cancelled()).await
        {
            let waiting: Vec<String> = {
                let mut state = self.state();
                let missed = state.jobs.iter().filter(|(_, entry)| entry.missed.is_some());
                let waiting: Vec<String> = missed.map(|(job, _)| job.clone()).collect();
                state.looks_at_missed = !waiting.is_empty();
                waiting
            };
            if waiting.is_empty() {
                return;
            }
            for job in waiting {
                self.still_waits(&job);
            }
        }
    }

    /// Starts what was missed as soon as nothing keeps it; answers whether something still does.
    fn still_waits(self: &Arc<Self>, job: &str) -> bool {
        let mut state = self.state();
        let (paused, now) = (state.pause.paused, self.clock.now());
        let Some(entry) = state.jobs.get_mut(job) else { return false };
        let Some(missed) = entry.missed else { return false };
        if self.draining.is_cancelled() {
            return false;
        }
        // What is due by now comes in a moment, and stands for what was missed.
        let due = self.agenda().next(job).is_some_and(|next| next <= now);
        if entry.running.is_some() || entry.spec.is_outside_window(now) || due {
            return true;
        }
        let latest = missed.latest(&entry.spec, now);
        if paused {
            entry.missed = None;
            drop(state);
            self.skip(job, Some(latest), Skipped::Paused);
            return false;
        }
        let order = RunParams {
            trigger: Trigger::CatchUp,
            scheduled_for: Some(latest),
            // A later occurrence has all its attempts.
            attempts_made: if latest == missed.occurrence { missed.attempts_made } else { 0 },
            ..RunParams::manual(&entry.spec)
        };
        self.launch(entry, order, None);
        false
    }
}

impl Missed {
    /// The last occurrence by now: one run stands for all.
    pub(super) fn latest(self, spec: &JobSpec, now: Timestamp) -> Timestamp {
        let schedule = spec.schedule.as_ref();
        let latest = schedule.and_then(|schedule| schedule.last(self.occurrence, now, spec.zone));
        latest.unwrap_or(self.occurrence)
    }
}

impl Entry {
    /// Forgets what was missed or queued where the job is disabled or rescheduled, as a restart would.
    pub(super) fn forget_other_schedule(&mut self, new: &JobSpec) {
        if (&self.spec.schedule, self.spec.zone) == (&new.schedule, new.zone) && new.common.enabled
        {
            return;
        }
        (self.queued, self.passed) = (None, None);
        if self.missed.take().is_some() {
            let job = &new.name;
            tracing::info!(target: "microglia::scheduler", %job, "{job}: what it missed is not caught up: it was disabled or rescheduled");
        }
    }
}
