//! A run's events as log lines: one when it starts, one when it ends, one per change.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::plan::report::{ChangeRecord, Event, Mode, Outcome, Report, State};
use crate::values::size::Size;
use crate::values::text::format_number;

/// Returns a listener that logs a run's events: on the target `microglia::run`, applied changes on `microglia::audit`.
pub(crate) fn log(job: &str, homeserver: &str) -> impl Fn(Event) + Send + Sync + use<> {
    let log =
        RunLog { job: job.to_owned(), homeserver: homeserver.to_owned(), run: AtomicI64::new(0) };
    move |event| log.event(event)
}

struct RunLog {
    job: String,
    homeserver: String,
    /// The id of the run, known once it has started; 0 for one that is not recorded.
    run: AtomicI64,
}

impl RunLog {
    fn event(&self, event: Event) {
        let Self { job, homeserver, .. } = self;
        match event {
            Event::Started(report) => self.started(&report),
            Event::Changed(change) => self.changed(&change),
            Event::Waiting(what) => self.info(&format!("waiting for {what}")),
            Event::Retrying { attempt, attempts, wait_seconds, because } => {
                let run = self.run();
                tracing::warn!(target: "microglia::run", %job, %homeserver, run, attempt, wait_seconds, "{job}: run {run}: {because}; retrying in {wait_seconds} s (attempt {attempt} of {attempts})");
            }
            Event::Silent { since, problem } => {
                let since = since.format("%H:%M:%S UTC");
                let problem =
                    if problem.is_empty() { String::new() } else { format!(": {problem}") };
                self.warn(&format!("{homeserver} has not responded since {since}{problem}"));
            }
            Event::Answering { after_seconds } => {
                self.warn(&format!("{homeserver} responds again after {after_seconds} s"));
            }
            Event::Warning(warning) => self.warn(&warning),
            Event::Slow(true) => self.warn(&format!(
                "{homeserver} takes three times as long to respond as at the start of the run: sending requests at half the rate"
            )),
            Event::Slow(false) => self.info(&format!(
                "{homeserver} responds as fast as before: sending requests at the full rate"
            )),
            Event::Ended(report) => ended(&report),
            _ => {}
        }
    }

    fn run(&self) -> i64 {
        self.run.load(Ordering::Relaxed)
    }

    fn info(&self, text: &str) {
        let (Self { job, homeserver, .. }, run) = (self, self.run());
        tracing::info!(target: "microglia::run", %job, %homeserver, run, "{job}: run {run}: {text}");
    }

    fn warn(&self, text: &str) {
        let (Self { job, homeserver, .. }, run) = (self, self.run());
        tracing::warn!(target: "microglia::run", %job, %homeserver, run, "{job}: run {run}: {text}");
    }

    fn started(&self, report: &Report) {
        let (Self { job, homeserver, .. }, run) = (self, report.id.unwrap_or_default());
        let Report { mode, trigger, .. } = report;
        self.run.store(run, Ordering::Relaxed);
        tracing::info!(target: "microglia::run", %job, %homeserver, run, %mode, %trigger, "{job}: run {run} started ({mode}, {trigger})");
    }

    fn changed(&self, change: &ChangeRecord) {
        let (Self { job, homeserver, .. }, run) = (self, self.run());
        let ChangeRecord { action, target: change_target, count, .. } = change;
        let (count, detail) = (*count, change.detail.as_deref().unwrap_or_default());
        match change.state {
            // A request that found nothing to do changed nobody.
            State::Done if count == 0 => {}
            State::Done => {
                let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
                tracing::info!(target: "microglia::audit", %job, %homeserver, run, %action, change_target, count, "{job}: run {run}: {action} {change_target}{detail}");
            }
            State::Failed => {
                tracing::warn!(target: "microglia::run", %job, %homeserver, run, %action, change_target, "{job}: run {run}: {action} {change_target} failed: {detail}");
            }
            State::Planned | State::Skipped => {}
        }
    }
}

fn ended(report: &Report) {
    let Report { job, homeserver, mode, done, failed, skipped, remaining, .. } = report;
    let (run, outcome) = (report.id.unwrap_or_default(), report.outcome.unwrap_or(Outcome::Failed));
    let text = summary(report, run, outcome);
    match outcome {
        Outcome::Succeeded => {
            tracing::info!(target: "microglia::run", %job, %homeserver, run, %mode, %outcome, done, failed, skipped, remaining, "{text}");
        }
        // Expected: somebody cancelled the run, or stopped the daemon.
        Outcome::Cancelled | Outcome::Interrupted => {
            tracing::warn!(target: "microglia::run", %job, %homeserver, run, %mode, %outcome, done, failed, skipped, remaining, "{text}");
        }
        _ => {
            tracing::error!(target: "microglia::run", %job, %homeserver, run, %mode, %outcome, done, failed, skipped, remaining, "{text}");
        }
    }
}

/// `nightly: run 3 partial after 1.2 s (5 planned, 4 done, 1 failed, 0 skipped, 0 remaining): 1 target failed`.
fn summary(report: &Report, run: i64, outcome: Outcome) -> String {
    let Report { job, mode, done, failed, skipped, .. } = report;
    let worked = report.format_work_duration().unwrap_or_default();
    let planned = report
        .planned
        .map(|planned| format!("{} planned, ", format_number(planned)))
        .unwrap_or_default();
    let remaining = report
        .remaining
        .map_or_else(|| "remaining unknown".to_owned(), |count| format!("{count} remaining"));
    let bytes = report
        .bytes_freed
        .filter(|_| *mode == Mode::Apply)
        .map(|bytes| format!(", {} freed", Size(bytes)))
        .unwrap_or_default();
    let message = report.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    let dry_run = match report.planned {
        _ if report.approval.is_some() => {
            return format!(
                "{job}: run {run} {outcome} after {worked} ({planned}{done} done, {failed} failed, {skipped} skipped, {remaining}){message}; the plan waits for `microglia approve {run}` or `microglia reject {run}`",
            );
        }
        _ if *mode != Mode::DryRun || outcome != Outcome::Succeeded => "",
        Some(0) => "; dry run: nothing to change",
        _ => "; dry run: nothing was changed; set mode = \"apply\" to make the changes",
    };
    format!(
        "{job}: run {run} {outcome} after {worked} ({planned}{done} done, {failed} failed, {skipped} skipped, {remaining}{bytes}){message}{dry_run}",
    )
}
