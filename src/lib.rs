//! microglia: recurring housekeeping for Synapse, planned, previewed, guarded and on time.
//!
//! A job **reads** a homeserver and answers with a **plan**, a list of changes as data; a single runner checks the plan
//! against its guards and, unless it is a dry run, **makes** the changes, telling one stream of events to log, metrics,
//! history and progress.
//!
//! # Floors
//!
//! A module uses only what stands below it; `tests/architecture.rs` fails otherwise.
//!
//! | floor | modules | hold |
//! |---|---|---|
//! | 0 | `words` `escape` `keys` `clock` `glob` `length` `size` `schedule` `agenda` `age` | values that parse themselves, config tables as typed keys, and when a job is due |
//! | 1 | `report` `state_dir` `synapse` `change` | what a run did, the locks, the homeserver's API, what would change |
//! | 2 | `history` | runs, changes and what was learned, in SQLite |
//! | 3, 4 | `job` `jobs` | what a kind is, and the table of kinds |
//! | 5 | `config` | TOML text to settings and jobs, or every mistake with its place |
//! | 6 | `runner` `telling` `listing` `metrics` `ticker` | one run; events as log lines and series; the seam to the scheduler |
//! | 7 | `supervisor` | what is due, overlap, catch-up, adopting a config, draining |
//! | 8, 9 | `reload` `health` `control` `web` `daemon` | the ways to reach the daemon, and its composition |
//! | 10 | `cli` | one command a file |
//!
//! A new kind is one file in `src/jobs/` and its line in `src/jobs.rs`: config, `kinds`, metrics and the tests over the
//! table take it from there.
//!
//! # Invariants
//!
//! 1. Only `synapse::transport` sends HTTP to a homeserver. It holds the token, encodes path segments, limits rate and
//!    concurrency, retries, decodes, and names endpoint templates for the metrics.
//! 2. A job has a [`synapse::Reader`], which can only ask. Only the runner makes a [`synapse::Writer`], never in a dry run.
//! 3. Within an attempt all reading ends before the first change, save the look that a change takes at its own target
//!    just before it is made ([`change::Change::check`]).
//! 4. Log, metrics, progress and the control socket hear [`report::Event`]s and nothing else.
//! 5. Time and environment come in as values; only [`clock::Clock`] asks the time, only `cli` reads the environment.
//! 6. The history is written as it happens: a row when a run begins, each change before it is sent (with what it will
//!    replace) and after it was answered. What cannot be recorded is not done.
//! 7. One run of a job at a time in a state directory, whoever starts it: each holds the job's lock. Where a daemon
//!    lives, the command line asks it.
//! 8. A request whose answer was lost may still be at work: nothing that is not safe to repeat is repeated because of a
//!    time-out. A retry of the run plans anew, and what is not planned again was made.
//! 9. A change that only waits to be sent has done nothing: it is given up when its run has to end, and stays planned. One
//!    that was sent is waited for.
//! 10. Media calls go one at a time for a homeserver, and none while a lost one may be at work, across restarts.
//! 11. Changes of external ids go one at a time for a homeserver, whatever the limits, across runs and processes: each is
//!     read and written under the lock of [`change::Lane::ExternalIds`].
//! 12. Limits belong to the address of a homeserver, not to its name: two names share them, and so does a run that goes on
//!     while a reload renames its homeserver.
//!
//! # Decisions
//!
//! - Config tables are read key by key (`schema!`), not through serde's derive: each key reports its own mistake with its
//!   place, and the same definition is what `kinds` prints.
//! - A media purge is a [`change::BatchPlan`]: its changes are cut to size while it goes on, so that a call takes 5 to 20 s
//!   where the part of its time that does not depend on its size allows that.
//! - Until when occurrences of a job are dealt with is recorded when a run begins, when one is skipped while no run is at
//!   work, and, for those skipped during a run, when that has ended: what is later is missed at the next start. A run that
//!   was cut off is caught up while nothing later was dealt with.
//! - The daemon shares a homeserver's places for runs by a semaphore, the command line by locks in the state directory:
//!   only one of them runs jobs at a time.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod history;
pub mod jobs;
pub mod observe;
pub mod plan;
pub mod runner;
pub mod scheduler;
pub mod synapse;
pub mod values;
pub mod web;
