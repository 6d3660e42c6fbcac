//! The program at a real big homeserver: Synapse's main process, two workers, PostgreSQL, Redis, and nginx before them.

use futures_util::future::{join, join_all};
use serde_json::json;

use crate::homeserver::Account;
use crate::homeserver::deployment::{Deployment, Part};
use crate::program::{Program, changes, figures, until};

/// Seconds that a busy machine may take.
const LIMIT: u64 = 300;
const MEDIA: &str = "[jobs.media]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\n";
const IDS: &str =
    "[jobs.ids]\nkind = \"remove-external-ids\"\naccounts = \"all\"\nproviders = [\"oidc-old\"]\n";

fn join_job(room_id: &str) -> String {
    format!("[jobs.join]\nkind = \"join-rooms\"\nrooms = [\"{room_id}\"]\n")
}

/// The program with the addresses of the main process and of the media worker.
fn program(homeserver: &Deployment, jobs: &str) -> Program {
    let (main, media) = (homeserver.url(Part::Main), homeserver.url(Part::Media));
    let rest = format!("media_url = \"{media}\"\n\n{jobs}");
    Program::new(&main, &homeserver.synapse.admin.token, &rest)
}

/// Uploads this many files, the first `old` of which were last used a year ago.
async fn upload(homeserver: &Deployment, owner: &Account, old: usize, new: usize) -> Vec<String> {
    let mut files = Vec::new();
    for number in 0..old + new {
        let file = homeserver.synapse.upload(owner, format!("file {number}").as_bytes()).await;
        if number < old {
            homeserver.synapse.age_media(&file, 365, None).await;
        }
        files.push(file);
    }
    files
}

/// Whether each of the files is there.
async fn there(homeserver: &Deployment, files: &[String]) -> Vec<bool> {
    join_all(files.iter().map(|file| homeserver.synapse.media_exists(file))).await
}

/// The ids in `oidc-old` by which somebody would be logged in at this process.
async fn logins(homeserver: &Deployment, part: Part, ids: &[String]) -> Vec<String> {
    let path = format!("/_test/logins?provider=oidc-old&id={}", ids.join("&id="));
    let (status, owners) = homeserver.get(part, &homeserver.synapse.admin, &path).await;
    assert_eq!(status, 200, "{part:?}: {owners}");
    let owner = |id: &&String| !owners[id.as_str()].is_null();
    ids.iter().filter(owner).cloned().collect()
}

/// Who is in the room, as the generic worker tells its creator.
async fn joined(homeserver: &Deployment, creator: &Account, room_id: &str) -> Vec<String> {
    let path = format!("/_matrix/client/v3/rooms/{room_id}/joined_members");
    let (status, members) = homeserver.get(Part::Client, creator, &path).await;
    assert_eq!(status, 200, "{members}");
    members["joined"].as_object().unwrap().keys().cloned().collect()
}

#[tokio::test]
#[ignore = "it needs nginx, which `apt-get install nginx-light` brings"]
async fn the_founding_jobs_work_through_the_workers_own_addresses_and_through_nginx() {
    let homeserver = Deployment::behind_nginx().await;
    let synapse = &homeserver.synapse;
    let creator = synapse.register("creator").await;
    for through in ["workers", "nginx"] {
        let public = json!({ "preset": "public_chat" });
        let room_id = synapse.create_room(&creator, public).await;
        let jobs = [MEDIA, IDS, &join_job(&room_id)].concat();
        let program = match through {
            "nginx" => Program::new(&synapse.url, &synapse.admin.token, &jobs),
            _ => program(&homeserver, &jobs),
        };
        let mut users = Vec::new();
        for number in 0..5 {
            let user = synapse.register(&format!("{through}{number}")).await;
            let (old, new) = (format!("{through}-old-{number}"), format!("{through}-{number}"));
            synapse.external_ids(&user.user_id, &[("oidc-old", &old), ("saml", &new)]).await;
            users.push(user);
        }
        let files = upload(&homeserver, &users[0], 6, 3).await;

        let media = program.apply("media").await;
        assert_eq!(figures(&media), "succeeded: 6/6/0/0/0", "{through}: {media}");
        let kept: Vec<bool> = (0..9).map(|number| number >= 6).collect();
        assert_eq!(there(&homeserver, &files).await, kept, "{through}");

        let ids = program.apply("ids").await;
        assert_eq!(figures(&ids), "succeeded: 5/5/0/0/0", "{through}: {ids}");
        for (number, user) in users.iter().enumerate() {
            let left = [("saml".to_owned(), format!("{through}-{number}"))];
            assert_eq!(synapse.external_ids_of(&user.user_id).await, left);
        }

        let before = joined(&homeserver, &creator, &room_id).await;
        assert_eq!(before, [creator.user_id.as_str()]);
        let join = program.apply("join").await;
        assert_eq!(join["outcome"], "succeeded", "{through}: {join}");
        let members = joined(&homeserver, &creator, &room_id).await;
        for user in &users {
            assert!(members.contains(&user.user_id), "{through}: {members:?} {join}");
        }
    }
}

