//! Paging through a list, which a homeserver must not be able to make endless.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use reqwest::Method;

use serde::{Deserialize, Deserializer, de};

use super::json::Scalar;
use crate::http::{Cause, Error};
use crate::values::text::{format_count, format_number};

/// A pagination token: a string in some lists, a number in others, absent on the last page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageToken(String);

impl<'de> Deserialize<'de> for PageToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Scalar::deserialize(deserializer)? {
            Scalar::Text(text) => Ok(Self(text)),
            Scalar::Unsigned(number) => Ok(Self(number.to_string())),
            other => Err(de::Error::custom(format!("expected a page token, found {other:?}"))),
        }
    }
}

impl PageToken {
    pub(super) fn of_offset(offset: u64) -> Self {
        Self(offset.to_string())
    }

    /// The offset of the next page, where the token is one.
    pub(super) fn offset(&self) -> Option<u64> {
        self.0.parse().ok()
    }
}

impl std::fmt::Display for PageToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The position in a list that is read page by page.
#[derive(Debug)]
pub(super) struct Pages {
    /// The path of the list, as it is sent.
    list: String,
    max_page_rows: usize,
    /// Hashes of the tokens that were followed.
    followed: HashSet<u64>,
    hasher: RandomState,
    read_count: u32,
    rows: u64,
    /// According to the first page.
    total: Option<u64>,
}

/// A list may grow while it is read: it may have twice the rows that its first page reported, and these.
const MAX_GROWTH: u64 = 10_000;
const MAX_PAGES: u32 = 100_000;
/// Ten times the accounts of the largest homeserver that was measured; a larger total counts as this.
const MAX_TOTAL: u64 = 10_000_000;
/// In bytes. Synapse's own tokens are numbers.
const MAX_TOKEN: usize = 1024;

impl Pages {
    pub(super) fn new(list: impl Into<String>, max_page_rows: usize) -> Self {
        Self {
            list: list.into(),
            max_page_rows,
            followed: HashSet::new(),
            hasher: RandomState::new(),
            read_count: 0,
            rows: 0,
            total: None,
        }
    }

    /// Records a page and returns the token of the next one, or `None` at the end of the list.
    ///
    /// An empty page is the end: Synapse names a next one if rows were deleted while the list was read.
    pub(super) fn next(
        &mut self,
        rows: usize,
        total: Option<u64>,
        token: Option<PageToken>,
    ) -> Result<Option<PageToken>, Error> {
        self.read_count += 1;
        self.rows = self.rows.saturating_add(rows as u64);
        let total = *self.total.get_or_insert(total.unwrap_or(MAX_TOTAL).min(MAX_TOTAL));
        if rows > self.max_page_rows {
            return Err(self.endless(&format!(
                "a page has {rows} rows instead of at most {}",
                self.max_page_rows
            )));
        }
        // On later pages the rows may have been deleted since.
        if rows == 0 && self.read_count == 1 && token.is_some() && total > 0 {
            return Err(self.broken("does not begin: its first page is empty"));
        }
        let Some(token) = token.filter(|_| rows > 0) else { return Ok(None) };
        if token.0.len() > MAX_TOKEN {
            return Err(self.endless(&format!("a page token has {} bytes", token.0.len())));
        }
        if !self.followed.insert(self.hasher.hash_one(&token.0)) {
            return Err(self.endless(&format!("the page token {:.40?} was repeated", token.0)));
        }
        if self.rows > total.saturating_mul(2).saturating_add(MAX_GROWTH) {
            return Err(self.endless("it has far more rows than it reported"));
        }
        if self.read_count == MAX_PAGES {
            return Err(self.endless("no list has this many pages"));
        }
        Ok(Some(token))
    }

    fn endless(&self, sign: &str) -> Error {
        self.broken(&format!("does not end: {sign}"))
    }

    fn broken(&self, how: &str) -> Error {
        let of = match self.total {
            Some(MAX_TOTAL) | None => String::new(),
            Some(total) => format!(" of {}", format_number(total)),
        };
        let problem = format!(
            "this list {how}, after {}{of} on {}",
            format_count(self.rows, "row", "rows"),
            format_count(u64::from(self.read_count), "page", "pages")
        );
        Error {
            method: Method::GET,
            path: self.list.clone(),
            cause: Cause::Unexpected(problem),
            advice: Some("Check that the URL of the homeserver is that of Synapse's own listener, and that no proxy caches responses".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows pages of `rows` rows whose tokens are `token(0)`, `token(1)`, …, and returns the error that ends this.
    fn end(rows: usize, total: Option<u64>, token: impl Fn(usize) -> PageToken) -> String {
        let mut pages = Pages::new("/list", 1000);
        let error = (0..).find_map(|page| pages.next(rows, total, Some(token(page))).err());
        error.unwrap().message()
    }

    #[test]
    fn a_list_ends_by_its_tokens_by_its_total_or_by_its_pages() {
        let number = |page: usize| PageToken(page.to_string());
        insta::assert_snapshot!(end(10, Some(100), |page| number(page % 3)), @r#"this list does not end: the page token "0" was repeated, after 40 rows of 100 on 4 pages"#);
        insta::assert_snapshot!(end(1000, Some(100), number), @"this list does not end: it has far more rows than it reported, after 11,000 rows of 100 on 11 pages");
        insta::assert_snapshot!(end(1, None, number), @"this list does not end: no list has this many pages, after 100,000 rows on 100,000 pages");
        insta::assert_snapshot!(end(1000, Some(u64::MAX), number), @"this list does not end: it has far more rows than it reported, after 20,011,000 rows on 20,011 pages");
        insta::assert_snapshot!(end(1001, Some(100), number), @"this list does not end: a page has 1001 rows instead of at most 1000, after 1,001 rows of 100 on 1 page");
        insta::assert_snapshot!(end(1, None, |_| PageToken("x".repeat(1025))), @"this list does not end: a page token has 1025 bytes, after 1 row on 1 page");
    }

    #[test]
    fn a_list_that_reports_rows_and_begins_with_none_is_not_taken_for_an_empty_one() {
        insta::assert_snapshot!(end(0, Some(3), |page| PageToken(page.to_string())), @"this list does not begin: its first page is empty, after 0 rows of 3 on 1 page");
        let next = |total, token| Pages::new("/list", 1000).next(0, total, token);
        assert_eq!(next(Some(0), Some(PageToken("0".to_owned()))).unwrap(), None);
        assert_eq!(next(Some(3), None).unwrap(), None);
    }

    #[test]
    fn a_list_that_grows_while_it_is_read_is_read_to_its_end() {
        let mut pages = Pages::new("/list", 1000);
        for page in 0..12 {
            let token = PageToken(page.to_string());
            assert_eq!(pages.next(1000, Some(1500), Some(token.clone())).unwrap(), Some(token));
        }
        assert_eq!(pages.next(3, Some(1500), None).unwrap(), None);
        assert_eq!(pages.next(0, Some(1500), Some(PageToken("12".to_owned()))).unwrap(), None);
    }
}
