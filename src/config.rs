//! The configuration files: TOML text to settings and job specs, or every error with its location.

mod connect;
mod diagnostics;
mod include;
mod job_spec;
mod keys;
mod load;
mod mas_keys;
mod notification_keys;
mod parser;
mod secrets;
mod settings;
mod source;
mod sources;
mod tables;

pub(crate) use connect::{ConnectFor, Connections};
pub(crate) use diagnostics::{Diagnostic, LoadError};
pub(crate) use job_spec::{JobSpec, changed_keys};
pub(crate) use keys::{Overlap, Retries};
pub(crate) use load::{files_fingerprint, listen, state_dir, state_dir_or_default};
pub(crate) use notification_keys::NotifyOn;
pub use settings::{Config, Environment, HistoryPlace};
pub(crate) use settings::{Daemon, Homeserver, Mas, Notification};
pub use tables::TABLES;
