//! The control socket: reaches the daemon without a token, through the permissions of a file.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket};

/// The name of the socket in the state directory.
pub(crate) const SOCKET: &str = "control.sock";
/// Callers that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// The kernel's limit for the path of a socket, in bytes.
const MAX_PATH: usize = 107;

/// A path to the socket within the kernel's limit; valid while the returned file is open.
pub(crate) fn short_path(dir: &Path) -> io::Result<(PathBuf, Option<std::fs::File>)> {
    let path = dir.join(SOCKET);
    if path.as_os_str().len() <= MAX_PATH {
        return Ok((path, None));
    }
    let dir = std::fs::File::open(dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())), Some(dir)))
}

/// Opens the socket and replaces that of a dead daemon: the caller holds the daemon's lock.
pub(crate) fn listen(dir: &Path) -> io::Result<UnixListener> {
    let (path, _dir) = short_path(dir)?;
    match std::fs::remove_file(dir.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixSocket::new_stream()?;
    // Linux creates the file with the mode of the socket: nobody can connect before it is set, and no path is followed.
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}
