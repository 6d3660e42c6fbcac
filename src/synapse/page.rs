//! Fetching one page of a list, in a size that the homeserver can serve.

use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::error::{Cause, Error};
use super::page_size::MIN_PAGE_ROWS;
use super::reader::Reader;
use super::request::{Base, Repeat};

impl Reader {
    /// Fetches a page of a list, as large as the homeserver can serve it, and at most `max_rows`.
    pub(super) async fn page<T: DeserializeOwned>(
        &self,
        max_rows: usize,
        base: Base,
        endpoint: &'static str,
        ids: &[&str],
        query: Vec<(&'static str, String)>,
    ) -> Result<T, Error> {
        // A page that takes too long would take as long again; any other failure is retried as usual.
        let mut repeat = Repeat::IfNotApplied;
        loop {
            let rows = self.page_sizes.of(endpoint, max_rows);
            if rows == MIN_PAGE_ROWS {
                repeat = Repeat::Always;
            }
            let mut query = query.clone();
            query.push(("limit", rows.to_string()));
            let start = Instant::now();
            let error = match self.get_repeatedly(repeat, base, endpoint, ids, query).await {
                Ok(response) => return response.decode(),
                Err(error) => error,
            };
            let (took, timeout) = (start.elapsed(), self.transport.request_timeout());
            if rows > MIN_PAGE_ROWS && is_too_much(&error, took, timeout) {
                self.page_sizes.halve(endpoint, rows);
                tracing::debug!(target: "microglia::homeserver", "a page of {rows} rows is too large for the homeserver: {error}");
            } else if repeat == Repeat::IfNotApplied && error.is_transient() {
                repeat = Repeat::Always;
            } else {
                return Err(error);
            }
        }
    }
}

/// Whether a smaller page may succeed: the response took too long or was too large, or the server refused or failed.
fn is_too_much(error: &Error, took: Duration, timeout: Duration) -> bool {
    match &error.cause {
        Cause::Lost(_) => took >= timeout,
        Cause::TooLarge(_) => true,
        Cause::Synapse { status: 400 | 500, .. } => !error.is_about_token(),
        Cause::NotSynapse { status, .. } => matches!(status, 413 | 504),
        _ => false,
    }
}
