//! `microglia init`: from nothing to a checked configuration.

mod draft;
mod finish;
mod homeserver;
mod jobs;
mod options;
mod schedule_words;
mod setup;
mod zone;

use std::fs;
use std::path::Path;

use super::context::environment;
use super::failure::Failure;
use super::new_file::{NewFile, become_owner_of_directory, exists, parent};
use super::output::{print, print_message};
use super::prompt::is_interactive;
use super::session::Session;
use super::signals::signalled;
use crate::values::clock::Clock;
use draft::{Draft, TOKEN_FILE};
pub(super) use options::Options;
use setup::Setup;

pub(super) async fn run(path: &Path, options: Options) -> Result<(), Failure> {
    let clock = Clock::system();
    let setup = Setup { path, environment: environment(), clock, interactive: is_interactive() };
    options.check(setup.interactive)?;
    if !options.print {
        prepare(path)?;
    }
    if setup.interactive {
        print_message(&format!(
            "This creates {}. Press Enter for the value in brackets. Ctrl-C stops; nothing is written before the end.\n",
            path.display()
        ));
    }
    let mut slot = None;
    let result = tokio::select! {
        result = create(&setup, &options, &mut slot) => result,
        () = signalled() => {
            print_message("\nstopped; nothing was written");
            Err(Failure::Unsuccessful)
        }
    };
    let job = match (result, slot) {
        (Ok(job), _) => job,
        (Err(failure), slot) => {
            if let Some(session) = slot {
                session.end().await;
            }
            return Err(failure);
        }
    };
    match job {
        Some(job) => Box::pin(finish::finish(path, &job, &setup.clock)).await,
        None => Ok(()),
    }
}

/// Asks and writes; returns the name of the first job, or `None` where the configuration was only printed.
async fn create(
    setup: &Setup<'_>,
    options: &Options,
    slot: &mut Option<Session>,
) -> Result<Option<String>, Failure> {
    let mut draft = Draft {
        url: String::new(),
        token_file: TOKEN_FILE.to_owned(),
        ca_file: options.ca_file.as_deref().map(std::path::absolute).transpose()?,
        state_dir: setup.own_state_dir(),
        timezone: "UTC".to_owned(),
        schedule: None,
        jobs: Vec::new(),
    };
    homeserver::choose_url(setup, options, &mut draft).await?;
    let source = match options.print {
        true => homeserver::print_token_file(setup, options, &mut draft),
        false => homeserver::obtain_token(setup, options, &mut draft, slot).await?,
    };
    let reader = match options.print {
        true => None,
        false => homeserver::reader_of(setup, &draft, &source, slot.as_ref())?,
    };
    jobs::choose_jobs(setup, options, &mut draft, reader.as_ref()).await?;
    jobs::choose_schedule(setup, options, &mut draft).await?;
    setup.parse(&draft)?;
    if options.print {
        print(&draft.text())?;
        return Ok(None);
    }
    setup.write(&draft, &source, slot.as_ref())?;
    *slot = None;
    Ok(draft.jobs.first().map(|job| job.kind.name.to_owned()))
}

/// Checks that the files can be created, before anything is asked.
fn prepare(path: &Path) -> Result<(), Failure> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(exists(path, "specify another file with --config FILE"));
    }
    let directory = parent(path);
    if fs::symlink_metadata(directory).is_ok() {
        become_owner_of_directory(path)?;
        return NewFile::config(path).map(drop);
    }
    // It is created at the end.
    become_owner_of_directory(directory)?;
    NewFile::config(directory).map(drop)
}
