//! The only place that sends HTTP: token, encoding, limits, retries, decoding.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, StatusCode, Url, header};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::error::{self, Cause, Error};
use super::pace::{Limits, Watch, unless};
use super::token::Token;
use crate::values::duration::HumanDuration;
use crate::values::schema::{Limit, Rate};
use crate::values::size::Size;

/// What a homeserver needs to be talked to.
#[derive(Debug)]
pub struct Settings {
    pub name: String,
    pub url: Url,
    pub media_url: Option<Url>,
    pub token: Token,
    /// PEM certificates to trust besides the system's.
    pub ca: Option<Vec<u8>>,
    /// Shared by all transports to one address.
    pub limits: Arc<Limits>,
    pub request_timeout: Duration,
    /// Whether media lives in object storage, where Synapse deletes nothing.
    pub media_in_object_storage: bool,
}

/// Told of each answer, and of each failure to get one, for the metrics.
pub type Observer = Arc<dyn Fn(&CompletedRequest) + Send + Sync>;

/// One request as the metrics see it: a route template, never an id.
#[derive(Debug)]
pub struct CompletedRequest {
    pub method: Method,
    pub endpoint: &'static str,
    /// `None` where no answer came.
    pub status: Option<u16>,
    pub took: Duration,
    pub token_refused: bool,
}

/// A connection pool to one homeserver with its limits, shared by all runs on it.
pub struct Transport {
    pub name: String,
    pub address: Address,
    http: reqwest::Client,
    url: Url,
    media_url: Url,
    token: Token,
    limits: Arc<Limits>,
    request_timeout: Duration,
    pub(super) media_in_object_storage: bool,
    observer: Observer,
}

/// Which of a homeserver's addresses serves an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Homeserver,
    Media,
}

/// Whether a request can be sent again when it is unknown what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Safe,
    Never,
    /// Not even where it did nothing, because it rests on what was read just before it.
    Once,
}

/// How a request takes its place in the rate of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Own,
    /// Takes the turn of the next request along, which then need not wait.
    WithNext,
    /// The request before it took this one's turn.
    Taken,
}

/// One request. `endpoint` is a route template whose `{}` are filled with `ids`, encoded.
pub(super) struct Call<'a> {
    pub method: Method,
    pub base: Base,
    pub endpoint: &'static str,
    pub ids: &'a [&'a str],
    pub query: Vec<(&'static str, String)>,
    pub body: Option<serde_json::Value>,
    pub repeat: Repeat,
    pub turn: Turn,
    /// Media purges have none: Synapse works on regardless, and only the run's time limit ends the waiting.
    pub timeout: Option<Duration>,
}

/// A request written by the user: a path as it goes out, under the base.
#[derive(Debug, Clone)]
pub struct RawRequest {
    pub method: Method,
    pub base: Base,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub body: Option<serde_json::Value>,
    pub expect: Vec<u16>,
    pub repeatable: bool,
}

/// A request under way, as the watch over a run's answers sees it.
///
/// Only reads count while they are open: a purge of media takes as long as it takes.
struct Question<'a> {
    watch: &'a Watch,
    number: Option<u64>,
}

impl<'a> Question<'a> {
    fn of(watch: &'a Watch, method: &Method) -> Self {
        Self { watch, number: (*method == Method::GET).then(|| watch.asked()) }
    }

    fn ended(mut self, error: Option<&Error>) {
        let number = self.number.take().unwrap_or_else(|| self.watch.asked());
        let silent = error.filter(|error| error.is_silence());
        self.watch.answered(number, silent.map(Error::message));
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.watch.forget(number);
        }
    }
}

/// What both kinds of requests share while they are sent, and sent again.
#[derive(Clone, Copy)]
struct Repeated<'a> {
    method: &'a Method,
    endpoint: &'static str,
    path: &'a str,
    repeat: Repeat,
    turn: Turn,
    watch: &'a Watch,
    given_up: &'a CancellationToken,
}

/// A good answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
    pub date: Option<String>,
    method: Method,
    path: String,
}

