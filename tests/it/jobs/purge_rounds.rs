//! `purge-local-media` on a homeserver whose accounts take several runs to read.

use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use tokio::process::Command;

use super::in_process;
use crate::{
    fake::{Fake, Fault, TOKEN, Trouble},
    homeserver::Synapse,
    program::{Program, figures, until},
};

const JOB: &str = "[jobs.purge]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\n";
const DELETE: &str = "/_synapse/admin/v1/media/delete";
/// 2022-01-01, long before any test runs.
const LONG_AGO_MS: i64 = 1_640_995_200_000;
const SLOW: &str = "max_requests_per_second = 50";
const FAST: &str = "max_requests_per_second = \"unlimited\"";
/// Half of it is not enough to read [`ACCOUNTS`] accounts slowly.
const SHORT: &str = "time_limit = \"4s\"";
const LONG: &str = "time_limit = \"60s\"";
const ACCOUNTS: usize = 400;

#[tokio::test]
async fn files_are_deleted_once_the_runs_of_a_round_have_read_all_accounts() {
    let (fake, program) = homeserver(ACCOUNTS, "");
    let mut last = 0;
    for _ in 0..2 {
        let report = program.apply("purge").await;
        let read = report["round"]["read"].as_u64().unwrap();
        assert!(last < read && read < 400, "{report}");
        assert_eq!(figures(&report), "succeeded: 0/0/0/0/null");
        assert_eq!(
            message(&report),
            format!(
                "{read} of 400 accounts with files read; the next run continues; changes are planned once all are read"
            )
        );
        let mode = std::fs::metadata(kept(&program)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        last = read;
    }
    assert_eq!(fake.count("POST", ""), 0);
    let listed = program.run(&["jobs"]).await.stdout;
    assert!(listed.contains(&format!("; {last} of 400 read")), "{listed}");
    let once = reads(&fake);
    assert_eq!(once.values().max(), Some(&1));

    // Of accounts that were read, one uploads a file, a file of another is used, and a third has other files than it had.
    let mut read_before = once.keys();
    let mut next = || read_before.next().unwrap().clone();
    let (uploads, uses, differs) = (next(), next(), next());
    fake.world(|world| {
        let now = world.now().timestamp_millis();
        world.media(&uploads, "new", 10, now, None);
        world.file_mut(&file_of(&uses)).unwrap().last_access_ms = Some(now);
        world.media(&differs, "another", 10, LONG_AGO_MS + 7, None);
    });
    fake.forget();
    configure(&program, &[(SLOW, FAST), (SHORT, LONG)]);
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 401/400/0/1/0");
    assert_eq!((&report["bytes_freed"], round(&report)), (&4000.into(), "400 of 400".to_owned()));
    assert_eq!(
        report["changes"][0]["detail"],
        "Synapse kept 1 file of this batch, avatars, or accessed since a run of this round read them; Synapse's log names files that it could not delete"
    );
    let again = reads(&fake);
    assert_eq!((again.len(), again.get(&differs)), (401 - once.len(), Some(&1)));
    let left: Vec<String> = fake.world(|world| world.files().keys().cloned().collect());
    let mut expected = vec![file_of(&uses), "new".to_owned()];
    expected.sort();
    assert_eq!(left, expected);
    assert_eq!(leftovers(&program), [""; 0]);
    assert_eq!(fake.complaints(), [""; 0]);
}

#[tokio::test]
async fn the_last_run_of_a_round_counts_what_all_its_runs_left_alone() {
    let (fake, program) = homeserver(ACCOUNTS, "");
    fake.world(|world| {
        for n in 0..ACCOUNTS {
            let (owner, file) = (format!("@u{n:03}:fake.test"), format!("protected{n:03}"));
            world.media(&owner, &file, 10, LONG_AGO_MS, None);
            world.file_mut(&file).unwrap().protected = true;
        }
    });
    let report = program.apply("purge").await;
    let read = &report["round"]["read"];
    assert!(read.as_u64().unwrap() < 400, "{report}");
    assert_eq!(report["left_alone"], json!({ "protected": read }));
    configure(&program, &[(SLOW, FAST), (SHORT, LONG)]);
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 400/400/0/0/0");
    assert_eq!(report["left_alone"], json!({ "protected": 400 }));
}

#[tokio::test]
async fn the_plan_of_a_round_is_applied_with_the_cut_off_of_the_round_and_read_only_once() {
    let (fake, program) = homeserver(ACCOUNTS, "");
    configure(&program, &[("older_than", "mode = \"approve\"\nolder_than")]);
    let portion = program.json(&["run", "purge", "--json"]).await;
    assert_eq!(portion["approval"], Value::Null, "{portion}");
    // Was not old enough when the round started, and is now.
    let started_at = portion["round"]["started_at"].as_str().unwrap();
    let started_at: chrono::DateTime<chrono::Utc> = started_at.parse().unwrap();
    let nearly = (started_at - chrono::TimeDelta::days(180)).timestamp_millis() + 1;
    fake.world(|world| {
        world.media("@u000:fake.test", "nearly", 10, nearly, None);
    });
    configure(&program, &[(SLOW, FAST), (SHORT, LONG)]);
    let plan = program.json(&["run", "purge", "--json"]).await;
    assert_eq!(plan["approval"]["state"], "pending", "{plan}");
    assert_eq!((&plan["planned"], fake.count("POST", "")), (&json!(400), 0), "{plan}");
    fake.forget();
    let output = program.run(&["approve", &plan["id"].to_string()]).await;
    assert_eq!(output.code, 0, "{output:?}");
    let left: Vec<String> = fake.world(|world| world.files().keys().cloned().collect());
    assert_eq!(left, ["nearly"]);
    assert_eq!(reads(&fake).len(), 0, "the plan was made of what was read");
    assert_eq!(leftovers(&program), [""; 0]);
}

#[tokio::test]
async fn a_plan_that_nobody_approved_is_followed_by_a_round_with_a_later_cut_off() {
    let (fake, program) = homeserver(ACCOUNTS, "");
    configure(&program, &[("older_than", "mode = \"approve\"\nolder_than")]);
    program.json(&["run", "purge", "--json"]).await;
    configure(&program, &[(SLOW, FAST), (SHORT, LONG)]);
    let first = program.json(&["run", "purge", "--json"]).await;
    assert_eq!(program.run(&["reject", &first["id"].to_string()]).await.code, 0);
    let second = program.json(&["run", "purge", "--json"]).await;
    assert_eq!(second["approval"]["state"], "pending", "{second}");
    let started_at = |run: &Value| run["round"]["started_at"].as_str().unwrap().to_owned();
    assert!(started_at(&second) > started_at(&first), "{second}");
    assert_eq!(fake.count("POST", ""), 0);
}

#[tokio::test]
async fn a_run_that_is_killed_loses_what_it_read_itself_and_nothing_else() {
    let (fake, program) = homeserver(ACCOUNTS, "");
    program.apply("purge").await;
    let before = reads(&fake);
    fake.forget();
    configure(&program, &[(SHORT, LONG)]);
    let mut child = program.command(&["run", "purge", "--apply"]).spawn().unwrap();
    until("some accounts to be read", 20, || async { reads(&fake).len() > 5 }).await;
    child.kill().await.unwrap();
    let in_vain = reads(&fake);
    fake.forget();
    // What a run leaves that is killed while it writes.
    let unfinished = kept(&program).with_extension("round.new");
    std::fs::write(&unfinished, "half of it").unwrap();
    configure(&program, &[(SLOW, FAST)]);
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 400/400/0/0/0");
    let last = reads(&fake);
    assert_eq!(last.len() + before.len(), ACCOUNTS);
    assert!(in_vain.keys().all(|account| last.contains_key(account)), "{in_vain:?}");
    assert_eq!(leftovers(&program), [""; 0]);
}

#[tokio::test]
async fn what_at_most_left_is_planned_again_without_reading_accounts_that_stayed_the_same() {
    let (fake, program) = homeserver(ACCOUNTS, "");
    fake.world(|world| {
        world.media("@u000:fake.test", "latest", 10, LONG_AGO_MS + 900_000, None);
    });
    program.apply("purge").await;
    configure(&program, &[(SLOW, FAST), (SHORT, LONG), ("kind", "at_most = 150\nkind")]);
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 150/150/0/0/251");
    assert_eq!(
        message(&report),
        "251 more (2.5 KiB) are left for later runs by at_most; 400 of 400 accounts with files read; the next run continues"
    );
    let printed = program.run(&["run", "purge", "--dry-run", "--full"]).await;
    assert_eq!(printed.code, 0, "{printed:?}");
    fake.forget();
    configure(&program, &[("at_most = 150", "max_changes = 5")]);
    let mut files = Vec::new();
    for _ in 0..2 {
        assert_eq!(figures(&program.apply("purge").await), "refused: 251/0/0/0/251");
        files.push(std::fs::metadata(kept(&program)).unwrap().ino());
    }
    assert_eq!(files[0], files[1], "a run that read nothing replaced the file");
    let report = program.json(&["run", "purge", "--apply", "--max-changes", "251", "--json"]).await;
    assert_eq!(figures(&report), "succeeded: 251/251/0/0/0");
    assert_eq!(round(&report), "251 of 251");
    // Only of this one a file was deleted and another one left.
    assert_eq!(reads(&fake).keys().collect::<Vec<_>>(), ["@u000:fake.test"]);
    assert_eq!(leftovers(&program), [""; 0]);
}

#[tokio::test]
async fn a_lost_response_in_the_last_run_of_a_round_makes_it_look_at_the_accounts_again() {
    let (fake, program) = homeserver(ACCOUNTS, "batch_files = 50");
    program.apply("purge").await;
    configure(&program, &[(SLOW, FAST), (SHORT, LONG)]);
    fake.world(|world| world.file_mut("file060").unwrap().avatar = true);
    fake.fault(Fault::new("POST", DELETE, Trouble::CutAfter).after(1));
    let ran = in_process::apply(&program, "purge").await;
    assert_eq!(figures(&ran.report), "succeeded: 400/399/0/1/0", "{}", ran.report);
    assert_eq!(fake.complaints(), [""; 0]);
    assert_eq!(leftovers(&program), [""; 0]);
}

#[tokio::test]
async fn a_changed_definition_starts_a_new_round() {
    let (fake, program) = homeserver(ACCOUNTS, "");
    program.apply("purge").await;
    let before = reads(&fake);
    fake.forget();
    configure(&program, &[("180d", "181d"), (SLOW, FAST), (SHORT, LONG)]);
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 400/400/0/0/0");
    assert_eq!((round(&report), &report["message"]), ("400 of 400".to_owned(), &Value::Null));
    assert!(before.keys().all(|account| reads(&fake).contains_key(account)));
    assert_eq!(leftovers(&program), [""; 0]);
}

#[tokio::test]
async fn a_round_whose_file_is_lost_or_damaged_starts_anew_and_says_so() {
    let (fake, program) = homeserver(ACCOUNTS, "mode = \"dry-run\"");
    let file = program.path("state/purge.dry-run.round");
    let bytes = || std::fs::read(&file).unwrap();
    let mut started = Value::Null;
    for (damage, reason) in [
        ("deleted", ", which earlier runs wrote, is missing"),
        ("cut", " is damaged ("),
        ("changed", " is damaged (wrong checksum)"),
        ("newer", " was written by another version of microglia"),
        ("a link", " cannot be opened (Too many levels of symbolic links"),
    ] {
        configure(&program, &[(FAST, SLOW), (LONG, SHORT)]);
        let report = program.json(&["run", "purge", "--json"]).await;
        assert!(report["round"]["finished_at"].is_null(), "{damage}: {report}");
        assert_ne!(report["round"]["started_at"], started);
        started = report["round"]["started_at"].clone();
        let mut kept = bytes();
        match damage {
            "deleted" => std::fs::remove_file(&file).unwrap(),
            "cut" => std::fs::write(&file, &kept[..kept.len() / 2]).unwrap(),
            "changed" => {
                let middle = kept.len() / 2;
                kept[middle] ^= 0x10;
                std::fs::write(&file, kept).unwrap();
            }
            "newer" => {
                let newer = String::from_utf8_lossy(&kept).replacen("round 2", "round 9", 1);
                std::fs::write(&file, newer).unwrap();
            }
            _ => {
                std::fs::rename(&file, program.path("elsewhere")).unwrap();
                std::os::unix::fs::symlink(program.path("elsewhere"), &file).unwrap();
            }
        }
        fake.forget();
        configure(&program, &[(SLOW, FAST), (SHORT, LONG)]);
        let ran = program.run(&["run", "purge", "--json"]).await;
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(figures(&report), "succeeded: 400/0/0/0/0", "{damage}");
        let expected = format!("the round starts anew: {}{reason}", file.display());
        assert!(message(&report).starts_with(&expected), "{damage}: {report}");
        assert!(ran.stderr.contains(&expected), "{damage}: {}", ran.stderr);
        assert_ne!(report["round"]["started_at"], started, "{damage}");
        assert_eq!(reads(&fake).len(), ACCOUNTS, "{damage}");
        assert_eq!(leftovers(&program), [""; 0], "{damage}");
    }
    assert!(program.path("elsewhere").exists());
}

#[tokio::test]
async fn a_directory_that_cannot_keep_the_round_is_named_before_accounts_are_read() {
    let (fake, program) = homeserver(ACCOUNTS, "");
    program.dry_run("purge").await;
    std::fs::create_dir(kept(&program).with_extension("round.new")).unwrap();
    fake.forget();
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "refused: null/0/0/0/null");
    let expected = format!(
        "the list of files cannot be kept in {} (Is a directory (os error 21)): it takes about 50 bytes per file, and three times that if several runs read it; free some space there",
        program.path("state").display()
    );
    assert_eq!(message(&report), expected);
    assert_eq!(reads(&fake).len(), 0);
    // A round of a single run needs no file.
    configure(&program, &[(SLOW, FAST), (SHORT, LONG)]);
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 400/400/0/0/0");
}

