//! Values that parse themselves, each with its text form and its place in the configuration.

pub mod age;
pub mod clock;
pub mod duration;
pub mod escape;
pub mod glob;
pub mod schedule;
pub mod schema;
pub mod size;
pub mod string_enum;
pub mod text;
