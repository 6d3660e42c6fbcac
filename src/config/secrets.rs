//! Secrets and certificates: where their files are, whether they are valid, and who else may read them.

use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::settings::Environment;
use super::source::beside;
use super::sources::Sources;
use crate::history::state_dir::this_user;
use crate::http::{trim_newline, validate_token};
use crate::values::bounded_file::read_bounded;
use crate::values::schema::ConfigError;

/// The largest secret or certificate file that is read.
const MAX_BYTES: u64 = 1 << 20;
/// How long to wait for a secret that is read from a FIFO.
const TIME_LIMIT: Duration = Duration::from_secs(2);

pub(super) struct Secrets<'a> {
    sources: &'a Sources<'a>,
    credentials: Option<PathBuf>,
    reading: Reading,
    pub(super) from_credentials: Vec<PathBuf>,
}

/// Which of the files that the configuration names are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reading {
    Files,
    /// No secrets: for commands that obtain a token.
    Certificates,
    Nothing,
}

/// A secret that was read from a file; empty where secrets are not read.
pub(super) struct SecretFile {
    pub path: PathBuf,
    pub secret: SecretString,
}

impl<'a> Secrets<'a> {
    pub(super) fn new(
        sources: &'a Sources<'a>,
        environment: &Environment,
        reading: Reading,
    ) -> Self {
        let credentials = match reading {
            Reading::Files => environment.credentials_directory.clone(),
            Reading::Certificates | Reading::Nothing => None,
        };
        Self { sources, credentials, reading, from_credentials: Vec::new() }
    }

    /// A relative path is looked up in systemd's credentials first, then beside the file that names it, at `span`.
    fn find(&mut self, path: &Path, span: &Range<usize>) -> PathBuf {
        if let Some(credential) = self
            .credentials
            .as_ref()
            .map(|dir| dir.join(path))
            .filter(|file| path.is_relative() && file.exists())
        {
            self.from_credentials.push(credential.clone());
            return credential;
        }
        beside(self.sources.path_of(span), path)
    }

    /// Whether commands do without secrets that their user may not read.
    pub(super) fn are_optional(&self) -> bool {
        self.reading != Reading::Files
    }

    /// Reads a secret; `key` is the one that names the file, at `span`.
    pub(super) fn read(
        &mut self,
        path: &Path,
        key: &str,
        span: &Range<usize>,
        warnings: &mut Vec<ConfigError>,
    ) -> Result<SecretFile, ConfigError> {
        if self.are_optional() {
            let path = self.find(path, span);
            return Ok(SecretFile { path, secret: SecretString::default() });
        }
        self.read_always(path, key, span, warnings)
    }

    /// As [`read`](Self::read), also where secrets are optional.
    pub(super) fn read_always(
        &mut self,
        path: &Path,
        key: &str,
        span: &Range<usize>,
        warnings: &mut Vec<ConfigError>,
    ) -> Result<SecretFile, ConfigError> {
        let path = self.find(path, span);
        let file = path.display();
        let error = |text| ConfigError::new(span.clone(), text);
        let bytes = read_bounded(&path, MAX_BYTES, TIME_LIMIT).map_err(|problem| {
            error(match problem.kind() {
                ErrorKind::NotFound => {
                    let how = match key {
                        "access_token_file" => "`microglia login`",
                        _ => "the secret",
                    };
                    format!("{file} does not exist: create it with {how}, or fix `{key}`")
                }
                ErrorKind::PermissionDenied => format!(
                    "{file} is not readable by {}: make it readable for a group of that user (chgrp, chmod 640), or pass it as a systemd credential",
                    this_user()
                ),
                _ => unreadable(&path, &problem),
            })
        })?;
        let text = String::from_utf8(bytes)
            .map_err(|_| error(format!("{file} contains characters that are not ASCII")))?;
        let secret = trim_newline(&text);
        validate_token(secret).map_err(|problem| error(format!("{file} {problem}")))?;
        if is_quoted(secret) {
            let text = format!(
                "{file} has quotes around the secret, which would be sent as part of it: remove them"
            );
            warnings.push(error(text));
        }
        if is_world_readable(&path) {
            let text = format!(
                "{file} is readable by every user of this machine: set its mode to 600 (chmod 600), owned by the user that runs microglia"
            );
            warnings.push(error(text));
        }
        Ok(SecretFile { secret: secret.into(), path })
    }

    /// Checks a secret in the configuration itself, which is as readable as that file; `key` would name a file for it.
    pub(super) fn check_inline(
        &self,
        token: &SecretString,
        key: &str,
        span: &Range<usize>,
        warnings: &mut Vec<ConfigError>,
    ) -> Result<(), ConfigError> {
        let error = |text| ConfigError::new(span.clone(), text);
        let (token, what) = (token.expose_secret(), what_is_in(key));
        validate_token(token).map_err(|problem| error(format!("the {what} {problem}")))?;
        if is_quoted(token) {
            let text = format!(
                "the {what} has quotes around it, which would be sent as part of it: remove them"
            );
            warnings.push(error(text));
        }
        self.warn_if_shared(span, key, warnings);
        Ok(())
    }

    /// Warns of a secret in the configuration itself where others may read that; `key` names a file for it.
    pub(super) fn warn_if_shared(
        &self,
        span: &Range<usize>,
        key: &str,
        warnings: &mut Vec<ConfigError>,
    ) {
        let config = self.sources.path_of(span);
        if is_world_readable(config) {
            let what = what_is_in(key);
            let text = format!(
                "this {what} is readable by every user of this machine: set the mode of {} to 640 (chmod 640), or use `{key}`",
                config.display()
            );
            warnings.push(ConfigError::new(span.clone(), text));
        }
    }

    /// Reads PEM certificates; empty where files are not read.
    pub(super) fn certificates(
        &mut self,
        path: &Path,
        span: &Range<usize>,
    ) -> Result<Vec<u8>, ConfigError> {
        if self.reading == Reading::Nothing {
            return Ok(Vec::new());
        }
        let file = self.find(path, span);
        let pem = read_bounded(&file, MAX_BYTES, TIME_LIMIT)
            .map_err(|error| ConfigError::new(span.clone(), unreadable(&file, &error)))?;
        match reqwest::Certificate::from_pem_bundle(&pem) {
            Ok(certificates) if !certificates.is_empty() => Ok(pem),
            _ => {
                let text = format!("{} contains no certificate in PEM format", file.display());
                Err(ConfigError::new(span.clone(), text))
            }
        }
    }
}

/// What the file contains that a key names.
fn what_is_in(key: &str) -> &'static str {
    match key {
        "access_token_file" => "token",
        "client_secret_file" => "client secret",
        _ => "URL",
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> String {
    let file = file.display();
    match error.kind() {
        ErrorKind::FileTooLarge => format!("{file} is larger than {} MiB", MAX_BYTES >> 20),
        ErrorKind::TimedOut => format!(
            "{file} cannot be read: nothing was written to this FIFO within {} s",
            TIME_LIMIT.as_secs()
        ),
        _ => format!("{file} cannot be read: {error}"),
    }
}

/// Whether a secret was pasted together with quotes.
fn is_quoted(secret: &str) -> bool {
    secret.starts_with(['"', '\'', '`']) || secret.ends_with(['"', '\'', '`'])
}

fn is_world_readable(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
