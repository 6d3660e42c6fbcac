//! The summary of everything since the last one.

use std::collections::{BTreeMap, HashMap};

use chrono::TimeDelta;

use super::compose::For;
use super::text::Part::{Bold, Link, Plain};
use super::text::{Text, Urgency};
use crate::history::{self, History, JobTotals, NewMessage};
use crate::observe::metrics::Metrics;
use crate::plan::notification::MessageEvent;
use crate::plan::report::Mode;
use crate::values::clock::Timestamp;
use crate::values::schedule::Schedule;
use crate::values::size::Size;
use crate::values::text::{format_count, format_number};

/// How many jobs a digest names.
const MAX_JOBS: usize = 40;
/// After that long in dry runs somebody may have forgotten to apply.
const LONG_DRY_RUN: TimeDelta = TimeDelta::days(14);

/// What a digest says of a job.
struct Line {
    job: String,
    /// Whether a person should look at it; those come first.
    is_problem: bool,
    text: String,
}

/// Makes the digest that is due, if one is.
pub(super) async fn make_due(
    history: &History,
    metrics: &Metrics,
    made_for: &For<'_>,
    schedule: &Schedule,
) -> Result<(), history::Error> {
    let name = &made_for.notification.name;
    let Some(since) = history.last_digest(name).await? else {
        // The first one tells of everything since now.
        return history.add_message(&digest(made_for, "start", None)).await;
    };
    let Some(due) = schedule.last(since, made_for.now, made_for.zone) else { return Ok(()) };
    let totals = history.job_totals(since).await?;
    let in_dry_run: Vec<String> = metrics
        .jobs
        .table()
        .iter()
        .filter(|(_, series)| series.mode == Mode::DryRun)
        .map(|(job, _)| job.clone())
        .collect();
    let dry_runs_since = history.dry_runs_since(&in_dry_run).await?;
    let lines = lines(metrics, made_for, &totals, &dry_runs_since);
    let content = text(made_for, since, &totals, lines).into_content(Urgency::Quiet, None);
    // The same on every replica.
    let subject = due.timestamp().to_string();
    history.add_message(&digest(made_for, &subject, Some(content))).await
}

fn digest(made_for: &For<'_>, subject: &str, content: Option<serde_json::Value>) -> NewMessage {
    NewMessage {
        notification: made_for.notification.name.clone(),
        event: MessageEvent::Digest,
        subject: subject.to_owned(),
        job: None,
        run: None,
        content,
    }
}

fn text(made_for: &For<'_>, since: Timestamp, totals: &[JobTotals], mut lines: Vec<Line>) -> Text {
    let mut text = Text::default();
    text.line(&[Bold(&format!("microglia: since {}", made_for.time(since)))]);
    let sum = |of: fn(&JobTotals) -> u64| totals.iter().map(of).sum::<u64>();
    let (runs, unsuccessful) = (sum(|job| job.runs), sum(|job| job.unsuccessful));
    text.line(&[Plain(&format!(
        "{} of {}, {} unsuccessful; {} changed{}",
        format_count(runs, "run", "runs"),
        format_count(totals.len() as u64, "job", "jobs"),
        format_number(unsuccessful),
        format_count(sum(|job| job.done), "item", "items"),
        match sum(|job| job.bytes_freed) {
            0 => String::new(),
            freed => format!(", {} freed", Size(freed)),
        },
    ))]);
    lines.sort_by(|a, b| (!a.is_problem, &a.job).cmp(&(!b.is_problem, &b.job)));
    for line in lines.iter().take(MAX_JOBS) {
        text.item(&[Bold(&line.job), Plain(": "), Plain(&line.text)]);
    }
    if let Some(more @ 1..) = lines.len().checked_sub(MAX_JOBS) {
        text.line(&[Plain(&format!("and {}", format_count(more as u64, "more job", "more jobs")))]);
    }
    if let Some(url) = made_for.public_url {
        text.line(&[Link { text: "status page", url: url.as_str() }]);
    }
    text
}

fn lines(
    metrics: &Metrics,
    made_for: &For<'_>,
    totals: &[JobTotals],
    dry_runs_since: &HashMap<String, Timestamp>,
) -> Vec<Line> {
    let mut totals: BTreeMap<&str, &JobTotals> =
        totals.iter().map(|totals| (totals.job.as_str(), totals)).collect();
    let table = metrics.jobs.table();
    let mut lines = Vec::new();
    for (job, series) in table.iter() {
        let did = totals.remove(job.as_str());
        let overdue = series.success_due.is_some_and(|due| due < made_for.now);
        let is_scheduled = !series.schedule.is_empty();
        let mut parts = vec![match did {
            Some(did) => figures(did),
            None if is_scheduled => "did not run".to_owned(),
            // Nothing was to be expected of it.
            None => continue,
        }];
        if overdue {
            parts.push("overdue: no run succeeded for two occurrences".to_owned());
        }
        let since = dry_runs_since.get(job).copied();
        if let Some(since) = since.filter(|since| made_for.now - *since > LONG_DRY_RUN) {
            let since = made_for.time(since);
            parts.push(format!(
                "only dry runs since {since}: set mode = \"apply\" to make its changes"
            ));
        }
        lines.push(Line {
            job: job.clone(),
            is_problem: parts.len() > 1 || did.is_some_and(|did| did.unsuccessful > 0),
            text: parts.join("; "),
        });
    }
    drop(table);
    // Jobs that were removed since.
    lines.extend(totals.into_values().map(|did| Line {
        job: did.job.clone(),
        is_problem: did.unsuccessful > 0,
        text: figures(did),
    }));
    lines
}

/// `7 runs, 1 unsuccessful, 1,234 items changed, 3.2 GB freed`.
fn figures(did: &JobTotals) -> String {
    let mut parts = vec![format_count(did.runs, "run", "runs")];
    if did.unsuccessful > 0 {
        parts.push(format!("{} unsuccessful", format_number(did.unsuccessful)));
    }
    parts.push(match did.done {
        0 => "nothing changed".to_owned(),
        done => format!("{} changed", format_count(done, "item", "items")),
    });
    if did.bytes_freed > 0 {
        parts.push(format!("{} freed", Size(did.bytes_freed)));
    }
    parts.join(", ")
}
