//! `microglia runs`: recorded runs, and one of them with its changes.

use std::path::Path;

use chrono_tz::Tz;

use super::run::job;
use super::table::{figures, local, standing, table, text, waits};
use super::{Ended, load_without_secrets, look, print, print_json, seen_now, unreadable};
use crate::history::Page;
use crate::plan::report::{CHANGES_SHOWN, Mode, Outcome, Report};
use crate::values::clock::Clock;
use crate::values::duration::format_duration;
use crate::values::escape::line;
use crate::values::size::Size;
use crate::values::text::format_number;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    show: Option<Show>,
    /// Only runs of this job.
    job: Option<String>,
    /// How many runs.
    #[arg(long, default_value_t = 20)]
    limit: u32,
    /// As a JSON list.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Show {
    /// Prints one run with its changes, and what they replaced
    Show {
        /// The number that `runs` lists and the log names.
        id: i64,
        /// The first change to print.
        #[arg(long, default_value_t = 0)]
        offset: u32,
        /// How many changes to print.
        #[arg(long, default_value_t = CHANGES_SHOWN)]
        limit: u32,
        /// Lists the ids of the files that the run deleted.
        #[arg(long)]
        media: bool,
        /// As one JSON document.
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Ended> {
    let clock = Clock::system();
    let config = load_without_secrets(path, &clock).await?;
    let history = look(&config, &clock).await?;
    let failed = |error| unreadable(&config.daemon.state_dir, &error);
    let zone = config.daemon.timezone.0;
    match &options.show {
        None => {
            let recorded =
                history.runs(options.job.as_deref(), options.limit).await.map_err(failed)?;
            let mut runs = Vec::new();
            for run in recorded {
                runs.push(seen_now(&history, &config.daemon.state_dir, run).await?);
            }
            // A job that is gone from the config still has its runs.
            if let Some(name) = options.job.as_ref().filter(|_| runs.is_empty()) {
                job(&config, name)?;
            }
            if options.json {
                return print_json(&runs);
            }
            if runs.is_empty() {
                let what =
                    options.job.as_ref().map_or_else(String::new, |job| format!(" of {job}"));
                let dir = config.daemon.state_dir.display();
                super::say(&format!("no run{what} is recorded in {dir}"));
                return Ok(());
            }
            print(&job_list(&runs, zone))
        }
        Some(Show::Show { id, offset, limit, media, json }) => {
            let run =
                history.run(*id, Page { offset: *offset, limit: *limit }).await.map_err(failed)?;
            let run = run.ok_or_else(|| {
                Ended::Error(anyhow::anyhow!("there is no run {id}: `microglia runs` lists them"))
            })?;
            let run = seen_now(&history, &config.daemon.state_dir, run).await?;
            if *media {
                let files = history.files(*id).await.map_err(failed)?;
                return match json {
                    true => print_json(
                        &files
                            .iter()
                            .map(
                                |(id, bytes)| serde_json::json!({ "media_id": id, "bytes": bytes }),
                            )
                            .collect::<Vec<_>>(),
                    ),
                    false => {
                        print(&files.iter().map(|(id, _)| format!("{id}\n")).collect::<String>())
                    }
                };
            }
            if *json {
                return print_json(&run);
            }
            let shown = run.changes.as_ref().map_or(0, Vec::len);
            let mut shown_text = summary(&run, zone);
            shown_text.push_str(&changes(&run, usize::MAX));
            if shown == *limit as usize {
                shown_text.push_str(&format!("There may be more: --offset {}\n", offset + limit));
            }
            print(&shown_text)
        }
    }
}

fn job_list(runs: &[Report], zone: Tz) -> String {
    let mut rows = table(&[
        "RUN", "STARTED", "JOB", "MODE", "TRIGGER", "OUTCOME", "TOOK", "THINGS", "MESSAGE",
    ]);
    for run in runs {
        let message: Vec<String> = run
            .waiting
            .as_ref()
            .map(|waiting| waits(waiting, zone))
            .into_iter()
            .chain(run.message.as_deref().map(|message| line(message).into_owned()))
            .collect();
        rows.add_row([
            &run.id.unwrap_or_default().to_string(),
            &local(run.started_at, zone),
            &run.job,
            run.mode.as_str(),
            run.trigger.as_str(),
            standing(run),
            &run.worked().map_or_else(|| "-".to_owned(), format_duration),
            &figures(run),
            &message.join("; "),
        ]);
    }
    text(&rows)
}

/// What a run did, for a person.
pub(super) fn summary(run: &Report, zone: Tz) -> String {
    let mode = if run.mode == Mode::DryRun { "dry run" } else { "apply" };
    let mut text = format!(
        "{}{} ({} on {}), {mode}, {}{}\n",
        run.id.map(|id| format!("run {id}: ")).unwrap_or_default(),
        run.job,
        run.kind,
        run.homeserver,
        local(run.started_at, zone),
        if run.attempts > 1 { format!(", {} attempts", run.attempts) } else { String::new() }
    );
    let ended = match run.outcome {
        Some(outcome) => match run.worked_in_words() {
            Some(worked) => format!("{outcome} after {worked}"),
            None => outcome.to_string(),
        },
        None => run.waiting.as_ref().map_or_else(
            || "running".to_owned(),
            |waiting| format!("waiting {}", waits(waiting, zone)),
        ),
    };
    let bytes = match (run.mode, run.bytes_planned, run.bytes_freed) {
        (Mode::DryRun, Some(bytes), _) => format!(", {}", Size(bytes)),
        (Mode::Apply, _, Some(bytes)) => format!(", {} freed", Size(bytes)),
        _ => String::new(),
    };
    let succeeded = run.outcome == Some(Outcome::Succeeded);
    let planned = if run.planned.is_none() && run.mode == Mode::DryRun && succeeded {
        "this kind cannot count beforehand".to_owned()
    } else {
        figures(run)
    };
    text.push_str(&format!("  {ended}: {planned}{bytes}\n"));
    if let Some(message) = &run.message {
        text.push_str(&format!("  {}\n", line(message)));
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
        for share in &run.sample {
            text.push_str(&format!(
                "    {:>10}  {:>7} files  {}\n",
                Size(share.bytes).to_string(),
                share.files,
                line(&share.user_id)
            ));
        }
    }
    text
}

/// The first changes of a run, a line each, with what they replaced.
pub(super) fn changes(run: &Report, most: usize) -> String {
    let changes = run.changes.as_deref().unwrap_or_default();
    let mut text = String::new();
    for change in changes.iter().take(most) {
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
            text.push_str(&format!("           answer:\n{}", indented(answer)));
        }
        if let Some(before) = change.before.as_ref().filter(|_| most == usize::MAX) {
            text.push_str(&format!("           before: {before}\n"));
        }
    }
    if changes.len() > most {
        let more = changes.len() - most;
        let shown_by = run.id.map(|id| format!(": microglia runs show {id}")).unwrap_or_default();
        text.push_str(&format!("  and {more} more{shown_by}\n"));
    }
    text
}

/// An answer as a person reads it: JSON over several lines, everything else as it is.
fn indented(answer: &str) -> String {
    let pretty = serde_json::from_str(answer)
        .and_then(|value: serde_json::Value| serde_json::to_string_pretty(&value));
    let answer = pretty.as_deref().unwrap_or(answer);
    answer.lines().map(|text| format!("             {}\n", line(text))).collect()
}
