//! What a run would do and did: changes, plans, reports and events, as data.

pub mod change;
pub(crate) mod facts;
pub(crate) mod notification;
pub mod report;
pub(crate) mod round;
