//! The deletion of one account's stale devices from Synapse.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::judging::{Device, Judged, Owner, Rules, still_stale};
use crate::http::Cause;
use crate::plan::change::{Change, ChangeResult, Check, Lane, Warning};
use crate::plan::report::Action;
use crate::synapse::{self, Error, Reader, Writer};
use crate::values::text::{format_count, join_some};

/// Synapse writes a row for each device and each room of the account, and tells every server in them.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// Devices in a request: fifty take half as long as one at a time takes for a single one.
const AT_ONCE: usize = 50;

#[derive(Debug)]
pub(super) struct Deletion {
    user_id: String,
    owner: Owner,
    devices: Vec<Device>,
    /// Whether the account keeps no device that is in use.
    takes_last: bool,
    rules: Arc<Rules>,
}

impl From<synapse::Device> for Device {
    fn from(device: synapse::Device) -> Self {
        Self {
            id: device.id,
            name: device.display_name,
            last_used: device.last_seen_at,
            session: None,
            is_dehydrated: device.dehydrated,
        }
    }
}

impl Deletion {
    /// `None` if no device is stale.
    pub fn new(user_id: String, owner: Owner, judged: Judged, rules: Arc<Rules>) -> Option<Self> {
        let takes_last = !judged.is_in_use && !rules.keep_last;
        let devices = judged.stale;
        (!devices.is_empty()).then_some(Self { user_id, owner, devices, takes_last, rules })
    }
}

impl Change for Deletion {
    fn action(&self) -> Action {
        Action::DeleteDevice
    }

    fn target(&self) -> String {
        target(&self.user_id, &self.devices)
    }

    fn count(&self) -> u64 {
        self.devices.len() as u64
    }

    fn lane(&self) -> Lane {
        Lane::Paced { pause: PAUSE }
    }

    fn warning(&self) -> Option<Warning> {
        self.takes_last.then_some(Warning::LastDevices)
    }

    fn items(&self) -> Vec<(String, Option<u64>)> {
        items(&self.user_id, &self.devices)
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            let devices = reader.devices(&self.user_id).await?;
            let judged = self.rules.judge(self.owner, devices.into_iter().map(Device::from));
            Ok(proceed_with(&still_stale(&self.devices, judged)))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            let ids: Vec<String> = recorded(before).into_iter().map(|device| device.id).collect();
            let mut sent = 0;
            for some in ids.chunks(AT_ONCE) {
                if sent > 0 {
                    tokio::time::sleep(PAUSE).await;
                }
                match writer.delete_devices(&self.user_id, some).await {
                    Ok(()) => sent += some.len(),
                    // The run has to end: what was not sent stays for a later one.
                    Err(Error { cause: Cause::Cancelled, .. }) if sent > 0 => break,
                    Err(error) => return Err(partly_made(error, sent)),
                }
            }
            // The response says nothing of what was deleted.
            let left = writer.reader().devices(&self.user_id).await;
            let left = left.map_err(|error| partly_made(error, sent))?;
            let left: HashSet<String> = left.into_iter().map(|device| device.id).collect();
            let sent = ids.into_iter().take(sent);
            let (kept, gone): (Vec<String>, Vec<String>) = sent.partition(|id| left.contains(id));
            if gone.is_empty() {
                let problem = "Synapse still lists the devices that it was told to delete";
                return Err(Error::contradicted(&self.user_id, problem));
            }
            let done = gone.len() as u64;
            Ok(made(self.count(), done, kept.len() as u64, before))
        })
    }
}

/// The devices of an account, with the day of their last use.
pub(super) fn target(user_id: &str, devices: &[Device]) -> String {
    let devices: Vec<String> = devices.iter().map(Device::describe).collect();
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    format!("{user_id} -> {}", join_some(&devices))
}

pub(super) fn items(user_id: &str, devices: &[Device]) -> Vec<(String, Option<u64>)> {
    devices.iter().map(|device| (format!("{user_id} -> {}", device.key()), None)).collect()
}

/// Records which devices are deleted; skips the account if none is stale any more.
pub(super) fn proceed_with(devices: &[Device]) -> Check {
    match devices.is_empty() {
        true => Check::Skip("the devices were used or deleted since the plan".to_owned()),
        false => Check::Proceed(Some(json!({ "devices": devices }))),
    }
}

/// What to delete, as it was recorded.
pub(super) fn recorded(before: Option<&Value>) -> Vec<Device> {
    let devices = before.and_then(|before| before.get("devices")).cloned();
    devices.and_then(|devices| serde_json::from_value(devices).ok()).unwrap_or_default()
}

/// The result where `done` of the planned devices were deleted, and `kept` still exist.
pub(super) fn made(planned: u64, done: u64, kept: u64, before: Option<&Value>) -> ChangeResult {
    let changed = planned.saturating_sub(recorded(before).len() as u64);
    let mut details = Vec::new();
    if changed > 0 {
        let devices = format_count(changed, "device was", "devices were");
        details.push(format!("{devices} used or deleted since the plan"));
    }
    if kept > 0 {
        details.push(format!("{} still listed", format_count(kept, "device is", "devices are")));
    }
    let detail = (!details.is_empty()).then(|| details.join("; "));
    ChangeResult { skipped: changed + kept, detail, ..ChangeResult::items(done) }
}

/// The error of a change of which a part was made: what exactly, only the next plan shows.
pub(super) fn partly_made(error: Error, done: usize) -> Error {
    if done == 0 {
        return error;
    }
    let devices = format_count(done as u64, "device was", "devices were");
    Error { cause: Cause::Lost(format!("{devices} deleted before: {}", error.message())), ..error }
}
