//! Plans that wait for a person: each is decided once, and an approved one is applied once.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::columns::{from_millis, query, storable, unsigned};
use super::error::Error;
use crate::plan::report::{ApprovalState, Report};
use crate::values::clock::Timestamp;

/// A plan that waits for a decision, or is approved and waits for its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingPlan {
    pub run: i64,
    pub job: String,
    pub is_approved: bool,
    /// What the job was when it planned.
    pub definition: String,
    /// The start of the run that planned, from which ages count back.
    pub planned_at: Timestamp,
    pub max_changes: Option<u32>,
    pub expires_at: Timestamp,
    /// Items that an interrupted run of the plan may have changed.
    pub attempted: u64,
}

/// What a person decided about a plan.
#[derive(Debug, Clone)]
pub struct Decision {
    pub state: ApprovalState,
    /// Completes "approved by".
    pub by: String,
    pub max_changes: Option<u32>,
}

/// The plan that a run applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub plan: i64,
    /// What the job is now: another definition claims nothing.
    pub definition: String,
    /// Who approves it by starting the run; `None` where it is approved already.
    pub by: Option<String>,
    /// The limit that is raised with that.
    pub max_changes: Option<u32>,
}

const WAIT: &str = "\
    UPDATE runs SET approval_state = 'pending', approval_expires_at = $2,
        approval_definition = $3, approval_starts = 0
    WHERE id = $1 AND approval_state IS NULL AND outcome IN ('succeeded', 'partial')";
/// `$2` is the newer plan.
const SUPERSEDE_OLDER: &str = "\
    UPDATE runs SET approval_state = 'superseded', approval_by = $3, approval_decided_at = $4
    WHERE job = $1 AND id < $2 AND approval_state = 'pending'";
const DECIDE: &str = "\
    UPDATE runs SET approval_state = $2, approval_by = $3, approval_decided_at = $4,
        approval_max_changes = $5
    WHERE id = $1 AND (approval_state = 'pending' AND approval_expires_at > $4
        OR approval_state = 'approved' AND approval_run IS NULL AND $2 = 'rejected')";
/// Two approved plans of a job that wait for its window are one too many.
const SUPERSEDE_UNSTARTED: &str = "\
    UPDATE runs SET approval_state = 'superseded', approval_by = $2, approval_decided_at = $3
    WHERE job = (SELECT job FROM runs WHERE id = $1) AND id <> $1 AND approval_state = 'approved'
        AND (approval_run IS NULL OR EXISTS (SELECT 1 FROM runs AS started
            WHERE started.id = runs.approval_run AND started.outcome = 'interrupted'))";
/// A plan whose run was cut off is applied once more.
const CLAIM: &str = "\
    UPDATE runs SET approval_state = 'approved', approval_run = $2,
        approval_starts = approval_starts + 1,
        approval_by = COALESCE(approval_by, $4),
        approval_decided_at = COALESCE(approval_decided_at, $5),
        approval_max_changes = COALESCE(approval_max_changes, $6)
    WHERE id = $1 AND approval_definition = $3
        AND (approval_state = 'pending' AND approval_expires_at > $5
                AND CAST($4 AS TEXT) IS NOT NULL
            OR approval_state = 'approved' AND (approval_run IS NULL
                OR approval_starts < 2 AND EXISTS (SELECT 1 FROM runs AS started
                    WHERE started.id = runs.approval_run AND started.outcome = 'interrupted')))";
const EXPIRE: &str = "\
    UPDATE runs SET approval_state = 'expired', approval_decided_at = $1
    WHERE approval_state = 'pending' AND approval_expires_at <= $1 RETURNING id, job";
const SUPERSEDE: &str = "\
    UPDATE runs SET approval_state = 'superseded', approval_decided_at = $2, approval_detail = $3
    WHERE id = $1 AND (approval_state = 'pending'
        OR approval_state = 'approved' AND (approval_run IS NULL
            OR EXISTS (SELECT 1 FROM runs AS started
                WHERE started.id = runs.approval_run AND started.outcome = 'interrupted')))";
pub(super) const WAITING: &str = "\
    SELECT id, job, approval_state, approval_definition, approval_max_changes, started_at,
        approval_expires_at,
        COALESCE((SELECT started.done + started.failed FROM runs AS started
            WHERE started.id = runs.approval_run), 0) AS attempted
    FROM runs
    WHERE approval_state = 'pending' OR approval_state = 'approved' AND (approval_run IS NULL
        OR approval_starts < 2 AND EXISTS (SELECT 1 FROM runs AS started
            WHERE started.id = runs.approval_run AND started.outcome = 'interrupted'))
    ORDER BY id";

