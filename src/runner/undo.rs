//! The plan that undoes a run, made of what the history recorded of its changes.

use std::collections::{BTreeMap, HashSet};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;

use super::context::{Abort, RunContext};
use super::facts::known_facts;
use crate::history::Page;
use crate::jobs::job::Undo;
use crate::plan::change::{Change, Check, Plan, Work};
use crate::plan::report::{ChangeRecord, Event, Mode, State};
use crate::synapse;
use crate::values::text::format_count;

/// How many changes to read from the history at a time.
const PAGE: u32 = 5000;

/// Plans to restore what a run changed, as far as that is still needed.
pub(super) async fn plan(run: &RunContext<'_>, undoes: i64, server: &str) -> Result<Plan, Abort> {
    let Undo::By(restore) = run.spec.job.kind().undo else {
        return Err(Abort::Refused(format!("run {undoes} cannot be undone")));
    };
    let records = changed(run, undoes).await?;
    let known = known_facts(run, server).await?;
    let (mut plan, mut changes) = (Plan::default(), Vec::new());
    for record in &records {
        match restore(record, &known) {
            Ok(change) => changes.push(change),
            Err(why) => {
                plan.problem(record.action, &record.target, format!("cannot be undone: {why}"));
            }
        }
    }
    let total = changes.len() as u64;
    let concurrency = run.homeserver.max_concurrent_requests as usize;
    let checks = changes.into_iter().map(|change| checked(run, change));
    let checks: Vec<BoxFuture<'_, Checked>> = checks.collect();
    let mut checks = futures_util::stream::iter(checks).buffered(concurrency);
    let (mut needed, mut not_needed) = (Vec::new(), BTreeMap::<String, u64>::new());
    let mut done = 0;
    while let Some((change, checked)) = checks.next().await {
        done += 1;
        run.emit(Event::Reading { what: "changes to undo".to_owned(), done, total });
        let checked = match checked {
            Err(error) if error.is_about_target() => {
                plan.problem(change.action(), &change.target(), error.message());
                continue;
            }
            checked => checked.map_err(Abort::Synapse)?,
        };
        match checked {
            Check::Proceed(_) => needed.push(change),
            Check::Skip(why) => *not_needed.entry(why).or_default() += change.count(),
        }
    }
    for (why, items) in not_needed {
        plan.notes.push(format!("{} not restored: {why}", format_count(items, "item", "items")));
    }
    plan.some_up_to_date = needed.is_empty() && total > 0;
    plan.work = Work::Changes(needed);
    Ok(plan)
}

type Checked = (Box<dyn Change>, Result<Check, synapse::Error>);

/// Whether a change is needed.
fn checked<'a>(run: &'a RunContext<'_>, change: Box<dyn Change>) -> BoxFuture<'a, Checked> {
    let reader = &run.reader;
    Box::pin(async move {
        let checked = change.check(reader).await;
        (change, checked)
    })
}

/// What a run changed, or may have changed: its changes that were sent, the last one first.
async fn changed(run: &RunContext<'_>, undoes: i64) -> Result<Vec<ChangeRecord>, Abort> {
    let mut records = Vec::new();
    let mut offset = 0;
    loop {
        let page = Page { offset, limit: PAGE };
        let report = run.history.run(undoes, page).await;
        let report = report
            .map_err(|error| Abort::Failed(format!("cannot read the history: {error}")))?
            .filter(|report| report.job == run.spec.name)
            .ok_or_else(|| {
                Abort::Refused(format!("there is no run {undoes} of {}", run.spec.name))
            })?;
        let (kind, homeserver) = (run.spec.job.kind().name, &run.spec.homeserver);
        if (report.kind.as_str(), &report.homeserver) != (kind, homeserver) {
            return Err(Abort::Refused(format!(
                "run {undoes} was of {} on {}, and the job is another one now: {kind} on {homeserver}",
                report.kind, report.homeserver
            )));
        }
        if report.outcome.is_none() {
            return Err(Abort::Refused(format!("run {undoes} is still in progress")));
        }
        if report.mode != Mode::Apply {
            return Err(Abort::Refused(format!(
                "run {undoes} was a {} and changed nothing",
                match report.mode {
                    Mode::Approve => "plan for approval",
                    Mode::DryRun | Mode::Apply => "dry run",
                }
            )));
        }
        let changes = report.changes.unwrap_or_default();
        let is_last = changes.len() < PAGE as usize;
        let sent = |change: &ChangeRecord| match change.state {
            State::Done => true,
            // Its response may have been lost.
            State::Failed => change.before.is_some(),
            State::Planned | State::Skipped => false,
        };
        records.extend(changes.into_iter().filter(sent));
        if is_last {
            break;
        }
        offset += PAGE;
    }
    records.reverse();
    // An attempt that failed may have been followed by one that did not.
    let mut seen = HashSet::new();
    records.retain(|record| seen.insert((record.action, record.target.clone())));
    Ok(records)
}
