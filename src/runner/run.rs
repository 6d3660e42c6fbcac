//! Runs a job from its start to its report: attempts of reading, guarding and applying.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::apply::apply;
use super::context::{Abort, RunContext, truncated, unrecorded};
use super::finish::{Verdict, finish, stopped_immediately, verdict};
use super::guards::guard;
use super::limits::{Limits, Stopped};
use super::load_gate;
use super::locks::job_lock;
use super::params::{HomeserverHandle, Listener, LostCallWait, RunParams};
use super::read::read;
use super::retry::{self, Retry};
use super::slots;
use super::stop::Stop;
use super::tally::Tally;
use super::waiting::wait_for;
use super::watch::watch_homeserver;
use crate::config::JobSpec;
use crate::history::state_dir::{Lock, StateDir};
use crate::history::{self, Claim, History};
use crate::plan::report::{Event, Mode, Outcome, Report, Trigger, WaitReason};
use crate::synapse::{self, Reader};
use crate::values::clock::{Clock, Timestamp, format_time};
use crate::values::schema::Limit;
use crate::values::text::panic_text;

/// Runs jobs, one run of a job at a time in the whole state directory.
#[derive(Debug, Clone)]
pub struct Runner {
    pub history: History,
    /// Without a usable state directory only dry runs are possible.
    pub dir: Option<StateDir>,
    pub clock: Clock,
    pub lost_call_wait: LostCallWait,
}

/// Why a run did not begin.
#[derive(Debug, thiserror::Error)]
pub enum NotBegun {
    /// Another run of the job is in progress.
    #[error("{job} is already running{}", run.map(|id| format!(" (run {id})")).unwrap_or_default())]
    Busy { job: String, run: Option<i64> },
    /// Another replica has run the occurrence.
    #[error("{job}: the occurrence was run by another replica")]
    Claimed { job: String },
    /// The plan was decided otherwise, is applied already, or the job was changed since.
    #[error(
        "{job}: the plan of run {plan} is not to be applied: it was decided otherwise, applied already, or the job was changed since"
    )]
    NotApproved { job: String, plan: i64 },
    /// Another replica works on the homeserver now.
    #[error("{job}: {error}")]
    LeaseLost { job: String, error: history::Error },
}

/// The job's lock, which is missing without a state directory.
type JobLock = Result<Option<Arc<Lock>>, std::io::Error>;

impl Runner {
    /// Runs a job to its end; the report is complete whatever happens, even a panic.
    pub async fn run(
        &self,
        spec: &JobSpec,
        homeserver: &HomeserverHandle,
        params: &RunParams,
        stop: &Stop,
        listener: Listener,
    ) -> Result<Report, NotBegun> {
        let job_lock: JobLock = match &self.dir {
            Some(dir) => match job_lock(dir, &spec.name).await {
                Ok(None) => return Err(self.busy(&spec.name).await),
                Ok(lock) => Ok(lock.map(Arc::new)),
                Err(error) => Err(error),
            },
            None => Ok(None),
        };
        let started_at = self.clock.now();
        let mut report = new_report(spec, params);
        report.started_at = truncated(started_at);
        let address = homeserver.transport.address.as_str();
        let claim = claim(spec, params, address);
        let begun = self.begin(&mut report, &job_lock, address, claim.as_ref()).await;
        let begun = match begun {
            Err(history::Error::Claimed) => {
                return Err(NotBegun::Claimed { job: spec.name.clone() });
            }
            Err(history::Error::NotApproved { plan }) => {
                return Err(NotBegun::NotApproved { job: spec.name.clone(), plan });
            }
            // A person is told in the report.
            Err(error @ history::Error::LeaseLost { .. }) if !is_of_a_person(params.trigger) => {
                return Err(NotBegun::LeaseLost { job: spec.name.clone(), error });
            }
            begun => begun,
        };
        listener(Event::Started(Box::new(report.clone())));
        let window = params.window(spec);
        let run = RunContext {
            history: &self.history,
            state_dir: self.dir.as_ref(),
            clock: &self.clock,
            lost_call_wait: self.lost_call_wait,
            spec,
            homeserver,
            params,
            reader: Reader::new(Arc::clone(&homeserver.transport), self.clock.clone())
                .with_mas(homeserver.mas.as_ref()),
            limits: Limits {
                stop,
                deadline: Instant::now() + spec.common.time_limit.0,
                window_end: window.map(|window| window.end_after(started_at, spec.zone)),
                clock: &self.clock,
            },
            listener,
        };
        let mut tally = Tally::new(report);
        // Held until the end is recorded: a run without an end and without a lock counts as interrupted.
        let job_lock = job_lock.ok().flatten();
        let verdict = match begun {
            Ok(()) => work(&run, &mut tally, job_lock.as_ref()).await,
            Err(error) => Verdict::new(Outcome::Refused, unrecorded(&error)),
        };
        let report = finish(&run, tally, verdict).await;
        run.emit(Event::Ended(Box::new(report.clone())));
        drop(job_lock);
        Ok(report)
    }

