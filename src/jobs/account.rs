//! One picture of an account: whether a person uses it, and when they were last there.
//!
//! Kinds that select people judge by these rules, each of which answers a trap that was measured with Synapse 1.163.

use std::collections::HashMap;

use super::job::Context;
use super::mas_accounts;
use crate::mas::{self, Resource, SessionKind, Ulid};
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::Exempt;
use crate::synapse::{self, Cause, Device, Identity, Reader, User, UserRow};
use crate::values::clock::Timestamp;

/// Why an account may not be that of a person who can use it, by its row in the list, the strongest reason first.
///
/// A kind takes the first reason that matters to it. A row shows neither bridges nor suspension, which its record does.
pub(super) fn exempt_by_row(row: &UserRow, identity: &Identity) -> impl Iterator<Item = Exempt> {
    let UserRow { name, user_type, is_guest, admin, deactivated, locked, .. } = row;
    exempt(
        &Shown {
            name,
            user_type: user_type.as_deref(),
            is_guest: *is_guest,
            admin: *admin,
            deactivated: *deactivated,
            locked: *locked,
            suspended: false,
            appservice_id: None,
        },
        identity,
    )
}

/// The same by its record, which is newer than the row, and shows everything.
pub(super) fn exempt_by_record(user: &User, identity: &Identity) -> impl Iterator<Item = Exempt> {
    let User { name, user_type, is_guest, admin, deactivated, locked, .. } = user;
    exempt(
        &Shown {
            name,
            user_type: user_type.as_deref(),
            is_guest: *is_guest,
            admin: *admin,
            deactivated: *deactivated,
            locked: *locked,
            suspended: user.suspended,
            appservice_id: user.appservice_id.as_deref(),
        },
        identity,
    )
}

/// Which accounts of a page earlier runs found to be those of bridges, by their ids, with the ids of the bridges.
pub(super) async fn known_ghosts(
    context: &Context<'_>,
    rows: &[UserRow],
) -> HashMap<String, String> {
    match (rows.first(), rows.last()) {
        (Some(first), Some(last)) => {
            context.facts.between(Topic::Ghost, &first.name, &last.name).await
        }
        _ => HashMap::new(),
    }
}

/// What later runs are to know of an account whose record names a bridge.
pub(super) fn as_ghost(user: &User) -> Option<Fact> {
    let value = user.appservice_id.clone()?;
    Some(Fact { topic: Topic::Ghost, key: user.name.clone(), value })
}

/// When an account was last used: the newest that any source knows.
///
/// The row in the list can be older than the record, since one old device hides newer requests without a device; both lag
/// some minutes behind the devices. "Never" is `None`, and not long ago: Synapse forgets a use without a device after four
/// weeks, and knows none of bridges, of devices that only logged in, and of dehydrated ones.
pub(super) fn last_seen(sources: impl IntoIterator<Item = Option<Timestamp>>) -> Option<Timestamp> {
    sources.into_iter().flatten().max()
}

/// An account, as all of its sources show it at one time.
#[derive(Debug)]
pub(super) struct Account {
    pub user: User,
    pub devices: Vec<Device>,
    pub in_mas: InMas,
    /// The newest use that its record, its devices, and its sessions in MAS show.
    pub last_seen_at: Option<Timestamp>,
}

/// What MAS says of an account.
#[derive(Debug)]
pub(super) enum InMas {
    /// Synapse manages the accounts.
    NoMas,
    /// MAS does not know the account, which may be that of a bridge.
    Unknown,
    Known(Resource<mas::User>),
}

impl Account {
    /// Reads an account; `None` if it does not exist.
    ///
    /// Takes two requests, and four more where MAS manages the accounts.
    pub async fn read(reader: &Reader, user_id: &str) -> Result<Option<Self>, synapse::Error> {
        let user = match reader.user(user_id).await {
            Err(error) if error.is_not_found() => return Ok(None),
            user => user?,
        };
        let devices = reader.devices(user_id).await?;
        let mut seen: Vec<Option<Timestamp>> =
            devices.iter().map(|device| device.last_seen_at).collect();
        seen.push(user.last_seen_at);
        let mut in_mas = InMas::NoMas;
        if let Some(mas) = reader.mas() {
            in_mas = InMas::Unknown;
            if let Some(found) = mas_accounts::in_mas(reader, user_id).await? {
                for kind in SessionKind::ALL {
                    let sessions = mas.sessions(kind, &found.id).await?.into_iter();
                    // A session that just began has not been active yet.
                    seen.extend(sessions.flat_map(|Resource { attributes, .. }| {
                        [Some(attributes.created_at), attributes.last_active_at]
                    }));
                }
                in_mas = InMas::Known(found);
            }
        }
        Ok(Some(Self { user, devices, in_mas, last_seen_at: last_seen(seen) }))
    }

