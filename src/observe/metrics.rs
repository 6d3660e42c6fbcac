//! The metrics, on a registry of their own.

mod homeservers;
mod job_families;
mod jobs;
mod registry;
mod seconds;

pub use homeservers::HomeserverState;
pub use jobs::{JobMetrics, Skipped};
pub use registry::{CONTENT_TYPE, Metrics};
pub use seconds::seconds;
