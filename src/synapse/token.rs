//! The access token, read again for each request so that a rotated file serves at once.

use std::fmt;
use std::path::PathBuf;
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
    /// Whether it was said that the file gives nothing now.
    missed: bool,
}

impl Token {
    pub fn inline(text: SecretString) -> Self {
        Self { file: None, last: Mutex::new(Last { text, missed: false }) }
    }

    /// A token that was read from `file` a moment ago.
    ///
    /// No warning is logged where root read it and has become a user who may not: the command that did so knows.
    pub fn from_file(file: PathBuf, text: SecretString) -> Self {
        let missed = std::fs::File::open(&file)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
        Self { file: Some(file), last: Mutex::new(Last { text, missed }) }
    }

    /// The token as it is now; while its file cannot be read, or is empty in the middle of a rotation, the last good one.
    pub fn current(&self) -> SecretString {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file {
            let read = std::fs::read_to_string(file).unwrap_or_default();
            let text = trimmed(&read);
            let missed = text.is_empty();
            if missed && !last.missed {
                tracing::warn!(
                    "{} is empty or cannot be read: what was in it before serves until a restart",
                    file.display()
                );
            }
            if !missed && text != last.text.expose_secret() {
                last.text = SecretString::from(text.to_owned());
            }
            last.missed = missed;
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
