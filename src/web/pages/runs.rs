//! The recorded runs, filtered and in pages.

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use chrono::{Days, NaiveDate, NaiveTime, TimeZone};
use chrono_tz::Tz;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::super::access::Caller;
use super::super::app::App;
use super::layout::{Frame, Shell};
use super::page_error::{PageError, rendered};
use super::rows::RunRow;
use crate::history::{OutcomeFilter, RunFilter};
use crate::plan::report::{Mode, Outcome};
use crate::values::clock::Timestamp;

#[derive(Template)]
#[template(path = "runs.html")]
struct RunsPage {
    shell: Shell,
    query: RunsQuery,
    outcomes: Vec<&'static str>,
    modes: Vec<&'static str>,
    jobs: Vec<String>,
    homeservers: Vec<String>,
    is_filtered: bool,
    runs: Vec<RunRow>,
    older: Option<String>,
    newest: Option<String>,
}

/// The fields of the filter; an empty one selects everything.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RunsQuery {
    job: String,
    homeserver: String,
    mode: String,
    outcome: String,
    since: String,
    until: String,
    before: String,
}

const RUNS_PER_PAGE: u32 = 50;
/// How many names a field suggests.
const MAX_SUGGESTED: usize = 200;
const UNDER_WAY: &str = "under-way";
const UNSUCCESSFUL: &str = "unsuccessful";

pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    query: Result<Query<RunsQuery>, QueryRejection>,
) -> Result<Response, PageError> {
    let Query(query) = query?;
    let frame = Frame::new(&app, &caller, &uri).await;
    let filter = query.filter(frame.zone)?;
    let mut found = app.history.find_runs(&filter, RUNS_PER_PAGE + 1).await?;
    let has_more = found.len() > RUNS_PER_PAGE as usize;
    found.truncate(RUNS_PER_PAGE as usize);
    let last = found.last().and_then(|run| run.id).filter(|_| has_more);
    let shell = frame.shell("Runs", "runs").await;
    let jobs = frame.views.iter().take(MAX_SUGGESTED).map(|view| view.spec.name.clone());
    let homeservers = app.metrics.homeservers.views().into_iter().map(|(name, _)| name);
    let outcomes = [UNSUCCESSFUL, UNDER_WAY].into_iter();
    Ok(rendered(&RunsPage {
        jobs: jobs.collect(),
        homeservers: homeservers.take(MAX_SUGGESTED).collect(),
        outcomes: outcomes.chain(Outcome::ALL.iter().map(|outcome| outcome.as_str())).collect(),
        modes: Mode::ALL.iter().map(|mode| mode.as_str()).collect(),
        is_filtered: !query.link(None).ends_with('?'),
        older: last.map(|last| query.link(Some(last))),
        newest: (!query.before.is_empty()).then(|| query.link(None)),
        runs: found.into_iter().map(|run| RunRow::of(&frame, run)).collect(),
        query,
        shell,
    }))
}

impl RunsQuery {
    fn filter(&self, zone: Tz) -> Result<RunFilter, PageError> {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let wrong = |text: String| PageError::new(StatusCode::BAD_REQUEST, text);
        let outcome = match self.outcome.as_str() {
            "" => None,
            UNDER_WAY => Some(OutcomeFilter::UnderWay),
            UNSUCCESSFUL => Some(OutcomeFilter::Unsuccessful),
            outcome => Some(OutcomeFilter::Is(outcome.parse().map_err(wrong)?)),
        };
        Ok(RunFilter {
            job: given(self.job.trim()),
            homeserver: given(self.homeserver.trim()),
            mode: given(&self.mode).map(|mode| mode.parse()).transpose().map_err(wrong)?,
            outcome,
            since: given(&self.since).map(|day| start_of(&day, 0, zone)).transpose()?,
            // The day is included.
            until: given(&self.until).map(|day| start_of(&day, 1, zone)).transpose()?,
            before: given(&self.before)
                .map(|id| {
                    id.parse().map_err(|_| wrong(format!("{id:?} is not the number of a run")))
                })
                .transpose()?,
        })
    }

    /// This list from another run on.
    fn link(&self, before: Option<i64>) -> String {
        let before = before.map(|id| id.to_string()).unwrap_or_default();
        let fields = [
            ("job", &self.job),
            ("homeserver", &self.homeserver),
            ("mode", &self.mode),
            ("outcome", &self.outcome),
            ("since", &self.since),
            ("until", &self.until),
            ("before", &before),
        ];
        let pairs = fields.into_iter().filter(|(_, value)| !value.is_empty());
        let pairs = pairs.map(|(name, value)| {
            format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))
        });
        format!("/runs?{}", pairs.collect::<Vec<_>>().join("&"))
    }
}

/// The start of a day, or of one some days later.
fn start_of(day: &str, later: u64, zone: Tz) -> Result<Timestamp, PageError> {
    let wrong = || {
        let text = format!("{day:?} is not a date such as 2026-11-23");
        PageError::new(StatusCode::BAD_REQUEST, text)
    };
    let parsed: NaiveDate = day.parse().map_err(|_| wrong())?;
    let parsed = parsed.checked_add_days(Days::new(later)).ok_or_else(wrong)?;
    let start = parsed.and_time(NaiveTime::MIN);
    // A day may begin later than at midnight.
    let local = zone.from_local_datetime(&start).earliest();
    let local = local
        .or_else(|| zone.from_local_datetime(&(start + chrono::TimeDelta::hours(1))).earliest());
    local.map(|local| local.to_utc()).ok_or_else(wrong)
}
