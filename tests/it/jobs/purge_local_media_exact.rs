//! `purge-local-media` with files that are chosen one by one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::fake::{Fake, Fault, TOKEN, Trouble};
use crate::homeserver::{Account, Messages, Synapse, encoded};
use crate::program::{Program, changes, figures, until};

const JOB: &str = "[jobs.purge]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\n";
const FILES: &str = "/_synapse/admin/v1/media/fake.test/";
/// 2022-01-01, long before any test runs.
const LONG_AGO_MS: i64 = 1_640_995_200_000;

// What a real Synapse does.

#[tokio::test]
async fn exactly_the_named_files_are_deleted_and_nothing_that_is_in_use() {
    let synapse = Synapse::start().await;
    let keys = "media_types = [\"IMAGE/*\", \"video/mp4\"]\nexcept_media_types = [\"image/svg*\"]\nexcept_users = [\"@bob:*\"]\n";
    let program = Program::new(&synapse.url, &synapse.admin.token, &format!("{JOB}{keys}"));
    let alice = synapse.register("alice").await;
    let bob = synapse.register("bob").await;
    let gone = [
        old(&synapse, &alice, 100, "image/png").await,
        old(&synapse, &alice, 200, "image/jpeg; x=y").await,
        old(&synapse, &alice, 300, "video/mp4").await,
    ];
    let mut spared = files_in_use(&synapse, &alice).await;
    for (why, owner, media_type) in [
        ("other type", &alice, "text/plain"),
        ("encrypted", &alice, "application/octet-stream"),
        ("excepted type", &alice, "image/svg+xml"),
        ("excepted user", &bob, "image/png"),
        ("protected", &alice, "image/png"),
        ("quarantined", &alice, "image/png"),
        ("link preview", &alice, "image/png"),
        ("young", &alice, "image/png"),
        ("lately used", &alice, "image/png"),
    ] {
        let id = old(&synapse, owner, 50, media_type).await;
        let preview = format!(
            "UPDATE local_media_repository SET url_cache = 'http://a' WHERE media_id = '{id}'"
        );
        match why {
            "protected" => synapse.protect(&id).await,
            "quarantined" => synapse.quarantine(&id).await,
            "link preview" => drop(synapse.sql(&preview).await),
            "young" => synapse.age_media(&id, 179, None).await,
            "lately used" => synapse.age_media(&id, 400, Some(3)).await,
            _ => {}
        }
        spared.push((why, id));
    }
    let path = "/_matrix/media/v1/create";
    let (_, pending) = synapse.client(&alice, Method::POST, path, json!({})).await;
    let id = pending["content_uri"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    synapse.age_media(&id, 400, None).await;
    spared.push(("pending", id));

    synapse.forget_requests();
    let plan = program.dry_run("purge").await;
    let sent = synapse.requests();
    assert!(sent.iter().all(|request| request.starts_with("GET ")), "{sent:?}");
    let planned: BTreeSet<String> =
        gone.iter().map(|id| format!("planned {id} of @alice:hs.test (1)")).collect();
    assert_eq!(changes(&plan).into_iter().collect::<BTreeSet<_>>(), planned, "{plan}");
    assert_eq!((&plan["planned"], &plan["bytes_planned"]), (&json!(3), &json!(600)));
    assert_eq!(plan["sample"], json!([{"user_id": "@alice:hs.test", "files": 3, "bytes": 600}]));
    let left =
        json!({"excluded": 1, "in-use": 6, "protected": 1, "quarantined": 1, "url-preview": 1});
    assert_eq!(plan["left_alone"], left);

    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 3/3/0/0/0");
    assert_eq!(report["bytes_freed"], 600);
    for id in &gone {
        assert!(!synapse.media_exists(id).await, "{id} is still there");
    }
    for (why, id) in &spared {
        assert!(synapse.media_exists(id).await, "the {why} file is gone");
    }
    let listed = program.run(&["runs", "show", "2", "--media"]).await.stdout;
    assert_eq!(listed.lines().collect::<BTreeSet<_>>(), gone.iter().map(String::as_str).collect());
    let again = program.dry_run("purge").await;
    assert_eq!(figures(&again), "succeeded: 0/0/0/0/0");

    set(&program, "except_users", "keep_avatars = false\nexcept_users");
    synapse.forget_requests();
    let all = program.apply("purge").await;
    assert_eq!(figures(&all), "succeeded: 6/6/0/0/0", "{all}");
    assert!(!synapse.requests().iter().any(|request| request.contains("/v1/rooms")));
}

#[tokio::test]
async fn accounts_and_names_select_the_files() {
    let synapse = Synapse::start().await;
    let program = Program::new(
        &synapse.url,
        &synapse.admin.token,
        &format!("{JOB}accounts = [\"active\"]\n"),
    );
    let mut names = Vec::new();
    for name in ["active", "deactivated", "locked", "suspended"] {
        let account = synapse.register(name).await;
        for file in ["cat.png", "dog.gif"] {
            let id = old(&synapse, &account, 10, "image/png").await;
            let update = "UPDATE local_media_repository SET upload_name";
            synapse.sql(&format!("{update} = '{file}' WHERE media_id = '{id}'")).await;
            names.push((id, name, file));
        }
        match name {
            "deactivated" => synapse.deactivate(&account.user_id, Messages::Keep).await,
            "locked" => synapse.lock(&account.user_id).await,
            "suspended" => synapse.suspend(&account.user_id).await,
            _ => {}
        }
    }
    let planned = async || {
        let plan = program.dry_run("purge").await;
        let found = changes(&plan).into_iter().map(|change| {
            let id = change.split(' ').nth(1).unwrap().to_owned();
            let (_, account, file) = names.iter().find(|(known, ..)| *known == id).unwrap();
            format!("{account} {file}")
        });
        found.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
    };
    assert_eq!(planned().await, "active cat.png, active dog.gif");
    set(
        &program,
        "accounts = [\"active\"]",
        "accounts = [\"deactivated\"]\nupload_names = [\"*.png\"]",
    );
    assert_eq!(planned().await, "deactivated cat.png");
    set(&program, "[\"deactivated\"]", "[\"locked\"]");
    assert_eq!(planned().await, "locked cat.png, suspended cat.png");
    set(
        &program,
        "accounts = [\"locked\"]\nupload_names",
        "users = [\"@*d:hs.test\"]\nexcept_users = [\"@l*\"]\nupload_names",
    );
    assert_eq!(planned().await, "deactivated cat.png, suspended cat.png");
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0");
    set(&program, "\"*.png\"", "\"*.mov\"");
    let none = program.dry_run("purge").await;
    assert_eq!(none["message"], "`*.mov` matched no old file");
}

#[tokio::test]
async fn a_file_that_synapse_cannot_delete_has_failed_although_the_status_is_200() {
    let synapse = Synapse::start().await;
    let program = Program::new(
        &synapse.url,
        &synapse.admin.token,
        &format!("{JOB}users = [\"@alice:hs.test\"]\n"),
    );
    let alice = synapse.register("alice").await;
    let stuck = old(&synapse, &alice, 20, "image/png").await;
    let other = old(&synapse, &alice, 30, "image/png").await;
    let folders = format!("media_store/local_content/{}/{}", &stuck[..2], &stuck[2..4]);
    let path = synapse.dir.join(folders).join(&stuck[4..]);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let output = program.run(&["run", "purge", "--apply", "--json"]).await;
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((output.code, figures(&report)), (1, "partial: 2/1/1/0/0".to_owned()));
    assert_eq!(report["bytes_freed"], 30);
    assert!(synapse.media_exists(&stuck).await && !synapse.media_exists(&other).await);
    let failed = changes(&report).into_iter().find(|change| change.starts_with("failed")).unwrap();
    assert!(
        failed.contains(&stuck) && failed.contains("Synapse did not delete the file"),
        "{failed}"
    );
}

// What happens between the plan and the deletion.

#[tokio::test]
async fn a_file_that_was_protected_quarantined_used_or_made_an_avatar_since_the_plan_is_left_alone()
{
    let (fake, program) = fake_with_old_files(60, "");
    fake.fault(Fault::new(
        "DELETE",
        FILES,
        Trouble::Then(|world| {
            world.file_mut("file0030").unwrap().protected = true;
            world.file_mut("file0031").unwrap().quarantined = true;
            let now = world.now().timestamp_millis();
            world.file_mut("file0032").unwrap().last_access_ms = Some(now);
        }),
    ));
    // What was read of the account itself counts for a second.
    fake.fault(
        Fault::new("DELETE", FILES, Trouble::Delay(Duration::from_millis(1100))).after(20).times(4),
    );
    fake.fault(
        Fault::new(
            "DELETE",
            FILES,
            Trouble::Then(|world| {
                world.user("@alice:fake.test").avatar = Some("file0059".to_owned());
            }),
        )
        .after(10),
    );
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 60/56/0/4/0");
    let skipped: Vec<String> =
        changes(&report).into_iter().filter(|change| change.starts_with("skipped")).collect();
    assert_eq!(
        skipped,
        [
            "skipped file0030 of @alice:fake.test (1): it was protected since the plan",
            "skipped file0031 of @alice:fake.test (1): it was quarantined since the plan",
            "skipped file0032 of @alice:fake.test (1): it was accessed since the plan",
            "skipped file0059 of @alice:fake.test (1): it became the avatar of its account since the plan",
        ]
    );
    let left: Vec<String> = fake.world(|world| world.files().keys().cloned().collect());
    assert_eq!(left, ["file0030", "file0031", "file0032", "file0059"]);
}

#[tokio::test]
async fn files_that_others_delete_meanwhile_do_not_hide_those_that_were_protected() {
    let (fake, program) = fake_with_old_files(100, "");
    fake.fault(
        Fault::new(
            "DELETE",
            FILES,
            Trouble::Then(|world| {
                for n in 0..25 {
                    world.remove_file(&format!("file{:04}", n + 40));
                }
                world.file_mut("file0070").unwrap().protected = true;
            }),
        )
        .after(3),
    );
    let report = program.apply("purge").await;
    assert_eq!(
        (&report["outcome"], &report["done"]),
        (&json!("succeeded"), &json!(74)),
        "{report}"
    );
    assert_eq!(report["skipped"], 26, "{report}");
    assert_eq!(fake.world(|world| world.files().keys().cloned().collect::<Vec<_>>()), ["file0070"]);
}

#[tokio::test]
async fn files_are_deleted_side_by_side_with_few_requests_in_addition() {
    let (fake, program) = fake_with_old_files(320, "");
    let release = Arc::new(Semaphore::new(0));
    fake.fault(Fault::new("DELETE", FILES, Trouble::Held(Arc::clone(&release))).times(4));
    let side_by_side = async {
        until("four deletions at a time", 20, async || fake.count("DELETE", FILES) == 4).await;
        release.add_permits(4);
    };
    let (report, ()) = join(program.apply("purge"), side_by_side).await;
    assert_eq!(figures(&report), "succeeded: 320/320/0/0/0");
    assert_eq!(fake.count("DELETE", FILES), 320);
    let requests = fake.requests().len();
    assert!(requests < 320 + 80, "{requests} requests");
    assert_eq!(fake.max_concurrent(), 4);
    assert_eq!(fake.complaints(), [""; 0]);
}

#[tokio::test]
async fn rooms_are_read_only_if_there_is_a_file_to_delete() {
    let (fake, program) = fake_with_old_files(2, "");
    fake.world(|world| {
        for n in 0..30 {
            world.room(&format!("!room{n}:fake.test"));
        }
    });
    let plan = program.dry_run("purge").await;
    assert_eq!(plan["message"], "the state of 30 rooms was read for files in use");
    set(&program, "image/*", "video/*");
    let none = program.dry_run("purge").await;
    assert_eq!(none["message"], "`video/*` matched no old file");
    assert_eq!(fake.count("GET", "/_synapse/admin/v1/rooms/"), 30);
    set(&program, "video/*", "image/*");
    let internal = Trouble::Synapse(500, "M_UNKNOWN", "Internal server error");
    fake.fault(Fault::new("GET", "/_synapse/admin/v1/rooms/!room7", internal).always());
    let output = program.run(&["run", "purge", "--apply", "--json"]).await;
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(figures(&report), "failed: null/0/0/0/null");
    assert_eq!(fake.count("DELETE", ""), 0);
}

// Guards and rounds.

#[tokio::test]
async fn max_changes_and_at_most_count_files() {
    let (fake, program) = fake_with_old_files(10, "max_changes = 9\n");
    let refused = program.run(&["run", "purge", "--apply", "--json"]).await;
    let report: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(figures(&report), "refused: 10/0/0/0/10");
    assert_eq!(fake.count("DELETE", ""), 0);
    set(&program, "max_changes = 9", "at_most = 7");
    let part = program.apply("purge").await;
    assert_eq!(figures(&part), "succeeded: 7/7/0/0/3");
    assert_eq!((&part["bytes_planned"], &part["bytes_freed"]), (&json!(70), &json!(70)));
    assert_eq!(part["sample"][0]["files"], 7);
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 3/3/0/0/0");
    assert_eq!(fake.world(|world| world.files().len()), 0);
}

#[tokio::test]
async fn a_round_goes_on_account_by_account_and_deletes_in_each_run() {
    let fake = Fake::start();
    fake.world(|world| {
        for account in 0..6 {
            let owner = format!("@user{account}:fake.test");
            world.user(&owner);
            for n in 0..3 {
                world.media(&owner, &format!("file{account}{n}"), 10, LONG_AGO_MS + n, None);
            }
        }
    });
    let job = format!("{JOB}media_types = [\"image/*\"]\nat_most = 6\n");
    let program = Program::new(&fake.url(), TOKEN, &job);
    for (run, read) in [(1, 2), (2, 4), (3, 6)] {
        let report = program.apply("purge").await;
        assert_eq!(
            (&report["done"], &report["outcome"]),
            (&json!(6), &json!("succeeded")),
            "{report}"
        );
        assert_eq!(
            (&report["round"]["read"], &report["round"]["total"].as_u64().is_some()),
            (&json!(read), &true),
            "run {run}: {report}"
        );
    }
    assert_eq!(fake.world(|world| world.files().len()), 0);
}

#[tokio::test]
async fn an_approved_plan_deletes_its_files_and_no_others() {
    let (fake, program) = fake_with_old_files(5, "mode = \"approve\"\n");
    let plan = program.json(&["run", "purge", "--json"]).await;
    assert_eq!((&plan["planned"], &plan["approval"]["state"]), (&json!(5), &json!("pending")));
    assert_eq!(fake.count("DELETE", ""), 0);
    fake.world(|world| {
        world.media("@alice:fake.test", "another", 10, LONG_AGO_MS, None);
        world.file_mut("file0003").unwrap().protected = true;
    });
    let daemon = program.serve().await;
    let approved = program.run(&["approve", &plan["id"].to_string()]).await;
    assert_eq!(approved.code, 0, "{approved:?}");
    until("the end", 20, async || program.ended("purge").await.len() == 2).await;
    daemon.stop().await;
    let run = &program.json(&["runs", "--json"]).await[0];
    assert_eq!(figures(run), "succeeded: 4/4/0/0/1", "{run}");
    assert_eq!((&run["trigger"], &run["bytes_freed"]), (&json!("approval"), &json!(40)));
    assert_eq!(
        fake.world(|world| world.files().keys().cloned().collect::<Vec<_>>()),
        ["another", "file0003"]
    );
}

// Faults.

#[tokio::test]
async fn a_lost_response_is_asked_for_again_and_a_file_that_is_gone_is_done() {
    for trouble in
        [Trouble::CutBefore, Trouble::CutAfter, Trouble::BrokenJson, Trouble::ProxyAfter(504)]
    {
        let (fake, program) = fake_with_old_files(8, "retries = { first_delay = \"1s\" }\n");
        fake.fault(Fault::new("DELETE", FILES, trouble.clone()).after(2));
        let report = program.apply("purge").await;
        assert_eq!(figures(&report), "succeeded: 8/8/0/0/0", "{trouble:?}: {report}");
        assert_eq!(report["bytes_freed"], 80, "{trouble:?}");
        assert_eq!(fake.world(|world| world.files().len()), 0);
        let listed = program.run(&["runs", "show", "1", "--media"]).await.stdout;
        assert_eq!(listed.lines().collect::<BTreeSet<_>>().len(), 8, "{trouble:?}: {listed}");
    }
}

#[tokio::test]
async fn one_file_that_cannot_be_deleted_does_not_keep_the_others() {
    let (fake, program) = fake_with_old_files(10, "");
    fake.world(|world| world.file_mut("file0004").unwrap().stuck = true);
    let output = program.run(&["run", "purge", "--apply", "--json"]).await;
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((output.code, figures(&report)), (1, "partial: 10/9/1/0/0".to_owned()));
    assert_eq!(report["bytes_freed"], 90);
}

#[tokio::test]
async fn kill_9_in_the_middle_leads_to_the_same_result_as_no_kill() {
    let (fake, program) = fake_with_old_files(40, "");
    let release = Arc::new(Semaphore::new(0));
    fake.fault(Fault::new("DELETE", FILES, Trouble::Held(Arc::clone(&release))).after(15).always());
    let mut child = program.command(&["run", "purge", "--apply", "--json"]).spawn().unwrap();
    until("deletions that hang", 20, async || fake.count("DELETE", FILES) == 19).await;
    child.kill().await.unwrap();
    release.add_permits(1000);
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "succeeded: 21/21/0/0/0");
    assert_eq!(fake.world(|world| world.files().len()), 0);
    let runs = program.json(&["runs", "--json"]).await;
    assert_eq!(figures(&runs[1]), "interrupted: 40/15/4/0/21", "{}", runs[1]);
    assert_eq!(fake.complaints(), [""; 0]);
}

