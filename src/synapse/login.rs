//! Logging in to and out of a homeserver that keeps its accounts itself.

use chrono::SecondsFormat;
use reqwest::{Method, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::json::id;
use super::reader::Reader;
use crate::http::{Base, Call, Cause, Error, Pacing, Repeat, Response, validate_token};

/// The device of every login: one that exists already is used again.
///
/// Synapse 1.163 does not end the previous tokens of a device when it issues another one, and ends all of them when any of
/// them logs out.
pub(crate) const DEVICE_ID: &str = "MICROGLIA";

const LOGIN_ENDPOINT: &str = "/_matrix/client/v3/login";

/// The ways to log in that the homeserver offers, of those that this program knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoginFlows {
    pub password: bool,
    /// In a browser, which gets a login token in the end.
    pub sso: bool,
    /// The SSO providers that are configured, by the names that external ids carry.
    pub providers: Vec<String>,
}

/// Begins and ends sessions, and changes nothing else; only the command line creates one.
pub(crate) struct Authenticator {
    reader: Reader,
}

/// What a login proves.
pub(crate) enum Credentials {
    Password {
        user: String,
        password: SecretString,
    },
    /// A login token, which the browser brings back from SSO; valid once, for two minutes.
    LoginToken(SecretString),
}

/// A session that has just begun.
pub(crate) struct NewSession {
    pub user_id: String,
    pub token: SecretString,
    /// `None` if the token does not expire by itself.
    pub expires_in_ms: Option<u64>,
    /// The name that the device has if this login created it: a device that exists keeps its own.
    pub device_name: String,
}

/// Returns what to open in a browser for SSO; the browser is sent to `redirect` in the end, with a `loginToken`.
pub(crate) fn sso_url(homeserver: &Url, redirect: &Url) -> Url {
    let mut url = homeserver.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(["_matrix", "client", "v3", "login", "sso", "redirect"]);
    }
    url.query_pairs_mut().append_pair("redirectUrl", redirect.as_str());
    url
}

impl Authenticator {
    pub(crate) fn new(reader: Reader) -> Self {
        Self { reader }
    }

    /// Begins a session on the device [`DEVICE_ID`].
    ///
    /// Never sent twice, not even after 429 (`rc_login`): with the defaults of Synapse the wait is minutes, which the caller
    /// has to announce.
    pub(crate) async fn log_in(&self, credentials: &Credentials) -> Result<NewSession, Error> {
        #[derive(Deserialize)]
        struct LoggedIn {
            #[serde(deserialize_with = "id")]
            user_id: String,
            access_token: String,
            expires_in_ms: Option<u64>,
        }
        let mut body = match credentials {
            Credentials::Password { user, password } => json!({
                "type": "m.login.password",
                "identifier": { "type": "m.id.user", "user": user },
                "password": password.expose_secret(),
            }),
            Credentials::LoginToken(token) => {
                json!({ "type": "m.login.token", "token": token.expose_secret() })
            }
        };
        body["device_id"] = DEVICE_ID.into();
        let now = self.reader.clock.now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let device_name = format!("microglia, first login {now}");
        body["initial_device_display_name"] = device_name.as_str().into();
        let response = self.post(LOGIN_ENDPOINT, body).await?;
        let session: LoggedIn = response.decode_secret()?;
        validate_token(&session.access_token)
            .map_err(|problem| response.unexpected(format!("the new access token {problem}")))?;
        Ok(NewSession {
            user_id: session.user_id,
            token: session.access_token.into(),
            expires_in_ms: session.expires_in_ms,
            device_name,
        })
    }

    /// Ends the session of the transport's token, and its device with all its tokens.
    pub(crate) async fn log_out(&self) -> Result<(), Error> {
        self.post("/_matrix/client/v3/logout", json!({})).await.map(drop)
    }

    async fn post(&self, endpoint: &'static str, body: Value) -> Result<Response, Error> {
        let call = Call {
            method: Method::POST,
            base: Base::Homeserver,
            endpoint,
            ids: &[],
            query: vec![],
            body: Some(body),
            repeat: Repeat::Never,
            pacing: Pacing::Normal,
            timeout: Some(self.reader.transport.request_timeout()),
        };
        let never = CancellationToken::new();
        let response = self.reader.transport.send(&call, self.reader.session(&never)).await;
        self.reader.count_request();
        response
    }
}

