//! Loading the configuration: the file, its tables, and the secrets that it names.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::diagnostics::{Diagnostic, LoadError, syntax_error};
use super::keys::DaemonKeys;
use super::parser::{LISTEN, Parser, STATE_DIR, beside};
use super::secrets::Secrets;
use super::settings::{Config, Environment};
use super::source::read_text;
use crate::values::clock::Timestamp;
use crate::values::schema::{ConfigError, Table};

impl Config {
    /// Reads the file and all files that it names; blocks the thread.
    pub fn load(path: &Path, environment: &Environment, now: Timestamp) -> Result<Self, LoadError> {
        load(path, environment, now, Secrets::new(path, environment))
    }

    /// Reads the file alone, for commands whose user may not be allowed to read the secrets; blocks the thread.
    ///
    /// Tokens from files are empty then, and certificates missing.
    pub fn load_without_secrets(
        path: &Path,
        environment: &Environment,
        now: Timestamp,
    ) -> Result<Self, LoadError> {
        load(path, environment, now, Secrets::unread(path))
    }
}

fn load(
    path: &Path,
    environment: &Environment,
    now: Timestamp,
    secrets: Secrets,
) -> Result<Config, LoadError> {
    let text = &read_text(path)?;
    let (root, syntax_errors) = DeTable::parse_recoverable(text);
    let mut errors: Vec<ConfigError> = syntax_errors.iter().map(syntax_error).collect();
    // Tables with a duplicate key are complete but for that key.
    let is_broken = syntax_errors.iter().any(|error| !error.message().contains("duplicate key"));
    let mut parser = Parser::new(path, environment, now, secrets);
    let config = if is_broken { None } else { parser.config(root.get_ref()) };
    errors.append(&mut parser.errors);
    errors.sort_by(|a, b| {
        (a.span.start, a.span.end, &a.text).cmp(&(b.span.start, b.span.end, &b.text))
    });
    errors.dedup();
    match config {
        Some(mut config) if errors.is_empty() => {
            parser.warnings.sort_by_key(|warning| warning.span.start);
            config.warnings =
                parser.warnings.iter().map(|warning| Diagnostic::at(path, text, warning)).collect();
            config.from_credentials = parser.secrets.from_credentials;
            Ok(config)
        }
        _ => Err(LoadError::new(path, text, &errors)),
    }
}

/// Where the daemon listens, as far as the file can be read: a broken edit must not make a healthy daemon look dead.
pub fn listen(path: &Path, environment: &Environment) -> SocketAddr {
    let text = read_text(path).unwrap_or_default();
    let from_environment = environment.listen.as_deref().and_then(|listen| listen.parse().ok());
    let from_file = daemon_keys(&text).listen.value.flatten();
    from_file.map(|listen| listen.0).or(from_environment).unwrap_or(LISTEN)
}

/// The state directory, as far as the file can be read: a reload is requested just when the file may be wrong.
pub fn state_dir(path: &Path, environment: &Environment) -> Result<PathBuf, LoadError> {
    Ok(state_dir_in(&read_text(path)?, path, environment))
}

/// [`state_dir`], or the default one where the file cannot be read at all.
pub fn state_dir_or_default(path: &Path, environment: &Environment) -> PathBuf {
    state_dir_in(&read_text(path).unwrap_or_default(), path, environment)
}

fn state_dir_in(text: &str, path: &Path, environment: &Environment) -> PathBuf {
    let from_file = daemon_keys(text).state_dir.value.flatten().map(|dir| beside(path, &dir));
    from_file.or_else(|| environment.state_directory.clone()).unwrap_or_else(|| STATE_DIR.into())
}

/// The keys of `[daemon]` that can be read, whatever else is wrong.
fn daemon_keys(text: &str) -> DaemonKeys {
    let (root, _) = DeTable::parse_recoverable(text);
    let empty = DeTable::new();
    let entries = root.get_ref().get("daemon").and_then(|daemon| daemon.get_ref().as_table());
    DaemonKeys::parse(&Table::new(entries.unwrap_or(&empty), 0..0), &mut Vec::new())
}
