//! Files that a command writes atomically, readable by the daemon's user, and never through a symbolic link.

use std::fs::{self, Metadata, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use nix::unistd::{Gid, Group, Uid, User, geteuid};
use tempfile::NamedTempFile;

use super::context::become_owner;
use super::failure::Failure;

/// A file that was not renamed to its name yet; dropped, it leaves nothing behind.
pub(super) struct NewFile {
    path: PathBuf,
    file: NamedTempFile,
    existing: Existing,
}

/// What happens to a file that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    Replace,
    /// An error says how to use another file.
    Keep {
        instead: &'static str,
    },
}

/// Who may read a file; `None` keeps what the process gives it.
#[derive(Debug, PartialEq, Eq)]
struct Access {
    uid: Option<u32>,
    gid: Option<u32>,
    mode: u32,
}

impl NewFile {
    /// Prepares the file of a secret, which only the daemon's user and root can read.
    ///
    /// That user is the owner of the existing file, else of the state directory, else the user named as the group of the
    /// file's directory: the Debian package makes that `root:microglia`. Fails where the file could not be written.
    pub(super) fn secret(
        path: &Path,
        state_dir: &Path,
        existing: Existing,
    ) -> Result<Self, Failure> {
        let directory = directory_of(path)?;
        let old = existing_file(path, existing)?;
        let access = match (&old, geteuid().is_root()) {
            (Some(old), _) => access_of(path, old)?,
            (None, true) => new_secret(&directory, state_dir),
            (None, false) => Access { uid: None, gid: None, mode: 0o600 },
        };
        Self::create(path, &access, existing)
    }

    /// Prepares a configuration file, which those can read who can enter its directory.
    pub(super) fn config(path: &Path) -> Result<Self, Failure> {
        let directory = directory_of(path)?;
        let existing = Existing::Keep { instead: "specify another file with --config FILE" };
        existing_file(path, existing)?;
        let access = Access {
            uid: None,
            gid: geteuid().is_root().then(|| directory.gid()),
            mode: match directory.mode() & 0o007 {
                0 => 0o640,
                _ => 0o644,
            },
        };
        Self::create(path, &access, existing)
    }

    fn create(path: &Path, access: &Access, existing: Existing) -> Result<Self, Failure> {
        let create = || {
            let file = tempfile::Builder::new()
                .prefix(".microglia-")
                .permissions(Permissions::from_mode(0o600))
                .tempfile_in(parent(path))?;
            if access.uid.is_some() || access.gid.is_some() {
                fchown(file.as_file(), access.uid, access.gid)?;
            }
            file.as_file().set_permissions(Permissions::from_mode(access.mode))?;
            Ok::<_, std::io::Error>(file)
        };
        let file = create().map_err(|error| unwritable(path, error.kind(), existing))?;
        Ok(Self { path: path.to_owned(), file, existing })
    }

    /// Writes the content, and gives the file its name.
    pub(super) fn write(mut self, content: &str) -> Result<(), Failure> {
        let path = &self.path;
        let write = |file: &mut NamedTempFile| {
            file.write_all(content.as_bytes())?;
            file.as_file().sync_all()
        };
        write(&mut self.file).with_context(|| format!("cannot write {}", path.display()))?;
        let named = match self.existing {
            Existing::Replace => self.file.persist(path),
            Existing::Keep { .. } => self.file.persist_noclobber(path),
        };
        named.map_err(|error| match (error.error.kind(), self.existing) {
            (ErrorKind::AlreadyExists, Existing::Keep { instead }) => exists(path, instead),
            _ => anyhow!("cannot write {}: {}", path.display(), error.error).into(),
        })?;
        // The name survives a crash of the machine as well.
        fs::File::open(parent(path)).and_then(|directory| directory.sync_all()).ok();
        Ok(())
    }
}

