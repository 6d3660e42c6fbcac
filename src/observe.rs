//! What can be seen of runs from outside: metrics and the run log.

pub mod metrics;
pub mod run_log;
