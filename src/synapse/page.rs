//! Fetching one page of a list, in a size that the homeserver can serve.

use serde::de::DeserializeOwned;

use super::reader::Reader;
use crate::http::{Base, Error};

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
        let timeout = self.transport.request_timeout();
        let fetched = self.page_sizes.fetch(endpoint, max_rows, timeout, |repeat, rows| {
            let mut query = query.clone();
            query.push(("limit", rows.to_string()));
            self.get_repeatedly(repeat, base, endpoint, ids, query)
        });
        fetched.await?.1.decode()
    }
}
