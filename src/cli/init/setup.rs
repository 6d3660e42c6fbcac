//! What all questions need, and how the answers are checked and written.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::geteuid;
use secrecy::SecretString;

use super::super::failure::Failure;
use super::super::login::write_secret;
use super::super::new_file::{Existing, NewFile, parent};
use super::super::output::print_message;
use super::super::session::Session;
use super::draft::{Draft, SECRET_FILE};
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
    /// MAS, whose client has this secret.
    Mas(SecretString),
}

/// What to do instead of moving a file away.
pub(super) const OTHER_TOKEN: &str = "use it with --token-file FILE";
pub(super) const OTHER_CONFIG: &str =
    "specify another file for the configuration with --config FILE";

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

    /// Writes the secret first: a configuration without one would be of no use.
    pub(super) fn write(
        &self,
        draft: &Draft,
        source: &TokenSource,
        session: Option<&Session>,
    ) -> Result<(), Failure> {
        make_directory(self.path)?;
        let config = NewFile::config(self.path)?;
        let (name, instead) = match source {
            TokenSource::Mas(_) => (SECRET_FILE, OTHER_CONFIG),
            _ => (draft.token_file.as_str(), OTHER_TOKEN),
        };
        let secret = match source {
            TokenSource::Copied(secret) | TokenSource::Mas(secret) => Some(secret),
            TokenSource::Session => session.map(|session| &session.token),
            TokenSource::InPlace => None,
        };
        let secret_path = parent(self.path).join(name);
        let written = match secret {
            Some(secret) => {
                let state_dir = match draft.state_dir {
                    Some(dir) => parent(self.path).join(dir),
                    None => self.state_dir(),
                };
                let existing = Existing::Keep { instead };
                write_secret(NewFile::secret(&secret_path, &state_dir, existing)?, secret)?;
                true
            }
            None => false,
        };
        if let Err(failure) = config.write(&draft.text()) {
            if written {
                let _ = fs::remove_file(&secret_path);
            }
            return Err(failure);
        }
        print_message(&format!("wrote {}", self.path.display()));
        if written {
            print_message(&format!("wrote {}", secret_path.display()));
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
