//! Reports of runs as text for a person.

use chrono_tz::Tz;

use super::table::{format_counts, format_local, format_wait};
use crate::plan::report::{ApprovalState, Mode, Outcome, Report};
use crate::values::escape::line;
use crate::values::size::Size;
use crate::values::text::format_number;

/// What a run did, in a few lines.
pub(super) fn summary(run: &Report, zone: Tz) -> String {
    let mode = match run.mode {
        Mode::DryRun => "dry run",
        Mode::Approve => "plan for approval",
        Mode::Apply => "apply",
    };
    let mut text = format!(
        "{}{} ({} on {}), {mode}, {}{}\n",
        run.id.map(|id| format!("run {id}: ")).unwrap_or_default(),
        run.job,
        run.kind,
        run.homeserver,
        format_local(run.started_at, zone),
        if run.attempts > 1 { format!(", {} attempts", run.attempts) } else { String::new() }
    );
    let result = result(run, zone);
    let bytes = match (run.mode, run.bytes_planned, run.bytes_freed) {
        (Mode::DryRun | Mode::Approve, Some(bytes), _) => format!(", {}", Size(bytes)),
        (Mode::Apply, _, Some(bytes)) => format!(", {} freed", Size(bytes)),
        _ => String::new(),
    };
    let succeeded = run.outcome == Some(Outcome::Succeeded);
    let planned = if run.planned.is_none() && run.mode != Mode::Apply && succeeded {
        "this kind cannot count items in advance".to_owned()
    } else {
        format_counts(run)
    };
    text.push_str(&format!("  {result}: {planned}{bytes}\n"));
    if let Some(message) = &run.message {
        text.push_str(&format!("  {}\n", line(message)));
    }
    if let Some(approval) = approval_text(run, zone) {
        text.push_str(&format!("  {}\n", line(&approval)));
    }
    if !run.left_alone.is_empty() {
        let reasons: Vec<String> = run
            .left_alone
            .iter()
            .map(|(reason, count)| format!("{} {reason}", format_number(*count)))
            .collect();
        text.push_str(&format!("  left alone: {}\n", reasons.join(", ")));
    }
    if !run.sample.is_empty() {
        text.push_str("  most bytes:\n");
        for owner in &run.sample {
            text.push_str(&format!(
                "    {:>10}  {:>7} files  {}\n",
                Size(owner.bytes).to_string(),
                owner.files,
                line(&owner.user_id)
            ));
        }
    }
    text
}

/// `succeeded after 1.2 s`, `waiting for a slot since …`.
fn result(run: &Report, zone: Tz) -> String {
    match run.outcome {
        Some(outcome) => match run.format_work_duration() {
            Some(worked) => format!("{outcome} after {worked}"),
            None => outcome.to_string(),
        },
        None => run.waiting.as_ref().map_or_else(
            || "running".to_owned(),
            |waiting| format!("waiting {}", format_wait(waiting, zone)),
        ),
    }
}

/// `the plan was approved by uid 0 at 2026-11-30 10:00:00 UTC, and applied by run 43`.
pub(super) fn approval_text(run: &Report, zone: Tz) -> Option<String> {
    let (approval, id) = (run.approval.as_ref()?, run.id?);
    if approval.state == ApprovalState::Pending {
        let until = format_local(approval.expires_at, zone);
        return Some(format!(
            "the plan waits until {until} for `microglia approve {id}` or `microglia reject {id}`"
        ));
    }
    let by = approval.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
    let at = approval.decided_at.map(|at| format!(" at {}", format_local(at, zone)));
    let detail = approval.detail.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let run = approval.run.map(|run| format!(", and applied by run {run}")).unwrap_or_default();
    let state = approval.state;
    Some(format!("the plan was {state}{by}{}{detail}{run}", at.unwrap_or_default()))
}

/// The first changes of a run, one per line; with what they replaced where `limit` is `usize::MAX`.
pub(super) fn changes(run: &Report, limit: usize) -> String {
    let changes = run.changes.as_deref().unwrap_or_default();
    let mut text = String::new();
    for change in changes.iter().take(limit) {
        let count = if change.count == 1 { String::new() } else { format!(" ({})", change.count) };
        let detail =
            change.detail.as_ref().map(|detail| format!(": {}", line(detail))).unwrap_or_default();
        text.push_str(&format!(
            "  {:<8} {} {}{count}{detail}\n",
            change.state,
            change.action,
            line(&change.target)
        ));
        if let Some(answer) = &change.answer {
            text.push_str(&format!("           response:\n{}", indented(answer)));
        }
        if let Some(before) = change.before.as_ref().filter(|_| limit == usize::MAX) {
            text.push_str(&format!("           before: {before}\n"));
        }
    }
    if changes.len() > limit {
        let more = changes.len() - limit;
        let shown_by = run.id.map(|id| format!(": microglia runs show {id}")).unwrap_or_default();
        text.push_str(&format!("  and {more} more{shown_by}\n"));
    }
    text
}

/// Pretty-prints a response where it is JSON.
fn indented(answer: &str) -> String {
    let pretty = serde_json::from_str(answer)
        .and_then(|value: serde_json::Value| serde_json::to_string_pretty(&value));
    let answer = pretty.as_deref().unwrap_or(answer);
    answer.lines().map(|text| format!("             {}\n", line(text))).collect()
}
