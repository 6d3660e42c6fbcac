//! What the status page shows of the history: sums, the last runs of jobs, and filtered lists.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Row};

use super::changes::{self, Page};
use super::columns::{from_millis, query, unsigned, values};
use super::database::work;
use super::error::Error;
use super::reader::HistoryReader;
use super::runs;
use crate::plan::report::{ChangeRecord, Mode, Outcome, Report, State};
use crate::values::clock::Timestamp;

/// What the ended runs of a kind did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    pub kind: String,
    pub runs: u64,
    pub succeeded: u64,
    /// Items changed.
    pub done: u64,
    pub bytes_freed: u64,
}

/// A run as one mark among the last ones of its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunMark {
    pub mode: Mode,
    /// `None` until the run has ended.
    pub outcome: Option<Outcome>,
    pub planned: u64,
    pub done: u64,
    pub started_at: Timestamp,
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    pub job: Option<String>,
    pub homeserver: Option<String>,
    pub mode: Option<Mode>,
    pub outcome: Option<OutcomeFilter>,
    /// Runs that started at this time or later.
    pub since: Option<Timestamp>,
    /// Runs that started before this time.
    pub until: Option<Timestamp>,
    /// Runs that were recorded before this one.
    pub before: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeFilter {
    /// Without an end.
    UnderWay,
    Is(Outcome),
    /// Ended in any way but success.
    Unsuccessful,
}

/// Which changes of a run to list.
#[derive(Debug, Clone, Default)]
pub struct ChangeFilter {
    pub state: Option<State>,
    /// Part of the target, in any case; empty for all.
    pub text: String,
}

/// A page of the changes that a filter selects.
#[derive(Debug, Clone, Default)]
pub struct FoundChanges {
    pub changes: Vec<ChangeRecord>,
    /// The number of changes that the filter selects.
    pub total: u64,
}

/// How a plan differs from the one before.
#[derive(Debug, Clone)]
pub struct PlanDifference {
    /// The run that made the plan before.
    pub before: Report,
    pub new: Difference,
    pub gone: Difference,
}

/// The changes of one plan that another one does not contain.
#[derive(Debug, Clone, Default)]
pub struct Difference {
    pub changes: u64,
    pub items: u64,
    /// The first targets.
    pub first: Vec<String>,
}

/// A value of a filter.
pub(super) enum Bound {
    Text(String),
    Number(i64),
}

pub(super) const NEXT_KIND: &str = "SELECT MIN(kind) AS kind FROM runs WHERE kind > $1";
/// One kind at a time: to group them SQLite would sort all runs of the time in memory.
pub(super) const TOTALS: &str = "\
    SELECT COUNT(*) AS runs,
        CAST(COALESCE(SUM(CASE WHEN outcome = 'succeeded' THEN 1 ELSE 0 END), 0) AS BIGINT)
            AS succeeded,
        CAST(COALESCE(SUM(done), 0) AS BIGINT) AS done,
        CAST(COALESCE(SUM(bytes_freed), 0) AS BIGINT) AS freed
    FROM runs WHERE kind = $1 AND started_at >= $2 AND outcome IS NOT NULL";
/// The last runs of each job as one text: rows are several times as slow.
const MARKS: &str = "\
    SELECT runs.job, string_agg(CAST(runs.started_at AS TEXT) || ' ' || runs.mode || ' '
        || COALESCE(runs.outcome, '-') || ' ' || CAST(COALESCE(runs.planned, 0) AS TEXT) || ' '
        || CAST(runs.done AS TEXT), ',' ORDER BY runs.id) AS marks
    FROM names JOIN runs ON runs.job = names.job AND runs.id >= COALESCE((
        SELECT recent.id FROM runs AS recent WHERE recent.job = names.job
        ORDER BY recent.id DESC LIMIT 1 OFFSET $1), 0)
    GROUP BY runs.job";
pub(super) const PLAN_BEFORE: &str = "\
    SELECT * FROM runs WHERE job = $1 AND outcome = 'succeeded' AND mode <> 'apply' AND id < $2
    ORDER BY id DESC LIMIT 1";
const MISSING: &str = "\
    FROM changes WHERE run = $1 AND target NOT IN (SELECT target FROM changes WHERE run = $2)";
/// A change whose response was not recorded counts as planned outside the history.
const STATE: &str = "CASE WHEN state = 'making' THEN 'planned' ELSE state END";

/// How many jobs one statement reads the marks of.
const JOBS_PER_STATEMENT: usize = 500;
/// How many targets a [`Difference`] names.
const TARGETS_NAMED: i64 = 10;
impl HistoryReader {
    /// Returns what the runs since a time did, by kind.
    pub(crate) async fn totals(&self, since: Timestamp) -> Result<Vec<Totals>, Error> {
        self.read(|connection| work(totals(connection, since))).await
    }

    /// Returns the last runs of some jobs, oldest first.
    pub(crate) async fn marks(
        &self,
        jobs: &[&str],
        count: u32,
    ) -> Result<HashMap<String, Vec<RunMark>>, Error> {
        self.read(|connection| work(marks(connection, jobs, count))).await
    }

