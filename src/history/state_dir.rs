//! The state directory: the ownership of what is created there, and the locks of runs and daemons.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, Metadata, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{self, Gid, Uid, User};

use crate::values::lock_file::{self, identity, identity_of};

/// A directory that holds the history, the locks and the control socket.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// A lock on a file of the state directory; released on drop, and by the kernel however the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    dir: StateDir,
    name: String,
    file: Mutex<File>,
}

/// The daemon's lock, on a file and on the directory itself, which outlives the files in it.
#[derive(Debug)]
pub(crate) struct DaemonLock {
    file: Lock,
    /// `None` if the file system cannot lock directories.
    dir: Option<File>,
}

/// An attempt to lock the state directory itself.
enum Directory {
    Locked(File),
    /// The file system cannot lock directories.
    CannotBeLocked,
    Busy,
}

/// Whether a lock still excludes others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockState {
    Held,
    /// Its file was deleted or replaced; the new one is locked.
    Relocked,
    /// Its file was deleted or replaced; another process holds the new one.
    Lost,
}

/// Why root cannot become the owner of the state directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotOwner {
    #[error("cannot read the owner of the state directory {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error(
        "the state directory {} is a symbolic link owned by uid {link} to a directory owned by uid {owner}, which root does not follow: set daemon.state_dir to the directory itself",
        path.display()
    )]
    Link { path: PathBuf, link: Uid, owner: Uid },
    #[error(
        "the state directory {} belongs to uid {owner}, and root cannot become that user here ({errno}): run microglia as that user, with `sudo -u '#{owner}'` or, in a container, `--user {owner}`",
        path.display()
    )]
    Switch { path: PathBuf, owner: Uid, errno: Errno },
    #[error(
        "the state directory {} belongs to uid {owner}, who cannot reach it ({error}): make the directories above it searchable for that user (chmod a+x)",
        path.display()
    )]
    Unreachable { path: PathBuf, owner: Uid, error: io::Error },
}

/// Returns the user that this process runs as, for messages: in a container it cannot be guessed.
pub(crate) fn this_user() -> String {
    format!("uid {}", unistd::geteuid())
}

/// Switches a root process to the owner of the state directory for good; returns whether it did.
///
/// Root must neither follow links that another user planted there, nor leave files that the owner cannot use. To be called
/// after the configuration and its secrets were read, and before anything in the directory is opened. Does nothing if the
/// directory does not exist yet or belongs to root.
pub(crate) fn become_owner(path: &Path) -> Result<bool, NotOwner> {
    if !unistd::geteuid().is_root() {
        return Ok(false);
    }
    let unreadable = |error| NotOwner::Unreadable { path: path.to_owned(), error };
    let dir = match fs::metadata(path) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        // The path leads through a file: opening the directory reports that.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(false),
        Err(error) => return Err(unreadable(error)),
    };
    let link = fs::symlink_metadata(path).map_err(unreadable)?;
    // With DynamicUser= systemd creates a link that belongs to root: that one is followed.
    if link.is_symlink() && link.uid() != 0 && link.uid() != dir.uid() {
        let (link, owner) = (Uid::from_raw(link.uid()), Uid::from_raw(dir.uid()));
        return Err(NotOwner::Link { path: path.to_owned(), link, owner });
    }
    if dir.uid() == 0 {
        return Ok(false);
    }
    let (path, owner) = (path.to_owned(), Uid::from_raw(dir.uid()));
    if let Err(errno) = switch_to(&dir) {
        return Err(NotOwner::Switch { path, owner, errno });
    }
    match fs::metadata(&path) {
        Ok(_) => Ok(true),
        Err(error) => Err(NotOwner::Unreachable { path, owner, error }),
    }
}

/// Sets the real, effective and saved user of all threads to the owner: this cannot be undone.
fn switch_to(dir: &Metadata) -> Result<(), Errno> {
    let uid = Uid::from_raw(dir.uid());
    let user = User::from_uid(uid).ok().flatten();
    let group = user.as_ref().map_or(Gid::from_raw(dir.gid()), |user| user.gid);
    match user.and_then(|user| CString::new(user.name).ok()) {
        // The supplementary groups may grant access to the configuration and its secrets.
        Some(name) => unistd::initgroups(&name, group)?,
        None => unistd::setgroups(&[group])?,
    }
    unistd::setresgid(group, group, group)?;
    unistd::setresuid(uid, uid, uid)
}

