//! `delete-event-reports` and `delete-user-reports`: delete old reports.

mod deletion;

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use super::job::{Context, Job, Needs, PlanError, Undo};
use crate::plan::change::{Change, Plan, Work};
use crate::plan::report::Action;
use crate::synapse::{Reported, Version};
use crate::values::age::{Age, AgeEntries};
use crate::values::clock::Timestamp;
use crate::values::duration::HumanDuration;
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, Key, Table};
use deletion::{Deletion, Deletions};

schema! {
    pub entries Keys {
        /// Deletes reports received longer ago than this, counted back from the start of the run. Set exactly one of `older_than` and `before`.
        pub older_than: Option<HumanDuration> where "\"0s\"" to "\"3650d\"",
        /// Deletes reports received before this time.
        pub before: Option<Timestamp>,
        /// Allows an age of less than 7 days.
        pub allow_recent: bool = "false",
        /// Keeps what was reported, by whom and why in the history of microglia, as long as `keep_history`. It is shown by `runs show`, and never served over HTTP. With false, not even the plan names anybody.
        pub keep_record: bool = "true",
    }
}

/// What differs between the two kinds.
pub trait Sort: Debug + Send + Sync + 'static {
    const KIND: &'static str;
    const ABOUT: &'static str;
    const ACTION: Action;
    const REPORTED: Reported;
    const SINCE: Version;
}

#[derive(Debug)]
pub struct OfEvents;

impl Sort for OfEvents {
    const KIND: &'static str = "delete-event-reports";
    const ABOUT: &'static str = "Deletes reports of events, which users send to the server administrator, once they are older than an age. They are evidence, and the only copy of the reason: by default each is kept in the history of microglia. The event itself stays. \
        Synapse neither lists nor shows reports of rooms that were deleted, so that they stay in its database, and it has no list of reports of whole rooms.";
    const ACTION: Action = Action::DeleteEventReport;
    const REPORTED: Reported = Reported::Event;
    const SINCE: Version = Version(1, 79);
}

#[derive(Debug)]
pub struct OfUsers;

impl Sort for OfUsers {
    const KIND: &'static str = "delete-user-reports";
    const ABOUT: &'static str = "Deletes reports of users, which other users send to the server administrator, once they are older than an age. They are evidence, and the only copy of the reason: by default each is kept in the history of microglia. The account itself is not changed.";
    const ACTION: Action = Action::DeleteUserReport;
    const REPORTED: Reported = Reported::User;
    const SINCE: Version = Version(1, 152);
}

#[derive(Debug)]
pub struct DeleteReports<S> {
    age: Age,
    keep_record: bool,
    sort: PhantomData<S>,
}

impl<S: Sort> Job for DeleteReports<S> {
    const KIND: &'static str = S::KIND;
    const ABOUT: &'static str = S::ABOUT;
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = S::ACTION;
    const UNDO: Undo = Undo::Impossible(
        "Synapse gives every report another id and the time at which it arrives; what was reported is in the history, unless `keep_record` is false",
    );
    const NEEDS: Needs = Needs {
        synapse: S::SINCE,
        clock: true,
        without_mas_client: None,
        plans_offline: false,
        media: false,
    };

    fn read(table: &Table<'_, '_>, now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let keys = Keys::parse(table, errors);
        let age = AgeEntries {
            older_than: &keys.older_than,
            before: &keys.before,
            allow_recent: &keys.allow_recent,
        };
        let age = Age::combine(age, &table.span, now, errors);
        Some(Self { age: age?, keep_record: keys.keep_record.value?, sort: PhantomData })
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let before = self.age.past_cut_off(context.started_at).map_err(PlanError::Refused)?;
        let (mut reports, _) = context.reader.oldest_reports(S::REPORTED, before).await?;
        reports.retain(|report| report.received_at() < before);
        context.reading("reports", reports.len() as u64, reports.len() as u64);
        let deletions = Arc::new(Deletions::new(S::REPORTED, S::ACTION, self.keep_record));
        let changes = reports.into_iter().map(|report| {
            let deletions = Arc::clone(&deletions);
            Box::new(Deletion { report, deletions }) as Box<dyn Change>
        });
        plan.some_up_to_date = true;
        plan.work = Work::Changes(changes.collect());
        Ok(())
    }
}