#[tokio::test]
async fn a_removed_external_id_logs_nobody_in_at_any_process() {
    const ACCOUNTS: usize = 100;
    let homeserver = Deployment::without_nginx().await;
    let synapse = &homeserver.synapse;
    let ids: Vec<String> = (0..ACCOUNTS).map(|number| format!("id{number}")).collect();
    for (user_id, id) in synapse.register_many("user", ACCOUNTS).await.iter().zip(&ids) {
        synapse.external_ids(user_id, &[("oidc-old", id)]).await;
    }
    // Transactions that take their time overlap, if they can, and then end in another order than they began.
    synapse
        .sql(
            "CREATE FUNCTION take_time() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(random() * 0.06); RETURN NULL; END' LANGUAGE plpgsql;
            CREATE TRIGGER slow AFTER INSERT ON cache_invalidation_stream_by_instance FOR EACH ROW EXECUTE FUNCTION take_time()",
        )
        .await;
    for part in Part::ALL {
        assert_eq!(logins(&homeserver, part, &ids).await, ids, "{part:?}");
    }

    // With the limits that a configuration has if it names none.
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n\n[homeservers.main]\nurl = \"{}\"\nmedia_url = \"{}\"\naccess_token_file = \"token\"\n\n{IDS}",
        homeserver.url(Part::Main),
        homeserver.url(Part::Media),
    ));
    program.write("token", &synapse.admin.token);
    let report = program.apply("ids").await;
    assert_eq!(figures(&report), "succeeded: 100/100/0/0/0", "{report}");

    // The invalidations need a moment to reach the workers; one that was lost never does.
    for part in Part::ALL {
        until(&format!("{part:?} forgets"), LIMIT, async || {
            logins(&homeserver, part, &ids).await.is_empty()
        })
        .await;
    }
    for _ in 0..20 {
        for part in Part::ALL {
            assert_eq!(logins(&homeserver, part, &ids).await, [""; 0], "{part:?}");
        }
    }
}

#[tokio::test]
#[ignore = "it needs nginx, which `apt-get install nginx-light` brings"]
async fn a_media_worker_killed_in_the_middle_of_a_purge_loses_nothing_that_is_reported() {
    let mut homeserver = Deployment::behind_nginx().await;
    let owner = homeserver.synapse.register("owner").await;
    let files = upload(&homeserver, &owner, 30, 3).await;
    // A fifth of a second for each file.
    homeserver
        .synapse
        .sql(
            "CREATE FUNCTION take_time() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(0.2); RETURN OLD; END' LANGUAGE plpgsql;
            CREATE TRIGGER slow BEFORE DELETE ON local_media_repository FOR EACH ROW EXECUTE FUNCTION take_time()",
        )
        .await;
    let program = program(&homeserver, MEDIA);
    let run = program.apply("media");
    let outage = async {
        until("some files are gone", LIMIT, async || {
            there(&homeserver, &files).await.contains(&false)
        })
        .await;
        homeserver.kill(Part::Media);
        homeserver.start_again(Part::Media).await;
        there(&homeserver, &files).await
    };
    let (report, after_the_kill) = join(run, outage).await;
    assert!(after_the_kill[..30].contains(&true), "the purge was over before: {report}");
    assert_eq!(figures(&report), "succeeded: 30/30/0/0/0", "{report}");
    let kept: Vec<bool> = (0..33).map(|number| number >= 30).collect();
    assert_eq!(there(&homeserver, &files).await, kept);
    assert_eq!(figures(&program.apply("media").await), "succeeded: 0/0/0/0/0");
}

