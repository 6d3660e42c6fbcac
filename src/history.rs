//! The history: runs, their changes and what must survive a restart, in SQLite or PostgreSQL.

mod approvals;
mod changes;
mod columns;
mod copy;
mod database;
mod database_url;
mod error;
mod facts;
mod interrupted;
mod leases;
mod media_calls;
mod outbox;
mod overview;
mod pause;
mod per_job;
mod postgres;
mod reader;
mod replicas;
mod requests;
mod retention;
mod rounds;
mod runs;
mod schedules;
mod spread;
mod sqlite;
pub mod state_dir;
mod writer;

pub(crate) use approvals::{Claim, Decision, WaitingPlan};
pub(crate) use changes::Page;
pub(crate) use copy::copy;
pub use database::Place;
pub use database_url::DatabaseUrl;
pub(crate) use error::Error;
pub(crate) use leases::{Holder, Renewal, Replicas, Wanted};
pub(crate) use outbox::{JobTotals, NewMessage, PlanMessage, SentMessage, WaitingMessage};
pub(crate) use overview::{
    ChangeFilter, Difference, FoundChanges, OutcomeFilter, PlanDifference, RunFilter, RunMark,
    Totals,
};
pub(crate) use pause::Pause;
pub(crate) use reader::HistoryReader;
pub(crate) use requests::{RequestState, TakenRequest};
pub(crate) use runs::Standing;
pub(crate) use schedules::{Others, ScheduleState};
pub(crate) use spread::Replica;
pub use writer::History;

#[cfg(test)]
#[expect(dead_code, reason = "some of it is used by tests/it alone")]
#[path = "../tests/it/postgres.rs"]
mod postgres_server;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[path = "../tests/it/venv.rs"]
mod venv;