/// Sent again this often, within one attempt of a run, when a repeat is safe.
pub(super) const REPEATS: u32 = 3;
/// Told to wait this often by one request, Synapse is left alone until the run's next attempt.
pub(super) const LIMITED: u32 = 8;
/// A longer wait than this is left to the run's retries.
pub(super) const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// A longer wish to be left alone counts as this: no proxy knows that far ahead.
const LONGEST_WISH: Duration = Duration::from_hours(24);
/// Below the 60 s after which proxies close an idle connection: a POST on a connection that just closed is ambiguous.
const IDLE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most that is read of a list, such as the state of a room with 100,000 members.
const LARGEST_LIST: Size = Size(64 << 20);
/// The most that is read of an answer about one object, and of an error.
const LARGEST_OBJECT: Size = Size(1 << 20);

impl Transport {
    pub fn new(settings: Settings, observer: Observer) -> Result<Self, String> {
        // A second call finds the provider installed: that is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("microglia/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE)
            .tcp_nodelay(true)
            .http1_only()
            .no_proxy();
        let urls = [Some(&settings.url), settings.media_url.as_ref()];
        if urls.into_iter().flatten().all(|url| url.scheme() == "http") {
            // Nothing to verify: a machine without CA certificates can do that too.
            builder = builder.tls_certs_only([]);
        } else if let Some(pem) = &settings.ca {
            let certificates = reqwest::Certificate::from_pem_bundle(pem)
                .map_err(|error| format!("the CA file is no PEM bundle: {error}"))?;
            if certificates.is_empty() {
                return Err("the CA file holds no certificate".to_owned());
            }
            builder = builder.tls_certs_merge(certificates);
        }
        let http = builder
            .build()
            .map_err(|error| format!("cannot set up TLS: {}", with_sources(&error)))?;
        Ok(Self {
            name: settings.name,
            address: Address::of(&settings.url),
            http,
            media_url: settings.media_url.unwrap_or_else(|| settings.url.clone()),
            url: settings.url,
            token: settings.token,
            limits: settings.limits,
            request_timeout: settings.request_timeout,
            media_in_object_storage: settings.media_in_object_storage,
            observer,
        })
    }

    pub(super) fn requests_per_second(&self) -> Limit<Rate> {
        self.limits.requests_per_second()
    }

    pub(super) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// Waits for a turn among all joins to this homeserver.
    pub(super) async fn join_turn(&self) {
        self.limits.joins.wait(1).await;
    }

    /// Sends a call until it is answered or may not be sent again; an error status is an error.
    ///
    /// What only waits ends when it is given up; what was sent is waited for.
    pub(super) async fn send(
        &self,
        call: &Call<'_>,
        watch: &Watch,
        given_up: &CancellationToken,
    ) -> Result<Answer, Error> {
        let url = self.url_of(call.base, call.endpoint, call.ids);
        let request = || {
            let mut request =
                self.http.request(call.method.clone(), url.clone()).query(&call.query);
            if let Some(body) = &call.body {
                request = request.json(body);
            }
            match call.timeout {
                Some(timeout) => request.timeout(timeout),
                None => request,
            }
        };
        let repeated = Repeated {
            method: &call.method,
            endpoint: call.endpoint,
            path: url.path(),
            repeat: call.repeat,
            turn: call.turn,
            watch,
            given_up,
        };
        self.repeated(&repeated, request, |status| (200..300).contains(&status)).await
    }

    /// Sends a request that a user wrote.
    pub(super) async fn send_raw(
        &self,
        raw: &RawRequest,
        watch: &Watch,
        given_up: &CancellationToken,
    ) -> Result<Answer, Error> {
        let base = self.base(raw.base).as_str().trim_end_matches('/');
        let url = Url::parse(&format!("{base}{}", raw.path)).map_err(|error| Error {
            method: raw.method.clone(),
            path: raw.path.clone(),
            cause: Cause::Unexpected(format!("not a valid URL: {error}")),
            advice: None,
        })?;
        let request = || {
            let mut request =
                self.http.request(raw.method.clone(), url.clone()).timeout(self.request_timeout);
            if !raw.query.is_empty() {
                request = request.query(&raw.query);
            }
            match &raw.body {
                Some(body) => request.json(body),
                None => request,
            }
        };
        let repeated = Repeated {
            method: &raw.method,
            endpoint: "(request)",
            path: url.path(),
            repeat: if raw.repeatable { Repeat::Safe } else { Repeat::Never },
            turn: Turn::Own,
            watch,
            given_up,
        };
        self.repeated(&repeated, request, |status| raw.expect.contains(&status)).await
    }

