//! `microglia serve`: the daemon in the foreground.

use std::path::Path;

use super::context::{environment, load};
use super::failure::Failure;
use super::log;
use crate::config::Config;
use crate::daemon;
use crate::history::state_dir::{become_owner, this_user};
use crate::values::clock::Clock;

/// The messages of these dependencies are only of use for debugging them.
const LEVELS: &str = "info,tokio_cron_scheduler=warn,sqlx=error";

pub(super) async fn run(path: &Path) -> Result<(), Failure> {
    let clock = Clock::system();
    let config = load(path, &clock).await?;
    let switched = become_owner(&config.daemon.state_dir)?;
    log::start(LEVELS);
    if switched {
        warn_of_unreadable(&config);
    }
    Ok(daemon::serve(path.to_owned(), config, environment(), clock).await?)
}

/// Warns of included and secret files that root could read at the start and the owner of the state directory cannot read again.
fn warn_of_unreadable(config: &Config) {
    tracing::warn!(
        target: "microglia::daemon",
        "started as root: continuing as {}, the owner of the state directory {}",
        this_user(),
        config.daemon.state_dir.display()
    );
    for file in &config.included {
        if let Err(error) = std::fs::File::open(file) {
            tracing::warn!(
                target: "microglia::daemon",
                "{} is not readable for {} ({error}): reloads are rejected; make it readable for that user (chgrp, chmod 640)",
                file.display(),
                this_user()
            );
        }
    }
    for file in config.secret_files() {
        if let Err(error) = std::fs::File::open(file) {
            tracing::warn!(
                target: "microglia::daemon",
                "{} is not readable by {} ({error}): reloads are rejected, and a new secret in it is used only after a restart; make it readable for that user (chgrp, chmod 640)",
                file.display(),
                this_user()
            );
        }
    }
}
