//! The keys of a job as they are written, for people to read.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Returns each key with its value as TOML, in the order of the file.
pub(super) fn written(table: &DeTable<'_>) -> Vec<(String, String)> {
    table.iter().map(|(key, value)| (key.get_ref().to_string(), text(value))).collect()
}

fn text(value: &Spanned<DeValue<'_>>) -> String {
    match value.get_ref() {
        DeValue::String(text) => serde_json::Value::from(text.as_ref()).to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) => {
            let items: Vec<String> = items.iter().map(text).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Table(table) => {
            let entries = written(table).into_iter().map(|(key, value)| format!("{key} = {value}"));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}
