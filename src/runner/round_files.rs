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

/// Removes the files of all jobs but those to keep, unless one is running at present.
pub(crate) fn remove_others(dir: &StateDir, keep: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(dir.directory())? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(job) = name.to_str().and_then(job_of) else { continue };
        if !keep(job) && !is_locked(dir.directory(), job)? {
            remove_file(&entry.path());
        }
    }
    Ok(())
}

fn job_of(file: &str) -> Option<&str> {
    let name = file.strip_suffix(".new").unwrap_or(file).strip_suffix(ENDING)?;
    let (job, mode) = name.split_once('.')?;
    Mode::ALL.iter().any(|known| known.as_str() == mode).then_some(job)
}

fn remove_file(path: &Path) {
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
    fn only_files_of_rounds_of_other_jobs_are_removed() {
        let place = tempfile::tempdir().unwrap();
        let dir = StateDir::open(place.path()).unwrap();
        let there = [
            "history.db",
            "a.round",
            "a.apply.round",
            "b@main.dry-run.round",
            "b@main.apply.round.new",
        ];
        let also = ["kept.apply.round", "running.apply.round", "notes.new"];
        for name in there.iter().chain(&also) {
            dir.create(name).unwrap();
        }
        assert_eq!(path(&dir, "a", Mode::Apply), place.path().join("a.apply.round"));
        let _lock = dir.try_lock("running").unwrap().unwrap();
        remove_others(&dir, |job| job == "kept").unwrap();
        let entries = fs::read_dir(place.path()).unwrap();
        let mut left: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        let expected = [
            "a.round",
            "history.db",
            "kept.apply.round",
            "locks",
            "notes.new",
            "running.apply.round",
        ];
        assert_eq!(left, expected);
    }
}
