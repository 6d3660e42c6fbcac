//! A run as one row of a list, and how far a run under way has come.

use super::super::events_feed::Progress;
use super::format::{Moment, figures, items, items_label, status, tone};
use super::layout::Frame;
use crate::plan::report::Report;
use crate::values::duration::format_duration;
use crate::values::escape::line;
use crate::values::text::format_number;

/// A run in a list.
pub(super) struct RunRow {
    pub(super) id: i64,
    pub(super) job: String,
    pub(super) homeserver: String,
    pub(super) mode: &'static str,
    pub(super) trigger: &'static str,
    pub(super) tone: &'static str,
    pub(super) status: &'static str,
    pub(super) started: Moment,
    pub(super) worked: String,
    pub(super) figures: String,
    /// `None` where it may not be shown.
    pub(super) message: Option<String>,
    pub(super) progress: Option<ProgressBar>,
}

/// How far a run has come.
pub(super) struct ProgressBar {
    pub(super) done: u64,
    /// `None` while it is not known.
    pub(super) total: Option<u64>,
    pub(super) text: String,
    /// What is counted, in the plural.
    pub(super) unit: String,
}

impl RunRow {
    pub(super) fn of(frame: &Frame<'_>, mut run: Report) -> Self {
        frame.caller.redact(&mut run);
        let zone = frame.zone_of(&run.job);
        Self {
            id: run.id.unwrap_or_default(),
            mode: run.mode.as_str(),
            trigger: run.trigger.as_str(),
            tone: tone(run.outcome),
            status: status(&run),
            started: frame.moment(run.started_at, zone),
            worked: run.work_duration().map(format_duration).unwrap_or_default(),
            figures: figures(&run),
            message: run.message.as_deref().map(|message| line(message).into_owned()),
            progress: progress_bar(frame, &run),
            job: run.job,
            homeserver: run.homeserver,
        }
    }
}

/// `None` for a run that has ended.
pub(super) fn progress_bar(frame: &Frame<'_>, run: &Report) -> Option<ProgressBar> {
    if run.outcome.is_some() {
        return None;
    }
    let unit = items_label(&run.kind).to_owned();
    if let Some(waiting) = &run.waiting {
        let text = format!("waiting for {}", line(&waiting.what));
        return Some(ProgressBar { done: 0, total: None, text, unit });
    }
    let progress = frame.app.feed.progress(&run.job).filter(|known| known.run == run.id);
    let Some(Progress { reading, done, total, run: _ }) = progress else {
        return Some(ProgressBar { done: 0, total: None, text: "under way".to_owned(), unit });
    };
    let of = total.map(|total| format!(" of {}", format_number(total))).unwrap_or_default();
    let text = match (reading.is_empty(), frame.caller.sees_names()) {
        (true, _) if total.is_none() && done == 0 => "under way".to_owned(),
        (true, _) => match total {
            Some(total) => format!("{} of {}", format_number(done), items(&run.kind, total)),
            None => items(&run.kind, done),
        },
        (false, true) => format!("reading {}: {}{of}", line(&reading), format_number(done)),
        (false, false) => format!("reading: {}{of}", format_number(done)),
    };
    Some(ProgressBar { done, total: total.filter(|total| *total > 0), text, unit })
}
