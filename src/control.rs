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

use crate::reload::Reloader;
use crate::report::{Event, Report};
use crate::supervisor::{Adopted, Asked, Refusal, Supervisor};

/// What the command line asks, one JSON line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Reload,
    Cancel { job: String },
    Pause,
    Resume,
    Run { job: String, asked: Asked },
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
}

pub const SOCKET: &str = "control.sock";
/// A request is one short line.
const LONGEST: u64 = 64 * 1024;
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

/// Serves the socket until `stop`.
pub async fn serve(
    listener: UnixListener,
    supervisor: Arc<Supervisor>,
    reloader: Arc<Reloader>,
    stop: CancellationToken,
) {
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
        let (supervisor, reloader, stop) =
            (Arc::clone(&supervisor), Arc::clone(&reloader), stop.clone());
        callers.spawn(async move {
            // A caller that goes away gets no answer; what it asked for goes on.
            let _ = answer(stream, &supervisor, &reloader, &stop).await;
        });
    }
    callers.close();
    let _ = timeout(LONGEST_GOODBYE, callers.wait()).await;
}

async fn answer(
    stream: UnixStream,
    supervisor: &Arc<Supervisor>,
    reloader: &Reloader,
    stop: &CancellationToken,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(LONGEST));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        read = read.read_line(&mut line) => drop(read?),
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
        Request::Cancel { job } => {
            supervisor.cancel(&job).map_or_else(Response::Refused, |()| Response::Done)
        }
        Request::Pause => paused(supervisor, true).await,
        Request::Resume => paused(supervisor, false).await,
        Request::Run { job, asked } => match supervisor.run(&job, &asked) {
            Err(refusal) => Response::Refused(refusal),
            Ok(mut events) => {
                let (mut report, mut listens) = (None, true);
                while let Some(event) = events.recv().await {
                    match event {
                        Event::Ended(ended) => report = Some(ended),
                        // What the caller does not hear any more it can read in the history.
                        event if listens => {
                            let event = Response::Event(event);
                            let said = timeout(PATIENCE, say(&mut write, &event)).await;
                            listens = matches!(said, Ok(Ok(())));
                        }
                        _ => {}
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
    say(&mut write, &response).await
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
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    write.write_all(&line).await
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
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).await
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
