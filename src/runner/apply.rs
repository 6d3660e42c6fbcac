//! The third phase of an attempt: applies the changes of an approved plan.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::{Abort, RunContext};
use super::guards::Approved;
use super::limits::Stopped;
use super::load_gate;
use super::locks::{ensure_held, external_ids_lock, outlast_lost_external_ids, room_deletion_lock};
use super::queue::{Queue, Sent, Task};
use super::read::ReadPlan;
use super::round::Attempted;
use super::send::{Answer, Recorded, Sender, Step, is_media};
use super::tally::{Activity, Tally, Unanswered};
use crate::history::state_dir::Lock;
use crate::plan::change::{Lane, Plan, Work};
use crate::plan::report::{Event, State};
use crate::synapse::{Cause, Writer};

/// This many internal errors in a row are no longer about their targets.
const MAX_INTERNAL_ERRORS: u32 = 5;

/// Applies the plan and counts what becomes of it, until all is done or the attempt has to end.
pub(super) async fn apply(
    run: &RunContext<'_>,
    tally: &mut Tally,
    approved: Approved,
    job_lock: Option<&Arc<Lock>>,
) -> Result<(), Abort> {
    let Approved { read: ReadPlan { plan, server, media_lock }, first_seq } = approved;
    tally.activity = Activity::Applying;
    let external_ids_lock = if uses(&plan, |lane| matches!(lane, Lane::ExternalIds)) {
        external_ids_lock(run, tally, &server).await?
    } else {
        None
    };
    let room_deletion_lock = if uses(&plan, |lane| matches!(lane, Lane::RoomDeletion { .. })) {
        room_deletion_lock(run, tally, &server).await?
    } else {
        None
    };
    let locks = job_lock.into_iter().chain(&media_lock).chain(&external_ids_lock);
    let locks = locks.chain(&room_deletion_lock);
    let given_up = CancellationToken::new();
    let sender = Sender {
        run,
        writer: Writer::new(run.reader.clone(), given_up.clone()),
        given_up: &given_up,
        server: &server,
        run_id: tally.report.id,
    };
    let concurrency = run.homeserver.max_concurrent_requests as usize;
    let applying = Applying {
        sender: &sender,
        tally,
        locks: locks.map(AsRef::as_ref).collect(),
        queue: Queue::new(plan.work, first_seq, plan.problems.len(), concurrency),
        under_way: FuturesUnordered::new(),
        internal_errors: 0,
        abort: None,
        first_seq,
    };
    let applied = applying.run().await;
    if external_ids_lock.is_some() && !tally.unanswered.is_empty() {
        outlast_lost_external_ids(run, tally).await;
    }
    applied
}

fn uses(plan: &Plan, is_it: fn(&Lane) -> bool) -> bool {
    match &plan.work {
        Work::Changes(changes) => changes.iter().any(|change| is_it(&change.lane())),
        Work::BatchPlan(_) => false,
    }
}

struct Applying<'a> {
    sender: &'a Sender<'a>,
    tally: &'a mut Tally,
    /// What keeps other runs from making the same changes.
    locks: Vec<&'a Lock>,
    queue: Queue,
    under_way: FuturesUnordered<BoxFuture<'a, Step>>,
    /// Consecutive changes to which Synapse responded with an internal error.
    internal_errors: u32,
    /// The number of the first change of the plan.
    first_seq: i64,
    /// Why no other change may begin; the first reason counts.
    abort: Option<Abort>,
}