    /// All reasons why it may not be the account of a person who can use it, by Synapse and by MAS.
    pub fn exempt(&self, identity: &Identity) -> impl Iterator<Item = Exempt> {
        let in_mas = match &self.in_mas {
            InMas::Known(user) => Some(&user.attributes),
            InMas::NoMas | InMas::Unknown => None,
        };
        let says = |is_so: fn(&mas::User) -> bool| in_mas.is_some_and(is_so);
        let by_mas = [
            // MAS cannot lock it, and Synapse's own lock would lock nobody out.
            (matches!(self.in_mas, InMas::Unknown), Exempt::NotInMas),
            (says(|user| user.deactivated_at.is_some()), Exempt::Deactivated),
            (says(|user| user.locked_at.is_some()), Exempt::Locked),
            (says(|user| user.legacy_guest), Exempt::Guest),
            (says(|user| user.admin), Exempt::Admin),
        ];
        exempt_by_record(&self.user, identity).chain(applying(by_mas))
    }

    /// Whether the account is locked: under MAS a lock in Synapse locks nobody out.
    pub fn is_locked(&self) -> bool {
        match &self.in_mas {
            InMas::NoMas => self.user.locked,
            InMas::Unknown => false,
            InMas::Known(user) => user.attributes.locked_at.is_some(),
        }
    }

    pub fn locked_at_in_mas(&self) -> Option<Timestamp> {
        match &self.in_mas {
            InMas::NoMas | InMas::Unknown => None,
            InMas::Known(user) => user.attributes.locked_at,
        }
    }

    /// The id of the account in MAS, where its changes have to be made; `None` where Synapse manages the accounts.
    pub fn id_in_mas(&self) -> Option<&Ulid> {
        match &self.in_mas {
            InMas::NoMas | InMas::Unknown => None,
            InMas::Known(user) => Some(&user.id),
        }
    }
}

/// Tells an account that cannot be read from a homeserver that cannot be read.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    in_a_row: u32,
}

impl Unreadable {
    /// Whether the error is about this one account, whose row may be damaged or have the name of another server.
    ///
    /// After several in a row, it is not.
    pub fn is_only_this(&mut self, error: &synapse::Error) -> bool {
        const MAX_IN_A_ROW: u32 = 5;
        let may_be = matches!(error.cause, Cause::Synapse { status: 400 | 500, .. })
            && !error.is_about_token();
        self.in_a_row += u32::from(may_be);
        may_be && self.in_a_row <= MAX_IN_A_ROW
    }

    /// An account was read.
    pub fn reset(&mut self) {
        self.in_a_row = 0;
    }
}

/// What a source shows of an account.
#[expect(clippy::struct_excessive_bools, reason = "Synapse's own fields")]
struct Shown<'a> {
    name: &'a str,
    user_type: Option<&'a str>,
    is_guest: bool,
    admin: bool,
    deactivated: bool,
    locked: bool,
    suspended: bool,
    appservice_id: Option<&'a str>,
}

fn exempt(shown: &Shown<'_>, identity: &Identity) -> impl Iterator<Item = Exempt> + use<> {
    let is_bot = matches!(shown.user_type, Some("bot" | "support"));
    applying([
        // Synapse lets an account lock and deactivate itself, and delete its own device.
        (shown.name == identity.account.name, Exempt::OwnAccount),
        // Synapse records no use by a bridge. A lock or a deactivation does not keep the bridge from using its account, and
        // takes that out of lists and rooms; without its device, each request of the bridge fails. Only accounts in an
        // exclusive namespace of the bridge, and its sender, have the id of the bridge.
        (shown.appservice_id.is_some(), Exempt::Bridge),
        // It can be joined to rooms, and never leave them again.
        (shown.deactivated, Exempt::Deactivated),
        // In lists only if they are asked for locked accounts. A locked person stays in rooms.
        (shown.locked, Exempt::Locked),
        (shown.suspended, Exempt::Suspended),
        // In the list of MAS by another name only: Synapse's must be asked without guests there.
        (shown.is_guest, Exempt::Guest),
        (is_bot, Exempt::Bot),
        // A module or another program sets it, and knows what it means.
        (!is_bot && shown.user_type.is_some(), Exempt::OtherType),
        // Under MAS, where Synapse's flag grants nothing, MAS says who else is one.
        (shown.admin, Exempt::Admin),
    ])
}

