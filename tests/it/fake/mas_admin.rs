//! MAS's Admin API in memory, checked against its OpenAPI description: every request, and every response.

use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use super::Seen;
use super::endpoints::{Answer, percent_decoded, query_pairs};
use super::mas::{Link, Mas, Session, SessionKind};
use super::openapi::Operation;
use super::world::World;

const PREFIX: &str = "/api/admin/v1/";

/// Responds to a request to the Admin API, and carries it out.
pub(super) fn answer(world: &mut World, seen: &Seen, authorization: &str) -> Answer {
    let query = query_pairs(&seen.query);
    let Some(operation) = Operation::find(&seen.method, &seen.path) else {
        world.complain(format!("{} {} is not in the OpenAPI file", seen.method, seen.path));
        return Answer { status: 405, body: Vec::new(), ..Answer::json(&()) };
    };
    for problem in operation.unknown_in_request(&query, &seen.body) {
        world.complain(format!("{} {}: {problem}", seen.method, seen.path));
    }
    let now = world.now();
    let answer = match authorized(&world.auth_service, authorization) {
        Ok(caller) => carried_out(&mut world.auth_service, seen, &query, &caller, now)
            .unwrap_or_else(|refusal| refusal),
        Err(refusal) => refusal,
    };
    if seen.method == "POST" && answer.status == 200 {
        tell_synapse(world, seen);
    }
    if answer.content_type == "application/json" && !answer.body.is_empty() {
        let body = serde_json::from_slice(&answer.body).expect("what serde_json wrote");
        for problem in operation.problems_in_response(answer.status, &body) {
            world.complain(format!("the fake: {} {}: {problem}", seen.method, seen.path));
        }
    }
    answer
}

/// MAS tells Synapse of a lock and of a deactivation, a moment later.
fn tell_synapse(world: &mut World, seen: &Seen) {
    let path = seen.path.strip_prefix(PREFIX).unwrap_or_default();
    let Some(("users", rest)) = path.split_once('/') else { return };
    let id = rest.split('/').next().unwrap_or_default();
    let Some(user) = world.auth_service.users.get(id).cloned() else { return };
    let user_id = format!("@{}:{}", user.username, world.server_name);
    if !world.users.contains_key(&user_id) {
        return;
    }
    if rest.ends_with("/deactivate") {
        let skip_erase = serde_json::from_str(&seen.body)
            .is_ok_and(|body: Value| body["skip_erase"] == Value::Bool(true));
        world.deactivate(&user_id, !skip_erase);
    }
    world.user(&user_id).locked = user.locked_at.is_some();
    world.touched();
}

type Answered = Result<Answer, Answer>;

fn errors(status: u16, titles: &[&str]) -> Answer {
    let titles: Vec<Value> = titles.iter().map(|title| json!({ "title": title })).collect();
    Answer { status, ..Answer::json(&json!({ "errors": titles })) }
}

fn refused<T>(status: u16, title: &str) -> Result<T, Answer> {
    Err(errors(status, &[title]))
}

/// The client of the token.
fn authorized(mas: &Mas, authorization: &str) -> Result<String, Answer> {
    if authorization.is_empty() {
        return refused(400, "Missing authorization header");
    }
    let Some((_, token)) =
        authorization.split_once(' ').filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"))
    else {
        return refused(400, "Invalid authorization header");
    };
    if !token.starts_with("mat_") && !token.starts_with("mpt_") {
        let titles = ["Invalid type of access token", "invalid token format"];
        let known = ["syt_", "mct_"].iter().any(|prefix| token.starts_with(prefix));
        return Err(errors(401, &titles[..if known { 1 } else { 2 }]));
    }
    let Some(issued) = mas.tokens.get(token) else {
        return refused(401, "Unknown access token");
    };
    if issued.revoked {
        return refused(401, "Access token revoked");
    }
    if issued.expires_at <= Instant::now() {
        return refused(401, "Access token expired");
    }
    if issued.scope != "urn:mas:admin" {
        return refused(401, "Missing urn:mas:admin scope");
    }
    Ok(issued.client_id.clone())
}

