//! Several daemons on one PostgreSQL: everything is done by exactly one of them.

use super::database::Proxy;
use super::*;
use crate::fake::TOKEN;
use crate::postgres;
use crate::program::{on_postgres, until};

/// A replica with a state directory of its own, and these homeservers.
pub(crate) fn replica(url: &str, homeservers: &[(&str, &Fake)], jobs: &str) -> Program {
    let mut config = format!("[daemon]\nstate_dir = \"state\"\ndatabase_url = \"{url}\"\n\n");
    for (name, fake) in homeservers {
        config.push_str(&format!(
            "[homeservers.{name}]\nurl = \"{}\"\naccess_token_file = \"token\"\nmax_requests_per_second = \"unlimited\"\nmax_joins_per_second = \"unlimited\"\n\n",
            fake.url()
        ));
    }
    config.push_str(jobs);
    let program = Program::with_database(Some(url.to_owned()), &config);
    program.write("token", TOKEN);
    program
}

pub(crate) async fn database() -> String {
    tokio::task::spawn_blocking(postgres::database).await.unwrap()
}

/// Runs a statement in the database of a test.
pub(super) async fn sql(url: &str, statement: &str) -> String {
    let database = url.rsplit_once('/').unwrap().1.to_owned();
    let statement = statement.to_owned();
    let run = move || postgres::server().psql(&database, &statement);
    let (succeeded, output) = tokio::task::spawn_blocking(run).await.unwrap();
    assert!(succeeded, "{output}");
    output
}

/// How many homeservers a replica runs the jobs of.
pub(crate) async fn held(daemon: &Daemon) -> usize {
    let (_, metrics) = daemon.get("/metrics").await;
    let lines = metrics.lines().filter(|line| line.starts_with("microglia_homeserver_lease_held{"));
    lines.filter(|line| line.ends_with(" 1")).count()
}

const EVERY_SECOND: &str = "mode = \"apply\"\nschedule = \"* * * * * *\"";

#[tokio::test]
async fn two_replicas_run_each_occurrence_once_and_hand_over_at_sigterm() {
    if on_postgres() {
        return;
    }
    let fake = Fake::start();
    let url = database().await;
    let programs =
        [(); 2].map(|()| replica(&url, &[("main", &fake)], &ping("looks", EVERY_SECOND)));
    let first = programs[0].serve().await;
    let second = programs[1].serve().await;
    assert_eq!((held(&first).await, held(&second).await), (1, 0));
    until("some runs", 20, async || fake.count("GET", PING) > 3).await;
    first.stop().await;
    // What was not handed over would last for 15 s.
    until("the hand-over", 5, async || held(&second).await == 1).await;
    let so_far = fake.count("GET", PING);
    until("it goes on", 20, async || fake.count("GET", PING) > so_far + 2).await;
    let log = second.stop().await;
    assert!(log.contains("this replica runs the jobs on http://127.0.0.1"), "{log}");
    let doubled = "SELECT scheduled_for FROM runs GROUP BY scheduled_for HAVING COUNT(*) > 1";
    assert_eq!(sql(&url, doubled).await, "");
    let unended = "SELECT COUNT(*) FROM runs WHERE outcome IS NULL";
    assert_eq!(sql(&url, unended).await, "0");
    assert_eq!(sql(&url, "SELECT term FROM leases").await, "2");
}

#[tokio::test]
async fn what_a_replica_killed_in_mid_run_left_is_caught_up_by_another_which_repeats_nothing() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(200);
    let url = database().await;
    let programs =
        [(); 2].map(|()| replica(&url, &[("main", &fake)], &sweep("lobby", 20, &hourly())));
    programs[0].serve().await.stop().await;
    sql(&url, "UPDATE jobs SET since = since - 86400000, watermark = NULL").await;
    let first = programs[0].serve().await;
    let second = programs[1].serve().await;
    until("some joins", 20, async || joined(&fake) >= 10).await;
    assert_eq!(held(&second).await, 0);
    first.kill().await;
    until("the takeover", 20, async || held(&second).await == 1).await;
    until("the rest", 30, async || joined(&fake) == 200).await;
    until("the end", 20, async || programs[1].ended("lobby").await.len() == 2).await;
    assert_eq!(programs[1].ended("lobby").await, ["catch-up interrupted", "catch-up succeeded"]);
    assert_eq!(fake.count("POST", JOIN), 200, "nobody was joined twice");
    second.stop().await;
}

