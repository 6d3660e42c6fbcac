//! A run's events as log lines: one when it starts, one when it ends, one per change made.

use std::sync::Mutex;

use crate::plan::report::{Event, Mode, Outcome, Report, State};
use crate::values::size::Size;
use crate::values::text::format_number;

/// Writes a run's events into the log; changes go to the target `microglia::audit`.
pub fn log(job: &str, homeserver: &str) -> impl Fn(Event) + Send + Sync + use<> {
    let (job, homeserver, run) = (job.to_owned(), homeserver.to_owned(), Mutex::new(0));
    move |event| {
        let run_id = *run.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            Event::Started(report) => {
                let id = report.id.unwrap_or_default();
                *run.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = id;
                tracing::info!(%job, %homeserver, run = id, mode = %report.mode, trigger = %report.trigger, "{job}: run {id} starts ({}, {})", report.mode, report.trigger);
            }
            // A call that found nothing to do changed nobody.
            Event::Changed(change) if change.state == State::Done && change.count == 0 => {}
            Event::Changed(change) if change.state == State::Done => {
                let detail =
                    change.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
                tracing::info!(target: "microglia::audit", %job, %homeserver, run = run_id, action = %change.action, change_target = change.target, count = change.count, "{job}: run {run_id}: {} {}{detail}", change.action, change.target);
            }
            Event::Changed(change) if change.state == State::Failed => {
                tracing::warn!(%job, %homeserver, run = run_id, action = %change.action, change_target = change.target, "{job}: run {run_id}: {} {} failed: {}", change.action, change.target, change.detail.unwrap_or_default());
            }
            Event::Waiting(what) => {
                tracing::info!(%job, %homeserver, run = run_id, "{job}: run {run_id} waits for {what}");
            }
            Event::Retrying { attempt, attempts, wait_seconds, because } => {
                tracing::warn!(%job, %homeserver, run = run_id, attempt, wait_seconds, "{job}: run {run_id}: {because}; attempt {attempt} of {attempts} follows in {wait_seconds} s");
            }
            Event::Silent { since, problem } => {
                let since = since.format("%H:%M:%S UTC");
                let problem =
                    if problem.is_empty() { String::new() } else { format!(": {problem}") };
                tracing::warn!(%job, %homeserver, run = run_id, "{job}: run {run_id}: {homeserver} has not answered since {since}{problem}");
            }
            Event::Answering { after_seconds } => {
                tracing::warn!(%job, %homeserver, run = run_id, after_seconds, "{job}: run {run_id}: {homeserver} answers again after {after_seconds} s");
            }
            Event::Warning(warning) => {
                tracing::warn!(%job, %homeserver, run = run_id, "{job}: run {run_id}: {warning}");
            }
            Event::Slow(true) => {
                tracing::warn!(%job, %homeserver, run = run_id, "{job}: {homeserver} takes three times as long to answer as at the start of the run: sending at half the rate");
            }
            Event::Slow(false) => {
                tracing::info!(%job, %homeserver, run = run_id, "{job}: {homeserver} answers as fast as before again");
            }
            Event::Ended(report) => ended(&report),
            _ => {}
        }
    }
}

fn ended(report: &Report) {
    let Report { job, homeserver, mode, done, failed, skipped, remaining, .. } = report;
    let (run, outcome) = (report.id.unwrap_or_default(), report.outcome.unwrap_or(Outcome::Failed));
    let worked = report.format_work_duration().unwrap_or_default();
    let planned = report
        .planned
        .map(|planned| format!("{} planned, ", format_number(planned)))
        .unwrap_or_default();
    let bytes = report
        .bytes_freed
        .filter(|_| *mode == Mode::Apply)
        .map(|bytes| format!(", {} freed", Size(bytes)))
        .unwrap_or_default();
    let message = report.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    let dry = match report.planned {
        _ if *mode != Mode::DryRun || outcome != Outcome::Succeeded => "",
        Some(0) => "; a dry run, and there is nothing to change",
        _ => "; a dry run, nothing was changed: mode = \"apply\" makes the changes",
    };
    let left = remaining
        .map_or_else(|| "remaining unknown".to_owned(), |count| format!("{count} remaining"));
    let text = format!(
        "{job}: run {run} {outcome} after {worked} ({planned}{done} done, {failed} failed, {skipped} skipped, {left}{bytes}){message}{dry}",
    );
    match outcome {
        Outcome::Succeeded => {
            tracing::info!(%job, %homeserver, run, %mode, %outcome, done, failed, skipped, remaining, "{text}");
        }
        // Somebody wanted it so: a person, or who restarts the daemon.
        Outcome::Cancelled | Outcome::Interrupted => {
            tracing::warn!(%job, %homeserver, run, %mode, %outcome, done, failed, skipped, remaining, "{text}");
        }
        _ => {
            tracing::error!(%job, %homeserver, run, %mode, %outcome, done, failed, skipped, remaining, "{text}");
        }
    }
}
