//! Signing in with the admin token, and signing out.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use askama::Template;
use axum::Form;
use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::super::access::Caller;
use super::super::app::App;
use super::super::peer::Peer;
use super::super::session::{SignInError, cookie};
use super::layout::{Frame, Shell, signed_in};
use super::page_error::{PageError, rendered};

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    shell: Shell,
    next: String,
    error: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct LoginQuery {
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub(super) struct LoginForm {
    #[serde(default)]
    token: String,
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub(super) struct SignOutForm {
    #[serde(default)]
    csrf: String,
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    query: Result<Query<LoginQuery>, QueryRejection>,
) -> Result<Response, PageError> {
    let Query(LoginQuery { next }) = query?;
    let frame = Frame::new(&app, &caller, &uri).await;
    let shell = frame.shell("Sign in", "login").await;
    Ok(rendered(&LoginPage { shell, next: own_path(&next).to_owned(), error: None }))
}

pub(super) async fn sign_in(
    State(app): State<Arc<App>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    form: Result<Form<LoginForm>, FormRejection>,
) -> Result<Response, PageError> {
    let Form(LoginForm { token: sent, next }) = form?;
    let next = own_path(&next);
    let Some(token) = app.reloader.admin_token().await else {
        return Err(PageError::new(
            StatusCode::FORBIDDEN,
            "No admin token is configured: set daemon.admin_token_file, and reload.",
        ));
    };
    let client = client(caller.peer(), &headers);
    let signed_in = app.sessions.sign_in(client, sent.trim(), &token, app.clock.now()).await;
    let error = match signed_in {
        Ok(id) => {
            let mut response = Redirect::to(next).into_response();
            set_cookie(&mut response, cookie(Some(&id), is_secure(caller.peer(), &headers)));
            return Ok(response);
        }
        Err(error) => error,
    };
    app.metrics.login_failures.inc();
    tracing::warn!(target: "microglia::daemon", %client, "{client} tried to sign in to the status page with a wrong token");
    let (status, text, wait) = match error {
        SignInError::WrongToken => {
            (StatusCode::UNAUTHORIZED, "This is not the admin token.".to_owned(), None)
        }
        SignInError::TooMany(wait) => {
            let seconds = wait.as_secs() + 1;
            let text = format!("Too many wrong tokens: try again in {seconds} s.");
            (StatusCode::TOO_MANY_REQUESTS, text, Some(seconds))
        }
    };
    let frame = Frame::new(&app, &caller, &uri).await;
    let shell = frame.shell("Sign in", "login").await;
    let page = LoginPage { shell, next: next.to_owned(), error: Some(text) };
    let mut response = (status, rendered(&page)).into_response();
    if let Some(seconds) = wait {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    Ok(response)
}

pub(super) async fn sign_out(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    form: Result<Form<SignOutForm>, FormRejection>,
) -> Result<Response, PageError> {
    let Form(SignOutForm { csrf }) = form?;
    app.sessions.close(signed_in(&caller, &csrf)?);
    let mut response = Redirect::to("/?did=sign-out").into_response();
    set_cookie(&mut response, cookie(None, is_secure(caller.peer(), &headers)));
    Ok(response)
}

fn set_cookie(response: &mut Response, cookie: Option<HeaderValue>) {
    if let Some(cookie) = cookie {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
}

/// A path of this page; anything else leads to its start.
fn own_path(next: &str) -> &str {
    let is_own = next.starts_with('/')
        && !next.starts_with("//")
        && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_own { next } else { "/" }
}

/// The last value of a header that a proxy on this machine sets.
fn from_proxy<'a>(peer: Peer, headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let Peer::Tcp(address) = peer else { return None };
    let values = headers.get_all(name).iter().next_back().filter(|_| is_loopback(address.ip()))?;
    values.to_str().ok()?.rsplit(',').next().map(str::trim)
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn is_secure(peer: Peer, headers: &HeaderMap) -> bool {
    from_proxy(peer, headers, "x-forwarded-proto").is_some_and(|scheme| scheme == "https")
}

/// Who is slowed down for a wrong token.
fn client(peer: Peer, headers: &HeaderMap) -> IpAddr {
    let forwarded = from_proxy(peer, headers, "x-forwarded-for");
    match (forwarded.and_then(|address| address.parse().ok()), peer) {
        (Some(address), _) => address,
        (None, Peer::Tcp(address)) => address.ip(),
        (None, Peer::Local { .. }) => Ipv4Addr::LOCALHOST.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_in_leads_only_to_pages_of_the_daemon_itself() {
        for own in ["/", "/jobs/a@b", "/runs?job=a&mode=apply"] {
            assert_eq!(own_path(own), own);
        }
        for other in ["", "https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil"] {
            assert_eq!(own_path(other), "/");
        }
    }

    #[test]
    fn only_a_proxy_on_this_machine_is_believed() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-proto", "https".parse().unwrap());
        headers.append("x-forwarded-for", "203.0.113.9, 192.0.2.7".parse().unwrap());
        let local = Peer::Tcp("127.0.0.1:5".parse().unwrap());
        let remote = Peer::Tcp("192.0.2.1:5".parse().unwrap());
        assert!(is_secure(local, &headers) && !is_secure(remote, &headers));
        assert!(!is_secure(local, &HeaderMap::new()));
        let clients =
            [client(local, &headers), client(remote, &headers), client(local, &HeaderMap::new())];
        assert_eq!(
            clients.map(|address| address.to_string()),
            ["192.0.2.7", "192.0.2.1", "127.0.0.1"]
        );
    }
}
