//! `purge-local-media`.
