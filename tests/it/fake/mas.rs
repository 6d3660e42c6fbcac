//! The Matrix Authentication Service in memory: its state, its two listeners and its token endpoint.
//!
//! It responds as MAS 1.22 was measured to do. What a client must never send is a complaint of the homeserver's world.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::endpoints::{Answer, percent_decoded, query_pairs};
use super::world::World;
use super::{Process, Seen, mas_admin};

/// The client that microglia is, in the tests.
pub const CLIENT_ID: &str = "01J44RKQYM4G3TNVANTMTDYTX6";
pub const CLIENT_SECRET: &str = "s3cret-of-the-client";

pub struct Mas {
    pub version: String,
    pub clients: BTreeMap<String, Client>,
    /// Tokens for the Admin API, as they were issued.
    pub tokens: BTreeMap<String, AccessToken>,
    pub users: BTreeMap<String, MasUser>,
    pub providers: BTreeMap<String, Provider>,
    pub links: BTreeMap<String, Link>,
    pub sessions: BTreeMap<String, Session>,
    pub registration_tokens: BTreeMap<String, RegistrationToken>,
    /// In which people use their accounts.
    pub user_sessions: BTreeMap<String, UserSession>,
    /// In seconds.
    pub token_life: u64,
    /// Whether the internal listener has the resource `oauth`.
    pub internal_oauth: bool,
    /// Whether Synapse cannot reach it.
    pub is_down: bool,
    /// Filters that this version does not know: it ignores them.
    pub unknown_filters: BTreeSet<&'static str>,
    /// How long Synapse trusts what MAS said about a token.
    pub introspection_life: Duration,
    introspected: BTreeMap<String, Introspection>,
    next_id: u64,
}

#[derive(Clone, Debug)]
pub struct Client {
    pub secret: String,
    /// Whether it is in `policy.data.admin_clients`.
    pub admin: bool,
}

#[derive(Clone, Debug)]
pub struct AccessToken {
    pub client_id: String,
    pub scope: String,
    pub expires_at: Instant,
    pub revoked: bool,
}

