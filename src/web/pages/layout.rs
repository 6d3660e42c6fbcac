//! What all pages have in common: their head, and what it says of the daemon.

use axum::http::{StatusCode, Uri};
use chrono_tz::Tz;

use super::super::access::Caller;
use super::super::app::App;
use super::super::session::OpenSession;
use super::assets::VERSION;
use super::format::Moment;
use super::page_error::PageError;
use crate::scheduler::job_view::JobView;
use crate::values::clock::Timestamp;

/// The frame of a page.
pub(super) struct Shell {
    pub(super) title: String,
    /// The page that the navigation marks.
    pub(super) section: &'static str,
    pub(super) assets: &'static str,
    /// The CSRF token of the session; `None` where nobody is signed in.
    pub(super) csrf: Option<String>,
    /// Whether there is an admin token to sign in with.
    pub(super) can_sign_in: bool,
    /// The path and query of this page.
    pub(super) here: String,
    pub(super) loaded: Option<Moment>,
    pub(super) next: Option<Moment>,
    pub(super) paused: bool,
    pub(super) zone: &'static str,
    /// What an action did.
    pub(super) notice: Option<&'static str>,
}

/// What every page is made with.
pub(super) struct Frame<'a> {
    pub(super) app: &'a App,
    pub(super) caller: &'a Caller,
    pub(super) uri: &'a Uri,
    pub(super) now: Timestamp,
    pub(super) zone: Tz,
    /// The jobs, sorted by name.
    pub(super) views: Vec<JobView>,
}

impl<'a> Frame<'a> {
    pub(super) async fn new(app: &'a App, caller: &'a Caller, uri: &'a Uri) -> Self {
        let zone = app.reloader.daemon().timezone.0;
        Self { app, caller, uri, now: app.clock.now(), zone, views: app.supervisor.views().await }
    }

    pub(super) fn view(&self, job: &str) -> Option<&JobView> {
        self.views.iter().find(|view| view.spec.name == job)
    }

    /// The zone of a job, also of one that is gone.
    pub(super) fn zone_of(&self, job: &str) -> Tz {
        self.view(job).map_or(self.zone, |view| view.spec.zone.0)
    }

    pub(super) fn moment(&self, time: Timestamp, zone: Tz) -> Moment {
        Moment::of(time, zone, self.now)
    }

    pub(super) async fn shell(&self, title: &str, section: &'static str) -> Shell {
        let next = self.views.iter().filter_map(|view| view.next).min();
        let loaded = self.app.metrics.config_success_timestamp.get();
        #[expect(clippy::cast_possible_truncation, reason = "whole seconds do")]
        let loaded = Timestamp::from_timestamp(loaded as i64, 0);
        let query = self.uri.query().unwrap_or("");
        Shell {
            title: title.to_owned(),
            section,
            assets: VERSION.as_str(),
            csrf: self.caller.session().map(|session| session.csrf.clone()),
            can_sign_in: self.app.reloader.admin_token().await.is_some(),
            here: self.uri.path_and_query().map_or("/", |here| here.as_str()).to_owned(),
            loaded: loaded.map(|loaded| self.moment(loaded, self.zone)),
            next: next.map(|next| self.moment(next, self.zone)),
            paused: self.app.supervisor.is_paused().await,
            zone: self.zone.name(),
            notice: query.split('&').find_map(|pair| notice(pair.strip_prefix("did=")?)),
        }
    }
}

/// What an action did, by the word that its redirect carries.
fn notice(did: &str) -> Option<&'static str> {
    Some(match did {
        "cancel" => "The run was asked to end. It ends at its next change boundary.",
        "pause" => "Scheduled runs are paused.",
        "resume" => "Scheduled runs are resumed.",
        "sign-in" => "You are signed in.",
        "sign-out" => "You are signed out.",
        _ => return None,
    })
}

/// The session of the caller, or an error that says how to get one.
pub(super) fn signed_in<'a>(caller: &'a Caller, csrf: &str) -> Result<&'a OpenSession, PageError> {
    let session = caller.session().ok_or_else(|| {
        PageError::new(StatusCode::UNAUTHORIZED, "Your session has ended: sign in again.")
    })?;
    match session.has_csrf(csrf) {
        true => Ok(session),
        false => Err(PageError::new(
            StatusCode::FORBIDDEN,
            "This form belongs to another session: go back, reload the page, and try again.",
        )),
    }
}
