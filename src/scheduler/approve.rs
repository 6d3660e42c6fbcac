//! Decisions of people about plans: recorded first, then carried out on the replica that runs the job.

use std::sync::Arc;
use std::time::Duration;

use super::forward::unusable;
use super::message::{ApprovedRun, Approving, Message};
use super::plans::changed;
use super::request::{ApproveRequest, ForwardedRequest, Refusal};
use super::supervisor::Supervisor;
use crate::config::JobSpec;
use crate::history::{self, Decision, Page};
use crate::plan::report::{ApprovalState, Event, Outcome, Report};
use crate::runner::ApprovedPlan;
use crate::values::clock::format_time;
use crate::values::schema::Limit;
use crate::values::text::format_count;

/// How often to look for plans whose time is over or whose job was changed.
const TEND_EVERY: Duration = Duration::from_secs(5);

/// What an approval led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approved {
    pub job: String,
    /// The run that applies the plan, if it was started.
    pub run: Option<i64>,
    /// Otherwise, what it waits for.
    pub waits_for: Option<String>,
}

impl Supervisor {
    /// Approves the plan of a run, and has it applied as soon as its job is not running and its window is open.
    pub async fn approve(&self, request: ApproveRequest) -> Result<Approved, Refusal> {
        let plan = self.plan_of(request.run).await?;
        let job = plan.job.clone();
        match self.approve_here(&plan, request.clone()).await {
            Err(Refusal::Elsewhere { homeserver, .. }) => {
                let request = ForwardedRequest::Approve(request);
                let run = self.forward(&job, &homeserver, &request).await?;
                let waits_for = run
                    .is_none()
                    .then(|| "the job's window, or the end of the run in progress".to_owned());
                Ok(Approved { job, run, waits_for })
            }
            approved => approved,
        }
    }

    /// Carries out what another replica was asked for.
    pub(super) async fn approve_plan_of(
        &self,
        request: ApproveRequest,
    ) -> Result<Approved, Refusal> {
        let plan = self.plan_of(request.run).await?;
        self.approve_here(&plan, request).await
    }

    /// As [`approve`](Self::approve), if this replica runs the job.
    async fn approve_here(
        &self,
        plan: &Report,
        request: ApproveRequest,
    ) -> Result<Approved, Refusal> {
        let job = plan.job.clone();
        let asked = job.clone();
        let (spec, definition) = self
            .ask(|reply| Message::PlanDefinition { job: asked, reply })
            .await
            .unwrap_or(Err(Refusal::Draining))?;
        let waiting = self.history().waiting_plans().await.map_err(|error| unusable(&error))?;
        if let Some(found) = waiting.iter().find(|found| found.run == request.run)
            && found.definition != definition
        {
            let why = changed(&found.definition, &definition);
            self.supersede(request.run, &why).await?;
            return Err(Refusal::NotWaiting(format!(
                "the plan of run {} was not approved, because {why}: a new plan is needed",
                request.run
            )));
        }
        let ApproveRequest { run, by, max_changes } = request;
        if let Some(problem) = above_max_changes(plan, &spec, max_changes) {
            return Err(Refusal::NotWaiting(problem));
        }
        self.decide(run, ApprovalState::Approved, &by, max_changes).await?;
        tracing::info!(target: "microglia::audit", %job, run, %by, "{job}: the plan of run {run} was approved by {by}");
        let plan = ApprovedPlan { run, planned_at: plan.started_at, by: None };
        let plan = ApprovedRun { plan, max_changes };
        let asked = job.clone();
        let approving = self
            .ask(|reply| Message::Approved { job: asked, plan, reply })
            .await
            .unwrap_or(Err(Refusal::Draining))?;
        let mut events = match approving {
            Approving::Waits(what) => {
                return Ok(Approved { job, run: None, waits_for: Some(what) });
            }
            Approving::Started(events) => events,
        };
        while let Some(event) = events.recv().await {
            if let Event::Started(report) | Event::Ended(report) = event {
                return Ok(Approved { job, run: report.id, waits_for: None });
            }
        }
        // Another process has the job's lock.
        Ok(Approved {
            job,
            run: None,
            waits_for: Some("the end of the run in progress".to_owned()),
        })
    }

    /// Rejects the plan of a run, also one that was approved and is not being applied yet.
    pub async fn reject(&self, run: i64, by: &str) -> Result<String, Refusal> {
        let job = self.plan_of(run).await?.job;
        self.decide(run, ApprovalState::Rejected, by, None).await?;
        tracing::info!(target: "microglia::audit", %job, run, %by, "{job}: the plan of run {run} was rejected by {by}");
        self.tend_plans_now();
        Ok(job)
    }

