//! `remove-external-ids`.
