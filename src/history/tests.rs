use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use proptest::prelude::*;
use secrecy::SecretString;
use sqlx::{Executor, Row};

use super::columns::{query, values};
use super::database::work;
use super::interrupted::{COUNT, LAST_OF_JOB_AND_MODE, UNENDED, UNENDED_OF_JOB};
use super::overview::{NEXT_KIND, PLAN_BEFORE, TOTALS, find_runs_sql};
use super::postgres_server;
use super::runs::{NEWEST_OF_JOB, NEWEST_ON, Standing, last_of_each_job_sql, standings_sql};
use super::state_dir::StateDir;
use super::{DatabaseUrl, History, OutcomeFilter, Place, RunFilter, leases, retention};
use crate::plan::report::{Mode, Outcome, Report, Trigger};
use crate::values::clock::{Clock, Timestamp};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// A recorded run; its id is its place in the list, from 1.
#[derive(Debug, Clone)]
struct Recorded {
    job: String,
    mode: Mode,
    cause: Trigger,
    outcome: Option<Outcome>,
    started_ms: i64,
}

fn recorded() -> impl Strategy<Value = Recorded> {
    let outcomes: Vec<Option<Outcome>> =
        Outcome::ALL.iter().copied().map(Some).chain([None]).collect();
    (
        prop::sample::select(vec!["a", "b", "c@main", "gone"]),
        prop::sample::select(Mode::ALL),
        prop::sample::select(Trigger::ALL),
        prop::sample::select(outcomes),
        0_i64..1000,
    )
        .prop_map(|(job, mode, cause, outcome, started_ms)| Recorded {
            job: job.to_owned(),
            mode,
            cause,
            outcome,
            started_ms,
        })
}

/// The databases that every test runs on.
#[derive(Debug, Clone, Copy)]
enum On {
    Sqlite,
    Postgres,
}

fn postgres() -> Place {
    let url = SecretString::from(postgres_server::database());
    DatabaseUrl::parse(&url).unwrap().into()
}

/// A separate history with these runs, in which all jobs but `gone` are known.
async fn history(on: On, runs: &[Recorded]) -> (tempfile::TempDir, History) {
    let dir = tempfile::tempdir().unwrap();
    let place = match on {
        On::Sqlite => Place::from(&StateDir::open(dir.path()).unwrap()),
        On::Postgres => postgres(),
    };
    let history = History::open(place, Clock::of(|| NOW)).await.unwrap();
    fill(&history, runs).await;
    (dir, history)
}

async fn fill(history: &History, runs: &[Recorded]) {
    let database = history.writable().unwrap();
    let filled = database.write(|connection| {
        work(async move {
            connection
                .execute("INSERT INTO jobs (name, schedule, since) VALUES ('a', '', 0), ('b', '', 0), ('c@main', '', 0)")
                .await?;
            if runs.is_empty() {
                return Ok(());
            }
            let sql = format!(
                "INSERT INTO runs (job, kind, homeserver, mode, cause, started_at, finished_at, outcome) {}",
                values(runs.len(), 8)
            );
            let mut statement = query(sqlx::AssertSqlSafe(sql));
            for run in runs {
                statement = statement
                    .bind(run.job.clone())
                    .bind(kind_of(run))
                    .bind("main")
                    .bind(run.mode.as_str())
                    .bind(run.cause.as_str())
                    .bind(run.started_ms)
                    .bind(run.outcome.map(|_| run.started_ms + 1))
                    .bind(run.outcome.map(Outcome::as_str));
            }
            statement.execute(connection).await?;
            Ok(())
        })
    });
    filled.await.unwrap();
}

fn kind_of(run: &Recorded) -> &'static str {
    if run.job == "a" { "request" } else { "join-rooms" }
}

/// How the jobs stand, by reading every run one after the other.
fn standings_by_reading(runs: &[Recorded]) -> BTreeMap<String, Standing> {
    let mut standings: BTreeMap<String, Standing> = BTreeMap::new();
    // What an undo restores is no work of the job.
    for run in runs.iter().filter(|run| run.cause != Trigger::Undo) {
        let standing = standings.entry(format!("{} {}", run.job, run.mode)).or_default();
        match run.outcome {
            Some(Outcome::Succeeded) => {
                let end = NOW + TimeDelta::milliseconds(run.started_ms + 1);
                // A plan that waits for approval is none; these runs say nothing of how much they planned.
                let last_success = Some(end).filter(|_| run.mode != Mode::Approve);
                *standing = Standing { last_success, failures: 0 };
            }
            Some(_) => standing.failures += 1,
            None => {}
        }
    }
    standings.retain(|_, standing| *standing != Standing::default());
    standings
}