impl Applying<'_> {
    async fn run(mut self) -> Result<(), Abort> {
        let (run, given_up) = (self.sender.run, self.sender.given_up);
        loop {
            self.yield_to_synapse().await;
            self.start();
            if self.under_way.is_empty() && (self.abort.is_some() || !self.queue.can_start()) {
                return self.abort.map_or(Ok(()), Err);
            }
            let may_start = self.abort.is_none() && !load_gate::is_due(run, self.tally);
            let turn = self.queue.next_turn().filter(|_| may_start);
            tokio::select! {
                Some(step) = self.under_way.next() => self.advance(step).await,
                () = tokio::time::sleep_until(turn.unwrap_or_else(Instant::now)), if turn.is_some() => {}
                // What only waits to be sent is given up; what was sent is waited for.
                _ = run.limits.until_stopped(), if !given_up.is_cancelled() => given_up.cancel(),
            }
        }
    }

    /// Waits while Synapse is busy on its own account, once no change is in progress.
    async fn yield_to_synapse(&mut self) {
        let is_idle = self.under_way.is_empty() && self.abort.is_none();
        if is_idle
            && self.queue.can_start()
            && let Err(abort) = load_gate::pass(self.sender.run, self.tally).await
        {
            self.abort(abort);
        }
    }

    /// Begins all changes that may begin now.
    fn start(&mut self) {
        let sender = self.sender;
        // While it is time to look at Synapse, those in progress end first.
        if load_gate::is_due(sender.run, self.tally) {
            return;
        }
        while self.abort.is_none() && self.queue.can_start() {
            if let Err(abort) = self.may_start() {
                self.abort(abort);
                return;
            }
            let Some(task) = self.queue.next(Instant::now()) else { return };
            self.under_way.push(Box::pin(sender.check(task)));
        }
    }

    fn may_start(&self) -> Result<(), Abort> {
        if let Some(stopped) = self.sender.run.limits.stopped() {
            return Err(Abort::Stopped(stopped));
        }
        let mut locks = self.locks.iter();
        locks.try_for_each(|lock| ensure_held(lock)).map_err(Abort::Failed)
    }

    fn abort(&mut self, abort: Abort) {
        self.abort.get_or_insert(abort);
    }

    async fn advance(&mut self, step: Step) {
        let sender = self.sender;
        match step {
            Step::Checked(task, record) => {
                self.tally.changes.sent(task.seq, record.clone());
                self.under_way.push(Box::pin(sender.send(task, record)));
            }
            Step::TargetChanged(task) => {
                let task = Task { checks: task.checks + 1, ..task };
                self.under_way.push(Box::pin(sender.check(task)));
            }
            Step::NotNeeded(task, recorded) => {
                if recorded.record.state == State::Skipped {
                    let target = recorded.record.target.clone();
                    self.tally.skipped.push((target, recorded.record.count));
                }
                self.settle_in_round(task.seq, recorded.record.state);
                self.count_result(task.seq, recorded);
                self.finish(&task, Sent::No).await;
            }
            Step::Answered(task, recorded, answer) => {
                if !matches!(answer, Answer::Failed(_)) {
                    self.settle_in_round(task.seq, recorded.record.state);
                }
                self.count_result(task.seq, recorded);
                self.judge(&task, answer);
                self.finish(&task, Sent::Yes).await;
            }
            Step::Unanswered(task, record, error) => {
                let items = task.change.items();
                self.tally.unanswered.push(Unanswered { seq: task.seq, record, items });
                self.abort(Abort::Synapse(error));
                self.finish(&task, Sent::Yes).await;
            }
            Step::NotSent(task, abort) => {
                self.tally.changes.not_sent(task.seq);
                self.abort(abort);
                self.finish(&task, Sent::No).await;
            }
            Step::TimedOut(task) => {
                self.abort(Abort::Stopped(Stopped::TimeLimit));
                self.finish(&task, Sent::Yes).await;
            }
        }
    }

    /// Decides whether the attempt continues after a response.
    fn judge(&mut self, task: &Task, answer: Answer) {
        match answer {
            Answer::Applied => self.internal_errors = 0,
            Answer::TargetFailed(error) => {
                let internal = matches!(error.cause, Cause::Synapse { status: 500.., .. });
                self.internal_errors += u32::from(internal);
                let too_many = internal && self.internal_errors >= MAX_INTERNAL_ERRORS;
                // The next media call would delete the files of this one, too.
                if too_many || is_media(task.change.as_ref()) {
                    self.abort(Abort::Synapse(error));
                }
            }
            Answer::Failed(abort) => self.abort(abort),
        }
    }

    /// Counts what became of a change, even if the history could not record it.
    fn count_result(&mut self, seq: i64, recorded: Recorded) {
        let Recorded { record, result, history } = recorded;
        self.tally.count_result(seq, &record, &result);
        if record.state != State::Planned {
            self.sender.run.emit(Event::Changed(record));
        }
        if let Err(error) = history {
            self.abort(error.into());
        }
    }

    /// A change that is still planned is made by the next run.
    fn settle_in_round(&mut self, seq: i64, state: State) {
        let index = usize::try_from(seq - self.first_seq).ok();
        let attempted = match state {
            State::Planned => Attempted::No,
            State::Failed => Attempted::Failed,
            State::Done | State::Skipped => Attempted::Made,
        };
        if let (Some(round), Some(index)) = (&mut self.tally.round, index) {
            round.settle(index, attempted);
        }
    }

    async fn finish(&mut self, task: &Task, sent: Sent) {
        self.queue.finished(task.lane, sent, Instant::now());
        let report = &self.tally.report;
        let done = report.done.saturating_add(report.failed + report.skipped);
        self.sender.run.emit(Event::Changing { done, total: report.planned });
        // Batches are not in the recorded plan, so the counts of the run show how far it got.
        if self.queue.is_batches()
            && let Err(error) = self.sender.run.history.update_run(report).await
        {
            self.abort(error.into());
        }
    }
}
