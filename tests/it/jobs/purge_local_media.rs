//! `purge-local-media`.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::future::{join, join_all};
use microglia::runner::LostCallWait;
use reqwest::Method;
use serde_json::{Value, json};

use super::in_process::{self, SOON};
use crate::{
    fake::{Fake, Fault, TOKEN, Trouble, World},
    homeserver::{Account, Messages, Synapse, encoded},
    program::{Program, changes, figures, until},
};

const JOB: &str = "[jobs.purge]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\n";
const DELETE: &str = "/_synapse/admin/v1/media/delete";
/// 2022-01-01, long before any test runs.
const LONG_AGO_MS: i64 = 1_640_995_200_000;

// What a real Synapse does.

#[tokio::test]
async fn exactly_the_planned_files_are_deleted() {
    let synapse = Synapse::start().await;
    let program = Program::new(&synapse.url, &synapse.admin.token, JOB);
    let spared = spared_files(&synapse).await;
    let old = old_files_of_all_sorts_of_accounts(&synapse).await;

    synapse.forget_requests();
    let plan = program.dry_run("purge").await;
    assert_eq!(not_get(&synapse.requests()), [""; 0]);
    assert_eq!(figures(&plan), "succeeded: 21/0/0/0/0");
    assert_eq!((&plan["bytes_planned"], &plan["message"]), (&json!(13_915), &Value::Null));
    assert_eq!(
        shares(&plan),
        [
            "@plain00009:hs.test 1 1009",
            "@plain00008:hs.test 1 1008",
            "@plain00007:hs.test 1 1007",
            "@plain00006:hs.test 1 1006",
            "@plain00005:hs.test 1 1005",
            "@plain00004:hs.test 1 1004",
            "@plain00003:hs.test 1 1003",
            "@plain00002:hs.test 1 1002",
            "@plain00001:hs.test 1 1001",
            "@plain00000:hs.test 1 1000",
        ]
    );

    let stored = bytes_stored(&synapse).await;
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 21/21/0/0/0");
    assert_eq!(report["bytes_freed"], 13_915);
    assert_eq!(stored - bytes_stored(&synapse).await, 13_915);
    for id in &old {
        assert!(!synapse.media_exists(id).await, "{id} is still there");
    }
    for (why, id) in &spared {
        assert!(synapse.media_exists(id).await, "the {why} file is gone");
    }
    let listed = program.run(&["runs", "show", "2", "--media"]).await.stdout;
    assert_eq!(listed.lines().map(str::to_owned).collect::<BTreeSet<_>>(), old);
    let again = program.dry_run("purge").await;
    assert_eq!(
        (figures(&again), &again["message"]),
        ("succeeded: 0/0/0/0/0".to_owned(), &Value::Null)
    );
}

#[tokio::test]
async fn avatars_are_skipped_once_left_out_from_then_on_and_deleted_only_on_request() {
    let synapse = Synapse::start().await;
    let program = Program::new(
        &synapse.url,
        &synapse.admin.token,
        &format!("{JOB}\n{}keep_avatars = false\n", JOB.replace("purge]", "avatars]")),
    );
    let avatars = avatars(&synapse).await;
    let alice = synapse.register("bob").await;
    let plain = old_upload(&synapse, &alice, 50).await;

    assert_eq!(figures(&program.dry_run("purge").await), "succeeded: 5/0/0/0/0");
    let first = program.apply("purge").await;
    assert_eq!(figures(&first), "succeeded: 5/2/0/3/0");
    assert_eq!(first["bytes_freed"], 50 + 7);
    assert_eq!(
        first["changes"][0]["detail"],
        "Synapse kept 3 files of this batch, most likely avatars; Synapse's log names files that it could not delete"
    );
    assert!(!synapse.media_exists(&plain).await);

    let later = old_upload(&synapse, &alice, 60).await;
    let second = program.dry_run("purge").await;
    assert_eq!(figures(&second), "succeeded: 1/0/0/0/0");
    assert_eq!(
        second["message"],
        "3 files that Synapse kept in an earlier run, most likely avatars, are left out"
    );
    let second = program.apply("purge").await;
    assert_eq!(
        (figures(&second), &second["bytes_freed"]),
        ("succeeded: 1/1/0/0/0".to_owned(), &json!(60))
    );
    assert!(!synapse.media_exists(&later).await);
    for avatar in &avatars {
        assert!(synapse.media_exists(avatar).await, "{avatar} is gone");
    }
    synapse.forget_requests();
    let third = program.run(&["run", "purge", "--apply"]).await;
    assert_eq!(third.code, 0, "{third:?}");
    assert!(third.stdout.contains("3 files that Synapse kept in an earlier run"), "{third:?}");
    assert_eq!(not_get(&synapse.requests()), [""; 0]);

    assert_eq!(figures(&program.dry_run("avatars").await), "succeeded: 3/0/0/0/0");
    let all = program.apply("avatars").await;
    assert_eq!(
        (figures(&all), &all["bytes_freed"]),
        ("succeeded: 3/3/0/0/0".to_owned(), &json!(6))
    );
    assert_eq!(bytes_stored(&synapse).await, 0);
}

