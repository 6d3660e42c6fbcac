//! An HTTP client for the API of the running daemon.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, anyhow};
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::event_stream::EventStream;
use super::failure::Failure;
use super::output::print_error;
use crate::web::short_path;

/// Far above any response of the API, which the daemon bounds.
const MAX_RESPONSE_BYTES: usize = 256 * 1024 * 1024;

/// A connection to the daemon, for one request.
pub(super) struct Client {
    sender: SendRequest<Body>,
    /// The value of the `Host` header.
    host: String,
}

impl Client {
    /// Connects to the control socket in a state directory; `None` where no daemon is running on it.
    pub(super) async fn connect(state_dir: &Path) -> io::Result<Option<Self>> {
        let no_daemon = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::NotADirectory
            )
        };
        let connected = async {
            let (path, _dir) = short_path(state_dir)?;
            UnixStream::connect(path).await
        };
        match connected.await {
            Ok(stream) => Ok(Some(Self::over(stream, "localhost".to_owned()).await?)),
            Err(error) if no_daemon(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn connect_tcp(address: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect(address).await?, address.to_string()).await
    }

    async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        host: String,
    ) -> io::Result<Self> {
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        // What goes wrong with the connection is also the result of the request.
        tokio::spawn(connection);
        Ok(Self { sender, host })
    }

    pub(super) async fn get(self, path: &[&str]) -> Result<Reply, Failure> {
        Reply::read(self.send(Method::GET, path, Body::empty(), "*/*").await?).await
    }

    pub(super) async fn post(self, path: &[&str]) -> Result<Reply, Failure> {
        Reply::read(self.send(Method::POST, path, Body::empty(), "*/*").await?).await
    }

    /// Sends JSON.
    pub(super) async fn post_with(self, path: &[&str], body: Vec<u8>) -> Result<Reply, Failure> {
        Reply::read(self.send(Method::POST, path, body.into(), "*/*").await?).await
    }

    /// Sends JSON, and returns the event stream of the response, or the reply if it is not one.
    pub(super) async fn post_for_events(
        self,
        path: &[&str],
        body: Vec<u8>,
    ) -> Result<Result<EventStream, Reply>, Failure> {
        let response = self.send(Method::POST, path, body.into(), "text/event-stream").await?;
        if response.status().is_success() {
            return Ok(Ok(EventStream::new(Body::new(response.into_body()))));
        }
        Ok(Err(Reply::read(response).await?))
    }

    async fn send(
        mut self,
        method: Method,
        path: &[&str],
        body: Body,
        accept: &str,
    ) -> Result<Response<Incoming>, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(encoded(path)?)
            .header(header::HOST, self.host)
            .header(header::ACCEPT, accept)
            .body(body)?;
        let response = self.sender.send_request(request).await;
        Ok(response.context("no valid response from the daemon")?)
    }
}

/// Encodes the segments of a path: a job may be named on the command line in any way.
fn encoded(path: &[&str]) -> Result<String, Failure> {
    let mut url = Url::parse("http://localhost")?;
    url.path_segments_mut().map_err(|()| anyhow!("the URL has no path"))?.extend(path);
    Ok(url.path().to_owned())
}

/// A complete response.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

impl Reply {
    async fn read(response: Response<Incoming>) -> Result<Self, Failure> {
        let status = response.status();
        let body = to_bytes(Body::new(response.into_body()), MAX_RESPONSE_BYTES).await;
        let body = body.context("the response of the daemon is incomplete")?;
        Ok(Self { status, body: String::from_utf8_lossy(&body).into_owned() })
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let parsed = serde_json::from_str(&self.body);
        Ok(parsed.with_context(|| format!("cannot read the daemon's response {:?}", self.body))?)
    }

    /// The `error` of an unsuccessful response, or else the whole of it.
    pub(super) fn error(&self) -> String {
        match serde_json::from_str::<ErrorBody>(&self.body) {
            Ok(body) => body.error,
            Err(_) => format!("the daemon responded with {}: {}", self.status, self.body.trim()),
        }
    }

    /// Returns the reply where it is successful.
    pub(super) fn succeeded(self) -> Result<Self, Failure> {
        match self.status {
            StatusCode::OK | StatusCode::ACCEPTED => Ok(self),
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Err(Failure::Usage(self.error())),
            _ => {
                print_error(&self.error());
                Err(Failure::Unsuccessful)
            }
        }
    }
}
