//! How many rows of a list to ask for at a time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Synapse's own default: smaller pages would hardly be easier to serve.
pub(crate) const MIN_PAGE_ROWS: usize = 100;

/// The page size of each list of one run: it is halved where the server cannot serve a page, and stays so.
#[derive(Debug, Default)]
pub(crate) struct PageSizes(Mutex<HashMap<&'static str, usize>>);

impl PageSizes {
    pub(crate) fn of(&self, endpoint: &'static str, max: usize) -> usize {
        self.lock().get(endpoint).copied().unwrap_or(max)
    }

    /// Halves the size, unless another request did so since this one was sent with `rows`.
    pub(crate) fn halve(&self, endpoint: &'static str, rows: usize) {
        let mut sizes = self.lock();
        let size = sizes.entry(endpoint).or_insert(rows);
        *size = (*size).min((rows / 2).max(MIN_PAGE_ROWS));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
