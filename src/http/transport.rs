//! The only place that sends HTTP: authorization, limits, retries, metrics.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, Url, header};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::address::Address;
use super::api::Api;
use super::auto_rate::RateChange;
use super::client::Clients;
use super::error::{Cause, Error};
use super::monitor::{OpenRequest, ResponseMonitor};
use super::pace::{ActiveRun, Limits, Sign, unless_cancelled};
use super::request::{
    Base, Body, BodyStream, Call, Form, JOIN_ENDPOINT, Outgoing, Pacing, RawRequest,
};
use super::response::{self, Headers, Response};
use super::retry::{self, Attempts, Retry, TokenState};
use super::token_source::TokenSource;
use super::{advice, body, client, mas_advice};
use crate::values::clock::Clock;
use crate::values::schema::RateLimit;

/// How a homeserver, or the MAS of a homeserver, is reached.
#[derive(Debug)]
pub struct Settings {
    /// Of the homeserver.
    pub name: String,
    pub api: Api,
    pub url: Url,
    pub media_url: Option<Url>,
    pub token: TokenSource,
    /// PEM certificates to trust besides the system's.
    pub ca: Option<Vec<u8>>,
    /// Shared by all transports to one address.
    pub limits: Arc<Limits>,
    pub request_timeout: Duration,
}

/// Called after each request, for the metrics.
pub type Observer = Arc<dyn Fn(&CompletedRequest) + Send + Sync>;

/// One request as the metrics see it: a route template, never an id.
#[derive(Debug)]
pub struct CompletedRequest {
    pub api: Api,
    pub method: Method,
    pub endpoint: &'static str,
    /// `None` if there was no response.
    pub status: Option<u16>,
    pub took: Duration,
    pub token_refused: bool,
    /// Requests per second that are allowed from now on; `None` without a limit.
    pub rate_limit: Option<f64>,
}

/// The connections to one server with its limits, shared by all runs that use it.
pub struct Transport {
    name: String,
    api: Api,
    pub(crate) address: Address,
    http: reqwest::Client,
    url: Url,
    media_url: Url,
    token: TokenSource,
    limits: Arc<Limits>,
    request_timeout: Duration,
    observer: Observer,
}

/// What one run contributes to each of its requests.
#[derive(Clone, Copy)]
pub(crate) struct Session<'a> {
    pub monitor: &'a ResponseMonitor,
    /// Ends the wait for a token, for a slot, for the rate limit and for a retry; a response is always waited for.
    pub cancel: &'a CancellationToken,
    pub clock: &'a Clock,
}

impl Transport {
    pub fn new(settings: Settings, observer: Observer) -> Result<Self, String> {
        Self::sharing(&mut Clients::default(), settings, observer)
    }

    /// Shares the HTTP client with other homeservers that trust the same certificates.
    pub fn sharing(
        clients: &mut Clients,
        settings: Settings,
        observer: Observer,
    ) -> Result<Self, String> {
        let Settings { name, api, url, media_url, token, ca, limits, request_timeout } = settings;
        let media_url = media_url.unwrap_or_else(|| url.clone());
        Ok(Self {
            http: clients.client(&[&url, &media_url], ca.as_deref())?,
            address: Address::of(&url),
            name,
            api,
            url,
            media_url,
            token,
            limits,
            request_timeout,
            observer,
        })
    }

    pub(crate) fn requests_per_second(&self) -> RateLimit {
        self.limits.requests_per_second()
    }

    /// Requests per second at present, if the program determines them.
    pub(crate) fn auto_rate(&self) -> Option<f64> {
        self.limits.auto_rate()
    }

