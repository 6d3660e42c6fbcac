//! The tests that the history takes part in, once more with PostgreSQL.

use std::process::Command;

/// Names, or parts of them.
const TESTS: &[&str] = &[
    "daemon::asked",
    "daemon::catch_up",
    "daemon::faults",
    "daemon::killed",
    "daemon::lifecycle",
    "daemon::panics",
    "daemon::reload",
    "daemon::schedule",
    "daemon::waiting",
    "daemon::waits",
    "jobs::in_process",
    "run::",
    "state_dir::a_run",
    "state_dir::two",
];
/// Those that are about the file.
const OF_SQLITE: &[&str] = &[
    "dry_run::",
    "full_disk",
    "a_disk_that_is_full",
    "a_history_that_cannot_be_opened_at_the_start",
    "a_history_that_is_deleted",
    "of_an_older_daemon",
    "of_an_older_version",
    "when_a_history_is_opened",
];

#[test]
fn whatever_the_history_takes_part_in_works_on_postgresql() {
    if crate::program::on_postgres() {
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(TESTS).arg("--test-threads=2").env("MICROGLIA_TEST_HISTORY", "postgres");
    for name in OF_SQLITE {
        command.args(["--skip", name]);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
