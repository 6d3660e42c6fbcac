//! The end of one account's stale sessions in MAS, which deletes their devices.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::deletion::{PAUSE, items, made, partly_made, proceed_with, recorded, target};
use super::judging::{Device, Judged, Owner, Rules, still_stale};
use crate::http::Cause;
use crate::jobs::mas_accounts::no_mas;
use crate::mas::{self, DeviceSession, DeviceSessionKind, Ulid};
use crate::plan::change::{Change, ChangeResult, Check, Lane, Warning};
use crate::plan::report::Action;
use crate::synapse::{Error, Reader, Writer};

#[derive(Debug)]
pub(super) struct Finishing {
    account: Account,
    devices: Vec<Device>,
    /// Whether the account keeps no session that is in use.
    takes_last: bool,
    rules: Arc<Rules>,
}

#[derive(Debug)]
pub(super) struct Account {
    pub id: Ulid,
    pub user_id: String,
    pub owner: Owner,
}

impl From<DeviceSession> for Device {
    fn from(session: DeviceSession) -> Self {
        Self {
            id: session.device_id,
            name: session.human_name,
            last_used: session.last_active_at,
            session: Some(session.reference),
            is_dehydrated: false,
        }
    }
}

impl Finishing {
    /// `None` if no session is stale.
    pub fn new(account: Account, judged: Judged, rules: Arc<Rules>) -> Option<Self> {
        let takes_last = !judged.is_in_use && !rules.keep_last;
        let devices = judged.stale;
        (!devices.is_empty()).then_some(Self { account, devices, takes_last, rules })
    }

    /// The active sessions of the account that have a device.
    async fn sessions(&self, mas: &mas::Reader) -> Result<Vec<Device>, Error> {
        let mut devices = Vec::new();
        for kind in DeviceSessionKind::ALL {
            let mut after = None;
            loop {
                let user = Some(&self.account.id);
                let page = mas.device_sessions(*kind, user, after.as_ref()).await?;
                devices.extend(page.sessions.into_iter().map(Device::from));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(devices)
    }
}

impl Change for Finishing {
    fn action(&self) -> Action {
        Action::FinishSession
    }

    fn target(&self) -> String {
        target(&self.account.user_id, &self.devices)
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
        items(&self.account.user_id, &self.devices)
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            let mas = reader.mas().ok_or_else(no_mas)?;
            let devices = match self.sessions(mas).await {
                Err(error) if error.is_not_found() => Vec::new(),
                devices => devices?,
            };
            let judged = self.rules.judge(self.account.owner, devices);
            Ok(proceed_with(&still_stale(&self.devices, judged)))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            let mas = writer.mas().ok_or_else(no_mas)?;
            let mut done = 0;
            for session in recorded(before).into_iter().filter_map(|device| device.session) {
                match mas.finish_session(&session).await {
                    Ok(()) => done += 1,
                    // The run has to end: what was not sent stays for a later one.
                    Err(Error { cause: Cause::Cancelled, .. }) if done > 0 => break,
                    Err(error) => return Err(partly_made(error, done)),
                }
            }
            Ok(made(self.count(), done as u64, 0, before))
        })
    }
}