    /// Counts a run that sends requests as long as the returned value exists.
    pub(crate) fn begin_run(&self) -> ActiveRun {
        self.limits.begin_run()
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// Waits for a turn among all joins to this homeserver.
    pub(crate) async fn join_turn(&self) {
        self.limits.joins.wait().await;
    }

    /// Sends a request, and sends it again where that is safe. A status of 300 or above is an error.
    pub(crate) async fn send(
        &self,
        call: &Call<'_>,
        session: Session<'_>,
    ) -> Result<Response, Error> {
        self.send_with_retries(&call.outgoing(self.base(call.base)), session).await
    }

    /// Sends a GET whose successful response is parsed while it arrives.
    pub(crate) async fn send_streamed(
        &self,
        call: &Call<'_>,
        stream: &BodyStream<'_>,
        session: Session<'_>,
    ) -> Result<Response, Error> {
        let outgoing = Outgoing { stream: Some(stream), ..call.outgoing(self.base(call.base)) };
        self.send_with_retries(&outgoing, session).await
    }

    /// Posts a form that brings its own authorization; it is sent again only if it certainly was not processed.
    pub(crate) async fn send_form(
        &self,
        form: &Form<'_>,
        session: Session<'_>,
    ) -> Result<Response, Error> {
        let outgoing = form.outgoing(&self.url, self.request_timeout);
        self.send_with_retries(&outgoing, session).await
    }

    /// Sends a request from the configuration. A status that it does not expect is an error.
    pub(crate) async fn send_raw(
        &self,
        raw: &RawRequest,
        session: Session<'_>,
    ) -> Result<Response, Error> {
        let outgoing = raw.outgoing(self.base(raw.base), self.request_timeout)?;
        self.send_with_retries(&outgoing, session).await
    }

    async fn send_with_retries(
        &self,
        outgoing: &Outgoing<'_>,
        session: Session<'_>,
    ) -> Result<Response, Error> {
        let mut attempts = Attempts::default();
        // An attempt that may have taken effect outweighs later ones that certainly had none.
        let mut uncertain: Option<Error> = None;
        loop {
            // A token that cannot be obtained is an error of its own, which was retried where that is safe.
            let needs_token =
                outgoing.basic.is_none() && self.token.is_needed_for(outgoing.endpoint);
            let token = match needs_token {
                true => Some(
                    unless_cancelled(session.cancel, self.token.current(outgoing))
                        .await
                        .unwrap_or_else(|cause| Err(outgoing.error(cause, None)))
                        .map_err(|error| more_certain(error, uncertain.take()))?,
                ),
                false => None,
            };
            let error = match self.attempt(outgoing, token.as_ref(), session).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let token_state = unless_cancelled(
                session.cancel,
                self.token_state(&error, token.as_ref(), attempts),
            )
            .await
            .unwrap_or(TokenState::Unchanged);
            let decision =
                retry::decide(&error, outgoing.repeat, attempts, token_state, fastrand::f64());
            attempts.add(&error);
            let wait = match decision {
                Retry::Stop => return Err(more_certain(error, uncertain)),
                Retry::Now => continue,
                Retry::After(wait) => wait,
            };
            tracing::debug!(target: "microglia::homeserver", homeserver = %self.name, wait_ms = wait.as_millis(), "{}: a request to {} failed and will be sent again", self.name, self.api.name());
            // A lost response to a GET leaves nothing uncertain.
            if error.may_have_taken_effect() && *outgoing.method != Method::GET {
                uncertain = Some(error);
            }
            unless_cancelled(session.cancel, tokio::time::sleep(wait))
                .await
                .map_err(|cause| more_certain(outgoing.error(cause, None), uncertain.take()))?;
        }
    }

    /// Reads the token again, or has another one issued, only if it was rejected, and at most twice for a request.
    async fn token_state(
        &self,
        error: &Error,
        used: Option<&SecretString>,
        attempts: Attempts,
    ) -> TokenState {
        match used {
            Some(used) if attempts.may_renew_token() && error.is_about_token() => {
                self.token.state_after_refusal(error, used).await
            }
            _ => TokenState::Unchanged,
        }
    }

    /// Waits until the limits allow the request, sends it once, and reports it to monitor and metrics.
    async fn attempt(
        &self,
        outgoing: &Outgoing<'_>,
        token: Option<&SecretString>,
        session: Session<'_>,
    ) -> Result<Response, Error> {
        let monitor = session.monitor;
        let admitted = async {
            let slot = self.limits.request_slots.semaphore().acquire().await;
            let slowdown = if self.is_slow(monitor) { 2 } else { 1 };
            match outgoing.pacing {
                Pacing::Normal => self.limits.request_turn(slowdown).await,
                Pacing::ReserveNext => self.limits.request_turn(2 * slowdown).await,
                Pacing::Reserved => {}
            }
            slot
        };
        let _slot = unless_cancelled(session.cancel, admitted)
            .await
            .map_err(|cause| outgoing.error(cause, None))?;
        let start = Instant::now();
        let open = OpenRequest::new(monitor, outgoing.method);
        let outcome = self.send_once(outgoing, token, session.clock).await;
        open.complete(outcome.as_ref().err());
        let took = start.elapsed();
        if let Some(RateChange { from, to }) =
            self.limits.adjust(sign(outgoing, &outcome, took), start)
        {
            tracing::info!(target: "microglia::homeserver", homeserver = %self.name, requests_per_second = to, "{}: the request rate is now {to:.0} per second, it was {from:.0}", self.name);
        }
        self.observe(outgoing, &outcome, took);
        if outcome.is_ok() && *outgoing.method == Method::GET {
            monitor.record_latency(outgoing.endpoint, took);
        }
        outcome
    }

    /// Whether responses are so slow that requests are sent at half the configured rate; "auto" finds its own.
    pub(crate) fn is_slow(&self, monitor: &ResponseMonitor) -> bool {
        self.auto_rate().is_none() && monitor.is_slow()
    }

    async fn send_once(
        &self,
        outgoing: &Outgoing<'_>,
        token: Option<&SecretString>,
        clock: &Clock,
    ) -> Result<Response, Error> {
        let request = self.request(outgoing, token);
        #[expect(clippy::disallowed_methods, reason = "this is the one place")]
        let sent = request.send();
        let response = match outgoing.stream {
            None => sent.await,
            Some(stream) => tokio::time::timeout(stream.timeout, sent)
                .await
                .map_err(|_| outgoing.error(Cause::Lost(client::NO_RESPONSE.to_owned()), None))?,
        };
        let response = response.map_err(|error| self.no_response(outgoing, token, &error))?;
        let status = response.status();
        let header = |name| {
            let value: Option<&header::HeaderValue> = response.headers().get(name);
            value.and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let headers = Headers {
            date: header(header::DATE),
            retry_after: header(header::RETRY_AFTER),
            location: header(header::LOCATION),
            content_type: header(header::CONTENT_TYPE),
        };
        let accepted = outgoing.expect.accepts(status.as_u16());
        let timeout = self.request_timeout;
        let read = match outgoing.stream.filter(|_| accepted) {
            Some(stream) => body::pass_on(response, stream, timeout).await,
            None if accepted => {
                body::read(response, body::max_body(outgoing.endpoint), timeout).await
            }
            None => body::read(response, body::MAX_ERROR, timeout).await,
        };
        let body = read.map_err(|cause| {
            let too_large = matches!(cause, Cause::TooLarge(_));
            outgoing.error(cause, too_large.then(|| self.too_large().to_owned()))
        })?;
        if accepted {
            return Ok(Response {
                status,
                body,
                date: headers.date,
                method: outgoing.method.clone(),
                path: outgoing.url.path().to_owned(),
            });
        }
        Err(self.refusal(outgoing, status, &headers, &body, clock))
    }

    /// The request with its authorization, body and timeout.
    fn request(
        &self,
        outgoing: &Outgoing<'_>,
        token: Option<&SecretString>,
    ) -> reqwest::RequestBuilder {
        let mut request = self.http.request(outgoing.method.clone(), outgoing.url.clone());
        if let Some((id, secret)) = outgoing.basic {
            request = request.basic_auth(id, Some(secret.expose_secret()));
        } else if let Some(token) = token.filter(|token| !token.expose_secret().is_empty()) {
            request = request.bearer_auth(token.expose_secret());
        }
        match outgoing.body {
            Some(Body::Json(json)) => request = request.json(json),
            Some(Body::Form(form)) => {
                request = request
                    .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form);
            }
            None => {}
        }
        if let Some(timeout) = outgoing.timeout {
            request = request.timeout(timeout);
        }
        request
    }

    /// Returns the error for a response with a status that was not expected.
    fn refusal(
        &self,
        outgoing: &Outgoing<'_>,
        status: reqwest::StatusCode,
        headers: &Headers,
        body: &[u8],
        clock: &Clock,
    ) -> Error {
        let path = outgoing.url.path();
        let (cause, advice) = match self.api {
            Api::Synapse => {
                let cause = response::refusal(status, headers, body, clock.now());
                let location = headers.location.as_deref();
                let advice = advice::for_refusal(&cause, path, location, &self.token);
                (cause, advice)
            }
            Api::Mas => {
                // Only a request for a token brings credentials of its own.
                let refusal = match outgoing.basic {
                    Some(_) => response::token_refusal,
                    None => response::mas_refusal,
                };
                let cause = refusal(status, headers, body, clock.now());
                let advice = mas_advice::for_refusal(&cause, path);
                (cause, advice)
            }
        };
        outgoing.error(cause, advice)
    }

    /// Returns the error for an attempt that got no response.
    fn no_response(
        &self,
        outgoing: &Outgoing<'_>,
        token: Option<&SecretString>,
        error: &reqwest::Error,
    ) -> Error {
        let problem = client::root_cause(error);
        if error.is_builder() {
            return outgoing.error(Cause::NotSent(problem), None);
        }
        if !error.is_connect() {
            let may_wait_for_mas = self.api == Api::Synapse
                && token.is_some()
                && matches!(self.token, TokenSource::Issued(_))
                && problem == client::NO_RESPONSE;
            let advice = may_wait_for_mas.then(|| advice::WAITS_FOR_MAS.to_owned());
            return outgoing.error(Cause::Lost(problem), advice);
        }
        let origin = outgoing.url.origin().ascii_serialization();
        let advice = advice::for_unreachable(&problem, &origin, self.api);
        outgoing.error(Cause::Unreachable(problem), Some(advice))
    }

    fn too_large(&self) -> &'static str {
        match self.api {
            Api::Synapse => advice::TOO_LARGE,
            Api::Mas => mas_advice::TOO_LARGE,
        }
    }

