//! Values that parse themselves: durations, sizes, schedules and the schema of the configuration.

pub(crate) mod age;
pub(crate) mod bounded_file;
pub mod clock;
pub(crate) mod duration;
pub(crate) mod escape;
pub(crate) mod fingerprint;
pub(crate) mod glob;
pub(crate) mod lock_file;
pub(crate) mod matrix_id;
pub(crate) mod random;
pub(crate) mod schedule;
pub mod schema;
pub(crate) mod size;
pub(crate) mod string_enum;
pub(crate) mod text;