#[tokio::test]
async fn a_bulk_purge_waits_for_the_end_of_one_that_deletes_file_by_file() {
    let (fake, program) = fake_with_old_files(30, "");
    let bulk = "[jobs.bulk]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\n";
    program.write("microglia.toml", &format!("{}{bulk}", program.read("microglia.toml")));
    set(&program, "url = ", "max_concurrent_runs = 2\nurl = ");
    fake.world(|world| world.latency = Duration::from_millis(20));
    let exact = program.apply("purge");
    let later = async {
        until("a deletion", 20, async || fake.count("DELETE", FILES) > 0).await;
        program.apply("bulk").await
    };
    let (exact, bulk) = join(exact, later).await;
    assert_eq!(figures(&exact), "succeeded: 30/30/0/0/0");
    assert_eq!(figures(&bulk), "succeeded: 0/0/0/0/0");
    assert_eq!(fake.complaints(), [""; 0]);
}

#[tokio::test]
async fn a_homeserver_that_cannot_be_asked_about_a_file_is_refused() {
    let (fake, program) = fake_with_old_files(3, "");
    fake.world(|world| world.version = "1.139.2".to_owned());
    let report = program.apply("purge").await;
    assert_eq!(figures(&report), "refused: null/0/0/0/null");
    let why = "files can only be chosen one by one with Synapse 1.140 or later, this is 1.139.2: upgrade Synapse, or remove the keys that choose files";
    assert_eq!(report["message"], why);
    let checked = program.run(&["check", "--online"]).await;
    assert!(checked.stdout.contains(why), "{checked:?}");
    set(&program, "media_types", "#");
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 3/3/0/0/0");
}

