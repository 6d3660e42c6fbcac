//! Every key of the configuration, by table.

use super::include::RootKeys;
use super::keys::{CommonEntries, DaemonKeys, HeadKeys, HomeserverHeadKeys, HomeserverKeys};
use super::mas_keys::{MasHeadKeys, MasKeys};
use super::notification_keys::NotificationKeys;
use crate::values::schema::Key;

/// Every key of the configuration outside the kinds, by table; "" is the top of the file.
pub const TABLES: &[(&str, &[Key])] = &[
    ("", RootKeys::KEYS),
    ("daemon", DaemonKeys::KEYS),
    ("homeservers.NAME", HomeserverHeadKeys::KEYS),
    ("homeservers.NAME and homeserver_defaults", HomeserverKeys::KEYS),
    ("homeservers.NAME.mas", MasHeadKeys::KEYS),
    ("homeservers.NAME.mas and homeserver_defaults.mas", MasKeys::KEYS),
    ("notifications.NAME", NotificationKeys::KEYS),
    ("jobs.NAME, every kind", HeadKeys::KEYS),
    ("jobs.NAME and defaults, every kind", CommonEntries::KEYS),
];
