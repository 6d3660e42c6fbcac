//! What can be observed of microglia from outside: metrics and the run log.
//!
//! Log lines have explicit targets, which stay the same when code moves:
//!
//! | target | lines |
//! |---|---|
//! | `microglia::run` | start, end, waits, retries and failed changes of runs |
//! | `microglia::audit` | one line per applied change |
//! | `microglia::scheduler` | what runs when: skipped, caught up, cancelled, paused |
//! | `microglia::config` | warnings and errors of the configuration, reloads |
//! | `microglia::homeserver` | homeservers and their access tokens |
//! | `microglia::notification` | messages to Matrix rooms, and reactions to them |
//! | `microglia::history` | the history and the locks in the state directory |
//! | `microglia::daemon` | start, stop and the tasks of the daemon |

pub mod metrics;
pub(crate) mod run_log;
