//! The first page: what needs attention, the jobs, the next day, and the homeservers.

use std::collections::HashMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::Uri;
use axum::response::Response;
use chrono::{TimeDelta, Timelike};
use serde::Deserialize;

use super::super::access::Caller;
use super::super::app::App;
use super::charts::{LANE_MINUTES, Lane, STRIP_RUNS, Strip};
use super::format::{Moment, changed_label, figures, status, tone};
use super::layout::{Frame, Shell};
use super::page_error::{PageError, rendered};
use super::rows::{ProgressBar, progress_bar};
use crate::history::{RunFilter, RunMark, Totals, WaitingPlan};
use crate::observe::metrics::HomeserverView;
use crate::plan::report::{Mode, Outcome, Report};
use crate::scheduler::job_view::JobView;
use crate::values::escape::line;
use crate::values::schedule::Schedule;
use crate::values::size::Size;
use crate::values::text::format_number;

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    shell: Shell,
    alerts: Vec<Alert>,
    more_alerts: usize,
    stats: Vec<Stat>,
    jobs: Vec<JobRow>,
    /// Of the jobs that the filter selects.
    job_count: usize,
    filter: String,
    /// Whether there is any job at all.
    has_jobs: bool,
    pages: Pages,
    several_homeservers: bool,
    lanes: Vec<LaneRow>,
    hours: Vec<String>,
    homeservers: Vec<HomeserverRow>,
    more_homeservers: usize,
}

/// Something that a person should look at.
struct Alert {
    tone: &'static str,
    subject: String,
    text: String,
    /// `None` for what cannot be done from the page.
    action: Option<(String, &'static str)>,
}

struct Stat {
    value: String,
    label: String,
}

struct JobRow {
    name: String,
    kind: &'static str,
    homeserver: String,
    mode: &'static str,
    tone: &'static str,
    schedule: String,
    /// The time zone of its times, where it is not that of the daemon.
    zone: Option<&'static str>,
    next: Next,
    strip: Option<Strip>,
    last: Option<LastRun>,
    /// What to do next, where the job has no result yet.
    advice: Option<String>,
}

enum Next {
    At(Moment),
    Waiting(String),
    Disabled,
    Manual,
    Paused,
}

struct LastRun {
    id: i64,
    status: &'static str,
    when: Moment,
    figures: String,
    progress: Option<ProgressBar>,
}

struct LaneRow {
    name: String,
    lane: Lane,
    label: String,
}

struct HomeserverRow {
    name: String,
    tone: &'static str,
    state: &'static str,
    version: String,
    token: String,
    expires: Option<Moment>,
    latency: String,
    rate: String,
}

/// Where the list of jobs continues.
struct Pages {
    number: usize,
    count: usize,
}

#[derive(Deserialize)]
pub(super) struct OverviewQuery {
    #[serde(default)]
    q: String,
    #[serde(default)]
    page: usize,
}

/// Keeps the first page below 50 kB.
const JOBS_PER_PAGE: usize = 25;
const MAX_ALERTS: usize = 8;
const MAX_HOMESERVERS: usize = 20;
const TOTALS_OF: TimeDelta = TimeDelta::days(30);
/// After that long in dry runs somebody may have forgotten to apply.
const LONG_DRY_RUN: TimeDelta = TimeDelta::days(14);
/// Hours between two labels of the next day.
const LABEL_HOURS: i64 = 3;

pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    query: Result<Query<OverviewQuery>, QueryRejection>,
) -> Result<Response, PageError> {
    let Query(OverviewQuery { q: filter, page }) = query?;
    let frame = Frame::new(&app, &caller, &uri).await;
    let shell = frame.shell("Jobs", "jobs").await;
    let last_runs = last_runs(&frame).await?;
    let totals = app.pages.totals(&app.history, frame.now - TOTALS_OF).await?;
    let mut views: Vec<&JobView> =
        frame.views.iter().filter(|view| view.spec.name.contains(filter.trim())).collect();
    let rank = |view: &&JobView| match job_tone(view, last_runs.get(&view.spec.name)) {
        "bad" => 0,
        "warn" => 1,
        "run" => 2,
        _ => 3,
    };
    // Stable: within a rank the order of names stays.
    views.sort_by_key(rank);
    let job_count = views.len();
    let count = job_count.div_ceil(JOBS_PER_PAGE).max(1);
    let number = page.clamp(1, count);
    let shown: Vec<&JobView> =
        views.into_iter().skip((number - 1) * JOBS_PER_PAGE).take(JOBS_PER_PAGE).collect();
    let troubled = troubled(&frame, &last_runs);
    let mut names: Vec<&str> = shown.iter().map(|view| view.spec.name.as_str()).collect();
    names.extend(troubled.iter().take(MAX_ALERTS).map(|view| view.spec.name.as_str()));
    names.sort_unstable();
    names.dedup();
    let marks = app.history.marks(&names, STRIP_RUNS).await?;
    let mut alerts = alerts(&frame, &shell, &troubled, &last_runs, &marks);
    alerts.extend(plan_alerts(&frame, &app.history.waiting_plans().await?));
    let more_alerts = alerts.len().saturating_sub(MAX_ALERTS);
    alerts.truncate(MAX_ALERTS);
    let lanes = lanes(&frame, &shown);
    let mut homeservers = homeservers(&frame);
    let more_homeservers = homeservers.len().saturating_sub(MAX_HOMESERVERS);
    let several_homeservers = homeservers.len() > 1;
    homeservers.truncate(MAX_HOMESERVERS);
    let rows = shown.iter().map(|view| {
        let name = &view.spec.name;
        job_row(&frame, &shell, view, last_runs.get(name), marks.get(name))
    });
    Ok(rendered(&Overview {
        alerts,
        more_alerts,
        stats: stats(&totals),
        jobs: rows.collect(),
        job_count,
        filter,
        has_jobs: !frame.views.is_empty(),
        pages: Pages { number, count },
        several_homeservers,
        lanes,
        hours: hours(&frame),
        homeservers,
        more_homeservers,
        shell,
    }))
}

