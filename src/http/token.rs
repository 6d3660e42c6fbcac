//! The access token; a file is read again for each request, off the worker thread.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use secrecy::SecretString;

use crate::values::bounded_file::read_bounded;

/// An access token; never shown, not even by `Debug`.
pub struct Token(Source);

enum Source {
    Inline(SecretString),
    File(Arc<TokenFile>),
}

struct TokenFile {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    /// The last valid content of the file.
    token: SecretString,
    /// Why the file has no valid token now; logged when it changes.
    problem: Option<Problem>,
    /// Whether nothing was read since the configuration was loaded.
    is_first: bool,
    /// The read in progress, which concurrent requests share.
    reading: Option<Shared<BoxFuture<'static, ()>>>,
}

/// No token is longer, and no proxy accepts a longer header.
const MAX_BYTES: usize = 8 * 1024;
/// How long a request waits for the file: it may be on a network file system that stalls.
const READ_TIME_LIMIT: Duration = Duration::from_secs(1);

impl Token {
    pub fn inline(token: SecretString) -> Self {
        Self(Source::Inline(token))
    }

    /// For requests before there is a token: none is sent.
    pub fn none() -> Self {
        Self::inline(SecretString::default())
    }

    /// A token that has just been read from `file`.
    ///
    /// A file that is not readable at the first request is not logged: root read it, and has become a user who may not,
    /// which the command that did so reports.
    pub fn from_file(file: PathBuf, token: SecretString) -> Self {
        let state = State { token, problem: None, is_first: true, reading: None };
        Self(Source::File(Arc::new(TokenFile { path: file, state: Mutex::new(state) })))
    }

    /// The token now; the last valid one while its file has none, as during a rotation.
    ///
    /// Waits for the file for at most a second, and not at all while it is known to stall.
    pub async fn current(&self) -> SecretString {
        match &self.0 {
            Source::Inline(token) => token.clone(),
            // Boxed, because this is part of every future that sends a request.
            Source::File(file) => Box::pin(file.current()).await,
        }
    }

    /// What to do when Synapse rejects the token.
    pub(super) fn remedy(&self) -> String {
        match &self.0 {
            Source::File(file) => format!(
                "run `microglia login`, or write a valid token of a server admin to {}; it is used from the next request on",
                file.path.display()
            ),
            Source::Inline(_) => {
                "set `access_token` in the configuration to a valid token of a server admin, and reload"
                    .to_owned()
            }
        }
    }
}

impl TokenFile {
    async fn current(self: &Arc<Self>) -> SecretString {
        let (reading, is_stalled) = self.reading();
        if !is_stalled && tokio::time::timeout(READ_TIME_LIMIT, reading).await.is_err() {
            self.report(&mut self.state(), Problem::Stalled);
        }
        self.state().token.clone()
    }

    /// The read in progress, or a new one; and whether the last one took too long.
    fn reading(self: &Arc<Self>) -> (Shared<BoxFuture<'static, ()>>, bool) {
        let mut state = self.state();
        let is_stalled = state.problem == Some(Problem::Stalled);
        if let Some(reading) = &state.reading {
            return (reading.clone(), is_stalled);
        }
        let file = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || file.read());
        let reading = read.map(drop).boxed().shared();
        state.reading = Some(reading.clone());
        (reading, is_stalled)
    }

    /// Runs on a blocking thread.
    fn read(&self) {
        let read = read_token(&self.path);
        let mut state = self.state();
        state.reading = None;
        let is_first = std::mem::take(&mut state.is_first);
        match read {
            Ok(token) => {
                state.token = token;
                state.problem = None;
            }
            Err(Problem::Forbidden) if is_first => state.problem = Some(Problem::Forbidden),
            Err(problem) => self.report(&mut state, problem),
        }
    }

    /// Logs a problem that is new.
    fn report(&self, state: &mut State, problem: Problem) {
        if state.problem.replace(problem) != Some(problem) {
            tracing::warn!(
                target: "microglia::homeserver",
                "{} {problem}: keeping the previous token until the file contains a valid one or the daemon restarts",
                self.path.display()
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a token file has no valid token.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
enum Problem {
    #[error("is not readable")]
    Forbidden,
    #[error("cannot be read")]
    Unreadable,
    #[error("cannot be read within {} s", READ_TIME_LIMIT.as_secs())]
    Stalled,
    #[error("{0}")]
    Invalid(&'static str),
}

fn read_token(file: &Path) -> Result<SecretString, Problem> {
    // One byte more than the longest token and its newline shows that there is more.
    let bytes = read_bounded(file, MAX_BYTES as u64 + 3, READ_TIME_LIMIT).map_err(|error| {
        match error.kind() {
            ErrorKind::PermissionDenied => Problem::Forbidden,
            ErrorKind::TimedOut => Problem::Stalled,
            ErrorKind::FileTooLarge => Problem::Invalid(TOO_LONG),
            _ => Problem::Unreadable,
        }
    })?;
    let text = String::from_utf8(bytes).map_err(|_| Problem::Invalid(NOT_ASCII))?;
    let token = trim_newline(&text);
    validate_token(token).map_err(Problem::Invalid)?;
    Ok(token.into())
}

const TOO_LONG: &str = "is longer than 8 KiB";
const NOT_ASCII: &str = "contains characters that are not ASCII";

/// Checks that a token can be sent in a header: visible ASCII characters and nothing else.
///
/// The error follows the name of what contains the token: "is empty".
pub fn validate_token(token: &str) -> Result<(), &'static str> {
    if token.trim().is_empty() {
        return Err("is empty");
    }
    if token.len() > MAX_BYTES {
        return Err(TOO_LONG);
    }
    if !token.is_ascii() {
        return Err(NOT_ASCII);
    }
    if token.trim_start().starts_with("Bearer ") {
        return Err("starts with `Bearer `, which microglia adds itself");
    }
    if token.contains(|c: char| c.is_ascii_whitespace()) {
        return Err("contains white space");
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("contains control characters");
    }
    Ok(())
}

/// The content of a secret file without one trailing newline.
pub fn trim_newline(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = match &self.0 {
            Source::File(file) => Some(&file.path),
            Source::Inline(_) => None,
        };
        f.debug_struct("Token").field("file", &file).finish_non_exhaustive()
    }
}
