//! Secret files: where they are looked for, and who else may read them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use toml::Spanned;

use super::Environment;
use crate::history::state_dir::this_user;
use crate::synapse::trimmed;
use crate::values::schema::ConfigError;

pub(super) struct Secrets {
    config: PathBuf,
    credentials: Option<PathBuf>,
    /// Whether the files are left alone.
    unread: bool,
    pub(super) from_credentials: Vec<PathBuf>,
}

impl Secrets {
    pub(super) fn new(config: &Path, environment: &Environment) -> Self {
        Self {
            config: config.to_owned(),
            credentials: environment.credentials_directory.clone(),
            unread: false,
            from_credentials: Vec::new(),
        }
    }

    /// Leaves the files alone.
    pub(super) fn unread(config: &Path) -> Self {
        Self { unread: true, ..Self::new(config, &Environment::default()) }
    }

    /// A relative path is looked for among systemd's credentials first, then beside the config.
    fn find(&mut self, path: &Path) -> PathBuf {
        if let Some(credential) = self
            .credentials
            .as_ref()
            .map(|dir| dir.join(path))
            .filter(|file| path.is_relative() && file.exists())
        {
            self.from_credentials.push(credential.clone());
            return credential;
        }
        self.config.parent().unwrap_or(Path::new("")).join(path)
    }

    pub(super) fn read(
        &mut self,
        path: &Spanned<PathBuf>,
        key: &str,
        mistakes: &mut Vec<ConfigError>,
        warnings: &mut Vec<ConfigError>,
    ) -> Option<(PathBuf, SecretString)> {
        let file = self.find(path.get_ref());
        if self.unread {
            return Some((file, SecretString::default()));
        }
        let mut mistake = |text: String| {
            mistakes.push(ConfigError::new(path.span(), text));
            None
        };
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return mistake(format!(
                    "{} does not exist: write the secret into it, or mend `{key}`",
                    file.display()
                ));
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return mistake(format!(
                    "{} is not readable for {}: let the group of that user read it (chgrp, chmod 640), or hand it over as a systemd credential",
                    file.display(),
                    this_user()
                ));
            }
            Err(error) => return mistake(format!("{} cannot be read: {error}", file.display())),
        };
        let secret = trimmed(&text);
        if secret.trim().is_empty() {
            return mistake(format!("{} is empty: write the secret into it", file.display()));
        }
        if secret.trim_start().starts_with("Bearer ") {
            return mistake(format!(
                "{} begins with `Bearer `: write the token alone, microglia adds that itself",
                file.display()
            ));
        }
        if secret.chars().any(char::is_whitespace) || !secret.is_ascii() {
            return mistake(format!(
                "{} holds more than one word: it must hold the secret and nothing else",
                file.display()
            ));
        }
        if let Some(warning) = pasted(secret) {
            warnings.push(ConfigError::new(
                path.span(),
                format!("the secret in {} {warning}", file.display()),
            ));
        }
        if everybody_may_read(&file) {
            warnings.push(ConfigError::new(path.span(), format!("everybody on this machine may read {}: chmod 600 it, owned by the user that runs microglia", file.display())));
        }
        Some((file, SecretString::from(secret.to_owned())))
    }

    /// A token in the config is as secret as the config's own file.
    pub(super) fn warn_inline(&self, token: &Spanned<String>, warnings: &mut Vec<ConfigError>) {
        if everybody_may_read(&self.config) {
            warnings.push(ConfigError::new(token.span(), format!("everybody on this machine may read this token: chmod 640 {}, or use `access_token_file`", self.config.display())));
        }
    }

    pub(super) fn certificates(
        &mut self,
        path: &Spanned<PathBuf>,
        mistakes: &mut Vec<ConfigError>,
    ) -> Option<Vec<u8>> {
        if self.unread {
            return Some(Vec::new());
        }
        let file = self.find(path.get_ref());
        let pem = match std::fs::read(&file) {
            Ok(pem) => pem,
            Err(error) => {
                mistakes.push(ConfigError::new(
                    path.span(),
                    format!("{} cannot be read: {error}", file.display()),
                ));
                return None;
            }
        };
        match reqwest::Certificate::from_pem_bundle(&pem) {
            Ok(certificates) if !certificates.is_empty() => Some(pem),
            _ => {
                mistakes.push(ConfigError::new(
                    path.span(),
                    format!("{} holds no certificate in PEM form", file.display()),
                ));
                None
            }
        }
    }
}

/// What a secret shows that was pasted with more than itself.
pub(super) fn pasted(secret: &str) -> Option<&'static str> {
    match () {
        () if secret.starts_with(['"', '\'', '`']) || secret.ends_with(['"', '\'', '`']) => {
            Some("stands in quotes, which would be sent with it: remove them")
        }
        () if secret.trim_start().starts_with("Bearer ") => {
            Some("begins with `Bearer `, which microglia adds itself: remove that")
        }
        () if secret.chars().any(char::is_whitespace) => {
            Some("contains a space, which no token does: remove it")
        }
        () => None,
    }
}

fn everybody_may_read(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
