//! Loading the configuration: the files, their tables, and the secrets that they name.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::diagnostics::{LoadError, syntax_error};
use super::include::{IncludedFile, read_included};
use super::keys::DaemonKeys;
use super::parser::{LISTEN, Parser, STATE_DIR};
use super::secrets::{Reading, Secrets};
use super::settings::{Config, Environment};
use super::source::{beside, read_bytes, read_text};
use super::sources::{Sources, shifted, shifted_table};
use crate::values::clock::Timestamp;
use crate::values::fingerprint::Fingerprint;
use crate::values::schema::{ConfigError, Table};

impl Config {
    /// Reads the main file and all files that it names; blocks the thread.
    pub fn load(path: &Path, environment: &Environment, now: Timestamp) -> Result<Self, LoadError> {
        load(path, environment, now, Reading::Files)
    }

    /// Reads the main file and those that it includes, for commands whose user may not be allowed to read the secrets;
    /// blocks the thread.
    ///
    /// Tokens from files are empty then, and certificates missing.
    pub fn load_without_secrets(
        path: &Path,
        environment: &Environment,
        now: Timestamp,
    ) -> Result<Self, LoadError> {
        load(path, environment, now, Reading::Nothing)
    }

    /// As [`load_without_secrets`](Self::load_without_secrets), with certificates: for commands that obtain a token.
    pub fn load_for_login(
        path: &Path,
        environment: &Environment,
        now: Timestamp,
    ) -> Result<Self, LoadError> {
        load(path, environment, now, Reading::Certificates)
    }

    /// Parses what is to be written to `path`, with the certificates that it names and without secrets; blocks the thread.
    pub fn parse(
        text: &str,
        path: &Path,
        environment: &Environment,
        now: Timestamp,
    ) -> Result<Self, LoadError> {
        parse(text, path, environment, now, Reading::Certificates)
    }
}

fn load(
    path: &Path,
    environment: &Environment,
    now: Timestamp,
    reading: Reading,
) -> Result<Config, LoadError> {
    parse(&read_text(path)?, path, environment, now, reading)
}

fn parse(
    text: &str,
    path: &Path,
    environment: &Environment,
    now: Timestamp,
    reading: Reading,
) -> Result<Config, LoadError> {
    let (root, syntax_errors) = DeTable::parse_recoverable(text);
    let mut root = root.into_inner();
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let included = read_included(path, &root, &mut errors, &mut warnings);
    // Without one of the files, what the others refer to would look wrong.
    let mut is_broken = is_incomplete(&syntax_errors) || !errors.is_empty();
    errors.extend(syntax_errors.iter().map(syntax_error));
    let mut sources = Sources::new(path, text);
    let mut tables = Vec::new();
    for file in &included {
        let base = sources.add(&file.path, &file.text);
        let parsed = parse_included(file);
        is_broken |= parsed.is_broken;
        errors.extend(parsed.errors.into_iter().map(|error| shifted(error, base)));
        tables.push(shifted_table(parsed.table, base));
    }
    let secrets = Secrets::new(&sources, environment, reading);
    let mut parser = Parser::new(&sources, environment, now, secrets);
    let mut config = None;
    if !is_broken {
        for table in tables {
            parser.include(&mut root, table);
        }
        config = parser.config(&root);
    }
    errors.append(&mut parser.errors);
    warnings.append(&mut parser.warnings);
    let located = |found: Vec<ConfigError>| {
        in_order(found).iter().map(|error| sources.diagnostic(error)).collect()
    };
    match config {
        Some(mut config) if errors.is_empty() => {
            config.warnings = located(warnings);
            config.from_credentials = parser.secrets.from_credentials;
            Ok(config)
        }
        _ => Err(LoadError::new(path, located(errors))),
    }
}

/// An included file after parsing; its spans begin at 0.
struct Parsed<'t> {
    table: DeTable<'t>,
    errors: Vec<ConfigError>,
    is_broken: bool,
}

fn parse_included(file: &IncludedFile) -> Parsed<'_> {
    let (table, errors) = DeTable::parse_recoverable(&file.text);
    let table = table.into_inner();
    match file.problem {
        // What else is wrong may be due to it.
        Some((at, text)) => {
            let errors = vec![ConfigError::new(at..at, text)];
            Parsed { table, errors, is_broken: true }
        }
        None => Parsed {
            table,
            is_broken: is_incomplete(&errors),
            errors: errors.iter().map(syntax_error).collect(),
        },
    }
}

/// In the order of the files and their lines, each once.
fn in_order(mut found: Vec<ConfigError>) -> Vec<ConfigError> {
    found.sort_by(|a, b| {
        (a.span.start, a.span.end, &a.text).cmp(&(b.span.start, b.span.end, &b.text))
    });
    found.dedup();
    found
}

/// Whether what was parsed lacks more than a duplicate key.
fn is_incomplete(errors: &[toml::de::Error]) -> bool {
    errors.iter().any(|error| !error.message().contains("duplicate key"))
}

/// The identity of what all files contain, also where they have errors or are missing; blocks the thread.
pub fn files_fingerprint(path: &Path) -> Option<Fingerprint> {
    let main = read_bytes(path).ok()?;
    let text = String::from_utf8_lossy(&main);
    let (root, _) = DeTable::parse_recoverable(&text);
    let mut problems = Vec::new();
    let included = read_included(path, root.get_ref(), &mut problems, &mut Vec::new());
    let mut all = Vec::new();
    let problems = problems.iter().map(|problem| (problem.text.as_bytes(), &[][..]));
    let files =
        included.iter().map(|file| (file.path.as_os_str().as_bytes(), file.text.as_bytes()));
    for (name, content) in [(&[][..], main.as_slice())].into_iter().chain(files).chain(problems) {
        for part in [name, content] {
            // With its length, so that nothing can move from one part to the next.
            all.extend((part.len() as u64).to_be_bytes());
            all.extend(part);
        }
    }
    Some(Fingerprint::of_bytes(&all))
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
