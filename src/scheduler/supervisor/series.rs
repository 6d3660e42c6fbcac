//! What runs tell, as metrics.

use super::{Entry, State, Supervisor};
use crate::history::ScheduleState;
use crate::observe::metrics::JobMetrics;
use crate::plan::report::{Event, Outcome, Report, State as ChangeState, Trigger};
use crate::values::clock::Timestamp;
use std::collections::{BTreeMap, HashMap};

impl Supervisor {
    /// Hears what a run tells.
    pub(super) fn hear(&self, job: &str, event: &Event) {
        match event {
            Event::Started(report) => {
                if let Some(entry) = self.state().jobs.get_mut(job) {
                    if let (Some(_), Some(occurrence)) = (report.id, report.scheduled_for) {
                        entry.begun = Some(occurrence);
                        entry.missed.take_if(|missed| missed.occurrence <= occurrence);
                    }
                    if let Some(running) = &mut entry.running {
                        (running.begun, running.run) = (true, report.id);
                    }
                }
                if let (Trigger::Schedule, Some(occurrence)) =
                    (report.trigger, report.scheduled_for)
                {
                    self.metrics.start_delay.observe(
                        (report.started_at - occurrence).to_std().unwrap_or_default().as_secs_f64(),
                    );
                }
            }
            Event::Waiting(_) => self.metrics.jobs.update(job, |series| series.waiting = true),
            Event::Retrying { .. } => self.metrics.jobs.update(job, |series| {
                series.waiting = true;
                series.retries += 1;
            }),
            Event::Resumed => self.metrics.jobs.update(job, |series| series.waiting = false),
            Event::Changed(change) => self.metrics.jobs.update(job, |series| match change.state {
                ChangeState::Done => series.done += change.count,
                ChangeState::Failed => series.failed += change.count,
                ChangeState::Planned | ChangeState::Skipped => {}
            }),
            Event::Ended(report) => self.ended(job, report),
            Event::Reading { .. }
            | Event::Planned { .. }
            | Event::LeftAlone { .. }
            | Event::Changing { .. }
            | Event::Slow(_)
            | Event::Silent { .. }
            | Event::Answering { .. }
            | Event::Warning(_) => {}
        }
    }

    fn ended(&self, job: &str, report: &Report) {
        let worked = report.work_duration().unwrap_or_default();
        self.metrics.run_duration.with_label_values(&[&report.kind]).observe(worked.as_secs_f64());
        let state = self.state();
        let mode = state.jobs.get(job).map_or(report.mode, |entry| entry.spec.common.mode);
        self.metrics.jobs.update(job, |series| {
            series.waiting = false;
            let outcome = report.outcome.unwrap_or(Outcome::Failed);
            *series.runs.entry((report.mode, outcome)).or_default() += 1;
            series.bytes_freed += report.bytes_freed.unwrap_or(0);
            series.last_run = Some(Report { changes: None, sample: Vec::new(), ..report.clone() });
            // A dry run by hand says nothing of a job that is to make changes.
            if report.mode == mode {
                if outcome == Outcome::Succeeded {
                    series.last_success = report.finished_at;
                    series.consecutive_failures = 0;
                } else {
                    series.consecutive_failures += 1;
                }
            }
            if let Some(entry) = state.jobs.get(job) {
                series.success_due = success_due(&state, entry, series.last_success);
            }
        });
    }

    /// Works out anew by when each job must have succeeded.
    pub(super) fn refresh_due(&self) {
        let state = self.state();
        let mut table = self.metrics.jobs.table();
        for (job, entry) in &state.jobs {
            if let Some(series) = table.get_mut(job) {
                series.success_due = success_due(&state, entry, series.last_success);
            }
        }
    }

    /// The metrics as text, with each job's next occurrence as it is now.
    pub fn metrics_text(&self, ticked: Timestamp) -> Result<String, prometheus::Error> {
        {
            let (state, agenda) = (self.state(), self.agenda());
            let mut table = self.metrics.jobs.table();
            for (job, entry) in &state.jobs {
                if let Some(series) = table.get_mut(job) {
                    let due = agenda.next(job);
                    series.next_run = match due.filter(|due| entry.spec.is_outside_window(*due)) {
                        Some(outside) => entry.spec.next(outside),
                        None => due,
                    };
                    series.missed = entry.missed.is_some();
                    series.running = entry.running.as_ref().is_some_and(|running| running.begun);
                }
            }
        }
        self.metrics.text(ticked, self.runner.history.write_errors())
    }

    /// Gives each job its series: a new one what the history knows of it, an old one its new description.
    pub(super) async fn describe(&self, known: &HashMap<String, ScheduleState>) {
        let history = &self.runner.history;
        let to_recall = history.problem().is_none() && {
            let (state, table) = (self.state(), self.metrics.jobs.table());
            let recalled = |job: &String, entry: &Entry| {
                table.get(job).is_some_and(|series| series.recalled == Some(entry.spec.common.mode))
            };
            state.jobs.iter().any(|(job, entry)| !recalled(job, entry))
        };
        let (mut last_runs, standings) = match to_recall {
            true => {
                (Self::written(history.last_runs().await), Self::written(history.standings().await))
            }
            false => (HashMap::new(), HashMap::new()),
        };
        let mut state = self.state();
        for (job, entry) in &mut state.jobs {
            if let Some(known) = known.get(job) {
                entry.since = known.since;
            }
        }
        let mut table = self.metrics.jobs.table();
        table.retain(|job, _| state.jobs.contains_key(job));
        for (job, entry) in &state.jobs {
            let described = blank(entry);
            let series = table.entry(job.clone()).or_insert_with(|| described.clone());
            if series.mode != described.mode {
                // A success in another mode says nothing of this one.
                (series.last_success, series.consecutive_failures) = (None, 0);
            }
            if to_recall && series.recalled != Some(described.mode) {
                series.recalled = Some(described.mode);
                series.last_run = series.last_run.take().or_else(|| last_runs.remove(job));
                // What could not be recorded came after what was.
                if series.last_success.is_none() {
                    let standing =
                        standings.get(&(job.clone(), described.mode)).copied().unwrap_or_default();
                    series.last_success = standing.last_success;
                    series.consecutive_failures += standing.failures;
                }
            }
            (series.homeserver, series.kind, series.action) =
                (described.homeserver, described.kind, described.action);
            (series.schedule, series.timezone, series.mode) =
                (described.schedule, described.timezone, described.mode);
            series.success_due = success_due(&state, entry, series.last_success);
        }
    }
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
        missed: false,
        recalled: None,
        next_run: None,
        last_run: None,
        last_success: None,
        success_due: None,
        consecutive_failures: 0,
        done: 0,
        failed: 0,
        bytes_freed: 0,
    }
}

/// The end of the second occurrence in the job's window since the last success, or since nothing kept the job from running.
fn success_due(state: &State, entry: &Entry, last_success: Option<Timestamp>) -> Option<Timestamp> {
    let spec = &entry.spec;
    let schedule = spec.schedule.as_ref().filter(|_| spec.common.enabled && !state.pause.paused)?;
    let from = last_success.into_iter().chain([entry.since]).chain(state.pause.resumed_at).max()?;
    let second = match spec.common.window {
        Some(_) => spec.next(spec.next(from)?)?,
        None => schedule.after(from, spec.zone).nth(1)?.to_utc(),
    };
    Some(second + spec.common.time_limit.as_chrono() + spec.common.splay.as_chrono())
}
