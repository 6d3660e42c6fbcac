//! The files in which the runs of a round keep what they read: their names, and their end.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::history::state_dir::{StateDir, is_locked};
use crate::plan::report::Mode;
use crate::plan::round::RoundFile;

const ENDING: &str = ".round";

/// The file of a job's rounds in a mode.
pub(super) fn path(dir: &StateDir, job: &str, mode: Mode) -> PathBuf {
    // No job's name contains a dot.
    dir.path(&format!("{job}.{mode}{ENDING}"))
}

/// Removes the file of a round that is over, and what a run that was killed left of it.
pub(super) fn remove(file: &RoundFile) {
    for path in [&file.path, &file.unfinished()] {
        remove_file(path);
    }
}

/// The file of a round of a job that is not running at present.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct IdleFile {
    pub path: PathBuf,
    pub job: String,
    pub mode: Mode,
}

/// Finds the files of all jobs but those that are running at present.
pub(crate) fn idle(dir: &StateDir) -> io::Result<Vec<IdleFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir.directory())? {
        let entry = entry?;
        let name = entry.file_name();
        let Some((job, mode)) = name.to_str().and_then(owner_of) else { continue };
        if !is_locked(dir.directory(), job)? {
            files.push(IdleFile { path: entry.path(), job: job.to_owned(), mode });
        }
    }
    Ok(files)
}

fn owner_of(file: &str) -> Option<(&str, Mode)> {
    let name = file.strip_suffix(".new").unwrap_or(file).strip_suffix(ENDING)?;
    let (job, mode) = name.split_once('.')?;
    let mode = Mode::ALL.iter().find(|known| known.as_str() == mode)?;
    Some((job, *mode))
}

pub(crate) fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(target: "microglia::history", "cannot remove {}, which is no longer needed: {error}", path.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_rounds_of_jobs_that_are_not_running_are_found() {
        let place = tempfile::tempdir().unwrap();
        let dir = StateDir::open(place.path()).unwrap();
        let idle_files = ["a.apply.round", "b@main.apply.round.new", "b@main.dry-run.round"];
        let others = ["history.db", "a.round", "running.apply.round", "notes.new"];
        for name in idle_files.iter().chain(&others) {
            dir.create(name).unwrap();
        }
        assert_eq!(path(&dir, "a", Mode::Apply), place.path().join("a.apply.round"));
        let _lock = dir.try_lock("running").unwrap().unwrap();
        let mut found = idle(&dir).unwrap();
        found.sort();
        let expected = [("a", Mode::Apply), ("b@main", Mode::Apply), ("b@main", Mode::DryRun)];
        let expected = idle_files.iter().zip(expected).map(|(name, (job, mode))| IdleFile {
            path: place.path().join(name),
            job: job.to_owned(),
            mode,
        });
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
}