#[tokio::test]
async fn keys_that_can_select_nothing_are_errors_and_one_without_effect_is_warned_of() {
    let program = Program::with_config(&format!(
        "[homeservers.a]\nurl = \"http://127.0.0.1:1\"\naccess_token = \"a\"\n{JOB}media_types = [\"image\"]\nupload_names = []\nusers = [\"alice\"]\naccounts = [\"dormant\"]\n"
    ));
    let errors = program.run(&["check"]).await;
    insta::assert_snapshot!(errors.stderr.replace(&program.path("").display().to_string(), ""), @r#"
    error: microglia.toml:7:16: "image" cannot match any media type: expected a type or a glob such as "image/*"
        7 | media_types = ["image"]
          |                ^^^^^^^
    microglia.toml:8:16: the list is empty: add at least one item
        8 | upload_names = []
          |                ^^
    microglia.toml:9:10: "alice" cannot match any user: expected a Matrix id, or a glob over whole Matrix ids, that starts with `@` or `*`, such as "@alice:example.com" or "@bot-*"
        9 | users = ["alice"]
          |          ^^^^^^^
    microglia.toml:10:13: invalid value "dormant": expected one of active, deactivated, locked
       10 | accounts = ["dormant"]
          |             ^^^^^^^^^
    microglia.toml: 4 errors
    "#);
    let program = Program::with_config(&format!(
        "[homeservers.a]\nurl = \"http://127.0.0.1:1\"\naccess_token = \"a\"\n{JOB}batch_files = 500\nexcept_users = []\n"
    ));
    let warned = program.run(&["check"]).await;
    insta::assert_snapshot!(warned.stderr.replace(&program.path("").display().to_string(), ""), @r"
    warning: microglia.toml:7:15: `batch_files` has no effect: other keys of this job choose files one by one
        7 | batch_files = 500
          |               ^^^
    ");
}

// Helpers.

async fn old(synapse: &Synapse, account: &Account, bytes: usize, media_type: &str) -> String {
    // Quarantine is by content, too.
    let mut content = format!("{}{media_type}", synapse.requests().len()).into_bytes();
    content.resize(bytes, b'x');
    let id = synapse.upload(account, &content).await;
    synapse.age_media(&id, 400, None).await;
    let typed = "UPDATE local_media_repository SET media_type";
    synapse.sql(&format!("{typed} = '{media_type}' WHERE media_id = '{id}'")).await;
    id
}

/// Old images of all sorts that users and rooms refer to.
async fn files_in_use(synapse: &Synapse, alice: &Account) -> Vec<(&'static str, String)> {
    let room = synapse.create_room(alice, json!({"preset": "public_chat"})).await;
    let mut files = Vec::new();
    for why in [
        "user's avatar",
        "avatar of a room",
        "thumbnail of a room's avatar",
        "avatar in a room",
        "sticker",
        "avatar of a locked user",
    ] {
        files.push((why, old(synapse, alice, 10, "image/png").await));
    }
    let uri = |index: usize| format!("mxc://hs.test/{}", files[index].1);
    synapse.set_avatar(alice, &files[0].1).await;
    let avatar = json!({"url": uri(1), "info": {"thumbnail_url": uri(2)}});
    let member = json!({"membership": "join", "avatar_url": uri(3)});
    let pack = json!({"images": {"cat": {"url": uri(4)}}});
    let state = format!("/_matrix/client/v3/rooms/{}/state", encoded(&room));
    let member_event = format!("m.room.member/{}", encoded(&alice.user_id));
    for (event, content) in
        [("m.room.avatar", avatar), (&member_event, member), ("im.ponies.room_emotes/pack", pack)]
    {
        let path = format!("{state}/{event}");
        let (status, answer) = synapse.client(alice, Method::PUT, &path, content).await;
        assert_eq!(status, 200, "{event}: {answer}");
    }
    let locked = synapse.register("locked").await;
    synapse.set_avatar(&locked, &files[5].1).await;
    synapse.lock(&locked.user_id).await;
    files
}

/// A homeserver with this many old files of ten bytes, and a program with a job that purges images.
fn fake_with_old_files(count: usize, keys: &str) -> (Fake, Program) {
    let fake = Fake::start();
    fake.world(|world| {
        world.user("@alice:fake.test");
        for (n, created_ms) in (LONG_AGO_MS..).step_by(1000).take(count).enumerate() {
            world.media("@alice:fake.test", &format!("file{n:04}"), 10, created_ms, None);
        }
    });
    let job = format!("{JOB}media_types = [\"image/*\"]\n{keys}");
    let program = Program::new(&fake.url(), TOKEN, &job);
    (fake, program)
}

/// Changes the config.
fn set(program: &Program, from: &str, to: &str) {
    let config = program.read("microglia.toml");
    assert!(config.contains(from), "no {from:?} in {config}");
    program.write("microglia.toml", &config.replacen(from, to, 1));
}
