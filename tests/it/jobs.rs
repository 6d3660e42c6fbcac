//! One file per kind: what it must do, and what it must leave alone.

mod deactivate_accounts;
mod deactivated_for;
mod delete_rooms;
pub mod in_process;
mod join_rooms;
mod lock_inactive_accounts;
mod protect_media;
mod purge_history;
mod purge_local_media;
mod purge_local_media_exact;
mod purge_remote_media;
mod purge_rounds;
mod remove_external_ids;
mod remove_upstream_links;
mod request;
mod undo;
