//! Plans that wait for a person, as the owner of the jobs sees them.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::TimeDelta;
use tokio::sync::mpsc;

use super::job_state::Event as StateEvent;
use super::message::{ApprovedRun, Approving, Outdated};
use super::owner::{Entry, Owner, entry};
use super::request::Refusal;
use crate::config::{JobSpec, changed_keys};
use crate::history::WaitingPlan;
use crate::runner::ApprovedPlan;
use crate::values::clock::format_time;

/// How long after a run that applies a plan could not begin another one is tried.
const TRY_AGAIN_AFTER: TimeDelta = TimeDelta::seconds(15);

impl Owner {
    /// What the job is now, if this replica runs it.
    pub(super) fn plan_definition(&mut self, job: &str) -> Result<(Arc<JobSpec>, String), Refusal> {
        if self.draining {
            return Err(Refusal::Draining);
        }
        let is_elsewhere = self.jobs.get(job).is_some_and(|entry| self.is_elsewhere(entry));
        let entry = entry(&mut self.jobs, job)?;
        match is_elsewhere {
            true => Err(entry.elsewhere()),
            false => Ok((Arc::clone(&entry.spec), entry.plan_definition())),
        }
    }

    /// Applies an approved plan as soon as that is possible.
    pub(super) fn approved(&mut self, job: &str, plan: ApprovedRun) -> Result<Approving, Refusal> {
        if self.draining {
            return Ok(Approving::Waits("the next start of the daemon".to_owned()));
        }
        let (id, now) = (plan.plan.run, self.clock.now());
        let entry = entry(&mut self.jobs, job)?;
        if entry.state.knows_plan(id) {
            // It was found in the history before this message arrived.
            return Ok(Approving::Waits("its run, which is about to start".to_owned()));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        entry.approved = Some((plan, Some(sender)));
        self.on(job, StateEvent::Approved { plan: id });
        let Some(entry) = self.jobs.get_mut(job) else { return Err(Refusal::Draining) };
        let Some((_, listener)) = &mut entry.approved else {
            return Ok(Approving::Started(receiver));
        };
        // Nobody waits for a run that starts later.
        *listener = None;
        Ok(Approving::Waits(match entry.state.approved_waits_until(now) {
            Some(opens) => format!("the job's window, which opens at {}", format_time(opens)),
            None => "the end of the run in progress".to_owned(),
        }))
    }

    /// Applies what was approved before a restart, or on another replica, or could not be applied yet.
    pub(super) fn recall_approved(&mut self, plans: &[WaitingPlan]) {
        let now = self.clock.now();
        for plan in plans.iter().filter(|plan| plan.is_approved) {
            let Some(found) = self.jobs.get(&plan.job) else { continue };
            let is_too_early =
                found.approved_tried_at.is_some_and(|tried| now - tried < TRY_AGAIN_AFTER);
            // What must not be sent twice may have been sent when its run was cut off.
            let may_repeat = plan.attempted == 0 || found.spec.job.is_repeatable();
            let is_current = found.plan_definition() == plan.definition;
            if is_too_early
                || !is_current
                || !may_repeat
                || found.state.knows_plan(plan.run)
                || self.is_standby(found)
            {
                continue;
            }
            let approved = ApprovedRun {
                plan: ApprovedPlan { run: plan.run, planned_at: plan.planned_at, by: None },
                max_changes: plan.max_changes,
            };
            if let Some(entry) = self.jobs.get_mut(&plan.job) {
                entry.approved = Some((approved, None));
            }
            self.on(&plan.job, StateEvent::Approved { plan: plan.run });
        }
    }

    /// Shows which jobs have plans that wait for a decision, and returns those plans that can no longer be applied.
    pub(super) fn waiting_plans(&mut self, plans: &[WaitingPlan]) -> Vec<Outdated> {
        let mut outdated = Vec::new();
        let mut pending = BTreeSet::new();
        for plan in plans {
            let found = self.jobs.get(&plan.job);
            // Another replica may have another configuration.
            let Some(entry) = found.filter(|entry| !self.is_standby(entry)) else { continue };
            let now = entry.plan_definition();
            if now != plan.definition {
                outdated.push(Outdated {
                    run: plan.run,
                    job: plan.job.clone(),
                    why: changed(&plan.definition, &now),
                });
            } else if !plan.is_approved {
                pending.insert(plan.job.as_str());
            }
        }
        let mut table = self.metrics.jobs.table();
        for (job, series) in table.iter_mut() {
            series.approval_pending = pending.contains(job.as_str());
        }
        drop(table);
        self.recall_approved(plans);
        outdated
    }
}

/// Why a plan is out of date.
pub(super) fn changed(before: &str, now: &str) -> String {
    format!("the job was changed since: {}", changed_keys(before, now))
}

impl Entry {
    fn plan_definition(&self) -> String {
        self.spec.plan_definition(self.address())
    }
}
