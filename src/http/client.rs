//! The HTTP clients of homeservers: TLS and connection settings.

use std::collections::HashMap;

use std::time::Duration;

use reqwest::Url;

use crate::values::fingerprint::Fingerprint;

/// Well below the 60 s after which proxies close an idle connection: a POST on a connection that was just closed is
/// ambiguous. The first probes of five hundred homeservers open as many connections, each with its buffers.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const NO_RESPONSE: &str = "no response within the timeout";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Clients by what they trust: each has all certificates of the system in memory, and takes milliseconds to set up.
///
/// Its clients trust what the system trusted when they were set up; it is not for keeping.
#[derive(Default)]
pub struct Clients(HashMap<Trust, reqwest::Client>);

#[derive(PartialEq, Eq, Hash)]
enum Trust {
    /// Only `http` is used.
    Nothing,
    System,
    SystemAnd(Fingerprint),
}

impl Clients {
    /// Returns the client for `urls` that trusts the certificates of the PEM bundle `ca` besides the system's.
    pub(super) fn client(
        &mut self,
        urls: &[&Url],
        ca: Option<&[u8]>,
    ) -> Result<reqwest::Client, String> {
        let trust = match ca {
            _ if urls.iter().all(|url| url.scheme() == "http") => Trust::Nothing,
            None => Trust::System,
            Some(pem) => Trust::SystemAnd(Fingerprint::of_bytes(pem)),
        };
        if let Some(client) = self.0.get(&trust) {
            return Ok(client.clone());
        }
        let client = new(&trust, ca)?;
        self.0.insert(trust, client.clone());
        Ok(client)
    }
}

fn new(trust: &Trust, ca: Option<&[u8]>) -> Result<reqwest::Client, String> {
    // An error means that a previous call installed the provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("microglia/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .http1_only()
        .no_proxy();
    if *trust == Trust::Nothing {
        // There is nothing to verify, and the system may have no CA certificates.
        builder = builder.tls_certs_only([]);
    } else if let Some(pem) = ca {
        let certificates = reqwest::Certificate::from_pem_bundle(pem)
            .map_err(|error| format!("the CA file is not a valid PEM bundle: {error}"))?;
        if certificates.is_empty() {
            return Err("the CA file contains no certificate".to_owned());
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| format!("cannot set up TLS: {}", root_cause(&error)))
}

/// Returns the innermost cause of an error: the outer ones only say that a request failed.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return NO_RESPONSE.to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
