//! The tables `[homeservers.NAME]`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use reqwest::Url;
use secrecy::SecretString;
use toml::Spanned;
use toml::de::DeTable;

use super::super::keys::{HomeserverHeadKeys, HomeserverKeys};
use super::super::settings::Homeserver;
use super::merge::merge;
use super::{NameRule, Parser, Reported};
use crate::synapse::Address;
use crate::values::fingerprint::Fingerprint;
use crate::values::schema::{Entry, Table};

const NAME: NameRule = NameRule {
    what: "homeserver",
    is_allowed: |c| c.is_ascii_alphanumeric() || "-_.".contains(c),
    allowed: "letters, digits and - _ .",
};

impl Parser<'_> {
    /// Sorted by name; `None` in place of a homeserver with an error.
    pub(super) fn homeservers(
        &mut self,
        table: &DeTable<'_>,
        root: &DeTable<'_>,
    ) -> Vec<(String, Option<Homeserver>)> {
        let empty = DeTable::new();
        let defaults = self.table(root, "homeserver_defaults", &empty).unwrap_or(&empty);
        self.check_homeserver_defaults(defaults);
        if table.is_empty() {
            self.error(0..0, "no homeserver is configured: add [homeservers.main] with `url = \"http://127.0.0.1:8008\"` and `access_token_file = \"token\"`");
        }
        let mut homeservers = Vec::new();
        for (name, value) in table {
            let parsed = self.named_table(name, value, &NAME).and_then(|table| {
                self.homeserver(name, &merge(defaults, HomeserverKeys::KEYS, table))
            });
            homeservers.push((name.get_ref().to_string(), parsed));
        }
        homeservers.sort_by(|a, b| a.0.cmp(&b.0));
        self.warn_of_shared_addresses(table, &homeservers);
        homeservers
    }

    fn check_homeserver_defaults(&mut self, defaults: &DeTable<'_>) {
        for key in defaults.keys() {
            if HomeserverHeadKeys::KEYS.iter().any(|head| head.name == key.get_ref().as_ref()) {
                let text =
                    format!("`{}` cannot have a default: set it in each homeserver", key.get_ref());
                self.error(key.span(), text);
            }
        }
        let table = Table::new(defaults, 0..0);
        table.reject_unknown(&[HomeserverKeys::KEYS, HomeserverHeadKeys::KEYS], &mut self.errors);
        HomeserverKeys::parse(&table, &mut self.errors);
    }

    /// Two names for one homeserver are most likely an error, and share their limits in any case.
    fn warn_of_shared_addresses(
        &mut self,
        table: &DeTable<'_>,
        homeservers: &[(String, Option<Homeserver>)],
    ) {
        let mut known: BTreeMap<Address, &str> = BTreeMap::new();
        for (name, homeserver) in homeservers {
            let Some(homeserver) = homeserver else { continue };
            let Some(first) = known.insert(homeserver.address(), name) else { continue };
            let span = table.get_key_value(name.as_str()).map_or(0..0, |(key, _)| key.span());
            self.warn(
                span,
                format!(
                    "`{name}` has the same address as `{first}`: they share the lower of each limit"
                ),
            );
        }
    }

    fn homeserver(
        &mut self,
        name: &Spanned<Cow<'_, str>>,
        entries: &DeTable<'_>,
    ) -> Option<Homeserver> {
        let table = Table::new(entries, name.span());
        table.reject_unknown(&[HomeserverHeadKeys::KEYS, HomeserverKeys::KEYS], &mut self.errors);
        let head = HomeserverHeadKeys::parse(&table, &mut self.errors);
        let keys = HomeserverKeys::parse(&table, &mut self.errors);
        let ca = self.certificates(&keys.ca_file);
        let token = self.token(&head.access_token, &head.access_token_file, &table);
        let (token_file, token) = token?;
        let homeserver = Homeserver {
            name: name.get_ref().to_string(),
            url: head.url.value?.0,
            media_url: head.media_url.value?.map(|url| url.0),
            max_concurrent_runs: keys.max_concurrent_runs.value?,
            max_concurrent_requests: keys.max_concurrent_requests.value?,
            max_requests_per_second: keys.max_requests_per_second.value?,
            max_joins_per_second: keys.max_joins_per_second.value?,
            request_timeout: keys.request_timeout.value?.0,
            media_in_object_storage: keys.media_in_object_storage.value?,
            token_file,
            token,
            ca: ca.ok()?,
            definition: Fingerprint::of(&table.definition()),
        };
        let urls = [
            (head.url.span, Some(&homeserver.url)),
            (head.media_url.span, homeserver.media_url.as_ref()),
        ];
        for (span, url) in urls {
            if url.is_some_and(|url| url.scheme() == "http" && !is_loopback(url)) {
                self.warn(span, "the access token is sent unencrypted over the network: use https, or Synapse's listener on this machine");
            }
        }
        Some(homeserver)
    }

    fn certificates(
        &mut self,
        entry: &Entry<Option<PathBuf>>,
    ) -> Result<Option<Vec<u8>>, Reported> {
        let Some(path) = entry.value.as_ref().ok_or(Reported)? else { return Ok(None) };
        self.secrets.certificates(path, &entry.span).map(Some).map_err(|error| {
            self.errors.push(error);
            Reported
        })
    }

    /// The token, and the file that it is from.
    fn token(
        &mut self,
        inline: &Entry<Option<SecretString>>,
        file: &Entry<Option<PathBuf>>,
        table: &Table<'_, '_>,
    ) -> Option<(Option<PathBuf>, SecretString)> {
        if inline.is_set && file.is_set {
            self.error(inline.span.clone(), "`access_token` and `access_token_file` are mutually exclusive: remove one of them, preferably `access_token`");
            return None;
        }
        if !inline.is_set && !file.is_set {
            let text = "the access token is missing: add `access_token_file = \"token\"`";
            self.error(table.span.clone(), text);
            return None;
        }
        let token = match (inline.value.as_ref()?, file.value.as_ref()?) {
            (Some(token), _) => self
                .secrets
                .check_inline(token, &inline.span, &mut self.warnings)
                .map(|()| (None, token.clone())),
            (None, path) => self
                .secrets
                .read(path.as_ref()?, "access_token_file", &file.span, &mut self.warnings)
                .map(|read| (Some(read.path), read.secret)),
        };
        token.map_err(|error| self.errors.push(error)).ok()
    }
}

/// Whether a request to the URL stays on this machine.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match address {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}
