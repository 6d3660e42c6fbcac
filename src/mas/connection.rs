//! The connection to one MAS, shared by all that use it.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;

use super::client_credentials::ClientCredentials;
use super::ulid::Ulid;
use crate::http::{self, Address, Api, Clients, Limits, Observer, Token, TokenSource, Transport};
use crate::values::clock::Clock;

/// How the MAS of a homeserver is reached.
#[derive(Debug)]
pub struct Settings {
    /// The name of the homeserver.
    pub name: String,
    pub url: Url,
    /// Where the Admin API is served.
    pub admin_url: Url,
    pub client_id: Ulid,
    pub client_secret: Token,
    /// The localpart of the account that the program acts as on the homeserver.
    pub account: String,
    /// PEM certificates to trust besides the system's.
    pub ca: Option<Vec<u8>>,
    /// Those of `url` and of `admin_url`: another server than the homeserver, with limits of its own.
    pub limits: [Arc<Limits>; 2],
    pub request_timeout: Duration,
}

/// The connection to one MAS with its credentials and limits.
#[derive(Debug)]
pub struct Connection {
    pub(super) admin_api: Transport,
    /// The public one.
    pub(super) url: Url,
    pub client_id: Ulid,
    /// The localpart of the account that the program acts as on the homeserver.
    pub account: String,
}

impl Connection {
    pub fn new(settings: Settings, observer: &Observer, clock: Clock) -> Result<Self, String> {
        Self::sharing(&mut Clients::default(), settings, observer, clock)
    }

    /// Shares the HTTP client with other servers that trust the same certificates.
    pub(crate) fn sharing(
        clients: &mut Clients,
        settings: Settings,
        observer: &Observer,
        clock: Clock,
    ) -> Result<Self, String> {
        let Settings {
            name,
            url,
            admin_url,
            client_id,
            client_secret,
            account,
            ca,
            limits: [url_limits, admin_limits],
            request_timeout,
        } = settings;
        let mut transport = |url: &Url, limits: &Arc<Limits>, token| {
            let settings = http::Settings {
                name: name.clone(),
                api: Api::Mas,
                url: url.clone(),
                media_url: None,
                token,
                ca: ca.clone(),
                limits: Arc::clone(limits),
                request_timeout,
            };
            Transport::sharing(clients, settings, Arc::clone(observer))
        };
        // The internal listener first: it is the one that is reachable without a proxy, if it has the resource `oauth`.
        let mut listeners = vec![transport(&admin_url, &admin_limits, TokenSource::Absent)?];
        if Address::of(&url) != Address::of(&admin_url) {
            listeners.push(transport(&url, &url_limits, TokenSource::Absent)?);
        }
        let credentials =
            ClientCredentials::new(client_id.clone(), client_secret, listeners, clock);
        let token = TokenSource::Issued(Arc::new(credentials));
        Ok(Self {
            admin_api: transport(&admin_url, &admin_limits, token)?,
            url,
            client_id,
            account,
        })
    }
}
