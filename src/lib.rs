//! Housekeeping for Synapse.

pub mod age;
pub mod change;
pub mod clock;
pub mod glob;
pub mod history;
pub mod job;
pub mod jobs;
pub mod keys;
pub mod length;
pub mod report;
pub mod schedule;
pub mod size;
pub mod state_dir;
pub mod synapse;
pub mod words;
