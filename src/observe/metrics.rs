//! The metrics, on a registry of their own.

mod homeservers;
mod job_families;
mod jobs;
mod registry;
mod seconds;

pub(crate) use homeservers::{HomeserverState, HomeserverView};
pub(crate) use jobs::{JobMetrics, RoundMetrics, Skipped};
pub(crate) use registry::CONTENT_TYPE;
pub use registry::Metrics;
pub(crate) use seconds::seconds;
