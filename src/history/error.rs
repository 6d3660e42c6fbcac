//! Why the history could not be read or written.

use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    #[error("{0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Nothing can be recorded until the history is opened again, and why.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// PostgreSQL does not answer now, and why.
    #[error("the database {database} cannot be used: {why}")]
    Unreachable { database: String, why: Arc<str> },
    /// This process may not work on the homeserver, or not any more.
    #[error("another replica works on {homeserver}, or none does yet")]
    LeaseLost { homeserver: String },
    /// An occurrence that has its run.
    #[error("another replica has run this occurrence")]
    Claimed,
    /// The plan is decided otherwise, is applied already, or the job was changed since.
    #[error("the plan of run {plan} is not to be applied")]
    NotApproved { plan: i64 },
}

impl Error {
    /// Whether the database worked, and said that this process is not to go on.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::LeaseLost { .. } | Self::Claimed | Self::NotApproved { .. })
    }

    /// Whether PostgreSQL, or what is between, ended the connection: another one may work.
    pub(super) fn is_lost_connection(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_)) => {
                true
            }
            Self::Database(sqlx::Error::Database(error)) => error.code().is_some_and(|code| {
                // A connection failure, a server that stops or crashed, one that became a standby, a deadlock.
                ["08", "57P"].iter().any(|class| code.starts_with(class))
                    || ["25006", "40001", "40P01"].contains(&&*code)
            }),
            _ => false,
        }
    }
}
