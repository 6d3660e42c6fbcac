//! Housekeeping for Synapse.

pub mod age;
pub mod agenda;
pub mod change;
pub mod cli;
pub mod clock;
pub mod config;
pub mod glob;
pub mod history;
pub mod job;
pub mod jobs;
pub mod keys;
pub mod length;
pub mod metrics;
pub mod report;
pub mod runner;
pub mod schedule;
pub mod size;
pub mod state_dir;
pub mod synapse;
pub mod telling;
pub mod ticker;
pub mod words;
