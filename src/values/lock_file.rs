//! Files that exclude other processes while they are locked.

use std::fs::{self, File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How often a file may be deleted or replaced while it is being locked before that is an error.
const TRIES: u32 = 100;

/// Locks the file at `path`, which `open` opens and creates if needed; `None` while another holder has it.
pub(crate) fn try_lock(
    path: &Path,
    open: impl Fn() -> io::Result<File>,
) -> io::Result<Option<File>> {
    for _ in 0..TRIES {
        let file = open()?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // A file that was deleted since it was opened excludes nobody.
        if identity(path) == Some(identity_of(&file.metadata()?)) {
            return Ok(Some(file));
        }
    }
    let path = path.display();
    Err(io::Error::other(format!("{path} is being deleted or replaced repeatedly")))
}

/// Returns device and inode of a file, which distinguish it from another one of the same name; `None` if there is none.
pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().as_ref().map(identity_of)
}

pub(crate) fn identity_of(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_file_that_is_deleted_while_it_is_being_locked_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let opened = Cell::new(0);
        let locked = try_lock(&path, || {
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            opened.set(opened.get() + 1);
            if opened.get() < 3 {
                fs::remove_file(&path)?;
            }
            Ok(file)
        });
        let locked = locked.unwrap().unwrap();
        assert_eq!(opened.get(), 3);
        assert_eq!(identity(&path), Some(identity_of(&locked.metadata().unwrap())));
    }
}