/// The newest run of each job, completed where nobody works on it any more.
///
/// If that is a dry run by hand and the run of the job before it failed, that one: it still needs attention.
async fn last_runs(frame: &Frame<'_>) -> Result<HashMap<String, Report>, PageError> {
    let history = &frame.app.history;
    let mut last_runs = history.last_runs().await?;
    for run in last_runs.values_mut().filter(|run| run.outcome.is_none()) {
        // The lease tells whether a run on another replica is in progress.
        if history.is_under_way(run.id.unwrap_or_default()).await? == Some(false) {
            *run = history.as_interrupted(run.clone()).await?;
        }
    }
    for JobView { spec, .. } in &frame.views {
        let Some(run) = last_runs.get_mut(&spec.name) else { continue };
        let mode = spec.common.mode;
        if run.outcome.is_none() || run.mode != Mode::DryRun || mode == Mode::DryRun {
            continue;
        }
        let filter =
            RunFilter { job: Some(spec.name.clone()), mode: Some(mode), ..RunFilter::default() };
        let in_mode = history.find_runs(&filter, 1).await?.pop();
        if let Some(failed) = in_mode.filter(|run| is_trouble(run.outcome)) {
            *run = failed;
        }
    }
    Ok(last_runs)
}

/// The jobs whose last run did not succeed.
fn troubled<'a>(frame: &'a Frame<'_>, last_runs: &HashMap<String, Report>) -> Vec<&'a JobView> {
    let last_run = |view: &JobView| last_runs.get(&view.spec.name);
    let is_troubled = |view: &&JobView| last_run(view).is_some_and(|run| is_trouble(run.outcome));
    frame.views.iter().filter(is_troubled).collect()
}

fn is_trouble(outcome: Option<Outcome>) -> bool {
    outcome.is_some() && tone(outcome) != "ok" && outcome != Some(Outcome::Cancelled)
}

