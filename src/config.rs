//! The configuration file: TOML text to settings and job specs, or every error with its location.

mod diagnostics;
mod job_spec;
mod keys;
mod load;
mod parser;
mod secrets;
mod settings;
mod source;

pub use diagnostics::{Diagnostic, LoadError};
pub use job_spec::JobSpec;
pub use keys::{CommonKeys, Overlap, Retries, TABLES};
pub use load::{listen, state_dir, state_dir_or_default};
pub use settings::{Config, Daemon, Environment, Homeserver};
pub use source::read_bytes;
