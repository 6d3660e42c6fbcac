//! The tests that the history takes part in, once more with PostgreSQL.
//!
//! Tests are started in the order of their names: this one takes minutes, and so comes first.

use std::process::Command;

/// Names, or parts of them.
const TESTS: &[&str] = &[
    "daemon::approval",
    "daemon::cancelled_waits",
    "daemon::catch_up",
    "daemon::commands",
    "daemon::faults",
    "daemon::killed",
    "daemon::lifecycle",
    "daemon::panics",
    "daemon::reload",
    "daemon::schedule",
    "daemon::waiting",
    "jobs::in_process",
    "notifications::a_digest",
    "notifications::a_job",
    "notifications::a_message",
    "rounds::",
    "run::",
    "state_dir::a_run",
    "state_dir::two",
];
/// Those that are about the file.
const OF_SQLITE: &[&str] = &[
    "dry_run::",
    "full_disk",
    "another_process_has_let_go",
    "the_command_line_started_first",
    "disk_is_full",
    "a_history_that_cannot_be_opened_at_the_start",
    "a_deleted_history",
    "pause_state",
    "of_an_older_daemon",
    "of_an_older_version",
    "when_the_history_is_opened",
];

#[test]
fn tests_that_use_the_history_also_pass_on_postgresql() {
    if crate::program::on_postgres() {
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(TESTS).arg("--test-threads=8").env("MICROGLIA_TEST_HISTORY", "postgres");
    for name in OF_SQLITE {
        command.args(["--skip", name]);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