    fn observe(&self, outgoing: &Outgoing<'_>, outcome: &Result<Response, Error>, took: Duration) {
        let status = match outcome {
            Ok(response) => Some(response.status.as_u16()),
            Err(error) => error.status(),
        };
        (self.observer)(&CompletedRequest {
            api: self.api,
            method: outgoing.method.clone(),
            endpoint: outgoing.endpoint,
            status,
            took,
            token_refused: outcome.as_ref().is_err_and(Error::is_about_token),
            rate_limit: self.limits.current_rate(),
        });
    }

    fn base(&self, base: Base) -> &Url {
        match base {
            Base::Homeserver => &self.url,
            Base::Media => &self.media_url,
        }
    }
}

/// Returns what the outcome of a request says about the load of the homeserver.
///
/// Lists are left out: what a page costs depends on its position. A join that is refused is the business of its own limit.
fn sign(outgoing: &Outgoing<'_>, outcome: &Result<Response, Error>, took: Duration) -> Sign {
    match outcome {
        Err(error) if error.is_rate_limited() && outgoing.endpoint == JOIN_ENDPOINT => Sign::None,
        Err(error) if error.is_overload() => Sign::Overload,
        Ok(_) if *outgoing.method == Method::GET && outgoing.endpoint.contains("{}") => {
            Sign::Latency { endpoint: outgoing.endpoint, took }
        }
        _ => Sign::None,
    }
}

