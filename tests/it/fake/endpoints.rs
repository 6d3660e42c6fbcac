//! The endpoints of the homeserver in memory, with Synapse's own words in every refusal.

#![expect(clippy::unnecessary_wraps, reason = "all endpoints are entries of one table")]

use std::collections::BTreeMap;

use hyper::header::{self, HeaderName};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Process, Seen, devices as device, messages, registration_tokens, reports,
    world::{Doomed, ListedJob, Media, Room, Token, User, World, room_event},
};

/// Responds to one request, and carries it out except for the deletion of files.
pub(super) fn answer(world: &mut World, seen: &Seen, authorization: &str) -> Answer {
    if matches!(seen.process, Process::MasPublic | Process::MasInternal) {
        return super::mas::answer(world, seen, authorization);
    }
    let (route, args) = match route_of(world, seen) {
        Ok(found) => found,
        Err(refusal) => return refusal,
    };
    let query = query_pairs(&seen.query);
    for text in args.iter().chain(query.iter().map(|(_, value)| value)) {
        if is_percent_encoded(text) {
            world
                .complain(format!("{} {}?{} is encoded twice", seen.method, seen.path, seen.query));
        }
    }
    let in_query =
        query.iter().find(|(name, _)| name == "access_token").map(|(_, value)| value.clone());
    if in_query.is_some() {
        world.complain(format!("{} {} carries a token in its query", seen.method, seen.path));
    }
    let mut call = Call { seen, query, args, caller: String::new(), device_id: None };
    if route.gate != Gate::Nobody {
        let token = authorization.strip_prefix("Bearer ").map(str::to_owned).or(in_query);
        match caller_of(world, token.as_deref(), route.gate) {
            Ok(token) => {
                (call.caller, call.device_id) = (token.user_id, token.device_id);
            }
            Err(refusal) => return refusal,
        }
    }
    (route.answer)(world, &call).unwrap_or_else(|refusal| refusal)
}

pub(super) struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub headers: Vec<(HeaderName, String)>,
    pub body: Vec<u8>,
    /// To be deleted before the response is sent.
    pub doomed: Vec<Doomed>,
    pub of_proxy: bool,
}

impl Answer {
    pub fn json(body: &impl Serialize) -> Self {
        Self {
            status: 200,
            content_type: "application/json",
            headers: Vec::new(),
            body: serde_json::to_vec(body).expect("what serde_json can write"),
            doomed: Vec::new(),
            of_proxy: false,
        }
    }

    pub fn refusal(status: u16, errcode: &str, error: &str) -> Self {
        Self { status, ..Self::json(&json!({"errcode": errcode, "error": error})) }
    }

    pub fn limited(retry_after_ms: Option<u64>, retry_after_header: Option<u64>) -> Self {
        let mut body = json!({"errcode": "M_LIMIT_EXCEEDED", "error": "Too Many Requests"});
        if let Some(milliseconds) = retry_after_ms {
            body["retry_after_ms"] = milliseconds.into();
        }
        let answer = Self { status: 429, ..Self::json(&body) };
        match retry_after_header {
            Some(seconds) => answer.with_header(header::RETRY_AFTER, &seconds.to_string()),
            None => answer,
        }
    }

    pub fn of_proxy(status: u16) -> Self {
        let reason = hyper::StatusCode::from_u16(status)
            .ok()
            .and_then(|code| code.canonical_reason())
            .unwrap_or_default();
        let body = format!(
            "<html>\r\n<head><title>{status} {reason}</title></head>\r\n<body>\r\n<center><h1>{status} {reason}</h1>\
             </center>\r\n<hr><center>nginx/1.26.2</center>\r\n</body>\r\n</html>\r\n"
        );
        Self {
            status,
            content_type: "text/html",
            body: body.into_bytes(),
            of_proxy: true,
            ..Self::json(&())
        }
    }

    pub fn with_header(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// The beginning of the body, complete as far as HTTP can tell.
    pub fn broken(mut self) -> Self {
        self.body.truncate(self.body.len() / 2);
        self
    }
}

pub(super) type Answered = Result<Answer, Answer>;

pub(super) fn refused<T>(status: u16, errcode: &str, error: &str) -> Result<T, Answer> {
    Err(Answer::refusal(status, errcode, error))
}

pub(super) struct Call<'a> {
    pub seen: &'a Seen,
    query: Vec<(String, String)>,
    /// The path's variable segments, decoded.
    pub args: Vec<String>,
    pub caller: String,
    pub device_id: Option<String>,
}

