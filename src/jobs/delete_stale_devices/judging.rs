//! Which devices of an account are stale; the plan asks, and its changes ask again.

use serde::{Deserialize, Serialize};

use crate::mas::SessionRef;
use crate::plan::report::Exempt;
use crate::synapse::display_line;
use crate::values::clock::Timestamp;

/// What is the same for all accounts of a run.
#[derive(Debug)]
pub(super) struct Rules {
    /// A device that was used since is not stale.
    pub unused_since: Timestamp,
    pub keep_last: bool,
    /// The device of the token that the run uses, in the account of the token.
    pub own_device: Option<String>,
}

/// A device of Synapse, or under MAS a session that has one; the history records it when it is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Device {
    #[serde(rename = "device_id")]
    pub id: String,
    pub name: Option<String>,
    /// `None` if it was never used.
    pub last_used: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionRef>,
    /// Never recorded, because it is never deleted.
    #[serde(skip)]
    pub is_dehydrated: bool,
}

/// Whose devices are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The account of the token that the run uses.
    Own,
    Other,
}

enum Verdict {
    Stale,
    InUse,
    LeaveAlone(Exempt),
}

/// The devices of an account, as they were judged.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub stale: Vec<Device>,
    pub left_alone: Vec<(Exempt, Device)>,
    /// Whether a device is in use.
    pub is_in_use: bool,
}

impl Rules {
    /// Decides about one device, whatever others the account has.
    fn verdict(&self, owner: Owner, device: &Device) -> Verdict {
        let is_own = owner == Owner::Own && self.own_device.as_ref() == Some(&device.id);
        match device.last_used {
            _ if is_own => Verdict::LeaveAlone(Exempt::OwnDevice),
            // Without it, a person without another device loses what arrives meanwhile.
            _ if device.is_dehydrated => Verdict::LeaveAlone(Exempt::Dehydrated),
            // It may be new: Synapse does not record when a device was created.
            None => Verdict::LeaveAlone(Exempt::NeverUsed),
            Some(at) if at > self.unused_since => Verdict::InUse,
            Some(_) => Verdict::Stale,
        }
    }

    /// Decides about all devices of an account.
    pub fn judge(&self, owner: Owner, devices: impl IntoIterator<Item = Device>) -> Judged {
        let mut judged = Judged::default();
        devices.into_iter().for_each(|device| self.add(&mut judged, owner, device));
        self.keep_last(&mut judged);
        judged
    }

    /// Adds a device to those of its account.
    pub fn add(&self, judged: &mut Judged, owner: Owner, device: Device) {
        match self.verdict(owner, &device) {
            Verdict::Stale => judged.stale.push(device),
            Verdict::InUse => judged.is_in_use = true,
            Verdict::LeaveAlone(reason) => {
                judged.is_in_use |= reason == Exempt::OwnDevice;
                judged.left_alone.push((reason, device));
            }
        }
    }

    /// Leaves the device alone that was used last, if none is in use.
    ///
    /// One that was never used does not count: its person may never have got hold of it.
    pub fn keep_last(&self, judged: &mut Judged) {
        judged.stale.sort_by(|a, b| (a.last_used, &a.id).cmp(&(b.last_used, &b.id)));
        if self.keep_last && !judged.is_in_use {
            judged.left_alone.extend(judged.stale.pop().map(|last| (Exempt::LastDevice, last)));
        }
    }
}

impl Device {
    /// Names the device among those of its account; two sessions may have one of the same id.
    pub fn key(&self) -> &str {
        self.session.as_ref().map_or(&self.id, |session| session.id.as_str())
    }

    /// `ABCDEF (last used 2026-01-02)`, for targets.
    pub fn describe(&self) -> String {
        let id = display_line(&self.id, 255);
        match self.last_used {
            Some(at) => format!("{id} (last used {})", at.format("%Y-%m-%d")),
            None => id,
        }
    }
}

/// The devices among those that were planned which are still stale, and were not used since.
pub(super) fn still_stale(planned: &[Device], now: Judged) -> Vec<Device> {
    now.stale.into_iter().filter(|device| planned.contains(device)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 24 * 3600 * 1000;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_timestamp_millis(day * DAY_MS).unwrap()
    }

    fn device(id: &str, last_used: Option<i64>) -> Device {
        Device {
            id: id.to_owned(),
            name: None,
            last_used: last_used.map(at),
            session: None,
            is_dehydrated: false,
        }
    }

    fn rules(keep_last: bool) -> Rules {
        Rules { unused_since: at(100), keep_last, own_device: Some("OWN".to_owned()) }
    }

    fn ids(devices: &[Device]) -> Vec<&str> {
        devices.iter().map(|device| device.id.as_str()).collect()
    }

    /// The stale devices of an account, and why others are left alone.
    fn judged(keep_last: bool, devices: Vec<Device>) -> String {
        let Judged { stale, left_alone, .. } = rules(keep_last).judge(Owner::Other, devices);
        let left = left_alone.iter();
        let left: Vec<String> =
            left.map(|(reason, device)| format!("{} {reason}", device.id)).collect();
        format!("{} | {}", ids(&stale).join(" "), left.join(", "))
    }

    #[test]
    fn only_devices_that_were_used_long_ago_are_stale_and_the_last_one_stays() {
        let dehydrated = || Device { is_dehydrated: true, ..device("D", Some(1)) };
        for (devices, expected, without_keep_last) in [
            (vec![], " | ", " | "),
            (vec![device("A", Some(101))], " | ", " | "),
            (vec![device("A", Some(100))], " | A last-device", "A | "),
            (vec![device("A", Some(100)), device("B", Some(101))], "A | ", "A | "),
            (vec![device("A", Some(9)), device("B", Some(8))], "B | A last-device", "B A | "),
            (vec![device("B", Some(9)), device("A", Some(9))], "A | B last-device", "A B | "),
            // One that was never used is no reason to delete the last one that was.
            (
                vec![device("A", Some(9)), device("N", None)],
                " | N never-used, A last-device",
                "A | N never-used",
            ),
            (
                vec![device("A", Some(9)), dehydrated()],
                " | D dehydrated, A last-device",
                "A | D dehydrated",
            ),
        ] {
            let found = (judged(true, devices.clone()), judged(false, devices.clone()));
            assert_eq!(found, (expected.to_owned(), without_keep_last.to_owned()), "{devices:?}");
        }
    }

    #[test]
    fn the_own_device_is_in_use_and_another_account_may_have_one_of_the_same_id() {
        let devices = || [device("OWN", Some(1)), device("A", Some(1))];
        assert_eq!(ids(&rules(true).judge(Owner::Own, devices()).stale), ["A"]);
        assert_eq!(ids(&rules(false).judge(Owner::Other, devices()).stale), ["A", "OWN"]);
    }

    #[test]
    fn only_what_was_planned_and_not_used_since_is_still_stale() {
        let planned = [device("A", Some(1)), device("B", Some(1)), device("C", Some(1))];
        let now = vec![device("A", Some(1)), device("B", Some(2)), device("N", Some(1))];
        let still = still_stale(&planned, rules(false).judge(Owner::Other, now));
        assert_eq!(still, [device("A", Some(1))]);
    }
}
