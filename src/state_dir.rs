//! The state directory: who owns what is made in it, and who is at work in it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// A directory that holds the history, the locks and the control socket.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// Held while something is at work; let go on drop, and by the system when the process ends however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The user that this process runs as, for messages: in a container nobody can guess it.
pub fn this_user() -> String {
    match fs::metadata("/proc/self") {
        Ok(process) => format!("uid {}", process.uid()),
        Err(_) => "this user".to_owned(),
    }
}

impl StateDir {
    /// Makes the directory where it is missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !path.is_dir() {
            fs::create_dir_all(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o750))?;
        }
        let dir = Self(path.to_owned());
        dir.locks()?;
        Ok(dir)
    }

    /// The directory of the locks, made where it is missing: somebody may have tidied up.
    fn locks(&self) -> io::Result<PathBuf> {
        let locks = self.path("locks");
        if !locks.is_dir() {
            fs::create_dir(&locks)
                .or_else(|error| if locks.is_dir() { Ok(()) } else { Err(error) })?;
            self.give_to_owner(&locks)?;
        }
        Ok(locks)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What root makes here belongs to the directory's owner, or the daemon could not use it.
    pub fn give_to_owner(&self, path: &Path) -> io::Result<()> {
        let (owner, made) = (fs::metadata(&self.0)?, fs::metadata(path)?);
        if (owner.uid(), owner.gid()) == (made.uid(), made.gid()) || made.uid() != 0 {
            return Ok(());
        }
        chown(path, Some(owner.uid()), Some(owner.gid()))
    }

    /// `None` where another run of any process holds it.
    pub fn try_lock(&self, name: &str) -> io::Result<Option<Lock>> {
        let path = self.locks()?.join(format!("{name}.lock"));
        let existed = path.exists();
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        if !existed {
            self.give_to_owner(&path)?;
        }
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}