impl Call<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn integer(&self, name: &str) -> Result<Option<i64>, Answer> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return refused(
                400,
                "M_INVALID_PARAM",
                &format!("Query parameter {name} must be an integer"),
            );
        }
        match text.parse() {
            Err(_) => refused(500, "M_UNKNOWN", "Internal server error"),
            Ok(..0) => refused(
                400,
                "M_INVALID_PARAM",
                &format!("Query parameter {name} must be a positive integer."),
            ),
            Ok(value) => Ok(Some(value)),
        }
    }

    fn time_of(&self, name: &str) -> Result<i64, Answer> {
        match self.integer(name)? {
            None => refused(
                400,
                "M_MISSING_PARAM",
                &format!("Missing integer query parameter '{name}'"),
            ),
            Some(..30_000_000_000) => refused(
                400,
                "M_INVALID_PARAM",
                &format!(
                    "Query parameter {name} you provided is from the year 1970. \
                     Double check that you are providing a timestamp in milliseconds."
                ),
            ),
            Some(milliseconds) => Ok(milliseconds),
        }
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, Answer> {
        match self.text(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => refused(
                400,
                "M_INVALID_PARAM",
                &format!("Boolean query parameter '{name}' must be one of ['true', 'false']"),
            ),
        }
    }

    pub fn one_of<'a>(&'a self, name: &str, allowed: &[&'a str]) -> Result<&'a str, Answer> {
        let value = self.text(name).unwrap_or(allowed[0]);
        if allowed.contains(&value) {
            return Ok(value);
        }
        refused(
            400,
            "M_INVALID_PARAM",
            &format!("Query parameter '{name}' must be one of {allowed:?}"),
        )
    }

    pub fn object(&self) -> Result<Value, Answer> {
        let Ok(body) = serde_json::from_str::<Value>(&self.seen.body) else {
            return refused(400, "M_NOT_JSON", "Content not JSON.");
        };
        if body.is_object() {
            Ok(body)
        } else {
            refused(400, "M_BAD_JSON", "Content must be a JSON object.")
        }
    }

    /// What makes two requests pages of one list.
    fn list_key(&self) -> String {
        let filters: Vec<_> =
            self.query.iter().filter(|(name, _)| name != "from" && name != "limit").collect();
        format!("{} {filters:?}", self.seen.path)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Gate {
    Nobody,
    User,
    Admin,
    /// An admin, at the process that has the media repository.
    MediaAdmin,
}

struct Route {
    method: &'static str,
    /// A `*` stands for one segment.
    pattern: &'static str,
    since: (u32, u32),
    gate: Gate,
    answer: fn(&mut World, &Call) -> Answered,
}

impl Route {
    const fn new(
        method: &'static str,
        pattern: &'static str,
        since: (u32, u32),
        gate: Gate,
        answer: fn(&mut World, &Call) -> Answered,
    ) -> Self {
        Self { method, pattern, since, gate, answer }
    }

    /// Of Synapse's own admin endpoints, workers serve two beside media.
    fn at_worker(&self) -> bool {
        self.gate == Gate::MediaAdmin
            || (self.method == "GET"
                && (!self.pattern.starts_with("/_synapse/")
                    || self.pattern == "/_synapse/admin/v1/rooms/*"
                    || self.pattern == "/_synapse/admin/v2/users/*"))
    }

    /// The variable segments, where the path is this route's.
    fn args(&self, path: &str) -> Option<Vec<String>> {
        let (mut wanted, mut segments) = (self.pattern.split('/'), path.split('/'));
        let mut args = Vec::new();
        loop {
            match (wanted.next(), segments.next()) {
                (None, None) => return Some(args),
                (Some("*"), Some(segment)) => args.push(percent_decoded(segment)),
                (Some(wanted), Some(segment)) if wanted == segment => {}
                _ => return None,
            }
        }
    }
}

static ROUTES: &[Route] = &[
    Route::new("GET", "/_synapse/admin/v2/users/*", (1, 0), Gate::Admin, user),
    Route::new("PUT", "/_synapse/admin/v2/users/*", (1, 0), Gate::Admin, put_user),
    Route::new("GET", "/_synapse/admin/v2/users", (1, 0), Gate::Admin, users),
    Route::new("GET", "/_synapse/admin/v3/users", (1, 103), Gate::Admin, users),
    Route::new("GET", "/_synapse/admin/v2/users/*/devices", (1, 15), Gate::Admin, devices),
    Route::new(
        "POST",
        "/_synapse/admin/v2/users/*/delete_devices",
        (1, 15),
        Gate::Admin,
        device::delete,
    ),
    Route::new("GET", "/_synapse/admin/v1/users/*/accountdata", (1, 57), Gate::Admin, accountdata),
    Route::new("POST", "/_synapse/admin/v1/deactivate/*", (1, 0), Gate::Admin, deactivate),
    Route::new(
        "PUT",
        "/_synapse/admin/v1/send_server_notice/*",
        (1, 0),
        Gate::Admin,
        send_server_notice,
    ),
    Route::new("GET", "/_synapse/admin/v1/users/*/media", (1, 23), Gate::MediaAdmin, user_media),
    Route::new("GET", "/_synapse/admin/v1/users/*/memberships", (1, 145), Gate::Admin, memberships),
    Route::new(
        "GET",
        "/_synapse/admin/v1/auth_providers/*/users/*",
        (1, 68),
        Gate::Admin,
        user_by_external_id,
    ),
    Route::new("GET", "/_synapse/admin/v1/rooms", (1, 0), Gate::Admin, rooms),
    Route::new("GET", "/_synapse/admin/v1/rooms/*", (1, 0), Gate::Admin, room),
    Route::new("GET", "/_synapse/admin/v1/rooms/*/members", (1, 18), Gate::Admin, members),
    Route::new("GET", "/_synapse/admin/v1/rooms/*/state", (1, 27), Gate::Admin, state),
    Route::new("GET", "/_synapse/admin/v1/rooms/*/block", (1, 48), Gate::Admin, block),
    Route::new("GET", "/_synapse/admin/v1/rooms/*/messages", (1, 68), Gate::Admin, messages),
    Route::new("GET", "/_synapse/admin/v1/rooms/*/context/*", (1, 22), Gate::Admin, context),
    Route::new(
        "GET",
        "/_synapse/admin/v1/background_updates/status",
        (1, 47),
        Gate::Admin,
        background_updates,
    ),
    Route::new("GET", "/_synapse/admin/v1/scheduled_tasks", (1, 130), Gate::Admin, tasks),
    Route::new(
        "GET",
        "/_synapse/admin/v1/rooms/*/timestamp_to_event",
        (1, 58),
        Gate::Admin,
        timestamp_to_event,
    ),
    Route::new("POST", "/_synapse/admin/v1/purge_history/*", (1, 0), Gate::Admin, purge_history),
    Route::new(
        "GET",
        "/_synapse/admin/v1/purge_history_status/*",
        (1, 0),
        Gate::Admin,
        purge_history_status,
    ),
    Route::new("DELETE", "/_synapse/admin/v2/rooms/*", (1, 48), Gate::Admin, delete_room),
    Route::new(
        "GET",
        "/_synapse/admin/v2/rooms/delete_status/*",
        (1, 48),
        Gate::Admin,
        delete_status,
    ),
    Route::new("POST", "/_synapse/admin/v1/join/*", (1, 13), Gate::Admin, join),
    Route::new(
        "GET",
        "/_synapse/admin/v1/statistics/users/media",
        (1, 23),
        Gate::Admin,
        media_statistics,
    ),
    Route::new("POST", "/_synapse/admin/v1/media/delete", (1, 78), Gate::MediaAdmin, delete_media),
    Route::new(
        "POST",
        "/_synapse/admin/v1/purge_media_cache",
        (1, 0),
        Gate::MediaAdmin,
        purge_media_cache,
    ),
    Route::new("GET", "/_synapse/admin/v1/media/*/*", (1, 140), Gate::MediaAdmin, one_file),
    Route::new(
        "DELETE",
        "/_synapse/admin/v1/media/*/*",
        (1, 23),
        Gate::MediaAdmin,
        delete_one_file,
    ),
    Route::new(
        "POST",
        "/_synapse/admin/v1/media/protect/*",
        (1, 26),
        Gate::MediaAdmin,
        |world, call| protect(world, call, true),
    ),
    Route::new(
        "POST",
        "/_synapse/admin/v1/media/unprotect/*",
        (1, 36),
        Gate::MediaAdmin,
        |world, call| protect(world, call, false),
    ),
    Route::new(
        "GET",
        "/_synapse/admin/v1/registration_tokens",
        (1, 42),
        Gate::Admin,
        registration_tokens::list,
    ),
    Route::new(
        "GET",
        "/_synapse/admin/v1/registration_tokens/*",
        (1, 42),
        Gate::Admin,
        registration_tokens::one,
    ),
    Route::new(
        "DELETE",
        "/_synapse/admin/v1/registration_tokens/*",
        (1, 42),
        Gate::Admin,
        registration_tokens::delete,
    ),
    Route::new("GET", "/_synapse/admin/v1/event_reports", (1, 8), Gate::Admin, reports::events),
    Route::new("GET", "/_synapse/admin/v1/event_reports/*", (1, 8), Gate::Admin, reports::detail),
    Route::new(
        "DELETE",
        "/_synapse/admin/v1/event_reports/*",
        (1, 79),
        Gate::Admin,
        reports::delete_event,
    ),
    Route::new("GET", "/_synapse/admin/v1/user_reports", (1, 152), Gate::Admin, reports::users),
    Route::new("GET", "/_synapse/admin/v1/user_reports/*", (1, 152), Gate::Admin, reports::detail),
    Route::new(
        "DELETE",
        "/_synapse/admin/v1/user_reports/*",
        (1, 152),
        Gate::Admin,
        reports::delete_user,
    ),
    Route::new("GET", "/_synapse/admin/v1/server_version", (1, 0), Gate::Nobody, |world, _| {
        Ok(Answer::json(&json!({"server_version": world.version})))
    }),
    Route::new("GET", "/_matrix/client/v3/account/whoami", (1, 0), Gate::User, whoami),
    Route::new("GET", "/_matrix/client/v3/directory/room/*", (1, 0), Gate::Nobody, directory),
    Route::new(
        "PUT",
        "/_matrix/client/v3/rooms/*/send/m.room.message/*",
        (1, 0),
        Gate::User,
        messages::send,
    ),
    Route::new("GET", "/_matrix/client/v3/rooms/*/messages", (1, 0), Gate::User, messages::list),
    Route::new(
        "GET",
        "/_matrix/client/v3/rooms/*/state/m.room.member/*",
        (1, 0),
        Gate::User,
        messages::member,
    ),
    Route::new(
        "GET",
        "/_matrix/client/v1/rooms/*/relations/*/m.annotation/m.reaction",
        (1, 0),
        Gate::User,
        messages::relations,
    ),
    Route::new("GET", "/_matrix/client/v1/auth_metadata", (1, 0), Gate::Nobody, auth_metadata),
    Route::new("GET", "/_matrix/client/v3/login", (1, 0), Gate::Nobody, login_flows),
    Route::new("GET", "/_matrix/client/versions", (1, 0), Gate::Nobody, |_, _| {
        Ok(Answer::json(&json!({"versions": ["v1.1", "v1.11", "v1.12"], "unstable_features": {}})))
    }),
    Route::new("GET", "/health", (1, 0), Gate::Nobody, |_, _| {
        Ok(Answer {
            content_type: "text/plain; charset=utf-8",
            body: b"OK".to_vec(),
            ..Answer::json(&())
        })
    }),
];

fn unrecognized(status: u16) -> Answer {
    Answer::refusal(status, "M_UNRECOGNIZED", "Unrecognized request")
}

fn route_of(world: &World, seen: &Seen) -> Result<(&'static Route, Vec<String>), Answer> {
    let mut status = 404;
    for route in ROUTES {
        let here = match seen.process {
            Process::Main => route.gate != Gate::MediaAdmin || world.media_repo,
            Process::MediaWorker => route.at_worker(),
            Process::MasPublic | Process::MasInternal => false,
        };
        let served = here && world.at_least(route.since);
        if served && let Some(args) = route.args(&seen.path) {
            if route.method == seen.method {
                return Ok((route, args));
            }
            status = 405;
        }
    }
    Err(unrecognized(status))
}

fn caller_of(world: &mut World, token: Option<&str>, gate: Gate) -> Result<Token, Answer> {
    let Some(token) = token else { return refused(401, "M_MISSING_TOKEN", "Missing access token") };
    if world.mas
        && let Some(introspected) = super::mas::introspected(world, token)
    {
        let known = introspected?;
        let admin_scope = known["admin"] == true;
        if gate != Gate::User && !admin_scope {
            return refused(403, "M_FORBIDDEN", "You are not a server admin");
        }
        return Ok(Token {
            user_id: known["user_id"].as_str().unwrap_or_default().to_owned(),
            device_id: known["device_id"].as_str().map(str::to_owned),
            admin_scope,
            expired: false,
        });
    }
    let dead = |error, soft| {
        let body = json!({"errcode": "M_UNKNOWN_TOKEN", "error": error, "soft_logout": soft});
        Err(Answer { status: 401, ..Answer::json(&body) })
    };
    let unknown = if world.mas { "Token is not active" } else { "Invalid access token passed." };
    let Some(token) = world.tokens.get(token) else { return dead(unknown, false) };
    let user = world.users.get(&token.user_id);
    if token.expired {
        return dead(if world.mas { unknown } else { "Access token has expired" }, !world.mas);
    }
    if !world.mas && user.is_none_or(|user| user.deactivated) {
        return dead(unknown, false);
    }
    if user.is_some_and(|user| user.locked) {
        let body = json!({"errcode": "M_USER_LOCKED", "error": "User account has been locked", "soft_logout": true});
        return Err(Answer { status: 401, ..Answer::json(&body) });
    }
    let is_admin = if world.mas { token.admin_scope } else { user.is_some_and(|user| user.admin) };
    if gate != Gate::User && !is_admin {
        return refused(403, "M_FORBIDDEN", "You are not a server admin");
    }
    Ok(token.clone())
}

fn whoami(_: &mut World, call: &Call) -> Answered {
    let mut body = json!({"user_id": call.caller, "is_guest": false});
    if let Some(device_id) = &call.device_id {
        body["device_id"] = device_id.as_str().into();
    }
    Ok(Answer::json(&body))
}

fn auth_metadata(world: &mut World, _: &Call) -> Answered {
    if !world.mas {
        return Err(unrecognized(404));
    }
    let issuer = format!("https://auth.{}/", world.server_name);
    Ok(Answer::json(&json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}authorize"),
        "token_endpoint": format!("{issuer}oauth2/token"),
    })))
}

