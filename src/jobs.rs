//! The table of kinds: one file per kind, one line here.

mod account;
mod account_state;
mod batch_size;
mod deactivate_accounts;
mod delete_registration_tokens;
mod delete_reports;
mod delete_rooms;
mod delete_stale_devices;
pub mod job;
mod join_rooms;
mod lock_inactive_accounts;
mod mas_accounts;
mod portion;
mod protect_media;
mod purge_history;
mod purge_local_media;
mod purge_remote_media;
mod remove_external_ids;
mod request;
mod unused_account;

use job::Kind;

pub static KINDS: &[Kind] = &[
    Kind::of::<purge_local_media::PurgeLocalMedia>(),
    Kind::of::<purge_remote_media::PurgeRemoteMedia>(),
    Kind::of::<join_rooms::JoinRooms>(),
    Kind::of::<remove_external_ids::RemoveExternalIds>(),
    Kind::of::<delete_rooms::DeleteRooms>(),
    Kind::of::<purge_history::PurgeHistory>(),
    Kind::of::<protect_media::ProtectMedia>(),
    Kind::of::<lock_inactive_accounts::LockInactiveAccounts>(),
    Kind::of::<deactivate_accounts::DeactivateAccounts>(),
    Kind::of::<delete_stale_devices::DeleteStaleDevices>(),
    Kind::of::<delete_registration_tokens::DeleteRegistrationTokens>(),
    Kind::of::<delete_reports::DeleteReports<delete_reports::OfEvents>>(),
    Kind::of::<delete_reports::DeleteReports<delete_reports::OfUsers>>(),
    Kind::of::<request::Request>(),
];

pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::schema::Key;

    #[test]
    fn kinds_and_their_keys_are_named_once_and_documented() {
        let names: std::collections::BTreeSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KINDS.len());
        assert!(!KINDS.is_empty());
        for kind in KINDS {
            let keys: std::collections::BTreeSet<&str> =
                kind.keys.iter().map(|key| key.name).collect();
            assert_eq!(keys.len(), kind.keys.len(), "{}", kind.name);
            assert!(
                kind.about.len() > 100,
                "{} needs a longer description of what it does and skips",
                kind.name
            );
            for Key { name, about, .. } in kind.keys {
                assert!(about.trim().len() > 10, "{}.{name} is not documented", kind.name);
            }
        }
    }

    #[test]
    fn a_kind_that_runs_after_another_one_names_it() {
        let named: Vec<&str> = KINDS.iter().filter_map(|kind| kind.runs_after).collect();
        assert!(named.iter().all(|name| kind(name).is_some()), "{named:?}");
        assert_eq!(named.len(), 1);
    }

    #[test]
    fn each_kind_has_its_tests_and_its_row_in_the_readme() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
        let (modules, readme) = (read("tests/it/jobs.rs"), read("README.md"));
        for kind in KINDS {
            let name = kind.name.replace('-', "_");
            let file = format!("tests/it/jobs/{name}.rs");
            assert!(root.join(&file).exists(), "{file} is missing");
            let line = format!("mod {name};");
            assert!(modules.lines().any(|found| found == line), "tests/it/jobs.rs lacks `{line}`");
            let row = format!("| `{}` |", kind.name);
            assert!(
                readme.lines().any(|line| line.starts_with(&row)),
                "README.md lacks a row for {} in its table of kinds",
                kind.name
            );
        }
    }
}
