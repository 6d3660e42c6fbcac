//! What all questions need, and how the answers are checked and written.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::geteuid;
use secrecy::SecretString;

use super::super::failure::Failure;
use super::super::login::write_token;
use super::super::new_file::{Existing, NewFile, parent};
use super::super::output::print_message;
use super::super::session::Session;
use super::draft::Draft;
use crate::config::{Config, Environment, state_dir_or_default};
use crate::values::clock::{Clock, Timestamp};

/// What the questions need to know.
pub(super) struct Setup<'a> {
    pub(super) path: &'a Path,
    pub(super) environment: Environment,
    pub(super) clock: Clock,
    pub(super) interactive: bool,
}

/// Where the token is to come from.
pub(super) enum TokenSource {
    /// The file is where it belongs.
    InPlace,
    Copied(SecretString),
    Session,
}

impl Setup<'_> {
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        state_dir_or_default(self.path, &self.environment)
    }

    /// A state directory beside the configuration, for a user who cannot use the default one.
    pub(super) fn own_state_dir(&self) -> Option<&'static str> {
        let is_own =
            |dir: &Path| fs::metadata(dir).is_ok_and(|dir| dir.uid() == geteuid().as_raw());
        let usable = geteuid().is_root()
            || self.environment.state_directory.is_some()
            || is_own(&self.state_dir());
        (!usable).then_some("state")
    }

    pub(super) fn parse(&self, draft: &Draft) -> Result<Config, Failure> {
        Ok(draft.parse(self.path, &self.environment, self.now())?)
    }

    /// What is wrong with the answers so far, without the location in a file that does not exist.
    pub(super) fn problem(&self, draft: &Draft) -> Option<String> {
        let error = draft.parse(self.path, &self.environment, self.now()).err()?;
        let texts: Vec<&str> = error.errors.iter().map(|error| error.text.as_str()).collect();
        Some(texts.join("\n"))
    }

    /// Writes the token first: a configuration without one would be of no use.
    pub(super) fn write(
        &self,
        draft: &Draft,
        source: &TokenSource,
        session: Option<&Session>,
    ) -> Result<(), Failure> {
        make_directory(self.path)?;
        let config = NewFile::config(self.path)?;
        let token_path = parent(self.path).join(&draft.token_file);
        let token = match (source, session) {
            (TokenSource::Copied(token), _) => Some(token),
            (TokenSource::Session, Some(session)) => Some(&session.token),
            _ => None,
        };
        let written = match token {
            Some(token) => {
                let state_dir = match draft.state_dir {
                    Some(dir) => parent(self.path).join(dir),
                    None => self.state_dir(),
                };
                let existing = Existing::Keep { instead: "use it with --token-file FILE" };
                write_token(NewFile::secret(&token_path, &state_dir, existing)?, token)?;
                true
            }
            None => false,
        };
        if let Err(failure) = config.write(&draft.text()) {
            if written {
                let _ = fs::remove_file(&token_path);
            }
            return Err(failure);
        }
        print_message(&format!("wrote {}", self.path.display()));
        if written {
            print_message(&format!("wrote {}", token_path.display()));
        }
        Ok(())
    }
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    let directory = parent(path);
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .mode(0o755)
        .create(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(())
}
