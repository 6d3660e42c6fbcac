//! Which messages the end of a run leads to, and what they say.

use chrono::TimeDelta;
use reqwest::Url;

use super::names::without_names;
use super::text::Part::{Bold, Code, Link, Plain};
use super::text::{Text, Urgency};
use crate::config::{Notification, NotifyOn};
use crate::history::{self, HistoryReader, NewMessage};
use crate::plan::notification::MessageEvent;
use crate::plan::report::{ApprovalState, Mode, Outcome, Report, State, Trigger};
use crate::values::clock::Timestamp;
use crate::values::schedule::Zone;
use crate::values::size::Size;
use crate::values::text::{format_count, format_number};

/// What messages are made for, and when.
#[derive(Clone, Copy)]
pub(super) struct For<'a> {
    pub notification: &'a Notification,
    pub public_url: Option<&'a Url>,
    /// Of the times in messages.
    pub zone: Zone,
    pub now: Timestamp,
}

/// How long nothing more is said of a job that keeps failing: less than a day, because no run starts to the second.
const REMIND_AFTER: TimeDelta = TimeDelta::hours(23);
/// How many of the biggest changes a message names.
const NAMED: u32 = 10;
/// How many reasons of failed changes a message gives.
const REASONS: usize = 3;

impl For<'_> {
    fn reports(&self, event: NotifyOn) -> bool {
        self.notification.on.contains(&event)
    }

    pub(super) fn message(
        &self,
        event: MessageEvent,
        run: &Report,
        content: serde_json::Value,
    ) -> NewMessage {
        let id = run.id.unwrap_or_default();
        NewMessage {
            notification: self.notification.name.clone(),
            event,
            subject: id.to_string(),
            job: Some((run.job.clone(), run.mode)),
            run: Some(id),
            content: Some(content),
        }
    }

    /// A text as the room may read it.
    fn named(&self, text: &str) -> String {
        match self.notification.names {
            true => text.to_owned(),
            false => without_names(text),
        }
    }

    pub(super) fn time(&self, time: Timestamp) -> String {
        time.with_timezone(&self.zone.0).format("%Y-%m-%d %H:%M %Z").to_string()
    }

    /// Where to read more about a run.
    fn see(&self, text: &mut Text, run: i64) {
        let command = format!("microglia runs show {run}");
        match self.public_url {
            None => text.line(&[Plain("See "), Code(&command)]),
            Some(base) => {
                let url = format!("{}/runs/{run}", base.as_str().trim_end_matches('/'));
                let link = format!("run {run}");
                text.line(&[Link { text: &link, url: &url }]);
            }
        }
    }
}

/// Returns the messages about a run that has ended.
pub(super) async fn about_run(
    history: &HistoryReader,
    made_for: &For<'_>,
    run: &Report,
) -> Result<Vec<NewMessage>, history::Error> {
    let (name, id) = (&made_for.notification.name, run.id.unwrap_or_default());
    let Some(outcome) = run.outcome else { return Ok(Vec::new()) };
    // Who starts a dry run looks at it.
    if run.trigger == Trigger::Manual && run.mode == Mode::DryRun {
        return Ok(Vec::new());
    }
    let mut messages = Vec::new();
    let mut reply_to = None;
    if run.trigger == Trigger::Approval {
        reply_to = history.messages_of_plan(id).await?.remove(name).map(|sent| sent.event_id);
    }
    let told = history.last_told(name, &run.job, run.mode).await?;
    let was_failing = told.is_some_and(|told| told.event == MessageEvent::Failure);
    if is_failure(outcome) && run.trigger != Trigger::Undo && made_for.reports(NotifyOn::Failure) {
        let is_known =
            told.is_some_and(|told| was_failing && made_for.now - told.at < REMIND_AFTER);
        if !is_known || reply_to.is_some() {
            let content = failure(history, made_for, run, outcome)
                .await?
                .into_content(Urgency::Notify, reply_to.as_deref());
            messages.push(made_for.message(MessageEvent::Failure, run, content));
        }
    }
    let waits =
        run.approval.as_ref().is_some_and(|approval| approval.state == ApprovalState::Pending);
    if waits && made_for.reports(NotifyOn::Approval) {
        let content = plan(history, made_for, run).await?.into_content(Urgency::Notify, None);
        messages.push(made_for.message(MessageEvent::Approval, run, content));
    }
    if !messages.is_empty() {
        return Ok(messages);
    }
    let has_recovered = outcome == Outcome::Succeeded
        && was_failing
        && run.trigger != Trigger::Undo
        && made_for.reports(NotifyOn::Recovery);
    let has_changed = run.mode == Mode::Apply && run.done > 0;
    if has_recovered || reply_to.is_some() || (has_changed && made_for.reports(NotifyOn::Changes)) {
        let event = if has_recovered { MessageEvent::Recovery } else { MessageEvent::Changes };
        let content = result(history, made_for, run, has_recovered)
            .await?
            .into_content(Urgency::Quiet, reply_to.as_deref());
        messages.push(made_for.message(event, run, content));
    }
    Ok(messages)
}