#[tokio::test]
async fn a_replica_that_was_frozen_sends_nothing_but_what_it_had_recorded() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(400);
    let url = database().await;
    let programs =
        [(); 2].map(|()| replica(&url, &[("main", &fake)], &sweep("lobby", 20, &hourly())));
    programs[0].serve().await.stop().await;
    sql(&url, "UPDATE jobs SET since = since - 86400000, watermark = NULL").await;
    let first = programs[0].serve().await;
    let second = programs[1].serve().await;
    until("some joins", 20, async || joined(&fake) >= 10).await;
    first.signal("STOP");
    until("the takeover", 30, async || held(&second).await == 1).await;
    until("more joins", 20, async || programs[1].runs("lobby").await.len() == 2).await;
    first.signal("CONT");
    until("it notices", 20, async || held(&first).await == 0).await;
    until("the rest", 60, async || joined(&fake) == 400).await;
    until("the end", 20, async || programs[1].ended("lobby").await.len() == 2).await;
    assert_eq!(programs[1].ended("lobby").await, ["catch-up interrupted", "catch-up succeeded"]);
    let joins = fake.count("POST", JOIN);
    assert!(joins == 400 || joins == 401, "{joins} joins of 400");
    let log = first.stop().await;
    assert!(log.contains("interrupted by the loss of the homeserver's lease"), "{log}");
    second.stop().await;
}

#[tokio::test]
async fn homeservers_spread_evenly_over_replicas_that_come_and_go() {
    if on_postgres() {
        return;
    }
    let fakes: Vec<Fake> = (0..6).map(|_| Fake::start()).collect();
    let names: Vec<String> = (0..6).map(|number| format!("hs{number}")).collect();
    let homeservers: Vec<(&str, &Fake)> =
        names.iter().map(String::as_str).zip(fakes.iter()).collect();
    let all = format!("homeserver = [\"{}\"]\n{EVERY_SECOND}", names.join("\", \""));
    let url = database().await;
    let programs = [(); 3].map(|()| replica(&url, &homeservers, &ping("looks", &all)));
    let first = programs[0].serve().await;
    assert_eq!(held(&first).await, 6);
    let second = programs[1].serve().await;
    until("an even spread", 30, async || held(&first).await == 3 && held(&second).await == 3).await;
    let third = programs[2].serve().await;
    until("an even spread", 30, async || {
        let held = [held(&first).await, held(&second).await, held(&third).await];
        held == [2, 2, 2]
    })
    .await;
    first.stop().await;
    until("an even spread", 30, async || held(&second).await == 3 && held(&third).await == 3).await;
    second.stop().await;
    third.stop().await;
    let doubled = "SELECT job, scheduled_for FROM runs GROUP BY 1, 2 HAVING COUNT(*) > 1";
    assert_eq!(sql(&url, doubled).await, "");
    let outcomes = sql(&url, "SELECT DISTINCT outcome FROM runs ORDER BY 1").await;
    assert!(["succeeded", "interrupted\nsucceeded"].contains(&&*outcomes), "{outcomes}");
}

#[tokio::test]
async fn a_pause_on_one_replica_holds_on_all() {
    if on_postgres() {
        return;
    }
    let fake = Fake::start();
    let url = database().await;
    let programs =
        [(); 2].map(|()| replica(&url, &[("main", &fake)], &ping("looks", EVERY_SECOND)));
    let first = programs[0].serve().await;
    let second = programs[1].serve().await;
    assert_eq!(programs[1].run(&["pause"]).await.code, 0);
    until_log(&first, "scheduled runs are paused").await;
    let so_far = fake.count("GET", PING);
    first.stop().await;
    until("the hand-over", 20, async || held(&second).await == 1).await;
    assert_eq!(fake.count("GET", PING), so_far);
    assert_eq!(programs[0].run(&["resume"]).await.code, 1, "there is no daemon");
    let first = programs[0].serve().await;
    assert_eq!(programs[0].run(&["resume"]).await.code, 0);
    until("it goes on", 20, async || fake.count("GET", PING) > so_far).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_run_of_the_command_line_does_not_work_beside_a_daemon_elsewhere() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(3);
    let url = database().await;
    let [with_daemon, without] =
        [(); 2].map(|()| replica(&url, &[("main", &fake)], &sweep("lobby", 50, "")));
    let daemon = with_daemon.serve().await;
    let refused = without.run(&["run", "lobby"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    let why = format!("(process {}) runs the jobs on main: run this command there", daemon.pid());
    assert!(refused.stderr.contains(&why), "{refused:?}");
    assert_eq!(joined(&fake), 0);
    daemon.stop().await;
    assert_eq!(without.run(&["run", "lobby"]).await.code, 0);
    assert_eq!(joined(&fake), 3);
    let terms = sql(&url, "SELECT term, expires_at <= now() FROM leases").await;
    assert_eq!(terms, "2|t");
}

#[tokio::test]
async fn a_replica_cut_off_from_the_database_stops_and_another_one_finishes() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(400);
    let url = database().await;
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let proxy = Proxy::start(postgres::server().socket(), usize::MAX / 2).await;
    let through = format!("postgresql://postgres@127.0.0.1:{}/{name}", proxy.port);
    let jobs = sweep("lobby", 20, &hourly());
    let cut = replica(&through, &[("main", &fake)], &jobs);
    let other = replica(&url, &[("main", &fake)], &jobs);
    cut.serve().await.stop().await;
    sql(&url, "UPDATE jobs SET since = since - 86400000, watermark = NULL").await;
    let first = cut.serve().await;
    let second = other.serve().await;
    until("some joins", 20, async || joined(&fake) >= 10).await;
    proxy.close();
    until("the takeover", 30, async || held(&second).await == 1).await;
    assert_eq!(held(&first).await, 0);
    until("the rest", 60, async || joined(&fake) == 400).await;
    until("the end", 20, async || other.ended("lobby").await.len() == 2).await;
    assert_eq!(other.ended("lobby").await[1], "catch-up succeeded");
    let joins = fake.count("POST", JOIN);
    assert!(joins == 400 || joins == 401, "{joins} joins of 400");
    first.kill().await;
    second.stop().await;
}

#[tokio::test]
async fn after_an_outage_of_the_database_the_work_goes_on_and_nothing_was_done_twice() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(300);
    let server =
        tokio::task::spawn_blocking(|| std::sync::Arc::new(postgres::Postgres::start())).await;
    let server = server.unwrap();
    let told = async |what: fn(&postgres::Postgres)| {
        let server = std::sync::Arc::clone(&server);
        tokio::task::spawn_blocking(move || what(&server)).await.unwrap();
    };
    let url = server.database();
    let jobs = sweep("lobby", 20, EVERY_SECOND);
    let jobs = jobs.replacen("mode = \"apply\"\n", "", 1);
    let programs = [(); 2].map(|()| replica(&url, &[("main", &fake)], &jobs));
    let first = programs[0].serve().await;
    let second = programs[1].serve().await;
    until("some joins", 20, async || joined(&fake) >= 10).await;
    told(postgres::Postgres::stop).await;
    until("leases end", 30, async || held(&first).await + held(&second).await == 0).await;
    assert!(joined(&fake) < 300);
    told(postgres::Postgres::start_again).await;
    until("one takes over", 40, async || held(&first).await + held(&second).await == 1).await;
    until("the rest", 60, async || joined(&fake) == 300).await;
    first.stop().await;
    second.stop().await;
    let joins = fake.count("POST", JOIN);
    assert!(joins <= 301, "{joins} joins of 300");
    let name = url.rsplit_once('/').unwrap().1.to_owned();
    let doubled = "SELECT scheduled_for FROM runs WHERE outcome <> 'interrupted' GROUP BY 1 HAVING COUNT(*) > 1";
    assert_eq!(server.psql(&name, doubled).1, "");
    let unended = "SELECT COUNT(*) FROM runs WHERE outcome IS NULL";
    assert_eq!(server.psql(&name, unended).1, "0");
}

