//! The locks that keep other runs from doing the same work.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use super::context::{Abort, RunContext};
use super::tally::Tally;
use super::waiting::wait_for;
use crate::history;
use crate::history::state_dir::{Lock, LockState, StateDir};
use crate::plan::report::{Event, WaitReason};

/// How often to try a lock that another run holds.
pub(super) const LOCK_POLL: Duration = Duration::from_millis(250);

/// Takes the job's lock; `None` if another run of the job holds it.
///
/// A process that only checks whether the job runs holds the lock for an instant, so a single failure proves nothing.
pub(super) async fn job_lock(dir: &StateDir, job: &str) -> std::io::Result<Option<Lock>> {
    const TRIES: u32 = 3;
    const RETRY_DELAY: Duration = Duration::from_millis(20);
    for _ in 1..TRIES {
        if let Some(lock) = dir.try_lock(job)? {
            return Ok(Some(lock));
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
    dir.try_lock(job)
}

/// Waits until no other job or process changes external ids on the homeserver.
pub(super) async fn external_ids_lock(
    run: &RunContext<'_>,
    tally: &mut Tally,
    server: &str,
) -> Result<Option<Arc<Lock>>, Abort> {
    let waiting = "another run's changes of external ids to end";
    homeserver_lock(run, tally, "external-ids", server, waiting).await
}

/// Waits until no other job or process deletes rooms of the homeserver.
pub(super) async fn room_deletion_lock(
    run: &RunContext<'_>,
    tally: &mut Tally,
    server: &str,
) -> Result<Option<Arc<Lock>>, Abort> {
    let waiting = "another run's deletions of rooms to end";
    homeserver_lock(run, tally, "room-deletions", server, waiting).await
}

/// Waits until a change of external ids whose answer was lost is certainly over; hold the lock meanwhile.
///
/// Naming the same ids once more changes nothing that could be read, so only time tells. As a change that was sent is
/// waited for, this wait ends neither with a request to stop nor with the time limit.
pub(super) async fn outlast_lost_external_ids(run: &RunContext<'_>, tally: &mut Tally) {
    let what = "the last change of external ids to end: its answer was lost, and Synapse may still be working on it";
    run.emit(Event::Waiting(what.to_owned()));
    let over = async {
        tokio::time::sleep(run.lost_call_wait.external_ids_for).await;
        Ok::<_, Infallible>(())
    };
    let Ok(()) = wait_for(run, tally, WaitReason::Slot, what.to_owned(), over).await;
    run.emit(Event::Resumed);
}

/// Waits for a lock of the whole homeserver, which is known by its own name whatever its address.
///
/// `waiting` completes "waiting for". `None` without a state directory.
pub(super) async fn homeserver_lock(
    run: &RunContext<'_>,
    tally: &mut Tally,
    what: &str,
    server: &str,
    waiting: &str,
) -> Result<Option<Arc<Lock>>, Abort> {
    let Some(dir) = run.state_dir else { return Ok(None) };
    let server: String = server
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' })
        .collect();
    // The dot keeps it apart from the locks of jobs.
    let name = format!("{what}.{server}");
    let try_lock = || dir.try_lock(&name).map_err(history::Error::Io);
    if let Some(lock) = try_lock()? {
        return Ok(Some(Arc::new(lock)));
    }
    run.emit(Event::Waiting(waiting.to_owned()));
    let next = async {
        loop {
            run.limits.sleep(LOCK_POLL).await?;
            if let Some(lock) = try_lock()? {
                return Ok::<_, Abort>(lock);
            }
        }
    };
    let lock = wait_for(run, tally, WaitReason::Slot, waiting.to_owned(), next).await?;
    run.emit(Event::Resumed);
    Ok(Some(Arc::new(lock)))
}

/// Makes sure that a lock still keeps other runs out; the error says why it does not.
pub(super) fn ensure_held(lock: &Lock) -> Result<(), String> {
    let path = lock.path();
    let path = path.display();
    match lock.ensure_held() {
        Ok(LockState::Held) => Ok(()),
        Ok(LockState::Relocked) => {
            tracing::warn!(target: "microglia::history", "{path} was deleted or replaced: locked again");
            Ok(())
        }
        Ok(LockState::Lost) => Err(format!(
            "{path} was deleted or replaced, and another process has locked it: another run may make the same changes"
        )),
        Err(error) => {
            Err(format!("{path} was deleted or replaced, and cannot be locked again: {error}"))
        }
    }
}
