//! Values that parse themselves: durations, sizes, schedules and the schema of the configuration.

pub mod age;
pub(crate) mod bounded_file;
pub mod clock;
pub mod duration;
pub mod escape;
pub mod fingerprint;
pub mod glob;
pub mod schedule;
pub mod schema;
pub mod size;
pub mod string_enum;
pub mod text;
