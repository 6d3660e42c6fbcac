//! Acting from the page: each action is confirmed once, carried out, and its result shown.

use std::sync::Arc;

use askama::Template;
use axum::Form;
use axum::extract::rejection::{FormRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::super::access::Caller;
use super::super::api::to_completion;
use super::super::api_error::ApiError;
use super::super::app::App;
use super::super::events::RunEvents;
use super::format::figures;
use super::job;
use super::layout::{Frame, Shell, signed_in};
use super::page_error::{PageError, rendered};
use super::run;
use super::state::Reload;
use crate::plan::report::{Mode, Outcome, Report};
use crate::scheduler::job_view::JobView;
use crate::scheduler::{Adopted, ApproveRequest, Approved, RunOverrides};
use crate::values::escape::line;
use crate::values::fingerprint::Fingerprint;

/// Asks whether to carry out an action.
#[derive(Template)]
#[template(path = "confirm.html")]
struct Confirm {
    shell: Shell,
    /// What it will do.
    text: Vec<String>,
    button: &'static str,
    /// Whether it changes something on a homeserver.
    is_danger: bool,
    /// Where the form is sent.
    to: String,
    /// What the person may allow in addition.
    ignore_window: Option<String>,
    /// Where nothing is done.
    back: String,
    error: Option<String>,
    /// What the last one did, for a reload.
    result: Option<ReloadView>,
}

struct ReloadView {
    when: super::format::Moment,
    errors: Vec<String>,
    adopted: Vec<(&'static str, String)>,
}

#[derive(Deserialize)]
pub(super) struct ActionForm {
    #[serde(default)]
    csrf: String,
    /// Present where it is checked.
    ignore_window: Option<String>,
}

type AnyForm = Result<Form<ActionForm>, FormRejection>;
type JobPath = Result<Path<String>, PathRejection>;
type RunPath = Result<Path<i64>, PathRejection>;

/// What a confirmation says.
struct Question {
    title: String,
    section: &'static str,
    text: Vec<String>,
    button: &'static str,
    is_danger: bool,
    /// Asks whether to run outside the window.
    ignore_window: Option<String>,
    back: String,
}

/// The page that asks; the form is sent to where the page itself is.
async fn ask(frame: &Frame<'_>, question: Question, error: Option<&PageError>) -> Response {
    if frame.caller.session().is_none() {
        return Redirect::to(&format!("/login?next={}", frame.uri.path())).into_response();
    }
    let Question { title, section, text, button, is_danger, ignore_window, back } = question;
    let shell = frame.shell(&title, section).await;
    let result = match frame.uri.path() {
        "/reload" => frame.app.pages.last_reload().map(|reload| reload_view(frame, reload)),
        _ => None,
    };
    let page = Confirm {
        to: frame.uri.path().to_owned(),
        shell,
        text,
        button,
        is_danger,
        ignore_window,
        back,
        error: error.map(|error| error.text().to_owned()),
        result,
    };
    let status = error.map_or(StatusCode::OK, PageError::status);
    (status, rendered(&page)).into_response()
}

pub(super) async fn confirm_dry_run(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    job: JobPath,
) -> Result<Response, PageError> {
    let Path(job) = job?;
    let frame = Frame::new(&app, &caller, &uri).await;
    let view = job::find(&frame, &job)?;
    Ok(ask(&frame, dry_run_question(view), None).await)
}

fn dry_run_question(view: &JobView) -> Question {
    let (job, homeserver) = (&view.spec.name, &view.spec.homeserver);
    let sends = match view.spec.job.kind().needs.plans_offline {
        true => "It sends nothing.".to_owned(),
        false => format!("It only reads {homeserver} and changes nothing there."),
    };
    Question {
        title: format!("Dry run of {job}"),
        section: "jobs",
        text: vec![
            format!("This plans {job} now and shows what it would change. {sends}"),
            "The plan can be applied afterwards.".to_owned(),
        ],
        button: "Start dry run",
        is_danger: false,
        ignore_window: None,
        back: format!("/jobs/{job}"),
    }
}

pub(super) async fn start_dry_run(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    job: JobPath,
    form: AnyForm,
) -> Result<Response, PageError> {
    let (Path(job), Form(ActionForm { csrf, .. })) = (job?, form?);
    signed_in(&caller, &csrf)?;
    let frame = Frame::new(&app, &caller, &uri).await;
    let view = job::find(&frame, &job)?;
    let definition = view.fingerprint.clone();
    let overrides = RunOverrides {
        mode: Some(Mode::DryRun),
        fingerprint: Some(definition.clone()),
        ..RunOverrides::default()
    };
    match start(&app, &job, overrides).await {
        Ok(Some(run)) => {
            app.pages.dry_run_started(run, definition);
            Ok(Redirect::to(&format!("/runs/{run}")).into_response())
        }
        Ok(None) => Ok(Redirect::to(&format!("/jobs/{job}")).into_response()),
        Err(error) => Ok(ask(&frame, dry_run_question(view), Some(&error)).await),
    }
}

/// Starts a run, and returns its id; `None` for a dry run that could not be recorded.
async fn start(
    app: &Arc<App>,
    job: &str,
    overrides: RunOverrides,
) -> Result<Option<i64>, PageError> {
    let (supervisor, name) = (Arc::clone(&app.supervisor), job.to_owned());
    let starting = to_completion(async move { supervisor.run(&name, overrides).await }).await?;
    let receiver = starting.map_err(ApiError::from)?;
    Ok(RunEvents::from_start(job, receiver).await?.run_id())
}

pub(super) async fn confirm_apply(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    id: RunPath,
) -> Result<Response, PageError> {
    let Path(id) = id?;
    let frame = Frame::new(&app, &caller, &uri).await;
    let plan = run::find(&app, id).await?;
    Ok(ask(&frame, apply_question(&frame, &plan, id), None).await)
}

fn apply_question(frame: &Frame<'_>, plan: &Report, id: i64) -> Question {
    let (job, homeserver) = (&plan.job, &plan.homeserver);
    let spec = frame.view(job).map(|view| &view.spec);
    let window = spec.filter(|spec| spec.is_outside_window(frame.now));
    let window = window.and_then(|spec| spec.common.window);
    Question {
        title: format!("Apply {job}"),
        section: "jobs",
        text: vec![
            format!("Run {id} planned: {}.", figures(plan).trim_end_matches(" planned")),
            format!(
                "This plans again and makes the changes on {homeserver}. What is new since the dry run is changed, too, up to max_changes."
            ),
        ],
        button: "Make the changes",
        is_danger: true,
        ignore_window: window
            .map(|window| format!("Change something although it is outside the window {window}")),
        back: format!("/runs/{id}"),
    }
}

pub(super) async fn apply(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    id: RunPath,
    form: AnyForm,
) -> Result<Response, PageError> {
    let (Path(id), Form(ActionForm { csrf, ignore_window })) = (id?, form?);
    signed_in(&caller, &csrf)?;
    let frame = Frame::new(&app, &caller, &uri).await;
    let plan = run::find(&app, id).await?;
    let started = match definition_to_apply(&app, &plan, id) {
        Ok(definition) => {
            let overrides = RunOverrides {
                mode: Some(Mode::Apply),
                ignore_window: ignore_window.is_some(),
                fingerprint: Some(definition),
                ..RunOverrides::default()
            };
            start(&app, &plan.job, overrides).await
        }
        Err(error) => Err(error),
    };
    match started {
        Ok(Some(run)) => Ok(Redirect::to(&format!("/runs/{run}")).into_response()),
        Ok(None) => Ok(Redirect::to(&format!("/jobs/{}", plan.job)).into_response()),
        Err(error) => Ok(ask(&frame, apply_question(&frame, &plan, id), Some(&error)).await),
    }
}

/// The definition whose plan was looked at; it is refused if the job has another one by now.
fn definition_to_apply(app: &App, plan: &Report, id: i64) -> Result<Fingerprint, PageError> {
    let is_plan = plan.mode == Mode::DryRun && plan.outcome == Some(Outcome::Succeeded);
    app.pages.seen_plan(id).filter(|_| is_plan).ok_or_else(|| {
        PageError::new(
            StatusCode::CONFLICT,
            "Only a dry run that was started from here and looked at can be applied: start one first.",
        )
    })
}

pub(super) async fn confirm_approve(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    id: RunPath,
) -> Result<Response, PageError> {
    let Path(id) = id?;
    let frame = Frame::new(&app, &caller, &uri).await;
    let plan = run::find(&app, id).await?;
    Ok(ask(&frame, approve_question(&frame, &plan, id), None).await)
}

fn approve_question(frame: &Frame<'_>, plan: &Report, id: i64) -> Question {
    let (job, homeserver) = (&plan.job, &plan.homeserver);
    let mut text = vec![
        format!("Run {id} planned: {}.", figures(plan).trim_end_matches(" planned")),
        format!(
            "This plans again and makes those changes on {homeserver} that are still needed. What is new since the plan is left for the next one."
        ),
    ];
    let spec = frame.view(job).map(|view| &view.spec);
    if let Some(window) =
        spec.filter(|spec| spec.is_outside_window(frame.now)).and_then(|spec| spec.common.window)
    {
        text.push(format!("It waits until the window {window} opens."));
    }
    Question {
        title: format!("Approve the plan of {job}"),
        section: "runs",
        text,
        button: "Approve the plan",
        is_danger: true,
        ignore_window: None,
        back: format!("/runs/{id}"),
    }
}

pub(super) async fn approve(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    id: RunPath,
    form: AnyForm,
) -> Result<Response, PageError> {
    let (Path(id), Form(ActionForm { csrf, .. })) = (id?, form?);
    signed_in(&caller, &csrf)?;
    let (by, supervisor) = (caller.name().await, Arc::clone(&app.supervisor));
    let request = ApproveRequest { run: id, by, max_changes: None };
    let approved = to_completion(async move { supervisor.approve(request).await }).await?;
    match approved {
        Ok(Approved { run: Some(run), .. }) => {
            Ok(Redirect::to(&format!("/runs/{run}")).into_response())
        }
        Ok(_) => Ok(Redirect::to(&format!("/runs/{id}")).into_response()),
        Err(refusal) => {
            let frame = Frame::new(&app, &caller, &uri).await;
            let plan = run::find(&app, id).await?;
            let error = PageError::from(ApiError::from(refusal));
            Ok(ask(&frame, approve_question(&frame, &plan, id), Some(&error)).await)
        }
    }
}

pub(super) async fn confirm_reject(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    id: RunPath,
) -> Result<Response, PageError> {
    let Path(id) = id?;
    let frame = Frame::new(&app, &caller, &uri).await;
    let plan = run::find(&app, id).await?;
    Ok(ask(&frame, reject_question(&plan, id), None).await)
}

fn reject_question(plan: &Report, id: i64) -> Question {
    Question {
        title: format!("Reject the plan of {}", plan.job),
        section: "runs",
        text: vec![
            format!("The plan of run {id} is dropped, and nothing is changed."),
            "The next run of the job makes a new plan.".to_owned(),
        ],
        button: "Reject the plan",
        is_danger: false,
        ignore_window: None,
        back: format!("/runs/{id}"),
    }
}

pub(super) async fn reject(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    id: RunPath,
    form: AnyForm,
) -> Result<Response, PageError> {
    let (Path(id), Form(ActionForm { csrf, .. })) = (id?, form?);
    signed_in(&caller, &csrf)?;
    let (by, supervisor) = (caller.name().await, Arc::clone(&app.supervisor));
    let rejected = to_completion(async move { supervisor.reject(id, &by).await }).await?;
    if let Err(refusal) = rejected {
        let frame = Frame::new(&app, &caller, &uri).await;
        let plan = run::find(&app, id).await?;
        let error = PageError::from(ApiError::from(refusal));
        return Ok(ask(&frame, reject_question(&plan, id), Some(&error)).await);
    }
    Ok(Redirect::to(&format!("/runs/{id}")).into_response())
}

pub(super) async fn confirm_cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    job: JobPath,
) -> Result<Response, PageError> {
    let Path(job) = job?;
    let frame = Frame::new(&app, &caller, &uri).await;
    job::find(&frame, &job)?;
    Ok(ask(&frame, cancel_question(&job), None).await)
}

fn cancel_question(job: &str) -> Question {
    Question {
        title: format!("Cancel the run of {job}"),
        section: "jobs",
        text: vec![
            format!(
                "This ends the run of {job} at its next change boundary, or gives up one that waits."
            ),
            "What it has changed stays changed. The schedule continues.".to_owned(),
        ],
        button: "Cancel the run",
        is_danger: true,
        ignore_window: None,
        back: format!("/jobs/{job}"),
    }
}

pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    job: JobPath,
    form: AnyForm,
) -> Result<Response, PageError> {
    let (Path(job), Form(ActionForm { csrf, .. })) = (job?, form?);
    signed_in(&caller, &csrf)?;
    let by = caller.name().await;
    let (supervisor, name) = (Arc::clone(&app.supervisor), job.clone());
    let cancelled = to_completion(async move { supervisor.cancel(&name, &by).await }).await?;
    if let Err(refusal) = cancelled {
        let frame = Frame::new(&app, &caller, &uri).await;
        let error = PageError::from(ApiError::from(refusal));
        return Ok(ask(&frame, cancel_question(&job), Some(&error)).await);
    }
    Ok(Redirect::to(&format!("/jobs/{job}?did=cancel")).into_response())
}

