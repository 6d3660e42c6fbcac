//! The seam to tokio-cron-scheduler, which ticks and dispatches over an agenda of ours.
//!
//! Used plainly the crate (0.15.1) runs a 09:30 job at 10:30 after a change to summer time, is silent for an hour when the
//! clock goes back one, loses runs when many are due at once, and leaks tasks on every rebuild. So it is driven through its
//! own storage and code traits: the store hands it one beat when anything is due, behind which everything that is due is sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::RwLock;
use tokio::time::Instant;
use tokio_cron_scheduler::job::job_data::{
    JobAndNextTick, JobStoredData, JobType, NonCronJob, job_stored_data,
};
use tokio_cron_scheduler::store::{DataStore, InitStore};
use tokio_cron_scheduler::{
    Context, JobCode, JobScheduler, JobSchedulerError, JobToRunAsync, MetaDataStorage,
    PinnedGetFuture, SimpleNotificationCode, SimpleNotificationStore, ToCode,
};
use uuid::Uuid;

use crate::scheduler::agenda::{Agenda, Due};
use crate::values::clock::Clock;

/// Looks at the agenda twice a second and sends what is due.
pub struct Ticker {
    scheduler: JobScheduler,
    last_tick: Arc<Mutex<Instant>>,
}

/// The crate looks every half second: an agenda that it has not read for so long will not be read again.
const STALLED: Duration = Duration::from_secs(5);
/// One beat at a time goes through the crate's channels.
const CHANNEL: usize = 16;

impl Ticker {
    pub async fn start(
        agenda: Arc<Mutex<Agenda>>,
        clock: Clock,
        send: impl Fn(Due) + Send + Sync + 'static,
    ) -> Result<Self, JobSchedulerError> {
        let (pending, last_tick) =
            (Arc::new(Mutex::new(VecDeque::new())), Arc::new(Mutex::new(Instant::now())));
        let store = Store {
            agenda,
            clock,
            pending: Arc::clone(&pending),
            last_tick: Arc::clone(&last_tick),
        };
        // Runs inside the crate's only runner task: it must neither wait nor panic.
        let beat: Box<JobToRunAsync> = Box::new(move |_, _| {
            let pending: VecDeque<Due> =
                std::mem::take(&mut *pending.lock().unwrap_or_else(PoisonError::into_inner));
            pending.into_iter().for_each(&send);
            Box::pin(async {})
        });
        let scheduler = JobScheduler::new_with_storage_and_code(
            Box::new(store),
            Box::new(SimpleNotificationStore::default()),
            Box::new(Code(Arc::new(RwLock::new(beat)))),
            Box::new(SimpleNotificationCode::default()),
            CHANNEL,
        )
        .await?;
        scheduler.start().await?;
        Ok(Self { scheduler, last_tick })
    }

    /// How long ago the agenda was read; `Err` if that is too long.
    pub fn alive(&self) -> Result<Duration, Duration> {
        let ago = self.last_tick.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if ago < STALLED { Ok(ago) } else { Err(ago) }
    }

    /// Stops ticking; one more beat may follow.
    pub async fn stop(&mut self) {
        let _ = self.scheduler.shutdown().await;
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, JobSchedulerError>> + Send>>;

struct Store {
    agenda: Arc<Mutex<Agenda>>,
    clock: Clock,
    pending: Arc<Mutex<VecDeque<Due>>>,
    last_tick: Arc<Mutex<Instant>>,
}

impl InitStore for Store {
    fn init(&mut self) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }

    fn inited(&mut self) -> Answer<bool> {
        Box::pin(async { Ok(true) })
    }
}

impl DataStore<JobStoredData> for Store {
    /// Used after a dispatch only: with a record that is not a cron job, the crate has no pattern to parse.
    fn get(&mut self, id: Uuid) -> Answer<Option<JobStoredData>> {
        let job = Some(job_stored_data::Job::NonCronJob(NonCronJob {
            repeating: true,
            repeated_every: 1,
        }));
        let row = JobStoredData {
            id: Some(id.into()),
            last_updated: None,
            last_tick: None,
            next_tick: 0,
            job_type: JobType::Repeated.into(),
            count: 0,
            extra: Vec::new(),
            ran: false,
            stopped: false,
            job,
            time_offset_seconds: 0,
        };
        Box::pin(async move { Ok(Some(row)) })
    }

    fn add_or_update(&mut self, _: JobStoredData) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }

    fn delete(&mut self, _: Uuid) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }
}

impl MetaDataStorage for Store {
    fn list_next_ticks(&mut self) -> Answer<Vec<JobAndNextTick>> {
        *self.last_tick.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let now = self.clock.now();
        let due = self.agenda.lock().unwrap_or_else(PoisonError::into_inner).pop_due(now);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.extend(due);
        // The crate read the clock before we did, and sends nothing for what was not due then: it is offered again.
        let beat = pending.front().map(|first| JobAndNextTick {
            id: Some(Uuid::nil().into()),
            job_type: JobType::Cron.into(),
            next_tick: u64::try_from(first.at.timestamp()).unwrap_or(0),
            last_tick: None,
        });
        drop(pending);
        Box::pin(async move { Ok(beat.into_iter().collect()) })
    }

    fn set_next_and_last_tick(
        &mut self,
        _: Uuid,
        _: Option<DateTime<Utc>>,
        _: Option<DateTime<Utc>>,
    ) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }

    fn time_till_next_job(&mut self) -> Answer<Option<Duration>> {
        Box::pin(async { Ok(None) })
    }
}

struct Code(Arc<RwLock<Box<JobToRunAsync>>>);

impl ToCode<Box<JobToRunAsync>> for Code {
    fn init(&mut self, _: &Context) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }

    fn get(&mut self, _: Uuid) -> PinnedGetFuture<Box<JobToRunAsync>> {
        let code = Arc::clone(&self.0);
        Box::pin(async move { Ok(Some(code)) })
    }
}

impl JobCode for Code {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_that_were_offered_and_not_taken_are_offered_again() {
        let mut agenda = Agenda::default();
        let at = "2026-11-23T09:30:00Z".parse().unwrap();
        agenda.set("job", Some(at));
        let pending = Arc::new(Mutex::new(VecDeque::new()));
        let mut store = Store {
            agenda: Arc::new(Mutex::new(agenda)),
            clock: Clock::of(move || at),
            pending: Arc::clone(&pending),
            last_tick: Arc::new(Mutex::new(Instant::now())),
        };
        // The crate may have read the clock slightly earlier, and find nothing due the first time.
        for _ in 0..2 {
            assert_eq!(store.list_next_ticks().await.unwrap().len(), 1);
        }
        assert_eq!(pending.lock().unwrap().len(), 1);
        pending.lock().unwrap().clear();
        assert_eq!(store.list_next_ticks().await.unwrap().len(), 0);
    }
}
