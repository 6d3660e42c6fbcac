//! One run: its figures, its progress, and its changes.

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use chrono_tz::Tz;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::super::access::Caller;
use super::super::app::App;
use super::format::{Moment, items, status, tone};
use super::layout::{Frame, Shell};
use super::page_error::{PageError, rendered};
use super::rows::{ProgressBar, progress_bar};
use crate::history::{ChangeFilter, Difference, FoundChanges, Page, PlanDifference};
use crate::plan::report::{
    Approval, ApprovalState, ChangeRecord, Mode, Outcome, Report, State as ChangeState,
};
use crate::plan::round::Round;
use crate::values::escape::line;
use crate::values::size::Size;
use crate::values::text::{format_count, format_number};

#[derive(Template)]
#[template(path = "run.html")]
struct RunPage {
    shell: Shell,
    id: i64,
    job: String,
    /// Whether the job is in the configuration.
    has_job: bool,
    homeserver: String,
    kind: String,
    mode: &'static str,
    trigger: &'static str,
    tone: &'static str,
    status: &'static str,
    started: Moment,
    ended: Option<Moment>,
    message: Option<String>,
    progress: Option<ProgressBar>,
    facts: Vec<Fact>,
    sample: Vec<Usage>,
    difference: Option<DifferenceView>,
    apply: Apply,
    approval: Option<ApprovalView>,
    /// `None` where they may not be shown.
    changes: Option<Changes>,
}

impl RunPage {
    fn waits_for_approval(&self) -> bool {
        self.approval.as_ref().is_some_and(|approval| approval.is_pending)
    }
}

/// What was decided about a plan, or is to be.
struct ApprovalView {
    is_pending: bool,
    /// `waits for approval`, `rejected by uid 0`.
    text: String,
    when: Option<Moment>,
    /// The run that applies the plan.
    run: Option<i64>,
}

struct Fact {
    label: &'static str,
    value: String,
}

struct Usage {
    user: String,
    files: String,
    size: String,
}

/// Whether the plan of a dry run can be applied from the page.
#[derive(PartialEq, Eq)]
enum Apply {
    /// Not a plan, or nobody is signed in.
    No,
    Yes,
    /// Another definition than the present one was planned.
    Edited,
    /// It is not known with which definition it was planned.
    Unknown,
}

/// How a plan differs from the one before.
struct DifferenceView {
    before: i64,
    when: Moment,
    rows: Vec<DifferenceRow>,
}

struct DifferenceRow {
    label: &'static str,
    value: String,
    first: Vec<String>,
    more: Option<String>,
}

struct Changes {
    rows: Vec<ChangeRow>,
    total: String,
    filter: RunQuery,
    states: Vec<&'static str>,
    is_filtered: bool,
    previous: Option<String>,
    next: Option<String>,
    /// `101 to 200`
    range: String,
}

struct ChangeRow {
    state: &'static str,
    tone: &'static str,
    action: &'static str,
    target: String,
    count: Option<String>,
    detail: Option<String>,
    answer: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RunQuery {
    state: String,
    q: String,
    offset: String,
}

const CHANGES_PER_PAGE: u32 = 100;

pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    id: Result<Path<i64>, PathRejection>,
    query: Result<Query<RunQuery>, QueryRejection>,
) -> Result<Response, PageError> {
    let (Path(id), Query(query)) = (id?, query?);
    let frame = Frame::new(&app, &caller, &uri).await;
    let mut run = find(&app, id).await?;
    caller.redact(&mut run);
    let zone = frame.zone_of(&run.job);
    let changes = match caller.sees_names() {
        true => Some(changes(&app, id, query).await?),
        false => None,
    };
    let difference = match run.mode {
        Mode::DryRun | Mode::Approve if run.outcome == Some(Outcome::Succeeded) => {
            app.history.plan_difference(&run.job, id).await?
        }
        _ => None,
    };
    let shell = frame.shell(&format!("Run {id} of {}", run.job), "runs").await;
    Ok(rendered(&RunPage {
        id,
        has_job: frame.view(&run.job).is_some(),
        mode: run.mode.as_str(),
        trigger: run.trigger.as_str(),
        tone: tone(run.outcome),
        status: status(&run),
        started: frame.moment(run.started_at, zone),
        ended: run.finished_at.map(|ended| frame.moment(ended, zone)),
        message: run.message.as_deref().map(|message| line(message).into_owned()),
        progress: progress_bar(&frame, &run),
        facts: facts(&frame, &run, zone),
        sample: run.sample.iter().map(usage).collect(),
        difference: difference.map(|difference| difference_view(&frame, &run, difference, zone)),
        apply: apply(&frame, &run),
        approval: run.approval.as_ref().map(|approval| approval_view(&frame, approval, zone)),
        changes,
        job: run.job,
        homeserver: run.homeserver,
        kind: run.kind,
        shell,
    }))
}