fn applying<const N: usize>(reasons: [(bool, Exempt); N]) -> impl Iterator<Item = Exempt> {
    reasons.into_iter().filter_map(|(applies, exempt)| applies.then_some(exempt))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::synapse::Version;

    fn user(fields: &Value) -> User {
        let mut user = json!({"name": "@a:hs"});
        user.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(user).unwrap()
    }

    fn identity() -> Identity {
        Identity {
            account: user(&json!({"name": "@microglia:hs"})),
            server_name: "hs".to_owned(),
            version: Version(1, 163),
            version_text: "1.163.2".to_owned(),
            mas: false,
            clock_ahead: None,
        }
    }

    #[test]
    fn each_sign_that_no_person_can_use_an_account_is_a_reason() {
        for (fields, expected) in [
            (json!({}), vec![]),
            (json!({"name": "@microglia:hs"}), vec![Exempt::OwnAccount]),
            (json!({"appservice_id": "irc"}), vec![Exempt::Bridge]),
            (json!({"deactivated": true, "locked": 1}), vec![Exempt::Deactivated, Exempt::Locked]),
            (json!({"suspended": true}), vec![Exempt::Suspended]),
            (json!({"is_guest": 1}), vec![Exempt::Guest]),
            (json!({"user_type": "bot"}), vec![Exempt::Bot]),
            (json!({"user_type": "support", "admin": true}), vec![Exempt::Bot, Exempt::Admin]),
            (json!({"user_type": "kiosk"}), vec![Exempt::OtherType]),
            (json!({"user_type": null, "admin": true}), vec![Exempt::Admin]),
        ] {
            let by_record: Vec<Exempt> = exempt_by_record(&user(&fields), &identity()).collect();
            assert_eq!(by_record, expected, "{fields}");
            if fields.get("appservice_id").or(fields.get("suspended")).is_none() {
                let mut row = json!({"name": "@a:hs"});
                row.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
                let row: UserRow = serde_json::from_value(row).unwrap();
                let by_row: Vec<Exempt> = exempt_by_row(&row, &identity()).collect();
                assert_eq!(by_row, expected, "{row:?}");
            }
        }
    }

    #[test]
    fn the_newest_use_counts_and_never_is_not_long_ago() {
        let at = |ms| Timestamp::from_timestamp_millis(ms);
        assert_eq!(last_seen([at(1000), None, at(3000), at(2000)]), at(3000));
        assert_eq!(last_seen([None, None]), None);
    }

    #[test]
    fn a_list_counts_the_age_of_an_account_in_milliseconds_and_a_record_in_seconds() {
        let row: UserRow = serde_json::from_value(
            json!({"name": "@a:hs", "creation_ts": 1_795_409_351_000_i64, "last_seen_ts": 1_795_409_400_000_i64}),
        )
        .unwrap();
        let record =
            user(&json!({"creation_ts": 1_795_409_351, "last_seen_ts": 1_795_409_400_000_i64}));
        assert_eq!((row.created_at, row.last_seen_at), (record.created_at, record.last_seen_at));
        assert_eq!(row.created_at.unwrap().to_rfc3339(), "2026-11-23T04:49:11+00:00");
        for nothing in [json!(null), json!(0), json!(-1)] {
            let row: UserRow =
                serde_json::from_value(json!({"name": "@a:hs", "last_seen_ts": nothing})).unwrap();
            assert_eq!((row.created_at, row.last_seen_at), (None, None));
        }
        // Nobody was last seen beyond the end of time: it is no reason to count as never seen.
        let far = json!({"name": "@a:hs", "last_seen_ts": u64::MAX});
        let far: UserRow = serde_json::from_value(far).unwrap();
        assert_eq!(far.last_seen_at, Some(Timestamp::MAX_UTC));
    }
}
