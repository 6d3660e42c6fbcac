//! Acting from the page: each action is confirmed once, carried out, and its result shown.

use std::sync::Arc;

use askama::Template;
use axum::Form;
use axum::extract::rejection::{FormRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{MethodRouter, get};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::access::Caller;
use super::super::api::to_completion;
use super::super::api_error::ApiError;
use super::super::app::App;
use super::super::events::RunEvents;
use super::format::{Moment, figures};
use super::job;
use super::layout::{Frame, Shell, signed_in};
use super::page_error::{PageError, rendered};
use super::run;
use super::state::Reload;
use crate::plan::report::{Mode, Outcome, Report};
use crate::scheduler::job_view::JobView;
use crate::scheduler::{Adopted, ApproveRequest, RunOverrides};
use crate::values::escape::{line, lines};
use crate::values::fingerprint::Fingerprint;
use crate::values::schedule::Window;

/// What a person can do, with the job or the run that it is done to.
pub(super) enum Action {
    DryRun(String),
    Cancel(String),
    Apply(i64),
    Approve(i64),
    Reject(i64),
    Pause,
    Resume,
    Reload,
}

/// Asks whether to carry out an action.
#[derive(Template)]
#[template(path = "confirm.html")]
struct Confirm {
    shell: Shell,
    question: Question,
    /// Where the form is sent.
    to: String,
    /// Where nothing is done.
    back: String,
    error: Option<String>,
    /// What the last one did, for a reload.
    result: Option<ReloadView>,
}

#[derive(Default)]
struct Question {
    title: String,
    /// What the action will do.
    text: Vec<String>,
    button: &'static str,
    /// Whether it changes something on a homeserver.
    is_danger: bool,
    /// What the person may allow in addition.
    ignore_window: Option<String>,
}

struct ReloadView {
    when: Moment,
    errors: Vec<String>,
    adopted: Vec<(&'static str, String)>,
}

#[derive(Deserialize)]
struct ActionForm {
    #[serde(default)]
    csrf: String,
    /// Present where it is checked.
    ignore_window: Option<String>,
}

/// The page that asks, and where its form is sent: the same path.
pub(super) fn route<P>(action: fn(P) -> Action) -> MethodRouter<Arc<App>>
where
    P: DeserializeOwned + Send + 'static,
{
    let confirm = move |State(app): State<Arc<App>>,
                        caller: Caller,
                        uri: Uri,
                        path: Result<Path<P>, PathRejection>| async move {
        let Path(path) = path?;
        action(path).ask(&Frame::new(&app, &caller, &uri).await, None).await
    };
    let carry_out = move |State(app): State<Arc<App>>,
                          caller: Caller,
                          uri: Uri,
                          path: Result<Path<P>, PathRejection>,
                          form: Result<Form<ActionForm>, FormRejection>| async move {
        let (Path(path), Form(form)) = (path?, form?);
        signed_in(&caller, &form.csrf)?;
        let (action, frame) = (action(path), Frame::new(&app, &caller, &uri).await);
        match action.carry_out(&frame, form).await {
            Ok(to) => Ok(Redirect::to(&to).into_response()),
            Err(error) => action.ask(&frame, Some(&error)).await,
        }
    };
    get(confirm).post(carry_out)
}

impl Action {
    async fn ask(
        &self,
        frame: &Frame<'_>,
        error: Option<&PageError>,
    ) -> Result<Response, PageError> {
        let question = self.question(frame).await?;
        if frame.caller.session().is_none() {
            let to = format!("/login?next={}", frame.uri.path());
            return Ok(Redirect::to(&to).into_response());
        }
        let back = self.page();
        let section = if back.starts_with("/runs/") { "runs" } else { "jobs" };
        let last_reload = frame.app.pages.last_reload().filter(|_| matches!(self, Self::Reload));
        let page = Confirm {
            shell: frame.shell(&question.title, section).await,
            question,
            to: frame.uri.path().to_owned(),
            back,
            error: error.map(|error| error.text().to_owned()),
            result: last_reload.map(|reload| reload_view(frame, reload)),
        };
        let status = error.map_or(StatusCode::OK, PageError::status);
        Ok((status, rendered(&page)).into_response())
    }

    /// The page that the action is offered on.
    fn page(&self) -> String {
        match self {
            Self::DryRun(job) | Self::Cancel(job) => format!("/jobs/{job}"),
            Self::Apply(id) | Self::Approve(id) | Self::Reject(id) => format!("/runs/{id}"),
            Self::Pause | Self::Resume | Self::Reload => "/".to_owned(),
        }
    }

    async fn question(&self, frame: &Frame<'_>) -> Result<Question, PageError> {
        Ok(match self {
            Self::DryRun(job) => dry_run_question(job::find(frame, job)?),
            Self::Cancel(job) => cancel_question(job::find(frame, job)?),
            Self::Apply(id) => apply_question(frame, *id, &run::find(frame.app, *id).await?),
            Self::Approve(id) => approve_question(frame, *id, &run::find(frame.app, *id).await?),
            Self::Reject(id) => reject_question(*id, &run::find(frame.app, *id).await?),
            Self::Pause => Question {
                title: "Pause scheduled runs".to_owned(),
                text: vec![
                    "No job runs on schedule until you resume, also after a restart of the daemon.".to_owned(),
                    "Runs under way continue, and runs can be started by hand.".to_owned(),
                ],
                button: "Pause",
                ..Question::default()
            },
            Self::Resume => Question {
                title: "Resume scheduled runs".to_owned(),
                text: vec!["Jobs run on schedule again. What was due while they were paused is skipped.".to_owned()],
                button: "Resume",
                ..Question::default()
            },
            Self::Reload => Question {
                title: "Reload the configuration".to_owned(),
                text: vec!["This reads the configuration again and adopts it if it has no error. Jobs that did not change continue; the run of a removed job ends at its next change boundary.".to_owned()],
                button: "Reload",
                ..Question::default()
            },
        })
    }

    /// Returns the page that shows the result.
    async fn carry_out(&self, frame: &Frame<'_>, form: ActionForm) -> Result<String, PageError> {
        let (app, by) = (frame.app, frame.caller.name().await);
        let supervisor = Arc::clone(&app.supervisor);
        let run = match self {
            Self::DryRun(job) => {
                let definition = job::find(frame, job)?.fingerprint.clone();
                let overrides = RunOverrides {
                    mode: Some(Mode::DryRun),
                    fingerprint: Some(definition.clone()),
                    ..RunOverrides::default()
                };
                let run = start(app, job, overrides).await?;
                if let Some(run) = run {
                    app.pages.dry_run_started(run, definition);
                }
                run
            }
            Self::Apply(id) => {
                let plan = run::find(app, *id).await?;
                let overrides = RunOverrides {
                    mode: Some(Mode::Apply),
                    ignore_window: form.ignore_window.is_some(),
                    fingerprint: Some(definition_to_apply(app, &plan, *id)?),
                    ..RunOverrides::default()
                };
                start(app, &plan.job, overrides).await?
            }
            Self::Approve(id) => {
                let request = ApproveRequest { run: *id, by, max_changes: None };
                completed(async move { supervisor.approve(request).await }).await?.run
            }
            Self::Reject(id) => {
                let id = *id;
                completed(async move { supervisor.reject(id, &by).await }).await?;
                None
            }
            Self::Cancel(job) => {
                let name = job.clone();
                completed(async move { supervisor.cancel(&name, &by).await }).await?;
                return Ok(format!("/jobs/{job}?did=cancel"));
            }
            Self::Pause => {
                completed(async move { supervisor.pause(true).await }).await?;
                return Ok("/?did=pause".to_owned());
            }
            Self::Resume => {
                completed(async move { supervisor.pause(false).await }).await?;
                return Ok("/?did=resume".to_owned());
            }
            Self::Reload => {
                let (channel, reloader) = (frame.caller.channel(), Arc::clone(&app.reloader));
                let result = to_completion(async move { reloader.reload(channel).await }).await?;
                app.pages.reloaded(Reload { at: app.clock.now(), result });
                return Ok("/reload".to_owned());
            }
        };
        Ok(run.map_or_else(|| self.page(), |run| format!("/runs/{run}")))
    }
}

fn dry_run_question(JobView { spec, .. }: &JobView) -> Question {
    let job = &spec.name;
    let sends = match spec.job.kind().needs.plans_offline {
        true => "It sends nothing.".to_owned(),
        false => format!("It only reads {} and changes nothing there.", spec.homeserver),
    };
    Question {
        title: format!("Dry run of {job}"),
        text: vec![
            format!("This plans {job} now and shows what it would change. {sends}"),
            "The plan can be applied afterwards.".to_owned(),
        ],
        button: "Start dry run",
        ..Question::default()
    }
}

fn cancel_question(JobView { spec, .. }: &JobView) -> Question {
    let job = &spec.name;
    Question {
        title: format!("Cancel the run of {job}"),
        text: vec![
            format!(
                "This ends the run of {job} at its next change boundary, or gives up one that waits."
            ),
            "What it has changed stays changed. The schedule continues.".to_owned(),
        ],
        button: "Cancel the run",
        is_danger: true,
        ..Question::default()
    }
}

fn apply_question(frame: &Frame<'_>, id: i64, plan: &Report) -> Question {
    let Report { job, homeserver, .. } = plan;
    Question {
        title: format!("Apply {job}"),
        text: vec![
            planned(id, plan),
            format!(
                "This plans again and makes the changes on {homeserver}. What is new since the dry run is changed, too, up to max_changes."
            ),
        ],
        button: "Make the changes",
        is_danger: true,
        ignore_window: closed_window(frame, job)
            .map(|window| format!("Change something although it is outside the window {window}")),
    }
}

fn approve_question(frame: &Frame<'_>, id: i64, plan: &Report) -> Question {
    let Report { job, homeserver, .. } = plan;
    let mut text = vec![
        planned(id, plan),
        format!(
            "This plans again and makes those changes on {homeserver} that are still needed. What is new since the plan is left for the next one."
        ),
    ];
    let window = closed_window(frame, job);
    text.extend(window.map(|window| format!("It waits until the window {window} opens.")));
    Question {
        title: format!("Approve the plan of {job}"),
        text,
        button: "Approve the plan",
        is_danger: true,
        ..Question::default()
    }
}

fn reject_question(id: i64, plan: &Report) -> Question {
    Question {
        title: format!("Reject the plan of {}", plan.job),
        text: vec![
            format!("The plan of run {id} is dropped, and nothing is changed."),
            "The next run of the job makes a new plan.".to_owned(),
        ],
        button: "Reject the plan",
        ..Question::default()
    }
}

fn planned(id: i64, plan: &Report) -> String {
    format!("Run {id} planned: {}.", figures(plan).trim_end_matches(" planned"))
}

/// The window of a job if it is closed now.
fn closed_window(frame: &Frame<'_>, job: &str) -> Option<Window> {
    let spec = &frame.view(job)?.spec;
    spec.common.window.filter(|_| spec.is_outside_window(frame.now))
}

/// Starts a run, and returns its id; `None` for a dry run that could not be recorded.
async fn start(app: &App, job: &str, overrides: RunOverrides) -> Result<Option<i64>, PageError> {
    let (supervisor, name) = (Arc::clone(&app.supervisor), job.to_owned());
    let receiver = completed(async move { supervisor.run(&name, overrides).await }).await?;
    Ok(RunEvents::from_start(job, receiver).await?.run_id())
}

/// As [`to_completion`], with what was refused as an error.
async fn completed<T: Send + 'static, E: Send + 'static>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, PageError>
where
    ApiError: From<E>,
{
    Ok(to_completion(work).await?.map_err(ApiError::from)?)
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

fn reload_view(frame: &Frame<'_>, reload: Reload) -> ReloadView {
    let when = frame.moment(reload.at, frame.zone);
    match reload.result {
        Err(errors) => ReloadView {
            when,
            errors: errors.iter().map(|error| lines(error).into_owned()).collect(),
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