impl StateDir {
    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    /// Opens the directory, and creates it if needed.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !path.is_dir() {
            create(path).or_else(|error| if path.is_dir() { Ok(()) } else { Err(error) })?;
        }
        let dir = Self(path.to_owned());
        dir.locks()?;
        Ok(dir)
    }

    /// Opens the directory of the locks, and creates it if needed: it may have been deleted in the meantime.
    fn locks(&self) -> io::Result<OwnedFd> {
        let dir = self.descriptor()?;
        match mkdirat(&dir, LOCKS, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&dir, LOCKS, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOTDIR | Errno::ELOOP => {
                refused(&self.path(LOCKS), "is not a directory: remove it")
            }
            errno => errno.into(),
        })
    }

    /// Opens the directory anew each time: another one may have been mounted over it.
    fn descriptor(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(nix::fcntl::open(&self.0, flags, Mode::empty())?)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Creates a file with mode 0640, if it does not exist.
    pub(crate) fn create(&self, name: &str) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(0o640);
        open_regular(&self.descriptor()?, name, &self.path(name), mode).map(drop)
    }

    /// Locks a name; `None` if any other holder, in this process or another, has it.
    pub(crate) fn try_lock(&self, name: &str) -> io::Result<Option<Lock>> {
        let (dir, name) = (self.clone(), format!("{name}.lock"));
        let file = self.lock_file(&name)?;
        Ok(file.map(|file| Lock { dir, name, file: Mutex::new(file) }))
    }

    fn lock_file(&self, name: &str) -> io::Result<Option<File>> {
        let (path, mode) = (self.path(LOCKS).join(name), Mode::from_bits_truncate(0o644));
        lock_file::try_lock(&path, || open_regular(&self.locks()?, name, &path, mode))
    }

    /// Locks the directory for a daemon; `None` if another daemon holds it.
    pub(crate) fn try_lock_daemon(&self) -> io::Result<Option<DaemonLock>> {
        let Some(file) = self.try_lock(DAEMON)? else { return Ok(None) };
        Ok(match self.lock_itself()? {
            Directory::Locked(dir) => Some(DaemonLock { file, dir: Some(dir) }),
            Directory::CannotBeLocked => Some(DaemonLock { file, dir: None }),
            Directory::Busy => None,
        })
    }

    /// Returns whether a run holds the lock of its job.
    pub(crate) fn has_runs(&self) -> io::Result<bool> {
        for entry in fs::read_dir(self.path(LOCKS))? {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".lock"));
            let Some(name) = name.filter(|name| *name != DAEMON) else { continue };
            if is_locked(&self.0, name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn lock_itself(&self) -> io::Result<Directory> {
        let dir = File::open(&self.0)?;
        match dir.try_lock() {
            Ok(()) => Ok(Directory::Locked(dir)),
            Err(TryLockError::WouldBlock) => Ok(Directory::Busy),
            Err(TryLockError::Error(error)) => {
                tracing::debug!(target: "microglia::history", "cannot lock the directory {}: {error}", self.0.display());
                Ok(Directory::CannotBeLocked)
            }
        }
    }
}

impl Lock {
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path(LOCKS).join(&self.name)
    }

    /// Checks that the lock still excludes others, and locks the new file if its file was deleted or replaced.
    pub(crate) fn ensure_held(&self) -> io::Result<LockState> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if identity(&self.path()) == Some(identity_of(&file.metadata()?)) {
            return Ok(LockState::Held);
        }
        let Some(new) = self.dir.lock_file(&self.name)? else { return Ok(LockState::Lost) };
        *file = new;
        Ok(LockState::Relocked)
    }
}

impl DaemonLock {
    pub(crate) fn path(&self) -> PathBuf {
        self.file.path()
    }

    /// As [`Lock::ensure_held`], for the directory as well.
    pub(crate) fn ensure_held(&mut self) -> io::Result<LockState> {
        let held = self.file.ensure_held()?;
        let (now, locked) = (fs::metadata(&self.file.dir.0)?, self.dir.as_ref());
        let replaced = match locked {
            Some(dir) => identity_of(&dir.metadata()?) != identity_of(&now),
            None => false,
        };
        if replaced {
            self.dir = match self.file.dir.lock_itself()? {
                Directory::Locked(dir) => Some(dir),
                Directory::CannotBeLocked => None,
                Directory::Busy => return Ok(LockState::Lost),
            };
        }
        Ok(held)
    }
}

/// Returns whether any process holds a lock of the state directory; creates nothing there.
pub(crate) fn is_locked(dir: &Path, name: &str) -> io::Result<bool> {
    let path = dir.join(LOCKS).join(format!("{name}.lock"));
    if !is_regular(&path)? {
        return Ok(false);
    }
    match File::open(path)?.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

const LOCKS: &str = "locks";
/// The name that a daemon locks; the dot keeps it apart from those of jobs.
const DAEMON: &str = "serve.daemon";

/// Creates a directory with mode 0750, and its missing parents with the default mode.
fn create(path: &Path) -> io::Result<()> {
    let mut dir = DirBuilder::new();
    dir.mode(0o750);
    match (dir.create(path), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(parent)?;
            dir.create(path)
        }
        (created, _) => created,
    }
}

/// Returns whether a file exists; anything but a regular file is an error.
pub(crate) fn is_regular(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(true),
        Ok(_) => Err(refused(path, NOT_REGULAR)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

const NOT_REGULAR: &str = "is not a regular file: remove it";

/// Opens a file for writing without following links, and creates it if needed; `path` names it in messages.
fn open_regular(dir: &impl AsFd, name: &str, path: &Path, mode: Mode) -> io::Result<File> {
    let flags = OFlag::O_RDWR
        | OFlag::O_CREAT
        | OFlag::O_NOFOLLOW
        | OFlag::O_CLOEXEC
        // Opening a FIFO would wait for its other end.
        | OFlag::O_NONBLOCK;
    let file = openat(dir, name, flags, mode).map_err(|errno| match errno {
        Errno::ELOOP | Errno::EISDIR | Errno::ENXIO => refused(path, NOT_REGULAR),
        errno => errno.into(),
    })?;
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(refused(path, NOT_REGULAR));
    }
    Ok(file)
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::other(format!("{} {why}", path.display()))
}
