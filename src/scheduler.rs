//! When what runs: the state of each job, the agenda, and the task that carries out decisions.

mod adopt;
pub mod agenda;
mod homeservers;
pub mod job_list;
mod job_metrics;
pub mod job_state;
mod message;
mod owner;
mod recollection;
pub mod reload;
mod request;
mod run_task;
pub mod supervisor;
pub mod ticker;
mod watermarks;

pub use owner::Owner;
pub use request::{Adopted, Refusal, RunOverrides};
