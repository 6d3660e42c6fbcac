//! Mistakes with their place in the file, as they are shown to a person.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::history::state_dir::this_user;
use crate::values::schema::ConfigError;
use crate::values::text::nearest;

/// A mistake or a warning with the line that it is in.
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

/// A config that could not be read, or has mistakes.
#[derive(Debug, Clone, thiserror::Error)]
pub struct LoadError {
    file: PathBuf,
    /// What kept the file from being read at all.
    problem: Option<String>,
    pub mistakes: Vec<Diagnostic>,
}

impl Diagnostic {
    pub(super) fn at(path: &Path, text: &str, mistake: &ConfigError) -> Self {
        let start = floor(text, mistake.span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let source = text[line_start..].lines().next().unwrap_or("");
        let source = shown(&text[..line_start], source);
        let end = floor(text, mistake.span.end).max(start);
        let carets =
            text[start..end].lines().next().map_or(1, |marked| marked.chars().count().max(1));
        Self {
            file: path.display().to_string(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: mistake.text.clone(),
            source,
            carets,
        }
    }
}

/// A line of the config without what may be a secret: it ends where the value of a key that looks secret begins.
///
/// The text may be broken in any way, so that this looks at words and not at TOML.
fn shown(above: &str, source: &str) -> String {
    if let Some(end) = secret_key(source) {
        let value = source[end..]
            .find(|c: char| !c.is_whitespace() && !"=:\"'[".contains(c))
            .map_or(source.len(), |at| end + at);
        return match value < source.len() {
            true => format!("{}…", &source[..value]),
            false => source.to_owned(),
        };
    }
    // A value may go over several lines: the last line that names a key tells whose it is.
    let is_table = source.trim_start().starts_with('[') && source.trim_end().ends_with(']');
    let names_a_key = |line: &&str| line.contains('=') || line.trim_start().starts_with('[');
    let continued = !source.contains('=')
        && !source.trim().is_empty()
        && !is_table
        && above.lines().rev().find(names_a_key).is_some_and(|line| secret_key(line).is_some());
    if continued { "…".to_owned() } else { source.to_owned() }
}

/// Where the first word ends that names a secret, also a misspelt one, or a URL with a password in it.
fn secret_key(line: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let mut end = 0;
    while let Some(start) = line[end..].find(is_word).map(|at| end + at) {
        end = line[start..].find(|c| !is_word(c)).map_or(line.len(), |at| start + at);
        let word = line[start..end].to_ascii_lowercase();
        let secret = ["token", "secret", "password"].iter().any(|part| word.contains(part))
            || nearest(&word, ["access_token"].into_iter()).is_some();
        let url = matches!(word.as_str(), "url" | "media_url") && line[end..].contains('@');
        let quoted = line[..start].matches(['"', '\'']).count() % 2 == 1;
        let rest = line[end..].trim_start_matches(['"', '\'']).trim_start();
        let is_key = !quoted || rest.starts_with(['=', ':']);
        if is_key && (url || secret && !word.ends_with("_file")) {
            return Some(end);
        }
    }
    None
}

/// The last boundary between characters at or before `at`.
fn floor(text: &str, at: usize) -> usize {
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
    /// For programs: without the source line.
    pub fn as_json(&self) -> serde_json::Value {
        serde_json::json!({ "file": self.file, "line": self.line, "column": self.column, "message": self.text })
    }

    /// One line without its source, for logs and answers.
    pub fn line(&self) -> String {
        format!("{}:{}:{}: {}", self.file, self.line, self.column, self.text)
    }
}

impl LoadError {
    pub(super) fn mistakes(path: &Path, text: &str, mistakes: &[ConfigError]) -> Self {
        Self {
            file: path.to_owned(),
            problem: None,
            mistakes: mistakes.iter().map(|mistake| Diagnostic::at(path, text, mistake)).collect(),
        }
    }

    fn problem(path: &Path, problem: impl Into<String>) -> Self {
        Self { file: path.to_owned(), problem: Some(problem.into()), mistakes: Vec::new() }
    }

    /// Each mistake for programs; one that is in no line has the file and the message alone.
    pub fn as_json(&self) -> Vec<serde_json::Value> {
        match &self.problem {
            Some(problem) => vec![
                serde_json::json!({ "file": self.file, "line": null, "column": null, "message": problem }),
            ],
            None => self.mistakes.iter().map(Diagnostic::as_json).collect(),
        }
    }

    /// Each mistake as one line without its source, for logs and answers.
    pub fn lines(&self) -> Vec<String> {
        match &self.problem {
            Some(problem) => vec![format!("{}: {problem}", self.file.display())],
            None => self.mistakes.iter().map(Diagnostic::line).collect(),
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(problem) = &self.problem {
            return write!(f, "{}: {problem}", self.file.display());
        }
        for found in &self.mistakes {
            writeln!(f, "{found}")?;
        }
        let count = self.mistakes.len();
        write!(f, "{}: {count} mistake{}", self.file.display(), if count == 1 { "" } else { "s" })
    }
}

/// The largest config that is read; 500 jobs are 100 KiB.
const LARGEST: u64 = 4 << 20;

/// Reads the config's bytes, or fails with [`std::io::ErrorKind::FileTooLarge`].
pub fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

pub(super) fn read(path: &Path) -> Result<String, LoadError> {
    let bytes = read_bytes(path).map_err(|error| {
        LoadError::problem(
            path,
            match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "there is no such file: write it (in a container: mount its directory), or name another with --config FILE or $MICROGLIA_CONFIG"
                        .to_owned()
                }
                std::io::ErrorKind::FileTooLarge => {
                    format!("larger than {} MiB: is this the config file?", LARGEST >> 20)
                }
                std::io::ErrorKind::IsADirectory => {
                    "this is a directory: name the config file in it".to_owned()
                }
                std::io::ErrorKind::PermissionDenied => {
                    format!("not readable for {}: use sudo, or the daemon's own user", this_user())
                }
                _ => format!("cannot be read: {error}"),
            },
        )
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.split(|byte| *byte == b'\n').count();
        let column = String::from_utf8_lossy(good.rsplit(|byte| *byte == b'\n').next().unwrap_or_default()).chars().count() + 1;
        LoadError::problem(path, format!("line {line}, column {column}: this byte is not UTF-8, as TOML has to be: save the file as UTF-8"))
    })
}

pub(super) fn syntax(error: &toml::de::Error) -> ConfigError {
    let text = match error.message() {
        message if message.contains("duplicate key") => {
            "this name is used twice: keep one of them".to_owned()
        }
        // The parser takes a word without quotes that begins with t or f for a slip in true or false.
        message if message.starts_with("invalid boolean") => {
            "expected true or false, or a string in quotes".to_owned()
        }
        message => message.lines().collect::<Vec<_>>().join(", "),
    };
    ConfigError::new(error.span().unwrap_or(0..0), text)
}
