//! One table of the configuration while it is parsed: each key once, with its location.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, unknown_key};
use super::value::Value;

/// A key as it is documented; defined by `schema!`.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    /// What a user has to write.
    pub value: fn() -> String,
    /// The default as TOML; `None` for a required key and for an optional one.
    pub default: Option<&'static str>,
    pub required: bool,
    /// The least and the greatest value as TOML, for numbers, durations and sizes.
    pub range: Option<(&'static str, &'static str)>,
    /// Whether the value is a number, a duration or a size, which must have a range.
    pub quantity: bool,
    pub about: &'static str,
}

/// A parsed key, also where other keys of its table are wrong.
#[derive(Debug)]
pub struct Entry<T> {
    /// Where the value is; the location of the table where the key is absent.
    pub span: Range<usize>,
    /// Whether the key is in the table.
    pub is_set: bool,
    /// `None` after an error, which has been reported.
    pub value: Option<T>,
}

/// A table of the configuration, and the location at which a missing key is reported.
pub struct Table<'a, 'i> {
    entries: &'a DeTable<'i>,
    pub span: Range<usize>,
    /// What has been parsed so far, in canonical form.
    definition: RefCell<serde_json::Map<String, serde_json::Value>>,
}

impl<'a, 'i> Table<'a, 'i> {
    pub(crate) fn new(entries: &'a DeTable<'i>, span: Range<usize>) -> Self {
        Self { entries, span, definition: RefCell::default() }
    }

    /// The location of the key's value, or of the table where the key is absent.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        self.entries.get(key).map_or_else(|| self.span.clone(), Spanned::span)
    }

    /// Every key that was parsed, with defaults filled in: equal for two spellings of the same values.
    pub(crate) fn definition(self) -> serde_json::Value {
        self.definition.into_inner().into()
    }

    /// Parses one key, within its range; an absent one has its default.
    pub fn entry<T: Value>(
        &self,
        key: &str,
        default: Option<&str>,
        range: Option<(&str, &str)>,
        errors: &mut Vec<ConfigError>,
    ) -> Entry<T> {
        let default = default.and_then(|default| DeValue::parse(default).ok());
        let (value, written) = match (self.entries.get(key), &default) {
            (Some(written), _) => (parse_within(written, range, errors), Some(written)),
            (None, Some(default)) => (T::parse(default, errors), Some(default)),
            (None, None) => (self.absent(key, errors), None),
        };
        if let Some(value) = &value {
            let canonical =
                written.map_or(serde_json::Value::Null, |written| value.canonical(written));
            self.definition.borrow_mut().insert(key.to_owned(), canonical);
        }
        Entry { span: self.span_of(key), is_set: self.entries.contains_key(key), value }
    }

    fn absent<T: Value>(&self, key: &str, errors: &mut Vec<ConfigError>) -> Option<T> {
        let absent = T::absent();
        if absent.is_none() {
            errors.push(ConfigError::new(
                self.span.clone(),
                format!("`{key}` is missing: add `{key} = …`, {}", T::describe()),
            ));
        }
        absent
    }

    /// Reports the keys that are in none of the lists.
    pub fn reject_unknown(&self, known: &[&[Key]], errors: &mut Vec<ConfigError>) {
        let names: Vec<&str> =
            known.iter().flat_map(|keys| keys.iter().map(|key| key.name)).collect();
        for key in self.entries.keys() {
            let name = key.get_ref().as_ref();
            if !names.contains(&name) {
                errors.push(unknown_key(key.span(), name, &names));
            }
        }
    }
}

fn parse_within<T: Value>(
    written: &Spanned<DeValue<'_>>,
    range: Option<(&str, &str)>,
    errors: &mut Vec<ConfigError>,
) -> Option<T> {
    let Some((least, greatest)) = range else { return T::parse(written, errors) };
    let mut own_errors = Vec::new();
    let parsed = T::parse(written, &mut own_errors);
    let out_of_range = match &parsed {
        Some(value) => !value.is_within(least, greatest),
        // A number that does not even fit into its type.
        None => matches!(written.get_ref(), DeValue::Integer(_)) && T::INTEGERS,
    };
    if out_of_range {
        let text = format!("expected {}, from {least} to {greatest}", T::describe());
        errors.push(ConfigError::new(written.span(), text));
        return None;
    }
    errors.append(&mut own_errors);
    parsed
}
