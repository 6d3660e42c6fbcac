//! What can be observed of microglia from outside: metrics and the run log.
//!
//! Log lines have explicit targets, which stay when code moves: `microglia::run` (start, end, waits, retries and failed
//! changes of runs), `microglia::audit` (one line per applied change), `microglia::scheduler`, `microglia::config`,
//! `microglia::homeserver`, `microglia::history` and `microglia::daemon`.

pub mod metrics;
pub mod run_log;
