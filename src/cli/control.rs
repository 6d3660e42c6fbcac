//! `microglia reload`, `cancel`, `pause` and `resume`: what controls the running daemon.

use std::path::Path;

use anyhow::anyhow;
use serde::Deserialize;

use super::client::Client;
use super::context::{become_owner, environment, load};
use super::failure::Failure;
use super::output::{print, print_error};
use crate::config;
use crate::scheduler::Adopted;
use crate::values::clock::Clock;

/// The response to a reload of a configuration that has errors.
#[derive(Deserialize)]
struct Rejected {
    errors: Vec<String>,
}

pub(super) async fn reload(path: &Path) -> Result<(), Failure> {
    let reply = connect(path).await?.post(&["-", "reload"]).await?;
    if let Ok(Rejected { errors }) = reply.json() {
        for error in errors {
            print_error(&error);
        }
        print_error("the configuration was not reloaded; keeping the previous configuration");
        return Err(Failure::Unsuccessful);
    }
    let adopted: Adopted = reply.succeeded()?.json()?;
    let line = |what: &str, jobs: &[String]| match jobs {
        [] => String::new(),
        _ => format!("{what}: {}\n", jobs.join(", ")),
    };
    let mut text = line("added", &adopted.added)
        + &line("changed", &adopted.changed)
        + &line("removed", &adopted.removed);
    text.push_str(&format!(
        "reloaded: {} added, {} changed, {} removed, {} unchanged\n",
        adopted.added.len(),
        adopted.changed.len(),
        adopted.removed.len(),
        adopted.unchanged.len()
    ));
    text.extend(adopted.restart_needed.iter().map(|need| format!("needs a restart: {need}\n")));
    print(&text)
}

pub(super) async fn cancel(path: &Path, job: &str) -> Result<(), Failure> {
    connect(path).await?.post(&["api", "v1", "jobs", job, "cancel"]).await?.succeeded()?;
    print(&format!("{job}: the run will end at the next change boundary"))
}

pub(super) async fn pause(path: &Path) -> Result<(), Failure> {
    connect(path).await?.post(&["api", "v1", "pause"]).await?.succeeded()?;
    print("paused: nothing runs on schedule until `microglia resume`")
}

pub(super) async fn resume(path: &Path) -> Result<(), Failure> {
    connect(path).await?.post(&["api", "v1", "resume"]).await?.succeeded()?;
    print("resumed")
}

/// Connects to the daemon even where the configuration has errors: a run must be stoppable in the middle of an edit.
async fn connect(path: &Path) -> Result<Client, Failure> {
    let state_dir = config::state_dir(path, &environment())?;
    // Before root becomes the owner of the state directory, who may not be allowed to read the secrets.
    let config = load(path, &Clock::system()).await;
    become_owner(&state_dir)?;
    let client = Client::connect(&state_dir).await.map_err(|error| {
        anyhow!(
            "cannot use the daemon's socket in {} ({error}): use sudo, or the daemon's own user",
            state_dir.display()
        )
    })?;
    if client.is_none() {
        // An error may be why no daemon runs, or why it is looked for in the wrong directory.
        config?;
    }
    let no_daemon =
        || anyhow!("no daemon is running on the state directory {}", state_dir.display());
    Ok(client.ok_or_else(no_daemon)?)
}
