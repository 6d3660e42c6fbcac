//! Logging in with a browser: SSO ends with a redirect to a port of this machine, which carries the login token.

use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use reqwest::Url;
use secrecy::SecretString;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::output::print_message;
use crate::synapse::sso_url;
use crate::values::duration::format_duration;
use crate::values::random::random_bytes;

/// How long a person may take in the browser.
const TIME_LIMIT: Duration = Duration::from_mins(10);
/// How long the browser may take to read the last page.
const LAST_PAGE: Duration = Duration::from_secs(2);
const MAX_TOKEN: usize = 4096;

/// Prints the URL to open and waits for the login token; `homeserver` is where a browser reaches it.
pub(super) async fn login_token(homeserver: &Url) -> Result<SecretString, Failure> {
    let listener =
        TcpListener::bind(("127.0.0.1", 0)).await.context("cannot listen on 127.0.0.1")?;
    let address = listener.local_addr()?;
    // Only who was sent here by this login knows the path.
    let path = format!("/{:032x}", u128::from_be_bytes(random_bytes()));
    let redirect: Url = format!("http://{address}{path}").parse()?;
    let (sender, mut tokens) = mpsc::channel(1);
    let router = Router::new().route(&path, get(receive)).with_state(sender);
    let end = CancellationToken::new();
    let server =
        axum::serve(listener, router).with_graceful_shutdown(end.clone().cancelled_owned());
    let server = tokio::spawn(server.into_future());
    print_message(&format!(
        "Open this URL in a browser and log in, within {}:\n\n  {}\n\n\
         The browser has to reach port {port} of this machine. If it runs on another one, run there first:\n\
         ssh -L {port}:127.0.0.1:{port} THIS-MACHINE\n",
        format_duration(TIME_LIMIT),
        sso_url(homeserver, &redirect),
        port = address.port(),
    ));
    let token = tokio::time::timeout(TIME_LIMIT, tokens.recv()).await;
    end.cancel();
    let _ = tokio::time::timeout(LAST_PAGE, server).await;
    match token {
        Ok(Some(token)) => Ok(token),
        Ok(None) => Err(anyhow!("the listener for the browser failed").into()),
        Err(_) => {
            let limit = format_duration(TIME_LIMIT);
            Err(anyhow!("no login within {limit}: nothing was written").into())
        }
    }
}

#[derive(Deserialize)]
struct Callback {
    #[serde(rename = "loginToken")]
    login_token: Option<String>,
}

async fn receive(
    State(tokens): State<mpsc::Sender<SecretString>>,
    Query(callback): Query<Callback>,
) -> impl IntoResponse {
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::REFERRER_POLICY, "no-referrer")];
    let is_valid = |token: &String| !token.is_empty() && token.len() <= MAX_TOKEN;
    match callback.login_token.filter(is_valid) {
        Some(token) => {
            // Only the first one is waited for.
            let _ = tokens.try_send(token.into());
            (
                StatusCode::OK,
                headers,
                "microglia has received the login. Close this page and return to the terminal.\n",
            )
        }
        None => (StatusCode::BAD_REQUEST, headers, "There is no login token in this URL.\n"),
    }
}