fn job_tone(view: &JobView, last: Option<&Report>) -> &'static str {
    match last {
        Some(run) if run.outcome.is_none() || is_trouble(run.outcome) => tone(run.outcome),
        _ if view.is_running => "run",
        _ if !view.spec.common.enabled => "off",
        // What only plans is neither good nor bad.
        Some(_) if view.spec.common.mode != Mode::DryRun => "ok",
        Some(_) | None => "off",
    }
}

/// The most urgent first.
fn alerts(
    frame: &Frame<'_>,
    shell: &Shell,
    troubled: &[&JobView],
    last_runs: &HashMap<String, Report>,
    marks: &HashMap<String, Vec<RunMark>>,
) -> Vec<Alert> {
    let mut alerts = daemon_alerts(frame, shell);
    alerts.extend(homeserver_alerts(frame));
    alerts.extend(troubled.iter().filter_map(|view| {
        let run = last_runs.get(&view.spec.name)?;
        Some(run_alert(frame, run, marks.get(&view.spec.name).map_or(&[], Vec::as_slice)))
    }));
    alerts.sort_by_key(|alert| alert.tone != "bad");
    alerts
}

fn daemon_alerts(frame: &Frame<'_>, shell: &Shell) -> Vec<Alert> {
    let mut alerts = Vec::new();
    if let Some(problem) = frame.app.history.problem() {
        let text = match frame.caller.sees_names() {
            true => format!(
                "cannot be used, and runs that change something are refused: {}",
                line(&problem)
            ),
            false => "cannot be used, and runs that change something are refused".to_owned(),
        };
        alerts.push(Alert { tone: "bad", subject: "The history".to_owned(), text, action: None });
    }
    if frame.app.metrics.config_successful.get() < 0.5 {
        alerts.push(Alert {
            tone: "bad",
            subject: "The configuration".to_owned(),
            text: "has errors and was not loaded: the previous one stays in use".to_owned(),
            action: Some(("/reload".to_owned(), "Reload")),
        });
    }
    if shell.paused {
        alerts.push(Alert {
            tone: "warn",
            subject: "Paused".to_owned(),
            text: "no job runs on schedule".to_owned(),
            action: Some(("/resume".to_owned(), "Resume")),
        });
    }
    alerts
}

fn homeserver_alerts(frame: &Frame<'_>) -> Vec<Alert> {
    let views = frame.app.metrics.homeservers.views();
    let alert = |(name, view): (String, HomeserverView)| {
        let text = match (view.state.up, view.state.token_valid) {
            (Some(false), _) => "does not respond",
            (_, Some(false)) => "rejects the access token: obtain a new one with `microglia login`",
            _ => return None,
        };
        let (subject, text) = (name, text.to_owned());
        Some(Alert { tone: "bad", subject, text, action: None })
    };
    views.into_iter().filter_map(alert).collect()
}

/// Plans that wait for a person.
fn plan_alerts(frame: &Frame<'_>, plans: &[WaitingPlan]) -> Vec<Alert> {
    let pending = plans.iter().filter(|plan| !plan.is_approved && plan.expires_at > frame.now);
    let alert = |plan: &WaitingPlan| {
        let expires = frame.moment(plan.expires_at, frame.zone_of(&plan.job));
        Alert {
            tone: "warn",
            subject: plan.job.clone(),
            text: format!("has a plan that waits for approval and expires {}", expires.relative),
            action: Some((format!("/runs/{}", plan.run), "Show plan")),
        }
    };
    pending.map(alert).collect()
}

/// `remote-media failed 3 times in a row: 502 Bad Gateway`
fn run_alert(frame: &Frame<'_>, run: &Report, marks: &[RunMark]) -> Alert {
    let same_mode = || marks.iter().rev().filter(|mark| mark.mode == run.mode);
    let row = same_mode().take_while(|mark| is_trouble(mark.outcome)).count();
    let times = match row {
        0 | 1 => String::new(),
        _ if row == same_mode().count() && marks.len() >= STRIP_RUNS as usize => {
            format!(" at least {row} times in a row")
        }
        _ => format!(" {row} times in a row"),
    };
    let what = match run.outcome {
        Some(Outcome::Partial) => "was applied in part",
        Some(Outcome::Refused) => "was refused",
        Some(Outcome::TimedOut) => "ran out of time",
        Some(Outcome::Interrupted) => "was interrupted",
        _ => "failed",
    };
    let message = run.message.as_deref().filter(|_| frame.caller.sees_names());
    let message = message.map(|message| format!(": {}", line(message))).unwrap_or_default();
    Alert {
        tone: tone(run.outcome),
        subject: run.job.clone(),
        text: format!("{what}{times}{message}"),
        action: Some((format!("/runs/{}", run.id.unwrap_or_default()), "Show run")),
    }
}

