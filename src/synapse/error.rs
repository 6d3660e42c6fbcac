//! What went wrong between us and a homeserver, and what may be done about it.

use std::fmt;
use std::time::Duration;

use reqwest::Method;

use crate::values::size::Size;

/// A request that did not get the answer it was sent for.
#[derive(Debug, Clone, thiserror::Error)]
pub struct Error {
    pub method: Method,
    /// The path as it was sent, without the query.
    pub path: String,
    pub cause: Cause,
    /// What the administrator can do, where that is known.
    pub advice: Option<String>,
}

#[derive(Debug, Clone)]
pub enum Cause {
    /// The request was never sent.
    Unreachable(String),
    /// The request could not be built, as with a token that no header can carry: it was never sent.
    NotSent(String),
    /// The run ended while the request waited for its turn or was asked to wait: it did nothing.
    Cancelled,
    /// The request was sent, and no whole answer came back: Synapse may have done it, or be doing it still.
    Lost(String),
    /// The answer is larger than its endpoint's limit, and was not read to its end.
    TooLarge(Size),
    /// Synapse's own error envelope.
    Synapse { status: u16, errcode: String, error: String, retry_after: Option<Duration> },
    /// An error without Matrix's envelope: something in front of Synapse answered.
    NotSynapse { status: u16, excerpt: String, retry_after: Option<Duration> },
    /// The answer is not what this endpoint answers.
    Undecodable { problem: String, excerpt: String },
    /// The answer says that something happened which must not.
    Unexpected(String),
    /// The answer differs from what was sent, for this one target.
    Contradicted(String),
    /// The target is not what it was when its state was recorded: the change was not made.
    Changed,
}

impl Error {
    /// The answer to a change of `user_id` differs from what was sent.
    pub fn contradicted(user_id: &str, problem: &str) -> Self {
        Self {
            method: Method::PUT,
            path: user_id.to_owned(),
            cause: Cause::Contradicted(problem.to_owned()),
            advice: None,
        }
    }

    /// The same for a request that must not be sent a second time, although nobody knows what became of it.
    #[must_use]
    pub fn never_again(self) -> Self {
        let problem = format!(
            "{}; whether Synapse did it is not known, and it is not sent again because `repeatable` is false",
            self.message()
        );
        Self { cause: Cause::Unexpected(problem), ..self }
    }

    /// Whether trying the whole run again later may help.
    pub fn is_transient(&self) -> bool {
        match &self.cause {
            Cause::Unreachable(_)
            | Cause::Cancelled
            | Cause::Lost(_)
            | Cause::Undecodable { .. } => true,
            Cause::Synapse { status, .. } => {
                matches!(status, 429 | 502..=504)
                    || (*status == 500 && self.method == Method::GET && !self.is_about_token())
            }
            Cause::NotSynapse { status, .. } => matches!(status, 408 | 429 | 500..=599),
            Cause::NotSent(_)
            | Cause::TooLarge(_)
            | Cause::Unexpected(_)
            | Cause::Contradicted(_)
            | Cause::Changed => false,
        }
    }

    /// Whether only the target of this one change is concerned, so that others can go on.
    pub fn is_about_target(&self) -> bool {
        match &self.cause {
            Cause::Synapse { status, errcode, .. } => {
                !self.is_transient()
                    && !self.is_about_token()
                    && (400..=500).contains(status)
                    && !matches!(
                        errcode.as_str(),
                        "M_UNRECOGNIZED"
                            | "M_RESOURCE_LIMIT_EXCEEDED"
                            | "M_CONSENT_NOT_GIVEN"
                            | "M_MISSING_PARAM"
                            | "M_NOT_JSON"
                    )
            }
            Cause::Contradicted(_) | Cause::Changed => true,
            _ => false,
        }
    }

    /// Whether the token is dead, locked out, or no server admin's: nothing will work until a person acts.
    pub fn is_about_token(&self) -> bool {
        match &self.cause {
            Cause::Synapse { status: 401, .. } => true,
            Cause::Synapse { status: 403, error, .. } => error == NOT_ADMIN,
            Cause::Synapse { status: 500, errcode, error, .. } => {
                error.starts_with("Invalid username claim") || is_no_account(errcode, error)
            }
            _ => false,
        }
    }

    /// Whether the endpoint is not registered in the process that answered: too old, MAS, or another worker.
    pub fn is_unrecognized(&self) -> bool {
        matches!(&self.cause, Cause::Synapse { errcode, .. } if errcode == "M_UNRECOGNIZED")
    }

    pub fn is_not_found(&self) -> bool {
        matches!(&self.cause, Cause::Synapse { status: 404, errcode, .. } if errcode == "M_NOT_FOUND")
    }