fn login_flows(world: &mut World, _: &Call) -> Answered {
    if world.mas {
        Err(unrecognized(404))
    } else {
        Ok(Answer::json(&json!({"flows": [{"type": "m.login.password"}]})))
    }
}

fn local_user<'a>(world: &World, user_id: &'a str, if_remote: &str) -> Result<&'a str, Answer> {
    if !user_id.starts_with('@') {
        return refused(400, "M_INVALID_PARAM", "Expected UserID string to start with '@'");
    }
    if world.is_local(user_id) { Ok(user_id) } else { refused(400, "M_UNKNOWN", if_remote) }
}

fn avatar_url(world: &World, user: &User) -> Option<String> {
    Some(format!("mxc://{}/{}", world.server_name, user.avatar.as_ref()?))
}

fn user(world: &mut World, call: &Call) -> Answered {
    let user_id = local_user(world, &call.args[0], "Can only look up local users")?;
    let Some(user) = world.users.get(user_id) else {
        return refused(404, "M_NOT_FOUND", "User not found");
    };
    Ok(Answer::json(&SingleUser::of(world, user_id, user)))
}

#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "as Synapse answers")]
struct SingleUser<'a> {
    name: &'a str,
    admin: bool,
    deactivated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    locked: Option<bool>,
    shadow_banned: bool,
    /// In seconds here, in milliseconds in the list.
    creation_ts: i64,
    appservice_id: Option<&'a str>,
    consent_server_notice_sent: (),
    consent_version: (),
    consent_ts: (),
    user_type: Option<&'a str>,
    is_guest: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspended: Option<bool>,
    displayname: Option<&'a str>,
    avatar_url: Option<String>,
    threepids: [(); 0],
    external_ids: Vec<ExternalId<'a>>,
    erased: bool,
    last_seen_ts: Option<i64>,
}

#[derive(Serialize)]
struct ExternalId<'a> {
    auth_provider: &'a str,
    external_id: &'a str,
}

impl<'a> SingleUser<'a> {
    fn of(world: &World, name: &'a str, user: &'a User) -> Self {
        Self {
            name,
            admin: user.admin,
            deactivated: user.deactivated,
            locked: world.at_least((1, 91)).then_some(user.locked),
            shadow_banned: false,
            creation_ts: user.created_ms / 1000,
            appservice_id: user.appservice_id.as_deref(),
            consent_server_notice_sent: (),
            consent_version: (),
            consent_ts: (),
            user_type: user.user_type.as_deref(),
            is_guest: user.guest,
            suspended: world.at_least((1, 121)).then_some(user.suspended),
            displayname: Some(displayname(name, user)),
            avatar_url: avatar_url(world, user),
            threepids: [],
            external_ids: user
                .external_ids
                .iter()
                .map(|(auth_provider, external_id)| ExternalId { auth_provider, external_id })
                .collect(),
            erased: user.erased,
            last_seen_ts: user.last_seen_ms,
        }
    }
}

fn devices(world: &mut World, call: &Call) -> Answered {
    let user_id = local_user(world, &call.args[0], "Can only lookup local users")?;
    let Some(user) = world.users.get(user_id) else {
        return refused(404, "M_NOT_FOUND", "Unknown user");
    };
    let has_dehydrated = user.devices.iter().any(|device| device.dehydrated);
    let devices: Vec<Value> = user
        .devices
        .iter()
        .map(|device| {
            let mut row = json!({
                "user_id": user_id, "device_id": device.id, "display_name": device.name,
                "last_seen_ip": device.last_seen_ms.map(|_| "127.0.0.1"),
                "last_seen_user_agent": device.last_seen_ms.map(|_| "Element"),
                "last_seen_ts": device.last_seen_ms,
            });
            if has_dehydrated {
                row["dehydrated"] = device.dehydrated.into();
            }
            row
        })
        .collect();
    Ok(Answer::json(&json!({"total": devices.len(), "devices": devices})))
}

fn accountdata(world: &mut World, call: &Call) -> Answered {
    let user_id = local_user(world, &call.args[0], "Can only look up local users")?;
    let Some(user) = world.users.get(user_id) else {
        return refused(404, "M_NOT_FOUND", "User not found");
    };
    let mut global = json!(user.account_data);
    global["m.push_rules"] = json!({"global": {}});
    if user.has_key_backup {
        global["m.megolm_backup.v1"] = json!({"encrypted": {"key": {"iv": "", "mac": ""}}});
    }
    Ok(Answer::json(&json!({"account_data": {"global": global, "rooms": {}}})))
}