#[tokio::test]
async fn a_full_disk_refuses_the_run_and_the_next_one_reads_the_same_accounts() {
    let (fake, program) = homeserver(ACCOUNTS, "max_changes = 20000");
    fake.world(|world| {
        // The account with the most bytes is read first.
        for n in 0..18_000 {
            world.media("@u000:fake.test", &format!("more{n:020}"), 10, LONG_AGO_MS + 1, None);
        }
    });
    configure(&program, &[(SLOW, "max_requests_per_second = 10"), (SHORT, "time_limit = \"20s\"")]);
    let output = on_small_disk(&program, &["run", "purge", "--apply", "--json"]).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures(&report), "refused: null/0/0/0/null");
    let expected = format!(
        "the list of files cannot be kept in {} (File too large (os error 27))",
        program.path("state").display()
    );
    assert!(message(&report).starts_with(&expected), "{report}");
    assert_eq!(leftovers(&program), [""; 0]);
    let read = reads(&fake).len();
    assert!(0 < read && read < ACCOUNTS, "{read} accounts were read");
    configure(&program, &[("max_requests_per_second = 10", FAST), ("time_limit = \"20s\"", LONG)]);
    fake.forget();
    assert_eq!(figures(&program.dry_run("purge").await), "succeeded: 18400/0/0/0/0");
    assert_eq!(reads(&fake).len(), ACCOUNTS);
}

