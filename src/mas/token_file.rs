//! The file that keeps the program's own token across restarts, in the directory `tokens` of the state directory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::ulid::Ulid;
use crate::values::lock_file;

/// A file that only its owner can read, which is never reached through a link, and replaced as a whole.
#[derive(Debug)]
pub(super) struct TokenFile {
    pub state_dir: PathBuf,
    /// The name of the homeserver.
    pub name: String,
}

/// What the file keeps.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    /// The device of the sessions of this state directory.
    pub device: String,
    pub issued: Option<KeptToken>,
}

#[derive(Debug, Clone)]
pub(super) struct KeptToken {
    /// What it was issued for: another MAS, client or account must not get it.
    pub bound_to: String,
    pub session: Ulid,
    pub token: SecretString,
    pub expires_at: DateTime<Utc>,
}

/// Excludes other processes; released on drop.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    device: String,
    bound_to: Option<String>,
    session: Option<Ulid>,
    token: Option<String>,
    expires_at: Option<DateTime<Utc>>,
}

const DIRECTORY: &str = "tokens";
/// A token has at most 8 KiB.
const MAX_BYTES: u64 = 16 * 1024;

impl TokenFile {
    /// The content; `None` if there is no file, or not one of this program.
    pub(super) fn read(&self) -> io::Result<Option<Kept>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.directory()?, self.name.as_str(), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Self::refused(errno)),
        };
        if !file.metadata()?.is_file() {
            return Err(Self::refused(Errno::ELOOP));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        let Ok(stored) = serde_json::from_slice::<Stored>(&bytes) else { return Ok(None) };
        let issued = match (stored.bound_to, stored.session, stored.token, stored.expires_at) {
            (Some(bound_to), Some(session), Some(token), Some(expires_at)) => {
                let valid = crate::http::validate_token(&token).is_ok();
                valid.then(|| KeptToken { bound_to, session, token: token.into(), expires_at })
            }
            _ => None,
        };
        Ok(is_device(&stored.device).then_some(Kept { device: stored.device, issued }))
    }

    /// Replaces the file, and survives a crash of the machine; to be called under [`Self::try_lock`].
    pub(super) fn write(&self, kept: &Kept) -> io::Result<()> {
        let issued = kept.issued.as_ref();
        let stored = Stored {
            device: kept.device.clone(),
            bound_to: issued.map(|issued| issued.bound_to.clone()),
            session: issued.map(|issued| issued.session.clone()),
            token: issued.map(|issued| issued.token.expose_secret().to_owned()),
            expires_at: issued.map(|issued| issued.expires_at),
        };
        let directory = self.directory()?;
        let new = self.hidden("new");
        match unlinkat(&directory, new.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(Self::refused(errno)),
        }
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let created = openat(&directory, new.as_str(), flags, mode);
        let mut file = File::from(created.map_err(Self::refused)?);
        file.write_all(&serde_json::to_vec(&stored)?)?;
        file.sync_all()?;
        renameat(&directory, new.as_str(), &directory, self.name.as_str())
            .map_err(Self::refused)?;
        // Not every file system can do this; the name then survives with the next write to the disk.
        File::from(directory).sync_all().ok();
        Ok(())
    }

    /// Locks the file for this process; `None` while another one has it.
    pub(super) fn try_lock(&self) -> io::Result<Option<FileLock>> {
        let flags = OFlag::O_RDWR
            | OFlag::O_CREAT
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC;
        let (name, mode) = (self.hidden("lock"), Mode::from_bits_truncate(0o600));
        let path = self.state_dir.join(DIRECTORY).join(&name);
        let file = lock_file::try_lock(&path, || {
            let opened = openat(&self.directory()?, name.as_str(), flags, mode);
            Ok(File::from(opened.map_err(Self::refused)?))
        })?;
        Ok(file.map(|file| FileLock { _file: file }))
    }

    /// The name of a file beside it, which no homeserver can have: names do not begin with a dot.
    fn hidden(&self, what: &str) -> String {
        format!(".{}.{what}", self.name)
    }

    /// Opens the directory, and creates it in a state directory that exists.
    fn directory(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let state = nix::fcntl::open(&self.state_dir, flags, Mode::empty())?;
        match mkdirat(&state, DIRECTORY, Mode::from_bits_truncate(0o700)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        openat(state.as_fd(), DIRECTORY, flags | OFlag::O_NOFOLLOW, Mode::empty())
            .map_err(Self::refused)
    }

    fn refused(errno: Errno) -> io::Error {
        match errno {
            Errno::ELOOP | Errno::ENOTDIR | Errno::EISDIR | Errno::ENXIO => {
                io::Error::other("there is a link or another kind of file: remove it")
            }
            errno => errno.into(),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.state_dir.join(DIRECTORY).join(&self.name)
    }
}

/// Whether it can be part of a scope.
fn is_device(device: &str) -> bool {
    !device.is_empty()
        && device.len() < 100
        && device.bytes().all(|byte| byte.is_ascii_alphanumeric())
}
