//! The command line: one command per file, no logic of its own.

mod arguments;
mod check;
mod check_mas;
mod client;
mod context;
mod control;
mod dispatch;
mod event_stream;
mod failure;
mod healthcheck;
mod history;
mod init;
mod jobs;
mod kinds;
mod left_alone;
mod log;
mod login;
mod man;
mod mas_settings;
mod new_file;
mod output;
mod progress;
mod prompt;
mod recorded;
mod report_text;
mod run;
mod run_in_daemon;
mod run_in_process;
mod run_lease;
mod runs;
mod serve;
mod session;
mod signals;
mod sso;
mod table;

pub use dispatch::main;