/// What it takes is gone at once, other than in Synapse.
fn deactivate(world: &mut World, call: &Call) -> Answered {
    let user_id = local_user(world, &call.args[0], "Can only deactivate local users")?.to_owned();
    if !world.users.contains_key(&user_id) {
        return refused(404, "M_NOT_FOUND", "User not found");
    }
    let erase = match call.object()?.get("erase") {
        None => false,
        Some(Value::Bool(erase)) => *erase,
        Some(_) => {
            return refused(400, "M_BAD_JSON", "Param 'erase' must be a boolean, if given");
        }
    };
    if world.mas {
        world.complain(format!("{user_id} is deactivated in Synapse only"));
    }
    world.deactivate(&user_id, erase);
    Ok(Answer::json(&json!({"id_server_unbind_result": "success"})))
}

fn send_server_notice(world: &mut World, call: &Call) -> Answered {
    let transaction = call.args[0].clone();
    let body = call.object()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let user_id = text(&body["user_id"]);
    if let Some((told, event_id)) = world.notice_transactions.get(&transaction).cloned() {
        if told != user_id {
            world.complain(format!("{user_id} is not told: {told} was with the same transaction"));
        }
        return Ok(Answer::json(&json!({"event_id": event_id})));
    }
    if !world.server_notices {
        return refused(400, "M_UNKNOWN", "Server notices are not enabled on this server");
    }
    match world.users.get(local_user(
        world,
        &user_id,
        "Server notices can only be sent to local users",
    )?) {
        None => return refused(404, "M_NOT_FOUND", "User not found"),
        Some(user) if user.locked || user.deactivated => {
            world.complain(format!("{user_id} cannot read a notice any more"));
        }
        Some(_) => {}
    }
    let event_id = format!("$notice{}", world.notices.len());
    world.notices.push((user_id.clone(), text(&body["content"]["body"])));
    world.notice_transactions.insert(transaction, (user_id, event_id.clone()));
    Ok(Answer::json(&json!({"event_id": event_id})))
}

/// The profile's name, by default the localpart.
fn displayname<'a>(user_id: &'a str, user: &'a User) -> &'a str {
    let localpart = user_id.split(':').next().unwrap_or_default().trim_start_matches('@');
    user.displayname.as_deref().unwrap_or(localpart)
}

fn put_user(world: &mut World, call: &Call) -> Answered {
    let user_id =
        local_user(world, &call.args[0], "This endpoint can only be used with local users")?
            .to_owned();
    let body = call.object()?;
    if body.get("locked").is_some_and(|locked| !locked.is_boolean()) {
        return refused(400, "M_UNKNOWN", "'locked' parameter is not of type boolean");
    }
    let external_ids = match body.get("external_ids") {
        None | Some(Value::Null) => None,
        Some(list) => Some(external_ids_of(list)?),
    };
    let created = !world.users.contains_key(&user_id);
    if created {
        world.complain(format!("PUT of {user_id}, who does not exist"));
        if world.mas {
            let error = "User creation via the Admin API is not available when delegating to MAS.";
            return refused(403, "M_FORBIDDEN", error);
        }
    }
    world.touched();
    set_plain_keys(world.user(&user_id), &body);
    if let Some(external_ids) = external_ids {
        replace_external_ids(world, &user_id, external_ids)?;
    }
    let user = world.user(&user_id).clone();
    let body = SingleUser::of(world, &user_id, &user);
    Ok(Answer { status: if created { 201 } else { 200 }, ..Answer::json(&body) })
}

fn set_plain_keys(user: &mut User, body: &Value) {
    if let Some(name) = body.get("displayname").and_then(Value::as_str) {
        user.displayname = Some(name.to_owned());
    }
    if let Some(kind) = body.get("user_type") {
        user.user_type = kind.as_str().map(str::to_owned);
    }
    let flags = [
        ("admin", &mut user.admin),
        ("deactivated", &mut user.deactivated),
        ("locked", &mut user.locked),
        ("suspended", &mut user.suspended),
    ];
    for (key, flag) in flags {
        if let Some(value) = body.get(key).and_then(Value::as_bool) {
            *flag = value;
        }
    }
}

/// The other keys of the request are set already when this refuses, as in Synapse.
fn replace_external_ids(
    world: &mut World,
    user_id: &str,
    wanted: Vec<(String, Option<String>)>,
) -> Result<(), Answer> {
    let mut new: Vec<(String, String)> = Vec::new();
    for (provider, external_id) in wanted {
        let Some(external_id) = external_id else {
            return refused(409, "M_UNKNOWN", "External id is already in use.");
        };
        let one = (provider, external_id);
        if !new.contains(&one) {
            new.push(one);
        }
    }
    for one in &new {
        let own = world.user(user_id).external_ids.contains(one);
        if !own && world.users.values().any(|user| user.external_ids.contains(one)) {
            return refused(409, "M_UNKNOWN", "External id is already in use.");
        }
    }
    // Only those: a lookup of a removed id stays in Synapse's cache.
    for one in &new {
        world.forget_lookup(one);
    }
    world.user(user_id).external_ids = new;
    Ok(())
}

fn external_ids_of(list: &Value) -> Result<Vec<(String, Option<String>)>, Answer> {
    let missing = || {
        Answer::refusal(400, "M_MISSING_PARAM", "Missing params: ['auth_provider', 'external_id']")
    };
    let stringified = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let list = list.as_array().ok_or_else(missing)?;
    list.iter()
        .map(|one| {
            let (provider, id) =
                one.get("auth_provider").zip(one.get("external_id")).ok_or_else(missing)?;
            Ok((stringified(provider).ok_or_else(missing)?, stringified(id)))
        })
        .collect()
}

fn user_by_external_id(world: &mut World, call: &Call) -> Answered {
    match world.login_by(&call.args[0], &call.args[1]) {
        Some(user_id) => Ok(Answer::json(&json!({"user_id": user_id}))),
        None => refused(404, "M_NOT_FOUND", "User not found"),
    }
}

fn users(world: &mut World, call: &Call) -> Answered {
    let guests = call.boolean("guests")?.unwrap_or(true);
    if world.mas && guests {
        let error = "The guests parameter is not supported when delegating to MAS.";
        return refused(400, "M_INVALID_PARAM", error);
    }
    let only_deactivated = call.seen.path.starts_with("/_synapse/admin/v3/");
    let deactivated = match (only_deactivated, call.boolean("deactivated")?) {
        (true, exactly) => exactly,
        (false, Some(true)) => None,
        (false, _) => Some(false),
    };
    // Before 1.93 the list knew nothing of locks.
    let locked = call.boolean("locked")?.unwrap_or(false) || !world.at_least((1, 93));
    let admins = call.boolean("admins")?;
    let backwards = call.one_of("dir", &["f", "b"])? == "b";
    if call.one_of("order_by", &["name", "creation_ts", "is_guest", "admin", "last_seen_ts"])?
        != "name"
    {
        world.complain("the fake lists users by name only".to_owned());
    }
    let page = Page::of(world, call)?;
    let listing = world.listing(call.list_key(), |world| {
        let mut listed: Vec<_> = world
            .users
            .iter()
            .filter(|(user_id, user)| {
                (guests || !user.guest)
                    && deactivated.is_none_or(|wanted| user.deactivated == wanted)
                    && (locked || !user.locked)
                    && admins.is_none_or(|wanted| user.admin == wanted)
                    && call
                        .text("user_id")
                        .is_none_or(|part| user_id.contains(&part.to_lowercase()))
            })
            .map(|(user_id, _)| ListedJob::plain(user_id))
            .collect();
        if backwards {
            listed.reverse();
        }
        listed
    });
    let rows: Vec<_> = page
        .of_list(&listing)
        .iter()
        .filter_map(|listed| Some(UserRow::of(world, &listed.name, world.users.get(&listed.name)?)))
        .collect();
    Ok(Answer::json(&UserList {
        next_token: page.next(listing.len(), rows.len()).map(|next| next.to_string()),
        total: listing.len(),
        users: rows,
    }))
}

