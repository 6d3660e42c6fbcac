//! One run of a job: read, guard, apply, finish.

mod apply;
mod context;
mod facts;
mod finish;
mod first_changes;
mod guards;
mod limits;
mod load_gate;
mod locks;
mod media_lock;
mod params;
mod portion;
mod queue;
mod read;
mod reading_progress;
mod retry;
mod round;
pub(crate) mod round_files;
mod run;
mod send;
mod slots;
mod stop;
mod tally;
mod unanswered;
mod undo;
mod waiting;
mod watch;

pub use params::{ApprovedPlan, HomeserverHandle, LostCallWait, RunParams, RunSlots};
pub(crate) use params::{Extent, WindowRule};
pub use run::{NotBegun, Runner};
pub use stop::Stop;