    /// Returns the runs that a filter selects without their changes, newest first.
    pub(crate) async fn find_runs(
        &self,
        filter: &RunFilter,
        limit: u32,
    ) -> Result<Vec<Report>, Error> {
        self.read(|connection| work(find_runs(connection, filter, limit))).await
    }

    /// Returns a run without its changes.
    pub(crate) async fn run_alone(&self, id: i64) -> Result<Option<Report>, Error> {
        self.read(|connection| work(runs::get(connection, id))).await
    }

    /// Returns a page of the changes of a run that a filter selects.
    pub(crate) async fn find_changes(
        &self,
        run: i64,
        filter: &ChangeFilter,
        page: Page,
    ) -> Result<FoundChanges, Error> {
        self.read(|connection| work(find_changes(connection, run, filter, page))).await
    }

    /// Returns how the plan of a run differs from the job's last dry run before it; `None` if there is none.
    pub(crate) async fn plan_difference(
        &self,
        job: &str,
        run: i64,
    ) -> Result<Option<PlanDifference>, Error> {
        self.read(|connection| work(plan_difference(connection, job, run))).await
    }
}

async fn totals(connection: &mut AnyConnection, since: Timestamp) -> Result<Vec<Totals>, Error> {
    let (mut found, mut last) = (Vec::new(), String::new());
    loop {
        let next = query(NEXT_KIND).bind(last).fetch_one(&mut *connection).await?;
        let Some(kind) = next.try_get::<Option<String>, _>("kind")? else { return Ok(found) };
        let sums = query(TOTALS).bind(kind.clone()).bind(since.timestamp_millis());
        let sums = sums.fetch_one(&mut *connection).await?;
        let runs = unsigned(sums.try_get("runs")?);
        if runs > 0 {
            found.push(Totals {
                kind: kind.clone(),
                runs,
                succeeded: unsigned(sums.try_get("succeeded")?),
                done: unsigned(sums.try_get("done")?),
                bytes_freed: unsigned(sums.try_get("freed")?),
            });
        }
        last = kind;
    }
}

async fn marks(
    connection: &mut AnyConnection,
    jobs: &[&str],
    count: u32,
) -> Result<HashMap<String, Vec<RunMark>>, Error> {
    let mut found = HashMap::new();
    for jobs in jobs.chunks(JOBS_PER_STATEMENT) {
        // The first placeholder is the count, which is the same for all names.
        let names = values(jobs.len() + 1, 1).replacen("($1), ", "", 1);
        let sql = format!("WITH names (job) AS ({names}) {MARKS}");
        let mut statement = query(AssertSqlSafe(sql)).bind(i64::from(count.max(1)) - 1);
        for job in jobs {
            statement = statement.bind((*job).to_owned());
        }
        let mut rows = statement.fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            let marks: Vec<RunMark> =
                row.try_get::<&str, _>("marks")?.split(',').filter_map(mark).collect();
            found.insert(row.try_get("job")?, marks);
        }
    }
    Ok(found)
}

fn mark(text: &str) -> Option<RunMark> {
    let mut parts = text.split(' ');
    let started_at = from_millis(parts.next()?.parse().ok()?);
    Some(RunMark {
        started_at,
        mode: parts.next()?.parse().ok()?,
        outcome: parts.next()?.parse().ok(),
        planned: parts.next()?.parse().ok()?,
        done: parts.next()?.parse().ok()?,
    })
}

async fn find_runs(
    connection: &mut AnyConnection,
    filter: &RunFilter,
    limit: u32,
) -> Result<Vec<Report>, Error> {
    let (sql, bound) = find_runs_sql(filter, limit);
    let rows = bind(query(AssertSqlSafe(sql)), bound).fetch_all(&mut *connection).await?;
    rows.iter().map(runs::from_row).collect()
}

/// The indexes of what is rare are chosen by conditions that the statement repeats.
pub(super) fn find_runs_sql(filter: &RunFilter, limit: u32) -> (String, Vec<Bound>) {
    let RunFilter { job, homeserver, mode, outcome, since, until, before } = filter;
    let (mut conditions, mut bound) = (Vec::new(), Vec::new());
    let mut add = |condition: &str, value: Bound| {
        bound.push(value);
        conditions.push(condition.replace('?', &format!("${}", bound.len())));
    };
    if let Some(job) = job {
        add("job = ?", Bound::Text(job.clone()));
    }
    if let Some(homeserver) = homeserver {
        add("homeserver = ?", Bound::Text(homeserver.clone()));
    }
    if let Some(mode) = mode {
        let rare = if *mode == Mode::Apply { "" } else { "mode <> 'apply' AND " };
        add(&format!("{rare}mode = ?"), Bound::Text(mode.to_string()));
    }
    match outcome {
        None => {}
        Some(OutcomeFilter::Is(outcome)) => {
            let is_common = *outcome == Outcome::Succeeded;
            let rare = if is_common { "" } else { "outcome <> 'succeeded' AND " };
            add(&format!("{rare}outcome = ?"), Bound::Text(outcome.to_string()));
        }
        Some(OutcomeFilter::Unsuccessful) => {
            add("outcome <> ?", Bound::Text(Outcome::Succeeded.to_string()));
        }
        Some(OutcomeFilter::UnderWay) => add("outcome IS NULL AND id > ?", Bound::Number(0)),
    }
    if let Some(since) = since {
        add("started_at >= ?", Bound::Number(since.timestamp_millis()));
    }
    if let Some(until) = until {
        add("started_at < ?", Bound::Number(until.timestamp_millis()));
    }
    if let Some(before) = before {
        add("id < ?", Bound::Number(*before));
    }
    // Both are the order of starts; the index on the time finds a time, and that on the id the newest.
    let order = match (since, until) {
        (None, None) => "id DESC",
        _ => "started_at DESC, id DESC",
    };
    add(&format!("1 = 1 ORDER BY {order} LIMIT ?"), Bound::Number(limit.into()));
    (format!("SELECT * FROM runs WHERE {}", conditions.join(" AND ")), bound)
}