/// `remove-external-ids on main, run 17, apply, 3 attempts`.
fn identity(run: &Report) -> String {
    let attempts = match run.attempts {
        0 | 1 => String::new(),
        attempts => format!(", {attempts} attempts"),
    };
    let (kind, homeserver, mode) = (&run.kind, &run.homeserver, run.mode);
    let undo = if run.trigger == Trigger::Undo { ", undo" } else { "" };
    let id = run.id.unwrap_or_default();
    format!("{kind} on {homeserver}, run {id}, {mode}{undo}{attempts}")
}

/// Whether a run with this outcome is one that a person should know about; cancelling is a person's own doing.
fn is_failure(outcome: Outcome) -> bool {
    !matches!(outcome, Outcome::Succeeded | Outcome::Cancelled)
}

async fn failure(
    history: &HistoryReader,
    made_for: &For<'_>,
    run: &Report,
    outcome: Outcome,
) -> Result<Text, history::Error> {
    let id = run.id.unwrap_or_default();
    let what = match outcome {
        Outcome::Refused => "was refused",
        Outcome::Partial => "made only a part of its changes",
        Outcome::TimedOut => "did not end within its time limit",
        Outcome::Panicked => "failed because of a bug in microglia",
        Outcome::Interrupted => "was interrupted",
        _ => "failed",
    };
    let mut text = Text::default();
    text.line(&[Bold(&format!("{} {what}", run.job))]);
    text.line(&[Plain(&identity(run)), Plain(": "), Plain(&counts(run))]);
    if let Some(message) = &run.message {
        text.line(&[Plain(&made_for.named(message))]);
    }
    if run.failed > 0 {
        let failed = history.biggest_changes(id, State::Failed, NAMED).await?;
        let mut reasons: Vec<String> = failed
            .iter()
            .filter_map(|change| {
                let reason = made_for.named(change.detail.as_ref()?);
                Some(match made_for.notification.names {
                    true => format!("{}: {reason}", change.target),
                    false => reason,
                })
            })
            .collect();
        reasons.dedup();
        for reason in reasons.iter().take(REASONS) {
            text.item(&[Plain(reason)]);
        }
    }
    let (failures, since) = history.failures_up_to(id, &run.job, run.mode).await?;
    if let (2.., Some(since)) = (failures, since) {
        let since = made_for.time(since);
        let times = format_number(failures);
        text.line(&[Plain(&format!("{times} runs in a row did not succeed, since {since}. As long as that goes on, it is reported once a day."))]);
    }
    made_for.see(&mut text, id);
    Ok(text)
}

/// What a run did that ended well.
async fn result(
    history: &HistoryReader,
    made_for: &For<'_>,
    run: &Report,
    has_recovered: bool,
) -> Result<Text, history::Error> {
    let items = format_count(run.done, "item", "items");
    let what = match (has_recovered, run.done) {
        (true, _) => "works again".to_owned(),
        (false, 0) => "had nothing left to change".to_owned(),
        (false, _) if run.trigger == Trigger::Undo => format!("restored {items}"),
        (false, _) => format!("changed {items}"),
    };
    let mut text = Text::default();
    text.line(&[Bold(&format!("{} {what}", run.job))]);
    text.line(&[Plain(&identity(run)), Plain(": "), Plain(&counts(run))]);
    if run.mode == Mode::Apply {
        biggest(history, made_for, run, State::Done, &mut text).await?;
    }
    made_for.see(&mut text, run.id.unwrap_or_default());
    Ok(text)
}

