//! The first phase of an attempt: reads the homeserver and makes a plan.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::context::{Abort, RunContext};
use super::facts::{RecordedFacts, known_facts};
use super::media_lock::media_lock;
use super::portion;
use super::reading_progress::ReadingProgress;
use super::tally::{Activity, Tally};
use super::undo;
use crate::history::state_dir::{Lock, StateDir};
use crate::jobs::job::{Budget, Context, PlanError};
use crate::plan::change::Plan;
use crate::plan::facts::Facts;
use crate::plan::report::Event;

pub(super) struct ReadPlan {
    pub plan: Plan,
    /// The homeserver's own name; empty if it was not requested.
    pub server: String,
    /// Keeps the plan true until it is applied.
    pub media_lock: Option<Arc<Lock>>,
}

impl From<PlanError> for Abort {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Refused(why) => Self::Refused(why),
            PlanError::Synapse(error) => Self::Synapse(error),
        }
    }
}

pub(super) async fn read(run: &RunContext<'_>, tally: &mut Tally) -> Result<ReadPlan, Abort> {
    tally.activity = Activity::Reading;
    if let Some(refusal) = outside_window(run, tally) {
        return Err(Abort::Refused(refusal));
    }
    let reading = async {
        let needs = run.spec.job.kind().needs;
        let server = if needs.plans_offline && run.only_plans() {
            String::new()
        } else {
            check_homeserver(run).await?
        };
        let media_lock = if needs.media && !run.only_plans() {
            media_lock(run, tally, &server).await?
        } else {
            None
        };
        let plan = match run.params.undoes {
            // On the heap, so that the futures of runs stay small.
            Some(undoes) => Box::pin(undo::plan(run, undoes, &server)).await?,
            None => make_plan(run, tally, &server).await?,
        };
        Ok(ReadPlan { plan, server, media_lock })
    };
    let read = run.limits.unless_stopped(reading).await?;
    tally.reading = None;
    read
}

fn outside_window(run: &RunContext<'_>, tally: &Tally) -> Option<String> {
    let (window, zone) = (run.params.window(run.spec)?, run.spec.zone);
    if window.contains(run.clock.now(), zone) {
        return None;
    }
    let opens = window.start_after(tally.report.started_at, zone).with_timezone(&zone.0);
    Some(format!(
        "outside the job's window {window}, which opens at {}; a dry run is allowed at any time, and `--ignore-window` ignores the window once",
        opens.format("%Y-%m-%d %H:%M %Z")
    ))
}

/// Refuses if version, accounts or clock do not allow the kind; returns the server's name.
async fn check_homeserver(run: &RunContext<'_>) -> Result<String, PlanError> {
    let (kind, homeserver) = (run.spec.job.kind(), &run.spec.homeserver);
    let identity = run.reader.identity().await?;
    if identity.version < kind.needs.synapse {
        return Err(PlanError::Refused(format!(
            "{homeserver} runs Synapse {}, and {} requires {} or later: upgrade Synapse",
            identity.version_text, kind.name, kind.needs.synapse
        )));
    }
    let mas_is_unknown = identity.mas && run.reader.mas().is_none();
    if let Some(why) = kind.needs.without_mas_client.filter(|_| mas_is_unknown) {
        return Err(PlanError::Refused(why.to_owned()));
    }
    if let Some(off) = identity.clock_error().filter(|_| kind.needs.clock) {
        return Err(PlanError::Refused(format!(
            "the local clock is {off} that of {homeserver}, and timestamps would be wrong: synchronize the clocks (NTP)"
        )));
    }
    Ok(identity.server_name.clone())
}

/// Has the job plan, and passes its events on while it does.
async fn make_plan(run: &RunContext<'_>, tally: &mut Tally, server: &str) -> Result<Plan, Abort> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let emit = move |event| {
        let _ = sender.send(event);
    };
    let store = RecordedFacts { history: run.history, server };
    let portion = portion::begin(run, tally, server).await?;
    let context = Context {
        started_at: run.as_of(tally.report.started_at),
        reader: &run.reader,
        facts: Facts::new(known_facts(run, server).await?, &store),
        portion,
        emit: &emit,
        spool_directory: run.state_dir.map(StateDir::directory),
        media_in_object_storage: run.spec.media_in_object_storage,
        concurrency: run.homeserver.max_concurrent_requests as usize,
        budget: Budget {
            requests_per_second: run.reader.requests_per_second(),
            time_limit: run.spec.common.time_limit,
        },
    };
    tally.reading = Some(ReadingProgress::begin(run.reader.completed_requests()));
    let mut plan = Plan::default();
    let planned = {
        let mut planning = pin!(run.spec.job.plan(&context, &mut plan));
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => pass_on(run, tally, event),
                planned = &mut planning => break planned,
            }
        }
    };
    while let Ok(event) = events.try_recv() {
        pass_on(run, tally, event);
    }
    planned?;
    Ok(plan)
}

fn pass_on(run: &RunContext<'_>, tally: &mut Tally, event: Event) {
    if let (Event::Reading { what, done, total }, Some(reading)) = (&event, &mut tally.reading) {
        reading.advance(what, *done, *total, run.reader.completed_requests());
    }
    run.emit(event);
}