#[tokio::test]
#[ignore = "it needs nginx, which `apt-get install nginx-light` brings"]
async fn a_main_process_killed_in_the_middle_of_a_join_sweep_joins_nobody_twice() {
    const USERS: usize = 40;
    let mut homeserver = Deployment::behind_nginx().await;
    let creator = homeserver.synapse.register("creator").await;
    let users = homeserver.synapse.register_many("user", USERS).await;
    let public = json!({ "preset": "public_chat" });
    let room_id = homeserver.synapse.create_room(&creator, public).await;
    let job = format!("{}joins_per_second = 5\n", join_job(&room_id));
    let program = program(&homeserver, &job);
    let run = program.apply("join");
    let outage = async {
        until("some have joined", LIMIT, async || {
            joined(&homeserver, &creator, &room_id).await.len() > 10
        })
        .await;
        homeserver.kill(Part::Main);
        let at_the_kill = joined(&homeserver, &creator, &room_id).await;
        homeserver.start_again(Part::Main).await;
        at_the_kill
    };
    let (report, at_the_kill) = join(run, outage).await;
    assert!(at_the_kill.len() <= USERS, "the sweep was over before: {report}");
    assert_eq!(figures(&report), "succeeded: 40/40/0/0/0", "{report}");
    until("the generic worker knows all members", LIMIT, async || {
        joined(&homeserver, &creator, &room_id).await.len() == USERS + 1
    })
    .await;
    let recorded = changes(&program.json(&["runs", "show", "1", "--json"]).await);
    for user_id in &users {
        let synapse = &homeserver.synapse;
        assert_eq!(synapse.join_event_count(&room_id, user_id).await, 1, "{user_id}");
        let done = |change: &&String| change.starts_with(&format!("done {user_id} "));
        assert_eq!(recorded.iter().filter(done).count(), 1, "{user_id}: {recorded:#?}");
    }
    assert_eq!(figures(&program.apply("join").await), "succeeded: 0/0/0/0/0");
}

#[tokio::test]
#[ignore = "it needs nginx, which `apt-get install nginx-light` brings"]
async fn a_media_url_that_is_missing_or_wrong_is_named_in_the_error() {
    let homeserver = Deployment::behind_nginx().await;
    let owner = homeserver.synapse.register("owner").await;
    let files = upload(&homeserver, &owner, 1, 0).await;
    let wrong = format!("media_url = \"{}\"\n\n", homeserver.url(Part::Client));
    for media_url in ["", wrong.as_str()] {
        let rest = format!("{media_url}{MEDIA}");
        let token = &homeserver.synapse.admin.token;
        let program = Program::new(&homeserver.url(Part::Main), token, &rest);
        for report in [program.dry_run("media").await, program.apply("media").await] {
            assert_eq!(
                (&report["outcome"], &report["message"]),
                (
                    &json!("refused"),
                    &json!(
                        "GET /_synapse/admin/v1/users/@owner:hs.test/media: 404 M_UNRECOGNIZED: Unrecognized request. The process that responded does not serve this media endpoint: set `media_url` to the worker that does, or upgrade Synapse"
                    )
                )
            );
        }
        let check = program.run(&["check", "--online"]).await;
        let answer = "media endpoints: NO: not at this address: set media_url to the worker that serves them";
        assert!(check.code == 1 && check.stdout.contains(answer), "{check:?}");
    }
    assert_eq!(there(&homeserver, &files).await, [true]);
}