/// A plan that waits, and how to decide.
async fn plan(
    history: &HistoryReader,
    made_for: &For<'_>,
    run: &Report,
) -> Result<Text, history::Error> {
    let id = run.id.unwrap_or_default();
    let mut text = Text::default();
    text.line(&[Bold(&format!("{}: a plan waits for approval", run.job))]);
    let bytes = run.bytes_planned.map(|bytes| format!(", {}", Size(bytes))).unwrap_or_default();
    let items = match run.planned {
        Some(planned) => format_count(planned, "item", "items"),
        None => "this kind cannot count items in advance".to_owned(),
    };
    text.line(&[Plain(&identity(run)), Plain(": "), Plain(&items), Plain(&bytes)]);
    if let Some(message) = &run.message {
        text.line(&[Plain(&made_for.named(message))]);
    }
    if !run.left_alone.is_empty() {
        let reasons: Vec<String> = run
            .left_alone
            .iter()
            .map(|(reason, count)| format!("{} {reason}", format_number(*count)))
            .collect();
        text.line(&[Plain("left alone: "), Plain(&reasons.join(", "))]);
    }
    biggest(history, made_for, run, State::Planned, &mut text).await?;
    let (approve, reject) = (format!("microglia approve {id}"), format!("microglia reject {id}"));
    if !made_for.notification.approvers.is_empty() {
        text.line(&[Plain("React with ✅ to approve it or with ❌ to reject it.")]);
    }
    text.line(&[Plain("On the server: "), Code(&approve), Plain(" or "), Code(&reject)]);
    if let Some(approval) = &run.approval {
        let until = made_for.time(approval.expires_at);
        text.line(&[Plain(&format!(
            "It waits until {until}; without a decision nothing is changed."
        ))]);
    }
    made_for.see(&mut text, id);
    Ok(text)
}

/// Names the changes with the most items, where the room may read names.
async fn biggest(
    history: &HistoryReader,
    made_for: &For<'_>,
    run: &Report,
    state: State,
    text: &mut Text,
) -> Result<(), history::Error> {
    if !made_for.notification.names {
        return Ok(());
    }
    if !run.sample.is_empty() {
        text.line(&[Plain("most bytes:")]);
        for owner in run.sample.iter().take(NAMED as usize) {
            let files = format_count(owner.files, "file", "files");
            let bytes = Size(owner.bytes);
            text.item(&[Plain(&owner.user_id), Plain(&format!(": {files}, {bytes}"))]);
        }
        return Ok(());
    }
    let changes = history.biggest_changes(run.id.unwrap_or_default(), state, NAMED).await?;
    for change in &changes {
        let count = match change.count {
            1 => String::new(),
            count => format!(" ({})", format_number(count)),
        };
        let action = change.action.as_str();
        text.item(&[Plain(&format!("{action} ")), Plain(&change.target), Plain(&count)]);
    }
    let all = if state == State::Planned { run.planned } else { Some(run.done) };
    let named: u64 = changes.iter().map(|change| change.count).sum();
    if let Some(more) = all.and_then(|all| all.checked_sub(named)).filter(|more| *more > 0) {
        text.line(&[Plain(&format!("and {}", format_count(more, "more item", "more items")))]);
    }
    Ok(())
}

/// `120 planned, 118 done, 2 failed, 3.2 GB freed`.
fn counts(run: &Report) -> String {
    let mut parts = Vec::new();
    if let Some(planned) = run.planned {
        parts.push(format!("{} planned", format_number(planned)));
    }
    for (count, name) in [
        (run.done, "done"),
        (run.failed, "failed"),
        (run.skipped, "skipped"),
        (run.remaining.unwrap_or(0), "remaining"),
    ] {
        if count > 0 {
            parts.push(format!("{} {name}", format_number(count)));
        }
    }
    if let Some(freed) = run.bytes_freed.filter(|_| run.mode == Mode::Apply && run.done > 0) {
        parts.push(format!("{} freed", Size(freed)));
    }
    match parts.is_empty() {
        true => "no plan".to_owned(),
        false => parts.join(", "),
    }
}
