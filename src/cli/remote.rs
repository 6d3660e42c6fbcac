//! What the running daemon is asked through its socket: `reload`, `cancel`, `pause`, `resume`, and `healthcheck`, which falls back to HTTP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Ended, blocking, enter, load, print, say_error};
use crate::config;
use crate::values::clock::Clock;
use crate::web::control::{Connection, Request, Response};
use crate::web::health::Probe;

pub(super) async fn reload(path: &Path) -> Result<(), Ended> {
    match ask(path, &Request::Reload).await? {
        Response::Adopted(adopted) => {
            let line = |what: &str, jobs: &[String]| {
                if jobs.is_empty() {
                    String::new()
                } else {
                    format!("{what}: {}\n", jobs.join(", "))
                }
            };
            let mut text = line("added", &adopted.added)
                + &line("changed", &adopted.changed)
                + &line("removed", &adopted.removed);
            text.push_str(&format!(
                "reloaded: {} added, {} changed, {} removed, {} unchanged\n",
                adopted.added.len(),
                adopted.changed.len(),
                adopted.removed.len(),
                adopted.unchanged.len()
            ));
            text.extend(
                adopted.restart_needed.iter().map(|need| format!("needs a restart: {need}\n")),
            );
            print(&text)
        }
        Response::Mistakes(mistakes) => {
            for mistake in mistakes {
                say_error(&mistake);
            }
            say_error("the config was not reloaded, the one before stays in force");
            Err(Ended::Unsuccessful)
        }
        other => Err(unexpected(other)),
    }
}

pub(super) async fn cancel(path: &Path, job: &str) -> Result<(), Ended> {
    match ask(path, &Request::Cancel { job: job.to_owned() }).await? {
        Response::Done => print(&format!("{job}: its run ends at the next change boundary")),
        other => Err(unexpected(other)),
    }
}

pub(super) async fn pause(path: &Path, paused: bool) -> Result<(), Ended> {
    match ask(path, if paused { &Request::Pause } else { &Request::Resume }).await? {
        Response::Done => print(if paused {
            "paused: nothing runs on schedule until `microglia resume`"
        } else {
            "resumed"
        }),
        other => Err(unexpected(other)),
    }
}

pub(super) fn unexpected(response: Response) -> Ended {
    match response {
        Response::Refused(
            refusal @ (crate::scheduler::supervisor::Refusal::Unknown(_)
            | crate::scheduler::supervisor::Refusal::Usage(_)),
        ) => Ended::Usage(refusal.to_string()),
        Response::Refused(refusal) => {
            say_error(&refusal.to_string());
            Ended::Unsuccessful
        }
        Response::Failed(problem) => Ended::Error(anyhow::anyhow!(problem)),
        other => Ended::Error(anyhow::anyhow!("the daemon answered {other:?}")),
    }
}

/// Asks the daemon on the config's state directory, also when the config has mistakes: who is in the middle of an edit
/// must be able to stop a run.
async fn ask(path: &Path, request: &Request) -> Result<Response, Ended> {
    let dir = blocking(path, |path, environment| config::state_dir(path, &environment)).await??;
    // Before root becomes the owner of the state directory, who may not be allowed to read the secrets.
    let config = load(path, &Clock::system()).await;
    enter(&dir)?;
    let connection = Connection::open(&dir)
        .await
        .map_err(|error| anyhow::anyhow!("the daemon's socket in {} cannot be used ({error}): use sudo, or the daemon's own user", dir.display()))?;
    let Some(mut connection) = connection else {
        // A mistake may be why there is none, or why it is looked for in the wrong place.
        config?;
        return Err(
            anyhow::anyhow!("no daemon runs on the state directory {}", dir.display()).into()
        );
    };
    connection.ask(request).await?;
    connection
        .next()
        .await?
        .ok_or_else(|| Ended::Error(anyhow::anyhow!("the daemon went away before it answered")))
}

/// How long to wait for the daemon's HTTP listener.
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter, so that HTTP can still be tried within the 10 s that a container's health check has.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks over the control socket, and over HTTP where the socket does not answer.
///
/// Where the daemon listens is only known from a file that may have been edited since; the socket stays where it is.
pub(super) async fn healthcheck(path: &Path, probe: Probe) -> Result<(), Ended> {
    match tokio::time::timeout(SOCKET_TIMEOUT, over_socket(path, probe)).await {
        Ok(Some(Response::Healthy(text))) => print(&text),
        Ok(Some(Response::Unhealthy(reason))) => {
            say_error(reason.trim_end());
            Err(Ended::Unsuccessful)
        }
        _ => over_http(path, probe).await,
    }
}

/// `None` where there is no socket, or this user may not use it.
async fn over_socket(path: &Path, probe: Probe) -> Option<Response> {
    let dir = blocking(path, |path, environment| config::state_dir_or_default(path, &environment))
        .await
        .ok()?;
    let mut connection = Connection::open(&dir).await.ok()??;
    connection.ask(&Request::Probe(probe)).await.ok()?;
    connection.next().await.ok()?
}

async fn over_http(path: &Path, probe: Probe) -> Result<(), Ended> {
    let mut address =
        blocking(path, |path, environment| config::listen(path, &environment)).await?;
    // A daemon that listens on all addresses is asked on this machine's own.
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port());
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            address = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port());
        }
        _ => {}
    }
    let path = match probe {
        Probe::Health => "/healthz",
        Probe::Readiness => "/readyz",
    };
    // The plainest request there is, so that a health check every few seconds sets up no TLS.
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(HTTP_TIMEOUT, asked)
        .await
        .map_err(|_| {
            anyhow::anyhow!(
                "http://{address}{path} does not answer within {} s",
                HTTP_TIMEOUT.as_secs()
            )
        })?
        .map_err(|error| anyhow::anyhow!("http://{address}{path} cannot be asked: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or("nothing");
    if status == "200" {
        return print(body);
    }
    say_error(&format!("http://{address}{path} answers {status}: {}", body.trim()));
    Err(Ended::Unsuccessful)
}
