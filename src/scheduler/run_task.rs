//! One run in a task of its own, which reports its events to the owner of the jobs.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{broadcast, mpsc};

use super::job_event::JobEvent;
use super::job_state::Ending;
use super::message::{Listener, Message};
use crate::config::JobSpec;
use crate::observe::run_log;
use crate::plan::report::{Event, Outcome};
use crate::runner::{HomeserverHandle, NotBegun, RunParams, Runner, Stop};

/// A run that is to be carried out.
pub(super) struct RunTask {
    pub runner: Runner,
    pub spec: Arc<JobSpec>,
    pub homeserver: HomeserverHandle,
    pub params: RunParams,
    pub stop: Stop,
    pub listener: Option<Listener>,
    pub messages: mpsc::UnboundedSender<Message>,
    pub events: broadcast::Sender<JobEvent>,
}

impl RunTask {
    pub(super) async fn carry_out(self) {
        let job = self.spec.name.clone();
        let log = run_log::log(&job, &self.spec.homeserver);
        let (messages, listener, name) =
            (self.messages.clone(), self.listener.clone(), job.clone());
        let events = self.events.clone();
        let emit = Arc::new(move |event: Event| {
            // Progress is only for subscribers; the owner would merely forward it.
            let is_followed = listener.is_some() || events.receiver_count() > 0;
            if is_followed || !is_progress(&event) {
                let event = event.clone();
                let listener = listener.clone();
                let _ = messages.send(Message::Event { job: name.clone(), event, listener });
            }
            log(event);
        });
        let run = self.runner.run(&self.spec, &self.homeserver, &self.params, &self.stop, emit);
        let ending = match AssertUnwindSafe(run).catch_unwind().await {
            Ok(Ok(report)) if report.outcome == Some(Outcome::Interrupted) => Ending::CutOff,
            Ok(Ok(_)) => Ending::Finished,
            Ok(Err(busy @ NotBegun::Busy { .. })) => {
                tracing::warn!(target: "microglia::scheduler", %job, "{busy}");
                Ending::Busy
            }
            Ok(Err(claimed @ NotBegun::Claimed { .. })) => {
                tracing::debug!(target: "microglia::scheduler", %job, "{claimed}");
                Ending::Elsewhere
            }
            Ok(Err(decided @ NotBegun::NotApproved { .. })) => {
                tracing::warn!(target: "microglia::scheduler", %job, "{decided}");
                Ending::Finished
            }
            Ok(Err(lost @ NotBegun::LeaseLost { .. })) => {
                tracing::debug!(target: "microglia::scheduler", %job, "{lost}");
                Ending::CutOff
            }
            Err(_) => {
                tracing::error!(target: "microglia::scheduler", %job, "{job}: a bug in microglia, please report it: the run panicked outside its attempts");
                Ending::Finished
            }
        };
        let _ = self.messages.send(Message::Ended { job, ending, listener: self.listener });
    }
}

/// Whether an event only reports progress.
fn is_progress(event: &Event) -> bool {
    matches!(event, Event::Reading { .. } | Event::Changing { .. })
}