fn stats(totals: &[Totals]) -> Vec<Stat> {
    let sum = |of: fn(&Totals) -> u64| totals.iter().map(of).fold(0, u64::saturating_add);
    let mut stats = Vec::new();
    let freed = sum(|totals| totals.bytes_freed);
    if freed > 0 {
        stats.push(Stat { value: Size(freed).to_string(), label: "media freed".to_owned() });
    }
    let mut changed: Vec<(String, u64)> = Vec::new();
    for totals in totals.iter().filter(|totals| totals.done > 0) {
        let label = changed_label(&totals.kind);
        match changed.iter_mut().find(|(known, _)| *known == label) {
            Some((_, done)) => *done += totals.done,
            None => changed.push((label, totals.done)),
        }
    }
    changed.sort_by_key(|(_, done)| std::cmp::Reverse(*done));
    changed.truncate(if freed > 0 { 2 } else { 3 });
    stats.extend(
        changed.into_iter().map(|(label, done)| Stat { value: format_number(done), label }),
    );
    let (runs, succeeded) = (sum(|totals| totals.runs), sum(|totals| totals.succeeded));
    #[expect(clippy::cast_precision_loss, reason = "a percentage is rounded anyway")]
    let percent = (succeeded as f64 / runs.max(1) as f64 * 1000.0).floor() / 10.0;
    stats.push(match runs {
        0 => Stat { value: "0".to_owned(), label: "runs".to_owned() },
        _ => Stat {
            value: format!("{percent} %"),
            label: format!("of {} runs succeeded", format_number(runs)),
        },
    });
    stats
}

fn job_row(
    frame: &Frame<'_>,
    shell: &Shell,
    view: &JobView,
    last: Option<&Report>,
    marks: Option<&Vec<RunMark>>,
) -> JobRow {
    let spec = &view.spec;
    let (zone, schedule) = (spec.zone.0, spec.schedule.as_ref());
    let words = schedule.map_or_else(|| "manual only".to_owned(), Schedule::in_words);
    let next = match (&view.wait, view.next) {
        (Some(wait), _) => Next::Waiting(format!("waiting for {}", line(&wait.waiting.what))),
        (None, _) if schedule.is_none() => Next::Manual,
        (None, _) if !spec.common.enabled => Next::Disabled,
        (None, Some(_)) if shell.paused => Next::Paused,
        (None, Some(next)) => Next::At(frame.moment(next, zone)),
        (None, None) => Next::Manual,
    };
    let last_run = last.map(|run| LastRun {
        id: run.id.unwrap_or_default(),
        status: status(run),
        when: frame.moment(run.finished_at.unwrap_or(run.started_at), zone),
        figures: figures(run),
        progress: progress_bar(frame, run),
    });
    let only_dry_runs = marks.and_then(|marks| {
        let first = marks.first()?.started_at;
        let all = marks.iter().all(|mark| mark.mode == Mode::DryRun);
        (spec.common.mode == Mode::DryRun && all && frame.now - first > LONG_DRY_RUN)
            .then(|| frame.moment(first, zone).absolute)
    });
    let advice = match (&last_run, only_dry_runs) {
        (None, _) => Some("Never ran: start a dry run to see its plan.".to_owned()),
        (Some(_), Some(since)) => {
            Some(format!("Only dry runs since {since}: set mode = \"apply\" to make the changes."))
        }
        _ => None,
    };
    JobRow {
        name: spec.name.clone(),
        kind: spec.job.kind().name,
        homeserver: spec.homeserver.clone(),
        mode: spec.common.mode.as_str(),
        tone: job_tone(view, last),
        zone: (zone != frame.zone && words.contains(" at ")).then(|| zone.name()),
        schedule: words,
        next,
        strip: marks.map(|marks| Strip::of(marks, spec.common.mode)),
        last: last_run,
        advice,
    }
}

