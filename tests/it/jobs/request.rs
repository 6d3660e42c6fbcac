//! `request`.
