//! `delete-registration-tokens`: deletes registration tokens with which nobody can register any more.

mod deletion;
mod listed;
mod memory;
mod revocation;

use super::job::{Context, Job, Needs, PlanError, Undo};
use super::mas_accounts::without_delegation;
use crate::plan::change::{Change, Plan, Work};
use crate::plan::facts::Topic;
use crate::plan::report::Action;
use crate::synapse::Version;
use crate::values::clock::{Timestamp, format_time};
use crate::values::duration::HumanDuration;
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, Key, Table};
use crate::values::text::format_count;
use listed::{Listed, Verdict};
use memory::Memory;

schema! {
    pub struct Keys {
        /// How long a token must have been expired or used up. Synapse does not record when a token was used up: that counts from the run that first saw it so, dry runs too. MAS records the last use.
        pub unused_for: HumanDuration where "\"0s\"" to "\"3650d\"" = "\"30d\"",
    }
}

#[derive(Debug)]
pub struct DeleteRegistrationTokens {
    keys: Keys,
}

impl Job for DeleteRegistrationTokens {
    const KIND: &'static str = "delete-registration-tokens";
    const ABOUT: &'static str = "Deletes registration tokens that have been expired or used up for a long time. \
        Skips tokens with which a registration has begun: without its token, Synapse fails it and creates the account all the same. Skips tokens that may be used no times at all, which is how they are switched off. \
        A token that changed since the plan is left alone. \
        Where the Matrix Authentication Service manages the accounts, revokes them there, because MAS deletes none; it needs [homeservers.NAME.mas]. `undo` takes a revocation back. A deleted token cannot be restored.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::DeleteRegistrationToken;
    const UNDO: Undo = Undo::By(|record, _| revocation::reverse(record));
    const NEEDS: Needs = Needs {
        synapse: Version(1, 42),
        clock: true,
        without_mas_client: Some(
            "with the Matrix Authentication Service, Synapse has no registration tokens: configure [homeservers.NAME.mas] to revoke those of MAS",
        ),
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, _now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        Some(Self { keys: Keys::parse(table, errors)? })
    }

    fn topic(&self) -> Option<Topic> {
        Some(Topic::UsedUpToken)
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let identity = context.identity().await?;
        if let Some(problem) = without_delegation(identity, context.reader) {
            return Err(PlanError::Refused(problem));
        }
        let tokens: Vec<Listed> = match context.reader.mas() {
            Some(mas) => Listed::of_mas(mas.registration_tokens().await?),
            None => Listed::of_synapse(context.reader.registration_tokens().await?),
        };
        context.reading("registration tokens", tokens.len() as u64, tokens.len() as u64);
        let mut memory = Memory::new(context);
        let (mut changes, mut next_due) = (Vec::<Box<dyn Change>>::new(), None::<Timestamp>);
        for token in tokens {
            let used_up_since = token.used_up().map(|used_up| {
                used_up.since.unwrap_or_else(|| memory.since(token.key(), used_up.uses))
            });
            match token.judge(used_up_since, self.keys.unused_for, context.started_at) {
                Verdict::Valid => {}
                Verdict::LeaveAlone { reason, due } => {
                    next_due = next_due.into_iter().chain(due).min();
                    plan.leave_alone(reason, || token.abbreviated());
                }
                Verdict::Delete(why) => match token.removal(&why) {
                    Ok(change) => changes.push(change),
                    Err((target, problem)) => {
                        plan.problem(Action::DeleteRegistrationToken, &target, problem);
                    }
                },
            }
        }
        plan.notes.extend(match memory.new_count() {
            0 => None,
            new => Some(format!(
                "{} first seen used up: Synapse does not record since when, so this counts from now",
                format_count(new, "token is", "tokens are")
            )),
        });
        plan.notes.extend(next_due.map(|due| {
            let unused_for = self.keys.unused_for;
            format!(
                "the next token will have been invalid for {unused_for} on {}",
                format_time(due)
            )
        }));
        memory.keep().await;
        plan.some_up_to_date = true;
        plan.work = Work::Changes(changes);
        Ok(())
    }
}
