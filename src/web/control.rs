//! The control socket: how the command line reaches the daemon, without a token, by who may open the file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, fchmod};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::plan::report::{Event, Report};
use crate::scheduler::reload::Reloader;
use crate::scheduler::supervisor::Supervisor;
use crate::scheduler::{Adopted, Refusal, RunOverrides};
use crate::web::health::{Health, Probe};

/// What the command line asks, one JSON line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Reload,
    Cancel {
        job: String,
    },
    Pause,
    Resume,
    Run {
        job: String,
        asked: RunOverrides,
    },
    /// What `/healthz` and `/readyz` answer over HTTP.
    Probe(Probe),
}

/// What the daemon answers: any number of events, then one of the others.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Event(Event),
    Done,
    Adopted(Adopted),
    Mistakes(Vec<String>),
    Report(Box<Report>),
    Refused(Refusal),
    Failed(String),
    /// A probe that succeeded, with its text.
    Healthy(String),
    /// A probe that failed, with its reason.
    Unhealthy(String),
}

pub const SOCKET: &str = "control.sock";
/// A request is one short line.
const LONGEST: u64 = 64 * 1024;
/// Callers at a time. Only this user and root can be one, so that this bounds accidents.
const MOST_CALLERS: usize = 128;
/// How long a caller may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How many events of a run may wait for a caller that reads slowly.
const MOST_EVENTS: usize = 10_000;
/// Callers that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long callers may take to hear how their runs ended when the daemon stops.
const LONGEST_GOODBYE: Duration = Duration::from_secs(3);
/// How long a caller may leave what it asked for unread: the events of its run wait in memory meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// The kernel's limit to the path of a socket.
const LONGEST_PATH: usize = 107;

/// A path to the socket that the kernel takes, however deep the state directory lies; the file keeps it valid.
fn reachable(dir: &Path) -> io::Result<(PathBuf, Option<std::fs::File>)> {
    use std::os::fd::AsRawFd;
    let path = dir.join(SOCKET);
    if path.as_os_str().len() <= LONGEST_PATH {
        return Ok((path, None));
    }
    let dir = std::fs::File::open(dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())), Some(dir)))
}

/// Opens the socket; the caller holds the daemon's lock, so that one that is there is a dead daemon's.
pub fn listen(dir: &Path) -> io::Result<UnixListener> {
    let (path, _dir) = reachable(dir)?;
    match std::fs::remove_file(dir.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixSocket::new_stream()?;
    // Linux makes the file with the mode of the socket: nobody can connect before it is set, and no path is followed.
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

/// What requests are answered from.
pub struct Services {
    pub supervisor: Arc<Supervisor>,
    pub reloader: Arc<Reloader>,
    pub health: Arc<Health>,
}

/// Serves the socket until `stop`.
pub async fn serve(listener: UnixListener, services: Services, stop: CancellationToken) {
    let services = Arc::new(services);
    let callers = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if callers.len() >= MOST_CALLERS {
            refuse(&stream);
            continue;
        }
        let (services, stop) = (Arc::clone(&services), stop.clone());
        callers.spawn(async move {
            // A caller that goes away gets no answer; what it asked for goes on.
            let _ = answer(stream, &services, &stop).await;
        });
    }
    callers.close();
    let _ = timeout(LONGEST_GOODBYE, callers.wait()).await;
}

async fn answer(
    stream: UnixStream,
    services: &Services,
    stop: &CancellationToken,
) -> io::Result<()> {
    let caller = caller(&stream);
    let Services { supervisor, reloader, health } = services;
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(LONGEST));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        read = timeout(REQUEST_TIMEOUT, read.read_line(&mut line)) => match read {
            Ok(read) => drop(read?),
            Err(_) => return Ok(()),
        },
    }
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            return say(&mut write, &Response::Failed(format!("not understood: {error}"))).await;
        }
    };
    let response = match request {
        Request::Reload => match reloader.reload("the control socket").await {
            Ok(adopted) => Response::Adopted(adopted),
            Err(mistakes) => Response::Mistakes(mistakes),
        },
        Request::Cancel { job } => supervisor
            .cancel(&job, &caller)
            .await
            .map_or_else(Response::Refused, |()| Response::Done),
        Request::Probe(probe) => {
            health.check(probe).await.map_or_else(Response::Unhealthy, Response::Healthy)
        }
        Request::Pause => paused(supervisor, true).await,
        Request::Resume => paused(supervisor, false).await,
        Request::Run { job, asked } => match supervisor.run(&job, &asked).await {
            Err(refusal) => Response::Refused(refusal),
            Ok(mut events) => {
                let (mut report, mut listens) = (None, true);
                while let Some(event) = events.recv().await {
                    match event {
                        Event::Ended(ended) => report = Some(ended),
                        // What the caller does not hear any more it can read in the history.
                        event if listens && events.len() < MOST_EVENTS => {
                            let event = Response::Event(event);
                            let said = timeout(PATIENCE, say(&mut write, &event)).await;
                            listens = matches!(said, Ok(Ok(())));
                        }
                        _ => listens = false,
                    }
                }
                if !listens {
                    return Ok(());
                }
                report.map_or_else(
                    || Response::Failed("the run did not start".to_owned()),
                    Response::Report,
                )
            }
        },
    };
    timeout(PATIENCE, say(&mut write, &response)).await?
}

/// Tells a caller for whom there is no place, as far as that is possible without waiting for it.
fn refuse(stream: &UnixStream) {
    let refusal = Response::Failed("too many callers at once: try again".to_owned());
    if let Ok(line) = line(&refusal) {
        let _ = stream.try_write(&line);
    }
}

/// Who is at the other end, as the kernel knows: `root (uid 0)`.
fn caller(stream: &UnixStream) -> String {
    let Ok(credentials) = stream.peer_cred() else { return "an unknown user".to_owned() };
    let uid = credentials.uid();
    match std::fs::read_to_string("/etc/passwd").ok().and_then(|passwd| user_name(&passwd, uid)) {
        Some(name) => format!("{name} (uid {uid})"),
        None => format!("uid {uid}"),
    }
}

/// Local accounts only: what a directory service answers may take long.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|account| {
        let mut fields = account.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

async fn paused(supervisor: &Supervisor, paused: bool) -> Response {
    match supervisor.pause(paused).await {
        Ok(()) => Response::Done,
        Err(error) => Response::Failed(format!(
            "it cannot be remembered beyond a restart, and so was not done: {error}"
        )),
    }
}

async fn say(write: &mut (impl AsyncWriteExt + Unpin), response: &Response) -> io::Result<()> {
    write.write_all(&line(response)?).await
}

/// One message as it is sent.
fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// A connection to the daemon that holds a state directory.
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// `None` where no daemon lives there.
    pub async fn open(dir: &Path) -> io::Result<Option<Self>> {
        let (path, _dir) = match reachable(dir) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match UnixStream::connect(path).await {
            Ok(stream) => Ok(Some(Self { stream: BufReader::new(stream) })),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub async fn ask(&mut self, request: &Request) -> io::Result<()> {
        self.stream.get_mut().write_all(&line(request)?).await
    }

    /// The next answer; `None` where the daemon went away.
    pub async fn next(&mut self) -> io::Result<Option<Response>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_local_account_is_found_by_its_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\n# a comment\nops:x:1000:1000::/home/ops:/bin/sh\n";
        let found = [0, 1000, 1001].map(|uid| user_name(passwd, uid));
        assert_eq!(found, [Some("root".to_owned()), Some("ops".to_owned()), None]);
    }
}