/// Makes root become the owner of a directory that is another user's, who could plant links there.
pub(super) fn become_owner_of_directory(path: &Path) -> Result<(), Failure> {
    let directory = directory_of(path)?;
    let owner = directory.uid();
    if !geteuid().is_root() || owner == 0 {
        return Ok(());
    }
    become_owner(parent(path)).map_err(|_| {
        anyhow!(
            "{} belongs to uid {owner}, and root writes there only as that user, which is not possible here: run the command as that user (sudo -u '#{owner}')",
            parent(path).display()
        )
        .into()
    })
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn directory_of(path: &Path) -> Result<Metadata, Failure> {
    let directory = parent(path);
    fs::metadata(directory).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            anyhow!("the directory {} does not exist: create it (mkdir -p)", directory.display())
                .into()
        }
        _ => anyhow!("{}: {error}", directory.display()).into(),
    })
}

/// The file that is there, if it may be replaced.
fn existing_file(path: &Path, existing: Existing) -> Result<Option<Metadata>, Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(anyhow!("{}: {error}", path.display()).into()),
        Ok(old) => replaceable(path, old, existing).map(Some),
    }
}

fn replaceable(path: &Path, old: Metadata, existing: Existing) -> Result<Metadata, Failure> {
    let file = path.display();
    match existing {
        Existing::Keep { instead } => Err(exists(path, instead)),
        Existing::Replace if old.is_symlink() => Err(anyhow!(
            "{file} is a symbolic link, which is not replaced: set `access_token_file` to the file itself"
        )
        .into()),
        Existing::Replace if !old.is_file() => {
            Err(anyhow!("{file} is not a regular file, and is not replaced").into())
        }
        Existing::Replace => Ok(old),
    }
}

pub(super) fn exists(path: &Path, instead: &str) -> Failure {
    let path = path.display();
    anyhow!("{path} exists already and is not overwritten: move it away, or {instead}").into()
}

/// Keeps owner and group of the existing file, and the group's access where that is how the daemon reads it.
fn access_of(path: &Path, old: &Metadata) -> Result<Access, Failure> {
    if !geteuid().is_root() {
        if old.uid() != geteuid().as_raw() {
            return Err(anyhow!(
                "{} belongs to uid {}: run the command as that user or as root, so that the daemon can still read the file",
                path.display(),
                old.uid()
            )
            .into());
        }
        return Ok(Access { uid: None, gid: None, mode: 0o600 });
    }
    let by_group = old.uid() == 0 && old.gid() != 0 && old.mode() & 0o040 != 0;
    let mode = if by_group { 0o640 } else { 0o600 };
    Ok(Access { uid: Some(old.uid()), gid: Some(old.gid()), mode })
}

/// The access of a secret that root creates.
fn new_secret(directory: &Metadata, state_dir: &Path) -> Access {
    let owner = fs::metadata(state_dir).ok().filter(|dir| is_lasting(dir.uid()));
    let (uid, gid) = match owner {
        Some(dir) => (dir.uid(), dir.gid()),
        None => user_of_group(directory.gid()).unwrap_or((0, 0)),
    };
    Access { uid: Some(uid), gid: Some(gid), mode: 0o600 }
}

/// Whether a user id is that of an account other than root; systemd gives the others away again (`DynamicUser=`).
fn is_lasting(uid: u32) -> bool {
    uid != 0 && !(61184..=65519).contains(&uid)
}

/// The user that has the name of a group and no other primary one.
fn user_of_group(gid: u32) -> Option<(u32, u32)> {
    let group = Group::from_gid(Gid::from_raw(gid)).ok()??;
    let user = User::from_name(&group.name).ok()??;
    let fits = user.uid != Uid::from_raw(0) && user.gid == group.gid;
    fits.then(|| (user.uid.as_raw(), user.gid.as_raw()))
}

/// The error itself would name a temporary file.
fn unwritable(path: &Path, error: ErrorKind, existing: Existing) -> Failure {
    let hint = match (error, existing) {
        (
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem,
            Existing::Keep { instead },
        ) => {
            format!(": use sudo, or {instead}")
        }
        (ErrorKind::PermissionDenied, Existing::Replace) => ": use sudo".to_owned(),
        _ => String::new(),
    };
    anyhow!("cannot write to {} ({error}){hint}", parent(path).display()).into()
}
