//! `purge-remote-media`.
