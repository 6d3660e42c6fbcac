//! Where a homeserver is reached, in one spelling: what its limits belong to.

use reqwest::Url;
use uuid::Uuid;

/// A base URL of which two are equal where requests to them reach the same place.
///
/// Limits belong to it and not to the name that the configuration gives a homeserver: the name can be changed by a
/// reload, and two names can have one address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(String);

impl Address {
    pub fn of(url: &Url) -> Self {
        let host = url.host_str().unwrap_or_default().trim_end_matches('.');
        let port = url.port_or_known_default().unwrap_or_default();
        let path = url.path().trim_end_matches('/');
        Self(format!("{}://{host}:{port}{path}", url.scheme()))
    }

    /// As text, without any secret.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name for files: of fixed length, and another one for each address.
    pub fn file_name(&self) -> String {
        Uuid::new_v5(&Uuid::NAMESPACE_URL, self.0.as_bytes()).simple().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Address {
        Address::of(&url.parse().unwrap())
    }

    #[test]
    fn spellings_of_one_address_are_equal() {
        for (one, other) in [
            ("http://hs.test", "http://HS.test:80/"),
            ("https://hs.test.", "https://hs.test:443"),
            ("http://hs.test/synapse", "http://hs.test/synapse//"),
            ("http://[::1]:8008", "http://[0:0::1]:8008/"),
        ] {
            assert_eq!(address(one), address(other));
            assert_eq!(address(one).file_name(), address(other).file_name());
        }
    }

    #[test]
    fn other_addresses_differ() {
        let url = "http://hs.test:8008/a";
        for other in [
            "https://hs.test:8008/a",
            "http://hs2.test:8008/a",
            "http://hs.test:8009/a",
            "http://hs.test:8008/b",
            "http://hs.test:8008",
        ] {
            assert_ne!(address(url), address(other));
            assert_ne!(address(url).file_name(), address(other).file_name());
        }
    }
}
