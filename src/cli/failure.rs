//! What ends a command without success, with its exit code.

use crate::config::LoadError;

/// Printed by `--help` and in the man page.
pub(super) const EXIT_CODES: [(&str, &str); 3] = [
    ("0", "success (including a successful dry run)"),
    (
        "1",
        "the command failed: for example, the run, the reload, the login or `check --online` did not succeed, or the job is already running",
    ),
    ("2", "usage error, such as a missing option or password, or an error in the configuration"),
];

#[derive(Debug)]
pub(super) enum Failure {
    /// The command did not succeed, and has printed why.
    Unsuccessful,
    /// The configuration has errors, which are printed already.
    InvalidConfig,
    /// An error of the user's, in the configuration or on the command line.
    Usage(String),
    Error(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        match error.into().downcast::<LoadError>() {
            Ok(errors) => Self::Usage(errors.to_string()),
            Err(error) => Self::Error(error),
        }
    }
}
