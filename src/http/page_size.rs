//! How many rows of a list to ask for at a time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::error::Error;
use super::request::Repeat;
use super::response::Response;

/// Synapse's own default: smaller pages would hardly be easier to serve.
const MIN_PAGE_ROWS: usize = 100;

/// The page size of each list of one run: it is halved where the server cannot serve a page, and stays so.
#[derive(Debug, Default)]
pub(crate) struct PageSizes(Mutex<HashMap<&'static str, usize>>);

impl PageSizes {
    /// Fetches a page, as large as the server can serve it, and at most `max_rows`; returns also the rows that it may have.
    ///
    /// `request` asks for so many rows; `timeout` is how long it may take.
    pub(crate) async fn fetch<R: Future<Output = Result<Response, Error>>>(
        &self,
        endpoint: &'static str,
        max_rows: usize,
        timeout: Duration,
        request: impl Fn(Repeat, usize) -> R,
    ) -> Result<(usize, Response), Error> {
        // A page that takes too long would take as long again; any other failure is retried as usual.
        let mut repeat = Repeat::IfNotApplied;
        loop {
            let rows = self.of(endpoint, max_rows);
            if rows == MIN_PAGE_ROWS {
                repeat = Repeat::Always;
            }
            let start = Instant::now();
            let error = match request(repeat, rows).await {
                Ok(response) => return Ok((rows, response)),
                Err(error) => error,
            };
            if rows > MIN_PAGE_ROWS && error.is_about_size(start.elapsed(), timeout) {
                self.halve(endpoint, rows);
                tracing::debug!(target: "microglia::homeserver", "a page of {rows} rows is too large for the server: {error}");
            } else if repeat == Repeat::IfNotApplied && error.is_transient() {
                repeat = Repeat::Always;
            } else {
                return Err(error);
            }
        }
    }

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