/// The ids of the newest run of each key.
fn newest(runs: &[Recorded], key: impl Fn(&Recorded) -> Option<String>) -> BTreeMap<String, i64> {
    (1..).zip(runs).filter_map(|(id, run)| Some((key(run)?, id))).collect()
}

fn ids(reports: Vec<Report>) -> Vec<i64> {
    let mut ids: Vec<i64> = reports.into_iter().filter_map(|report| report.id).collect();
    ids.sort_unstable();
    ids
}

async fn as_computed_by_reading_every_run(on: On, runs: &[Recorded], forget_ms: i64) {
    let (_dir, history) = history(on, runs).await;
    let standings: BTreeMap<String, Standing> = history
        .standings()
        .await
        .unwrap()
        .into_iter()
        .map(|((job, mode), standing)| (format!("{job} {mode}"), standing))
        .collect();
    assert_eq!(standings, standings_by_reading(runs));
    let last: BTreeMap<String, i64> = history
        .last_runs()
        .await
        .unwrap()
        .into_iter()
        .map(|(job, report)| (job, report.id.unwrap()))
        .collect();
    assert_eq!(last, newest(runs, |run| Some(run.job.clone())));
    let of_mode = |run: &Recorded| format!("{} {}", run.job, run.mode);
    let last_of_mode = newest(runs, |run| Some(of_mode(run)));
    let mut interrupted: Vec<i64> = (1..)
        .zip(runs)
        .filter(|(id, run)| {
            last_of_mode[&of_mode(run)] == *id
                && run.outcome == Some(Outcome::Interrupted)
                && run.cause != Trigger::Manual
        })
        .map(|(id, _)| id)
        .collect();
    interrupted.sort_unstable();
    assert_eq!(ids(history.interrupted().await.unwrap()), interrupted);
    for job in [None, Some("a"), Some("gone")] {
        let mut newest: Vec<i64> = (1..)
            .zip(runs)
            .filter(|(_, run)| job.is_none_or(|job| run.job == job))
            .map(|(id, _)| id)
            .collect();
        newest.drain(..newest.len().saturating_sub(3));
        assert_eq!(ids(history.runs(job, 3).await.unwrap()), newest, "{job:?}");
    }
    as_shown_on_the_status_page(&history, runs, forget_ms).await;
    let succeeded =
        newest(runs, |run| (run.outcome == Some(Outcome::Succeeded)).then(|| of_mode(run)));
    let kept: Vec<i64> = (1..)
        .zip(runs)
        .filter(|(id, run)| {
            let stands = [&last_of_mode, &succeeded].map(|newest| newest.get(&of_mode(run)));
            run.outcome.is_none()
                || run.started_ms >= forget_ms
                || (run.job != "gone" && stands.contains(&Some(id)))
        })
        .map(|(id, _)| id)
        .collect();
    let gone = history.delete_runs_before(NOW + TimeDelta::milliseconds(forget_ms)).await.unwrap();
    assert_eq!(ids(history.runs(None, 1000).await.unwrap()), kept);
    assert_eq!(gone, (runs.len() - kept.len()) as u64);
}

async fn as_shown_on_the_status_page(history: &History, runs: &[Recorded], since_ms: i64) {
    let since = NOW + TimeDelta::milliseconds(since_ms);
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.started_ms >= since_ms && run.outcome.is_some()) {
        let (ended, succeeded) = sums.entry(kind_of(run)).or_default();
        *ended += 1;
        *succeeded += u64::from(run.outcome == Some(Outcome::Succeeded));
    }
    let totals = history.totals(since).await.unwrap();
    let found: Vec<(&str, (u64, u64))> = totals
        .iter()
        .map(|totals| (totals.kind.as_str(), (totals.runs, totals.succeeded)))
        .collect();
    assert_eq!(found, sums.into_iter().collect::<Vec<_>>());
    let marks = history.marks(&["a", "c@main", "unknown"], 5).await.unwrap();
    for job in ["a", "c@main", "b", "unknown"] {
        let of_job = || runs.iter().filter(|run| run.job == job && job != "b");
        let first = of_job().count().saturating_sub(5);
        let expected: Vec<_> =
            of_job().skip(first).map(|run| (run.mode, run.outcome, run.started_ms)).collect();
        let found = marks.get(job).into_iter().flatten();
        let found: Vec<_> = found
            .map(|mark| (mark.mode, mark.outcome, mark.started_at.timestamp_millis()))
            .collect();
        assert_eq!(found, expected, "{job}");
    }
    let filter = RunFilter {
        job: Some("a".to_owned()),
        homeserver: Some("main".to_owned()),
        mode: Some(Mode::Apply),
        outcome: Some(OutcomeFilter::Unsuccessful),
        since: Some(since),
        until: Some(since + TimeDelta::milliseconds(500)),
        before: Some(40),
    };
    let expected: Vec<i64> = (1..40)
        .zip(runs)
        .filter(|(_, run)| run.job == "a" && run.mode == Mode::Apply)
        .filter(|(_, run)| run.outcome.is_some_and(|outcome| outcome != Outcome::Succeeded))
        .filter(|(_, run)| (since_ms..since_ms + 500).contains(&run.started_ms))
        .map(|(id, _)| id)
        .collect();
    assert_eq!(ids(history.find_runs(&filter, 100).await.unwrap()), expected);
    let filter = RunFilter { outcome: Some(OutcomeFilter::UnderWay), ..RunFilter::default() };
    let under_way = runs.iter().filter(|run| run.outcome.is_none()).count();
    assert_eq!(history.find_runs(&filter, 100).await.unwrap().len(), under_way);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn queries_by_index_find_the_same_as_reading_every_run(
        runs in prop::collection::vec(recorded(), 0..60),
        forget_ms in 0_i64..1000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for on in [On::Sqlite, On::Postgres] {
            runtime.block_on(as_computed_by_reading_every_run(on, &runs, forget_ms));
        }
    }
}

