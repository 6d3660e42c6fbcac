//! When what runs.

pub mod job_state;
