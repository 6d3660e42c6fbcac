//! Reading the text of a configuration file, and what is beside it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::diagnostics::LoadError;
use crate::history::state_dir::this_user;
use crate::values::bounded_file::read_bounded;

/// The largest configuration that is read; 500 jobs are 100 KiB.
pub(super) const MAX_BYTES: u64 = 4 << 20;
/// How long to wait for a configuration that is read from a FIFO.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Reads the file's bytes, or fails with [`ErrorKind::FileTooLarge`]; blocks the thread.
pub fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    read_bounded(path, MAX_BYTES, TIME_LIMIT)
}

pub(super) fn read_text(path: &Path) -> Result<String, LoadError> {
    let bytes = read_bytes(path).map_err(|error| {
        let problem = match error.kind() {
            ErrorKind::NotFound => {
                "no such file: create it with `microglia init` (in a container: mount its directory), or specify another file with --config FILE or $MICROGLIA_CONFIG"
                    .to_owned()
            }
            ErrorKind::FileTooLarge => {
                format!("larger than {} MiB: is this the configuration file?", MAX_BYTES >> 20)
            }
            ErrorKind::IsADirectory => {
                "this is a directory: specify the configuration file in it".to_owned()
            }
            ErrorKind::PermissionDenied => {
                format!("not readable by {}: use sudo, or the user of the daemon", this_user())
            }
            _ => format!("cannot be read: {error}"),
        };
        LoadError::problem(path, problem)
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.split(|byte| *byte == b'\n').count();
        let last_line = valid.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let column = String::from_utf8_lossy(last_line).chars().count() + 1;
        let problem =
            format!("line {line}, column {column}: invalid UTF-8: save the file as UTF-8");
        LoadError::problem(path, problem)
    })
}

/// A relative path starts at the file that names it, not where the program was started.
pub(super) fn beside(config: &Path, path: &Path) -> PathBuf {
    config.parent().unwrap_or(Path::new("")).join(path)
}
