//! Fetching one page of a list, in a size that the homeserver can serve.

use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::reader::Reader;
use crate::http::{Base, Error, MIN_PAGE_ROWS, Repeat};

/// Synapse scans a list from its beginning for each page: 10,000 rows cost it as much as 1,000 (measured with 500,000 accounts).
pub(super) const MAX_PAGE_ROWS: usize = 10_000;
/// Accounts' files are read side by side: larger pages would only need more memory.
pub(super) const MAX_FILE_ROWS: usize = 5000;

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
            if rows > MIN_PAGE_ROWS && error.is_about_size(took, timeout) {
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
