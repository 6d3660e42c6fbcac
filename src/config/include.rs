//! The files that `include` names: which there are, and what is in them.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;
use toml::de::DeTable;

use super::source::{MAX_BYTES, beside, read_bytes};
use crate::history::state_dir::this_user;
use crate::values::glob::{Glob, is_glob};
use crate::values::lock_file::identity;
use crate::values::schema::{ConfigError, Table, schema, text_values};
use crate::values::text::format_number;

/// How many files may be included: one for each of many thousands of homeservers.
const MAX_FILES: usize = 10_000;
/// How large they may be together.
const MAX_TOTAL_BYTES: u64 = 32 << 20;

schema! {
    pub entries RootKeys {
        /// More files of the same form: paths beside this file, whose file names may be globs with * and ?, read in alphabetical order. They contain homeservers and jobs, whose names are unique over all files.
        pub include: Vec<IncludePattern> = "[]",
    }
}

/// A path of `include`, whose file name may be a glob.
#[derive(Debug, Clone)]
pub struct IncludePattern {
    dir: PathBuf,
    name: String,
}

impl FromStr for IncludePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (dir, name) = text.rsplit_once('/').map_or(("", text), |(dir, name)| {
            // That of a file in the root directory.
            (if dir.is_empty() { "/" } else { dir }, name)
        });
        if name.is_empty() || matches!(name, "." | "..") {
            return Err(format!(
                "{text:?} names no file: add a file name or a glob, such as \"homeservers.d/*.toml\""
            ));
        }
        if is_glob(dir) {
            return Err(format!(
                "{text:?} has a glob in the name of a directory: only the file name may contain * and ?"
            ));
        }
        Ok(Self { dir: dir.into(), name: name.to_owned() })
    }
}

text_values! { IncludePattern: "a path such as \"homeservers.d/*.toml\""; }

/// A file that the main file includes.
pub(super) struct IncludedFile {
    pub path: PathBuf,
    pub text: String,
    /// What is wrong with its text before it is parsed, at this byte.
    pub problem: Option<(usize, &'static str)>,
}

/// Reads what the main file, parsed as `root`, includes: in alphabetical order, each file once, never the main file.
///
/// Errors and warnings are about the value of `include`.
pub(super) fn read_included(
    main: &Path,
    root: &DeTable<'_>,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<ConfigError>,
) -> Vec<IncludedFile> {
    let patterns = RootKeys::parse(&Table::new(root, 0..0), errors).include;
    let spans = spans(root, &patterns.span);
    let mut known: HashSet<PathBuf> = HashSet::new();
    let (mut included, mut total) = (Vec::new(), 0);
    for (pattern, span) in patterns.value.unwrap_or_default().iter().zip(spans) {
        let paths = match pattern.paths(main) {
            Ok(paths) => paths,
            Err(text) => {
                errors.push(ConfigError::new(span, text));
                continue;
            }
        };
        if paths.is_empty() {
            warnings.push(ConfigError::new(span.clone(), pattern.no_match(main)));
        }
        for path in paths {
            if included.len() == MAX_FILES || total > MAX_TOTAL_BYTES {
                errors.push(ConfigError::new(span, too_much()));
                return included;
            }
            if !known.insert(path.clone()) {
                continue;
            }
            match read(path) {
                Ok(file) => {
                    total += file.text.len() as u64;
                    included.push(file);
                }
                Err(text) => errors.push(ConfigError::new(span.clone(), text)),
            }
        }
    }
    included
}

/// Where each item of the list is.
fn spans(root: &DeTable<'_>, whole: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let items = root.get("include").and_then(|value| value.get_ref().as_array());
    let items: Vec<Range<usize>> =
        items.into_iter().flat_map(|items| items.iter().map(Spanned::span)).collect();
    items.into_iter().chain(std::iter::repeat(whole.clone()))
}

fn too_much() -> String {
    format!(
        "more than {} files or {} MiB are included: put several homeservers into one file, or fix `include`",
        format_number(MAX_FILES as u64),
        MAX_TOTAL_BYTES >> 20
    )
}

impl IncludePattern {
    /// The directory, beside the main file if it is relative.
    fn dir(&self, main: &Path) -> PathBuf {
        beside(main, &self.dir)
    }

    /// The files that the pattern names, in alphabetical order; a name without a glob need not exist.
    ///
    /// As in a shell, a glob does not match names that begin with a dot: Kubernetes and editors keep other things there.
    fn paths(&self, main: &Path) -> Result<Vec<PathBuf>, String> {
        let dir = self.dir(main);
        if !is_glob(&self.name) {
            return Ok(vec![dir.join(&self.name)]);
        }
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::PermissionDenied => format!(
                "the directory {} is not readable by {}: make it readable for a group of that user (chgrp, chmod 750)",
                dir.display(),
                this_user()
            ),
            _ => format!("the directory {} cannot be read: {error}", dir.display()),
        };
        let entries =
            match fs::read_dir(if dir.as_os_str().is_empty() { Path::new(".") } else { &dir }) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(failed(error)),
            };
        let Ok(glob) = self.name.parse::<Glob>();
        let mut paths = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let text = name.to_string_lossy();
            let is_hidden = text.starts_with('.') && !self.name.starts_with('.');
            let path = dir.join(&name);
            if is_hidden || !glob.matches(&text) || is_same(&path, main) {
                continue;
            }
            if paths.len() > MAX_FILES {
                return Err(too_much());
            }
            paths.push(path);
        }
        paths.sort();
        Ok(paths)
    }

    fn no_match(&self, main: &Path) -> String {
        let dir = self.dir(main);
        let (name, dir) =
            (&self.name, if dir.as_os_str().is_empty() { "." } else { &dir.display().to_string() });
        match Path::new(dir).exists() {
            true => format!("no file in {dir} matches \"{name}\": nothing is included"),
            false => format!("the directory {dir} does not exist: nothing is included"),
        }
    }
}

/// Whether both are one file, which `include = ["*.toml"]` finds as well.
fn is_same(path: &Path, main: &Path) -> bool {
    path == main || identity(path).is_some_and(|found| identity(main) == Some(found))
}

fn read(path: PathBuf) -> Result<IncludedFile, String> {
    let file = path.display();
    let read = fs::metadata(&path).and_then(|metadata| match metadata.is_file() {
        true => read_bytes(&path),
        false => Err(std::io::Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
    });
    let bytes = read.map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("{file} does not exist: create it, or fix `include`"),
        ErrorKind::FileTooLarge => {
            format!("{file} is larger than {} MiB: is it a configuration file?", MAX_BYTES >> 20)
        }
        ErrorKind::PermissionDenied => {
            format!("{file} is not readable by {}: make it readable for a group of that user (chgrp, chmod 640)", this_user())
        }
        _ => format!("{file} cannot be read: {error}"),
    })?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => IncludedFile { path, text, problem: None },
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            IncludedFile {
                path,
                text,
                problem: Some((at, "invalid UTF-8: save the file as UTF-8")),
            }
        }
    })
}
