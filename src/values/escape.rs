//! Escapes untrusted text for terminals and line-based logs.

use std::borrow::Cow;
use std::fmt;

/// Escapes everything that could control a terminal or start another line: `\n`, `\u{1b}`.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe)
}

/// Escapes as [`line()`] does, but keeps line breaks and tabs, which must come from the program itself.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_unsafe(c) && !matches!(c, '\n' | '\t'))
}

/// A writer that escapes as [`line()`] does.
pub struct Line<W>(pub W);

impl<W: fmt::Write> fmt::Write for Line<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(&line(text))
    }
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// C0, DEL and C1; the separators of lines and paragraphs; and the bidirectional controls.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_letters_of_all_languages_kept() {
        assert_eq!(
            line("a\u{1b}[2J\u{7f}\u{9b}b\r\n\tc\u{2028}\u{202e}\u{2066}"),
            r"a\u{1b}[2J\u{7f}\u{9b}b\r\n\tc\u{2028}\u{202e}\u{2066}"
        );
        let harmless = r#"née "☃" שלום \u{1b}"#;
        assert!(matches!(line(harmless), Cow::Borrowed(text) if text == harmless));
    }

    #[test]
    fn lines_keeps_line_breaks_and_tabs() {
        assert_eq!(lines("a\n\tb\r\u{1b}c\n"), "a\n\tb\\r\\u{1b}c\n");
    }
}