    async fn busy(&self, job: &str) -> NotBegun {
        let last = self.history.runs(Some(job), 1).await.ok().and_then(|mut runs| runs.pop());
        let run = last.filter(|run| run.outcome.is_none()).and_then(|run| run.id);
        NotBegun::Busy { job: job.to_owned(), run }
    }

    /// Opens the record of a run; a dry run continues without one.
    async fn begin(
        &self,
        report: &mut Report,
        lock: &JobLock,
        address: &str,
        claim: Option<&Claim>,
    ) -> Result<(), history::Error> {
        let begun = match lock {
            // Without the job's lock it is unknown whether another run of it is in progress.
            Err(error) => {
                let problem = format!("the job's lock cannot be used ({error})");
                Err(history::Error::Unavailable(problem.into()))
            }
            Ok(_) => match self.history.mark_interrupted(&report.job).await {
                Ok(()) => self.history.begin_run(report, address, claim).await,
                Err(error) => Err(error),
            },
        };
        match begun {
            Ok(id) => report.id = Some(id),
            Err(error) if report.mode != Mode::DryRun || is_taken(&error, report.trigger) => {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(target: "microglia::history", "this dry run is not recorded: {error}");
            }
        }
        Ok(())
    }
}

/// The approved plan that the run applies.
fn claim(spec: &JobSpec, params: &RunParams, address: &str) -> Option<Claim> {
    let plan = params.approved.as_ref()?;
    Some(Claim {
        plan: plan.run,
        definition: spec.plan_definition(address),
        by: plan.by.clone(),
        max_changes: match params.max_changes {
            Limit::Of(limit) if params.max_changes != spec.common.max_changes => Some(limit),
            _ => None,
        },
    })
}

/// Whether another replica does what the schedule says.
fn is_taken(error: &history::Error, trigger: Trigger) -> bool {
    let taken = matches!(error, history::Error::Claimed | history::Error::LeaseLost { .. });
    taken && !is_of_a_person(trigger)
}

/// Whether somebody waits for the report of the run.
fn is_of_a_person(trigger: Trigger) -> bool {
    matches!(trigger, Trigger::Manual | Trigger::Undo)
}

fn new_report(spec: &JobSpec, params: &RunParams) -> Report {
    Report {
        id: None,
        job: spec.name.clone(),
        kind: spec.job.kind().name.to_owned(),
        homeserver: spec.homeserver.clone(),
        mode: params.mode,
        trigger: params.trigger,
        scheduled_for: params.scheduled_for,
        started_at: Timestamp::default(),
        finished_at: None,
        attempts: params.attempts_made,
        outcome: None,
        message: None,
        waited_seconds: 0.0,
        waited_for: Vec::new(),
        waiting: None,
        planned: None,
        done: 0,
        failed: 0,
        skipped: 0,
        remaining: None,
        bytes_planned: None,
        bytes_freed: None,
        left_alone: BTreeMap::new(),
        sample: Vec::new(),
        round: None,
        approval: None,
        changes: None,
    }
}

