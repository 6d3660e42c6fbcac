//! The daemon killed by kill -9: no change is lost, none is made twice, and the next start finishes the work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::fake::{CLIENT_ID, CLIENT_SECRET, Fault, Provider, Seen, TOKEN, Trouble};
use crate::homeserver::Synapse;
use crate::program::until;

const DELETE: &str = "/_synapse/admin/v1/media/delete";
/// The detail of a change that was in progress when its run was killed.
const UNKNOWN: &str = "microglia exited before the response arrived: the change may have been made";

/// What of a run's changes the history knows as made.
async fn made(program: &Program, id: &str) -> Vec<String> {
    let run = program.json(&["runs", "show", id, "--json"]).await;
    let done = run["changes"].as_array().unwrap().iter().filter(|change| change["state"] == "done");
    done.map(|change| change["target"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn kill_9_during_joins_loses_no_change_and_joins_nobody_twice() {
    let fake = with_lobby(60);
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 30, &hourly()));
    was_down(&program).await;
    let daemon = program.serve().await;
    until("some joins", 20, async || joined(&fake) >= 10).await;
    daemon.kill().await;
    let daemon = program.serve().await;
    let (so_far, known) = (fake.count("POST", JOIN), made(&program, "1").await.len());
    until("the rest", 20, async || program.ended("lobby").await.len() == 2).await;
    daemon.stop().await;
    assert_eq!(program.ended("lobby").await, ["catch-up interrupted", "catch-up succeeded"]);
    assert_eq!((joined(&fake), fake.count("POST", JOIN)), (60, 60));
    assert!(known >= 9 && known <= so_far, "{known} known");
    let mut all = [made(&program, "1").await, made(&program, "2").await].concat();
    all.sort();
    all.dedup();
    // The one in flight may be known as neither.
    assert!(all.len() >= 59, "{}", all.len());
}

#[tokio::test]
async fn kill_9_while_removing_external_ids_leads_to_the_same_result_as_no_kill() {
    let mut world = World::new();
    world.users(60, |number| {
        User::default()
            .external("saml", &format!("s{number}"))
            .external("oidc-keep", &format!("k{number}"))
    });
    world.latency = Duration::from_millis(15);
    let fake = Fake::of(world);
    let job = format!(
        "[jobs.ids]\nkind = \"remove-external-ids\"\nmode = \"apply\"\nproviders = [\"saml\"]\naccounts = \"all\"\n{}\n",
        hourly()
    );
    let program = Program::new(&fake.url(), TOKEN, &job);
    was_down(&program).await;
    let daemon = program.serve().await;
    let lost = || {
        fake.world(|world| world.users.values().filter(|user| user.external_ids.len() == 1).count())
    };
    until("some removals", 20, async || lost() >= 5).await;
    daemon.kill().await;
    let so_far = lost();
    let daemon = program.serve().await;
    let known = made(&program, "1").await.len();
    until("the rest", 30, async || program.ended("ids").await.len() == 2).await;
    daemon.stop().await;
    // Four at a time were in flight.
    assert!(known + 4 >= so_far && known <= so_far, "{known} of {so_far} known");
    assert_eq!(program.ended("ids").await, ["catch-up interrupted", "catch-up succeeded"]);
    fake.world(|world| {
        for (user_id, user) in
            world.users.iter().filter(|(user_id, _)| user_id.starts_with("@user"))
        {
            let left: Vec<&str> =
                user.external_ids.iter().map(|(provider, _)| provider.as_str()).collect();
            assert_eq!(left, ["oidc-keep"], "{user_id}");
        }
    });
}

#[tokio::test]
async fn after_kill_9_in_a_purge_no_other_call_is_sent_while_the_lost_one_may_be_in_progress() {
    let fake = Fake::start();
    fake.world(|world| {
        world.user("@a:fake.test");
        for number in 0_i64..300 {
            world
                .media(
                    "@a:fake.test",
                    &format!("file{number}"),
                    100,
                    1_600_000_000_000 + number,
                    None,
                )
                .bytes = Some(100);
        }
        world.time_per_file = Duration::from_millis(10);
    });
    let purge = format!(
        "[jobs.purge]\nkind = \"purge-local-media\"\nmode = \"apply\"\nolder_than = \"90d\"\n{}\n",
        hourly()
    );
    let program = Program::new(&fake.url(), TOKEN, &purge);
    was_down(&program).await;
    let daemon = program.serve().await;
    until("the purge", 20, async || fake.world(|world| world.files().len()) < 280).await;
    daemon.kill().await;
    let calls = fake.count("POST", "/_synapse/admin/v1/media/delete");
    let daemon = program.serve().await;
    until_log(&daemon, "was lost, Synapse continues regardless").await;
    assert_eq!(daemon.of_job("purge", "microglia_job_waiting", &[]).await, 1.0);
    assert_eq!(fake.count("POST", "/_synapse/admin/v1/media/delete"), calls);
    daemon.stop().await;
    assert_eq!(program.ended("purge").await, ["catch-up interrupted", "catch-up interrupted"]);
    // As if it had stood still for its minute.
    until("the lost call is over", 20, async || fake.world(|world| world.files().len()) <= 100)
        .await;
    program.sql("DELETE FROM media_calls").await;
    let daemon = program.serve().await;
    assert_eq!(program.run(&["run", "purge"]).await.code, 0);
    assert_eq!(fake.world(|world| world.files().len()), 0);
    daemon.stop().await;
    assert_eq!(fake.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn kill_9_during_joins_on_a_real_homeserver_joins_each_user_once() {
    let synapse = Synapse::start().await;
    let room =
        synapse.create_room(&synapse.admin, serde_json::json!({ "preset": "public_chat" })).await;
    let users = synapse.register_many("swept", 40).await;
    let job = format!(
        "[jobs.lobby]\nkind = \"join-rooms\"\nmode = \"apply\"\nrooms = [\"{room}\"]\njoins_per_second = 20\n{}\n",
        hourly()
    );
    let program = Program::new(&synapse.url, &synapse.admin.token, &job);
    was_down(&program).await;
    let daemon = program.serve().await;
    let joins = || synapse.requests().iter().filter(|line| line.contains(JOIN)).count();
    until("some joins", 20, async || joins() >= 10).await;
    daemon.kill().await;
    let daemon = program.serve().await;
    until("the rest", 30, async || program.ended("lobby").await.len() == 2).await;
    daemon.stop().await;
    assert_eq!(program.ended("lobby").await, ["catch-up interrupted", "catch-up succeeded"]);
    for user in &users {
        assert_eq!(synapse.join_event_count(&room, user).await, 1, "{user}");
    }
    let mut all = [made(&program, "1").await, made(&program, "2").await].concat();
    all.sort();
    all.dedup();
    // The one in flight may be known as neither.
    assert!(all.len() >= 39, "{all:#?}");
}

/// The users of a run's changes: of those that were made, and of those whose response was lost.
async fn named(program: &Program, run: usize) -> (BTreeSet<String>, BTreeSet<String>) {
    let shown = ["runs", "show", &run.to_string(), "--limit", "5000", "--json"];
    let run = program.json(&shown).await;
    let of = |fits: &dyn Fn(&Value) -> bool| -> BTreeSet<String> {
        let changes = run["changes"].as_array().unwrap().iter().filter(|change| fits(change));
        changes.map(|change| user_in(change["target"].as_str().unwrap())).collect()
    };
    let made = of(&|change| change["state"] == "done");
    let unknown = of(&|change| change["state"] == "failed" && change["detail"] == UNKNOWN);
    (made, unknown)
}

/// The number of a `user000123` in a path, a body or a target.
fn user_in(text: &str) -> String {
    let at = text.rfind("user0").unwrap_or_else(|| panic!("nobody in {text}"));
    text[at..at + 10].to_owned()
}

/// Random numbers of a seed that is shown when the test fails; `MICROGLIA_TEST_SEED` repeats it.
#[expect(clippy::disallowed_methods, reason = "the seed of a failed test is given by hand")]
#[expect(clippy::print_stderr, reason = "the test harness shows it when the test fails")]
fn random() -> fastrand::Rng {
    let given = std::env::var("MICROGLIA_TEST_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    eprintln!("MICROGLIA_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Kills a run again and again, at random times, and compares the homeserver's state with the history.
///
/// `user_of` is the user that a request changes, as in [`user_in`].
async fn killed_at_random(
    fake: &Fake,
    program: &Program,
    name: &str,
    user_of: impl Fn(&Seen) -> Option<String>,
    in_flight: usize,
) {
    let mut random = random();
    let mut seen: Vec<BTreeSet<String>> = Vec::new();
    let seen_since = |start: usize| {
        fake.requests()[start..].iter().filter_map(&user_of).collect::<BTreeSet<_>>()
    };
    for _ in 0..10 {
        let start = fake.requests().len();
        let mut run = program.command(&["run", name]).spawn().unwrap();
        let changes = random.usize(1..30);
        until("some changes", 60, async || seen_since(start).len() >= changes).await;
        tokio::time::sleep(Duration::from_micros(random.u64(0..20_000))).await;
        run.kill().await.unwrap();
        // What was on its way arrives.
        tokio::time::sleep(Duration::from_millis(200)).await;
        seen.push(seen_since(start));
    }
    let start = fake.requests().len();
    assert_eq!(program.run(&["run", name]).await.code, 0);
    seen.push(seen_since(start));
    let (mut made_so_far, mut unknown_in_all) = (BTreeSet::new(), 0);
    for (seen, run) in seen.iter().zip(1..) {
        let (made, unknown) = named(program, run).await;
        assert!(seen.is_subset(&(&made | &unknown)), "run {run}: {seen:?}, {made:?}, {unknown:?}");
        assert!(made.is_subset(seen), "run {run}: {made:?} of {seen:?}");
        assert!(unknown.len() <= in_flight, "run {run}: {unknown:?}");
        assert!(made.is_disjoint(&made_so_far), "run {run} made again what was made");
        made_so_far.extend(made);
        unknown_in_all += unknown.len();
    }
    assert!(unknown_in_all > 0, "no kill hit a change in progress: the test showed nothing");
}

/// Delays the responses to changes, so that a kill at a random time most likely hits one in progress.
fn mostly_in_flight(method: &str, path_prefix: &str) -> Fault {
    Fault::new(method, path_prefix, Trouble::Delay(Duration::from_millis(8))).always()
}

#[tokio::test]
async fn the_history_contains_every_removal_that_may_have_been_made_before_a_kill() {
    let mut world = World::new();
    world.users(500, |number| User::default().external("saml", &format!("s{number}")));
    world.latency = Duration::from_millis(4);
    let fake = Fake::of(world);
    fake.fault(mostly_in_flight("PUT", "/"));
    let job = "[jobs.ids]\nkind = \"remove-external-ids\"\nmode = \"apply\"\nproviders = [\"saml\"]\naccounts = \"all\"\n";
    let program = Program::new(&fake.url(), TOKEN, job);
    let removal = |seen: &Seen| (seen.method == "PUT").then(|| user_in(&seen.path));
    killed_at_random(&fake, &program, "ids", removal, 4).await;
    fake.world(|world| assert!(world.users.values().all(|user| user.external_ids.is_empty())));
}

#[tokio::test]
async fn the_history_contains_every_join_that_may_have_been_made_before_a_kill() {
    let fake = with_lobby(500);
    fake.world(|world| world.latency = Duration::from_millis(4));
    fake.fault(mostly_in_flight("POST", JOIN));
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 1000, ""));
    let join = |seen: &Seen| {
        (seen.method == "POST" && seen.path.starts_with(JOIN)).then(|| user_in(&seen.body))
    };
    killed_at_random(&fake, &program, "lobby", join, 1).await;
    assert_eq!((joined(&fake), fake.count("POST", JOIN)), (500, 500), "nobody was joined twice");
}

#[tokio::test]
async fn the_history_contains_every_link_that_may_have_been_removed_from_mas_before_a_kill() {
    const LINKS: &str = "/api/admin/v1/upstream-oauth-links/";
    let fake = Fake::start();
    let (public, internal) = fake.mas();
    let subjects: BTreeMap<String, String> = fake.world(|world| {
        world.latency = Duration::from_millis(2);
        let service = &mut world.auth_service;
        service.user("microglia");
        let google = Provider { human_name: Some("Google".to_owned()), ..Provider::default() };
        let provider = service.provider(google);
        let links = (0..500).map(|number| {
            let name = format!("user{number:06}");
            let user = service.user(&name);
            let at = Some("2026-01-01T00:00:00Z".to_owned());
            service.users.get_mut(&user).unwrap().deactivated_at = at;
            (service.link(&provider, &name, Some(&user)), name)
        });
        links.collect()
    });
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n[homeservers.main]\nurl = \"{}\"\nmax_requests_per_second = \"unlimited\"\n[homeservers.main.mas]\nurl = \"{}\"\nadmin_url = \"{}\"\nclient_id = \"{CLIENT_ID}\"\nclient_secret_file = \"mas-client-secret\"\naccount = \"microglia\"\n[jobs.ids]\nkind = \"remove-external-ids\"\nmode = \"apply\"\nproviders = [\"Google\"]\naccounts = \"deactivated\"\n",
        fake.url(),
        public.url(),
        internal.url()
    ));
    program.write("mas-client-secret", CLIENT_SECRET);
    let removal = |seen: &Seen| {
        let id = seen.path.strip_prefix(LINKS).filter(|_| seen.method == "DELETE")?;
        Some(subjects[id].clone())
    };
    killed_at_random(&fake, &program, "ids", removal, 4).await;
    let left = fake.world(|world| world.auth_service.links.len());
    assert_eq!((left, fake.count("DELETE", LINKS)), (0, 500), "no link is deleted twice");
}

const PURGE: &str =
    "[jobs.purge]\nkind = \"purge-local-media\"\nmode = \"apply\"\nolder_than = \"90d\"\n";

/// Old and young files of all sorts; a call over them takes seconds.
fn with_files() -> Fake {
    let mut world = World::new();
    world.user("@a:fake.test");
    for number in 0_i64..300 {
        let created =
            if number % 10 == 9 { now().timestamp_millis() } else { 1_600_000_000_000 + number };
        let file = world.media("@a:fake.test", &format!("file{number:03}"), 100, created, None);
        file.protected = number % 10 == 1;
        file.quarantined = number % 10 == 2;
        file.avatar = number % 10 == 3;
    }
    world.time_per_file = Duration::from_millis(10);
    Fake::of(world)
}

fn files(fake: &Fake) -> Vec<String> {
    fake.world(|world| world.files().keys().cloned().collect())
}

#[tokio::test]
async fn kill_9_in_a_purge_leads_to_the_same_result_once_the_lost_call_has_ended() {
    let (undisturbed, fake) = (with_files(), with_files());
    let program = Program::new(&undisturbed.url(), TOKEN, PURGE);
    assert_eq!(program.run(&["run", "purge"]).await.code, 0);
    let program = Program::new(&fake.url(), TOKEN, &format!("{PURGE}{}\n", hourly()));
    was_down(&program).await;
    let daemon = program.serve().await;
    until("the purge", 20, async || files(&fake).len() < 280).await;
    daemon.kill().await;
    assert_eq!(fake.count("POST", DELETE), 1);
    let (restarted, daemon) = (std::time::Instant::now(), program.serve().await);
    until("the next call", 120, async || fake.count("POST", DELETE) > 1).await;
    // Nothing vanished for a minute before it was sent.
    assert!(restarted.elapsed() > Duration::from_mins(1), "{:?}", restarted.elapsed());
    until("the end", 30, async || program.ended("purge").await.len() == 2).await;
    daemon.stop().await;
    assert_eq!(program.ended("purge").await, ["catch-up interrupted", "catch-up succeeded"]);
    assert_eq!(files(&fake), files(&undisturbed));
    assert!(!files(&fake).is_empty());
    let lost = program.json(&["runs", "show", "1", "--json"]).await;
    assert_eq!(
        (&lost["changes"][0]["state"], &lost["changes"][0]["detail"]),
        (&"failed".into(), &UNKNOWN.into()),
        "{lost}"
    );
}

#[tokio::test]
async fn a_purge_on_a_real_homeserver_is_finished_by_the_next_start_after_kill_9() {
    let synapse = Synapse::start().await;
    let owner = &synapse.register_many("hoarder", 1).await[0];
    let row =
        |name: String, created: i64| format!("('{name}', 'text/plain', {created}, 3, '{owner}')");
    let young = now().timestamp_millis();
    let rows: Vec<String> = (0..2000)
        .map(|number| row(format!("old{number:04}"), 1_600_000_000_000 + number))
        .chain((0..10).map(|number| row(format!("young{number}"), young)))
        .collect();
    let insert = "INSERT INTO local_media_repository (media_id, media_type, created_ts, media_length, user_id) VALUES";
    synapse.sql(&format!("{insert} {}", rows.join(", "))).await;
    let job = format!("{PURGE}max_changes = \"unlimited\"\n{}\n", hourly());
    let program = Program::new(&synapse.url, &synapse.admin.token, &job);
    was_down(&program).await;
    let left = async || {
        synapse.sql("SELECT COUNT(*) FROM local_media_repository").await[0][0].as_i64().unwrap()
    };
    let daemon = program.serve().await;
    until("the purge", 60, async || left().await < 2010).await;
    daemon.kill().await;
    assert!(left().await > 10, "it was over before the kill");
    let daemon = program.serve().await;
    until("the end", 180, async || program.ended("purge").await.len() == 2).await;
    daemon.stop().await;
    assert_eq!(program.ended("purge").await, ["catch-up interrupted", "catch-up succeeded"]);
    assert_eq!(left().await, 10);
    let kept =
        synapse.sql("SELECT COUNT(*) FROM local_media_repository WHERE media_id LIKE 'young%'");
    assert_eq!(kept.await[0][0], 10);
}

#[tokio::test]
async fn the_removal_of_external_ids_on_a_real_homeserver_is_finished_by_the_next_start_after_kill_9()
 {
    let synapse = Synapse::start().await;
    let users = synapse.register_many("linked", 60).await;
    for (number, user) in users.iter().enumerate() {
        let (gone, kept) = (format!("s{number}"), format!("k{number}"));
        synapse.external_ids(user, &[("saml", &gone), ("oidc-keep", &kept)]).await;
    }
    let job = format!(
        "[jobs.ids]\nkind = \"remove-external-ids\"\nmode = \"apply\"\nproviders = [\"saml\"]\naccounts = \"all\"\n{}\n",
        hourly()
    );
    let program = Program::new(&synapse.url, &synapse.admin.token, &job);
    was_down(&program).await;
    let left = async || {
        let count = "SELECT COUNT(*) FROM user_external_ids WHERE auth_provider = 'saml'";
        synapse.sql(count).await[0][0].as_i64().unwrap()
    };
    let daemon = program.serve().await;
    until("some removals", 60, async || left().await < 55).await;
    daemon.kill().await;
    assert!(left().await > 0, "it was over before the kill");
    let daemon = program.serve().await;
    until("the rest", 60, async || program.ended("ids").await.len() == 2).await;
    daemon.stop().await;
    assert_eq!(program.ended("ids").await, ["catch-up interrupted", "catch-up succeeded"]);
    for (number, user) in users.iter().enumerate() {
        let kept = ("oidc-keep".to_owned(), format!("k{number}"));
        assert_eq!(synapse.external_ids_of(user).await, [kept], "{user}");
    }
}
