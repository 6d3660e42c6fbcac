//! The tables `[homeservers.NAME]`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;
use toml::Spanned;
use toml::de::DeTable;

use super::super::keys::{HomeserverHeadKeys, HomeserverKeys};
use super::super::mas_keys::MAS_TABLE;
use super::super::settings::Homeserver;
use super::mas::without_mas_of_others;
use super::merge::merge;
use super::secrets::ACCESS_TOKEN;
use super::{NameRule, Parser, Reported};
use crate::http::Address;
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
                let with_defaults = [HomeserverKeys::KEYS, MAS_TABLE].concat();
                let merged = merge(defaults, &with_defaults, table);
                self.homeserver(name, &without_mas_of_others(merged, table))
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
        let known = [HomeserverKeys::KEYS, HomeserverHeadKeys::KEYS, MAS_TABLE];
        table.reject_unknown(&known, &mut self.errors);
        if let Some(mas) = defaults.get("mas") {
            self.check_mas_defaults(mas);
        }
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
        let known = [HomeserverHeadKeys::KEYS, HomeserverKeys::KEYS, MAS_TABLE];
        table.reject_unknown(&known, &mut self.errors);
        let head = HomeserverHeadKeys::parse(&table, &mut self.errors);
        let keys = HomeserverKeys::parse(&table, &mut self.errors);
        let ca = self.certificates(&keys.ca_file);
        let (token, mas) = match entries.get("mas") {
            None => (
                self.secret(&ACCESS_TOKEN, &head.access_token, &head.access_token_file, &table)
                    .map(Some),
                Some(None),
            ),
            Some(mas) => (
                self.has_no_token(name.get_ref(), &head).then_some(None),
                self.mas(name.get_ref(), mas).map(Some),
            ),
        };
        let (token, mas) = (token?, mas?);
        let (token_file, token) = token.map_or((None, None), |(file, token)| (file, Some(token)));
        let definition = table.definition();
        let homeserver = Homeserver {
            name: name.get_ref().to_string(),
            url: head.url.value?.0,
            media_url: head.media_url.value?.map(|url| url.0),
            max_concurrent_runs: keys.max_concurrent_runs.value?,
            max_concurrent_requests: keys.max_concurrent_requests.value?,
            max_requests_per_second: keys.max_requests_per_second.value?,
            max_joins_per_second: keys.max_joins_per_second.value?,
            request_timeout: keys.request_timeout.value?.0,
            yield_to: keys.yield_to.value?,
            media_in_object_storage: keys.media_in_object_storage.value?,
            token_file,
            token,
            ca: ca.ok()?,
            definition: match &mas {
                None => Fingerprint::of(&definition),
                Some(mas) => Fingerprint::of(&json!([definition, mas.definition])),
            },
            mas,
        };
        let urls = [
            (head.url.span, Some(&homeserver.url)),
            (head.media_url.span, homeserver.media_url.as_ref()),
        ];
        for (span, url) in urls {
            if let Some(url) = url {
                self.warn_if_unencrypted(span, url, "the access token is sent unencrypted over the network: use https, or Synapse's listener on this machine");
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

    /// Reports a token beside MAS, which issues one; returns whether there is none.
    fn has_no_token(&mut self, homeserver: &str, head: &HomeserverHeadKeys) -> bool {
        let set = [
            ("access_token", head.access_token.is_set, &head.access_token.span),
            ("access_token_file", head.access_token_file.is_set, &head.access_token_file.span),
        ];
        for (key, _, span) in set.iter().filter(|(_, is_set, _)| *is_set) {
            self.error((*span).clone(), format!("`{key}` and [homeservers.{homeserver}.mas] are mutually exclusive: MAS issues the token; remove one of them"));
        }
        !head.access_token.is_set && !head.access_token_file.is_set
    }
}
