//! The history: runs, their changes and what must survive a restart, in SQLite.

mod changes;
mod columns;
mod database;
mod error;
mod facts;
mod interrupted;
mod media_calls;
mod pause;
mod per_job;
mod reader;
mod retention;
mod rounds;
mod runs;
mod schedules;
pub mod state_dir;
mod writer;

pub(crate) use changes::Page;
pub(crate) use error::Error;
pub(crate) use pause::Pause;
pub(crate) use reader::HistoryReader;
pub(crate) use runs::Standing;
pub(crate) use schedules::ScheduleState;
pub use writer::History;

#[cfg(test)]
mod tests;