/// The next day begins with the present hour.
fn lanes(frame: &Frame<'_>, shown: &[&JobView]) -> Vec<LaneRow> {
    let start = lanes_start(frame);
    let lane = |view: &&JobView| {
        let spec = &view.spec;
        let schedule = spec.schedule.as_ref().filter(|_| spec.common.enabled)?;
        let end = frame.now + TimeDelta::hours(24);
        let all = schedule.after(frame.now, spec.zone).map(|next| next.to_utc());
        let all = all.take_while(|time| *time <= end);
        let in_window = all.filter(|time| {
            spec.common.window.is_none_or(|window| window.contains(*time, spec.zone))
        });
        let lane = Lane::of(start, in_window, spec.common.window, spec.zone);
        let window = spec.common.window.map(|window| format!(", window {window}"));
        let label = format!(
            "{}: {} occurrences in the next 24 hours{}",
            spec.name,
            lane.count,
            window.unwrap_or_default()
        );
        (lane.count != "0" || !lane.windows.is_empty()).then(|| LaneRow {
            name: spec.name.clone(),
            lane,
            label,
        })
    };
    shown.iter().filter_map(lane).collect()
}

fn lanes_start(frame: &Frame<'_>) -> crate::values::clock::Timestamp {
    let local = frame.now.with_timezone(&frame.zone);
    let into_hour = TimeDelta::minutes(local.minute().into())
        + TimeDelta::seconds(local.second().into())
        + TimeDelta::nanoseconds(local.nanosecond().into());
    frame.now - into_hour
}

fn hours(frame: &Frame<'_>) -> Vec<String> {
    let start = lanes_start(frame);
    (0..LANE_MINUTES / 60 / LABEL_HOURS)
        .map(|label| {
            let time = start + TimeDelta::hours(label * LABEL_HOURS);
            time.with_timezone(&frame.zone).format("%H:%M").to_string()
        })
        .collect()
}

/// Those with a problem first.
fn homeservers(frame: &Frame<'_>) -> Vec<HomeserverRow> {
    let views = frame.app.metrics.homeservers.views().into_iter();
    let mut rows: Vec<HomeserverRow> =
        views.map(|(name, view)| homeserver_row(frame, name, view)).collect();
    rows.sort_by_key(|row| row.tone != "bad");
    rows
}

fn homeserver_row(frame: &Frame<'_>, name: String, view: HomeserverView) -> HomeserverRow {
    let (tone, state) = match (view.state.up, view.state.token_valid) {
        (Some(false), _) => ("bad", "down"),
        (Some(true), Some(false)) => ("bad", "token rejected"),
        (Some(true), _) => ("ok", "up"),
        (None, _) => ("off", "not checked yet"),
    };
    let mas = if view.uses_mas { " · MAS" } else { "" };
    let version =
        view.version.map_or_else(String::new, |version| format!("Synapse {}{mas}", line(&version)));
    let token = match view.state.token_valid {
        Some(true) => "valid",
        Some(false) => "rejected",
        None => "not checked yet",
    };
    let latency = view.latency.map_or_else(String::new, |seconds| match seconds * 1000.0 {
        millis if millis < 10.0 => format!("{millis:.1} ms"),
        millis if millis < 1000.0 => format!("{millis:.0} ms"),
        _ => format!("{seconds:.1} s"),
    });
    HomeserverRow {
        name,
        tone,
        state,
        version,
        token: token.to_owned(),
        expires: view.token_expires_at.map(|expires| frame.moment(expires, frame.zone)),
        latency,
        rate: match view.rate_limit {
            Some(rate) if rate < 10.0 => format!("{rate:.1} / s"),
            Some(rate) => format!("{rate:.0} / s"),
            None => "unlimited".to_owned(),
        },
    }
}