#[tokio::test]
async fn a_preview_shows_the_rest_of_the_round_and_leaves_it_where_it_is() {
    let (fake, program) = homeserver(ACCOUNTS, "mode = \"apply\"");
    program.json(&["run", "purge", "--json"]).await;
    let before = std::fs::read(kept(&program)).unwrap();
    let read_before = reads(&fake).len();
    let short = program.dry_run("purge").await;
    assert_eq!(figures(&short), "succeeded: 0/0/0/0/null");
    let read = short["round"]["read"].as_u64().unwrap();
    assert!(
        message(&short).starts_with(&format!(
            "accounts with files {} to {read} of 400 read, as the next run will; `--full` reads all",
            read_before + 1
        )),
        "{short}"
    );
    configure(&program, &[(SLOW, FAST), (SHORT, LONG)]);
    for arguments in [
        &["run", "purge", "--dry-run", "--json"][..],
        &["run", "purge", "--dry-run", "--full", "--json"],
    ] {
        fake.forget();
        let report = program.json(arguments).await;
        assert_eq!(figures(&report), "succeeded: 400/0/0/0/0");
        let all = if arguments.contains(&"--full") { ACCOUNTS } else { ACCOUNTS - read_before };
        assert_eq!(reads(&fake).len(), all);
        assert_eq!(std::fs::read(kept(&program)).unwrap(), before);
    }
    fake.forget();
    let report = program.json(&["run", "purge", "--json"]).await;
    assert_eq!(figures(&report), "succeeded: 400/400/0/0/0");
    assert_eq!(reads(&fake).len(), ACCOUNTS - read_before);
    assert_eq!(leftovers(&program), [""; 0]);
}

