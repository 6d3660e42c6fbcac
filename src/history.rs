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
mod runs;
mod schedules;
pub mod state_dir;
mod writer;

pub use changes::Page;
pub use error::Error;
pub use pause::Pause;
pub use reader::HistoryReader;
pub use runs::Standing;
pub use schedules::ScheduleState;
pub use writer::History;

#[cfg(test)]
mod tests;
