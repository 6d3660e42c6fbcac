//! Errors of the configuration with their location.

use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use crate::values::text::one_of_hint;

/// What is wrong in the configuration, where, and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Bytes of the configuration's text.
    pub span: Range<usize>,
    pub text: String,
}

impl ConfigError {
    pub fn new(span: Range<usize>, text: impl Into<String>) -> Self {
        Self { span, text: text.into() }
    }
}

pub fn unknown_key(span: Range<usize>, name: &str, known: &[&str]) -> ConfigError {
    ConfigError::new(span, format!("unknown key `{name}`{}", one_of_hint(name, known, '`')))
}

pub fn wrong_type(value: &Spanned<DeValue<'_>>, expected: &str) -> ConfigError {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    ConfigError::new(value.span(), format!("expected {expected}, found {found}"))
}