/// Finds a run, completed where nobody works on it any more.
pub(super) async fn find(app: &App, id: i64) -> Result<Report, PageError> {
    let run =
        app.history.run_alone(id).await?.ok_or_else(|| {
            PageError::new(StatusCode::NOT_FOUND, format!("There is no run {id}."))
        })?;
    let is_over = run.outcome.is_none() && app.history.is_under_way(id).await? == Some(false);
    Ok(if is_over { app.history.as_interrupted(run).await? } else { run })
}

fn facts(frame: &Frame<'_>, run: &Report, zone: Tz) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut add = |label, value: Option<String>| {
        facts.extend(value.map(|value| Fact { label, value }));
    };
    let some = |count: u64| (count > 0).then(|| format_number(count));
    let size = |bytes: Option<u64>| bytes.map(|bytes| Size(bytes).to_string());
    let is_applied = run.mode == Mode::Apply;
    add("planned", run.planned.map(|planned| items(&run.kind, planned)));
    add("planned size", size(run.bytes_planned));
    add("done", is_applied.then(|| format_number(run.done)));
    add("failed", some(run.failed));
    add("skipped", some(run.skipped));
    add("remaining", run.remaining.and_then(some));
    add("freed", size(run.bytes_freed).filter(|_| is_applied));
    add("took", run.format_work_duration());
    add("attempts", (run.attempts > 1).then(|| format_number(run.attempts.into())));
    add("due", run.scheduled_for.map(|due| frame.moment(due, zone).absolute));
    let left_alone: Vec<String> = run
        .left_alone
        .iter()
        .map(|(reason, count)| format!("{} {reason}", format_number(*count)))
        .collect();
    add("left alone", (!left_alone.is_empty()).then(|| left_alone.join(", ")));
    add("round", run.round.map(round));
    facts
}

fn round(round: Round) -> String {
    let (read, total) = (format_number(round.read), format_number(round.total));
    match round.finished_at {
        Some(_) => format!("complete, {read} read"),
        None => format!("{read} of {total} read, the next run continues"),
    }
}

fn usage(owner: &crate::plan::report::OwnerUsage) -> Usage {
    Usage {
        user: line(&owner.user_id).into_owned(),
        files: format_number(owner.files),
        size: Size(owner.bytes).to_string(),
    }
}

fn approval_view(frame: &Frame<'_>, approval: &Approval, zone: Tz) -> ApprovalView {
    let is_pending = approval.state == ApprovalState::Pending && approval.expires_at > frame.now;
    let by = approval.by.as_ref().map(|by| format!(" by {}", line(by))).unwrap_or_default();
    let detail = approval.detail.as_ref().map(|why| format!(": {}", line(why))).unwrap_or_default();
    let when = if is_pending { Some(approval.expires_at) } else { approval.decided_at };
    ApprovalView {
        is_pending,
        text: match is_pending {
            true => "The plan waits for approval, until".to_owned(),
            false => format!("The plan was {}{by}{detail}", approval.state),
        },
        when: when.map(|when| frame.moment(when, zone)),
        run: approval.run,
    }
}

/// Also remembers that the plan was shown.
fn apply(frame: &Frame<'_>, run: &Report) -> Apply {
    let is_plan = run.mode == Mode::DryRun && run.outcome == Some(Outcome::Succeeded);
    let (Some(view), Some(id)) = (frame.view(&run.job), run.id) else { return Apply::No };
    if !is_plan || frame.caller.session().is_none() || run.planned == Some(0) {
        return Apply::No;
    }
    match frame.app.pages.show_plan(id) {
        Some(definition) if definition == view.fingerprint => Apply::Yes,
        Some(_) => Apply::Edited,
        None => Apply::Unknown,
    }
}