fn bind(
    statement: Query<'_, Any, AnyArguments>,
    bound: Vec<Bound>,
) -> Query<'_, Any, AnyArguments> {
    bound.into_iter().fold(statement, |statement, value| match value {
        Bound::Text(text) => statement.bind(text),
        Bound::Number(number) => statement.bind(number),
    })
}

async fn find_changes(
    connection: &mut AnyConnection,
    run: i64,
    filter: &ChangeFilter,
    page: Page,
) -> Result<FoundChanges, Error> {
    let ChangeFilter { state, text } = filter;
    let (mut conditions, mut bound) = ("run = $1".to_owned(), vec![Bound::Number(run)]);
    if let Some(state) = state {
        bound.push(Bound::Text(state.to_string()));
        conditions.push_str(&format!(" AND {STATE} = ${}", bound.len()));
    }
    if !text.is_empty() {
        bound.push(Bound::Text(pattern(text)));
        conditions.push_str(&format!(" AND LOWER(target) LIKE ${} ESCAPE '!'", bound.len()));
    }
    let sql = format!("SELECT COUNT(*) AS total FROM changes WHERE {conditions}");
    let values = |bound: &[Bound]| -> Vec<Bound> { bound.iter().map(Bound::again).collect() };
    let counted =
        bind(query(AssertSqlSafe(sql)), values(&bound)).fetch_one(&mut *connection).await?;
    let sql = format!(
        "SELECT * FROM changes WHERE {conditions} ORDER BY seq LIMIT ${} OFFSET ${}",
        bound.len() + 1,
        bound.len() + 2
    );
    bound.extend([Bound::Number(page.limit.into()), Bound::Number(page.offset.into())]);
    let rows = bind(query(AssertSqlSafe(sql)), bound).fetch_all(&mut *connection).await?;
    let changes: Result<Vec<ChangeRecord>, Error> = rows.iter().map(changes::from_row).collect();
    Ok(FoundChanges { changes: changes?, total: unsigned(counted.try_get("total")?) })
}

impl Bound {
    fn again(&self) -> Self {
        match self {
            Self::Text(text) => Self::Text(text.clone()),
            Self::Number(number) => Self::Number(*number),
        }
    }
}

/// A pattern of LIKE that finds a text anywhere.
fn pattern(text: &str) -> String {
    let mut pattern = "%".to_owned();
    for c in text.chars().filter(|c| *c != '\0').flat_map(char::to_lowercase) {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

async fn plan_difference(
    connection: &mut AnyConnection,
    job: &str,
    run: i64,
) -> Result<Option<PlanDifference>, Error> {
    let row = query(PLAN_BEFORE).bind(job).bind(run).fetch_optional(&mut *connection).await?;
    let Some(before) = row.as_ref().map(runs::from_row).transpose()? else { return Ok(None) };
    let before_id = before.id.unwrap_or_default();
    let new = difference(connection, run, before_id).await?;
    let gone = difference(connection, before_id, run).await?;
    Ok(Some(PlanDifference { before, new, gone }))
}

/// What the plan of `run` contains and that of `other` does not.
async fn difference(
    connection: &mut AnyConnection,
    run: i64,
    other: i64,
) -> Result<Difference, Error> {
    let sql = format!(
        "SELECT COUNT(*) AS changes, CAST(COALESCE(SUM(count), 0) AS BIGINT) AS items {MISSING}"
    );
    let counted =
        query(AssertSqlSafe(sql)).bind(run).bind(other).fetch_one(&mut *connection).await?;
    let sql = format!("SELECT target {MISSING} ORDER BY seq LIMIT $3");
    let named = query(AssertSqlSafe(sql)).bind(run).bind(other).bind(TARGETS_NAMED);
    let rows: Vec<AnyRow> = named.fetch_all(&mut *connection).await?;
    let first: Result<Vec<String>, sqlx::Error> =
        rows.iter().map(|row| row.try_get("target")).collect();
    Ok(Difference {
        changes: unsigned(counted.try_get("changes")?),
        items: unsigned(counted.try_get("items")?),
        first: first?,
    })
}
