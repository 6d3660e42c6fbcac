//! `microglia serve`: the daemon in the foreground.

use std::path::Path;

use super::{Ended, environment, load, log};
use crate::config::Config;
use crate::daemon;
use crate::history::state_dir::{become_owner, this_user};
use crate::values::clock::Clock;

/// What the crates below us say is for debugging them.
const LEVELS: &str = "info,tokio_cron_scheduler=warn,sqlx=error";

pub(super) async fn run(path: &Path) -> Result<(), Ended> {
    let clock = Clock::system();
    let config = load(path, &clock).await?;
    let switched = become_owner(&config.daemon.state_dir)?;
    log::start(LEVELS);
    if switched {
        warn_of_unreadable(&config);
    }
    Ok(daemon::serve(path.to_owned(), config, environment(), clock).await?)
}

/// What root could read at the start and the owner of the state directory cannot: it is never read again.
fn warn_of_unreadable(config: &Config) {
    tracing::warn!(
        "started as root: running as {}, the owner of the state directory {}, from here on",
        this_user(),
        config.daemon.state_dir.display()
    );
    for file in config.secret_files() {
        if let Err(error) = std::fs::File::open(file) {
            tracing::warn!(
                "{} is not readable for {} ({error}): reloads are rejected, and a new secret in it serves only after a restart; make it readable for that user (chgrp, chmod 640)",
                file.display(),
                this_user()
            );
        }
    }
}
