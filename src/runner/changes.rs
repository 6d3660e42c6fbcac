//! Making the changes of a plan: lane by lane, each recorded before and after.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Ending, Phase, Run, Stopped, record};
use crate::history;
use crate::plan::change::{BatchPlan, Change, ChangeResult, Check, Lane, Plan, Work};
use crate::plan::report::{ChangeRecord, Event, State};
use crate::synapse::{self, Writer};
use crate::values::schema::Rate;

/// A change whose answer was lost: the next plan tells whether it was made.
pub(super) struct Lost {
    seq: i64,
    record: ChangeRecord,
    things: Vec<(String, Option<u64>)>,
}

/// What ends the making of changes before the plan is worked off.
pub(super) enum Abort {
    Stopped(Stopped),
    Synapse(synapse::Error),
    History(history::Error),
    /// A lock no longer keeps other runs out, and why.
    LockLost(String),
}

impl From<history::Error> for Abort {
    fn from(error: history::Error) -> Self {
        Self::History(error)
    }
}

/// The changes of one attempt as they are made.
struct Making<'a> {
    run: &'a Run<'a>,
    writer: Writer,
    /// Cancelled when the run has to end: what waits to be sent is not sent any more.
    given_up: CancellationToken,
    server: &'a str,
    abort: Mutex<Option<Abort>>,
    /// Changes in a row that Synapse answered with an internal error.
    broken: AtomicU32,
    next_seq: AtomicI64,
}

/// So many internal errors in a row are no longer about their targets.
const BROKEN: u32 = 5;
/// A target that differs from its record so often is left as it is.
const LOOKS: u32 = 5;

/// Changes with their numbers in the history.
type Numbered = VecDeque<(i64, Box<dyn Change>)>;
type Queue = Mutex<Numbered>;

impl Run<'_> {
    pub(super) async fn make_all(&self, plan: Plan, first_seq: i64, server: &str) -> Ending {
        self.enter(Phase::Changing);
        let given_up = CancellationToken::new();
        let making = Making {
            run: self,
            writer: Writer::new(self.reader.clone(), given_up.clone()),
            given_up,
            server,
            abort: Mutex::default(),
            broken: AtomicU32::new(0),
            next_seq: AtomicI64::new(first_seq),
        };
        let made = async {
            match plan.work {
                Work::Changes(changes) => making.lanes(changes, first_seq).await,
                Work::BatchPlan(walk) => making.walk(walk, plan.problems.len()).await,
            }
        };
        tokio::select! {
            () = made => {}
            never = making.give_up_when_stopped() => match never {},
        }
        let abort = making.abort.into_inner().unwrap_or_else(PoisonError::into_inner);
        abort.map_or(Ending::Finished, |abort| self.aborted(abort))
    }

    pub(super) fn aborted(&self, abort: Abort) -> Ending {
        match abort {
            Abort::Stopped(stopped) => Ending::Stopped(stopped),
            Abort::History(error) => Ending::Failed(format!(
                "the history cannot be written, and what cannot be recorded is not done: {error}"
            )),
            Abort::Synapse(error) => self.ending_of(&error),
            Abort::LockLost(why) => Ending::Failed(why),
        }
    }

    /// Looks in a new plan for what became of changes whose answer was lost: what is not planned again was made.
    ///
    /// Answers how many things cannot be judged, because their target could not be read this time.
    pub(super) async fn resolve_lost(
        &self,
        plan: &Plan,
        server: &str,
    ) -> Result<u64, history::Error> {
        let lost = std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner));
        let planned = self.planned_again(plan, !lost.is_empty());
        let (id, mut unknown) = (self.report().id, 0);
        for Lost { seq, mut record, things } in lost {
            let gone: Vec<(String, Option<u64>)> =
                things.iter().filter(|(thing, _)| !planned.contains(thing)).cloned().collect();
            let unread = plan
                .problems
                .iter()
                .any(|problem| record.target.split(" -> ").any(|part| part == problem.target));
            // A change of one target counts its things at once; files count one by one.
            let made = match gone.len() {
                _ if unread => 0,
                1 if things.len() == 1 => record.count,
                files => files as u64,
            };
            let files: Vec<_> = gone.into_iter().filter(|(_, bytes)| bytes.is_some()).collect();
            let bytes = files.iter().filter_map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
            // What was not made is in the new plan, which replaces it.
            if made > 0 {
                (record.state, record.count) = (State::Done, made);
                record.detail =
                    Some("the answer was lost; found made when looked at again".to_owned());
            } else if unread {
                unknown += record.count;
                record.state = State::Failed;
                record.detail = Some(
                    "the answer was lost, and the target cannot be read now: it may have been made"
                        .to_owned(),
                );
            } else if things.is_empty() {
                record.state = State::Done;
                record.detail =
                    Some("the answer was lost: how many files went cannot be known".to_owned());
            }
            self.runner.history.record_result(id, seq, &record, server, &files, &[]).await?;
            {
                let mut report = self.report();
                report.done += made;
                report.bytes_freed = report.bytes_freed.map(|freed| freed.saturating_add(bytes));
            }
            if record.state != State::Planned {
                self.tell(Event::Changed(record));
            }
        }
        Ok(unknown)
    }
}

