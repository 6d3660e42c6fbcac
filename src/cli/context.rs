//! What commands start from: the environment, the configuration, and the state directory.

use std::path::{Path, PathBuf};

use super::failure::Failure;
use crate::config::{Config, Environment, JobSpec};
use crate::history::state_dir;
use crate::values::clock::Clock;
use crate::values::text::unknown;

/// The environment's values for settings that the configuration leaves out.
#[expect(clippy::disallowed_methods, reason = "the environment is read in `cli` only")]
pub(super) fn environment() -> Environment {
    let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    Environment {
        listen: std::env::var("MICROGLIA_LISTEN").ok().filter(|text| !text.is_empty()),
        // systemd joins several directories with colons; the first is ours.
        state_directory: std::env::var("STATE_DIRECTORY")
            .ok()
            .and_then(|dirs| dirs.split(':').next().map(PathBuf::from))
            .filter(|dir| !dir.as_os_str().is_empty()),
        credentials_directory: path("CREDENTIALS_DIRECTORY"),
    }
}

pub(super) async fn load(path: &Path, clock: &Clock) -> Result<Config, Failure> {
    let now = clock.now();
    Ok(blocking(path, move |path, environment| Config::load(path, &environment, now)).await??)
}

pub(super) async fn load_without_secrets(path: &Path, clock: &Clock) -> Result<Config, Failure> {
    let now = clock.now();
    let load =
        move |path: &Path, environment| Config::load_without_secrets(path, &environment, now);
    Ok(blocking(path, load).await??)
}

/// Reads the configuration on a blocking thread: its files may be on a file system that stalls.
pub(super) async fn blocking<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce(&Path, Environment) -> T + Send + 'static,
) -> Result<T, anyhow::Error> {
    let (path, environment) = (path.to_owned(), environment());
    Ok(tokio::task::spawn_blocking(move || read(&path, environment)).await?)
}

/// Makes a process of root become the owner of the state directory, before anything in it is opened.
pub(super) fn become_owner(state_dir: &Path) -> Result<(), Failure> {
    state_dir::become_owner(state_dir)?;
    Ok(())
}

/// Fails for a homeserver that the configuration does not have.
pub(super) fn find_homeserver(config: &Config, name: &str) -> Result<(), Failure> {
    let names: Vec<&str> = config.homeservers.keys().map(String::as_str).collect();
    match config.homeservers.contains_key(name) {
        true => Ok(()),
        false => Err(Failure::Usage(unknown("homeserver", name, &names))),
    }
}

pub(super) fn find_job<'a>(config: &'a Config, name: &str) -> Result<&'a JobSpec, Failure> {
    config.job(name).ok_or_else(|| {
        let names: Vec<&str> = config.jobs.iter().map(|job| job.name.as_str()).collect();
        let several: Vec<&str> =
            names.iter().copied().filter(|known| known.split('@').next() == Some(name)).collect();
        Failure::Usage(match several.is_empty() {
            true => unknown("job", name, &names),
            false => format!(
                "job `{name}` runs on several homeservers: name one of {}",
                several.join(", ")
            ),
        })
    })
}