#[tokio::test]
async fn the_daemon_shows_how_far_a_round_is_and_removes_the_files_of_jobs_that_are_gone() {
    let (_fake, program) = homeserver(ACCOUNTS, "");
    configure(&program, &[("kind", "mode = \"apply\"\nkind")]);
    let report = program.json(&["run", "purge", "--json"]).await;
    #[expect(clippy::cast_precision_loss, reason = "a ratio is rounded anyway")]
    let progress = report["round"]["read"].as_u64().unwrap() as f64 / 400.0;
    let removed = program.path("state/gone@main.apply.round");
    std::fs::copy(kept(&program), &removed).unwrap();
    let daemon = program.serve().await;
    until("the file of the removed job to be gone", 10, || async { !removed.exists() }).await;
    assert!(kept(&program).exists());
    let ratio = daemon.of_job("purge", "microglia_job_round_progress_ratio", &[]).await;
    assert!((ratio - progress).abs() < 1e-9, "{ratio}, not {progress}");
    configure(&program, &[("[jobs.purge]", "[jobs.other]")]);
    assert_eq!(program.run(&["reload"]).await.code, 0);
    assert!(!kept(&program).exists());
    daemon.stop().await;
}

#[tokio::test]
async fn the_daemon_keeps_only_the_files_of_open_rounds_that_the_mode_of_the_job_continues() {
    let (_fake, program) = homeserver(ACCOUNTS, "");
    configure(&program, &[("kind", "mode = \"dry-run\"\nkind")]);
    program.json(&["run", "purge", "--json"]).await;
    let file = program.path("state/purge.dry-run.round");
    // Of a round that ended, or never began.
    std::fs::copy(&file, kept(&program)).unwrap();
    let daemon = program.serve().await;
    until("the file without a round to be gone", 10, || async { !kept(&program).exists() }).await;
    assert!(file.exists());
    configure(&program, &[("\"dry-run\"", "\"apply\"")]);
    assert_eq!(program.run(&["reload"]).await.code, 0);
    assert!(!file.exists());
    daemon.stop().await;
}

