//! What goes one at a time for a homeserver: media calls, none while a lost one may be at work, and changes of external ids.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Run;
use super::changes::Abort;
use crate::history::state_dir::Lock;
use crate::plan::change::MediaStore;
use crate::plan::report::{Event, WaitReason};

/// When a media call whose answer was lost counts as over.
#[derive(Debug, Clone, Copy)]
pub struct LostCallWait {
    /// The media statistics must have stood still for this long.
    pub unchanged_for: Duration,
    /// Where nothing can be read, this long has to do.
    pub unobserved_for: Duration,
    pub poll_interval: Duration,
}

impl Default for LostCallWait {
    fn default() -> Self {
        Self {
            unchanged_for: Duration::from_mins(1),
            unobserved_for: Duration::from_mins(10),
            poll_interval: Duration::from_secs(5),
        }
    }
}

impl Run<'_> {
    /// Waits until no other job or process purges media on the homeserver, and no lost call may be at work there.
    ///
    /// A plan that is made while files still vanish is not true: the lock is held from before the plan to the last call.
    pub(super) async fn media_place(&self, server: &str) -> Result<Option<Arc<Lock>>, Abort> {
        let history = &self.runner.history;
        let lock =
            self.homeserver_lock("media", server, "another job's media purge to end").await?;
        if let Some(call) = history.lost_media_call(server).await? {
            let what = format!(
                "the media purge sent at {} to end: its answer was lost, and Synapse works on regardless; no other is sent while files still go",
                crate::values::clock::format_time(call.sent_at)
            );
            self.tell(Event::Waiting(what.clone()));
            self.waits(WaitReason::Slot, what, self.until_still(call.store)).await?;
            history.media_call_ended(server).await?;
            self.tell(Event::Resumed);
        }
        Ok(lock)
    }

    /// Waits until no other job or process changes external ids on the homeserver.
    pub(super) async fn external_ids_lock(&self, server: &str) -> Result<Option<Arc<Lock>>, Abort> {
        let waiting = "another run's changes of external ids to end";
        self.homeserver_lock("external-ids", server, waiting).await
    }

    /// Waits for a lock of the whole homeserver; it goes by the server's own name, whatever the address.
    async fn homeserver_lock(
        &self,
        what: &str,
        server: &str,
        waiting: &str,
    ) -> Result<Option<Arc<Lock>>, Abort> {
        let Some(dir) = &self.runner.dir else { return Ok(None) };
        let server: String = server
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' })
            .collect();
        // The dot keeps it apart from the locks of jobs.
        let name = format!("{what}.{server}");
        let free = || dir.try_lock(&name).map_err(crate::history::Error::Io);
        if let Some(lock) = free()? {
            return Ok(Some(self.hold(lock)));
        }
        self.tell(Event::Waiting(waiting.to_owned()));
        let next = async {
            loop {
                self.wait(super::LOOK_FOR_PLACE).await?;
                if let Some(lock) = free()? {
                    return Ok::<_, Abort>(lock);
                }
            }
        };
        let lock = self.waits(WaitReason::Slot, waiting.to_owned(), next).await?;
        self.tell(Event::Resumed);
        Ok(Some(self.hold(lock)))
    }

    /// Remembers a lock that has to be checked before each change.
    fn hold(&self, lock: Lock) -> Arc<Lock> {
        let lock = Arc::new(lock);
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&lock));
        lock
    }

    /// Counts the files that the lost call may delete again and again; of the remote cache nothing can be seen.
    async fn until_still(&self, store: MediaStore) -> Result<(), Abort> {
        let settle = self.runner.lost_call_wait;
        let start = Instant::now();
        let (mut last, mut since, mut blind_since) = (None, start, start);
        loop {
            self.wait(settle.poll_interval.min(settle.unchanged_for)).await?;
            let counted = match store {
                MediaStore::Local { until } => self.reader.media_owners(Some(until)).await.ok(),
                MediaStore::Remote => None,
            };
            match counted {
                Some(owners) => {
                    blind_since = Instant::now();
                    let sum = owners.iter().fold((0, 0), |(files, bytes), owner| {
                        let length = owner.media_length.unwrap_or(0);
                        (owner.media_count.saturating_add(files), length.saturating_add(bytes))
                    });
                    if last.replace(sum) != Some(sum) {
                        since = Instant::now();
                    }
                    if since.elapsed() >= settle.unchanged_for {
                        return Ok(());
                    }
                }
                None if blind_since.elapsed() >= settle.unobserved_for => return Ok(()),
                None => since = Instant::now(),
            }
        }
    }

    async fn wait(&self, wait: Duration) -> Result<(), Abort> {
        self.pause(wait).await.map_err(Abort::Stopped)
    }
}