#[derive(Serialize)]
struct UserList<'a> {
    users: Vec<UserRow<'a>>,
    total: usize,
    /// A string, unlike in the lists of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "as Synapse answers")]
struct UserRow<'a> {
    name: &'a str,
    user_type: Option<&'a str>,
    is_guest: bool,
    admin: bool,
    deactivated: bool,
    erased: bool,
    shadow_banned: bool,
    displayname: &'a str,
    avatar_url: Option<String>,
    creation_ts: i64,
    last_seen_ts: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locked: Option<bool>,
}

impl<'a> UserRow<'a> {
    fn of(world: &World, name: &'a str, user: &'a User) -> Self {
        Self {
            name,
            user_type: user.user_type.as_deref(),
            is_guest: user.guest,
            admin: user.admin,
            deactivated: user.deactivated,
            erased: user.erased,
            shadow_banned: false,
            displayname: displayname(name, user),
            avatar_url: avatar_url(world, user),
            creation_ts: user.created_ms,
            last_seen_ts: user.listed_last_seen_ms(),
            locked: world.at_least((1, 93)).then_some(user.locked),
        }
    }
}

pub(super) struct Page {
    pub from: usize,
    pub limit: usize,
}

impl Page {
    pub fn of(world: &mut World, call: &Call) -> Result<Self, Answer> {
        let from = call.integer("from")?.unwrap_or(0);
        let limit = call.integer("limit")?.unwrap_or(100);
        if limit == 0 {
            world.complain(format!("{} with limit=0 never ends", call.seen.path));
        }
        let size = |value| usize::try_from(value).unwrap_or(usize::MAX);
        Ok(Self { from: size(from), limit: size(limit) })
    }

    fn of_list<'a>(&self, list: &'a [ListedJob]) -> &'a [ListedJob] {
        let start = self.from.min(list.len());
        &list[start..start.saturating_add(self.limit).min(list.len())]
    }

    pub fn next(&self, total: usize, rows: usize) -> Option<usize> {
        (self.from.saturating_add(self.limit) < total).then_some(self.from + rows)
    }
}

fn memberships(world: &mut World, call: &Call) -> Answered {
    let user_id = &call.args[0];
    let memberships: BTreeMap<_, _> = world
        .rooms
        .iter()
        .filter_map(|(room_id, room)| Some((room_id, room.membership(user_id)?)))
        .collect();
    Ok(Answer::json(&json!({"memberships": memberships})))
}

fn directory(world: &mut World, call: &Call) -> Answered {
    let room_id = room_of_alias(world, &call.args[0])?;
    Ok(Answer::json(&json!({"room_id": room_id, "servers": [world.server_name]})))
}

fn room_of_alias(world: &World, alias: &str) -> Result<String, Answer> {
    if !alias.starts_with('#') || !alias.contains(':') {
        return refused(400, "M_INVALID_PARAM", "Room alias invalid");
    }
    let found = world.rooms.iter().find(|(_, room)| room.aliases.iter().any(|one| one == alias));
    match found {
        Some((room_id, _)) => Ok(room_id.clone()),
        None if world.is_local(alias) => {
            refused(404, "M_NOT_FOUND", &format!("Room alias {alias} not found"))
        }
        None => refused(502, "M_UNKNOWN", "Failed to fetch alias"),
    }
}

fn known_room<'a>(world: &'a World, call: &'a Call) -> Result<(&'a str, &'a Room), Answer> {
    match world.rooms.get_key_value(&call.args[0]) {
        Some((room_id, room)) => Ok((room_id, room)),
        None => refused(404, "M_NOT_FOUND", "Room not found"),
    }
}

/// Synapse drops a room's state when its last local member leaves.
fn has_state(world: &World, room: &Room) -> bool {
    room.members
        .iter()
        .any(|(user_id, member)| member.membership == "join" && world.is_local(user_id))
}

fn room(world: &mut World, call: &Call) -> Answered {
    let (room_id, room) = known_room(world, call)?;
    let mut body = room_row(world, room_id, room);
    body["forgotten"] = false.into();
    if world.at_least((1, 153)) {
        body["tombstoned"] = room.tombstone.is_some().into();
        body["replacement_room"] = room.tombstone.clone().into();
    }
    Ok(Answer::json(&body))
}

/// A room in lists, and by its id.
fn room_row(world: &World, room_id: &str, room: &Room) -> Value {
    let here = has_state(world, room);
    let joined: Vec<_> =
        room.members.iter().filter(|(_, member)| here && member.membership == "join").collect();
    let local = joined.iter().filter(|(user_id, _)| world.is_local(user_id)).count();
    json!({
        "room_id": room_id, "name": room.name.as_ref().filter(|_| here), "avatar": null, "topic": null,
        "canonical_alias": room.aliases.first().filter(|_| here), "joined_members": joined.len(), "joined_local_members": local,
        "joined_local_devices": local, "version": room.version, "creator": room.creator, "encryption": (here && room.encrypted).then_some("m.megolm.v1.aes-sha2"),
        "federatable": true, "public": room.join_rule.as_deref() == Some("public"),
        "join_rules": room.join_rule.as_ref().filter(|_| here), "guest_access": null,
        "history_visibility": here.then_some("shared"), "state_events": room.state_events(), "room_type": null,
    })
}

fn members(world: &mut World, call: &Call) -> Answered {
    let (_, room) = known_room(world, call)?;
    let here = has_state(world, room);
    let joined: Vec<_> = room
        .members
        .iter()
        .filter(|(_, member)| here && member.membership == "join")
        .map(|(user_id, _)| user_id)
        .collect();
    Ok(Answer::json(&json!({"members": joined, "total": joined.len()})))
}

/// In the order of the versions, the newest first.
fn rooms(world: &mut World, call: &Call) -> Answered {
    if call.text("empty_rooms").is_some() {
        return empty_rooms(world, call);
    }
    if call.one_of("order_by", &["name", "version"])? == "name" {
        world.complain("rooms are renamed while they are listed by name".to_owned());
    }
    let page = Page::of(world, call)?;
    let listing = world.listing(call.list_key(), |world| {
        let mut rooms: Vec<_> = world.rooms.iter().collect();
        rooms.sort_by_key(|(_, room)| std::cmp::Reverse(room.version.parse::<u32>().ok()));
        rooms.into_iter().map(|(room_id, _)| ListedJob::plain(room_id)).collect()
    });
    let rows: Vec<_> = page
        .of_list(&listing)
        .iter()
        .filter_map(|listed| {
            let room = world.rooms.get(&listed.name)?;
            Some(room_row(world, &listed.name, room))
        })
        .collect();
    let mut body = json!({"rooms": rows, "offset": page.from, "total_rooms": listing.len()});
    if let Some(next) = page.next(listing.len(), rows.len()) {
        body["next_batch"] = next.into();
    }
    Ok(Answer::json(&body))
}

fn state(world: &mut World, call: &Call) -> Answered {
    let (room_id, room) = known_room(world, call)?;
    let only = call.text("type").filter(|_| world.at_least((1, 123)));
    let events =
        if has_state(world, room) { state_events(world, room_id, room, only) } else { Vec::new() };
    Ok(Answer::json(&json!({"state": events})))
}

