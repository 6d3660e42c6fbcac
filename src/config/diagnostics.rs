//! Errors and warnings with their location, as they are shown to a person.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::values::schema::ConfigError;
use crate::values::text::{format_count, nearest};

/// An error or a warning with the line that it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    pub file: String,
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub text: String,
    source: String,
    carets: usize,
}

/// A configuration that could not be read, or has errors.
#[derive(Debug, Clone, thiserror::Error)]
pub struct LoadError {
    /// The main file.
    file: PathBuf,
    /// Why it could not be read at all.
    problem: Option<String>,
    pub errors: Vec<Diagnostic>,
}

impl Diagnostic {
    pub(super) fn at(path: &Path, text: &str, error: &ConfigError) -> Self {
        let start = floor_boundary(text, error.span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let source = text[line_start..].lines().next().unwrap_or("");
        let source = redacted(&text[..line_start], source);
        let end = floor_boundary(text, error.span.end).max(start);
        let carets =
            text[start..end].lines().next().map_or(1, |marked| marked.chars().count().max(1));
        Self {
            file: path.display().to_string(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: error.text.clone(),
            source,
            carets,
        }
    }
}

/// A line of the configuration, cut off where the value of a key that may be a secret starts.
///
/// The text may be malformed in any way, so this looks at words, not at TOML.
fn redacted(above: &str, source: &str) -> String {
    if let Some(end) = secret_key(source) {
        let value = source[end..]
            .find(|c: char| !c.is_whitespace() && !"=:\"'[".contains(c))
            .map_or(source.len(), |at| end + at);
        return match value < source.len() {
            true => format!("{}…", &source[..value]),
            false => source.to_owned(),
        };
    }
    // A value may span several lines: it belongs to the last line that has a key.
    let is_table = source.trim_start().starts_with('[') && source.trim_end().ends_with(']');
    let has_key = |line: &&str| line.contains('=') || line.trim_start().starts_with('[');
    let continued = !source.contains('=')
        && !source.trim().is_empty()
        && !is_table
        && above.lines().rev().find(has_key).is_some_and(|line| secret_key(line).is_some());
    if continued { "…".to_owned() } else { source.to_owned() }
}

/// The end of the first word that is the key of a secret, also a misspelt one, or of a URL with a password in it.
fn secret_key(line: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let mut end = 0;
    while let Some(start) = line[end..].find(is_word).map(|at| end + at) {
        end = line[start..].find(|c| !is_word(c)).map_or(line.len(), |at| start + at);
        let word = line[start..end].to_ascii_lowercase();
        let secret = ["token", "secret", "password"].iter().any(|part| word.contains(part))
            || nearest(&word, ["access_token", "database_url"].into_iter()).is_some();
        let url =
            matches!(word.as_str(), "url" | "media_url" | "admin_url") && line[end..].contains('@');
        let quoted = line[..start].matches(['"', '\'']).count() % 2 == 1;
        let rest = line[end..].trim_start_matches(['"', '\'']).trim_start();
        let is_key = !quoted || rest.starts_with(['=', ':']);
        if is_key && (url || secret && !word.ends_with("_file")) {
            return Some(end);
        }
    }
    None
}

/// The last character boundary at or before `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, text, source, carets } = self;
        write!(f, "{file}:{line}:{column}: {text}")?;
        if source.trim().is_empty() {
            return Ok(());
        }
        let gap: String =
            source.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        write!(
            f,
            "\n{line:>5} | {source}\n      | {gap}{}",
            "^".repeat(*carets.min(&source.chars().count().saturating_sub(column - 1).max(1)))
        )
    }
}

impl Diagnostic {
    /// As `--json` prints it: without the source line.
    pub fn as_json(&self) -> serde_json::Value {
        serde_json::json!({ "file": self.file, "line": self.line, "column": self.column, "message": self.text })
    }

    /// One line without the source line, for logs and responses.
    pub fn line(&self) -> String {
        format!("{}:{}:{}: {}", self.file, self.line, self.column, self.text)
    }
}

impl LoadError {
    pub(super) fn new(main: &Path, errors: Vec<Diagnostic>) -> Self {
        Self { file: main.to_owned(), problem: None, errors }
    }

    pub(super) fn problem(path: &Path, problem: impl Into<String>) -> Self {
        Self { file: path.to_owned(), problem: Some(problem.into()), errors: Vec::new() }
    }

    /// Each error as `--json` prints it; one without a location has `null` as line and column.
    pub fn as_json(&self) -> Vec<serde_json::Value> {
        match &self.problem {
            Some(problem) => vec![
                serde_json::json!({ "file": self.file, "line": null, "column": null, "message": problem }),
            ],
            None => self.errors.iter().map(Diagnostic::as_json).collect(),
        }
    }

    /// Each error as one line without the source line, for logs and responses.
    pub fn lines(&self) -> Vec<String> {
        match &self.problem {
            Some(problem) => vec![format!("{}: {problem}", self.file.display())],
            None => self.errors.iter().map(Diagnostic::line).collect(),
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(problem) = &self.problem {
            return write!(f, "{}: {problem}", self.file.display());
        }
        for error in &self.errors {
            writeln!(f, "{error}")?;
        }
        let count = self.errors.len();
        let main = self.file.display().to_string();
        let files: BTreeSet<&str> = self.errors.iter().map(|error| error.file.as_str()).collect();
        let count = format_count(count as u64, "error", "errors");
        match files.iter().any(|file| *file != main) {
            true => write!(f, "{main} and the files that it includes: {count}"),
            false => write!(f, "{main}: {count}"),
        }
    }
}

/// An error of the TOML parser.
pub(super) fn syntax_error(error: &toml::de::Error) -> ConfigError {
    let text = match error.message() {
        message if message.contains("duplicate key") => {
            "duplicate key: remove one of them".to_owned()
        }
        // The parser assumes that an unquoted word with t or f in front is a misspelt true or false.
        message if message.starts_with("invalid boolean") => {
            "expected true or false, or a string in quotes".to_owned()
        }
        message => message.lines().collect::<Vec<_>>().join(", "),
    };
    ConfigError::new(error.span().unwrap_or(0..0), text)
}
