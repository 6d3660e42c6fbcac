//! Run slots: how many runs use a homeserver at a time.

use std::sync::Arc;

use super::context::{Abort, RunContext};
use super::locks::LOCK_POLL;
use super::params::RunSlots;
use super::tally::Tally;
use super::waiting::wait_for;
use crate::plan::report::{Event, WaitReason};

/// Released on drop.
pub(super) type Slot = Box<dyn Send>;

/// Waits for one of the homeserver's run slots.
pub(super) async fn acquire(run: &RunContext<'_>, tally: &mut Tally) -> Result<Slot, Abort> {
    if let Some(slot) = try_acquire(run)? {
        return Ok(slot);
    }
    let what = format!("another run on {} to end", run.spec.homeserver);
    run.emit(Event::Waiting(what.clone()));
    let slot = wait_for(run, tally, WaitReason::Slot, what, next(run)).await?;
    run.emit(Event::Resumed);
    Ok(slot)
}

async fn next(run: &RunContext<'_>) -> Result<Slot, Abort> {
    match &run.homeserver.slots {
        // In the order in which the runs came.
        RunSlots::Shared(slots) => {
            let slot = Arc::clone(slots).acquire_owned();
            tokio::select! {
                slot = slot => Ok(Box::new(slot)),
                stopped = run.limits.until_stopped() => Err(stopped.into()),
            }
        }
        RunSlots::Locks(_) => loop {
            run.limits.sleep(LOCK_POLL).await?;
            if let Some(slot) = try_acquire(run)? {
                return Ok(slot);
            }
        },
    }
}

fn try_acquire(run: &RunContext<'_>) -> Result<Option<Slot>, Abort> {
    match &run.homeserver.slots {
        RunSlots::Shared(slots) => {
            let slot = Arc::clone(slots).try_acquire_owned().ok();
            Ok(slot.map(|slot| Box::new(slot) as Slot))
        }
        RunSlots::Locks(slots) => try_lock(run, *slots),
    }
}

fn try_lock(run: &RunContext<'_>, slots: u32) -> Result<Option<Slot>, Abort> {
    let Some(dir) = run.state_dir else { return Ok(Some(Box::new(()))) };
    let address = run.reader.address().file_name();
    for slot in 0..slots {
        // The dot keeps it apart from the locks of jobs.
        match dir.try_lock(&format!("address-{address}.{slot}")) {
            Ok(Some(lock)) => return Ok(Some(Box::new(lock))),
            Ok(None) => {}
            Err(error) if run.is_dry_run() => {
                tracing::warn!(target: "microglia::history", "cannot use the locks in the state directory: {error}");
                return Ok(Some(Box::new(())));
            }
            Err(error) => {
                return Err(Abort::Refused(format!(
                    "cannot use the locks in the state directory: {error}"
                )));
            }
        }
    }
    Ok(None)
}
