//! `lock-inactive-accounts`: locks accounts that nobody has used for long, after telling their users.

mod evidence;
mod except_rooms;
mod keys;
mod lock;
mod notice;
mod reading;
mod unlock;

use std::sync::Arc;

use super::account::Unreadable;
use super::job::{CheckResult, Context, Job, Needs, PlanError, Undo};
use super::mas_accounts::without_delegation;
use super::portion::{Next, PortionProgress};
use crate::plan::change::{Plan, Work};
use crate::plan::facts::Topic;
use crate::plan::report::Action;
use crate::plan::round::{Plans, Rounds};
use crate::synapse::{Identity, Reader, Version};
use crate::values::clock::{Timestamp, format_time};
use crate::values::glob::unmatched;
use crate::values::schema::{ConfigError, Key, Table};
use crate::values::text::format_count;
use except_rooms::ExceptedMembers;
use keys::Keys;
use reading::Reading;

#[derive(Debug)]
pub struct LockInactiveAccounts {
    keys: Arc<Keys>,
}

impl Job for LockInactiveAccounts {
    const KIND: &'static str = "lock-inactive-accounts";
    const ABOUT: &'static str = "Locks accounts that nobody has used for a long time. A locked user cannot log in or use an open session; nothing is deleted, the account stays in its rooms, and once it is unlocked its devices work again, except those whose clients log out by themselves when they find the account locked. \
        The last use is the newest that the list of accounts, the account's own record, its devices and, under MAS, its sessions there show; each account is read again right before it is locked. \
        An account without any known use is left alone unless `never_used_after` is set. Skips server admins, bots and all other accounts with a `user_type`, guests, users of bridges, deactivated, locked and suspended accounts, the daemon's own account, and the members of `except_rooms`. \
        With `notice`, a run first tells each user, as a server notice, and a later run locks who was told `notice_before` ago and has not come back since. Only a notice that Synapse confirmed counts; one whose response was lost is sent again with the same transaction id, which Synapse recognizes for at least half an hour unless it is restarted: after that, a user may be told twice. \
        Where the Matrix Authentication Service manages the accounts, locks them there, because a lock in Synapse locks nobody out; it needs [homeservers.NAME.mas]. \
        The moment of each lock is remembered for deactivate-accounts. `undo` unlocks what a run locked, and only that; a notice cannot be taken back.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::LockAccount;
    const UNDO: Undo = Undo::By(unlock::restoration);
    const ROUNDS: Option<Rounds> = Some(Rounds { entries: "accounts", plans: Plans::EachPortion });
    const NEEDS: Needs = Needs {
        synapse: Version(1, 140),
        clock: true,
        without_mas_client: Some(
            "with the Matrix Authentication Service, locking an account in Synapse does not lock anyone out: configure [homeservers.NAME.mas] to lock accounts there",
        ),
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, _now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let keys = Keys::parse(table, errors)?;
        let span = table.span_of("notice_before");
        if keys.notice.is_none() && span != table.span {
            let text = "`notice_before` has no effect: it is about the `notice`, which is missing";
            errors.push(ConfigError::new(span, text));
        }
        Some(Self { keys: Arc::new(keys) })
    }

    fn topic(&self) -> Option<Topic> {
        Some(Topic::UnusedAccount)
    }

    async fn check(&self, reader: &Reader, identity: &Identity) -> Vec<CheckResult> {
        let mut results = Vec::new();
        for room in &self.keys.except_rooms {
            let members = except_rooms::members(reader, &identity.server_name, room).await;
            let answer = match members {
                Ok(members) => Ok(format_count(members.len() as u64, "member", "members")),
                Err(PlanError::Refused(problem)) => Err(problem),
                Err(PlanError::Synapse(error)) => Err(error.to_string()),
            };
            let question = format!("finds the members of {}, who are never locked", room.0);
            results.push(CheckResult { question, answer });
        }
        results
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let identity = context.identity().await?;
        if let Some(problem) = without_delegation(identity, context.reader) {
            return Err(PlanError::Refused(problem));
        }
        let findings = context.portion.findings.clone();
        let mut reading = Reading {
            keys: &self.keys,
            context,
            identity,
            excepted: ExceptedMembers::read(&self.keys, context.reader, identity).await?,
            matched: findings
                .and_then(|found| serde_json::from_value(found).ok())
                .unwrap_or_default(),
            progress: PortionProgress::new(&context.portion),
            changes: Vec::new(),
            unreadable: Unreadable::default(),
            first_due: None,
        };
        let mut pages = context.reader.user_pages(context.portion.from.clone());
        while let Some(page) = pages.next().await? {
            if reading.page(page, pages.is_at_end(), plan).await? == Next::Stop {
                break;
            }
        }
        let Reading { matched, progress, changes, first_due, .. } = reading;
        if progress.is_complete() {
            for pattern in unmatched(&self.keys.users, &self.keys.except_users, &matched) {
                plan.notes.push(format!("`{pattern}` matched no account"));
            }
        }
        plan.notes.extend(first_due.map(|due| {
            format!(
                "the next user who was told will have had `notice_before` on {}",
                format_time(due)
            )
        }));
        plan.some_up_to_date = true;
        plan.portion = Some(progress.finish(serde_json::to_value(&matched).unwrap_or_default()));
        plan.work = Work::Changes(changes);
        Ok(())
    }
}
