//! Reports to Matrix rooms: what is worth a message, the messages, their delivery, and the decisions of people who react.
//!
//! Nothing here fails or delays a run: what runs did is read from the history, and messages wait there until they are sent.

mod compose;
mod delivery;
mod digest;
mod names;
mod notifier;
mod plans;
mod text;

pub(crate) use notifier::Notifier;
