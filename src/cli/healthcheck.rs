//! `microglia healthcheck`: checks that the running daemon is healthy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use axum::http::StatusCode;

use super::client::{Client, Reply};
use super::context::environment;
use super::failure::Failure;
use super::output::{print, print_error};
use crate::config;
use crate::web::Probe;

/// How long to wait for the daemon's TCP listener.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter: TCP must still be tried within the 10 s that a container's health check has.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(3);

/// Uses the control socket, and TCP if the socket does not respond.
///
/// The file may name another address than the one the daemon listens on, if it was edited since; the socket stays.
pub(super) async fn run(path: &Path, probe: Probe) -> Result<(), Failure> {
    let endpoint = match probe {
        Probe::Health => "healthz",
        Probe::Readiness => "readyz",
    };
    match tokio::time::timeout(SOCKET_TIMEOUT, over_socket(path, endpoint)).await {
        Ok(Some(Reply { status: StatusCode::OK, body })) => print(&body),
        Ok(Some(Reply { status: StatusCode::SERVICE_UNAVAILABLE, body })) => {
            print_error(body.trim_end());
            Err(Failure::Unsuccessful)
        }
        _ => over_tcp(path, endpoint).await,
    }
}

/// `None` if there is no socket, or this user may not use it.
async fn over_socket(path: &Path, endpoint: &str) -> Option<Reply> {
    let state_dir = config::state_dir_or_default(path, &environment());
    Client::connect(&state_dir).await.ok()??.get(&[endpoint]).await.ok()
}

async fn over_tcp(path: &Path, endpoint: &str) -> Result<(), Failure> {
    let address = local(config::listen(path, &environment()));
    let url = format!("http://{address}/{endpoint}");
    let reply = async {
        let client = Client::connect_tcp(address).await?;
        client.get(&[endpoint]).await
    };
    let reply = tokio::time::timeout(TCP_TIMEOUT, reply)
        .await
        .map_err(|_| anyhow!("{url} does not respond within {} s", TCP_TIMEOUT.as_secs()))?;
    let reply = reply.map_err(|failure| match failure {
        Failure::Error(error) => Failure::Error(anyhow!("cannot reach {url}: {error:#}")),
        other => other,
    })?;
    if reply.status == StatusCode::OK {
        return print(&reply.body);
    }
    print_error(&format!("{url} responded with {}: {}", reply.status.as_u16(), reply.body.trim()));
    Err(Failure::Unsuccessful)
}

/// A daemon that listens on all addresses is reached on the loopback address.
fn local(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