/// Has the plan of a run that ended wait for a decision.
pub(super) async fn wait(
    connection: &mut AnyConnection,
    run: i64,
    expires_at: Timestamp,
    definition: &str,
) -> Result<(), Error> {
    query(WAIT)
        .bind(run)
        .bind(expires_at.timestamp_millis())
        .bind(definition.to_owned())
        .execute(&mut *connection)
        .await?;
    Ok(())
}

/// Replaces the older plans of a job that wait for a decision.
pub(super) async fn supersede_older(
    connection: &mut AnyConnection,
    report: &Report,
    run: i64,
    now: Timestamp,
) -> Result<(), Error> {
    query(SUPERSEDE_OLDER)
        .bind(&report.job)
        .bind(run)
        .bind(format!("run {run}, which made a newer plan"))
        .bind(now.timestamp_millis())
        .execute(&mut *connection)
        .await?;
    Ok(())
}

/// Records a decision; whether it had an effect.
pub(super) async fn decide(
    connection: &mut AnyConnection,
    run: i64,
    decision: &Decision,
    now: Timestamp,
) -> Result<bool, Error> {
    let decided = query(DECIDE)
        .bind(run)
        .bind(decision.state.as_str())
        .bind(storable(&decision.by).into_owned())
        .bind(now.timestamp_millis())
        .bind(decision.max_changes.map(i64::from))
        .execute(&mut *connection)
        .await?;
    let has_effect = decided.rows_affected() > 0;
    if has_effect && decision.state == ApprovalState::Approved {
        supersede_unstarted(connection, run, &decision.by, now).await?;
    }
    Ok(has_effect)
}

/// Ends the wait of the other approved plans of a job.
async fn supersede_unstarted(
    connection: &mut AnyConnection,
    run: i64,
    by: &str,
    now: Timestamp,
) -> Result<(), Error> {
    query(SUPERSEDE_UNSTARTED)
        .bind(run)
        .bind(storable(by).into_owned())
        .bind(now.timestamp_millis())
        .execute(&mut *connection)
        .await?;
    Ok(())
}

/// Records which run applies a plan, and fails if that run must not.
pub(super) async fn claim(
    connection: &mut AnyConnection,
    claim: &Claim,
    run: i64,
    now: Timestamp,
) -> Result<(), Error> {
    let claimed = query(CLAIM)
        .bind(claim.plan)
        .bind(run)
        .bind(claim.definition.clone())
        .bind(claim.by.as_deref().map(storable).map(std::borrow::Cow::into_owned))
        .bind(now.timestamp_millis())
        .bind(claim.max_changes.map(i64::from))
        .execute(&mut *connection)
        .await?;
    if claimed.rows_affected() == 0 {
        return Err(Error::NotApproved { plan: claim.plan });
    }
    if let Some(by) = &claim.by {
        supersede_unstarted(connection, claim.plan, by, now).await?;
    }
    Ok(())
}

/// Ends the wait of plans that nobody decided about in time; returns their runs and jobs.
pub(super) async fn expire(
    connection: &mut AnyConnection,
    now: Timestamp,
) -> Result<Vec<(i64, String)>, Error> {
    let rows = query(EXPIRE).bind(now.timestamp_millis()).fetch_all(&mut *connection).await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("job")?))).collect()
}

/// Ends the wait of a plan that can no longer be applied; whether it waited.
pub(super) async fn supersede(
    connection: &mut AnyConnection,
    run: i64,
    why: &str,
    now: Timestamp,
) -> Result<bool, Error> {
    let superseded = query(SUPERSEDE)
        .bind(run)
        .bind(now.timestamp_millis())
        .bind(storable(why).into_owned())
        .execute(&mut *connection)
        .await?;
    Ok(superseded.rows_affected() > 0)
}

/// Returns the plans that wait, oldest first.
pub(super) async fn waiting(connection: &mut AnyConnection) -> Result<Vec<WaitingPlan>, Error> {
    let rows = query(WAITING).fetch_all(&mut *connection).await?;
    rows.iter().map(from_row).collect()
}

fn from_row(row: &AnyRow) -> Result<WaitingPlan, Error> {
    let max_changes: Option<i64> = row.try_get("approval_max_changes")?;
    Ok(WaitingPlan {
        run: row.try_get("id")?,
        job: row.try_get("job")?,
        is_approved: row.try_get::<&str, _>("approval_state")? == ApprovalState::Approved.as_str(),
        definition: row.try_get::<Option<String>, _>("approval_definition")?.unwrap_or_default(),
        planned_at: from_millis(row.try_get("started_at")?),
        max_changes: max_changes.and_then(|limit| u32::try_from(limit).ok()),
        expires_at: from_millis(row.try_get("approval_expires_at")?),
        attempted: unsigned(row.try_get("attempted")?),
    })
}