#[tokio::test]
async fn several_runs_on_synapse_delete_exactly_the_old_files() {
    let synapse = Synapse::start().await;
    let program = Program::new(&synapse.url, &synapse.admin.token, &job(""));
    let owners = synapse.register_many("owner", 100).await;
    let row =
        |(n, owner)| format!("('old-{n:03}', 'text/plain', {}, 3, '{owner}')", LONG_AGO_MS + n);
    let rows: Vec<String> = (0..).zip(&owners).map(row).collect();
    synapse
        .sql(&format!(
            "INSERT INTO local_media_repository (media_id, media_type, created_ts, media_length, user_id) VALUES {}",
            rows.join(", ")
        ))
        .await;
    configure(&program, &[(FAST, "max_requests_per_second = 20")]);
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 0/0/0/0/null", "{report}");
    let read = report["round"]["read"].as_u64().unwrap();
    assert!((1..100).contains(&read), "{report}");
    // Accounts are read in any order: these change whether they were read or not.
    synapse.sql("DELETE FROM local_media_repository WHERE media_id = 'old-001'").await;
    for used in ["old-002", "old-099"] {
        synapse.age_media(used, 900, Some(3)).await;
    }
    synapse.protect("old-003").await;
    configure(&program, &[("max_requests_per_second = 20", FAST), (SHORT, LONG)]);
    let report = program.apply("purge").await;
    assert_eq!(
        (&report["outcome"], &report["done"]),
        (&"succeeded".into(), &96.into()),
        "{report}"
    );
    let planned = report["planned"].as_u64().unwrap();
    assert_eq!(report["skipped"].as_u64().unwrap(), planned - 96, "{report}");
    let left = synapse
        .sql("SELECT media_id FROM local_media_repository WHERE media_id LIKE 'old-%' ORDER BY media_id")
        .await;
    let left: Vec<&str> = left.iter().map(|row| row[0].as_str().unwrap()).collect();
    assert_eq!(left, ["old-002", "old-003", "old-099"]);
    assert_eq!(leftovers(&program), [""; 0]);
}