fn carried_out(
    mas: &mut Mas,
    seen: &Seen,
    query: &[(String, String)],
    caller: &str,
    now: DateTime<Utc>,
) -> Answered {
    let path = seen.path.strip_prefix(PREFIX).unwrap_or_default();
    let segments: Vec<String> = path.split('/').map(percent_decoded).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let list = List { mas, seen, query };
    match (seen.method.as_str(), &segments[..]) {
        ("GET", ["version"]) => Ok(Answer::json(&json!({ "version": mas.version }))),
        ("GET", ["site-config"]) => Ok(Answer::json(&site_config())),
        ("GET", ["users"]) => list.of(mas.users.keys(), |id| user_of(mas, id, now)),
        ("GET", ["users", "by-username", name]) => {
            let found = mas.users.iter().find(|(_, user)| user.username.eq_ignore_ascii_case(name));
            match found {
                Some((id, _)) => Ok(single(200, seen, &user_of(mas, id, now))),
                None => refused(404, &format!("User with username \"{name}\" not found")),
            }
        }
        ("GET", ["users", id]) => match mas.users.contains_key(valid(id)?) {
            true => Ok(single(200, seen, &user_of(mas, id, now))),
            false => refused(404, &format!("User ID {id} not found")),
        },
        ("POST", ["users", id, action @ ("lock" | "unlock" | "deactivate")]) => {
            if *action == "deactivate" && !seen.body.is_empty() {
                json_body(seen)?;
            }
            let Some(user) = mas.users.get_mut(valid(id)?) else {
                return refused(404, &format!("User ID {id} not found"));
            };
            match *action {
                "lock" => user.locked_at = user.locked_at.take().or_else(|| Some(time(now))),
                "unlock" => user.locked_at = None,
                _ => user.deactivated_at = user.deactivated_at.take().or_else(|| Some(time(now))),
            }
            Ok(single(200, seen, &user_of(mas, id, now)))
        }
        ("GET", ["oauth2-sessions"]) => user_sessions(mas, &list, SessionKind::OAuth2),
        ("GET", ["compat-sessions"]) => user_sessions(mas, &list, SessionKind::Compatibility),
        ("GET", ["user-sessions"]) => user_sessions(mas, &list, SessionKind::Browser),
        ("GET", ["upstream-oauth-providers"]) => {
            list.of(mas.providers.keys(), |id| provider_of(mas, id, now))
        }
        ("GET", ["upstream-oauth-links"]) => list.of(mas.links.keys(), |id| link_of(mas, id)),
        ("POST", ["upstream-oauth-links"]) => create_link(mas, seen, now),
        ("GET", ["upstream-oauth-links", id]) => match mas.links.contains_key(valid(id)?) {
            true => Ok(single(200, seen, &link_of(mas, id))),
            false => refused(404, &format!("Upstream OAuth 2.0 Link ID {id} not found")),
        },
        ("DELETE", ["upstream-oauth-links", id]) => match mas.links.remove(valid(id)?) {
            Some(_) => {
                Ok(Answer { status: 204, content_type: "", body: Vec::new(), ..Answer::json(&()) })
            }
            None => refused(404, &format!("Upstream OAuth 2.0 Link ID {id} not found")),
        },
        ("GET", ["personal-sessions"]) => {
            list.of(mas.sessions.keys(), |id| session_of(mas, id, now))
        }
        ("POST", ["personal-sessions"]) => create_session(mas, seen, caller, now),
        ("POST", ["personal-sessions", id, "regenerate"]) => {
            regenerate(mas, seen, (caller, valid(id)?), now)
        }
        ("POST", ["personal-sessions", id, "revoke"]) => match mas.sessions.get_mut(valid(id)?) {
            None => refused(404, &format!("Personal session with ID {id} not found")),
            Some(session) if session.revoked_at.is_some() => {
                refused(409, &format!("Personal session with ID {id} is already revoked"))
            }
            Some(session) => {
                (session.revoked_at, session.expires_at) = (Some(time(now)), None);
                Ok(single(200, seen, &session_of(mas, id, now)))
            }
        },
        ("POST", ["oauth2-sessions" | "compat-sessions", id, "finish"]) => {
            finish_session(mas, seen, valid(id)?, now)
        }
        ("GET", ["user-registration-tokens"]) => {
            list.of(mas.registration_tokens.keys(), |id| registration_token_of(mas, id, now))
        }
        ("GET", ["user-registration-tokens", id]) => {
            match mas.registration_tokens.contains_key(valid(id)?) {
                true => Ok(single(200, seen, &registration_token_of(mas, id, now))),
                false => refused(404, &format!("Registration token with ID {id} not found")),
            }
        }
        ("POST", ["user-registration-tokens", id, what @ ("revoke" | "unrevoke")]) => {
            let revokes = *what == "revoke";
            match mas.registration_tokens.get_mut(valid(id)?) {
                None => refused(404, &format!("Registration token with ID {id} not found")),
                Some(token) if token.revoked_at.is_some() == revokes => {
                    let state = if revokes { "already" } else { "not" };
                    refused(400, &format!("Registration token with ID {id} is {state} revoked"))
                }
                Some(token) => {
                    token.revoked_at = revokes.then(|| time(now));
                    Ok(single(200, seen, &registration_token_of(mas, id, now)))
                }
            }
        }
        _ => panic!("the fake MAS has no {} {}", seen.method, seen.path),
    }
}