#[tokio::test]
async fn a_plan_above_max_changes_is_refused_and_the_limit_can_be_raised_for_one_run() {
    let (synapse, program, owner) = six_files("max_changes = 1").await;
    synapse.forget_requests();
    let refused = program.run(&["run", "purge", "--apply", "--json"]).await;
    assert_eq!(refused.code, 1);
    let report: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(figures(&report), "refused: 5/0/0/0/5");
    assert_eq!(
        report["message"],
        "the plan has 5 items, more than max_changes = 1: preview it with `microglia run purge --dry-run`; \
         if it is correct, run it once with `--max-changes 5`, raise max_changes, or set at_most to apply it in parts"
    );
    assert_eq!(not_get(&synapse.requests()), [""; 0]);
    let four = program.json(&["run", "purge", "--apply", "--max-changes", "4", "--json"]).await;
    assert_eq!(figures(&four), "refused: 5/0/0/0/5");
    assert_eq!(ids_left(&synapse, &owner).await.len(), 6);
    let lifted = program.json(&["run", "purge", "--apply", "--max-changes", "5", "--json"]).await;
    assert_eq!(figures(&lifted), "succeeded: 5/5/0/0/0");
    assert_eq!(ids_left(&synapse, &owner).await, ["later"]);
}

#[tokio::test]
async fn size_age_and_at_most_select_the_files() {
    let (synapse, program, owner) = six_files("larger_than = \"1KiB\"").await;
    let printed = program.run(&["run", "purge", "--dry-run"]).await.stdout;
    let lines: Vec<&str> = printed.lines().skip(2).collect();
    assert_eq!(
        lines,
        [
            "  most bytes:",
            "       3.0 KiB        2 files  @owner00000:hs.test",
            "  planned  purge-local-media local files last accessed before 2023-01-01 00:00:00 UTC (2)",
            "Nothing was changed. To make these changes now: microglia run purge --apply; on schedule: set mode = \"apply\" in the job",
        ]
    );
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 2/2/0/0/0");
    assert_eq!(ids_left(&synapse, &owner).await, ["file-a", "file-b", "file-e", "later"]);
    set(&program, "larger_than = \"1KiB\"", "at_most = 1\nmax_changes = 1");
    let part = program.apply("purge").await;
    assert_eq!(
        (figures(&part), &part["bytes_freed"]),
        ("succeeded: 1/1/0/0/2".to_owned(), &json!(500))
    );
    assert_eq!(ids_left(&synapse, &owner).await, ["file-b", "file-e", "later"]);
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 1/1/0/0/1");
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 1/1/0/0/0");
    assert_eq!(ids_left(&synapse, &owner).await, ["later"]);
}

