//! Tables and their cells for a terminal.

use chrono_tz::Tz;
use comfy_table::{ContentArrangement, Table, presets};

use crate::plan::report::{Report, Waiting};
use crate::values::clock::Timestamp;
use crate::values::escape::line;
use crate::values::text::format_number;

pub(super) fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    table
}

/// A table's text without trailing spaces.
pub(super) fn table_text(table: &Table) -> String {
    table.to_string().lines().map(|line| format!("{}\n", line.trim())).collect()
}

pub(super) fn format_local(time: Timestamp, zone: Tz) -> String {
    time.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S %Z").to_string()
}

/// The outcome of a run, or its present state.
pub(super) fn status(run: &Report) -> &'static str {
    match (run.outcome, &run.waiting) {
        (Some(outcome), _) => outcome.as_str(),
        (None, Some(_)) => "waiting",
        (None, None) => "running",
    }
}

/// `for another run on main to end, since 2026-11-24 17:03:20 UTC`.
pub(super) fn format_wait(waiting: &Waiting, zone: Tz) -> String {
    format!("for {}, since {}", line(&waiting.what), format_local(waiting.since, zone))
}

/// `120 planned, 118 done, 2 failed`.
pub(super) fn format_counts(report: &Report) -> String {
    let mut parts = Vec::new();
    if let Some(planned) = report.planned {
        parts.push(format!("{} planned", format_number(planned)));
    }
    for (count, name) in [
        (report.done, "done"),
        (report.failed, "failed"),
        (report.skipped, "skipped"),
        (report.remaining.unwrap_or(0), "remaining"),
    ] {
        if count > 0 {
            parts.push(format!("{} {name}", format_number(count)));
        }
    }
    match (parts.is_empty(), report.outcome) {
        (false, _) => parts.join(", "),
        (true, None) => "no plan yet".to_owned(),
        (true, Some(_)) => "no plan".to_owned(),
    }
}
