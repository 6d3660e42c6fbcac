//! `microglia kinds`: what each kind does, and its keys.

use super::failure::Failure;
use super::output::print;
use crate::config::TABLES;
use crate::jobs::job::Kind;
use crate::jobs::{KINDS, kind};
use crate::values::schema::Key;
use crate::values::text::unknown;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Only this kind, with the keys that every job takes.
    kind: Option<String>,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let Some(name) = &options.kind else {
        let mut text = String::new();
        for kind in KINDS {
            text.push_str(&described(kind));
        }
        text.push_str("`microglia kinds KIND` also shows the keys that every job takes.\n");
        return print(&text);
    };
    let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let kind = kind(name).ok_or_else(|| Failure::Usage(unknown("kind", name, &names)))?;
    let mut text = described(kind);
    for (table, keys) in TABLES {
        text.push_str(&match *table {
            "" => "at the top of the file\n\n".to_owned(),
            table => format!("[{table}]\n\n"),
        });
        text.extend(
            keys.iter()
                .filter(|key| kind.counts || !matches!(key.name, "max_changes" | "at_most"))
                .map(|key| match (key.name, kind.max_changes) {
                    ("max_changes", Some(own)) => key_with_default(key, Some(&own.to_string())),
                    _ => key_described(key),
                }),
        );
    }
    print(&text)
}

fn described(kind: &Kind) -> String {
    let mut text = format!("{}\n\n{}\n", kind.name, wrapped(kind.about, "  "));
    if kind.needs.synapse.0 > 0 {
        text.push_str(&format!("  Requires Synapse {} or later.\n", kind.needs.synapse));
    }
    if !kind.counts {
        text.push_str(
            "  Cannot count items in advance: max_changes and at_most are not supported.\n",
        );
    }
    if let Some(max_changes) = kind.max_changes {
        text.push_str(&format!("  max_changes is {max_changes} by default.\n"));
    }
    text.push('\n');
    text.extend(kind.keys.iter().map(key_described));
    text
}

fn key_described(key: &Key) -> String {
    key_with_default(key, key.default)
}

fn key_with_default(key: &Key, default: Option<&str>) -> String {
    let default = match (key.required, default) {
        (true, _) => "required".to_owned(),
        (false, Some(default)) => format!("default {default}"),
        (false, None) => "optional".to_owned(),
    };
    let range = key
        .range
        .map(|(least, greatest)| format!(", from {least} to {greatest}"))
        .unwrap_or_default();
    let value = (key.value)();
    format!("  {} ({default}): {value}{range}\n{}\n", key.name, wrapped(key.about, "      "))
}

pub(super) fn wrapped(text: &str, indent: &str) -> String {
    let mut lines = String::new();
    let mut width = usize::MAX;
    for word in text.split_whitespace() {
        if width.saturating_add(word.len() + 1) > 96 {
            if !lines.is_empty() {
                lines.push('\n');
            }
            lines.push_str(indent);
            width = indent.len();
        } else {
            lines.push(' ');
            width += 1;
        }
        lines.push_str(word);
        width += word.len();
    }
    lines.push('\n');
    lines
}
