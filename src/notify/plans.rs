//! Plans that wait for a person: what people decide with reactions, and what became of the plans.

use std::collections::HashSet;

use chrono::TimeDelta;

use super::compose::For;
use super::text::Part::Plain;
use super::text::{Text, Urgency};
use crate::history::{self, History, NewMessage, PlanMessage, SentMessage};
use crate::plan::notification::MessageEvent;
use crate::plan::report::{Approval, ApprovalState};
use crate::scheduler::supervisor::Supervisor;
use crate::scheduler::{ApproveRequest, Refusal};
use crate::synapse::{Error, Reaction, Reader};

/// How long an approved plan that no run applies yet is looked at again before that is told.
const RUN_STARTS_WITHIN: TimeDelta = TimeDelta::seconds(30);

/// What a reaction means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Approve,
    Reject,
}

/// Where people decide about a plan, and who may.
pub(super) struct Poll<'a> {
    pub supervisor: &'a Supervisor,
    pub history: &'a History,
    pub made_for: &'a For<'a>,
    /// The account that sent the message.
    pub me: &'a str,
}

/// Why the reactions to a message could not be carried out.
pub(super) enum NotPolled {
    Synapse(Error),
    History(history::Error),
}

impl From<Error> for NotPolled {
    fn from(error: Error) -> Self {
        Self::Synapse(error)
    }
}

impl From<history::Error> for NotPolled {
    fn from(error: history::Error) -> Self {
        Self::History(error)
    }
}

impl Poll<'_> {
    /// Carries out the first reaction to the message of a plan that decides; `refused` are those that could not.
    pub(super) async fn decide(
        &self,
        reader: &Reader,
        run: i64,
        message: &SentMessage,
        refused: &mut HashSet<String>,
    ) -> Result<(), NotPolled> {
        let reactions = reader.reactions(&message.room_id, &message.event_id).await?;
        for reaction in reactions {
            let Some(verdict) = self.verdict(&reaction) else { continue };
            if refused.contains(&reaction.event_id) {
                continue;
            }
            let by = format!("{} with a reaction", reaction.sender);
            let decided = match verdict {
                Verdict::Approve => {
                    let request = ApproveRequest { run, by, max_changes: None };
                    self.supervisor.approve(request).await.map(drop)
                }
                Verdict::Reject => self.supervisor.reject(run, &by).await.map(drop),
            };
            match decided {
                Ok(()) => return Ok(()),
                Err(Refusal::NotWaiting(why)) => {
                    self.tell_refusal(run, &reaction, message, &why).await?;
                    refused.insert(reaction.event_id);
                }
                // The next look finds the reaction again.
                Err(error) => {
                    tracing::warn!(target: "microglia::notification", run, "the reaction to the plan of run {run} could not be carried out yet: {error}");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn verdict(&self, reaction: &Reaction) -> Option<Verdict> {
        let is_approver = self.made_for.notification.approvers.iter().any(|approver| {
            approver.0 == reaction.sender
                && self
                    .me
                    .split_once(':')
                    .is_some_and(|(_, server)| server == approver.server_name())
        });
        // Some clients add the selector of the emoji form.
        match reaction.key.trim_end_matches('\u{fe0f}') {
            "✅" if is_approver => Some(Verdict::Approve),
            "❌" if is_approver => Some(Verdict::Reject),
            _ => None,
        }
    }

    /// Tells why a plan that still waits was not approved.
    async fn tell_refusal(
        &self,
        run: i64,
        reaction: &Reaction,
        message: &SentMessage,
        why: &str,
    ) -> Result<(), history::Error> {
        let Some(report) = self.history.run_alone(run).await? else { return Ok(()) };
        let waits = report.approval.as_ref().is_some_and(|it| it.state == ApprovalState::Pending);
        if !waits {
            // What became of it is told in any case.
            return Ok(());
        }
        let mut text = Text::default();
        text.line(&[Plain(why)]);
        let content = text.into_content(Urgency::Notify, Some(&message.event_id));
        let answer = self.made_for.message(MessageEvent::Decision, &report, content);
        let subject = format!("{run} {}", reaction.event_id);
        self.history.add_message(&NewMessage { subject, ..answer }).await
    }
}

/// Answers the message of a plan that does not wait any more.
pub(super) async fn tell_decision(
    history: &History,
    made_for: &For<'_>,
    plan: &PlanMessage,
) -> Result<(), history::Error> {
    let report = history.run_alone(plan.run).await?;
    let Some((report, approval)) =
        report.and_then(|report| Some((report.clone(), report.approval?)))
    else {
        return close(history, plan).await;
    };
    let is_about_to_start = approval.state == ApprovalState::Approved
        && approval.run.is_none()
        && approval.decided_at.is_some_and(|at| made_for.now - at < RUN_STARTS_WITHIN);
    if approval.state == ApprovalState::Pending || is_about_to_start {
        return Ok(());
    }
    let Some(sent) = &plan.sent else { return close(history, plan).await };
    let mut text = Text::default();
    text.line(&[Plain(&what_became(&approval, made_for.notification.names))]);
    let content = text.into_content(Urgency::Quiet, Some(&sent.event_id));
    history.tell_decision(&made_for.message(MessageEvent::Decision, &report, content)).await
}

/// Tells nothing about a plan: its message was not sent, or nobody is told any more.
pub(super) async fn close(history: &History, plan: &PlanMessage) -> Result<(), history::Error> {
    let decision = NewMessage {
        notification: plan.notification.clone(),
        event: MessageEvent::Decision,
        subject: plan.run.to_string(),
        job: None,
        run: Some(plan.run),
        content: None,
    };
    history.tell_decision(&decision).await
}

fn what_became(approval: &Approval, names: bool) -> String {
    // A newer plan names its run, everybody else is a person.
    let may_name = |by: &&String| names || by.starts_with("run ");
    let by = approval.by.as_ref().filter(may_name).map(|by| format!(" by {by}"));
    let by = by.unwrap_or_default();
    match approval.state {
        ApprovalState::Pending => String::new(),
        ApprovalState::Approved => match approval.run {
            Some(run) => format!("Approved{by}: run {run} applies the plan."),
            None => format!(
                "Approved{by}: the plan is applied when its job is not running and its window is open."
            ),
        },
        ApprovalState::Rejected => format!("Rejected{by}: nothing was changed."),
        ApprovalState::Expired => "Nobody decided in time: nothing was changed.".to_owned(),
        ApprovalState::Superseded => {
            let why = approval.detail.as_ref().map(|why| format!(", because {why}"));
            format!("Superseded{by}{}: nothing was changed.", why.unwrap_or_default())
        }
    }
}
