//! Judging a plan by its guards, and recording it, before the first change.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{Ending, Run, record};
use crate::history;
use crate::plan::change::{Plan, Work};
use crate::plan::report::{CHANGES_SHOWN, ChangeRecord, Event, Mode, State};
use crate::values::schema::Limit;
use crate::values::size::Size;
use crate::values::text::{format_count, format_number};

impl Run<'_> {
    /// Judges the plan, and makes its changes unless this is a dry run.
    pub(super) async fn work_off(&self, mut plan: Plan, server: &str) -> Result<Ending, Ending> {
        let unrecorded = |error: history::Error| {
            Ending::Failed(format!("the history cannot be written: {error}"))
        };
        let unknown = self.resolve_lost(&plan, server).await.map_err(unrecorded)?;
        let problems = plan.problems.len() as u64 + unknown;
        self.problems.store(problems, Ordering::Relaxed);
        self.some_fine.store(plan.some_fine, Ordering::Relaxed);
        let count = plan.count();
        let (done, bytes) = {
            let report = self.report();
            (report.done + report.skipped, plan.bytes)
        };
        let cut = self.spec.common.at_most.filter(|_| count.is_some());
        let mut notes = std::mem::take(&mut plan.notes);
        let (mut nothing_fits, mut left) = (None, 0);
        let kept = match cut {
            Some(most) => {
                let most = u64::from(most).saturating_sub(done);
                let kept = plan.keep(most);
                left = count.unwrap_or(0).saturating_sub(kept);
                if kept == 0 && left > 0 && most > 0 {
                    nothing_fits = Some(format!(
                        "at_most = {} is too small: the first of the plan go together and are more, so that nothing would ever be done; raise it",
                        most + done
                    ));
                } else if left > 0 {
                    let bytes = bytes.unwrap_or(0).saturating_sub(plan.bytes.unwrap_or(0));
                    notes.push(left_for_later(left, bytes));
                }
                Some(kept)
            }
            None => count,
        };
        {
            let mut report = self.report();
            report.failed = problems;
            report.remaining = kept.map(|_| left);
            report.sample.clone_from(&plan.sample);
            report.left_alone.clone_from(&plan.left_alone);
            report.planned = kept.map(|kept| done + kept + problems);
            report.bytes_planned =
                plan.bytes.map(|bytes| bytes.saturating_add(report.bytes_freed.unwrap_or(0)));
            if plan.bytes.is_some() {
                report.bytes_freed.get_or_insert(0);
            }
        }
        self.left_by_at_most.store(left, Ordering::Relaxed);
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
        let planned = self.report().planned;
        self.tell(Event::Planned { planned, bytes: plan.bytes });
        let named = std::mem::take(&mut plan.left_alone_named);
        if !named.is_empty() {
            let all: u64 = plan.left_alone.values().sum();
            let more = all.saturating_sub(named.len() as u64);
            self.tell(Event::LeftAlone { named, more });
        }
        if let Some(refusal) = nothing_fits {
            self.record_plan(&plan).await.map_err(unrecorded)?;
            return Ok(Ending::Refused(refusal));
        }
        if let (Some(kept), Limit::Of(most)) = (kept, self.order.max_changes)
            && self.spec.job.kind().counts
            && kept + done > u64::from(most)
        {
            let sum = kept + done;
            let refusal = format!(
                "the plan has {}, more than max_changes = {most}: {}; if it is right, run it once with `--max-changes {sum}`, raise max_changes, or set at_most to work it off in parts",
                format_count(sum, "thing", "things"),
                match self.order.mode {
                    Mode::DryRun => "in apply mode nothing of it would be made".to_owned(),
                    Mode::Apply =>
                        format!("look at it with `microglia run {} --dry-run`", self.spec.name),
                }
            );
            self.record_plan(&plan).await.map_err(unrecorded)?;
            return Ok(Ending::Refused(refusal));
        }
        let first = self.record_plan(&plan).await.map_err(unrecorded)?;
        if self.order.mode == Mode::DryRun {
            return Ok(Ending::Finished);
        }
        let report = self.report().clone();
        self.runner.history.update_run(&report).await.map_err(unrecorded)?;
        self.judged.store(true, Ordering::Relaxed);
        Ok(self.make_all(plan, first, server).await)
    }

    /// Writes the plan into the history; a dry run that cannot goes on.
    async fn record_plan(&self, plan: &Plan) -> Result<i64, history::Error> {
        let mut records: Vec<ChangeRecord> = match &plan.work {
            Work::Changes(changes) => {
                changes.iter().map(|change| record(change.as_ref(), State::Planned, None)).collect()
            }
            // A walk is recorded call by call while it is made.
            Work::BatchPlan(_) if self.order.mode == Mode::Apply => Vec::new(),
            Work::BatchPlan(walk) if walk.left() == Some(0) => Vec::new(),
            Work::BatchPlan(walk) => vec![ChangeRecord {
                action: walk.action(),
                target: walk.target(),
                count: walk.left().unwrap_or(0),
                state: State::Planned,
                detail: None,
                answer: None,
                before: None,
            }],
        };
        records.extend(plan.problems.iter().map(crate::plan::change::Problem::record));
        let (id, report) = {
            let report = self.report();
            (report.id, report.clone())
        };
        let recorded = async {
            let first = self.runner.history.record_plan(id, &records).await?;
            // So that a run which is cut off is known to have planned so much.
            self.runner.history.update_run(&report).await?;
            Ok(first)
        }
        .await;
        // What nobody can read in the history, the report carries itself.
        self.report().changes = (id.is_none() || recorded.is_err()).then(|| {
            records.truncate(CHANGES_SHOWN as usize);
            records
        });
        match recorded {
            Err(error) if self.order.mode == Mode::DryRun => {
                tracing::warn!(target: "microglia::history", "the plan is not recorded: {error}");
                Ok(0)
            }
            recorded => recorded,
        }
    }
}

/// What `at_most` leaves out of this run, in one sentence.
fn left_for_later(items: u64, bytes: u64) -> String {
    let size = if bytes > 0 { format!(" ({})", Size(bytes)) } else { String::new() };
    let are = if items == 1 { "is" } else { "are" };
    format!("{} more{size} {are} left for later runs by at_most", format_number(items))
}
