//! The lease of a homeserver for one run in this process, where daemons may share the history.

use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::failure::Failure;
use super::output::print_message;
use crate::history::{History, Holder};
use crate::runner::Stop;
use crate::scheduler::lease_times::LeaseTimes;

const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Takes the lease, or says who has it. Does nothing where nobody shares the history, or it cannot be used.
///
/// Waits for another run of the command line, and for one that was killed, at most until its lease must have ended.
pub(super) async fn take(
    history: &History,
    homeserver: &str,
    address: &str,
) -> Result<(), Failure> {
    if !history.is_shared() || history.problem().is_some() {
        return Ok(());
    }
    let ttl = LeaseTimes::default().ttl;
    let (start, mut announced) = (Instant::now(), false);
    loop {
        // What cannot be recorded is refused by the run itself.
        let Ok(taken) = history.take_lease(address, ttl).await else { return Ok(()) };
        if taken {
            return Ok(());
        }
        let Ok(holder) = history.lease_holder(address).await else { return Ok(()) };
        if let Holder::Daemon(name) = holder {
            return Err(Failure::Error(anyhow!(
                "the daemon {name} runs the jobs on {homeserver}: run this command there, or stop that daemon; if it has crashed, its lease ends within {} s",
                ttl.as_secs()
            )));
        }
        if start.elapsed() > ttl + ttl / 3 {
            return Err(Failure::Error(anyhow!(
                "another run of the command line works on {homeserver}, perhaps on another machine: wait until it ends"
            )));
        }
        if !std::mem::replace(&mut announced, true) {
            print_message(&format!("waiting for another run on {homeserver} to end"));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Renews the lease until the task is aborted; ends the run when it is lost.
pub(super) async fn keep(history: History, address: String, stop: Stop) {
    let times = LeaseTimes::default();
    let mut trusted_until = Instant::now() + times.ttl.saturating_sub(times.margin);
    loop {
        tokio::time::sleep(times.renew_every).await;
        let sent = Instant::now();
        let extending = history.extend_lease(&address, times.ttl);
        match tokio::time::timeout(times.renew_every, extending).await {
            Ok(Ok(true)) => trusted_until = sent + times.ttl.saturating_sub(times.margin),
            Ok(Ok(false)) => return stop.lease_lost(),
            Ok(Err(_)) | Err(_) if Instant::now() >= trusted_until => return stop.lease_lost(),
            Ok(Err(_)) | Err(_) => {}
        }
    }
}