    async fn repeated(
        &self,
        repeated: &Repeated<'_>,
        request: impl Fn() -> reqwest::RequestBuilder,
        accept: impl Fn(u16) -> bool,
    ) -> Result<Answer, Error> {
        let Repeated { method, endpoint, path, repeat, turn: turns, watch, given_up } = *repeated;
        let (mut repeats, mut limited, mut rotated) = (0, 0, false);
        // An earlier sending that may have done it must not be forgotten because a later one waits, or was not let in.
        let mut unsure: Option<Error> = None;
        let or_unsure = |error: Error, unsure: Option<Error>| {
            if error.is_transient() && !error.may_have_taken_effect() {
                return unsure.unwrap_or(error);
            }
            error
        };
        let waiting =
            |cause| Error { method: method.clone(), path: path.to_owned(), cause, advice: None };
        loop {
            let token = self.token.current().await;
            let turn = async {
                let place = self.limits.places.semaphore().acquire().await;
                let each = if watch.is_slow() { 2 } else { 1 };
                match turns {
                    Turn::Own => self.limits.requests.wait(each).await,
                    Turn::WithNext => self.limits.requests.wait(2 * each).await,
                    Turn::Taken => {}
                }
                place
            };
            let outcome = match unless(given_up, turn).await {
                Err(cause) => return Err(or_unsure(waiting(cause), unsure)),
                Ok(_place) => {
                    let start = Instant::now();
                    let question = Question::of(watch, method);
                    let outcome = self
                        .once(repeated, request().bearer_auth(token.expose_secret()), &accept)
                        .await;
                    question.ended(outcome.as_ref().err());
                    let took = start.elapsed();
                    self.observe(method, endpoint, &outcome, took);
                    if outcome.is_ok() && *method == Method::GET {
                        watch.record(endpoint, took);
                    }
                    outcome
                }
            };
            let error = match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let rotated_now = error.is_about_token()
                && !rotated
                && self.token.current().await.expose_secret() != token.expose_secret();
            if repeat == Repeat::Once && !rotated_now {
                return Err(error);
            }
            // What Synapse refused it did not do, so that it can be sent again whatever it is.
            let wait = if error.is_limited() {
                let wait = error.retry_after().unwrap_or(Duration::from_secs(1 << limited.min(5)));
                if limited == LIMITED || wait > LONGEST_WAIT {
                    return Err(or_unsure(error, unsure));
                }
                limited += 1;
                tracing::debug!(target: "microglia::homeserver", homeserver = %self.name, wait_ms = wait.as_millis(), "{} asks to wait", self.name);
                wait.mul_f64(1.0 + fastrand::f64() * 0.1)
            } else if rotated_now {
                rotated = true;
                continue;
            } else {
                let not_sent = matches!(error.cause, Cause::Unreachable(_));
                if repeats == REPEATS
                    || !error.is_transient()
                    || !(repeat == Repeat::Safe || not_sent)
                {
                    return Err(or_unsure(error, unsure));
                }
                repeats += 1;
                let longest = Duration::from_millis(500 << repeats);
                // A question that was lost is nothing to be unsure of.
                if error.may_have_taken_effect() && *method != Method::GET {
                    unsure = Some(error);
                }
                longest.mul_f64(0.5 + fastrand::f64() * 0.5)
            };
            if let Err(cause) = unless(given_up, tokio::time::sleep(wait)).await {
                return Err(or_unsure(waiting(cause), unsure));
            }
        }
    }

