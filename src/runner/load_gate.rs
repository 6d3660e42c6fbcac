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
    if let Some(busy) = look(run).await? {
        let deadline = format_time(run.clock.now() + run.limits.time_for_changes());
        let what = format!("{busy} before {deadline}");
        run.emit(Event::Waiting(what.clone()));
        wait_for(run, tally, WaitReason::Synapse, what, until_idle(run)).await?;
        run.emit(Event::Resumed);
    }
    tally.looked_at = Some(Instant::now());
    Ok(())
}

async fn until_idle(run: &RunContext<'_>) -> Result<(), Abort> {
    let (mut delay, longest) = POLL;
    loop {
        run.limits.sleep(delay).await?;
        if look(run).await?.is_none() {
            return Ok(());
        }
        delay = (delay * 2).min(longest);
    }
}

async fn look(run: &RunContext<'_>) -> Result<Option<String>, Abort> {
    // On the heap, so that the futures of runs stay small.
    let looked = Box::pin(run.reader.background_work(&run.homeserver.yield_to));
    run.limits.unless_stopped(looked).await?.map_err(Abort::Synapse)
}
