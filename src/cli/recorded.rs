//! The history as commands read it.

use std::path::Path;

use super::context::become_owner;
use super::failure::Failure;
use crate::config::{Config, HistoryPlace};
use crate::history::state_dir::is_locked;
use crate::history::{self, HistoryReader, Page};
use crate::plan::report::Report;

/// Opens the history read-only; it is empty where there is none yet.
pub(super) async fn open_history(config: &Config) -> Result<HistoryReader, Failure> {
    let dir = &config.daemon.state_dir;
    let url = match &config.daemon.history {
        HistoryPlace::StateDir => None,
        HistoryPlace::Database(url) => Some(url),
        HistoryPlace::Unreadable(why) => return Err(Failure::Error(anyhow::anyhow!("{why}"))),
    };
    become_owner(dir)?;
    HistoryReader::open_read_only(dir, url).await.map_err(|error| unreadable(dir, &error))
}

/// Shows a run as interrupted whose record has no end while nobody holds its job's lock.
pub(super) async fn current(
    history: &HistoryReader,
    dir: &Path,
    run: Report,
) -> Result<Report, Failure> {
    if run.outcome.is_some() {
        return Ok(run);
    }
    let failed = |error| unreadable(dir, &error);
    let id = run.id.unwrap_or_default();
    let is_under_way = history.is_under_way(id).await.map_err(failed)?;
    // If the lock cannot be read, the run may be in progress.
    if is_under_way.unwrap_or_else(|| is_locked(dir, &run.job).unwrap_or(true)) {
        return Ok(run);
    }
    // It may have ended since it was read.
    let again = history.run(id, Page { offset: 0, limit: 0 }).await.map_err(failed)?;
    match again.map(|again| Report { changes: run.changes.clone(), ..again }) {
        Some(finished) if finished.outcome.is_some() => Ok(finished),
        _ => history.as_interrupted(run).await.map_err(failed),
    }
}

pub(super) fn unreadable(dir: &Path, error: &history::Error) -> Failure {
    if let history::Error::Unreachable { .. } = error {
        return Failure::Error(anyhow::anyhow!("the history cannot be read: {error}"));
    }
    Failure::Error(anyhow::anyhow!(
        "the history in {} cannot be read ({error}): use sudo, or the daemon's own user",
        dir.display()
    ))
}
