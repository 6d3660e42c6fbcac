//! Following the pages of a list, which a homeserver must not be able to make endless.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use reqwest::Method;

use super::PageToken;
use super::error::{Cause, Error};
use crate::values::text::{format_count, format_number};

/// What was read of one list so far.
#[derive(Debug)]
pub(super) struct Pages {
    /// The path of the list, as it is sent.
    list: String,
    /// The most rows that one page may hold.
    limit: usize,
    /// Of the tokens that were followed.
    hashes: HashSet<u64>,
    hasher: RandomState,
    read: u32,
    rows: u64,
    /// What the first page said.
    total: Option<u64>,
}

/// A list may grow while it is read, so that it can have more rows than its first page said.
const GROWTH: u64 = 10_000;
const MOST_PAGES: u32 = 100_000;
/// Ten times the accounts of the largest homeserver that was measured; a larger total counts as this.
const MOST_ROWS: u64 = 10_000_000;
/// Synapse's own tokens are numbers.
const LONGEST_TOKEN: usize = 1024;

impl Pages {
    pub(super) fn of(list: impl Into<String>, limit: usize) -> Self {
        Self {
            list: list.into(),
            limit,
            hashes: HashSet::new(),
            hasher: RandomState::new(),
            read: 0,
            rows: 0,
            total: None,
        }
    }

    /// Takes note of a page and answers the token of the next one, which is `None` at the end of the list.
    ///
    /// An empty page is the end: Synapse names a next one where rows went away while the list was read.
    pub(super) fn next(
        &mut self,
        rows: usize,
        total: Option<u64>,
        token: Option<PageToken>,
    ) -> Result<Option<PageToken>, Error> {
        self.read += 1;
        self.rows = self.rows.saturating_add(rows as u64);
        let most = *self.total.get_or_insert(total.unwrap_or(MOST_ROWS).min(MOST_ROWS));
        if rows > self.limit {
            return Err(self.endless(&format!("a page has {rows} rows instead of {}", self.limit)));
        }
        let Some(token) = token.filter(|_| rows > 0) else { return Ok(None) };
        let text = token.to_string();
        if text.len() > LONGEST_TOKEN {
            return Err(self.endless(&format!("a page token has {} bytes", text.len())));
        }
        if !self.hashes.insert(self.hasher.hash_one(&text)) {
            return Err(self.endless(&format!("the page token {text:.40?} came before")));
        }
        if self.rows > most.saturating_mul(2).saturating_add(GROWTH) {
            return Err(self.endless("it has far more rows than it said"));
        }
        if self.read == MOST_PAGES {
            return Err(self.endless("no list has so many pages"));
        }
        Ok(Some(token))
    }

    fn endless(&self, sign: &str) -> Error {
        let of = match self.total {
            Some(MOST_ROWS) | None => String::new(),
            Some(total) => format!(" of {}", format_number(total)),
        };
        let problem = format!(
            "this list does not end: {sign}, after {}{of} on {}",
            format_count(self.rows, "row", "rows"),
            format_count(u64::from(self.read), "page", "pages")
        );
        Error {
            method: Method::GET,
            path: self.list.clone(),
            cause: Cause::Unexpected(problem),
            advice: Some("Check that the homeserver's URL leads to Synapse's own listener, and that nothing in between caches answers".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows pages of `rows` rows whose tokens are `token(0)`, `token(1)`, …, and answers why that ends.
    fn end(rows: usize, total: Option<u64>, token: impl Fn(usize) -> PageToken) -> String {
        let mut pages = Pages::of("/list", 1000);
        let error = (0..).find_map(|page| pages.next(rows, total, Some(token(page))).err());
        error.unwrap().message()
    }

    #[test]
    fn a_list_ends_by_its_tokens_by_its_total_or_by_its_pages() {
        let number = |page: usize| PageToken::Number(page as u64);
        insta::assert_snapshot!(end(10, Some(100), |page| number(page % 3)), @r#"this list does not end: the page token "0" came before, after 40 rows of 100 on 4 pages"#);
        insta::assert_snapshot!(end(1000, Some(100), number), @"this list does not end: it has far more rows than it said, after 11,000 rows of 100 on 11 pages");
        insta::assert_snapshot!(end(1, None, number), @"this list does not end: no list has so many pages, after 100,000 rows on 100,000 pages");
        insta::assert_snapshot!(end(1000, Some(u64::MAX), number), @"this list does not end: it has far more rows than it said, after 20,011,000 rows on 20,011 pages");
        insta::assert_snapshot!(end(1001, Some(100), number), @"this list does not end: a page has 1001 rows instead of 1000, after 1,001 rows of 100 on 1 page");
        insta::assert_snapshot!(end(1, None, |_| PageToken::Text("x".repeat(1025))), @"this list does not end: a page token has 1025 bytes, after 1 row on 1 page");
    }

    #[test]
    fn a_list_that_grows_while_it_is_read_is_read_to_its_end() {
        let mut pages = Pages::of("/list", 1000);
        for page in 0..12 {
            let token = PageToken::Number(page);
            assert_eq!(pages.next(1000, Some(1500), Some(token.clone())).unwrap(), Some(token));
        }
        assert_eq!(pages.next(3, Some(1500), None).unwrap(), None);
        assert_eq!(pages.next(0, Some(1500), Some(PageToken::Number(12))).unwrap(), None);
    }
}