#[derive(Clone, Debug, Default)]
pub struct MasUser {
    pub username: String,
    pub locked_at: Option<String>,
    pub deactivated_at: Option<String>,
    pub admin: bool,
    pub legacy_guest: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Provider {
    pub issuer: Option<String>,
    pub human_name: Option<String>,
    pub brand_name: Option<String>,
    pub disabled: bool,
}

#[derive(Clone, Debug)]
pub struct Link {
    pub created_at: String,
    pub provider_id: String,
    pub subject: String,
    pub user_id: Option<String>,
    pub human_account_name: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Session {
    pub owner_client_id: Option<String>,
    pub owner_user_id: Option<String>,
    pub actor_user_id: String,
    pub human_name: String,
    pub scope: String,
    pub token: String,
    /// `None`: never.
    pub expires_at: Option<(Instant, String)>,
    pub revoked_at: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SessionKind {
    OAuth2,
    Compatibility,
    Browser,
}

#[derive(Clone, Debug)]
pub struct UserSession {
    pub kind: SessionKind,
    /// Empty where a client acts for nobody.
    pub user_id: String,
    /// Of an OAuth 2.0 session, it is in the scope; one of a browser has none.
    pub device_id: Option<String>,
    pub created_at: String,
    pub last_active_at: Option<String>,
    pub finished_at: Option<String>,
}

/// Times are as MAS writes them.
#[derive(Clone, Debug, Default)]
pub struct RegistrationToken {
    pub token: String,
    pub usage_limit: Option<u32>,
    pub times_used: u32,
    pub last_used_at: Option<String>,
    pub expires_at: Option<String>,
    pub revoked_at: Option<String>,
}

/// What MAS said about a token when Synapse asked.
#[derive(Clone)]
struct Introspection {
    at: Instant,
    active: Option<Active>,
}

#[derive(Clone)]
struct Active {
    session: String,
    username: String,
    scope: String,
    expires_at: Option<Instant>,
}

impl Default for Mas {
    fn default() -> Self {
        let client = Client { secret: CLIENT_SECRET.to_owned(), admin: true };
        Self {
            version: "1.22.0-36-g682b8d26d".to_owned(),
            clients: BTreeMap::from([(CLIENT_ID.to_owned(), client)]),
            tokens: BTreeMap::new(),
            users: BTreeMap::new(),
            providers: BTreeMap::new(),
            links: BTreeMap::new(),
            sessions: BTreeMap::new(),
            registration_tokens: BTreeMap::new(),
            user_sessions: BTreeMap::new(),
            token_life: 300,
            internal_oauth: true,
            is_down: false,
            unknown_filters: BTreeSet::new(),
            introspection_life: Duration::from_mins(2),
            introspected: BTreeMap::new(),
            next_id: 0,
        }
    }
}

impl Mas {
    /// A new ULID, later than all before.
    pub fn ulid(&mut self) -> String {
        const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        self.next_id += 1;
        let digits = (0..24).rev().map(|place| {
            // More than 12 places would not fit into a u64.
            let digit = if place < 12 { (self.next_id >> (5 * place)) & 31 } else { 0 };
            char::from(ALPHABET[usize::try_from(digit).unwrap_or(0)])
        });
        format!("01{}", digits.collect::<String>())
    }

    pub fn user(&mut self, username: &str) -> String {
        let id = self.ulid();
        let user = MasUser { username: username.to_owned(), ..MasUser::default() };
        self.users.insert(id.clone(), user);
        id
    }

    pub fn provider(&mut self, provider: Provider) -> String {
        let id = self.ulid();
        self.providers.insert(id.clone(), provider);
        id
    }

    pub fn registration_token(&mut self, token: RegistrationToken) -> String {
        let id = self.ulid();
        self.registration_tokens.insert(id.clone(), token);
        id
    }

    /// A link that was created long ago.
    pub fn link(&mut self, provider_id: &str, subject: &str, user_id: Option<&str>) -> String {
        let id = self.ulid();
        let link = Link {
            created_at: "2024-01-01T00:00:00Z".to_owned(),
            provider_id: provider_id.to_owned(),
            subject: subject.to_owned(),
            user_id: user_id.map(str::to_owned),
            human_account_name: None,
        };
        self.links.insert(id.clone(), link);
        id
    }

    /// A session in which nothing happened yet.
    pub fn user_session(
        &mut self,
        kind: SessionKind,
        user_id: &str,
        created_at: &str,
    ) -> &mut UserSession {
        let id = self.ulid();
        self.user_sessions.entry(id).or_insert_with(|| UserSession {
            kind,
            user_id: user_id.to_owned(),
            device_id: None,
            created_at: created_at.to_owned(),
            last_active_at: None,
            finished_at: None,
        })
    }

    /// A token of the form that MAS gives it.
    pub(super) fn token(&mut self, prefix: &str) -> String {
        self.next_id += 1;
        format!("{prefix}_{:030}_{:06}", self.next_id, self.next_id % 1_000_000)
    }
}

/// Responds to a request to one of MAS's listeners, and carries it out.
pub(super) fn answer(world: &mut World, seen: &Seen, authorization: &str) -> Answer {
    let is_internal = seen.process == Process::MasInternal;
    match (seen.method.as_str(), seen.path.as_str()) {
        ("POST", "/oauth2/token") if !is_internal || world.auth_service.internal_oauth => {
            token_endpoint(&mut world.auth_service, seen, authorization)
        }
        (_, path) if is_internal && path.starts_with("/api/admin/v1/") => {
            mas_admin::answer(world, seen, authorization)
        }
        ("GET", "/.well-known/openid-configuration") => Answer::json(&json!({
            "issuer": format!("https://auth.{}/", world.server_name),
            "token_endpoint": format!("https://auth.{}/oauth2/token", world.server_name),
        })),
        _ => not_found(),
    }
}

/// MAS's page for unknown paths.
fn not_found() -> Answer {
    let page = "<!DOCTYPE html><html lang=\"en\"><head><title>matrix-authentication-service</title></head><body><p>Page not found</p></body></html>";
    Answer {
        status: 404,
        content_type: "text/html; charset=utf-8",
        body: page.as_bytes().to_vec(),
        ..Answer::json(&())
    }
}

fn token_endpoint(mas: &mut Mas, seen: &Seen, authorization: &str) -> Answer {
    let refused = |status, error: &str, description: &str| Answer {
        status,
        ..Answer::json(&json!({"error": error, "error_description": description}))
    };
    let form = query_pairs(&seen.body);
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    let Some(basic) = authorization.strip_prefix("Basic ") else {
        return refused(400, "invalid_request", "No credentials were presented");
    };
    let credentials = String::from_utf8(base64_decoded(basic)).unwrap_or_default();
    let (id, secret) = credentials.split_once(':').unwrap_or_default();
    let client = mas.clients.get(&percent_decoded(id)).cloned();
    let Some(client) = client.filter(|client| client.secret == percent_decoded(secret)) else {
        return refused(401, "invalid_client", "Client authentication failed.");
    };
    match field("grant_type").map(String::as_str) {
        Some("client_credentials") => {}
        Some(_) => {
            return refused(400, "unsupported_grant_type", "The grant type is not supported");
        }
        None => return refused(400, "invalid_request", "missing field `grant_type`"),
    }
    let scope = match field("scope").map(String::as_str) {
        Some("") => return refused(500, "server_error", "Internal server error"),
        Some(scope) if !client.admin || scope != "urn:mas:admin" => {
            return refused(403, "invalid_scope", &format!("scope '{scope}' not allowed"));
        }
        scope => scope,
    };
    let token = mas.token("mat");
    let issued = AccessToken {
        client_id: percent_decoded(id),
        scope: scope.unwrap_or_default().to_owned(),
        expires_at: Instant::now() + Duration::from_secs(mas.token_life),
        revoked: false,
    };
    mas.tokens.insert(token.clone(), issued);
    let mut body =
        json!({"access_token": token, "token_type": "Bearer", "expires_in": mas.token_life});
    if let Some(scope) = scope {
        body["scope"] = scope.into();
    }
    Answer::json(&body)
}

/// What Synapse answers about a token that MAS issued; `None` for any other.
///
/// Synapse keeps what MAS said for two minutes, refusals too. It sees at once that a token expired, and that the device of
/// a token is gone.
pub(super) fn introspected(world: &mut World, token: &str) -> Option<Result<Value, Answer>> {
    if !token.starts_with("mpt_") && !token.starts_with("mat_") {
        return None;
    }
    let refused = |error: &str| {
        let body = json!({"errcode": "M_UNKNOWN_TOKEN", "error": error, "soft_logout": false});
        Some(Err(Answer { status: 401, ..Answer::json(&body) }))
    };
    if token.starts_with("mat_") {
        return refused("Token doesn't grant access to the Matrix C-S API");
    }
    let now = Instant::now();
    let mas = &mut world.auth_service;
    let cached = mas
        .introspected
        .get(token)
        .filter(|known| now < known.at + mas.introspection_life)
        .cloned();
    let known = match cached {
        Some(known) => known,
        None if mas.is_down => {
            let error = "Unable to introspect the access token";
            return Some(Err(Answer::refusal(503, "M_UNKNOWN", error)));
        }
        None => {
            let asked = Introspection { at: now, active: mas.active(token, now) };
            mas.introspected.insert(token.to_owned(), asked.clone());
            asked
        }
    };
    let Some(active) = known.active else { return refused("Token is not active") };
    let session = &mas.sessions[&active.session];
    let device = active
        .scope
        .split(' ')
        .find_map(|scope| scope.strip_prefix("urn:matrix:client:device:"))
        .map(str::to_owned);
    let deactivated = mas.users[&session.actor_user_id].deactivated_at.is_some();
    let is_over = session.revoked_at.is_some() || deactivated;
    if active.expires_at.is_some_and(|at| at <= now) || device.is_some() && is_over {
        return refused("Token is not active");
    }
    let scopes: Vec<&str> = active.scope.split(' ').collect();
    if !scopes.contains(&"urn:matrix:client:api:*") {
        return refused("Token doesn't grant access to the Matrix C-S API");
    }
    let user_id = format!("@{}:{}", active.username, world.server_name);
    if !world.users.contains_key(&user_id) {
        return Some(Err(Answer::refusal(500, "M_FORBIDDEN", "User not found")));
    }
    let admin = scopes.contains(&"urn:synapse:admin:*");
    Some(Ok(json!({"user_id": user_id, "device_id": device, "admin": admin})))
}

impl Mas {
    fn active(&self, token: &str, now: Instant) -> Option<Active> {
        let (id, session) = self.sessions.iter().find(|(_, session)| session.token == token)?;
        let user = self.users.get(&session.actor_user_id)?;
        let expires_at = session.expires_at.as_ref().map(|(at, _)| *at);
        let is_active = session.revoked_at.is_none()
            && user.locked_at.is_none()
            && user.deactivated_at.is_none()
            && expires_at.is_none_or(|at| now < at);
        is_active.then(|| Active {
            session: id.clone(),
            username: user.username.clone(),
            scope: session.scope.clone(),
            expires_at,
        })
    }
}

fn base64_decoded(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(|byte| ALPHABET.iter().position(|known| *known == byte)) {
        bits = bits << 6 | u32::try_from(digit).unwrap_or(0);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 255).unwrap_or(0));
        }
    }
    bytes
}