    async fn plan_of(&self, run: i64) -> Result<Report, Refusal> {
        let found = self.history().run(run, Page { offset: 0, limit: 0 }).await;
        found.map_err(|error| unrecorded(&error))?.ok_or(Refusal::NoRun(run))
    }

    async fn decide(
        &self,
        run: i64,
        state: ApprovalState,
        by: &str,
        max_changes: Option<u32>,
    ) -> Result<(), Refusal> {
        let decision = Decision { state, by: by.to_owned(), max_changes };
        let decided = self.history().decide(run, &decision).await;
        if decided.map_err(|error| unrecorded(&error))? {
            return Ok(());
        }
        Err(Refusal::NotWaiting(not_waiting(&self.plan_of(run).await?)))
    }

    async fn supersede(&self, run: i64, why: &str) -> Result<(), Refusal> {
        let superseded = self.history().supersede_plan(run, why).await;
        superseded.map_err(|error| unrecorded(&error))?;
        self.tend_plans_now();
        Ok(())
    }

    /// Ends the wait of plans that nobody decides about in time or whose job was changed; never returns.
    pub async fn tend_plans(self: Arc<Self>) {
        let mut is_failing = false;
        loop {
            match self.tend_plans_once().await {
                Ok(()) => is_failing = false,
                Err(error) if !std::mem::replace(&mut is_failing, true) => {
                    tracing::warn!(target: "microglia::scheduler", "cannot look after plans that wait for approval: {error}");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(TEND_EVERY) => {}
                () = self.tend_plans.notified() => {}
            }
        }
    }

    async fn tend_plans_once(&self) -> Result<(), history::Error> {
        let plans = self.history().waiting_plans().await?;
        let has_expired =
            plans.iter().any(|plan| !plan.is_approved && plan.expires_at <= self.now());
        if has_expired {
            for (run, job) in self.history().expire_plans().await? {
                tracing::warn!(target: "microglia::scheduler", %job, run, "{job}: nobody decided in time about the plan of run {run}");
            }
        }
        let plans: Vec<_> = plans
            .into_iter()
            .filter(|plan| plan.is_approved || plan.expires_at > self.now())
            .collect();
        let outdated = self.ask(|reply| Message::WaitingPlans { plans, reply }).await;
        for plan in outdated.unwrap_or_default() {
            let (run, job, why) = (plan.run, plan.job, plan.why);
            if !self.history().supersede_plan(run, &why).await? {
                continue;
            }
            tracing::warn!(target: "microglia::scheduler", %job, run, "{job}: the plan of run {run} can no longer be approved: {why}");
        }
        Ok(())
    }

    fn tend_plans_now(&self) {
        self.tend_plans.notify_one();
    }
}

/// Why a plan is too large to be approved, in words for a person.
pub(crate) fn above_max_changes(
    plan: &Report,
    spec: &JobSpec,
    max_changes: Option<u32>,
) -> Option<String> {
    let (Some(planned), true) = (plan.planned, spec.job.kind().counts) else { return None };
    // Targets that could not be worked on are no changes.
    let planned = planned.saturating_sub(plan.failed);
    let Limit::Of(limit) = max_changes.map_or(spec.common.max_changes, Limit::Of) else {
        return None;
    };
    let items = spec.common.at_most.map_or(planned, |at_most| planned.min(u64::from(at_most)));
    (items > u64::from(limit)).then(|| {
        let run = plan.id.unwrap_or_default();
        format!(
            "the plan of run {run} has {}, more than max_changes = {limit}, and was not approved: if it is correct, approve it with `--max-changes {items}` (`max_changes` in the API)",
            format_count(items, "item", "items"),
        )
    })
}

fn unrecorded(error: &history::Error) -> Refusal {
    Refusal::Unanswered(format!("cannot use the history, so that nothing was decided: {error}"))
}

/// Why a plan cannot be decided about (any more).
pub(crate) fn not_waiting(run: &Report) -> String {
    let id = run.id.unwrap_or_default();
    let Some(approval) = &run.approval else {
        return format!(
            "run {id} has no plan that waits for approval: it was {}",
            match run.outcome {
                None => "not finished yet".to_owned(),
                Some(outcome) => format!("a run in {} mode that {}", run.mode, ended(outcome)),
            }
        );
    };
    let when = approval.decided_at.unwrap_or(approval.expires_at);
    let by = approval.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
    let detail = approval.detail.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let applied = approval.run.map(|run| format!(", and applied by run {run}")).unwrap_or_default();
    let state = match approval.state {
        // Its time is over.
        ApprovalState::Pending => ApprovalState::Expired,
        state => state,
    };
    format!("the plan of run {id} was {state}{by} at {}{detail}{applied}", format_time(when))
}

fn ended(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded | Outcome::Partial => "planned nothing that needs approval",
        _ => "did not succeed",
    }
}
