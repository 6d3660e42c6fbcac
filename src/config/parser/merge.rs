//! Putting tables together: of several files, and those of defaults below those that override them.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{INCLUDED_TABLES, Parser, TABLES};
use crate::values::schema::{Key, wrong_type};

impl Parser<'_> {
    /// Adds the homeservers and jobs of an included file to those of the files before it.
    pub(in super::super) fn include<'i>(&mut self, root: &mut DeTable<'i>, file: DeTable<'i>) {
        for (key, value) in file {
            let name = key.get_ref().clone();
            if !INCLUDED_TABLES.contains(&name.as_ref()) {
                self.reject_in_included(&key);
                continue;
            }
            let span = value.span();
            if value.get_ref().as_table().is_none() {
                self.errors.push(wrong_type(&value, &format!("a table [{name}]")));
                continue;
            }
            let all = root
                .entry(key)
                .or_insert_with(|| Spanned::new(span, DeValue::Table(DeTable::new())));
            // What else the main file may have there is reported when it is parsed.
            let (DeValue::Table(all), DeValue::Table(table)) = (all.get_mut(), value.into_inner())
            else {
                continue;
            };
            let what = name.trim_end_matches('s').to_owned();
            for (name, value) in table {
                self.add_named(all, &what, name, value);
            }
        }
    }

    fn add_named<'i>(
        &mut self,
        all: &mut DeTable<'i>,
        what: &str,
        name: Spanned<Cow<'i, str>>,
        value: Spanned<DeValue<'i>>,
    ) {
        let Some((first, _)) = all.get_key_value(name.get_ref().as_ref()) else {
            all.insert(name, value);
            return;
        };
        let (text, first) = (name.get_ref(), self.sources.location(&first.span()));
        let text =
            format!("{what} `{text}` is already defined at {first}: rename or remove one of them");
        self.error(name.span(), text);
    }

    fn reject_in_included(&mut self, key: &Spanned<Cow<'_, str>>) {
        let name = key.get_ref().as_ref();
        let main = self.sources.main().display();
        if name == "include" {
            let text = format!("an included file cannot include others: name them in {main}");
            self.error(key.span(), text);
        } else if TABLES.contains(&name) {
            let text = format!("[{name}] is not allowed in an included file: move it to {main}");
            self.error(key.span(), text);
        } else {
            self.reject_unknown_table(key, &INCLUDED_TABLES);
        }
    }
}

/// A table over the defaults for its keys; inline tables are merged key by key.
pub(super) fn merge<'i>(defaults: &DeTable<'i>, allowed: &[Key], own: &DeTable<'i>) -> DeTable<'i> {
    // What is wrong in the defaults is reported once, there.
    let mut merged: DeTable<'i> = defaults
        .iter()
        .filter(|(key, _)| allowed.iter().any(|allowed| allowed.name == key.get_ref().as_ref()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (key, value) in own {
        let default = merged.get(key.get_ref().as_ref());
        let both =
            (default.and_then(|default| default.get_ref().as_table()), value.get_ref().as_table());
        let value = match both {
            (Some(default), Some(table)) => {
                Spanned::new(value.span(), DeValue::Table(override_keys(default, table)))
            }
            _ => value.clone(),
        };
        merged.remove(key.get_ref().as_ref());
        merged.insert(key.clone(), value);
    }
    merged
}

fn override_keys<'i>(defaults: &DeTable<'i>, own: &DeTable<'i>) -> DeTable<'i> {
    let mut merged = defaults.clone();
    for (key, value) in own {
        merged.remove(key.get_ref().as_ref());
        merged.insert(key.clone(), value.clone());
    }
    merged
}