pub(super) async fn confirm_pause(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, PageError> {
    let frame = Frame::new(&app, &caller, &uri).await;
    let text = vec![
        "No job runs on schedule until you resume, also after a restart of the daemon.".to_owned(),
        "Runs under way continue, and runs can be started by hand.".to_owned(),
    ];
    let question = Question {
        title: "Pause scheduled runs".to_owned(),
        section: "jobs",
        text,
        button: "Pause",
        is_danger: false,
        ignore_window: None,
        back: "/".to_owned(),
    };
    Ok(ask(&frame, question, None).await)
}

pub(super) async fn confirm_resume(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, PageError> {
    let frame = Frame::new(&app, &caller, &uri).await;
    let text = vec![
        "Jobs run on schedule again. What was due while they were paused is skipped.".to_owned(),
    ];
    let question = Question {
        title: "Resume scheduled runs".to_owned(),
        section: "jobs",
        text,
        button: "Resume",
        is_danger: false,
        ignore_window: None,
        back: "/".to_owned(),
    };
    Ok(ask(&frame, question, None).await)
}

pub(super) async fn pause(
    State(app): State<Arc<App>>,
    caller: Caller,
    form: AnyForm,
) -> Result<Response, PageError> {
    set_paused(app, &caller, form, true).await
}

pub(super) async fn resume(
    State(app): State<Arc<App>>,
    caller: Caller,
    form: AnyForm,
) -> Result<Response, PageError> {
    set_paused(app, &caller, form, false).await
}

async fn set_paused(
    app: Arc<App>,
    caller: &Caller,
    form: AnyForm,
    paused: bool,
) -> Result<Response, PageError> {
    let Form(ActionForm { csrf, .. }) = form?;
    signed_in(caller, &csrf)?;
    let recorded = to_completion(async move { app.supervisor.pause(paused).await }).await?;
    recorded.map_err(|error| {
        let text = format!("Nothing was changed, because it cannot be recorded: {error}");
        PageError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    })?;
    Ok(Redirect::to(if paused { "/?did=pause" } else { "/?did=resume" }).into_response())
}

pub(super) async fn confirm_reload(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, PageError> {
    let frame = Frame::new(&app, &caller, &uri).await;
    let text = vec![
        "This reads the configuration again and adopts it if it has no error. Jobs that did not change continue; the run of a removed job ends at its next change boundary.".to_owned(),
    ];
    let question = Question {
        title: "Reload the configuration".to_owned(),
        section: "jobs",
        text,
        button: "Reload",
        is_danger: false,
        ignore_window: None,
        back: "/".to_owned(),
    };
    Ok(ask(&frame, question, None).await)
}

pub(super) async fn reload(
    State(app): State<Arc<App>>,
    caller: Caller,
    form: AnyForm,
) -> Result<Response, PageError> {
    let Form(ActionForm { csrf, .. }) = form?;
    signed_in(&caller, &csrf)?;
    let (channel, reloading) = (caller.channel(), Arc::clone(&app));
    let result = to_completion(async move { reloading.reloader.reload(channel).await }).await?;
    app.pages.reloaded(Reload { at: app.clock.now(), result });
    Ok(Redirect::to("/reload").into_response())
}

fn reload_view(frame: &Frame<'_>, reload: Reload) -> ReloadView {
    let when = frame.moment(reload.at, frame.zone);
    match reload.result {
        Err(errors) => ReloadView {
            when,
            errors: errors
                .iter()
                .map(|error| crate::values::escape::lines(error).into_owned())
                .collect(),
            adopted: Vec::new(),
        },
        Ok(Adopted { added, changed, removed, unchanged, restart_needed }) => {
            let named = |jobs: Vec<String>| match jobs.is_empty() {
                true => "none".to_owned(),
                false => jobs.join(", "),
            };
            let mut adopted = vec![
                ("added", named(added)),
                ("changed", named(changed)),
                ("removed", named(removed)),
                ("unchanged", unchanged.len().to_string()),
            ];
            adopted.extend(
                restart_needed.iter().map(|need| ("needs a restart", line(need).into_owned())),
            );
            ReloadView { when, errors: Vec::new(), adopted }
        }
    }
}