#[tokio::test]
async fn a_run_keeps_its_lease_until_its_end_when_a_reload_moves_its_job_to_another_address() {
    if on_postgres() {
        return;
    }
    let (old, new) = (with_lobby(150), with_lobby(0));
    let url = database().await;
    let program = replica(&url, &[("main", &old)], &sweep("lobby", 20, ""));
    let daemon = program.serve().await;
    let run = program.command(&["run", "lobby", "--json"]).spawn().unwrap();
    until("some joins", 20, async || joined(&old) >= 10).await;
    edit(&program, &old.url(), &new.url());
    assert_eq!(program.run(&["reload"]).await.code, 0);
    let run = run.wait_with_output().await.unwrap();
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!((&report["outcome"], joined(&old)), (&"succeeded".into(), 150), "{report}");
    // Nothing runs there any more, and nothing is to.
    let free = "SELECT homeserver FROM leases WHERE expires_at <= now()";
    until("the old lease is left", 30, async || {
        sql(&url, free).await.contains(old.url().trim_start_matches("http://"))
    })
    .await;
    assert_eq!(held(&daemon).await, 1);
    daemon.stop().await;
}

#[tokio::test]
async fn a_lease_that_nobody_here_wants_is_not_looked_at_again_and_again() {
    if on_postgres() {
        return;
    }
    let fake = Fake::start();
    let url = database().await;
    let program = replica(&url, &[("main", &fake)], &ping("looks", EVERY_SECOND));
    program.serve().await.stop().await;
    let gone = "INSERT INTO leases (homeserver, holder, term, expires_at) VALUES ('http://gone', 'x', 1, now() - interval '1 day')";
    sql(&url, gone).await;
    let renewals = "CREATE TABLE renewals (at TIMESTAMPTZ); CREATE FUNCTION count_renewal() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO renewals VALUES (now()); RETURN NULL; END'; CREATE TRIGGER counted AFTER INSERT OR UPDATE ON replicas FOR EACH ROW EXECUTE FUNCTION count_renewal()";
    sql(&url, renewals).await;
    let daemon = program.serve().await;
    // Each second it looks for leases that became free, and at these moments it runs the job.
    until("many looks", 60, async || fake.count("GET", PING) >= 12).await;
    let seldom = "SELECT COUNT(*) * 2 < EXTRACT(EPOCH FROM MAX(at) - MIN(at)) + 4 FROM renewals";
    assert_eq!(sql(&url, seldom).await, "t", "renewals, of which one is due every 5 s");
    daemon.stop().await;
}