    async fn once(
        &self,
        repeated: &Repeated<'_>,
        request: reqwest::RequestBuilder,
        accept: impl Fn(u16) -> bool,
    ) -> Result<Answer, Error> {
        let Repeated { method, path, endpoint, .. } = *repeated;
        let fail =
            |cause, advice| Error { method: method.clone(), path: path.to_owned(), cause, advice };
        #[expect(clippy::disallowed_methods, reason = "this is the one place")]
        let response = request.send().await.map_err(|error| {
            let problem = with_sources(&error);
            if error.is_builder() {
                return fail(Cause::NotSent(problem), None);
            }
            if !error.is_connect() {
                return fail(Cause::Lost(problem), None);
            }
            let advice = if problem.starts_with("invalid peer certificate") {
                "The homeserver's certificate is not trusted here: set `ca_file` to that of the CA that signed it, and `url` to a name in it".to_owned()
            } else {
                let address = error.url().map(|url| url.origin().ascii_serialization());
                format!("Nothing answers at {}: is Synapse running, and is the homeserver's URL right?", address.unwrap_or_default())
            };
            fail(Cause::Unreachable(problem), Some(advice))
        })?;
        let status = response.status();
        let header = |name| {
            response
                .headers()
                .get(name)
                .and_then(|value: &header::HeaderValue| value.to_str().ok())
                .map(str::to_owned)
        };
        let (date, retry_after, location) =
            (header(header::DATE), header(header::RETRY_AFTER), header(header::LOCATION));
        let accepted = accept(status.as_u16());
        let most = if accepted { largest(endpoint) } else { LARGEST_OBJECT };
        let body = self.body(response, most).await.map_err(|cause| {
            let advice = matches!(cause, Cause::TooLarge(_)).then(|| {
                "Check that the homeserver's URL leads to Synapse's own listener; if it does, the answer is too large for microglia: please report it".to_owned()
            });
            fail(cause, advice)
        })?;
        if accepted {
            return Ok(Answer {
                status,
                body,
                date,
                method: method.clone(),
                path: path.to_owned(),
            });
        }
        let cause = if status.is_success() {
            let excerpt = error::excerpt(&body);
            Cause::Unexpected(format!("{}, which is not expected here: {excerpt}", status.as_u16()))
        } else {
            refusal(status, &body, retry_after.as_deref())
        };
        let advice = self.advice(&cause, path, location.as_deref());
        Err(fail(cause, advice))
    }