/// Returns the error to report: an earlier one that left the effect uncertain, unless `last` does so itself or is final.
///
/// An attempt without a token was not made, and is final for nothing.
fn more_certain(last: Error, uncertain: Option<Error>) -> Error {
    let is_final = !last.is_transient() && !matches!(last.cause, Cause::NoToken(_));
    if !is_final && !last.may_have_taken_effect() { uncertain.unwrap_or(last) } else { last }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::error::NoToken;
    use crate::http::pace::LimitValues;
    use crate::http::request::Repeat;
    use crate::http::token::Token;
    use crate::values::schema::Limit;

    #[tokio::test]
    async fn a_request_that_cannot_be_built_was_not_sent() {
        let settings = Settings {
            name: "main".to_owned(),
            api: Api::Synapse,
            url: "http://127.0.0.1:9".parse().unwrap(),
            media_url: None,
            token: TokenSource::Configured(Token::inline("to\u{1}ken".into())),
            ca: None,
            limits: Arc::new(Limits::new(LimitValues {
                max_concurrent_requests: 1,
                max_requests_per_second: RateLimit::Unlimited,
                max_joins_per_second: Limit::Unlimited,
            })),
            request_timeout: Duration::from_mins(1),
        };
        let transport = Transport::new(settings, Arc::new(|_| {})).unwrap();
        let call = Call {
            method: Method::POST,
            base: Base::Media,
            endpoint: "/_synapse/admin/v1/purge_media_cache",
            ids: &[],
            query: vec![],
            body: None,
            repeat: Repeat::IfNotApplied,
            pacing: Pacing::Normal,
            timeout: None,
        };
        let session = Session {
            monitor: &ResponseMonitor::default(),
            cancel: &CancellationToken::new(),
            clock: &Clock::system(),
        };
        let error = transport.send(&call, session).await.unwrap_err();
        assert!(!error.may_have_taken_effect() && !error.is_transient(), "{error:?}");
        assert_eq!(
            error.message(),
            "the request could not be built and was not sent: failed to parse header value"
        );
    }

    #[test]
    fn an_attempt_for_which_there_was_no_token_leaves_an_earlier_one_uncertain() {
        let error =
            |cause| Error { method: Method::DELETE, path: "/link".to_owned(), cause, advice: None };
        let lost = || error(Cause::Lost("cut".to_owned()));
        let no_token = || error(Cause::NoToken(NoToken::Problem("locked".to_owned())));
        assert!(more_certain(no_token(), Some(lost())).may_have_taken_effect());
        assert!(!more_certain(no_token(), None).may_have_taken_effect());
        let gone = Cause::Mas { status: 404, errors: Vec::new(), retry_after: None };
        assert!(more_certain(error(gone), Some(lost())).is_not_found());
    }
}