fn valid(id: &str) -> Result<&str, Answer> {
    match id.len() {
        26 => Ok(id),
        _ => Err(errors(400, &["Invalid ULID in path", "invalid length"])),
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn single(status: u16, seen: &Seen, resource: &Value) -> Answer {
    Answer { status, ..Answer::json(&json!({ "data": resource, "links": { "self": seen.path } })) }
}

fn resource(kind: &str, list: &str, id: &str, attributes: &Value) -> Value {
    let this = format!("{PREFIX}{list}/{id}");
    json!({"type": kind, "id": id, "attributes": attributes, "links": {"self": this}})
}

fn user_of(mas: &Mas, id: &str, now: DateTime<Utc>) -> Value {
    let user = &mas.users[id];
    let attributes = json!({
        "username": user.username, "created_at": time(now), "locked_at": user.locked_at,
        "deactivated_at": user.deactivated_at, "admin": user.admin,
        "legacy_guest": user.legacy_guest,
    });
    resource("user", "users", id, &attributes)
}

fn provider_of(mas: &Mas, id: &str, now: DateTime<Utc>) -> Value {
    let provider = &mas.providers[id];
    let attributes = json!({
        "issuer": provider.issuer, "human_name": provider.human_name,
        "brand_name": provider.brand_name, "created_at": time(now),
        "disabled_at": provider.disabled.then(|| time(now)), "registration_token_required": false,
    });
    resource("upstream-oauth-provider", "upstream-oauth-providers", id, &attributes)
}

fn link_of(mas: &Mas, id: &str) -> Value {
    let link = &mas.links[id];
    let attributes = json!({
        "created_at": link.created_at, "provider_id": link.provider_id, "subject": link.subject,
        "user_id": link.user_id, "human_account_name": link.human_account_name,
    });
    resource("upstream-oauth-link", "upstream-oauth-links", id, &attributes)
}

fn session_of(mas: &Mas, id: &str, now: DateTime<Utc>) -> Value {
    let session = &mas.sessions[id];
    let attributes = json!({
        "created_at": time(now), "revoked_at": session.revoked_at,
        "owner_user_id": session.owner_user_id, "owner_client_id": session.owner_client_id,
        "actor_user_id": session.actor_user_id, "human_name": session.human_name,
        "scope": session.scope, "last_active_at": null, "last_active_ip": null,
        "expires_at": session.expires_at.as_ref().map(|(_, at)| at),
    });
    resource("personal-session", "personal-sessions", id, &attributes)
}

fn user_sessions(mas: &Mas, list: &List<'_>, kind: SessionKind) -> Answered {
    let of_kind = mas.user_sessions.iter().filter(|(_, session)| session.kind == kind);
    let ids: Vec<&String> = of_kind.map(|(id, _)| id).collect();
    list.of(ids.into_iter(), |id| user_session_of(mas, id))
}

fn user_session_of(mas: &Mas, id: &str) -> Value {
    let session = &mas.user_sessions[id];
    let mut attributes = json!({
        "created_at": session.created_at, "finished_at": session.finished_at,
        "user_id": (!session.user_id.is_empty()).then_some(&session.user_id),
        "user_agent": null, "last_active_ip": null,
        "last_active_at": session.last_active_at,
    });
    let (name, list) = match session.kind {
        SessionKind::OAuth2 => {
            attributes["client_id"] = super::CLIENT_ID.into();
            let device = session.device_id.as_ref();
            let device = device.map(|id| format!(" urn:matrix:client:device:{id}"));
            attributes["scope"] = format!("openid{}", device.unwrap_or_default()).into();
            ("oauth2-session", "oauth2-sessions")
        }
        SessionKind::Compatibility => {
            attributes["device_id"] = session.device_id.clone().into();
            ("compat-session", "compat-sessions")
        }
        SessionKind::Browser => ("user-session", "user-sessions"),
    };
    resource(name, list, id, &attributes)
}

fn finish_session(mas: &mut Mas, seen: &Seen, id: &str, now: DateTime<Utc>) -> Answered {
    let name = match seen.path.contains("/oauth2-sessions/") {
        true => "OAuth 2.0 session",
        false => "Compatibility session",
    };
    match mas.user_sessions.get_mut(id) {
        None => refused(404, &format!("{name} with ID {id} not found")),
        Some(session) if session.finished_at.is_some() => {
            refused(400, &format!("{name} with ID {id} is already finished"))
        }
        Some(session) => {
            session.finished_at = Some(time(now));
            Ok(single(200, seen, &user_session_of(mas, id)))
        }
    }
}

fn registration_token_of(mas: &Mas, id: &str, now: DateTime<Utc>) -> Value {
    let token = &mas.registration_tokens[id];
    let is_over = token
        .expires_at
        .as_ref()
        .is_some_and(|at| at.parse::<DateTime<Utc>>().is_ok_and(|at| at <= now));
    let is_used_up = token.usage_limit.is_some_and(|limit| token.times_used >= limit);
    let attributes = json!({
        "token": token.token, "valid": !is_over && !is_used_up && token.revoked_at.is_none(),
        "usage_limit": token.usage_limit, "times_used": token.times_used,
        "created_at": "2024-01-01T00:00:00Z", "last_used_at": token.last_used_at,
        "expires_at": token.expires_at, "revoked_at": token.revoked_at,
    });
    resource("user-registration_token", "user-registration-tokens", id, &attributes)
}

fn site_config() -> Value {
    json!({
        "server_name": super::SERVER_NAME, "password_login_enabled": true,
        "password_registration_enabled": false, "password_registration_email_required": true,
        "password_registration_token_required": false, "registration_token_required": false,
        "email_change_allowed": true, "displayname_change_allowed": true,
        "password_change_allowed": true, "account_recovery_allowed": false,
        "account_deactivation_allowed": true, "captcha_enabled": false,
        "minimum_password_complexity": 3,
    })
}

fn create_link(mas: &mut Mas, seen: &Seen, now: DateTime<Utc>) -> Answered {
    let body = json_body(seen)?;
    let text = |name: &str| body[name].as_str().map(str::to_owned);
    let field = |name: &str| text(name).ok_or_else(|| missing(name));
    let (user_id, provider_id) = (field("user_id")?, field("provider_id")?);
    let (subject, human_account_name) = (field("subject")?, text("human_account_name"));
    if !mas.users.contains_key(&user_id) {
        return refused(404, &format!("User ID {user_id} not found"));
    }
    if !mas.providers.contains_key(&provider_id) {
        return refused(404, &format!("Upstream OAuth 2.0 Provider ID {provider_id} not found"));
    }
    let existing = mas
        .links
        .iter_mut()
        .find(|(_, link)| link.provider_id == provider_id && link.subject == subject);
    if let Some((id, link)) = existing {
        if link.user_id.is_some() {
            return refused(
                409,
                &format!(
                    "Upstream Oauth 2.0 Provider ID {provider_id} with subject {subject} is already linked to a user"
                ),
            );
        }
        link.user_id = Some(user_id);
        let id = id.clone();
        return Ok(single(200, seen, &link_of(mas, &id)));
    }
    let id = mas.ulid();
    let (created_at, user_id) = (time(now), Some(user_id));
    let link = Link { created_at, provider_id, subject, user_id, human_account_name };
    mas.links.insert(id.clone(), link);
    Ok(single(201, seen, &link_of(mas, &id)))
}

fn create_session(mas: &mut Mas, seen: &Seen, caller: &str, now: DateTime<Utc>) -> Answered {
    let body = json_body(seen)?;
    let field = |name: &str| body[name].as_str().map(str::to_owned).ok_or_else(|| missing(name));
    let (actor_user_id, human_name) = (field("actor_user_id")?, field("human_name")?);
    let mut scopes: Vec<String> = field("scope")?.split(' ').map(str::to_owned).collect();
    if scopes.iter().any(String::is_empty) {
        return refused(400, "Invalid scope");
    }
    // They come back sorted.
    scopes.sort();
    match mas.users.get(&actor_user_id) {
        None => return refused(404, "User not found"),
        Some(user) if user.deactivated_at.is_some() => return refused(410, "User is not active"),
        Some(_) => {}
    }
    let (id, token) = (mas.ulid(), mas.token("mpt"));
    let session = Session {
        owner_client_id: Some(caller.to_owned()),
        owner_user_id: None,
        actor_user_id,
        human_name,
        scope: scopes.join(" "),
        token,
        expires_at: expiry(&body, now),
        revoked_at: None,
    };
    mas.sessions.insert(id.clone(), session);
    Ok(with_token(mas, seen, &id, now))
}

fn regenerate(
    mas: &mut Mas,
    seen: &Seen,
    (caller, id): (&str, &str),
    now: DateTime<Utc>,
) -> Answered {
    let body = json_body(seen)?;
    let token = mas.token("mpt");
    let Some(session) = mas.sessions.get_mut(id) else {
        return refused(404, &format!("Personal session with ID {id} not found"));
    };
    if session.owner_client_id.as_deref() != Some(caller) {
        return refused(403, "Session does not belong to you");
    }
    if session.revoked_at.is_some() {
        return refused(422, "Session not valid");
    }
    (session.token, session.expires_at) = (token, expiry(&body, now));
    Ok(with_token(mas, seen, id, now))
}

fn with_token(mas: &Mas, seen: &Seen, id: &str, now: DateTime<Utc>) -> Answer {
    let mut session = session_of(mas, id, now);
    session["attributes"]["access_token"] = mas.sessions[id].token.as_str().into();
    single(201, seen, &session)
}

fn expiry(body: &Value, now: DateTime<Utc>) -> Option<(Instant, String)> {
    let seconds = u32::try_from(body["expires_in"].as_u64()?).ok()?;
    let at = now + TimeDelta::seconds(seconds.into());
    Some((Instant::now() + Duration::from_secs(seconds.into()), time(at)))
}

fn json_body(seen: &Seen) -> Result<Value, Answer> {
    let plain = |status, text: &str| Answer {
        status,
        content_type: "text/plain; charset=utf-8",
        body: text.as_bytes().to_vec(),
        ..Answer::json(&())
    };
    if !seen.content_type.starts_with("application/json") {
        return Err(plain(415, "Expected request with `Content-Type: application/json`"));
    }
    serde_json::from_str(&seen.body)
        .map_err(|_| plain(400, "Failed to parse the request body as JSON"))
}

fn missing(field: &str) -> Answer {
    let text = format!(
        "Failed to deserialize the JSON body into the target type: missing field `{field}`"
    );
    Answer {
        status: 422,
        content_type: "text/plain; charset=utf-8",
        body: text.into_bytes(),
        ..Answer::json(&())
    }
}

/// A list and what was asked of it.
struct List<'a> {
    mas: &'a Mas,
    seen: &'a Seen,
    query: &'a [(String, String)],
}

impl List<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn of<'i>(
        &self,
        ids: impl Iterator<Item = &'i String> + Clone,
        resource: impl Fn(&str) -> Value,
    ) -> Answered {
        let filters: Vec<(&str, &str)> = self
            .query
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, _)| name.starts_with("filter["))
            .filter(|(name, _)| !self.mas.unknown_filters.contains(name))
            .collect();
        for (name, value) in &filters {
            self.check(name, value)?;
        }
        let first = match self.text("page[first]").map(str::parse) {
            None => 10,
            Some(Ok(first)) if first > 0 => first,
            Some(_) => return refused(400, "Invalid pagination parameters"),
        };
        let is_asked = |row: &Value| filters.iter().all(|(name, value)| fits(row, name, value));
        let after = self.text("page[after]").unwrap_or_default();
        // No further than the page goes: a list may be long.
        let rest: Vec<Value> = ids
            .clone()
            .filter(|id| id.as_str() > after)
            .map(|id| resource(id))
            .filter(is_asked)
            .take(first + 1)
            .collect();
        let page: Vec<Value> = rest.iter().take(first).map(|row| self.with_cursor(row)).collect();
        // Without encoding, as MAS writes them.
        let echo: String = filters.iter().map(|(name, value)| format!("&{name}={value}")).collect();
        let link = |pages: &str| format!("{}?{pages}{echo}", self.seen.path);
        let mut links = json!({
            "self": link(&format!("page[first]={first}")),
            "first": link(&format!("page[first]={first}")),
            "last": link(&format!("page[last]={first}")),
        });
        if rest.len() > first {
            // Following it must not be needed: in some lists of MAS it leads back.
            links["next"] =
                link(&format!("page[after]=01000000000000000000000000&page[first]={first}")).into();
        }
        let mut body = json!({ "data": page, "links": links });
        if self.text("count") != Some("false") {
            let count = ids.map(|id| resource(id)).filter(is_asked).count();
            body["meta"] = json!({ "count": count });
        }
        Ok(Answer::json(&body))
    }

    fn check(&self, name: &str, value: &str) -> Result<(), Answer> {
        let mas = self.mas;
        let (what, exists) = match name {
            "filter[user]" | "filter[actor_user]" => ("User", mas.users.contains_key(value)),
            "filter[provider]" => ("Provider", mas.providers.contains_key(value)),
            "filter[owner_client]" => ("Client", mas.clients.contains_key(value)),
            "filter[status]" => {
                let known: &[&str] = match self.seen.path.rsplit('/').next() {
                    Some("users") => &["active", "locked", "deactivated"],
                    Some("personal-sessions") => &["active", "revoked"],
                    _ => &["active", "finished"],
                };
                return match known.contains(&value) {
                    true => Ok(()),
                    false => Err(errors(
                        400,
                        &[
                            "Invalid filter parameters",
                            &format!(
                                "Failed to deserialize query string: filter[status]: unknown variant `{value}`"
                            ),
                        ],
                    )),
                };
            }
            _ => return Ok(()),
        };
        if exists { Ok(()) } else { refused(404, &format!("{what} ID {value} not found")) }
    }

    fn with_cursor(&self, row: &Value) -> Value {
        let mut row = row.clone();
        // As in the list of user sessions, whose cursors are ids of users: a client must use the last id.
        let cursor = match self.seen.path.ends_with("/personal-sessions") {
            true => row["attributes"]["actor_user_id"].clone(),
            false => row["id"].clone(),
        };
        row["meta"] = json!({ "page": { "cursor": cursor } });
        row
    }
}

fn fits(row: &Value, filter: &str, value: &str) -> bool {
    let attributes = &row["attributes"];
    let is_set = |name: &str| !attributes[name].is_null();
    match (filter, value) {
        ("filter[user]", id) => attributes["user_id"] == id,
        ("filter[provider]", id) => attributes["provider_id"] == id,
        ("filter[subject]", subject) => attributes["subject"] == subject,
        ("filter[owner_client]", id) => attributes["owner_client_id"] == id,
        ("filter[actor_user]", id) => attributes["actor_user_id"] == id,
        ("filter[enabled]", enabled) => is_set("disabled_at") != (enabled == "true"),
        ("filter[status]", "locked") => is_set("locked_at"),
        ("filter[status]", "deactivated") => is_set("deactivated_at"),
        ("filter[status]", "revoked") => is_set("revoked_at"),
        ("filter[status]", "finished") => is_set("finished_at"),
        ("filter[status]", _) => ["locked_at", "deactivated_at", "revoked_at", "finished_at"]
            .iter()
            .all(|name| !is_set(name)),
        _ => panic!("the fake MAS has no {filter}"),
    }
}
