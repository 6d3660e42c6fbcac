//! Secrets that are given in a file or in the configuration itself.

use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;

use reqwest::Url;
use secrecy::SecretString;

use super::Parser;
use crate::values::schema::{Entry, Table};

/// What a secret is called.
pub(super) struct SecretKeys {
    what: &'static str,
    inline: &'static str,
    file: &'static str,
    example: &'static str,
}

pub(super) const ACCESS_TOKEN: SecretKeys = SecretKeys {
    what: "access token",
    inline: "access_token",
    file: "access_token_file",
    example: "token",
};
pub(super) const CLIENT_SECRET: SecretKeys = SecretKeys {
    what: "client secret",
    inline: "client_secret",
    file: "client_secret_file",
    example: "mas-client-secret",
};

impl Parser<'_> {
    /// The secret, and the file that it is from.
    pub(super) fn secret(
        &mut self,
        keys: &SecretKeys,
        inline: &Entry<Option<SecretString>>,
        file: &Entry<Option<PathBuf>>,
        table: &Table<'_, '_>,
    ) -> Option<(Option<PathBuf>, SecretString)> {
        let SecretKeys { what, inline: inline_key, file: file_key, example } = keys;
        if inline.is_set && file.is_set {
            self.error(inline.span.clone(), format!("`{inline_key}` and `{file_key}` are mutually exclusive: remove one of them, preferably `{inline_key}`"));
            return None;
        }
        if !inline.is_set && !file.is_set {
            let text = format!("the {what} is missing: add `{file_key} = \"{example}\"`");
            self.error(table.span.clone(), text);
            return None;
        }
        let secret = match (inline.value.as_ref()?, file.value.as_ref()?) {
            (Some(secret), _) => self
                .secrets
                .check_inline(secret, file_key, &inline.span, &mut self.warnings)
                .map(|()| (None, secret.clone())),
            (None, path) => self
                .secrets
                .read(path.as_ref()?, file_key, &file.span, &mut self.warnings)
                .map(|read| (Some(read.path), read.secret)),
        };
        secret.map_err(|error| self.errors.push(error)).ok()
    }

    /// Warns of secrets that go over a network in clear text.
    pub(super) fn warn_if_unencrypted(&mut self, span: Range<usize>, url: &Url, warning: &str) {
        if url.scheme() == "http" && !is_loopback(url) {
            self.warn(span, warning);
        }
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