impl Run<'_> {
    /// The things of a new plan where they matter; what was skipped and is among them counts as planned again.
    fn planned_again(&self, plan: &Plan, for_lost: bool) -> HashSet<String> {
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        if !for_lost && skipped.is_empty() {
            return HashSet::new();
        }
        let planned = plan.items();
        skipped.retain(|(target, count)| {
            let stays = !planned.contains(target);
            self.report().skipped -= if stays { 0 } else { *count };
            stays
        });
        planned
    }
}

impl Making<'_> {
    fn abort(&self, abort: Abort) {
        self.abort.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(abort);
    }

    /// Whether another change may begin; the reason is kept where not.
    fn may_go_on(&self) -> bool {
        if let Some(stopped) = self.run.stopped() {
            self.abort(Abort::Stopped(stopped));
        } else if let Err(why) = self.run.hold_locks() {
            self.abort(Abort::LockLost(why));
        }
        self.abort.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Gives up what only waits as soon as the run has to end; what was sent is waited for.
    async fn give_up_when_stopped(&self) -> Infallible {
        self.run.until_stopped().await;
        self.given_up.cancel();
        std::future::pending().await
    }

    async fn lanes(&self, changes: Vec<Box<dyn Change>>, first_seq: i64) {
        let mut free: VecDeque<_> = VecDeque::new();
        let mut external_ids: VecDeque<_> = VecDeque::new();
        let mut rooms: Vec<(String, f64, Numbered)> = Vec::new();
        for (seq, change) in (first_seq..).zip(changes) {
            match change.lane() {
                Lane::Room { room_id, per_second } => {
                    match rooms.iter_mut().find(|(room, ..)| *room == room_id) {
                        Some((.., queue)) => queue.push_back((seq, change)),
                        None => rooms.push((room_id, per_second, VecDeque::from([(seq, change)]))),
                    }
                }
                Lane::ExternalIds => external_ids.push_back((seq, change)),
                Lane::Free | Lane::Media(_) => free.push_back((seq, change)),
            }
        }
        let free: Queue = Mutex::new(free);
        let rooms: Vec<(Duration, Queue)> = rooms
            .into_iter()
            .map(|(_, per_second, queue)| (Rate(per_second).interval(), Mutex::new(queue)))
            .collect();
        let mut workers: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        for _ in 0..self.run.concurrency {
            workers.push(Box::pin(self.work(&free, Duration::ZERO)));
        }
        for (interval, queue) in &rooms {
            workers.push(Box::pin(self.work(queue, *interval)));
        }
        if !external_ids.is_empty() {
            workers.push(Box::pin(self.work_alone(Mutex::new(external_ids))));
        }
        while workers.next().await.is_some() {}
    }

    /// Works off a queue, beginning a change no sooner than `interval` after the last one ended.
    async fn work(&self, queue: &Queue, interval: Duration) {
        let mut turn = Instant::now();
        while let Some((seq, change)) =
            { queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() }
        {
            let wait = turn.saturating_duration_since(Instant::now());
            if !wait.is_zero() && self.run.pause(wait).await.is_err() {
                self.may_go_on();
            }
            if !self.may_go_on() {
                return;
            }
            // A change that was skipped took no turn.
            if self.one(seq, change.as_ref()).await {
                turn = Instant::now() + interval;
            }
        }
    }

    /// Works off changes of external ids while no other run on the homeserver makes any.
    async fn work_alone(&self, external_ids: Queue) {
        match self.run.external_ids_lock(self.server).await {
            Ok(_lock) => self.work(&external_ids, Duration::ZERO).await,
            Err(abort) => self.abort(abort),
        }
    }

    async fn walk(&self, mut walk: Box<dyn BatchPlan>, problems: usize) {
        self.next_seq.fetch_add(i64::try_from(problems).unwrap_or(0), Ordering::Relaxed);
        let mut last = None;
        while self.may_go_on() {
            let Some(change) = walk.next(last) else { return };
            let start = Instant::now();
            let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
            self.one(seq, change.as_ref()).await;
            last = Some(start.elapsed());
            let report = self.run.report().clone();
            if let Err(error) = self.run.runner.history.update_run(&report).await {
                self.abort(error.into());
            }
        }
    }

    /// Makes one change and records it; answers whether anything was sent.
    async fn one(&self, seq: i64, change: &dyn Change) -> bool {
        let outcome = self.checked(seq, change, 1).await;
        let sent = !matches!(outcome, Ok(None));
        match outcome {
            Ok(_) => {}
            Err(abort) => self.abort(abort),
        }
        let (done, total) = {
            let report = self.run.report();
            (report.done.saturating_add(report.failed + report.skipped), report.planned)
        };
        self.run.tell(Event::Changing { done, total });
        sent
    }

    /// `Ok(None)` where the target did not need the change any more.
    ///
    /// `look` counts how often the change has looked at its target.
    async fn checked(&self, seq: i64, change: &dyn Change, look: u32) -> Result<Option<()>, Abort> {
        if let Lane::Room { .. } = change.lane() {
            self.run.wait_for(self.writer.join_turn()).await.map_err(Abort::Stopped)?;
        }
        let checked = self.run.wait_for(change.check(&self.run.reader)).await;
        let before = match checked.map_err(Abort::Stopped)? {
            Ok(Check::Proceed(before)) => before,
            Ok(Check::Skip(why)) => {
                self.run
                    .skipped
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((change.target(), change.count()));
                self.settle(
                    seq,
                    record(change, State::Skipped, Some(why)),
                    &ChangeResult { skipped: change.count(), ..ChangeResult::default() },
                )
                .await?;
                return Ok(None);
            }
            Err(error) if error.is_about_target() => {
                self.settle(
                    seq,
                    record(change, State::Failed, Some(error.message())),
                    &ChangeResult::default(),
                )
                .await?;
                return Ok(None);
            }
            Err(error) => return Err(Abort::Synapse(error)),
        };
        let mut record = record(change, State::Planned, None);
        record.before = before;
        let run = self.run;
        let id = run.report().id;
        let media = match change.lane() {
            Lane::Media(store) => Some(store),
            Lane::Free | Lane::Room { .. } | Lane::ExternalIds => None,
        };
        if let Some(store) = media {
            run.runner.history.media_call_sent(self.server, store).await?;
        }
        run.runner.history.record_sent(id, seq, &record).await?;
        let made = if media.is_some() {
            // Only the time limit ends the waiting for a media call: Synapse works on regardless.
            let time_limit = async {
                self.given_up.cancelled().await;
                tokio::time::sleep_until(run.deadline).await;
            };
            tokio::select! {
                // First, because a call that was given up was not sent, and must not count as lost.
                biased;
                made = change.apply(&self.writer, record.before.as_ref()) => made,
                () = time_limit => return Err(Abort::Stopped(Stopped::TimeLimit)),
            }
        } else {
            change.apply(&self.writer, record.before.as_ref()).await
        };
        // The target is not what was recorded, so that the record would lie: look, and record, again.
        let changed =
            made.as_ref().is_err_and(|error| matches!(error.cause, synapse::Cause::Changed));
        if changed && look < LOOKS {
            return Box::pin(self.checked(seq, change, look + 1)).await;
        }
        let answered = !made.as_ref().is_err_and(synapse::Error::may_have_taken_effect);
        let recorded = self.made(seq, change, record, made).await;
        // Last, so that a call is never over before what it did is on record.
        if media.is_some() && answered {
            run.runner.history.media_call_ended(self.server).await?;
        }
        recorded.map(Some)
    }

    /// Records a change by its answer.
    async fn made(
        &self,
        seq: i64,
        change: &dyn Change,
        mut record: ChangeRecord,
        made: Result<ChangeResult, synapse::Error>,
    ) -> Result<(), Abort> {
        let run = self.run;
        let media = matches!(change.lane(), Lane::Media(_));
        match made {
            Ok(made) => {
                self.broken.store(0, Ordering::Relaxed);
                (record.state, record.detail) = (State::Done, made.detail.clone());
                record.count = made.done;
                record.answer.clone_from(&made.answer);
                self.settle(seq, record, &made).await?;
            }
            Err(error) if error.is_about_target() => {
                let broken = matches!(error.cause, synapse::Cause::Synapse { status: 500.., .. });
                (record.state, record.detail) = (State::Failed, Some(error.message()));
                self.settle(seq, record, &ChangeResult::default()).await?;
                // The next media call would take this one's files along.
                let broken = broken && self.broken.fetch_add(1, Ordering::Relaxed) + 1 >= BROKEN;
                if media || broken {
                    return Err(Abort::Synapse(error));
                }
            }
            Err(error) if error.may_have_taken_effect() => {
                run.lost.lock().unwrap_or_else(PoisonError::into_inner).push(Lost {
                    seq,
                    record,
                    things: change.items(),
                });
                return Err(Abort::Synapse(error));
            }
            Err(error) => {
                // Not done: it goes back into the plan where the run is tried again, and has failed where not.
                (record.state, record.detail) = if error.is_transient() {
                    (State::Planned, None)
                } else {
                    (State::Failed, Some(error.message()))
                };
                self.settle(seq, record, &ChangeResult::default()).await?;
                let given_up = matches!(error.cause, synapse::Cause::Cancelled);
                return Err(match run.stopped().filter(|_| given_up) {
                    Some(stopped) => Abort::Stopped(stopped),
                    None => Abort::Synapse(error),
                });
            }
        }
        Ok(())
    }

    /// Records what became of a change, in the history, in the report, and for everybody who listens, even where the history fails.
    async fn settle(
        &self,
        seq: i64,
        record: ChangeRecord,
        made: &ChangeResult,
    ) -> Result<(), Abort> {
        let id = self.run.report().id;
        let history = &self.run.runner.history;
        let recorded =
            history.record_result(id, seq, &record, self.server, &made.files, &made.facts).await;
        {
            let mut report = self.run.report();
            report.done = report.done.saturating_add(made.done);
            report.skipped += made.skipped;
            report.failed += if record.state == State::Failed { record.count } else { 0 };
            report.bytes_freed = report.bytes_freed.map(|freed| freed.saturating_add(made.bytes));
            // Synapse may delete files that no list showed.
            let known = report.done.saturating_add(report.skipped + report.failed);
            report.planned = report.planned.map(|planned| planned.max(known));
        }
        if record.state != State::Planned {
            self.run.tell(Event::Changed(record));
        }
        Ok(recorded?)
    }
}
