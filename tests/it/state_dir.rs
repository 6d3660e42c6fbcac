//! The state directory: what root does in a directory of another user, and planted links.

#![expect(clippy::print_stderr, reason = "a test that can only do a part of it says so")]

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use crate::fake::{Fake, TOKEN, User};
use crate::program::{Output, Program, figures, until};

const SWEEP: &str =
    "[jobs.sweep]\nkind = \"remove-external-ids\"\nproviders = [\"saml\"]\naccounts = \"all\"\n";
const NOBODY: u32 = 65534;

/// Every file that some command makes in the state directory, and the directory of the locks.
const MADE: &[&str] = &[
    "locks",
    "locks/sweep.lock",
    "locks/history.open.lock",
    "locks/serve.daemon.lock",
    "history.db",
    "history.db-wal",
    "history.db-shm",
    "history.db-journal",
    "control.sock",
];

/// The program with a state directory that belongs to nobody, where the tests run as root.
///
/// Anybody else cannot give a directory away: the links are planted in a directory of their own then.
fn with_foreign_state(fake: &Fake) -> Program {
    let program = Program::new(&fake.url(), TOKEN, SWEEP);
    std::fs::set_permissions(program.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let state = program.path("state");
    std::fs::create_dir(&state).unwrap();
    if is_root() {
        chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    } else {
        eprintln!("not root: the state directory belongs to the user of the tests");
    }
    program
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn with_ids() -> Fake {
    let fake = Fake::start();
    fake.world(|world| world.users(2, |i| User::default().external("saml", &format!("s{i}"))));
    fake
}

/// Plants a link to `target` in the state directory.
fn plant(program: &Program, name: &str, target: &Path) {
    let link = program.path("state").join(name);
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(target, &link).unwrap();
    if is_root() {
        for path in [link.parent().unwrap(), &link] {
            std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
}

/// The contents of a directory: name, owner, mode and content of each file.
fn names_in(dir: &Path) -> Vec<String> {
    let mut files: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = std::fs::read_to_string(&path).unwrap_or_default();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            format!("{name} {} {:o} {content}", metadata.uid(), metadata.mode())
        })
        .collect();
    files.sort();
    files
}

/// Runs every command that opens the state directory, the daemon last.
async fn every_command(program: &Program) -> Vec<Output> {
    let mut outputs = Vec::new();
    for arguments in [
        &["run", "sweep"][..],
        &["jobs"],
        &["runs"],
        &["reload"],
        &["pause"],
        &["run", "sweep", "--apply"],
    ] {
        outputs.push(program.run(arguments).await);
    }
    let mut command = program.command(&["serve"]);
    command
        .env("MICROGLIA_LISTEN", "127.0.0.1:0")
        .stderr(std::fs::File::create(program.path("log")).unwrap());
    let daemon = std::cell::RefCell::new(command.spawn().unwrap());
    let ended = || daemon.borrow_mut().try_wait().unwrap().is_some();
    until("the daemon serves or ends", 30, async || {
        ended() || program.read("log").contains("serves http://")
    })
    .await;
    if !ended() {
        crate::program::signal(daemon.borrow().id().unwrap(), "TERM");
        until("the daemon ends", 30, async || ended()).await;
    }
    outputs
}

#[tokio::test]
async fn no_command_follows_a_planted_link_out_of_the_state_directory() {
    for name in MADE {
        for there in [false, true] {
            let fake = with_ids();
            let program = with_foreign_state(&fake);
            let outside = program.path("outside");
            std::fs::create_dir(&outside).unwrap();
            let target = outside.join("target");
            match (there, *name) {
                (true, "locks") => std::fs::create_dir(&target).unwrap(),
                (true, _) => std::fs::write(&target, "precious").unwrap(),
                (false, _) => {}
            }
            plant(&program, name, &target);
            let before = names_in(&outside);
            let outputs = every_command(&program).await;
            assert_eq!(names_in(&outside), before, "{name}, {there}: {outputs:#?}");
            if there && *name == "locks" {
                assert_eq!(names_in(&target), [""; 0], "{outputs:#?}");
            }
            let inside = program.path("state");
            let owner = inside.metadata().unwrap().uid();
            for entry in std::fs::read_dir(&inside).unwrap().map(Result::unwrap) {
                assert_eq!(entry.metadata().unwrap().uid(), owner, "{name}: {:?}", entry.path());
            }
        }
    }
}

#[tokio::test]
async fn a_link_in_place_of_a_file_is_refused() {
    let fake = with_ids();
    for (name, words) in [
        ("history.db", "state/history.db is not a regular file: remove it"),
        ("history.db-wal", "state/history.db-wal is not a regular file: remove it"),
        ("locks/sweep.lock", "state/locks/sweep.lock is not a regular file: remove it"),
        ("locks", "state/locks is not a directory: remove it"),
    ] {
        let program = with_foreign_state(&fake);
        plant(&program, name, &program.path("elsewhere"));
        let run = program.run(&["run", "sweep", "--apply"]).await;
        assert_eq!(run.code, 1, "{run:?}");
        assert!(run.stdout.contains(words), "{run:?}");
    }
    assert_eq!(fake.count("PUT", "/"), 0);
}

#[tokio::test]
async fn root_becomes_the_owner_of_the_state_directory_for_good() {
    let fake = with_ids();
    let program = with_foreign_state(&fake);
    let owner = program.path("state").metadata().unwrap().uid();
    // Only root may read the token.
    let applied = program.run(&["run", "sweep", "--apply", "--json"]).await;
    assert_eq!((applied.code, applied.stderr.contains("token")), (0, false), "{applied:?}");
    let report = serde_json::from_str(&applied.stdout).unwrap();
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0");
    let daemon = program.serve().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let ids = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().skip(1).map(|id| id.parse().unwrap()).collect::<Vec<u32>>()
    };
    assert_eq!(ids("Uid:"), [owner; 4]);
    if is_root() {
        assert_eq!((ids("Gid:"), ids("Groups:")), (vec![NOBODY; 4], vec![NOBODY]), "{status}");
        assert_eq!(
            status.lines().find(|line| line.starts_with("CapPrm:")),
            Some("CapPrm:\t0000000000000000")
        );
        let warning = format!("{} is not readable by uid {owner}", program.path("token").display());
        assert!(daemon.log().contains(&warning), "{}", daemon.log());
    }
    let output = program.run(&["run", "sweep", "--json"]).await;
    assert_eq!(output.code, 0, "{output:?}");
    for path in
        ["history.db", "control.sock", "locks", "locks/serve.daemon.lock", "locks/sweep.lock"]
    {
        assert_eq!(program.path("state").join(path).metadata().unwrap().uid(), owner, "{path}");
    }
    let log = daemon.stop().await;
    assert!(!log.contains("is empty or cannot be read"), "{log}");
}

#[tokio::test]
async fn if_root_cannot_become_the_owner_the_error_says_who_should_run_the_command() {
    if !is_root() {
        eprintln!("not root: nothing is to be tried, since only root becomes somebody else");
        return;
    }
    let fake = with_ids();
    let program = with_foreign_state(&fake);
    let mut command = tokio::process::Command::new("setpriv");
    command.args(["--bounding-set", "-setuid", "--inh-caps", "-setuid"]);
    command.arg(crate::program::binary()).arg("--config").arg(program.path("microglia.toml"));
    let output = command.args(["run", "sweep"]).output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr)
        .replace(&program.path("").display().to_string(), "");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    insta::assert_snapshot!(stderr, @"error: the state directory state belongs to uid 65534, and root cannot become that user here (EPERM: Operation not permitted): run microglia as that user, with `sudo -u '#65534'` or, in a container, `--user 65534`");
    assert_eq!(std::fs::read_dir(program.path("state")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_state_directory_that_its_owner_cannot_reach_is_an_error() {
    let fake = with_ids();
    let program = with_foreign_state(&fake);
    std::fs::set_permissions(program.path(""), PermissionsExt::from_mode(0o700)).unwrap();
    let run = program.run(&["run", "sweep"]).await;
    if !is_root() {
        eprintln!("not root: the owner of the state directory also owns the directory above");
        assert_eq!(run.code, 0, "{run:?}");
        return;
    }
    assert_eq!(run.code, 1, "{run:?}");
    let words = "state belongs to uid 65534, who cannot reach it (Permission denied (os error 13))";
    assert!(run.stderr.contains(words), "{run:?}");
}

#[tokio::test]
async fn root_does_not_follow_another_users_link_to_a_state_directory() {
    let fake = with_ids();
    let program = Program::new(&fake.url(), TOKEN, SWEEP);
    std::fs::create_dir(program.path("precious")).unwrap();
    symlink(program.path("precious"), program.path("state")).unwrap();
    if !is_root() {
        eprintln!("not root: the link is one's own, and followed");
        assert_eq!(program.run(&["run", "sweep"]).await.code, 0);
        return;
    }
    std::os::unix::fs::lchown(program.path("state"), Some(NOBODY), Some(NOBODY)).unwrap();
    let run = program.run(&["run", "sweep"]).await;
    assert_eq!(run.code, 1, "{run:?}");
    assert!(
        run.stderr
            .contains("state is a symbolic link owned by uid 65534 to a directory owned by uid 0"),
        "{run:?}"
    );
    assert_eq!(std::fs::read_dir(program.path("precious")).unwrap().count(), 0);
}

/// Puts a file that this process locks in the place of a lock of the program's.
fn replace_lock(program: &Program, name: &str) -> std::fs::File {
    let (new, path) = (program.path("new.lock"), program.path("state/locks").join(name));
    let file = std::fs::File::create(&new).unwrap();
    file.lock().unwrap();
    std::fs::rename(new, path).unwrap();
    file
}

#[tokio::test]
async fn deleting_lock_files_does_not_allow_a_second_daemon() {
    let fake = with_ids();
    let program = Program::new(&fake.url(), TOKEN, SWEEP);
    let daemon = program.serve().await;
    std::fs::remove_dir_all(program.path("state/locks")).unwrap();
    let limit = std::time::Duration::from_secs(30);
    let second = tokio::time::timeout(limit, program.run(&["serve"])).await;
    let second = second.expect("the second daemon ends");
    assert_eq!(second.code, 1, "{second:?}");
    assert!(
        second.stderr.contains("another daemon is running on the state directory"),
        "{second:?}"
    );
    let again = "serve.daemon.lock was deleted or replaced: locked again";
    crate::daemon::until_log(&daemon, again).await;
    assert!(program.path("state/locks/serve.daemon.lock").exists());
    let log = daemon.stop().await;
    assert_eq!(log.matches(again).count(), 1, "{log}");
}

#[tokio::test]
async fn a_daemon_stops_if_another_process_locked_the_file_that_replaced_its_lock() {
    let fake = with_ids();
    let program = Program::new(&fake.url(), TOKEN, SWEEP);
    let mut daemon = program.serve().await;
    let _theirs = replace_lock(&program, "serve.daemon.lock");
    let socket = program.path("state/control.sock");
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "the other daemon's").unwrap();
    assert_eq!(daemon.exit().await, 1);
    let words =
        "serve.daemon.lock was deleted or replaced, and another process has locked it: stopping";
    until("the reason is logged", 5, async || daemon.log().contains(words)).await;
    assert_eq!(std::fs::read_to_string(socket).unwrap(), "the other daemon's");
}

#[tokio::test]
async fn a_run_ends_if_another_process_locked_the_file_that_replaced_its_lock() {
    let fake = with_ids();
    fake.fault(crate::fake::Fault::new(
        "PUT",
        "/",
        crate::fake::Trouble::Delay(std::time::Duration::from_secs(2)),
    ));
    let program =
        Program::new(&fake.url(), TOKEN, &format!("max_concurrent_requests = 1\n{SWEEP}"));
    let run = program.command(&["run", "sweep", "--apply", "--json"]).spawn().unwrap();
    until("the first change is sent", 20, async || {
        fake.count("GET", "/_synapse/admin/v2/users/@user") > 2
    })
    .await;
    let _theirs = replace_lock(&program, "sweep.lock");
    let output = run.wait_with_output().await.unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures(&report), "failed: 2/1/0/0/1");
    let message = report["message"].as_str().unwrap();
    assert!(
        message.contains("sweep.lock was deleted or replaced, and another process has locked it"),
        "{message}"
    );
}

#[tokio::test]
async fn a_run_whose_lock_file_was_deleted_locks_it_again_and_continues() {
    let fake = with_ids();
    fake.fault(crate::fake::Fault::new(
        "PUT",
        "/",
        crate::fake::Trouble::Delay(std::time::Duration::from_secs(2)),
    ));
    let program = Program::new(&fake.url(), TOKEN, SWEEP);
    let run = program.command(&["run", "sweep", "--apply", "--json"]).spawn().unwrap();
    until("the first change is sent", 20, async || {
        fake.count("GET", "/_synapse/admin/v2/users/@user") > 2
    })
    .await;
    std::fs::remove_dir_all(program.path("state/locks")).unwrap();
    let output = run.wait_with_output().await.unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0");
    assert!(program.path("state/locks/sweep.lock").exists());
}

#[tokio::test]
async fn a_history_that_another_process_is_creating_has_no_runs_yet() {
    let program = Program::new("http://127.0.0.1:1", TOKEN, SWEEP);
    std::fs::create_dir(program.path("state")).unwrap();
    // SQLite creates the file, and the tables later.
    program.write("state/history.db", "");
    assert_eq!(program.json(&["runs", "--json"]).await, serde_json::json!([]));
    let jobs = program.json(&["jobs", "--json"]).await;
    assert_eq!(jobs[0]["last_run"], serde_json::Value::Null);
}

#[tokio::test]
async fn a_killed_run_is_shown_as_interrupted_and_an_active_one_as_running() {
    let fake = with_ids();
    fake.fault(crate::fake::Fault::new("PUT", "/", crate::fake::Trouble::Hang).after(2).always());
    let program = Program::new(&fake.url(), TOKEN, SWEEP);
    let mut run = program.command(&["run", "sweep", "--apply"]).spawn().unwrap();
    until("the second account is changed", 20, async || fake.count("PUT", "/") == 3).await;
    let shown = async |arguments: &[&str]| program.run(arguments).await.stdout;
    for arguments in [&["runs"][..], &["jobs"], &["runs", "show", "1"]] {
        let text = shown(arguments).await;
        assert!(text.contains("running") && !text.contains("interrupted"), "{arguments:?}: {text}");
    }
    run.kill().await.unwrap();
    for arguments in [&["runs"][..], &["jobs"], &["runs", "show", "1"]] {
        let text = shown(arguments).await.replace("no daemon is running", "");
        assert!(text.contains("interrupted") && !text.contains("running"), "{arguments:?}: {text}");
    }
    let report = &program.json(&["runs", "--json"]).await[0];
    assert_eq!(figures(report), "interrupted: 2/1/1/0/0");
    assert_eq!(report["message"], "microglia exited while the run was in progress");
    assert_eq!(report, &program.json(&["jobs", "--json"]).await[0]["last_run"]);
    assert_eq!(program.json(&["runs", "show", "1", "--json"]).await["outcome"], "interrupted");
    // What looks changes nothing: the next run, or the daemon, records the end.
    fake.no_more_faults();
    let next = program.run(&["run", "sweep", "--apply"]).await;
    assert_eq!(next.code, 0, "{next:?}");
    let recorded = &program.json(&["runs", "--json"]).await[1];
    assert_eq!(figures(recorded), "interrupted: 2/1/1/0/0");
    assert!(recorded["finished_at"].is_string(), "{recorded}");
}