    /// Reads a body up to `most` bytes, and for no longer than `request_timeout` after its head came.
    ///
    /// The second bound matters for media calls, which have no time limit of their own: once the answer has begun, Synapse
    /// has finished the work.
    async fn body(&self, mut response: reqwest::Response, most: Size) -> Result<Vec<u8>, Cause> {
        if response.content_length().is_some_and(|length| length > most.0) {
            return Err(Cause::TooLarge(most));
        }
        let read = async {
            let mut body = Vec::new();
            while let Some(chunk) =
                response.chunk().await.map_err(|error| Cause::Lost(with_sources(&error)))?
            {
                if (body.len() + chunk.len()) as u64 > most.0 {
                    return Err(Cause::TooLarge(most));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        };
        tokio::time::timeout(self.request_timeout, read).await.unwrap_or_else(|_| {
            Err(Cause::Lost(format!(
                "the answer began, and its end did not come within {}",
                HumanDuration(self.request_timeout)
            )))
        })
    }

    fn observe(
        &self,
        method: &Method,
        endpoint: &'static str,
        outcome: &Result<Answer, Error>,
        took: Duration,
    ) {
        let status = match outcome {
            Ok(answer) => Some(answer.status.as_u16()),
            Err(Error {
                cause: Cause::Synapse { status, .. } | Cause::NotSynapse { status, .. },
                ..
            }) => Some(*status),
            Err(_) => None,
        };
        let token_refused = outcome.as_ref().is_err_and(Error::is_about_token);
        (self.observer)(&CompletedRequest {
            method: method.clone(),
            endpoint,
            status,
            took,
            token_refused,
        });
    }

    fn base(&self, base: Base) -> &Url {
        match base {
            Base::Homeserver => &self.url,
            Base::Media => &self.media_url,
        }
    }

    /// Fills the template. Each id becomes one segment with `/`, `?`, `#` and `%` encoded: Synapse splits the path before it decodes.
    fn url_of(&self, base: Base, endpoint: &str, ids: &[&str]) -> Url {
        let mut url = self.base(base).clone();
        let mut ids = ids.iter();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty();
            for part in endpoint.trim_start_matches('/').split('/') {
                match part {
                    "{}" => segments.push(ids.next().copied().unwrap_or_default()),
                    fixed => segments.push(fixed),
                };
            }
        }
        url
    }

    fn advice(&self, cause: &Cause, path: &str, location: Option<&str>) -> Option<String> {
        let admin_path = path.contains("/_synapse/");
        let key = if path.contains("media") { "media_url" } else { "url" };
        match cause {
            Cause::Synapse { status: 401, errcode, .. } if errcode == "M_USER_LOCKED" => Some("The account of the token is locked: unlock it, or use another server admin's token".to_owned()),
            Cause::Synapse { status: 401, error, .. } if error.starts_with("Token doesn't grant access") => {
                Some("This token does not give access to the Matrix client-server API, as those that MAS gives out for client credentials: use a personal or compatibility token with the scopes urn:matrix:client:api:* and urn:synapse:admin:*".to_owned())
            }
            Cause::Synapse { status: 503, error, .. } if error.starts_with("Unable to introspect") => {
                Some("MAS did not answer Synapse, which asks it about every token: check that MAS is running and that Synapse can reach it".to_owned())
            }
            Cause::Synapse { status: 500, errcode, error, .. } if error::is_no_account(errcode, error) => {
                Some("MAS knows the token's account, and Synapse does not have it yet: log in once with this account, with any Matrix client".to_owned())
            }
            Cause::Synapse { status: 401, .. } => Some(format!("The access token is not valid: {}", self.token.remedy())),
            Cause::Synapse { status: 403, error, .. } if error == error::NOT_ADMIN => {
                Some("The token's account is no server admin: make it one (under MAS the token needs the scope urn:synapse:admin:*), or use the token of one".to_owned())
            }
            Cause::Synapse { status: 500, error, .. } if error.starts_with("Invalid username claim") => {
                Some("This is a MAS client-credentials token, which Synapse does not take: use a personal or compatibility token".to_owned())
            }
            Cause::Synapse { errcode, .. } if errcode == "M_UNRECOGNIZED" && path.contains("media") => {
                Some("The process that answered does not serve this media endpoint: set `media_url` to the worker that does, or upgrade Synapse".to_owned())
            }
            Cause::Synapse { errcode, .. } if errcode == "M_UNRECOGNIZED" => {
                Some("Synapse does not know this endpoint: it is too old, it delegates to MAS, or a worker answered; `url` should be the main process' own listener".to_owned())
            }
            Cause::NotSynapse { status: 300..=399, .. } => {
                Some(format!("Redirects are not followed{}: set `url` to Synapse's own listener", location.map(|to| format!(" (to {})", error::line(to, 200))).unwrap_or_default()))
            }
            Cause::NotSynapse { status: 502, .. } => {
                Some(format!("The proxy cannot reach Synapse: check that Synapse is running and that the proxy's upstream address is right, or set `{key}` to Synapse's own listener"))
            }
            Cause::NotSynapse { status: 503, .. } => {
                Some(format!("The proxy has no Synapse to pass the request on to: check that Synapse is running and that the proxy has not taken it out of service, or set `{key}` to Synapse's own listener"))
            }
            Cause::NotSynapse { status: 504, .. } => {
                Some(format!("The proxy gave up waiting, and Synapse may still be working on the request: raise the proxy's read timeout, or set `{key}` to Synapse's own listener"))
            }
            Cause::NotSynapse { status: 401 | 403 | 404, .. } if admin_path => {
                Some("A proxy answered, and most hide /_synapse/admin: set `url` to Synapse's own listener, such as http://127.0.0.1:8008".to_owned())
            }
            Cause::NotSynapse { status: 401 | 403 | 404, .. } => {
                Some("Something else than Synapse answered: set `url` to Synapse's own listener, such as http://127.0.0.1:8008".to_owned())
            }
            _ => None,
        }
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Answer {
    /// Decodes the body; the error shows its beginning.
    pub(super) fn decode<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|problem| Error {
            method: self.method.clone(),
            path: self.path.clone(),
            cause: Cause::Undecodable {
                // It may quote a value of any length.
                problem: error::line(&problem.to_string(), 200),
                excerpt: error::excerpt(&self.body),
            },
            advice: None,
        })
    }

    /// An error for an answer that shows its object other than it has to be for a change.
    pub(super) fn changed(&self) -> Error {
        Error {
            method: self.method.clone(),
            path: self.path.clone(),
            cause: Cause::Changed,
            advice: None,
        }
    }

    /// An error for an answer that reports something else than was asked for.
    pub(super) fn unexpected(&self, problem: impl Into<String>) -> Error {
        Error {
            method: self.method.clone(),
            path: self.path.clone(),
            cause: Cause::Unexpected(problem.into()),
            advice: None,
        }
    }
}

/// The most that is read of an endpoint's answer.
fn largest(endpoint: &str) -> Size {
    match endpoint {
        "/_matrix/client/v3/account/whoami"
        | "/_matrix/client/v1/auth_metadata"
        | "/_matrix/client/v3/directory/room/{}"
        | "/_synapse/admin/v1/server_version"
        | "/_synapse/admin/v1/rooms/{}/block"
        | "/_synapse/admin/v1/join/{}"
        | "/_synapse/admin/v1/media/{}/{}"
        | "/_synapse/admin/v1/purge_media_cache"
        | "/_synapse/admin/v2/users/{}" => LARGEST_OBJECT,
        _ => LARGEST_LIST,
    }
}

fn refusal(status: StatusCode, body: &[u8], retry_after: Option<&str>) -> Cause {
    #[derive(Deserialize)]
    struct Envelope {
        errcode: String,
        #[serde(default)]
        error: String,
        #[serde(default)]
        retry_after_ms: serde_json::Value,
    }
    match serde_json::from_slice::<Envelope>(body) {
        Ok(envelope) => Cause::Synapse {
            status: status.as_u16(),
            errcode: error::line(&envelope.errcode, 100),
            error: error::line(&envelope.error, 500),
            retry_after: milliseconds(&envelope.retry_after_ms).or_else(|| seconds(retry_after)),
        },
        Err(_) => Cause::NotSynapse {
            status: status.as_u16(),
            excerpt: error::title(body),
            retry_after: seconds(retry_after),
        },
    }
}

/// A wish as Synapse writes it; anything but a number that is not negative is none.
fn milliseconds(wish: &serde_json::Value) -> Option<Duration> {
    let milliseconds = wish.as_f64().filter(|milliseconds| *milliseconds >= 0.0)?;
    Some(Duration::from_secs_f64((milliseconds / 1000.0).min(LONGEST_WISH.as_secs_f64())))
}

/// The `Retry-After` header, where it counts seconds.
fn seconds(retry_after: Option<&str>) -> Option<Duration> {
    let digits = retry_after?.trim();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Digits that are no u64 are too many.
    let seconds = digits.parse().unwrap_or(u64::MAX);
    Some(Duration::from_secs(seconds).min(LONGEST_WISH))
}

/// An error with what caused it, in one line: reqwest's own text names only the outermost.
fn with_sources(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer within the time allowed".to_owned();
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

impl Base {
    pub fn key(self) -> &'static str {
        match self {
            Self::Homeserver => "url",
            Self::Media => "media_url",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synapse::LimitValues;
    use crate::values::schema::Limit;

    #[tokio::test]
    async fn a_request_that_cannot_be_built_was_not_sent() {
        let settings = Settings {
            name: "main".to_owned(),
            url: "http://127.0.0.1:9".parse().unwrap(),
            media_url: None,
            token: Token::inline("to\u{1}ken".into()),
            ca: None,
            limits: Arc::new(Limits::new(LimitValues {
                max_concurrent_requests: 1,
                max_requests_per_second: Limit::Unlimited,
                max_joins_per_second: Limit::Unlimited,
            })),
            request_timeout: Duration::from_mins(1),
            media_in_object_storage: false,
        };
        let transport = Transport::new(settings, Arc::new(|_| {})).unwrap();
        let call = Call {
            method: Method::POST,
            base: Base::Media,
            endpoint: "/_synapse/admin/v1/purge_media_cache",
            ids: &[],
            query: vec![],
            body: None,
            repeat: Repeat::Never,
            turn: Turn::Own,
            timeout: None,
        };
        let sent = transport.send(&call, &Watch::default(), &CancellationToken::new()).await;
        let error = sent.unwrap_err();
        assert!(!error.may_have_taken_effect() && !error.is_transient(), "{error:?}");
        assert_eq!(
            error.message(),
            "the request cannot be built, and was not sent: failed to parse header value"
        );
    }

    #[test]
    fn whoever_asks_to_wait_is_heard_in_the_body_before_the_header() {
        let asked = |body: &str, header| match refusal(
            StatusCode::TOO_MANY_REQUESTS,
            body.as_bytes(),
            header,
        ) {
            Cause::Synapse { retry_after, .. } => ("Synapse", retry_after),
            Cause::NotSynapse { retry_after, .. } => ("a proxy", retry_after),
            other => panic!("{other:?}"),
        };
        let limited = r#"{"errcode": "M_LIMIT_EXCEEDED", "error": "", "retry_after_ms": 1500}"#;
        let silent = r#"{"errcode": "M_LIMIT_EXCEEDED", "error": ""}"#;
        assert_eq!(asked(limited, Some("2")), ("Synapse", Some(Duration::from_millis(1500))));
        assert_eq!(asked(silent, Some("2")), ("Synapse", Some(Duration::from_secs(2))));
        assert_eq!(asked("<html>", Some("7")), ("a proxy", Some(Duration::from_secs(7))));
        assert_eq!(asked("<html>", None), ("a proxy", None));
    }
}