fn difference_view(
    frame: &Frame<'_>,
    run: &Report,
    difference: PlanDifference,
    zone: Tz,
) -> DifferenceView {
    let PlanDifference { before, new, gone } = difference;
    // A batch of files is another one in each plan: only figures can be compared.
    let is_in_batches = new.items != new.changes || gone.items != gone.changes;
    let mut rows = Vec::new();
    if is_in_batches {
        let compare =
            |label, now: Option<u64>, before: Option<u64>, unit: &dyn Fn(u64) -> String| {
                let (now, before) = (now?, before?);
                let value = match now.checked_sub(before) {
                    Some(0) => "as many".to_owned(),
                    Some(more) => format!("{} more", unit(more)),
                    None => format!("{} less", unit(before - now)),
                };
                Some(DifferenceRow { label, value, first: Vec::new(), more: None })
            };
        let count = |number: u64| items(&run.kind, number);
        rows.extend(compare("planned", run.planned, before.planned, &count));
        let size = |bytes: u64| Size(bytes).to_string();
        rows.extend(compare("size", run.bytes_planned, before.bytes_planned, &size));
    } else {
        let row = |label, Difference { items: count, first, changes }: Difference| {
            let first: Vec<String> = match frame.caller.sees_names() {
                true => first.iter().map(|target| line(target).into_owned()).collect(),
                false => Vec::new(),
            };
            let more = changes.saturating_sub(first.len() as u64);
            let more = (!first.is_empty() && more > 0)
                .then(|| format!("and {}", format_count(more, "other", "others")));
            DifferenceRow { label, value: items(&run.kind, count), first, more }
        };
        rows.extend([row("new since then", new), row("no longer planned", gone)]);
    }
    let when = frame.moment(before.started_at, zone);
    DifferenceView { before: before.id.unwrap_or_default(), when, rows }
}

async fn changes(app: &App, run: i64, query: RunQuery) -> Result<Changes, PageError> {
    let wrong = |text: String| PageError::new(StatusCode::BAD_REQUEST, text);
    let state: Option<ChangeState> = match query.state.as_str() {
        "" => None,
        state => Some(state.parse().map_err(wrong)?),
    };
    let offset: u32 = match query.offset.as_str() {
        "" => 0,
        offset => offset.parse().map_err(|_| wrong(format!("{offset:?} is not a number")))?,
    };
    let filter = ChangeFilter { state, text: query.q.trim().to_owned() };
    let page = Page { offset, limit: CHANGES_PER_PAGE };
    let FoundChanges { changes, total } = app.history.find_changes(run, &filter, page).await?;
    let (first, end) = (u64::from(offset), u64::from(offset) + changes.len() as u64);
    let range = format!("{} to {}", format_number(first + 1), format_number(end));
    Ok(Changes {
        rows: changes.into_iter().map(change_row).collect(),
        total: format_number(total),
        states: ChangeState::ALL.iter().map(|state| state.as_str()).collect(),
        is_filtered: state.is_some() || !filter.text.is_empty(),
        previous: (offset > 0).then(|| query.link(run, offset.saturating_sub(CHANGES_PER_PAGE))),
        next: (end < total).then(|| query.link(run, offset.saturating_add(CHANGES_PER_PAGE))),
        range,
        filter: query,
    })
}

fn change_row(change: ChangeRecord) -> ChangeRow {
    let ChangeRecord { action, target, count, state, detail, answer, before: _ } = change;
    let tone = match state {
        ChangeState::Done => "ok",
        ChangeState::Failed => "bad",
        ChangeState::Skipped => "warn",
        ChangeState::Planned => "off",
    };
    ChangeRow {
        state: state.as_str(),
        tone,
        action: action.as_str(),
        target: line(&target).into_owned(),
        count: (count != 1).then(|| format_number(count)),
        detail: detail.map(|detail| line(&detail).into_owned()),
        answer: answer.map(|answer| crate::values::escape::lines(&answer).into_owned()),
    }
}

impl RunQuery {
    fn link(&self, run: i64, offset: u32) -> String {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        format!(
            "/runs/{run}?state={}&q={}&offset={offset}#changes",
            encoded(&self.state),
            encoded(&self.q)
        )
    }
}
