//! When what runs: the state of each job, the agenda, and the task that carries out decisions.

mod adopt;
pub(crate) mod agenda;
mod approve;
mod forward;
mod forwarded;
mod held;
mod homeservers;
mod job_event;
pub(crate) mod job_list;
mod job_metrics;
pub(crate) mod job_state;
pub(crate) mod job_view;
pub(crate) mod lease_keeper;
pub(crate) mod lease_times;
mod leases;
mod message;
mod owner;
mod plans;
mod recollection;
pub(crate) mod reload;
mod request;
mod run_task;
pub mod supervisor;
pub mod ticker;
mod watermarks;

pub(crate) use approve::{Approved, above_max_changes, not_waiting};
pub(crate) use job_event::JobEvent;
pub use request::RunOverrides;
pub(crate) use request::{Adopted, ApproveRequest, Refusal};
