//! Finds out from the next plan what became of changes whose response was lost.

use std::collections::HashSet;

use super::context::RunContext;
use super::tally::{Tally, Unanswered};
use crate::history;
use crate::plan::change::Plan;
use crate::plan::report::{ChangeRecord, Event, State};

/// Each item with its bytes.
type Items = Vec<(String, Option<u64>)>;

/// Records what became of changes without a response: what is not planned again was applied.
///
/// Returns the number of items that remain unknown, because their target could not be read this time.
pub(super) async fn resolve(
    run: &RunContext<'_>,
    tally: &mut Tally,
    plan: &Plan,
    server: &str,
) -> Result<u64, history::Error> {
    let unanswered = std::mem::take(&mut tally.unanswered);
    if unanswered.is_empty() && tally.skipped.is_empty() {
        return Ok(0);
    }
    let Tally { report, skipped, .. } = tally;
    let items = unanswered.iter().flat_map(|change| change.items.iter().map(|(item, _)| &**item));
    let planned =
        plan.planned_among(&items.chain(skipped.iter().map(|(item, _)| &**item)).collect());
    // What was skipped and is planned again is counted again.
    skipped.retain(|(target, count)| {
        let stays = !planned.contains(target);
        report.skipped -= if stays { 0 } else { *count };
        stays
    });
    let mut unknown = 0;
    for Unanswered { seq, mut record, items } in unanswered {
        let unreadable = plan
            .problems
            .iter()
            .any(|problem| record.target.split(" -> ").any(|part| part == problem.target));
        let (applied, files) = judge(&mut record, items, &planned, unreadable);
        unknown += if record.state == State::Failed { record.count } else { 0 };
        run.history.record_result(tally.report.id, seq, &record, server, &files, &[]).await?;
        let bytes = files.iter().filter_map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
        let report = &mut tally.report;
        report.done += applied;
        report.bytes_freed = report.bytes_freed.map(|freed| freed.saturating_add(bytes));
        tally.changes.set_result(seq, record.clone());
        if record.state != State::Planned {
            run.emit(Event::Changed(record));
        }
    }
    Ok(unknown)
}

/// Decides what became of one change; returns the number of items it changed, and the deleted files.
///
/// A change that stays `planned` was not applied: the new plan replaces it.
fn judge(
    record: &mut ChangeRecord,
    items: Items,
    planned: &HashSet<String>,
    unreadable: bool,
) -> (u64, Items) {
    let count = items.len();
    let gone: Items = items.into_iter().filter(|(item, _)| !planned.contains(item)).collect();
    // A change of one target counts its items at once; files count one by one.
    let applied = match gone.len() {
        _ if unreadable => 0,
        1 if count == 1 => record.count,
        files => files as u64,
    };
    let detail = if applied > 0 {
        (record.state, record.count) = (State::Done, applied);
        "the response was lost; the new plan shows that the change was made"
    } else if unreadable {
        record.state = State::Failed;
        "the response was lost, and the target cannot be read: the change may have been made"
    } else if count == 0 {
        record.state = State::Done;
        "the response was lost: it is unknown how many files were deleted"
    } else {
        return (0, Items::new());
    };
    record.detail = Some(detail.to_owned());
    (applied, gone.into_iter().filter(|(_, bytes)| bytes.is_some()).collect())
}
