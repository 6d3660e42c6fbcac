//! The access token, read again for each request so that a rotated file serves at once.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use secrecy::{ExposeSecret, SecretString};

/// Where the token comes from; never shown, not even by `Debug`.
pub struct Token {
    file: Option<PathBuf>,
    last: Mutex<Last>,
}

/// The last good content of the file.
struct Last {
    text: SecretString,
    /// Why the file gives no token now, where that was said.
    problem: Option<&'static str>,
}

/// No token is longer, and no proxy takes a longer header.
const LONGEST: usize = 8 * 1024;
const UNREADABLE: &str = "is empty or cannot be read";

impl Token {
    pub fn inline(text: SecretString) -> Self {
        Self { file: None, last: Mutex::new(Last { text, problem: None }) }
    }

    /// A token that was read from `file` a moment ago.
    ///
    /// No warning is logged where root read it and has become a user who may not: the command that did so knows.
    pub fn from_file(file: PathBuf, text: SecretString) -> Self {
        let problem = File::open(&file)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
            .then_some(UNREADABLE);
        Self { file: Some(file), last: Mutex::new(Last { text, problem }) }
    }

    /// The token as it is now; the last good one while its file holds none, as in the middle of a rotation.
    pub fn current(&self) -> SecretString {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file {
            match read(file) {
                Ok(text) => {
                    if text.expose_secret() != last.text.expose_secret() {
                        last.text = text;
                    }
                    last.problem = None;
                }
                Err(problem) => {
                    if last.problem.replace(problem) != Some(problem) {
                        tracing::warn!(
                            target: "microglia::homeserver",
                            "{} {problem}: the token read before stays in use until the file holds a token again, or until a restart",
                            file.display()
                        );
                    }
                }
            }
        }
        last.text.clone()
    }

    /// What to do when Synapse does not take the token any more.
    pub(super) fn remedy(&self) -> String {
        match &self.file {
            Some(file) => format!(
                "put a valid token of a server admin into {}; it is used from the next request on",
                file.display()
            ),
            None => {
                "set `access_token` in the config to a valid token of a server admin, and reload"
                    .to_owned()
            }
        }
    }
}

/// Reads a token that can go into a header: visible ASCII characters and nothing else.
fn read(file: &Path) -> Result<SecretString, &'static str> {
    let mut bytes = Vec::new();
    // One byte more than the longest token and its newline shows that there is more.
    File::open(file)
        .and_then(|file| file.take(LONGEST as u64 + 3).read_to_end(&mut bytes))
        .map_err(|_| UNREADABLE)?;
    let text = String::from_utf8(bytes).map_err(|_| "holds characters that are not ASCII")?;
    match trimmed(&text) {
        "" => Err(UNREADABLE),
        token if token.len() > LONGEST => Err("holds more than 8 KiB, which is no token"),
        token if !token.is_ascii() => Err("holds characters that are not ASCII"),
        token if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err("holds more than one word, or control characters")
        }
        token => Ok(SecretString::from(token.to_owned())),
    }
}

/// A secret file's content without its one trailing newline.
pub fn trimmed(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("file", &self.file).finish_non_exhaustive()
    }
}