impl Reader {
    /// Returns how one can log in; `None` if the homeserver serves no login at all.
    pub(crate) async fn login_flows(&self) -> Result<Option<LoginFlows>, Error> {
        #[derive(Deserialize)]
        struct Provider {
            id: String,
        }
        #[derive(Deserialize)]
        struct Flow {
            r#type: String,
            #[serde(default)]
            identity_providers: Vec<Provider>,
        }
        #[derive(Deserialize)]
        struct Flows {
            flows: Vec<Flow>,
        }
        let response = match self.get_from(Base::Homeserver, LOGIN_ENDPOINT, &[], vec![]).await {
            Err(error) if error.is_unrecognized() => return Ok(None),
            response => response?,
        };
        let flows = response.decode::<Flows>()?.flows;
        let offers = |kind: &str| flows.iter().any(|flow| flow.r#type == kind);
        let sso = offers("m.login.sso") && offers("m.login.token");
        let password = offers("m.login.password");
        let providers = flows.into_iter().flat_map(|flow| flow.identity_providers);
        Ok(Some(LoginFlows {
            password,
            sso,
            providers: providers.map(|provider| provider.id).collect(),
        }))
    }

    /// Returns the name of the device [`DEVICE_ID`] of the transport's account.
    pub(crate) async fn device_name(&self) -> Result<Option<String>, Error> {
        #[derive(Deserialize)]
        struct Device {
            display_name: Option<String>,
        }
        let endpoint = "/_matrix/client/v3/devices/{}";
        let response =
            self.get_repeatedly(Repeat::Never, Base::Homeserver, endpoint, &[DEVICE_ID], vec![]);
        Ok(response.await?.decode::<Device>()?.display_name)
    }

    /// Returns where a browser reaches the homeserver, as its `.well-known` says; `None` if it does not say so.
    pub(crate) async fn public_url(&self) -> Option<Url> {
        #[derive(Deserialize)]
        struct Homeserver {
            base_url: String,
        }
        #[derive(Deserialize)]
        struct WellKnown {
            #[serde(rename = "m.homeserver")]
            homeserver: Homeserver,
        }
        let response = self.get_once("/.well-known/matrix/client").await.ok()?;
        http_url(&response.decode::<WellKnown>().ok()?.homeserver.base_url)
    }

    /// Returns the URL of MAS, as Synapse passes it on; `None` while MAS is down.
    pub(crate) async fn mas_url(&self) -> Option<Url> {
        #[derive(Deserialize)]
        struct Metadata {
            issuer: String,
        }
        let response = self.get_once("/_matrix/client/v1/auth_metadata").await.ok()?;
        http_url(&response.decode::<Metadata>().ok()?.issuer)
    }

    /// Returns what responds at the URL of the homeserver; asks once, because a person waits.
    pub(crate) async fn responder(&self) -> Responder {
        let version = match self.get_once(super::VERSION_ENDPOINT).await {
            Ok(response) => Self::version_in(&response),
            Err(error) => Err(error),
        };
        let error = match version {
            Ok(version) => return Responder::Synapse { version },
            Err(error) if matches!(error.cause, Cause::Unreachable(_) | Cause::Lost(_)) => {
                return Responder::Nothing(error);
            }
            Err(error) => error,
        };
        match self.get_once("/_matrix/client/versions").await {
            Ok(response) if response.decode::<Versions>().is_ok() => {
                Responder::WithoutAdminApi(error)
            }
            _ => Responder::Other(error),
        }
    }

    async fn get_once(&self, endpoint: &'static str) -> Result<Response, Error> {
        self.get_repeatedly(Repeat::Never, Base::Homeserver, endpoint, &[], vec![]).await
    }
}

#[derive(Deserialize)]
struct Versions {
    #[expect(dead_code, reason = "only whether it is there")]
    versions: Vec<String>,
}

/// What responds at a URL.
#[derive(Debug)]
pub(crate) enum Responder {
    Synapse {
        version: String,
    },
    /// A homeserver whose admin API is not reachable here, most likely behind a proxy that hides it.
    WithoutAdminApi(Error),
    /// A server that is no homeserver.
    Other(Error),
    Nothing(Error),
}

fn http_url(text: &str) -> Option<Url> {
    text.parse().ok().filter(|url: &Url| matches!(url.scheme(), "http" | "https"))
}
