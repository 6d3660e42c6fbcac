//! The tables `[notifications.NAME]`.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::DeTable;

use super::super::notification_keys::{NotificationKeys, NotifyOn};
use super::super::settings::Notification;
use super::{NameRule, Parser};
use crate::values::schema::{Entry, Table};
use crate::values::text::unknown;

const NAME: NameRule = NameRule {
    what: "notification",
    is_allowed: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-',
    allowed: "lower-case letters, digits and -",
};

impl Parser<'_> {
    /// Sorted by name; those with an error are left out. `homeservers` are the names of all.
    pub(super) fn notifications(
        &mut self,
        table: &DeTable<'_>,
        homeservers: &[&str],
    ) -> Vec<Notification> {
        let mut notifications: Vec<Notification> = table
            .iter()
            .filter_map(|(name, value)| {
                let entries = self.named_table(name, value, &NAME)?;
                self.notification(name, entries, homeservers)
            })
            .collect();
        notifications.sort_by(|a, b| a.name.cmp(&b.name));
        notifications
    }

    fn notification(
        &mut self,
        name: &Spanned<Cow<'_, str>>,
        entries: &DeTable<'_>,
        homeservers: &[&str],
    ) -> Option<Notification> {
        let table = Table::new(entries, name.span());
        table.reject_unknown(&[NotificationKeys::KEYS], &mut self.errors);
        let keys = NotificationKeys::parse(&table, &mut self.errors);
        let homeserver = self.homeserver_of(&keys.homeserver, &table, homeservers);
        let (on, digest) = (keys.on.value?, keys.digest.value?);
        let reports = |event| on.contains(&event);
        if on.is_empty() && digest.is_none() {
            self.error(
                keys.on.span.clone(),
                "the notification never sends anything: add events to `on`, or set `digest`",
            );
        }
        if reports(NotifyOn::Recovery) && !reports(NotifyOn::Failure) {
            self.error(keys.on.span, "\"recovery\" reports the end of failures that were reported: add \"failure\" to `on`, or remove \"recovery\"");
        }
        let approvers = keys.approvers.value?;
        if !approvers.is_empty() && !reports(NotifyOn::Approval) {
            self.error(keys.approvers.span, "`approvers` react to messages about plans: add \"approval\" to `on`, or remove `approvers`");
        }
        Some(Notification {
            name: name.get_ref().to_string(),
            homeserver: homeserver?,
            room: keys.room.value?.0,
            on,
            digest,
            approvers,
            names: keys.names.value?,
        })
    }

    fn homeserver_of(
        &mut self,
        entry: &Entry<Option<String>>,
        table: &Table<'_, '_>,
        homeservers: &[&str],
    ) -> Option<String> {
        match (entry.value.as_ref()?, homeservers) {
            (Some(name), _) if homeservers.contains(&name.as_str()) => Some(name.clone()),
            (Some(name), _) => {
                let text = unknown("homeserver", name, homeservers);
                self.error(entry.span.clone(), text);
                None
            }
            (None, [only]) => Some((*only).to_owned()),
            // A configuration without homeservers is an error of its own.
            (None, []) => None,
            (None, _) => {
                let text =
                    "`homeserver` is missing: name the homeserver whose account sends the messages";
                self.error(table.span.clone(), text);
                None
            }
        }
    }
}
