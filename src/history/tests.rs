use std::collections::BTreeMap;

use chrono::TimeDelta;
use proptest::prelude::*;
use sqlx::{Executor, QueryBuilder, Row};

use super::interrupted::{COUNT, LAST_OF_JOB_AND_MODE, UNENDED, UNENDED_OF_JOB};
use super::runs::{NEWEST_OF_JOB, NEWEST_ON, Standing, last_of_each_job_sql, standings_sql};
use super::state_dir::StateDir;
use super::{History, retention};
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

/// A history of its own with these runs, and with all jobs but `gone` known.
async fn history(runs: &[Recorded]) -> (tempfile::TempDir, History) {
    let dir = tempfile::tempdir().unwrap();
    let history =
        History::open(&StateDir::open(dir.path()).unwrap(), Clock::of(|| NOW)).await.unwrap();
    let pool = history.writable().unwrap();
    pool.execute("INSERT INTO jobs (name, schedule, since) VALUES ('a', '', 0), ('b', '', 0), ('c@main', '', 0)")
        .await
        .unwrap();
    if !runs.is_empty() {
        QueryBuilder::new("INSERT INTO runs (job, kind, homeserver, mode, cause, started_at, finished_at, outcome) ")
            .push_values(runs, |mut row, run| {
                row.push_bind(&run.job)
                    .push_bind("request")
                    .push_bind("main")
                    .push_bind(run.mode.as_str())
                    .push_bind(run.cause.as_str())
                    .push_bind(run.started_ms)
                    .push_bind(run.outcome.map(|_| run.started_ms + 1))
                    .push_bind(run.outcome.map(Outcome::as_str));
            })
            .build()
            .execute(&pool)
            .await
            .unwrap();
    }
    (dir, history)
}

/// How the jobs stand, by reading every run one after the other.
fn standings_by_reading(runs: &[Recorded]) -> BTreeMap<String, Standing> {
    let mut standings: BTreeMap<String, Standing> = BTreeMap::new();
    for run in runs {
        let standing = standings.entry(format!("{} {}", run.job, run.mode)).or_default();
        match run.outcome {
            Some(Outcome::Succeeded) => {
                let end = NOW + TimeDelta::milliseconds(run.started_ms + 1);
                *standing = Standing { last_success: Some(end), failures: 0 };
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

async fn as_computed_by_reading_every_run(runs: &[Recorded], forget_ms: i64) {
    let (_dir, history) = history(runs).await;
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_by_index_is_what_reading_every_run_finds(
        runs in prop::collection::vec(recorded(), 0..60),
        forget_ms in 0_i64..1000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(as_computed_by_reading_every_run(&runs, forget_ms));
    }
}

#[tokio::test]
async fn no_statement_of_a_start_or_a_listing_reads_every_run() {
    let (_dir, history) = history(&[]).await;
    let pool = history.writable().unwrap();
    let statements =
        [NEWEST_OF_JOB, NEWEST_ON, LAST_OF_JOB_AND_MODE, UNENDED, UNENDED_OF_JOB, COUNT]
            .map(str::to_owned)
            .into_iter()
            .chain([last_of_each_job_sql(), standings_sql()])
            .chain(retention::STATEMENTS.map(str::to_owned));
    for statement in statements {
        let explain = format!("EXPLAIN QUERY PLAN {statement}");
        let rows = sqlx::query(sqlx::AssertSqlSafe(explain)).fetch_all(&pool).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.try_get("detail").unwrap()).collect();
        let reads_all = |step: &&String| step.starts_with("SCAN runs");
        assert_eq!(plan.iter().find(reads_all), None, "{statement}: {plan:#?}");
        assert!(plan.iter().any(|step| step.contains("runs")), "{statement}: {plan:#?}");
    }
}