fn state_events(world: &World, room_id: &str, room: &Room, only: Option<&str>) -> Vec<Value> {
    let mut events = Vec::new();
    let mut add = |kind: &str, state_key: &str, sender: &str, content: &dyn Fn() -> Value| {
        if only.is_some_and(|only| only != kind) {
            return;
        }
        events.push(json!({
            "type": kind, "state_key": state_key, "sender": sender, "room_id": room_id, "content": content(),
            "event_id": format!("${}-{kind}-{state_key}", &room_id[1..]), "origin_server_ts": 1_700_000_000_000_i64,
            "unsigned": {"age": 1000},
        }));
    };
    add("m.room.create", "", &room.creator, &|| {
        let mut content = json!({"room_version": room.version});
        if room.version.parse::<u32>().is_ok_and(|version| version < 11) {
            content["creator"] = room.creator.as_str().into();
        }
        if !room.additional_creators.is_empty() {
            content["additional_creators"] = room.additional_creators.clone().into();
        }
        if let Some(predecessor) = &room.predecessor {
            content["predecessor"] = json!({"room_id": predecessor, "event_id": "$tombstone"});
        }
        content
    });
    add(
        "m.room.power_levels",
        "",
        &room.creator,
        &|| json!({"users": room.power, "invite": room.power_to_invite}),
    );
    add("m.room.join_rules", "", &room.creator, &|| match &room.join_rule {
        Some(rule) => json!({"join_rule": rule}),
        None => json!({}),
    });
    if let Some(alias) = room.aliases.first() {
        add("m.room.canonical_alias", "", &room.creator, &|| json!({"alias": alias}));
    }
    if let Some(name) = &room.name {
        add("m.room.name", "", &room.creator, &|| json!({"name": name}));
    }
    if let Some(replacement) = &room.tombstone {
        let content =
            || json!({"body": "This room has been replaced", "replacement_room": replacement});
        add("m.room.tombstone", "", &room.creator, &content);
    }
    for event in &room.extra_state {
        let [kind, state_key] =
            ["type", "state_key"].map(|key| event[key].as_str().unwrap_or_default());
        add(kind, state_key, &room.creator, &|| event["content"].clone());
    }
    for (user_id, member) in &room.members {
        let profile = || world.users.get(user_id).map(|user| displayname(user_id, user));
        add("m.room.member", user_id, &member.sender, &|| {
            let mut content = json!({"membership": member.membership});
            if let Some(name) = member.displayname.as_deref().or_else(profile) {
                content["displayname"] = name.into();
            }
            content
        });
    }
    events
}

fn empty_rooms(world: &mut World, call: &Call) -> Answered {
    if call.text("search_term").is_some() {
        world.complain(format!("other filters do not count with this: {}", call.seen.query));
    }
    let only_empty = call.boolean("empty_rooms")? == Some(true);
    let from = usize::try_from(call.integer("from")?.unwrap_or(0)).unwrap_or(0);
    let limit = usize::try_from(call.integer("limit")?.unwrap_or(100)).unwrap_or(0);
    let listed: Vec<_> =
        world.rooms.iter().filter(|(_, room)| !(only_empty && has_state(world, room))).collect();
    let rows: Vec<_> = listed
        .iter()
        .skip(from)
        .take(limit)
        .map(|(room_id, room)| room_row(world, room_id, room))
        .collect();
    let mut body = json!({"rooms": rows, "offset": from, "total_rooms": listed.len()});
    if from + limit < listed.len() {
        body["next_batch"] = (from + limit).into();
    }
    Ok(Answer::json(&body))
}

fn filter_types(call: &Call) -> Vec<String> {
    let filter: Value =
        call.text("filter").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    serde_json::from_value(filter["types"].clone()).unwrap_or_default()
}

fn messages(world: &mut World, call: &Call) -> Answered {
    let types = filter_types(call);
    let limit = usize::try_from(call.integer("limit")?.unwrap_or(10)).unwrap_or(0);
    let from: usize = call.text("from").and_then(|from| from.parse().ok()).unwrap_or(0);
    // Of an unknown room there is nothing to see.
    let timeline = world.rooms.get(&call.args[0]).map(|room| room.timeline.as_slice());
    let fits = |event: &&Value| {
        types.is_empty() || types.iter().any(|kind| event["type"] == kind.as_str())
    };
    let events = timeline.unwrap_or_default().iter().filter(fits);
    let chunk: Vec<&Value> = events.skip(from).take(limit).collect();
    let mut body = json!({"start": from.to_string(), "chunk": chunk});
    if !chunk.is_empty() {
        body["end"] = (from + chunk.len()).to_string().into();
    }
    Ok(Answer::json(&body))
}

/// The state before an event, from what the room was.
fn context(world: &mut World, call: &Call) -> Answered {
    let types = filter_types(call);
    let (room_id, room) = known_room(world, call)?;
    let mut state = state_events(world, room_id, room, None);
    state.retain(|event| types.iter().any(|kind| event["type"] == kind.as_str()));
    if room.encrypted {
        state.push(room_event("m.room.encryption", "", &room.creator, 1, &json!({})));
    }
    let mut events = room.timeline.iter().enumerate();
    let Some((index, event)) = events.find(|(_, event)| event["event_id"] == call.args[1].as_str())
    else {
        return refused(404, "M_NOT_FOUND", "Event not found.");
    };
    Ok(Answer::json(&json!({
        "event": event, "events_before": [], "events_after": [], "state": state,
        "start": (index + 1).to_string(), "end": index.to_string(),
    })))
}

/// The first event since a time.
fn timestamp_to_event(world: &mut World, call: &Call) -> Answered {
    let (_, room) = known_room(world, call)?;
    let time = call.integer("ts")?.unwrap_or(0);
    let sent = |event: &&Value| event["origin_server_ts"].as_i64();
    let later = room.timeline.iter().filter(|event| sent(event) >= Some(time));
    match later.min_by_key(sent) {
        Some(event) => Ok(Answer::json(
            &json!({"event_id": event["event_id"], "origin_server_ts": event["origin_server_ts"]}),
        )),
        None => refused(
            404,
            "M_NOT_FOUND",
            &format!("Unable to find event from {time} in direction Direction.FORWARDS"),
        ),
    }
}

fn purge_history(world: &mut World, call: &Call) -> Answered {
    let (body, room_id) = (call.object()?, &call.args[0]);
    if !body["delete_local_events"].is_boolean() {
        world.complain(format!("purge of {room_id} without delete_local_events"));
    }
    let (_, room) = known_room(world, call)?;
    let Some(first_kept) = body["purge_up_to_event_id"].as_str() else {
        return refused(400, "M_BAD_JSON", "must specify purge_up_to_event_id or purge_up_to_ts");
    };
    if !room.timeline.iter().any(|event| event["event_id"] == first_kept) {
        return refused(404, "M_NOT_FOUND", &format!("Could not find event {first_kept}"));
    }
    if world.tasks.iter().any(|task| task.status == "active") {
        world.complain(format!("{room_id} is purged at the same time as another room"));
    }
    let id = world.task("purge_history", "active", room_id, false);
    if let Some(task) = world.tasks.last_mut() {
        task.first_kept = Some(first_kept.to_owned());
    }
    if world.polls_per_deletion == 0 {
        end_deletion(world, &id);
    }
    Ok(Answer::json(&json!({"purge_id": id})))
}

fn purge_history_status(world: &mut World, call: &Call) -> Answered {
    let status: Value =
        serde_json::from_slice(&delete_status(world, call)?.body).unwrap_or_default();
    let task = world.tasks.iter().find(|task| task.id == call.args[0]);
    let mut body = json!({"status": status["status"]});
    if let Some(error) = task.and_then(|task| task.error.clone()) {
        body["error"] = error.into();
    }
    Ok(Answer::json(&body))
}

fn background_updates(world: &mut World, _: &Call) -> Answered {
    let current = world.background_update.iter().map(|name| {
        let update = json!({
            "name": name, "total_item_count": 0, "total_duration_ms": 0.0, "average_items_per_ms": null,
        });
        ("master".to_owned(), update)
    });
    let current: serde_json::Map<String, Value> = current.collect();
    Ok(Answer::json(&json!({"enabled": true, "current_updates": current})))
}

