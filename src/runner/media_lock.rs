//! Media calls are made one at a time per homeserver, and none while a lost one may still be in progress.

use std::sync::Arc;

use tokio::time::Instant;

use super::context::{Abort, RunContext};
use super::limits::Stopped;
use super::locks::homeserver_lock;
use super::tally::Tally;
use super::waiting::wait_for;
use crate::history::state_dir::Lock;
use crate::plan::change::MediaStore;
use crate::plan::report::{Event, WaitReason};
use crate::values::clock::format_time;

/// Waits until no other run purges media on the homeserver, and no lost call may be in progress there.
///
/// A plan made while files are still being deleted is wrong: hold the lock from before the plan until the last call.
pub(super) async fn media_lock(
    run: &RunContext<'_>,
    tally: &mut Tally,
    server: &str,
) -> Result<Option<Arc<Lock>>, Abort> {
    let waiting = "another job's media purge to end";
    let lock = homeserver_lock(run, tally, "media", server, waiting).await?;
    if let Some(call) = run.history.lost_media_call(server).await? {
        let what = format!(
            "the media purge sent at {} to end: its response was lost, Synapse continues regardless, and no other purge is sent while files are still being deleted",
            format_time(call.sent_at)
        );
        run.emit(Event::Waiting(what.clone()));
        wait_for(run, tally, WaitReason::Slot, what, until_unchanged(run, call.store)).await?;
        run.history.media_call_ended(tally.report.id, server).await?;
        run.emit(Event::Resumed);
    }
    Ok(lock)
}

/// Polls the number of files that the lost call may delete; the remote cache cannot be observed.
async fn until_unchanged(run: &RunContext<'_>, store: MediaStore) -> Result<(), Stopped> {
    let wait = run.lost_call_wait;
    let start = Instant::now();
    let (mut last, mut unchanged_since, mut unobserved_since) = (None, start, start);
    loop {
        run.limits.sleep(wait.poll_interval.min(wait.unchanged_for)).await?;
        let owners = match store {
            MediaStore::Local { until } => run.reader.media_owners(Some(until)).await.ok(),
            MediaStore::Remote => None,
        };
        if let Some(owners) = owners {
            unobserved_since = Instant::now();
            let sum = owners.iter().fold((0, 0), |(files, bytes), owner| {
                let length = owner.media_length.unwrap_or(0);
                (owner.media_count.saturating_add(files), length.saturating_add(bytes))
            });
            if last.replace(sum) != Some(sum) {
                unchanged_since = Instant::now();
            }
            if unchanged_since.elapsed() >= wait.unchanged_for {
                return Ok(());
            }
        } else if unobserved_since.elapsed() >= wait.unobserved_for {
            return Ok(());
        } else {
            unchanged_since = Instant::now();
        }
    }
}
