//! Waiting that is not part of the work, recorded so that other processes can show it.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::context::{RunContext, truncated};
use super::tally::{Activity, Tally};
use crate::plan::report::{WaitReason, Waiting};

/// A shorter wait is over before anybody would read about it.
const MIN_WAIT_RECORDED: Duration = Duration::from_secs(1);

/// Waits until `ready` is, and counts the time as waiting.
pub(super) async fn wait_for<T, E>(
    run: &RunContext<'_>,
    tally: &mut Tally,
    reason: WaitReason,
    what: String,
    ready: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let before = std::mem::replace(&mut tally.activity, Activity::Waiting(what.clone()));
    let waiting = Waiting { what, since: truncated(run.clock.now()) };
    tally.wait = Some((reason, Instant::now()));
    let mut ready = pin!(ready);
    let waited = if let Ok(waited) = timeout(MIN_WAIT_RECORDED, &mut ready).await {
        waited
    } else {
        record(run, tally, Some(waiting)).await;
        let waited = ready.await;
        record(run, tally, None).await;
        waited
    };
    count(tally);
    // The message of a run that is stopped while it waits mentions the wait.
    if waited.is_ok() {
        tally.activity = before;
    }
    waited
}

/// A run waits even if that cannot be recorded.
async fn record(run: &RunContext<'_>, tally: &mut Tally, waiting: Option<Waiting>) {
    tally.report.waiting = waiting;
    if let Err(error) = run.history.update_run(&tally.report).await {
        tracing::debug!(target: "microglia::history", job = %tally.report.job, "cannot record that the run is waiting: {error}");
    }
}

/// Adds the wait that is over, or that the end of the run cut short, to the report.
pub(super) fn count(tally: &mut Tally) {
    let Some((reason, since)) = tally.wait.take() else { return };
    let report = &mut tally.report;
    report.waiting = None;
    report.waited_seconds += since.elapsed().as_secs_f64();
    if !report.waited_for.contains(&reason) {
        report.waited_for.push(reason);
    }
}
