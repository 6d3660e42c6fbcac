//! How many rows of a list to ask for at a time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::error::{Cause, Error};
use super::reader::Reader;
use super::request::{Base, Repeat};

/// Synapse scans a list from its beginning for each page: 10,000 rows cost it as much as 1,000 (measured with 500,000 accounts).
pub(super) const MAX_PAGE_ROWS: usize = 10_000;
/// Accounts' files are read side by side: larger pages would only need more memory.
pub(super) const MAX_FILE_ROWS: usize = 5000;
/// Synapse's own default: smaller pages would hardly be easier to serve.
const MIN_PAGE_ROWS: usize = 100;

/// The page size of each list of one run: it is halved where the homeserver cannot serve a page, and stays so.
#[derive(Debug, Default)]
pub(super) struct PageSizes(Mutex<HashMap<&'static str, usize>>);

impl PageSizes {
    fn of(&self, endpoint: &'static str, max: usize) -> usize {
        self.lock().get(endpoint).copied().unwrap_or(max)
    }

    /// Halves the size, unless another request did so since this one was sent with `rows`.
    fn halve(&self, endpoint: &'static str, rows: usize) {
        let mut sizes = self.lock();
        let size = sizes.entry(endpoint).or_insert(rows);
        *size = (*size).min((rows / 2).max(MIN_PAGE_ROWS));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
            let timed_out = start.elapsed() >= self.transport.request_timeout();
            if rows > MIN_PAGE_ROWS && is_too_much(&error, timed_out.then_some(TimedOut)) {
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

struct TimedOut;

/// Whether a smaller page may succeed: the response took too long or was too large, or the server refused or failed.
fn is_too_much(error: &Error, timed_out: Option<TimedOut>) -> bool {
    match &error.cause {
        Cause::Lost(_) => timed_out.is_some(),
        Cause::TooLarge(_) => true,
        Cause::Synapse { status: 400 | 500, .. } => !error.is_about_token(),
        Cause::NotSynapse { status, .. } => matches!(status, 413 | 504),
        _ => false,
    }
}