#[tokio::test]
async fn an_account_with_more_files_than_a_page_is_purged_in_batches() {
    let synapse = Synapse::start().await;
    let program = Program::new(
        &synapse.url,
        &synapse.admin.token,
        &format!("{JOB}batch_files = 300\nmax_changes = \"unlimited\"\n"),
    );
    let owner = &synapse.register_many("hoarder", 1).await[0];
    let rows: Vec<String> = (0..5250)
        .map(|n| format!("('file{n:04}', 'text/plain', {}, 3, '{owner}')", LONG_AGO_MS + n * 1000))
        .collect();
    synapse
        .sql(&format!(
            "INSERT INTO local_media_repository (media_id, media_type, created_ts, media_length, user_id) VALUES {}",
            rows.join(", ")
        ))
        .await;

    let plan = program.dry_run("purge").await;
    assert_eq!(figures(&plan), "succeeded: 5250/0/0/0/0");
    synapse.forget_requests();
    let report = program.apply("purge").await;
    assert_eq!(
        (figures(&report), &report["bytes_freed"]),
        ("succeeded: 5250/5250/0/0/0".to_owned(), &json!(15750))
    );
    assert_eq!(not_get(&synapse.requests()).len(), 18, "200 files, sixteen times 300, and 250");
    let counts: Vec<u64> = report["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["count"].as_u64().unwrap())
        .collect();
    let batches: Vec<u64> = [vec![200], vec![300; 16], vec![250]].concat();
    assert_eq!(counts, batches);
    assert_eq!(ids_left(&synapse, owner).await, [""; 0]);

    let shown = program.json(&["runs", "show", "2", "--json"]).await;
    assert_eq!(shown, report);
    let media = program.json(&["runs", "show", "2", "--media", "--json"]).await;
    let ids: Vec<String> = (0..5250).map(|n| format!("file{n:04}")).collect();
    let listed: Vec<&str> =
        media.as_array().unwrap().iter().map(|file| file["media_id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids);
    assert!(media.as_array().unwrap().iter().all(|file| file["bytes"] == 3), "{media}");
}

// What a real one cannot be made to do.

#[tokio::test]
async fn nothing_is_deleted_if_the_clocks_differ_by_more_than_a_minute() {
    for (offset, direction) in [(90, "behind"), (-90, "ahead of")] {
        let (fake, program) = fake_with_old_files(3, "");
        fake.world(|world| world.clock_offset_seconds = offset);
        for mode in ["--apply", "--dry-run"] {
            let report = program.json(&["run", "purge", mode, "--json"]).await;
            assert_eq!(figures(&report), "refused: null/0/0/0/null");
            let message = report["message"].as_str().unwrap();
            let (start, end) = message.split_once(direction).unwrap();
            assert!(start.starts_with("the local clock is 1 min"), "{message}");
            assert_eq!(
                end,
                " that of main, and timestamps would be wrong: synchronize the clocks (NTP)"
            );
        }
        assert_eq!(media_requests(&fake), [""; 0]);
    }
    let (fake, program) = fake_with_old_files(3, "");
    fake.world(|world| world.clock_offset_seconds = -45);
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 3/3/0/0/0");
}

#[tokio::test]
async fn a_homeserver_that_cannot_purge_is_refused_with_the_reason() {
    let (fake, program) = fake_with_old_files(3, "");
    fake.world(|world| world.version = "1.77.0".to_owned());
    let report = program.apply("purge").await;
    assert_eq!(
        (figures(&report), report["message"].as_str().unwrap()),
        (
            "refused: null/0/0/0/null".to_owned(),
            "main runs Synapse 1.77.0, and purge-local-media requires 1.78 or later: upgrade Synapse"
        )
    );

    fake.world(|world| world.version = "1.163.2".to_owned());
    let worker = fake.media_worker();
    let report = program.apply("purge").await;
    assert_eq!(
        (figures(&report), report["message"].as_str().unwrap()),
        (
            "refused: null/0/0/0/null".to_owned(),
            "GET /_synapse/admin/v1/users/@alice:fake.test/media: 404 M_UNRECOGNIZED: Unrecognized request. \
             The process that responded does not serve this media endpoint: set `media_url` to the worker that does, or upgrade Synapse"
        )
    );
    set(&program, "url = ", &format!("media_url = \"{}\"\nurl = ", worker.url()));
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 3/3/0/0/0");
}

#[tokio::test]
async fn files_in_object_storage_are_purged_only_if_the_job_allows_it() {
    let (fake, program) = fake_with_old_files(3, "");
    set(&program, "url = ", "media_in_object_storage = true\nurl = ");
    let report = program.apply("purge").await;
    assert_eq!(
        (figures(&report), report["message"].as_str().unwrap()),
        (
            "refused: null/0/0/0/null".to_owned(),
            "this homeserver keeps its media in object storage, where Synapse deletes nothing: the objects would remain without any reference to them. \
             Set `orphan_objects = true` if a lifecycle rule of the bucket deletes them"
        )
    );
    assert_eq!(media_requests(&fake), [""; 0]);
    set(&program, "older_than", "orphan_objects = true\nolder_than");
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 3/3/0/0/0");
}

#[tokio::test]
async fn a_batch_is_twice_the_last_one_until_a_call_takes_long_enough() {
    let (fake, program) = fake_with_old_files(1400, "max_changes = 1400\n");
    let time_per_file = |ms| fake.world(|world| world.time_per_file = Duration::from_millis(ms));
    let load = async {
        for (calls, ms) in [(0, 1), (1, 26), (2, 1)] {
            until("the call", 20, || async { fake.count("POST", DELETE) == calls }).await;
            time_per_file(ms);
        }
    };
    let (report, ()) = join(program.apply("purge"), load).await;
    assert_eq!(figures(&report), "succeeded: 1400/1400/0/0/0");
    let counts: Vec<&Value> =
        report["changes"].as_array().unwrap().iter().map(|change| &change["count"]).collect();
    assert_eq!(counts, [200, 400, 400, 400]);
}

#[tokio::test]
async fn more_accounts_than_a_page_are_all_read() {
    let fake = Fake::start();
    fake.world(|world| {
        for n in 0..2100 {
            let owner = format!("@user{n:04}:fake.test");
            world.user(&owner);
            world.media(&owner, &format!("file{n:04}"), 7, LONG_AGO_MS + n, None);
        }
        world.media("@gone:fake.test", "nobodys", 7, LONG_AGO_MS, None);
    });
    let statistics = "/_synapse/admin/v1/statistics/users/media";
    let failed = Trouble::Synapse(500, "M_UNKNOWN", "Internal server error");
    fake.fault(Fault::new("GET", statistics, failed).times(4));
    let program = Program::new(&fake.url(), TOKEN, &format!("{JOB}max_changes = 3000\n"));
    let plan = program.dry_run("purge").await;
    assert_eq!(
        (figures(&plan), &plan["bytes_planned"]),
        ("succeeded: 2100/0/0/0/0".to_owned(), &json!(14_700))
    );
    assert_eq!(
        plan["message"],
        "1 file of accounts that Synapse does not list cannot be counted in advance"
    );
    // 10,000, 5,000, 2,500 and 1,250 rows failed; then came four pages of 625.
    assert_eq!(fake.count("GET", statistics), 8);
    assert_eq!(fake.count("POST", ""), 0);
    assert!(fake.max_concurrent() <= 4, "{}", fake.max_concurrent());
}

#[tokio::test]
async fn a_file_that_synapse_kept_is_planned_again_after_it_was_used_and_counted_once_it_is_deleted()
 {
    let (fake, program) = fake_with_old_files(3, "");
    fake.world(|world| {
        world.file_mut("file0000").unwrap().avatar = true;
        world.file_mut("file0001").unwrap().stuck = true;
    });
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 3/1/0/2/0");
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 0/0/0/0/0");
    fake.world(|world| {
        let used = world.file_mut("file0000").unwrap();
        used.last_access_ms = Some(LONG_AGO_MS + 500_000);
    });
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 1/0/0/1/0");
    fake.world(|world| {
        world.file_mut("file0000").unwrap().avatar = false;
        world.file_mut("file0001").unwrap().stuck = false;
        world.media("@alice:fake.test", "another", 10, LONG_AGO_MS + 600_000, None);
    });
    let plan = program.dry_run("purge").await;
    assert_eq!(figures(&plan), "succeeded: 1/0/0/0/0");
    assert_eq!(
        plan["message"],
        "2 files that Synapse kept in an earlier run, most likely avatars, are left out"
    );
    let report = program.apply("purge").await;
    assert_eq!(
        (figures(&report), &report["bytes_freed"]),
        ("succeeded: 3/3/0/0/0".to_owned(), &json!(30))
    );
}

// Lost responses.

#[test]
fn a_lost_media_call_counts_as_ended_after_a_minute_without_changes_or_ten_without_statistics() {
    let LostCallWait { unchanged_for, unobserved_for, poll_interval, external_ids_for: _ } =
        LostCallWait::default();
    assert_eq!(
        [unchanged_for, unobserved_for, poll_interval].map(|time| time.as_secs()),
        [60, 600, 5]
    );
}

#[tokio::test]
async fn after_a_lost_response_no_call_is_sent_until_the_statistics_stop_changing() {
    let troubles = [
        Trouble::CutBefore,
        Trouble::CutAfter,
        Trouble::CutBody,
        Trouble::BrokenJson,
        Trouble::ProxyAfter(504),
        Trouble::WorkOn(Duration::from_secs(2)),
    ];
    join_all(troubles.map(|trouble| async move {
        let (fake, program) = fake_with_old_files(30, "batch_files = 10\n");
        fake.world(|world| world.file_mut("file0013").unwrap().avatar = true);
        fake.fault(Fault::new("POST", DELETE, trouble.clone()).after(1));
        let ran = in_process::apply(&program, "purge").await;
        assert_eq!(figures(&ran.report), "succeeded: 30/29/0/1/0", "{trouble:?}: {}", ran.report);
        assert_eq!(
            (&ran.report["bytes_freed"], &ran.report["attempts"]),
            (&json!(290), &json!(2)),
            "{trouble:?}"
        );
        let calls = media_calls(&fake);
        let pause = calls[2] - calls[1];
        assert!(pause >= SOON.unchanged_for, "{trouble:?}: {pause:?}");
        assert_eq!(fake.complaints(), [""; 0], "{trouble:?}");
        assert_eq!(
            fake.world(|world| world.files().keys().cloned().collect::<Vec<_>>()),
            ["file0013"]
        );
        let listed = program.run(&["runs", "show", "1", "--media"]).await.stdout;
        let all_others = (0..30).filter(|n| *n != 13).map(|n| format!("file{n:04}\n"));
        assert_eq!(listed, all_others.collect::<String>(), "{trouble:?}");
        assert_eq!(ran.waited.len(), 1, "{trouble:?}: {:?}", ran.waited);
    }))
    .await;
}

#[tokio::test]
async fn continuing_uploads_do_not_make_a_lost_call_last_forever() {
    let (fake, program) = fake_with_old_files(20, "batch_files = 10\ntime_limit = \"10s\"\n");
    fake.fault(Fault::new("POST", DELETE, Trouble::WorkOn(Duration::from_millis(500))));
    let run = in_process::apply(&program, "purge");
    let uploads = async {
        for n in 0.. {
            let now = fake.world(|world| world.now().timestamp_millis());
            // An upload of today, and the preview of a link that is thrown away after two days.
            fake.world(|world| {
                world.media("@alice:fake.test", &format!("new{n:04}"), 5, now, None);
                world.media(
                    "@alice:fake.test",
                    &format!("preview{n:04}"),
                    5,
                    now - 172_000_000,
                    None,
                );
            });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ran = tokio::select! { ran = run => ran, () = uploads => unreachable!() };
    assert_eq!(figures(&ran.report), "succeeded: 20/20/0/0/0");
}

#[tokio::test]
async fn after_a_kill_the_next_start_finds_out_what_the_last_call_did() {
    let (fake, program) = fake_with_old_files(60, "batch_files = 30\n");
    fake.world(|world| {
        world.time_per_file = Duration::from_millis(100);
        world.file_mut("file0045").unwrap().avatar = true;
    });
    let mut child = program.command(&["run", "purge", "--apply", "--json"]).spawn().unwrap();
    let second_call = || async { fake.count("POST", DELETE) == 2 };
    until("the second call", 20, second_call).await;
    child.kill().await.unwrap();

    // The program itself waits for a minute: long enough to see that it does, and that it can be stopped.
    let waiting = program.command(&["run", "purge", "--apply"]).spawn().unwrap();
    let started =
        || async { program.json(&["runs", "--json"]).await.as_array().unwrap().len() == 2 };
    until("the second run", 10, started).await;
    until("the last of the lost call", 10, || async {
        fake.world(|world| world.files().len()) == 1
    })
    .await;
    let pid = waiting.id().unwrap().to_string();
    tokio::process::Command::new("kill").args(["-INT", &pid]).status().await.unwrap();
    assert_eq!(waiting.wait_with_output().await.unwrap().status.code(), Some(1));
    assert_eq!(fake.count("POST", DELETE), 2);

    fake.world(|world| {
        world.media("@alice:fake.test", "one-more", 10, LONG_AGO_MS, None);
    });
    let ran = in_process::apply(&program, "purge").await;
    assert_eq!(figures(&ran.report), "succeeded: 2/1/0/1/0");
    assert_eq!(fake.complaints(), [""; 0]);
    let runs = program.json(&["runs", "--json"]).await;
    let all: Vec<String> = runs.as_array().unwrap().iter().map(figures).collect();
    assert_eq!(
        all,
        ["succeeded: 2/1/0/1/0", "cancelled: null/0/0/0/null", "interrupted: 60/30/30/0/0"]
    );
    assert_eq!(runs[2]["bytes_freed"], 300);
    let first = program.json(&["runs", "show", "1", "--json"]).await;
    assert_eq!(
        first["changes"][1]["detail"],
        "microglia exited before the response arrived: the change may have been made"
    );
}

#[tokio::test]
async fn after_a_kill_the_next_run_plans_only_once_the_statistics_stop_changing() {
    let (fake, program) = fake_with_old_files(40, "");
    fake.fault(Fault::new("POST", DELETE, Trouble::WorkOn(Duration::from_secs(3))));
    let mut child = program.command(&["run", "purge", "--apply", "--json"]).spawn().unwrap();
    let called = || async { fake.count("POST", DELETE) == 1 };
    until("the first call", 20, called).await;
    child.kill().await.unwrap();
    let dry = program.dry_run("purge").await;
    assert_eq!(dry["outcome"], "succeeded", "a dry run has nothing to wait for");
    fake.world(|world| {
        world.media("@alice:fake.test", "one-more", 10, LONG_AGO_MS + 900_000, None);
    });
    let ran = in_process::apply(&program, "purge").await;
    assert_eq!(figures(&ran.report), "succeeded: 1/1/0/0/0");
    assert_eq!(fake.complaints(), [""; 0]);
}

#[tokio::test]
async fn a_call_that_hangs_ends_with_the_time_limit_and_the_next_run_checks_it_first() {
    let (fake, program) = fake_with_old_files(5, "time_limit = \"3s\"\n");
    fake.fault(Fault::new("POST", DELETE, Trouble::Hang));
    let output = program.run(&["run", "purge", "--apply", "--json"]).await;
    assert_eq!(output.code, 1);
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (figures(&report), &report["message"]),
        ("timed-out: 5/0/5/0/0".to_owned(), &json!("the time limit of 3s was reached"))
    );
    assert_eq!(
        report["changes"][0]["detail"],
        "no response arrived before the run ended: the change may have been made"
    );
    set(&program, "time_limit", "#");
    let start = Instant::now();
    let ran = in_process::apply(&program, "purge").await;
    assert_eq!(figures(&ran.report), "succeeded: 5/5/0/0/0");
    assert!(media_calls(&fake)[1] - start >= SOON.unchanged_for);
}

#[tokio::test]
async fn two_jobs_on_one_homeserver_never_have_two_calls_in_progress() {
    let job =
        |name: &str| format!("{}batch_files = 10\n", JOB.replace("purge]", &format!("{name}]")));
    let remote = "[jobs.cache]\nkind = \"purge-remote-media\"\nolder_than = \"30d\"\n";
    let fake = Fake::start();
    old_files(&fake, 40);
    fake.world(|world| {
        world.remote_media(50, LONG_AGO_MS);
        world.time_per_file = Duration::from_millis(20);
    });
    let program =
        Program::new(&fake.url(), TOKEN, &format!("{}{}{remote}", job("one"), job("two")));
    set(&program, "url = ", "max_concurrent_runs = 3\nurl = ");
    let ((one, two), cache) =
        join(join(program.apply("one"), program.apply("two")), program.apply("cache")).await;
    assert_eq!(fake.complaints(), [""; 0]);
    let mut both = [figures(&one), figures(&two)];
    both.sort();
    assert_eq!(both, ["succeeded: 0/0/0/0/0", "succeeded: 40/40/0/0/0"], "{one} {two}");
    assert_eq!(figures(&cache), "succeeded: null/50/0/0/0");
}

#[tokio::test]
async fn the_lock_of_a_homeserver_never_collides_with_the_lock_of_a_job() {
    let fake = Fake::of(World::named("localhost"));
    fake.world(|world| {
        world.user("@alice:localhost");
        world.media("@alice:localhost", "file", 10, LONG_AGO_MS, None);
    });
    let job = JOB.replace("purge]", "media-localhost]");
    let program = Program::new(&fake.url(), TOKEN, &format!("{job}time_limit = \"5s\"\n"));
    assert_eq!(figures(&program.apply("media-localhost").await), "succeeded: 1/1/0/0/0");
}

// What ends a run.

#[tokio::test]
async fn an_internal_error_of_synapse_ends_the_run_before_the_next_batch() {
    let (fake, program) = fake_with_old_files(30, "batch_files = 10\n");
    fake.fault(
        Fault::new("POST", DELETE, Trouble::Synapse(500, "M_UNKNOWN", "Internal server error"))
            .after(1),
    );
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "failed: 30/10/10/0/10");
    assert_eq!(report["message"], format!("POST {DELETE}: 500 M_UNKNOWN: Internal server error"));
    assert_eq!(fake.count("POST", DELETE), 2);
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 20/20/0/0/0");
}

#[tokio::test]
async fn a_token_that_is_revoked_during_a_run_ends_it_and_the_message_says_what_to_do() {
    let (fake, program) = fake_with_old_files(30, "batch_files = 10\n");
    fake.fault(
        Fault::new(
            "POST",
            DELETE,
            Trouble::Synapse(401, "M_UNKNOWN_TOKEN", "Invalid access token passed."),
        )
        .after(1)
        .always(),
    );
    let output = program.run(&["run", "purge", "--apply", "--json"]).await;
    assert_eq!(output.code, 1);
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(figures(&report), "failed: 30/10/10/0/10");
    let message = report["message"].as_str().unwrap();
    let why = format!(
        "POST {DELETE}: 401 M_UNKNOWN_TOKEN: Invalid access token passed. The access token is not valid: "
    );
    let remedy = message.strip_prefix(&why).unwrap_or_else(|| panic!("{message}"));
    assert!(remedy.contains(program.path("token").to_str().unwrap()), "{remedy}");
    assert_eq!((fake.count("POST", DELETE), report["attempts"].as_u64()), (2, Some(1)));
}

#[tokio::test]
async fn after_a_rate_limit_each_file_still_counts_once() {
    let (fake, program) = fake_with_old_files(20, "batch_files = 10\n");
    let limited = Trouble::Limited { retry_after_ms: Some(700), retry_after_header: Some(9) };
    fake.fault(Fault::new("POST", DELETE, limited).after(1));
    let by_header = Trouble::Limited { retry_after_ms: None, retry_after_header: Some(1) };
    fake.fault(Fault::new("POST", DELETE, by_header).after(1));
    let report = program.apply("purge").await;
    assert_eq!(
        (figures(&report), &report["attempts"]),
        ("succeeded: 20/20/0/0/0".to_owned(), &json!(1))
    );
    let calls = media_calls(&fake);
    let pauses = [calls[2] - calls[1], calls[3] - calls[2]];
    assert!(
        pauses[0] >= Duration::from_millis(700) && pauses[0] < Duration::from_secs(9),
        "{pauses:?}"
    );
    assert!(pauses[1] >= Duration::from_secs(1), "{pauses:?}");
}

#[tokio::test]
async fn nothing_is_deleted_if_the_history_cannot_be_written() {
    let (fake, program) = fake_with_old_files(3, "");
    program.write("file", "");
    set(&program, "state_dir = \"state\"", "state_dir = \"file/state\"");
    let refused = program.run(&["run", "purge", "--apply", "--json"]).await;
    assert_eq!(refused.code, 1);
    let report: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(
        (figures(&report), &report["id"]),
        ("refused: null/0/0/0/null".to_owned(), &Value::Null)
    );
    assert_eq!(
        report["message"],
        format!(
            "the history cannot be written, and what cannot be recorded is not done: the state directory {} cannot be used \
             (Not a directory (os error 20)): run as the daemon's user, or set daemon.state_dir",
            program.path("file/state").display()
        )
    );
    let dry = program.run(&["run", "purge", "--dry-run", "--json"]).await;
    assert_eq!(dry.code, 0);
    let report: Value = serde_json::from_str(&dry.stdout).unwrap();
    assert_eq!(
        (figures(&report), &report["id"]),
        ("succeeded: 3/0/0/0/0".to_owned(), &Value::Null)
    );
    assert_eq!(changes(&report).len(), 1);
    assert_eq!(fake.count("POST", ""), 0);
}

#[tokio::test]
async fn a_history_that_fails_during_a_run_ends_it_before_anything_more_is_sent() {
    let (fake, program) = fake_with_old_files(30, "batch_files = 10\n");
    program.dry_run("purge").await;
    history(
        &program,
        "CREATE TRIGGER full BEFORE INSERT ON media_calls WHEN (SELECT COUNT(*) FROM files) > 0 \
         BEGIN SELECT RAISE(ABORT, 'no space'); END",
    )
    .await;
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "failed: 30/10/0/0/20");
    let message = report["message"].as_str().unwrap();
    assert!(
        message.starts_with(
            "the history cannot be written, and what cannot be recorded is not done: "
        ) && message.contains("no space"),
        "{message}"
    );
    assert_eq!(fake.count("POST", DELETE), 1);
}

// Helpers.

/// Files of 2022 and one of 2023, and a job that purges what was used before 2023.
async fn six_files(keys: &str) -> (Synapse, Program, String) {
    let synapse = Synapse::start().await;
    let job = "[jobs.purge]\nkind = \"purge-local-media\"\nbefore = 2023-01-01T00:00:00Z\n";
    let program = Program::new(&synapse.url, &synapse.admin.token, &format!("{job}{keys}\n"));
    let owner = synapse.register_many("owner", 1).await.remove(0);
    let sizes = [500, 1024, 1025, 2000, 10];
    for ((n, letter), bytes) in (0..).zip('a'..).zip(sizes) {
        insert_file(&synapse, &owner, &format!("file-{letter}"), bytes, LONG_AGO_MS + n * 1000)
            .await;
    }
    let later_ms = LONG_AGO_MS + 400 * 86_400_000;
    insert_file(&synapse, &owner, "later", 4000, later_ms).await;
    (synapse, program, owner)
}

/// Files that must stay, and why.
async fn spared_files(synapse: &Synapse) -> Vec<(&'static str, String)> {
    let alice = synapse.register("alice").await;
    let mut spared = Vec::new();
    for why in ["quarantined", "protected", "lately used", "young"] {
        let id = synapse.upload(&alice, b"bytes").await;
        match why {
            "quarantined" => synapse.quarantine(&id).await,
            "protected" => synapse.protect(&id).await,
            _ => {}
        }
        match why {
            "young" => synapse.age_media(&id, 179, None).await,
            "lately used" => synapse.age_media(&id, 400, Some(3)).await,
            _ => synapse.age_media(&id, 400, None).await,
        }
        spared.push((why, id));
    }
    let (_, pending) =
        synapse.client(&alice, Method::POST, "/_matrix/media/v1/create", json!({})).await;
    let id = pending["content_uri"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    synapse.age_media(&id, 400, None).await;
    spared.push(("pending", id));
    insert_file(synapse, &alice.user_id, "emptyfile", 0, LONG_AGO_MS).await;
    spared.push(("empty", "emptyfile".to_owned()));
    spared
}

/// 21 files with 13,915 bytes, one of them used once, long ago.
async fn old_files_of_all_sorts_of_accounts(synapse: &Synapse) -> BTreeSet<String> {
    let mut old = BTreeSet::new();
    let carol = synapse.register("carol").await;
    for bytes in [300, 200, 100] {
        old.insert(old_upload(synapse, &carol, bytes).await);
    }
    let used = old_upload(synapse, &carol, 20).await;
    synapse.age_media(&used, 800, Some(400)).await;
    old.insert(used);
    let dora = synapse.register("dora").await;
    old.insert(old_upload(synapse, &dora, 700).await);
    synapse.deactivate(&dora.user_id, Messages::Erase).await;
    for localpart in ["a/b", "c#d", "e f", "ünï", "G?%2F", "h+i"] {
        let account = synapse.insert_user(localpart).await;
        old.insert(old_upload(synapse, &account, 425).await);
    }
    for (n, owner) in (0..).zip(synapse.register_many("plain", 10).await) {
        let id = format!("plainfile{n}");
        insert_file(synapse, &owner, &id, 1000 + n, LONG_AGO_MS + n).await;
        old.insert(id);
    }
    old
}

/// The former avatar and the avatar of a user who is in a room, and the room's: of 1, 2 and 3 bytes.
///
/// There is one more of 7 bytes that was the room's avatar once: Synapse does not keep those.
async fn avatars(synapse: &Synapse) -> Vec<String> {
    let alice = synapse.register("alice").await;
    let room = synapse.create_room(&alice, json!({ "preset": "public_chat" })).await;
    let mut avatars = Vec::new();
    for bytes in 1..=3 {
        avatars.push(synapse.upload(&alice, &vec![b'x'; bytes]).await);
    }
    for avatar in &avatars[..2] {
        synapse.set_avatar(&alice, avatar).await;
        let in_the_room =
            format!("SELECT 1 FROM room_memberships WHERE avatar_url LIKE '%/{avatar}'");
        until("the avatar in the room", 20, || async {
            !synapse.sql(&in_the_room).await.is_empty()
        })
        .await;
    }
    let former = old_upload(synapse, &alice, 7).await;
    for avatar in [&former, &avatars[2]] {
        let path = format!("/_matrix/client/v3/rooms/{}/state/m.room.avatar", encoded(&room));
        let body = json!({ "url": format!("mxc://hs.test/{avatar}") });
        let (status, answer) = synapse.client(&alice, Method::PUT, &path, body).await;
        assert_eq!(status, 200, "{answer}");
        let known = format!("SELECT 1 FROM room_stats_state WHERE avatar LIKE '%/{avatar}'");
        until("the room's avatar", 20, || async { !synapse.sql(&known).await.is_empty() }).await;
    }
    for avatar in &avatars {
        synapse.age_media(avatar, 400, None).await;
    }
    avatars
}

async fn old_upload(synapse: &Synapse, account: &Account, bytes: usize) -> String {
    let id = synapse.upload(account, &vec![b'x'; bytes]).await;
    synapse.age_media(&id, 400, None).await;
    id
}

async fn insert_file(synapse: &Synapse, owner: &str, id: &str, bytes: i64, created_ms: i64) {
    synapse
        .sql(&format!(
            "INSERT INTO local_media_repository (media_id, media_type, created_ts, media_length, user_id)
            VALUES ('{id}', 'text/plain', {created_ms}, {bytes}, '{owner}')"
        ))
        .await;
}

async fn bytes_stored(synapse: &Synapse) -> u64 {
    let statistics = synapse.get("/_synapse/admin/v1/statistics/users/media?limit=1000").await;
    let users = statistics["users"].as_array().unwrap();
    users.iter().map(|user| user["media_length"].as_u64().unwrap_or(0)).sum()
}

async fn ids_left(synapse: &Synapse, owner: &str) -> Vec<String> {
    let path =
        format!("/_synapse/admin/v1/users/{}/media?order_by=media_id&limit=5000", encoded(owner));
    let list = synapse.get(&path).await;
    list["media"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["media_id"].as_str().unwrap().to_owned())
        .collect()
}

fn not_get(requests: &[String]) -> Vec<&str> {
    requests.iter().map(String::as_str).filter(|request| !request.starts_with("GET ")).collect()
}

/// Each account of the sample with its files and bytes.
fn shares(report: &Value) -> Vec<String> {
    let share = |share: &Value| {
        format!("{} {} {}", share["user_id"].as_str().unwrap(), share["files"], share["bytes"])
    };
    report["sample"].as_array().unwrap().iter().map(share).collect()
}

/// A homeserver with this many old files, and a program with a job that purges them.
fn fake_with_old_files(count: usize, keys: &str) -> (Fake, Program) {
    let fake = Fake::start();
    old_files(&fake, count);
    let retries =
        if keys.contains("retries") { "" } else { "retries = { first_delay = \"1s\" }\n" };
    let program = Program::new(&fake.url(), TOKEN, &format!("{JOB}{retries}{keys}"));
    (fake, program)
}

/// `file0000` and so on, of ten bytes each and a second apart.
fn old_files(fake: &Fake, count: usize) {
    fake.world(|world| {
        world.user("@alice:fake.test");
        for (n, created_ms) in (LONG_AGO_MS..).step_by(1000).take(count).enumerate() {
            world.media("@alice:fake.test", &format!("file{n:04}"), 10, created_ms, None);
        }
    });
}

/// Changes the config.
fn set(program: &Program, from: &str, to: &str) {
    let config = program.read("microglia.toml");
    assert!(config.contains(from), "no {from:?} in {config}");
    program.write("microglia.toml", &config.replacen(from, to, 1));
}

fn media_requests(fake: &Fake) -> Vec<String> {
    let about_media = |path: &String| path.contains("media");
    fake.requests().into_iter().map(|seen| seen.path).filter(about_media).collect()
}

/// When each deletion was requested.
fn media_calls(fake: &Fake) -> Vec<Instant> {
    let requests = fake.requests();
    requests.iter().filter(|seen| seen.path == DELETE).map(|seen| seen.at).collect()
}

/// Runs a statement in the program's history.
async fn history(program: &Program, statement: &'static str) {
    use sqlx::{ConnectOptions, Connection};
    let options =
        sqlx::sqlite::SqliteConnectOptions::new().filename(program.path("state/history.db"));
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_plan_that_does_not_fit_into_memory_leaves_nothing_in_the_state_directory() {
    let fake = Fake::start();
    let owner = "@hoarder:fake.test";
    fake.world(|world| {
        world.user(owner);
        for n in 0..30_000 {
            world.media(owner, &format!("file{n:020}"), 7, LONG_AGO_MS + n, None);
        }
    });
    let keys = "batch_files = 10000\nmax_changes = \"unlimited\"\nat_most = 29000\n";
    let program = Program::new(&fake.url(), TOKEN, &format!("{JOB}{keys}"));
    program.dry_run("purge").await;
    let files = || {
        let entries = std::fs::read_dir(program.path("state")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = files();
    let report = program.apply("purge").await;
    assert_eq!(report["bytes_freed"], json!(29_000 * 7), "{report}");
    assert_eq!(figures(&report), "succeeded: 29000/29000/0/0/1000");
    assert_eq!(fake.world(|world| world.files().len()), 1000);
    assert_eq!(files(), before);
}
