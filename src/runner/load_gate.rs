//! A run that changes something waits while Synapse is busy on its own account.
//!
//! It looks before it reads, and between two changes, when none is in progress. It holds no run slot before it reads, so
//! that dry runs go on. What never ends keeps the run until its time limit or the end of its window: then it has changed
//! nothing, or a part of its plan, and says what it waited for.

use std::time::Duration;

use tokio::time::Instant;

use super::context::{Abort, RunContext};
use super::tally::Tally;
use super::waiting::wait_for;
use crate::plan::report::{Event, WaitReason};
use crate::synapse::YieldTo;
use crate::values::clock::format_time;

/// How long what was seen counts. A look takes two requests.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// The delay between two looks doubles, from the first of these to the second.
const POLL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Whether the run has to look again before it goes on.
pub(super) fn is_due(run: &RunContext<'_>, tally: &Tally) -> bool {
    let waits = !run.only_plans() && !run.homeserver.yield_to.is_empty();
    waits && tally.looked_at.is_none_or(|looked_at| looked_at.elapsed() >= LOOK_AGAIN_AFTER)
}

/// Waits until Synapse does none of what the homeserver's `yield_to` names.
pub(super) async fn pass(run: &RunContext<'_>, tally: &mut Tally) -> Result<(), Abort> {
    if !is_due(run, tally) {
        return Ok(());
    }
    let has_plan = tally.approved;
    let busy = match look(run, has_plan).await {
        // Who reads fails for the same reason, and has advice. The next look is before the first change.
        Err(Abort::Synapse(_)) if !has_plan => return Ok(()),
        busy => busy?,
    };
    if let Some(busy) = busy {
        let deadline = format_time(run.clock.now() + run.limits.time_for_changes());
        let what = format!("{busy} before {deadline}");
        run.emit(Event::Waiting(what.clone()));
        wait_for(run, tally, WaitReason::Synapse, what, until_idle(run, has_plan)).await?;
        run.emit(Event::Resumed);
    }
    tally.looked_at = Some(Instant::now());
    Ok(())
}

async fn until_idle(run: &RunContext<'_>, has_plan: bool) -> Result<(), Abort> {
    let (mut delay, longest) = POLL;
    loop {
        run.limits.sleep(delay).await?;
        if look(run, has_plan).await?.is_none() {
            return Ok(());
        }
        delay = (delay * 2).min(longest);
    }
}

/// What Synapse is busy with.
///
/// Until its plan is made, a run of a kind that purges rooms does not wait for purges: it may have requested them before it
/// was cut off.
async fn look(run: &RunContext<'_>, has_plan: bool) -> Result<Option<String>, Abort> {
    let follows_purges = run.spec.job.kind().purges_rooms && !has_plan;
    let yield_to = run.homeserver.yield_to.iter().copied();
    let yield_to: Vec<YieldTo> =
        yield_to.filter(|work| !(follows_purges && *work == YieldTo::RoomPurges)).collect();
    // On the heap, so that the futures of runs stay small.
    let looked = Box::pin(run.reader.background_work(&yield_to));
    run.limits.unless_stopped(looked).await?.map_err(Abort::Synapse)
}