/// The statements of a start and of listings, which must not become slower with each run.
fn statements() -> Vec<String> {
    let of_jobs = [NEWEST_OF_JOB, NEWEST_ON, LAST_OF_JOB_AND_MODE, UNENDED, UNENDED_OF_JOB, COUNT];
    of_jobs
        .into_iter()
        .chain([NEXT_KIND, TOTALS, PLAN_BEFORE])
        .map(str::to_owned)
        .chain([last_of_each_job_sql(), standings_sql()])
        .chain(retention::STATEMENTS.map(str::to_owned))
        .collect()
}

async fn explain(history: &History, sql: String, column: &str) -> Vec<String> {
    let database = history.writable().unwrap();
    let explained = database.write(|connection| {
        let sql = sql.clone();
        work(async move {
            let rows = connection.fetch_all(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await?;
            Ok(rows.iter().map(|row| row.try_get(column).unwrap()).collect())
        })
    });
    explained.await.unwrap()
}

#[tokio::test]
async fn no_query_at_start_or_for_a_list_reads_every_run() {
    let (_dir, history) = history(On::Sqlite, &[]).await;
    for statement in statements() {
        let plan = explain(&history, format!("EXPLAIN QUERY PLAN {statement}"), "detail").await;
        let reads_all = |step: &&String| step.starts_with("SCAN runs");
        assert_eq!(plan.iter().find(reads_all), None, "{statement}: {plan:#?}");
        assert!(plan.iter().any(|step| step.contains("runs")), "{statement}: {plan:#?}");
    }
}

#[tokio::test]
async fn the_sums_of_the_status_page_sort_nothing_and_rare_runs_are_found_by_their_index() {
    let (_dir, history) = history(On::Sqlite, &[]).await;
    let plan = async |sql: &str| {
        explain(&history, format!("EXPLAIN QUERY PLAN {sql}"), "detail").await.join("; ")
    };
    insta::assert_snapshot!(plan(TOTALS).await, @"SEARCH runs USING COVERING INDEX runs_by_kind (kind=? AND started_at>?)");
    insta::assert_snapshot!(plan(PLAN_BEFORE).await, @"SEARCH runs USING INDEX runs_by_job (job=? AND id<?)");
    let find = async |mode, outcome: Option<Outcome>| {
        let outcome = outcome.map(OutcomeFilter::Is);
        plan(&find_runs_sql(&RunFilter { mode, outcome, ..RunFilter::default() }, 50).0).await
    };
    let (apply, dry_run) = (Some(Mode::Apply), Some(Mode::DryRun));
    let failed = Some(Outcome::Failed);
    insta::assert_snapshot!(find(dry_run, None).await, @"SEARCH runs USING INDEX runs_by_mode_alone (mode=?)");
    insta::assert_snapshot!(find(dry_run, Some(Outcome::Succeeded)).await, @"SEARCH runs USING INDEX runs_by_mode_alone (mode=?)");
    insta::assert_snapshot!(find(None, failed).await, @"SEARCH runs USING INDEX runs_by_outcome_alone (outcome=?)");
    insta::assert_snapshot!(find(apply, failed).await, @"SEARCH runs USING INDEX runs_by_outcome_alone (outcome=?)");
}

/// Waits until some transaction waits for a lock.
async fn until_one_waits(url: &str) {
    let (_, name) = url.rsplit_once('/').unwrap();
    let waiting = "SELECT COUNT(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let start = Instant::now();
    while postgres_server::server().psql(name, waiting).1 != "1" {
        assert!(start.elapsed() < Duration::from_secs(20), "no transaction waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn records_of_a_run_hold_up_a_takeover_of_its_lease_and_no_renewal() {
    let url = postgres_server::database();
    let place = Place::from(DatabaseUrl::parse(&SecretString::from(url.clone())).unwrap());
    let open =
        async || History::open(place.clone(), Clock::of(|| NOW)).await.unwrap().into_replica();
    let (mine, other) = (&open().await, &open().await);
    let (ttl, database, url) = (Duration::from_mins(1), mine.writable().unwrap(), url.as_str());
    for homeserver in ["begins-a-run", "sends-a-change"] {
        assert!(mine.take_lease(homeserver, ttl).await.unwrap());
        let in_record = database.write(|connection| {
            work(async move {
                if homeserver == "begins-a-run" {
                    leases::term(connection, homeserver, mine.replica()).await?;
                } else {
                    let run = "INSERT INTO runs (job, kind, homeserver, mode, cause, started_at, lease, holder, term)
                        VALUES ('a', '', '', 'apply', 'manual', 0, $1, $2, 1) RETURNING id";
                    let run = query(run).bind(homeserver).bind(mine.replica());
                    let run = run.fetch_one(&mut *connection).await?.try_get("id")?;
                    leases::fence(connection, run).await?;
                }
                assert!(mine.extend_lease(homeserver, ttl).await?);
                mine.resign_leases(&[homeserver.to_owned()]).await?;
                let other = other.clone();
                let taking =
                    tokio::spawn(async move { other.take_lease(homeserver, ttl).await });
                until_one_waits(url).await;
                Ok(taking)
            })
        });
        let taking = in_record.await.unwrap();
        assert!(taking.await.unwrap().unwrap(), "{homeserver}");
    }
}

#[tokio::test]
async fn what_no_longer_exists_is_forgotten_and_nothing_else() {
    use crate::plan::facts::{Fact, Topic};
    for on in [On::Sqlite, On::Postgres] {
        let (_dir, history) = history(on, &[]).await;
        let fact = |topic, key: String| Fact { topic, key, value: "1".to_owned() };
        let rooms = || (0..5000).map(|room| format!("!{room}:hs"));
        let facts: Vec<Fact> = rooms()
            .map(|room| fact(Topic::EmptyRoom, room))
            .chain([fact(Topic::Ghost, "!0:hs".to_owned())])
            .collect();
        history.remember("hs", &facts).await.unwrap();
        history.remember("other", &facts[..1]).await.unwrap();
        let gone: Vec<String> = rooms().take(4999).collect();
        history.forget("hs", Topic::EmptyRoom, &gone).await.unwrap();
        let left = history.facts("hs", Topic::EmptyRoom).await.unwrap();
        assert_eq!(left.into_keys().collect::<Vec<_>>(), ["!4999:hs"], "{on:?}");
        assert_eq!(history.facts("hs", Topic::Ghost).await.unwrap().len(), 1);
        assert_eq!(history.facts("other", Topic::EmptyRoom).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_tenth_of_100_000_rooms_with_1_000_000_files_takes_10_mb() {
    use std::fmt::Write;

    use crate::plan::facts::{Fact, Topic};
    for (on, size) in [
        (
            On::Sqlite,
            "SELECT page_count * page_size AS size FROM pragma_page_count, pragma_page_size",
        ),
        (On::Postgres, "SELECT pg_total_relation_size('facts') AS size"),
    ] {
        let (_dir, history) = history(on, &[]).await;
        let mut rooms: Vec<usize> = (0..10_000).collect();
        fastrand::Rng::with_seed(1).shuffle(&mut rooms);
        // As `protect-media` stores them; other kinds need less.
        for rooms in rooms.chunks(200) {
            let facts = rooms.iter().map(|room| {
                let mut value = "120 1796000000000 .pa".to_owned();
                for file in 0..10 {
                    write!(value, " +{room:014}{file:010}").unwrap();
                }
                Fact { topic: Topic::MediaUses, key: format!("!{room:018}:example.com"), value }
            });
            history.remember("example.com", &facts.collect::<Vec<_>>()).await.unwrap();
        }
        let measured = history.read(|connection| {
            work(async move { Ok(query(size).fetch_one(connection).await?.try_get("size")?) })
        });
        let bytes: i64 = measured.await.unwrap();
        assert!(bytes <= 10_000_000, "{on:?}: {bytes}");
    }
}
