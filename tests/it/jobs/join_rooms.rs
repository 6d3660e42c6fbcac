//! `join-rooms`.
