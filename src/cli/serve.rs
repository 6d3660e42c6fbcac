//! `microglia serve`: the daemon in the foreground.

use std::path::Path;

use super::{Ended, environment, load, log};
use crate::clock::Clock;
use crate::daemon;

/// What the crates below us say is for debugging them.
const LEVELS: &str = "info,tokio_cron_scheduler=warn,sqlx=error";

pub(super) async fn run(path: &Path) -> Result<(), Ended> {
    let clock = Clock::system();
    let config = load(path, &clock)?;
    log::start(LEVELS);
    Ok(daemon::serve(path.to_owned(), config, environment(), clock).await?)
}
