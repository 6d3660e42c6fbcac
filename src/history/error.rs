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
}
