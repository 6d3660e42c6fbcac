//! The events of runs and the state of jobs, as metrics.

use std::collections::BTreeMap;

use super::owner::{Entry, Owner};
use super::recollection::Standings;
use crate::history::Pause;
use crate::observe::metrics::{JobMetrics, RoundMetrics};
use crate::plan::report::{Event, Mode, Outcome, Report, State as ChangeState, Trigger};
use crate::values::clock::Timestamp;

impl Owner {
    /// Counts what a run emits.
    pub(super) fn observe(&mut self, job: &str, event: &Event) {
        let jobs = &self.metrics.jobs;
        match event {
            Event::Started(report) => {
                if let (Trigger::Schedule, Some(occurrence)) =
                    (report.trigger, report.scheduled_for)
                {
                    let delay = (report.started_at - occurrence).to_std().unwrap_or_default();
                    self.metrics.start_delay.observe(delay.as_secs_f64());
                }
            }
            Event::Waiting(_) => jobs.update(job, |series| series.waiting = true),
            Event::Retrying { .. } => jobs.update(job, |series| {
                series.waiting = true;
                series.retries += 1;
            }),
            Event::Resumed => jobs.update(job, |series| series.waiting = false),
            // What an undo restores is no work of the job.
            Event::Changed(change) => jobs.update(job, |series| match change.state {
                _ if change.action != series.action => {}
                ChangeState::Done => series.done += change.count,
                ChangeState::Failed => series.failed += change.count,
                ChangeState::Planned | ChangeState::Skipped => {}
            }),
            Event::Ended(report) => self.count_end(job, report),
            _ => {}
        }
    }

    fn count_end(&mut self, job: &str, report: &Report) {
        let worked = report.work_duration().unwrap_or_default();
        self.metrics.run_duration.with_label_values(&[&report.kind]).observe(worked.as_secs_f64());
        let entry = self.jobs.get(job);
        self.metrics.jobs.update(job, |series| {
            series.waiting = false;
            let outcome = report.outcome.unwrap_or(Outcome::Failed);
            *series.runs.entry((report.mode, outcome)).or_default() += 1;
            series.bytes_freed += report.bytes_freed.unwrap_or(0);
            if report.mode == Mode::Approve {
                series.approval_pending = report.approval.is_some();
            }
            series.last_run = Some(Report { changes: None, sample: Vec::new(), ..report.clone() });
            // A manual dry run says nothing about a job that is to make changes.
            let is_of_mode = report.mode == series.mode
                || (report.mode, series.mode) == (Mode::Apply, Mode::Approve);
            let counts = is_of_mode && report.trigger != Trigger::Undo;
            if counts {
                if let (Some(metrics), Some(round)) = (&mut series.round, report.round) {
                    metrics.progress = round.progress();
                    metrics.finished_at = round.finished_at.or(metrics.finished_at);
                }
                if outcome == Outcome::Succeeded {
                    // A plan that nobody looks at must not pass for work.
                    if report.approval.is_none() {
                        series.last_success = report.finished_at;
                    }
                    series.consecutive_failures = 0;
                } else {
                    series.consecutive_failures += 1;
                }
            }
            if let Some(entry) = entry {
                series.success_due = self.success_due(entry, series.last_success);
            }
        });
    }

    /// Counts runs that ended in no process that counted them.
    pub(super) fn count_interrupted(&self, runs: &[Report]) {
        for run in runs {
            self.metrics.jobs.update(&run.job, |series| {
                *series.runs.entry((run.mode, Outcome::Interrupted)).or_default() += 1;
            });
        }
    }

    /// Shows the state of a job in the metrics.
    pub(super) fn publish(&self, job: &str) {
        let Some(entry) = self.jobs.get(job) else { return };
        self.metrics.jobs.update(job, |series| show(series, entry));
    }

    /// Works out again by when each job must have succeeded.
    pub(super) fn refresh_due(&self) {
        let mut table = self.metrics.jobs.table();
        for (job, entry) in &self.jobs {
            if let Some(series) = table.get_mut(job) {
                series.success_due = self.success_due(entry, series.last_success);
            }
        }
    }

    /// By when a job must have succeeded; where another replica may run it, that one knows.
    fn success_due(&self, entry: &Entry, last_success: Option<Timestamp>) -> Option<Timestamp> {
        if self.is_standby(entry) {
            return None;
        }
        success_due(self.pause, entry, last_success)
    }

