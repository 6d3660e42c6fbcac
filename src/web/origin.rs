//! Protection from web pages of other sites: checks of the `Host` and `Origin` headers.
//!
//! In DNS rebinding a page points its own host name at this machine, and the visitor's browser then lets the page read
//! the API. Such a request carries that name as `Host`. An IP address cannot be pointed elsewhere.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, HeaderValue, Uri, header};

/// How many characters of a client's headers a message quotes.
const MAX_QUOTED: usize = 255;

/// Returns why a request is rejected whose URI or `Host` header names an unknown host.
pub(super) fn host_rejection(uri: &Uri, headers: &HeaderMap, allowed: &[String]) -> Option<String> {
    let named = uri.authority().map(|authority| authority.as_str().as_bytes());
    let headers = headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    let mut hosts = named.into_iter().chain(headers).map(String::from_utf8_lossy);
    let refused = hosts.find(|host| !is_served(host, allowed))?;
    let name = Host::parse(&refused).map_or_else(|| quoted(&refused), |host| quoted(&host.text()));
    Some(format!(
        "this daemon does not serve {name:?}: use its IP address, or add the name to daemon.allowed_hosts"
    ))
}

/// Returns why a request for a change is rejected that a page of another site makes.
///
/// Browsers send `Origin` with every POST; other clients do not.
pub(super) fn origin_rejection(headers: &HeaderMap, allowed: &[String]) -> Option<String> {
    let origin = headers.get(header::ORIGIN)?;
    let text = String::from_utf8_lossy(origin.as_bytes());
    let own = headers.get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
    let is_own = text.split_once("://").is_some_and(|(_, authority)| {
        own.is_some_and(|own| own.eq_ignore_ascii_case(authority))
            || Host::parse(authority).is_some_and(|host| host.is_one_of(allowed))
    });
    (!is_own).then(|| {
        format!(
            "pages of {} may not send this request: only pages of this daemon, or of a name in daemon.allowed_hosts, may",
            quoted(&text)
        )
    })
}

fn is_served(authority: &str, allowed: &[String]) -> bool {
    match Host::parse(authority) {
        Some(Host::Address(_)) => true,
        // Browsers resolve it to the loopback interface without asking DNS.
        Some(host) => host.is_one_of(&["localhost".to_owned()]) || host.is_one_of(allowed),
        None => false,
    }
}

fn quoted(text: &str) -> String {
    text.chars().take(MAX_QUOTED).collect()
}

/// The host of an authority, without its port.
#[derive(Debug, PartialEq, Eq)]
enum Host {
    Address(std::net::IpAddr),
    /// In lower case, without a trailing dot.
    Name(String),
}

impl Host {
    fn parse(authority: &str) -> Option<Self> {
        if let Some(rest) = authority.strip_prefix('[') {
            let (address, port) = rest.split_once(']')?;
            let is_port = port.strip_prefix(':').map_or(port.is_empty(), is_port);
            let address: Ipv6Addr = address.parse().ok().filter(|_| is_port)?;
            return Some(Self::Address(address.into()));
        }
        let host = match authority.split_once(':') {
            Some((host, port)) if is_port(port) => host,
            Some(_) => return None,
            None => authority,
        };
        if let Ok(address) = host.parse::<Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        (!name.is_empty()).then_some(Self::Name(name))
    }

    fn is_one_of(&self, allowed: &[String]) -> bool {
        matches!(self, Self::Name(name) if allowed.iter().any(|allowed| allowed == name))
    }

    fn text(&self) -> String {
        match self {
            Self::Address(address) => address.to_string(),
            Self::Name(name) => name.clone(),
        }
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ip_addresses_localhost_and_allowed_names_are_served() {
        let allowed = ["microglia.example.com".to_owned()];
        let served = [
            "127.0.0.1",
            "10.1.2.3:8749",
            "[::1]",
            "[fe80::1]:8749",
            "localhost",
            "localhost:8749",
            "LocalHost.:1",
            "microglia.example.com",
            "Microglia.Example.Com.:443",
        ];
        let refused = [
            "",
            ":8749",
            ".",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:x",
            "127.0.0.1:8749:evil.example",
            "[::1",
            "[::1]evil.example",
            "[::1]:x",
            "::1",
            "user@127.0.0.1",
            "microglia.example.com.evil.example",
            "x.microglia.example.com",
        ];
        for authority in served {
            assert!(is_served(authority, &allowed), "{authority}");
        }
        for authority in refused {
            assert!(!is_served(authority, &allowed), "{authority}");
        }
    }

    #[test]
    fn every_host_that_a_request_names_must_be_served() {
        let mut headers = HeaderMap::new();
        let uri = Uri::from_static("/api/v1/jobs");
        assert_eq!(host_rejection(&uri, &headers, &[]), None, "HTTP/1.0 names none");
        headers.append(header::HOST, "127.0.0.1".parse().unwrap());
        assert_eq!(host_rejection(&uri, &headers, &[]), None);
        let absolute = Uri::from_static("http://evil.example/api/v1/jobs");
        assert!(host_rejection(&absolute, &headers, &[]).unwrap().contains("\"evil.example\""));
        headers.append(header::HOST, "evil.example".parse().unwrap());
        assert!(host_rejection(&uri, &headers, &[]).unwrap().contains("\"evil.example\""));
    }
}
