//! Lists of MAS's Admin API, page by page.

use std::collections::BTreeSet;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::reader::Reader;
use super::resources::Resource;
use super::ulid::Ulid;
use crate::http::{Error, Response};

/// Part of a list.
#[derive(Debug)]
pub struct Page<T> {
    pub rows: Vec<Resource<T>>,
    /// The id after which the next page begins; `None` at the end of the list.
    pub next: Option<Ulid>,
}

/// A filter and its value, which needs no encoding.
pub(super) type Filter<'a> = (&'static str, &'a str);

/// MAS has no maximum; its default is 10.
const MAX_PAGE_ROWS: usize = 1000;
/// Of a list that is held in memory.
const MAX_ROWS: usize = 2_000_000;

#[derive(Deserialize)]
struct List<T> {
    data: Vec<Resource<T>>,
    links: Links,
}

#[derive(Deserialize)]
struct Links {
    #[serde(rename = "self")]
    this: String,
    /// Only whether there is one: what it links to is wrong in some lists.
    next: Option<String>,
}

impl Reader {
    /// Reads a whole list.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        filters: &[Filter<'_>],
    ) -> Result<Vec<Resource<T>>, Error> {
        let (mut rows, mut after) = (Vec::new(), None);
        loop {
            let (response, page) = self.page_of(endpoint, filters, after.as_ref()).await?;
            rows.extend(page.rows);
            if rows.len() > MAX_ROWS {
                return Err(response.unexpected(format!(
                    "this list does not end: it has more than {MAX_ROWS} rows"
                )));
            }
            after = page.next;
            if after.is_none() {
                return Ok(rows);
            }
        }
    }

    /// Reads the page that begins after an id.
    pub(super) async fn page<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        filters: &[Filter<'_>],
        after: Option<&Ulid>,
    ) -> Result<Page<T>, Error> {
        Ok(self.page_of(endpoint, filters, after).await?.1)
    }

    async fn page_of<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        filters: &[Filter<'_>],
        after: Option<&Ulid>,
    ) -> Result<(Response, Page<T>), Error> {
        let (max_rows, response) = self.fetch_page(endpoint, filters, after).await?;
        let list: List<T> = response.decode()?;
        if let Err(problem) = check_filters(filters, &list.links.this) {
            return Err(response.unexpected(problem));
        }
        if list.data.len() > max_rows {
            return Err(response.unexpected(format!(
                "a page has {} rows instead of at most {max_rows}",
                list.data.len()
            )));
        }
        let ids = after.into_iter().chain(list.data.iter().map(|row| &row.id));
        if !ids.is_sorted_by(|one, other| one < other) {
            let problem = "this list does not make progress: its ids do not ascend";
            return Err(response.unexpected(problem));
        }
        let end = list.data.last().map(|row| row.id.clone());
        let next = end.filter(|_| list.links.next.is_some());
        Ok((response, Page { rows: list.data, next }))
    }

    /// Fetches a page; returns also the most rows that it may have.
    async fn fetch_page(
        &self,
        endpoint: &'static str,
        filters: &[Filter<'_>],
        after: Option<&Ulid>,
    ) -> Result<(usize, Response), Error> {
        let timeout = self.connection.admin_api.request_timeout();
        let fetched = self.page_sizes.fetch(endpoint, MAX_PAGE_ROWS, timeout, |repeat, rows| {
            let mut query: Vec<(&'static str, String)> =
                filters.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            query.push(("count", "false".to_owned()));
            query.push(("page[first]", rows.to_string()));
            query.extend(after.map(|id| ("page[after]", id.to_string())));
            self.get_repeatedly(repeat, endpoint, &[], query)
        });
        fetched.await
    }
}

/// Checks that MAS understood all filters: one that it does not know it ignores, and lists everything.
fn check_filters(sent: &[Filter<'_>], self_link: &str) -> Result<(), String> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let query = self_link.split_once('?').map_or("", |(_, query)| query);
    let understood: BTreeSet<(String, String)> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .filter(|(name, _)| name.starts_with("filter["))
        .collect();
    let sent: BTreeSet<(String, String)> =
        sent.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    if sent == understood {
        return Ok(());
    }
    let names = |some: &BTreeSet<(String, String)>| match some.is_empty() {
        true => "no filter".to_owned(),
        false => some
            .iter()
            .take(5)
            .map(|(name, value)| crate::http::one_line(&format!("{name}={value}"), 100))
            .collect::<Vec<_>>()
            .join("&"),
    };
    Err(format!(
        "MAS applied {} instead of {}, so this may list everything: upgrade MAS",
        names(&understood),
        names(&sent)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_compared_whatever_their_order_and_encoding() {
        let sent: &[Filter<'_>] = &[("filter[owner_client]", "01A"), ("filter[status]", "active")];
        for link in [
            "/p?filter[owner_client]=01A&filter[status]=active&page[first]=10",
            "/p?count=false&filter%5Bstatus%5D=active&filter%5bowner_client%5d=01%41",
        ] {
            assert_eq!(check_filters(sent, link), Ok(()), "{link}");
        }
        assert_eq!(check_filters(&[], "/p?page[first]=10"), Ok(()));
        assert_eq!(check_filters(&[], "/p"), Ok(()));
    }

    #[test]
    fn a_filter_that_is_missing_different_or_unexpected_is_an_error() {
        let sent: &[Filter<'_>] = &[("filter[status]", "active")];
        insta::assert_snapshot!(check_filters(sent, "/p").unwrap_err(), @"MAS applied no filter instead of filter[status]=active, so this may list everything: upgrade MAS");
        insta::assert_snapshot!(check_filters(sent, "/p?filter[status]=locked").unwrap_err(), @"MAS applied filter[status]=locked instead of filter[status]=active, so this may list everything: upgrade MAS");
        insta::assert_snapshot!(check_filters(&[], "/p?filter[status]=locked").unwrap_err(), @"MAS applied filter[status]=locked instead of no filter, so this may list everything: upgrade MAS");
    }
}