    /// Gives each job its series: a new job what the history knows about it, an existing one its new description.
    pub(super) fn describe(&mut self, standings: Option<Standings>) {
        let mut standings = standings;
        let mut table = self.metrics.jobs.table();
        table.retain(|job, _| self.jobs.contains_key(job));
        for (job, entry) in &self.jobs {
            let described = blank(entry);
            let series = table.entry(job.clone()).or_insert_with(|| Box::new(described.clone()));
            if series.mode != described.mode {
                // A success in another mode says nothing about this one.
                (series.last_success, series.consecutive_failures) = (None, 0);
                series.round = described.round;
            }
            if let Some(standings) = &mut standings
                && series.recalled != Some(described.mode)
            {
                series.recalled = Some(described.mode);
                recall(series, job, described.mode, standings);
            }
            (series.homeserver, series.kind, series.action) =
                (described.homeserver, described.kind, described.action);
            // A job may get another kind.
            series.round = described.round.and(series.round.or(described.round));
            (series.schedule, series.timezone, series.mode) =
                (described.schedule, described.timezone, described.mode);
            series.success_due = self.success_due(entry, series.last_success);
            show(series, entry);
        }
    }

    /// Whether some job's standing has to be read from the history.
    pub(super) fn needs_standings(&self) -> bool {
        let table = self.metrics.jobs.table();
        self.jobs.iter().any(|(job, entry)| {
            let mode = Some(entry.spec.common.mode);
            table.get(job).is_none_or(|series| series.recalled != mode)
        })
    }
}

/// Takes from the history how a job stood before the daemon started.
fn recall(series: &mut JobMetrics, job: &str, mode: Mode, standings: &mut Standings) {
    series.last_run = series.last_run.take().or_else(|| standings.last_runs.remove(job));
    // What could not be recorded came after what was.
    if series.last_success.is_none() {
        let of = |mode| standings.by_mode.get(&(job.to_owned(), mode)).copied().unwrap_or_default();
        let standing = of(mode);
        series.last_success = standing.last_success;
        if mode == Mode::Approve {
            series.last_success = standing.last_success.max(of(Mode::Apply).last_success);
        }
        series.consecutive_failures += standing.failures;
    }
    let recorded = standings.rounds.get(&(job.to_owned(), mode));
    if let (Some(round), Some(recorded)) = (&mut series.round, recorded) {
        let (progress, finished_at) = (recorded.round().progress(), recorded.finished_at);
        *round = RoundMetrics { progress, finished_at };
    }
}

fn show(series: &mut JobMetrics, entry: &Entry) {
    let next = entry.state.next();
    series.next_run = match next.filter(|next| entry.spec.is_outside_window(*next)) {
        Some(outside) => entry.spec.next(outside),
        None => next,
    };
    series.held = entry.state.is_waiting();
    series.running = entry.running.as_ref().is_some_and(|running| running.started);
}

fn blank(entry: &Entry) -> JobMetrics {
    let spec = &entry.spec;
    JobMetrics {
        homeserver: spec.homeserver.clone(),
        kind: spec.job.kind().name,
        schedule: spec
            .schedule
            .as_ref()
            .map(|schedule| schedule.as_str().to_owned())
            .unwrap_or_default(),
        timezone: spec.zone.to_string(),
        mode: spec.common.mode,
        action: spec.job.kind().action,
        runs: BTreeMap::new(),
        skipped: BTreeMap::new(),
        retries: 0,
        running: false,
        waiting: false,
        held: false,
        recalled: None,
        next_run: None,
        last_run: None,
        last_success: None,
        success_due: None,
        consecutive_failures: 0,
        approval_pending: false,
        round: spec.job.kind().rounds.map(|_| RoundMetrics::default()),
        done: 0,
        failed: 0,
        bytes_freed: 0,
    }
}

/// The end of the second occurrence in the job's window since the last success, or since nothing kept the job from running.
fn success_due(pause: Pause, entry: &Entry, last_success: Option<Timestamp>) -> Option<Timestamp> {
    let spec = &entry.spec;
    let schedule = spec.schedule.as_ref().filter(|_| spec.common.enabled && !pause.paused)?;
    let from = last_success.into_iter().chain([entry.since]).chain(pause.resumed_at).max()?;
    let second = match spec.common.window {
        Some(_) => spec.next(spec.next(from)?)?,
        None => schedule.after(from, spec.zone).nth(1)?.to_utc(),
    };
    Some(second + spec.common.time_limit.as_chrono() + spec.common.splay.as_chrono())
}