fn tasks(world: &mut World, call: &Call) -> Answered {
    let asked = |name: &str, value: &str| {
        let mut values = call.query.iter().filter(|(key, _)| key == name).peekable();
        values.peek().is_none() || values.any(|(_, wanted)| wanted == value)
    };
    let tasks: Vec<_> = world
        .tasks
        .iter()
        .filter(|task| asked("action_name", &task.action) && asked("resource_id", &task.room_id))
        .filter(|task| asked("status", &task.status))
        .map(|task| json!({
            "id": task.id, "action": task.action, "status": task.status, "timestamp_ms": task.at_ms,
            "resource_id": task.room_id, "result": null, "error": task.error,
        }))
        .collect();
    Ok(Answer::json(&json!({"scheduled_tasks": tasks})))
}

fn delete_room(world: &mut World, call: &Call) -> Answered {
    let body = call.object()?;
    let room_id = &call.args[0];
    let purge = match body.get("purge") {
        None => true,
        Some(Value::Bool(purge)) => *purge,
        Some(_) => return refused(400, "M_BAD_JSON", "Param 'purge' must be a boolean, if given"),
    };
    if world.rooms.get(room_id).is_some_and(|room| has_state(world, room)) {
        world.complain(format!("{room_id} is deleted, and has local members"));
    }
    let under_way = |status: &str| matches!(status, "active" | "scheduled");
    if let Some(task) = world.tasks.iter().find(|task| under_way(&task.status)) {
        if task.room_id == *room_id {
            let error = format!("Purge already in progress for {room_id}");
            return refused(400, "M_UNKNOWN", &error);
        }
        let other = task.room_id.clone();
        world.complain(format!("{room_id} is deleted at the same time as {other}"));
    }
    if body["block"] == true {
        let admin = call.caller.clone();
        world.room(room_id).blocked = Some(admin);
    }
    let id = world.task("shutdown_and_purge_room", "active", room_id, purge);
    if world.polls_per_deletion == 0 {
        end_deletion(world, &id);
    }
    Ok(Answer::json(&json!({"delete_id": id})))
}

/// Returns who was removed from the room.
fn end_deletion(world: &mut World, id: &str) -> Vec<String> {
    let (now, error) = (world.now().timestamp_millis(), world.deletion_error.clone());
    let mut kicked = Vec::new();
    let Some(task) = world.tasks.iter_mut().find(|task| task.id == id) else { return kicked };
    task.at_ms = now;
    task.error = error;
    if task.error.is_some() {
        "failed".clone_into(&mut task.status);
        return kicked;
    }
    "complete".clone_into(&mut task.status);
    let Some(room) = world.rooms.get_mut(&task.room_id) else { return kicked };
    if let Some(first_kept) = &task.first_kept {
        let kept = room.timeline.iter().position(|event| event["event_id"] == first_kept.as_str());
        room.timeline.truncate(kept.map_or(usize::MAX, |kept| kept + 1));
        return kicked;
    }
    for (user_id, member) in &mut room.members {
        if matches!(&*member.membership, "invite" | "knock") {
            "leave".clone_into(&mut member.membership);
            kicked.push(user_id.clone());
            let content = json!({"membership": "leave"});
            room.timeline.insert(0, room_event("m.room.member", user_id, user_id, now, &content));
        }
    }
    if task.purge {
        world.rooms.remove(&task.room_id);
    }
    kicked
}

/// Each question brings a deletion nearer to its end.
fn delete_status(world: &mut World, call: &Call) -> Answered {
    let Some(task) = world.tasks.iter_mut().find(|task| task.id == call.args[0]) else {
        return refused(404, "M_NOT_FOUND", &format!("delete id '{}' not found", call.args[0]));
    };
    task.polls = task.polls.saturating_sub(1);
    let ends = task.status == "active" && task.polls == 0;
    let kicked = if ends { end_deletion(world, &call.args[0]) } else { Vec::new() };
    let task = world.tasks.iter().find(|task| task.id == call.args[0]);
    let shutdown = json!({"kicked_users": kicked, "failed_to_kick_users": [], "local_aliases": [], "new_room_id": null});
    Ok(Answer::json(&json!({
        "delete_id": call.args[0],
        "room_id": task.map(|task| &task.room_id),
        "status": task.map(|task| &task.status),
        "shutdown_room": task.filter(|task| task.status != "failed").map(|_| shutdown),
    })))
}

fn block(world: &mut World, call: &Call) -> Answered {
    let blocked = world.rooms.get(&call.args[0]).and_then(|room| room.blocked.clone());
    Ok(Answer::json(&match blocked {
        Some(user_id) => json!({"block": true, "user_id": user_id}),
        None => json!({"block": false}),
    }))
}

fn join(world: &mut World, call: &Call) -> Answered {
    let body = call.object()?;
    let Some(user_id) = body.get("user_id").and_then(Value::as_str) else {
        return refused(400, "M_MISSING_PARAM", "Missing params: ['user_id']");
    };
    let user_id = local_user(world, user_id, "This endpoint can only be used with local users")?;
    let Some(user) = world.users.get(user_id).cloned() else {
        return refused(404, "M_NOT_FOUND", "User not found");
    };
    let target = &call.args[0];
    let room_id = match target.chars().next() {
        Some('!') => target.clone(),
        Some('#') => room_of_alias(world, target)?,
        _ => {
            return refused(
                400,
                "M_UNKNOWN",
                &format!("{target} was not legal room ID or room alias"),
            );
        }
    };
    let Some(room) = world.rooms.get(&room_id).filter(|room| has_state(world, room)) else {
        let error =
            "Can't join remote room because no servers that are in the room have been provided.";
        return refused(404, "M_UNKNOWN", error);
    };
    if room.blocked.is_some() {
        return refused(403, "M_UNKNOWN", "This room has been blocked on this server");
    }
    let public = room.join_rule.as_deref() == Some("public");
    if !public {
        may_invite(room, &room_id, &call.caller, user_id)?;
    }
    if room.membership(user_id) == Some("ban") {
        return refused(403, "M_BAD_STATE", "Cannot join user who was banned");
    }
    if user.deactivated {
        world.complain(format!("join of {user_id}, who is deactivated"));
    }
    let room = world.room(&room_id);
    if !public {
        room.invited(user_id, &call.caller);
    }
    if user.suspended {
        return refused(
            403,
            "M_USER_SUSPENDED",
            "Joining rooms while account is suspended is not allowed.",
        );
    }
    // Also of someone who is in the room already: the name in the room is lost.
    room.joined(user_id);
    Ok(Answer::json(&json!({"room_id": room_id})))
}

fn may_invite(room: &Room, room_id: &str, admin: &str, user_id: &str) -> Result<(), Answer> {
    if room.membership(user_id) == Some("ban") {
        return refused(403, "M_BAD_STATE", "Cannot invite user who was banned");
    }
    if room.membership(admin) != Some("join") {
        return refused(403, "M_FORBIDDEN", &format!("{admin} not in room {room_id}."));
    }
    if room.membership(user_id) == Some("join") {
        return refused(403, "M_FORBIDDEN", &format!("{user_id} is already in the room."));
    }
    if room.power_of(admin) < room.power_to_invite {
        return refused(403, "M_FORBIDDEN", "You don't have permission to invite users");
    }
    Ok(())
}

