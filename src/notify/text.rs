//! The text of a message, as plain text and as HTML.

use serde_json::{Value, json};

use crate::http::one_line;

/// The longest line: an error may quote a page.
const MAX_LINE: usize = 600;
/// After so many bytes in both forms no line is added: an event may have 64 KiB, and JSON escapes some of them.
const MAX_BYTES: usize = 30_000;

/// A message while it is written, line by line.
#[derive(Debug, Default)]
pub(super) struct Text {
    plain: String,
    html: String,
    in_list: bool,
}

/// A part of a line. None of it is trusted.
pub(super) enum Part<'a> {
    Plain(&'a str),
    Bold(&'a str),
    Code(&'a str),
    Link { text: &'a str, url: &'a str },
}

use Part::{Bold, Code, Link, Plain};

impl Text {
    pub(super) fn line(&mut self, parts: &[Part<'_>]) {
        self.end_list();
        if !self.begin_line() {
            return;
        }
        if !self.html.is_empty() && !self.html.ends_with("</ul>") {
            self.html.push_str("<br>");
        }
        self.parts(parts);
    }

    pub(super) fn item(&mut self, parts: &[Part<'_>]) {
        if !self.begin_line() {
            return;
        }
        if !self.in_list {
            self.html.push_str("<ul>");
            self.in_list = true;
        }
        self.plain.push_str("- ");
        self.html.push_str("<li>");
        self.parts(parts);
        self.html.push_str("</li>");
    }

    fn begin_line(&mut self) -> bool {
        if self.plain.len() + self.html.len() > MAX_BYTES {
            return false;
        }
        if !self.plain.is_empty() {
            self.plain.push('\n');
        }
        true
    }

    fn end_list(&mut self) {
        if std::mem::take(&mut self.in_list) {
            self.html.push_str("</ul>");
        }
    }

    fn parts(&mut self, parts: &[Part<'_>]) {
        for part in parts {
            let (Plain(text) | Bold(text) | Code(text) | Link { text, .. }) = part;
            let spaced = |text: &str| {
                // Spaces around a part are the program's own.
                let line = one_line(text, MAX_LINE);
                let before = if text.starts_with(' ') { " " } else { "" };
                let after = if text.ends_with(' ') && !line.is_empty() { " " } else { "" };
                format!("{before}{line}{after}")
            };
            let text = without_controls(&spaced(text));
            let html = escaped(&text);
            match part {
                Plain(_) => {
                    self.plain.push_str(&text);
                    self.html.push_str(&html);
                }
                Bold(_) => {
                    self.plain.push_str(&text);
                    self.html.push_str(&format!("<strong>{html}</strong>"));
                }
                Code(_) => {
                    self.plain.push_str(&text);
                    self.html.push_str(&format!("<code>{html}</code>"));
                }
                Link { url, .. } => {
                    self.plain.push_str(&format!("{text}: {url}"));
                    self.html.push_str(&format!("<a href=\"{}\">{html}</a>", escaped(url)));
                }
            }
        }
    }

    /// The content of an event. An urgent one notifies people: the default push rules ignore notices.
    ///
    /// `m.mentions` keeps clients from taking `@room` or a name in an error for a mention.
    pub(super) fn into_content(mut self, urgency: Urgency, reply_to: Option<&str>) -> Value {
        self.end_list();
        let msgtype = match urgency {
            Urgency::Notify => "m.text",
            Urgency::Quiet => "m.notice",
        };
        let mut content = json!({
            "msgtype": msgtype,
            "body": self.plain,
            "format": "org.matrix.custom.html",
            "formatted_body": self.html,
            "m.mentions": {},
        });
        if let Some(event_id) = reply_to {
            content["m.relates_to"] = json!({ "m.in_reply_to": { "event_id": event_id } });
        }
        content
    }
}

/// Whether a message makes clients notify people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    Notify,
    Quiet,
}

/// Bidirectional controls would change the order of what follows.
fn without_controls(text: &str) -> String {
    text.chars()
        .filter(|c| !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
        .collect()
}

fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same_and_nothing_in_them_is_markup() {
        let mut text = Text::default();
        text.line(&[Bold("a failed"), Plain(", run 3")]);
        text.line(&[Plain("<img src=x> \"@room\"\u{202e}\nsecond line")]);
        text.item(&[Code("a&b"), Plain(": 2")]);
        text.item(&[Plain("c")]);
        text.line(&[Link { text: "run 3", url: "https://x.example/runs/3?a=\"&b" }]);
        let content = text.into_content(Urgency::Notify, Some("$event"));
        assert_eq!(
            content["body"],
            "a failed, run 3\n<img src=x> \"@room\" second line\n- a&b: 2\n- c\nrun 3: https://x.example/runs/3?a=\"&b"
        );
        assert_eq!(
            content["formatted_body"],
            "<strong>a failed</strong>, run 3<br>&lt;img src=x&gt; &quot;@room&quot; second line<ul><li><code>a&amp;b</code>: 2</li><li>c</li></ul><a href=\"https://x.example/runs/3?a=&quot;&amp;b\">run 3</a>"
        );
        assert_eq!(content["m.mentions"], json!({}));
        assert_eq!(content["m.relates_to"], json!({"m.in_reply_to": {"event_id": "$event"}}));
    }

    #[test]
    fn a_message_of_any_length_fits_into_an_event() {
        let mut text = Text::default();
        for _ in 0..500 {
            text.item(&[Plain(&"<\u{1f600}".repeat(2000))]);
        }
        let content = text.into_content(Urgency::Quiet, None).to_string();
        assert!(content.len() < 60_000, "{}", content.len());
    }
}