// Helpers.

fn job(keys: &str) -> String {
    format!("{JOB}{SHORT}\n{keys}\n")
}

/// A homeserver with an old file of each of `count` accounts, and a job that reads them slowly.
fn homeserver(count: usize, keys: &str) -> (Fake, Program) {
    let fake = Fake::start();
    fake.world(|world| {
        for (n, created_ms) in (LONG_AGO_MS..).step_by(1000).take(count).enumerate() {
            let owner = format!("@u{n:03}:fake.test");
            world.user(&owner);
            world.media(&owner, &format!("file{n:03}"), 10, created_ms, None);
        }
    });
    let program = Program::new(&fake.url(), TOKEN, &job(keys));
    configure(&program, &[(FAST, SLOW)]);
    (fake, program)
}

/// The only old file of `@u000:fake.test`.
fn file_of(owner: &str) -> String {
    owner.replace("@u", "file").replace(":fake.test", "")
}

fn configure(program: &Program, changes: &[(&str, &str)]) {
    let mut config = program.read("microglia.toml");
    for (from, to) in changes {
        config = config.replacen(from, to, 1);
    }
    program.write("microglia.toml", &config);
}

/// How often the files of each account were listed since the requests were last forgotten.
fn reads(fake: &Fake) -> BTreeMap<String, usize> {
    let mut reads = BTreeMap::new();
    for seen in fake.requests() {
        let path = seen.path.strip_prefix("/_synapse/admin/v1/users/");
        if let Some(user) = path.and_then(|path| path.strip_suffix("/media")) {
            let user = user.replace("%40", "@").replace("%3A", ":");
            *reads.entry(user).or_default() += 1;
        }
    }
    reads
}

fn message(report: &Value) -> &str {
    report["message"].as_str().unwrap_or("none")
}

/// How far a complete round has come.
fn round(report: &Value) -> String {
    let round = &report["round"];
    assert!(!round["finished_at"].is_null(), "{report}");
    format!("{} of {}", round["read"], round["total"])
}

/// What the runs in apply mode have read.
fn kept(program: &Program) -> PathBuf {
    program.path("state/purge.apply.round")
}

fn leftovers(program: &Program) -> Vec<String> {
    let entries = std::fs::read_dir(program.path("state")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("round")).collect()
}

/// Runs the program where no file may grow beyond 768 KiB: to a program that is a full disk.
async fn on_small_disk(program: &Program, arguments: &[&str]) -> Output {
    let run = program.command(arguments);
    // The signal would end it where a full disk only says no.
    Command::new("sh")
        .args(["-c", "trap '' XFSZ; prlimit --pid $$ --fsize=786432; exec \"$0\" \"$@\""])
        .arg(run.as_std().get_program())
        .args(run.as_std().get_args())
        .stderr(Stdio::piped())
        .output()
        .await
        .unwrap()
}