/// Makes attempts until the run has to end, be it by a panic or at once.
async fn work(run: &RunContext<'_>, tally: &mut Tally, job_lock: Option<&Arc<Lock>>) -> Verdict {
    let ended = {
        let attempts = AssertUnwindSafe(attempts(run, tally, job_lock)).catch_unwind();
        tokio::select! {
            ended = attempts => Some(ended),
            () = run.limits.stop.requested_now() => None,
            never = watch_homeserver(run) => match never {},
        }
    };
    match ended {
        Some(Ok(ended)) => verdict(run, tally, ended),
        Some(Err(panic)) => Verdict::new(
            Outcome::Panicked,
            format!("a bug in microglia, please report it: {}", panic_text(&*panic)),
        ),
        None => stopped_immediately(run, tally),
    }
}

async fn attempts(
    run: &RunContext<'_>,
    tally: &mut Tally,
    job_lock: Option<&Arc<Lock>>,
) -> Result<(), Abort> {
    let retries = &run.spec.common.retries;
    loop {
        tally.report.attempts += 1;
        if tally.report.attempts > run.params.attempts_made + 1 {
            // The number of attempts must outlive the process; a failure shows again at the next write.
            let _ = run.history.update_run(&tally.report).await;
        }
        let error = match attempt(run, tally, job_lock).await {
            Ok(()) => return Ok(()),
            Err(Abort::Synapse(error)) => error,
            Err(abort) => return Err(abort),
        };
        let attempt = retry::Attempt {
            number: tally.report.attempts,
            applied: tally.report.done,
            time_left: run.limits.time_left(),
        };
        let delay = match retry::decide(&error, attempt, retries, fastrand::f64()) {
            Retry::Stop(why) => return Err(stop_retrying(&error, &why)),
            Retry::Now => Duration::ZERO,
            Retry::After(delay) => delay,
        };
        wait_for_retry(run, tally, &error, delay).await?;
    }
}

/// One attempt; the run slot is held while it lasts.
async fn attempt(
    run: &RunContext<'_>,
    tally: &mut Tally,
    job_lock: Option<&Arc<Lock>>,
) -> Result<(), Abort> {
    load_gate::pass(run, tally).await?;
    let _slot = slots::acquire(run, tally).await?;
    let _active = run.homeserver.transport.begin_run();
    let read = read(run, tally).await?;
    match guard(run, tally, read).await? {
        Some(approved) => apply(run, tally, approved, job_lock).await,
        None => Ok(()),
    }
}

fn stop_retrying(error: &synapse::Error, why: &retry::Stop) -> Abort {
    match why {
        retry::Stop::Refused => Abort::Refused(error.to_string()),
        retry::Stop::Failed => Abort::Failed(error.to_string()),
        retry::Stop::NoTimeLeft => {
            Abort::Failed(format!("{error} (no time is left for another attempt)"))
        }
    }
}

async fn wait_for_retry(
    run: &RunContext<'_>,
    tally: &mut Tally,
    error: &synapse::Error,
    delay: Duration,
) -> Result<(), Abort> {
    let (attempt, attempts) = (tally.report.attempts + 1, run.spec.common.retries.attempts);
    // A run that waits records the reason.
    tally.report.message = Some(error.to_string());
    run.emit(Event::Retrying {
        attempt,
        attempts,
        wait_seconds: delay.as_secs(),
        because: error.to_string(),
    });
    let at = format_time(run.clock.now() + delay);
    let next = format!("attempt {attempt} of {attempts} at {at}");
    let waited = wait_for(run, tally, WaitReason::Retry, next, run.limits.sleep(delay)).await;
    tally.report.message = None;
    waited.map_err(|stopped| match stopped {
        Stopped::Window => {
            Abort::Failed(format!("{error} (the job's window ended before another attempt)"))
        }
        stopped => stopped.into(),
    })?;
    run.emit(Event::Resumed);
    Ok(())
}