/// By when files were made, not by when they were last used; whatever may be purged or not.
fn media_statistics(world: &mut World, call: &Call) -> Answered {
    let from_ts = call.integer("from_ts")?.unwrap_or(0);
    let until_ts = call.integer("until_ts")?;
    if until_ts.is_some_and(|until_ts| until_ts <= from_ts) {
        return refused(
            400,
            "M_INVALID_PARAM",
            "Query parameter until_ts must be greater than from_ts.",
        );
    }
    let order_by = call
        .one_of("order_by", &["user_id", "media_count", "media_length", "displayname"])?
        .to_owned();
    let backwards = call.one_of("dir", &["f", "b"])? == "b";
    let page = Page::of(world, call)?;
    let listing = world.listing(call.list_key(), |world| {
        let sums = |owner: &String| {
            let mut sums = ListedJob::plain(owner);
            for (_, media) in world.files_of(owner) {
                if media.created_ms >= from_ts
                    && until_ts.is_none_or(|until_ts| media.created_ms <= until_ts)
                {
                    sums.count += 1;
                    sums.bytes += media.bytes.unwrap_or(0);
                }
            }
            sums
        };
        let mut listed: Vec<_> = world.owners().map(sums).filter(|sums| sums.count > 0).collect();
        match order_by.as_str() {
            "media_count" => listed.sort_by_key(|sums| sums.count),
            "media_length" => listed.sort_by_key(|sums| sums.bytes),
            _ => {}
        }
        if backwards {
            listed.reverse();
        }
        listed
    });
    let rows: Vec<_> = page
        .of_list(&listing)
        .iter()
        .map(|sums| {
            let name = world.users.get(&sums.name).map(|user| displayname(&sums.name, user));
            json!({
                "user_id": sums.name, "displayname": name, "media_count": sums.count, "media_length": sums.bytes,
            })
        })
        .collect();
    Ok(paged("users", &rows, listing.len(), &page))
}

/// A list whose `next_token` is a number.
fn paged(name: &str, rows: &[Value], total: usize, page: &Page) -> Answer {
    let next = page.next(total, rows.len());
    let mut body = json!({"total": total, name: rows});
    if let Some(next) = next {
        body["next_token"] = next.into();
    }
    Answer::json(&body)
}

fn user_media(world: &mut World, call: &Call) -> Answered {
    let user_id = local_user(world, &call.args[0], "Can only look up local users")?;
    if !world.users.contains_key(user_id) {
        return refused(404, "M_NOT_FOUND", "Unknown user");
    }
    let order_by = call
        .one_of("order_by", &["created_ts", "last_access_ts", "media_length", "media_id"])?
        .to_owned();
    // Newest first, where nothing is said.
    let directions = if call.text("order_by").is_none() { ["b", "f"] } else { ["f", "b"] };
    let backwards = call.one_of("dir", &directions)? == "b";
    let page = Page::of(world, call)?;
    let listing = world.listing(call.list_key(), |world| {
        let mut files: Vec<_> = world.files_of(user_id).collect();
        files.sort_by_key(|(_, media)| match order_by.as_str() {
            "created_ts" => Some(media.created_ms),
            "last_access_ts" => media.last_access_ms,
            "media_length" => media.bytes.map(u64::cast_signed),
            _ => None,
        });
        if backwards {
            files.reverse();
        }
        files.into_iter().map(|(id, _)| ListedJob::plain(id)).collect()
    });
    let rows: Vec<_> = page
        .of_list(&listing)
        .iter()
        .filter_map(|listed| Some(media_row(&listed.name, world.files().get(&listed.name)?)))
        .collect();
    Ok(paged("media", &rows, listing.len(), &page))
}

/// With SQLite's numbers where Synapse's documentation has booleans.
fn media_row(id: &str, media: &Media) -> Value {
    json!({
        "media_id": id, "user_id": media.owner, "media_type": media.bytes.map(|_| media.media_type),
        "media_length": media.bytes, "upload_name": media.bytes.map(|_| "file.png"), "created_ts": media.created_ms,
        "last_access_ts": media.last_access_ms,
        "quarantined_by": media.quarantined.then_some("@moderator:fake.test"),
        "safe_from_quarantine": i32::from(media.protected), "authenticated": 1, "url_cache": null, "sha256": null,
    })
}

fn one_file(world: &mut World, call: &Call) -> Answered {
    let [origin, id] = [&call.args[0], &call.args[1]];
    let Some(media) = world.files().get(id).filter(|_| *origin == world.server_name) else {
        return refused(404, "M_NOT_FOUND", "Unknown media");
    };
    let mut info = media_row(id, media);
    info["media_origin"] = origin.as_str().into();
    info["filesystem_id"] = Value::Null;
    Ok(Answer::json(&json!({"media_info": info})))
}

fn protect(world: &mut World, call: &Call, is_protected: bool) -> Answered {
    let Some(media) = world.file_mut(&call.args[0]) else {
        return refused(404, "M_UNKNOWN", "No row found (local_media_repository)");
    };
    media.protected = is_protected;
    Ok(Answer::json(&json!({})))
}

fn delete_one_file(world: &mut World, call: &Call) -> Answered {
    let [origin, id] = [&call.args[0], &call.args[1]];
    if *origin != world.server_name {
        return refused(400, "M_UNKNOWN", "Can only delete local media");
    }
    if !world.files().contains_key(id) {
        return refused(404, "M_NOT_FOUND", "Unknown media");
    }
    if world.files()[id].stuck {
        return Ok(Answer::json(&json!({"deleted_media": [], "total": 0})));
    }
    let doomed = vec![Doomed::Local(id.clone())];
    Ok(Answer { doomed, ..Answer::json(&json!({"deleted_media": [id], "total": 1})) })
}

fn delete_media(world: &mut World, call: &Call) -> Answered {
    complain_of_body(world, call);
    let before_ts = call.time_of("before_ts")?;
    let size_gt = call.integer("size_gt")?.unwrap_or(0).cast_unsigned();
    let keep_profiles = call.boolean("keep_profiles")?.unwrap_or(true);
    complain_of_future(world, call, before_ts);
    let selected: Vec<_> = world
        .files()
        .iter()
        .filter(|(_, media)| {
            let kept = media.quarantined
                || media.protected
                || media.stuck
                || (keep_profiles && media.avatar);
            let used_ms = media.last_access_ms.unwrap_or(media.created_ms);
            !kept && used_ms < before_ts && media.bytes.is_some_and(|bytes| bytes > size_gt)
        })
        .map(|(id, _)| id.clone())
        .collect();
    let body = json!({"deleted_media": selected, "total": selected.len()});
    Ok(Answer { doomed: selected.into_iter().map(Doomed::Local).collect(), ..Answer::json(&body) })
}

fn purge_media_cache(world: &mut World, call: &Call) -> Answered {
    complain_of_body(world, call);
    let before_ts = call.time_of("before_ts")?;
    complain_of_future(world, call, before_ts);
    let doomed: Vec<_> = world
        .remote
        .iter()
        .filter(|(_, remote)| remote.last_access_ms < before_ts && !remote.quarantined)
        .map(|(key, _)| Doomed::Remote(*key))
        .collect();
    let body = json!({"deleted": doomed.len()});
    Ok(Answer { doomed, ..Answer::json(&body) })
}

fn complain_of_body(world: &mut World, call: &Call) {
    if !matches!(call.seen.body.trim(), "" | "{}") {
        world.complain(format!(
            "{} has parameters in its body, where Synapse ignores them",
            call.seen.path
        ));
    }
}

fn complain_of_future(world: &mut World, call: &Call, before_ts: i64) {
    if before_ts > world.now().timestamp_millis() {
        world.complain(format!("{}?{} deletes up to the future", call.seen.path, call.seen.query));
    }
}

pub(super) fn query_pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decoded(&name.replace('+', " ")), percent_decoded(&value.replace('+', " ")))
        })
        .collect()
}

pub(super) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, after @ ..])
                if let (Some(high), Some(low)) = (hex(*high), hex(*low)) =>
            {
                bytes.push(high * 16 + low);
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn is_percent_encoded(text: &str) -> bool {
    text.as_bytes()
        .windows(3)
        .any(|three| three[0] == b'%' && hex(three[1]).is_some() && hex(three[2]).is_some())
}
