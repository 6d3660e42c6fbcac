//! When what runs: the state of each job, the agenda, and the supervisor that carries out decisions.

pub mod agenda;
pub mod job_event;
pub mod job_list;
pub mod job_state;
pub mod reload;
pub mod supervisor;
pub mod ticker;
