//! SQL that examines each job's runs without reading all of them.

use crate::plan::report::Mode;

/// Prepends the tables `names`, with a row per job and one that is null, and `modes` to a `SELECT`.
///
/// Finds the names by one index look-up each, where `GROUP BY job` reads every run.
pub(super) fn with_jobs_and_modes(select: &str) -> String {
    let modes: Vec<String> = Mode::ALL.iter().map(|mode| format!("('{mode}')")).collect();
    format!("WITH RECURSIVE {NAMES}, modes (mode) AS (VALUES {}) {select}", modes.join(", "))
}

const NAMES: &str = "\
    names (job) AS (
        SELECT MIN(job) FROM runs
        UNION ALL
        SELECT (SELECT MIN(job) FROM runs WHERE job > names.job) FROM names
        WHERE names.job IS NOT NULL)";
