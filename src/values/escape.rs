//! Makes text from elsewhere harmless for terminals and line-based logs.

use std::borrow::Cow;
use std::fmt;

/// Escapes everything that could steer a terminal or begin another line: `\n`, `\u{1b}`.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, steers)
}

/// Escapes as [`line`] does, but keeps the line breaks and tabs that the program itself wrote.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| steers(c) && !matches!(c, '\n' | '\t'))
}

/// Escapes all that is written through it, as [`line`] does.
pub struct Line<W>(pub W);

impl<W: fmt::Write> fmt::Write for Line<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(&line(text))
    }
}

fn escaped(text: &str, must_go: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&must_go) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if must_go(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// C0, DEL and C1; the separators of lines and paragraphs; and what reorders the text around it.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped_and_letters_of_all_languages_stay() {
        assert_eq!(
            line("a\u{1b}[2J\u{7f}\u{9b}b\r\n\tc\u{2028}\u{202e}\u{2066}"),
            r"a\u{1b}[2J\u{7f}\u{9b}b\r\n\tc\u{2028}\u{202e}\u{2066}"
        );
        let harmless = r#"née "☃" שלום \u{1b}"#;
        assert!(matches!(line(harmless), Cow::Borrowed(text) if text == harmless));
    }

    #[test]
    fn line_breaks_and_tabs_stay_where_the_program_wrote_them() {
        assert_eq!(lines("a\n\tb\r\u{1b}c\n"), "a\n\tb\\r\\u{1b}c\n");
    }
}
