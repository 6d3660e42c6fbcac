//! One change: reads its target again, sends it, and records it before and after.

use tokio_util::sync::CancellationToken;

use super::context::{Abort, RunContext};
use super::queue::Task;
use crate::history;
use crate::plan::change::{Change, ChangeResult, Check, Lane};
use crate::plan::report::{ChangeRecord, State};
use crate::synapse::{self, Cause, Writer};

/// A target that changed this often between being read and being changed is left unchanged.
const MAX_CHECKS: u32 = 5;

pub(super) struct Sender<'a> {
    pub run: &'a RunContext<'a>,
    pub writer: Writer,
    /// Cancelled when the run has to end: what waits to be sent is given up.
    pub given_up: &'a CancellationToken,
    pub server: &'a str,
    /// The run that changes are recorded for.
    pub run_id: Option<i64>,
}

/// The result of one step of a change.
pub(super) enum Step {
    /// The target was read, and the change can be sent; the record says what it will replace.
    Checked(Task, ChangeRecord),
    /// The target did not need or allow the change, which was not sent.
    NotNeeded(Task, Recorded),
    Answered(Task, Recorded, Answer),
    /// The target changed after it was read, and the change was not made: read it again.
    TargetChanged(Task),
    /// Sent, and the response was lost.
    Unanswered(Task, ChangeRecord, synapse::Error),
    /// The change was not sent.
    NotSent(Task, Abort),
    /// The time limit was reached while Synapse was working on a media call or a deletion.
    TimedOut(Task),
}

/// What a change that was sent means for the others.
pub(super) enum Answer {
    Applied,
    /// Only this target is concerned.
    TargetFailed(synapse::Error),
    Failed(Abort),
}

/// A change with its result, and whether that could be recorded.
pub(super) struct Recorded {
    pub record: ChangeRecord,
    pub result: ChangeResult,
    pub history: Result<(), history::Error>,
}

impl Sender<'_> {
    /// Reads the target of a change again.
    pub async fn check(&self, task: Task) -> Step {
        match self.target(task.change.as_ref()).await {
            Ok(Check::Proceed(before)) => {
                let record = ChangeRecord { before, ..task.change.record() };
                Step::Checked(task, record)
            }
            Ok(Check::Skip(why)) => {
                let skipped = task.change.count();
                let result = ChangeResult { skipped, ..ChangeResult::default() };
                let mut record = task.change.record();
                (record.state, record.detail) = (State::Skipped, Some(why));
                let recorded = self.record(task.seq, record, result).await;
                Step::NotNeeded(task, recorded)
            }
            Err(Abort::Synapse(error)) if error.is_about_target() => {
                let mut record = task.change.record();
                (record.state, record.detail) = (State::Failed, Some(error.message()));
                let recorded = self.record(task.seq, record, ChangeResult::default()).await;
                Step::NotNeeded(task, recorded)
            }
            Err(abort) => Step::NotSent(task, abort),
        }
    }

    async fn target(&self, change: &dyn Change) -> Result<Check, Abort> {
        let limits = &self.run.limits;
        if let Lane::Room { .. } = change.lane() {
            limits.unless_stopped(self.writer.join_turn()).await?;
        }
        let checked = limits.unless_stopped(change.check(&self.run.reader)).await?;
        checked.map_err(Abort::Synapse)
    }

    /// Sends a change that was checked.
    pub async fn send(&self, task: Task, record: ChangeRecord) -> Step {
        let media = match task.change.lane() {
            Lane::Media(store) => Some(store),
            Lane::Free
            | Lane::Paced { .. }
            | Lane::Room { .. }
            | Lane::ExternalIds
            | Lane::RoomDeletion { .. } => None,
        };
        let call = media.map(|store| (self.server, store));
        let facts = task.change.facts(record.before.as_ref());
        let recorded = self.run.history.record_sent(
            self.run_id,
            task.seq,
            &record,
            call,
            (self.server, &facts),
        );
        if let Err(error) = recorded.await {
            return Step::NotSent(task, error.into());
        }
        let applying = task.change.apply(&self.writer, record.before.as_ref());
        let is_deletion = matches!(task.change.lane(), Lane::RoomDeletion { .. });
        let continues_regardless = media.is_some() || is_deletion;
        let answer = if continues_regardless {
            // Only the time limit ends the wait for what Synapse finishes on its own.
            let time_limit = async {
                self.given_up.cancelled().await;
                tokio::time::sleep_until(self.run.limits.deadline).await;
            };
            tokio::select! {
                // First: a call that was given up was not sent, and must not count as lost.
                biased;
                answer = applying => Some(answer),
                () = time_limit => None,
            }
        } else {
            Some(applying.await)
        };
        match answer {
            None => Step::TimedOut(task),
            Some(answer) => self.answered(task, record, answer).await,
        }
    }

    async fn answered(
        &self,
        task: Task,
        mut record: ChangeRecord,
        answer: Result<ChangeResult, synapse::Error>,
    ) -> Step {
        let (result, answer) = match answer {
            Ok(result) => {
                (record.state, record.detail) = (State::Done, result.detail.clone());
                record.count = result.done;
                record.answer.clone_from(&result.answer);
                (result, Answer::Applied)
            }
            Err(error) if matches!(error.cause, Cause::Changed) && task.checks < MAX_CHECKS => {
                return Step::TargetChanged(task);
            }
            Err(error) if error.is_about_target() => {
                (record.state, record.detail) = (State::Failed, Some(error.message()));
                (ChangeResult::default(), Answer::TargetFailed(error))
            }
            Err(error) if error.may_have_taken_effect() => {
                return Step::Unanswered(task, record, error);
            }
            Err(error) => {
                // Not applied: it is planned again by the next attempt, if there is one, or by the next run.
                let stays_planned = error.is_transient()
                    || error.is_not_enabled()
                    || matches!(error.cause, Cause::NoToken(_));
                (record.state, record.detail) = if stays_planned {
                    (State::Planned, None)
                } else {
                    (State::Failed, Some(error.message()))
                };
                (ChangeResult::default(), Answer::Failed(self.abort(error)))
            }
        };
        let mut recorded = self.record(task.seq, record, result).await;
        if is_media(task.change.as_ref()) {
            // Last: a call must not count as ended before its result is recorded.
            let ended = self.run.history.media_call_ended(self.run_id, self.server).await;
            recorded.history = recorded.history.and(ended);
        }
        Step::Answered(task, recorded, answer)
    }

    /// A request that was given up ends the attempt, for the reason why the run has to end.
    fn abort(&self, error: synapse::Error) -> Abort {
        let given_up = matches!(error.cause, Cause::Cancelled);
        match self.run.limits.stopped().filter(|_| given_up) {
            Some(stopped) => Abort::Stopped(stopped),
            None => Abort::Synapse(error),
        }
    }

    async fn record(&self, seq: i64, record: ChangeRecord, result: ChangeResult) -> Recorded {
        let ChangeResult { files, facts, .. } = &result;
        let written =
            self.run.history.record_result(self.run_id, seq, &record, self.server, files, facts);
        Recorded { history: written.await, record, result }
    }
}

pub(super) fn is_media(change: &dyn Change) -> bool {
    matches!(change.lane(), Lane::Media(_))
}
