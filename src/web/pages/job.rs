//! One job: its schedule, its configuration, and its runs.

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;

use super::super::access::Caller;
use super::super::app::App;
use super::charts::{Bars, number_unit, size_unit};
use super::format::Moment;
use super::layout::{Frame, Shell};
use super::page_error::{PageError, rendered};
use super::rows::RunRow;
use crate::config::TABLES;
use crate::plan::report::{Mode, Report};
use crate::scheduler::job_list::upcoming;
use crate::scheduler::job_view::JobView;
use crate::values::escape::line;
use crate::values::schedule::Schedule;
use crate::values::schema::Key;

#[derive(Template)]
#[template(path = "job.html")]
struct JobPage {
    shell: Shell,
    name: String,
    kind: &'static str,
    /// What the kind does, in a sentence, and the rest.
    about: &'static str,
    more_about: &'static str,
    homeserver: String,
    mode: &'static str,
    enabled: bool,
    is_running: bool,
    schedule: String,
    /// As it is written; `None` where the job runs only by hand.
    pattern: Option<String>,
    zone: &'static str,
    window: Option<String>,
    wait: Option<String>,
    next: Vec<Moment>,
    keys: Vec<KeyRow>,
    keys_withheld: bool,
    charts: Vec<Bars>,
    runs: Vec<RunRow>,
}

/// A key of the configuration.
struct KeyRow {
    name: &'static str,
    value: String,
    is_default: bool,
    about: &'static str,
}

const NEXT_SHOWN: usize = 5;
const RUNS_SHOWN: usize = 10;
const RUNS_IN_CHARTS: u32 = 60;

pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    job: Result<Path<String>, PathRejection>,
) -> Result<Response, PageError> {
    let Path(job) = job?;
    let frame = Frame::new(&app, &caller, &uri).await;
    let view = find(&frame, &job)?;
    let spec = &view.spec;
    let zone = spec.zone.0;
    let runs = app.history.runs(Some(&job), RUNS_IN_CHARTS).await?;
    let charts = charts(spec.common.mode, &runs, zone);
    let shell = frame.shell(&job, "jobs").await;
    let (keys, keys_withheld) = keys(&frame, view);
    let about = spec.job.kind().about;
    let (about, more_about) = about.find(". ").map_or((about, ""), |end| about.split_at(end + 1));
    Ok(rendered(&JobPage {
        kind: spec.job.kind().name,
        about,
        more_about: more_about.trim_start(),
        homeserver: spec.homeserver.clone(),
        mode: spec.common.mode.as_str(),
        enabled: spec.common.enabled,
        is_running: view.is_running || runs.first().is_some_and(|run| run.outcome.is_none()),
        schedule: spec
            .schedule
            .as_ref()
            .map_or_else(|| "manual only".to_owned(), Schedule::in_words),
        pattern: spec.schedule.as_ref().map(|schedule| schedule.as_str().to_owned()),
        zone: zone.name(),
        window: spec.common.window.map(|window| window.to_string()),
        wait: view.wait.as_ref().map(|wait| format!("waiting for {}", line(&wait.waiting.what))),
        next: upcoming(spec, frame.now, NEXT_SHOWN)
            .into_iter()
            .map(|next| frame.moment(next, zone))
            .collect(),
        keys,
        keys_withheld,
        charts,
        runs: runs.into_iter().take(RUNS_SHOWN).map(|run| RunRow::of(&frame, run)).collect(),
        name: job,
        shell,
    }))
}

/// Finds a configured job.
pub(super) fn find<'a>(frame: &'a Frame<'_>, job: &str) -> Result<&'a JobView, PageError> {
    frame.view(job).ok_or_else(|| {
        let text = format!("There is no job {job:?} in the configuration.");
        PageError::new(StatusCode::NOT_FOUND, text)
    })
}

/// The keys of the job, and whether some may not be shown: those of a kind may name people.
fn keys(frame: &Frame<'_>, view: &JobView) -> (Vec<KeyRow>, bool) {
    let common = TABLES.iter().filter(|(table, _)| table.starts_with("jobs.NAME"));
    let common: Vec<&Key> = common.flat_map(|(_, keys)| keys.iter()).collect();
    let of_kind = view.spec.job.kind().keys;
    let shown = if frame.caller.sees_names() { of_kind } else { &[] };
    let row = |key: &'static Key| {
        let written = view.spec.written.iter().find(|(name, _)| name == key.name);
        let value = match written {
            Some((_, value)) => line(value).into_owned(),
            None => key.default?.to_owned(),
        };
        let about = key.about;
        Some(KeyRow { name: key.name, value, is_default: written.is_none(), about })
    };
    let mut rows: Vec<KeyRow> = common.into_iter().chain(shown).filter_map(row).collect();
    rows.sort_by_key(|row| row.is_default);
    (rows, shown.is_empty() && !of_kind.is_empty())
}

/// Items and bytes of the ended runs in the mode of the job, oldest first.
fn charts(mode: Mode, runs: &[Report], zone: chrono_tz::Tz) -> Vec<Bars> {
    // What was approved was applied.
    let mode = if mode == Mode::Approve { Mode::Apply } else { mode };
    let ended = || runs.iter().rev().filter(|run| run.outcome.is_some() && run.mode == mode);
    let figures = |of: fn(&Report) -> Option<u64>| -> Vec<(&Report, u64)> {
        ended().filter_map(|run| Some((run, of(run)?))).collect()
    };
    let charts = match mode {
        Mode::Apply | Mode::Approve => [
            Bars::of("Items per run", number_unit, &figures(|run| Some(run.done)), zone),
            Bars::of("Freed per run", size_unit, &figures(|run| run.bytes_freed), zone),
        ],
        Mode::DryRun => [
            Bars::of("Items planned per run", number_unit, &figures(|run| run.planned), zone),
            Bars::of("Size planned per run", size_unit, &figures(|run| run.bytes_planned), zone),
        ],
    };
    charts.into_iter().flatten().collect()
}