    /// Whether the request may have been carried out, or may be at work still, although no good answer came.
    pub fn may_have_taken_effect(&self) -> bool {
        match &self.cause {
            Cause::Lost(_) | Cause::TooLarge(_) | Cause::Undecodable { .. } => true,
            Cause::NotSynapse { status, .. } => *status >= 500,
            // A process of Synapse that waits for another one answers with these.
            Cause::Synapse { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }

    /// How long the homeserver asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match &self.cause {
            Cause::Synapse { retry_after, .. } | Cause::NotSynapse { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }

    /// Whether this is no answer of Synapse: it is down, or something in front of it says so.
    pub(super) fn is_silence(&self) -> bool {
        match &self.cause {
            Cause::Unreachable(_) | Cause::Lost(_) => true,
            Cause::NotSynapse { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }

    pub(super) fn is_limited(&self) -> bool {
        matches!(
            &self.cause,
            Cause::Synapse { status: 429, .. } | Cause::NotSynapse { status: 429, .. }
        )
    }

    /// Synapse's own words, or the nearest thing to them.
    pub fn message(&self) -> String {
        match &self.cause {
            Cause::Unreachable(problem) => format!("not reachable: {problem}"),
            Cause::NotSent(problem) => {
                format!("the request cannot be built, and was not sent: {problem}")
            }
            Cause::Cancelled => "the run ended while this waited to be sent".to_owned(),
            Cause::Lost(problem) => format!("the answer was lost: {problem}"),
            Cause::TooLarge(most) => {
                format!(
                    "the answer is larger than {most}, the most that is read from this endpoint"
                )
            }
            Cause::Synapse { status, errcode, error, .. } => format!("{status} {errcode}: {error}"),
            Cause::NotSynapse { status, excerpt, .. } if excerpt.is_empty() => {
                format!("{status} with an empty body, which is not Synapse's way to say no")
            }
            Cause::NotSynapse { status, excerpt, .. } => {
                format!("{status} from something that is not Synapse: {excerpt}")
            }
            Cause::Undecodable { problem, excerpt } => {
                format!("cannot read the answer ({problem}): {excerpt}")
            }
            Cause::Unexpected(problem) | Cause::Contradicted(problem) => problem.clone(),
            Cause::Changed => {
                "somebody else changes this account again and again: it was left as it is"
                    .to_owned()
            }
        }
    }
}

/// Whether Synapse, with status 500, says that it does not have the account that MAS named for the token.
pub(super) fn is_no_account(errcode: &str, error: &str) -> bool {
    errcode == "M_FORBIDDEN" && error == "User not found"
}

pub(super) const NOT_ADMIN: &str = "You are not a server admin";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self.message();
        write!(f, "{} {}: ", self.method, self.path)?;
        match &self.advice {
            Some(advice) => write!(f, "{}. {advice}", words.trim_end_matches('.')),
            None => f.write_str(&words),
        }
    }
}

/// The beginning of a body, on one line, for an error message.
pub(super) fn excerpt(body: &[u8]) -> String {
    const LONGEST: usize = 160;
    line(&String::from_utf8_lossy(&body[..body.len().min(4 * LONGEST)]), LONGEST)
}

/// A text that somebody else wrote, on one line without control characters, cut off after so many characters.
pub(super) fn line(text: &str, longest: usize) -> String {
    // Each character takes four bytes at most, and whitespace in a row becomes one space.
    let text: String = text.chars().take(8 * longest).collect();
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// What a page of a proxy says: its title, else its first words.
pub(super) fn title(body: &[u8]) -> String {
    const LONGEST: usize = 100;
    const LOOKED_AT: usize = 16 * 1024;
    let text = String::from_utf8_lossy(&body[..body.len().min(LOOKED_AT)]);
    if !text.trim_start().starts_with('<') {
        return line(&text, LONGEST);
    }
    let lower = text.to_ascii_lowercase();
    let title = lower.find("<title").and_then(|start| {
        let start = start + lower[start..].find('>')? + 1;
        let end = start + lower[start..].find("</title")?;
        Some(&text[start..end])
    });
    line(&without_tags(title.unwrap_or(&text)), LONGEST)
}

/// The text between the tags of a page, without scripts and styles.
fn without_tags(page: &str) -> String {
    let (mut text, mut rest) = (String::new(), page);
    while let Some((before, tag)) = rest.split_once('<') {
        text.extend([before, " "]);
        let end = match tag.get(..5).map(str::to_ascii_lowercase).as_deref() {
            Some("style") => "</style>",
            Some("scrip") => "</script>",
            _ => ">",
        };
        rest = tag.split_once(end).map_or("", |(_, after)| after);
    }
    text + rest
}
