//! The files of a configuration in one row, so that a span says in which of them it is.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::Diagnostic;
use crate::values::schema::ConfigError;

/// The texts of all files: spans count on from one file to the next, beginning with the main file at 0.
pub(super) struct Sources<'t> {
    files: Vec<Source<'t>>,
}

struct Source<'t> {
    path: &'t Path,
    text: &'t str,
    /// Where its spans begin.
    base: usize,
}

impl<'t> Sources<'t> {
    pub fn new(main: &'t Path, text: &'t str) -> Self {
        Self { files: vec![Source { path: main, text, base: 0 }] }
    }

    /// Appends a file, and returns where its spans begin.
    pub fn add(&mut self, path: &'t Path, text: &'t str) -> usize {
        // The end of a text is a place in it, too: that of a string without its closing quote.
        let base = self.files.last().map_or(0, |last| last.base + last.text.len() + 1);
        self.files.push(Source { path, text, base });
        base
    }

    pub fn main(&self) -> &'t Path {
        self.file_at(0).path
    }

    /// The files that the main file includes, in the order in which they were read.
    pub fn included(&self) -> Vec<PathBuf> {
        self.files.iter().skip(1).map(|file| file.path.to_owned()).collect()
    }

    /// The file that a span is in.
    pub fn path_of(&self, span: &Range<usize>) -> &'t Path {
        self.file_at(span.start).path
    }

    pub fn diagnostic(&self, error: &ConfigError) -> Diagnostic {
        let Source { path, text, base } = self.file_at(error.span.start);
        let span = error.span.start - base..error.span.end.saturating_sub(*base);
        Diagnostic::at(path, text, &ConfigError { span, text: error.text.clone() })
    }

    /// `FILE:LINE:COLUMN` of a span.
    pub fn location(&self, span: &Range<usize>) -> String {
        let Diagnostic { file, line, column, .. } =
            self.diagnostic(&ConfigError::new(span.clone(), ""));
        format!("{file}:{line}:{column}")
    }

    fn file_at(&self, at: usize) -> &Source<'t> {
        let after = self.files.partition_point(|file| file.base <= at);
        &self.files[after.saturating_sub(1)]
    }
}

/// The same error in a text that begins at `base`.
pub(super) fn shifted(error: ConfigError, base: usize) -> ConfigError {
    ConfigError { span: moved(&error.span, base), ..error }
}

/// The same table in a text that begins at `base`.
pub(super) fn shifted_table(table: DeTable<'_>, base: usize) -> DeTable<'_> {
    table
        .into_iter()
        .map(|(key, value)| {
            (Spanned::new(moved(&key.span(), base), key.into_inner()), shifted_value(value, base))
        })
        .collect()
}

fn shifted_value(value: Spanned<DeValue<'_>>, base: usize) -> Spanned<DeValue<'_>> {
    let span = moved(&value.span(), base);
    let value = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shifted_table(table, base)),
        DeValue::Array(items) => {
            DeValue::Array(items.into_iter().map(|item| shifted_value(item, base)).collect())
        }
        scalar => scalar,
    };
    Spanned::new(span, value)
}

fn moved(span: &Range<usize>, base: usize) -> Range<usize> {
    span.start + base..span.end + base
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_shown_in_the_file_that_it_is_in() {
        let (main, other) = (Path::new("main.toml"), Path::new("other.toml"));
        let mut sources = Sources::new(main, "a = 1\n");
        let base = sources.add(other, "\nb = [2, { c = \"ü\" }]");
        let (root, _) = DeTable::parse_recoverable("\nb = [2, { c = \"ü\" }]");
        let root = shifted_table(root.into_inner(), base);
        assert_eq!(sources.location(&(4..5)), "main.toml:1:5");
        assert_eq!(sources.location(&(6..6)), "main.toml:2:1");
        let c = root["b"].get_ref().get(1).and_then(|item| item.get_ref().get("c")).unwrap();
        assert_eq!(sources.location(&c.span()), "other.toml:2:15");
        let end = sources.diagnostic(&ConfigError::new(base + 22..base + 22, "no end"));
        assert_eq!(end.line(), "other.toml:2:21: no end");
    }
}
