//! Plans the end of sessions in MAS: all active ones are read once, and joined in memory with the accounts.
//!
//! Not in rounds: whether an account has another session shows only in all of them, and a page has a thousand.

use std::collections::HashMap;
use std::sync::Arc;

use super::finishing::{Account, Finishing};
use super::judging::{Device, Judged, Owner, Rules};
use super::keys::Keys;
use crate::jobs::job::{Context, PlanError};
use crate::mas::{self, Resource, Ulid, User};
use crate::plan::change::{Change, Plan, Work};
use crate::plan::report::Exempt;
use crate::values::glob::{Matched, Selection, select, unmatched};

pub(super) async fn plan(
    keys: &Keys,
    rules: &Arc<Rules>,
    context: &Context<'_>,
    mas: &mas::Reader,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let own = own_account(context, mas).await?;
    let owner = |id: &Ulid| if Some(id) == own.as_ref() { Owner::Own } else { Owner::Other };
    let (mut sessions, mut read) = (HashMap::<Ulid, Judged>::new(), 0);
    for kind in mas::DeviceSessionKind::ALL {
        let mut after = None;
        loop {
            let page = mas.device_sessions(*kind, None, after.as_ref()).await?;
            read += page.read;
            context.reading("sessions", read, 0);
            for session in page.sessions {
                let owner = owner(&session.user_id);
                let judged = sessions.entry(session.user_id.clone()).or_default();
                rules.add(judged, owner, Device::from(session));
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    let mut planning = Planning {
        keys,
        rules,
        server_name: &context.identity().await?.server_name,
        sessions,
        matched: Matched::default(),
        changes: Vec::new(),
    };
    let (mut accounts, mut after) = (0, None);
    loop {
        let page = mas.users_page(after.as_ref()).await?;
        accounts += page.rows.len() as u64;
        context.reading("accounts", accounts, 0);
        for user in page.rows {
            let owner = owner(&user.id);
            planning.account(user, owner, plan);
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    for pattern in unmatched(&keys.users, &keys.except_users, &planning.matched) {
        plan.notes.push(format!("`{pattern}` matched no account"));
    }
    plan.some_up_to_date = true;
    plan.work = Work::Changes(planning.changes);
    Ok(())
}

/// The id in MAS of the account that the run acts as.
async fn own_account(context: &Context<'_>, mas: &mas::Reader) -> Result<Option<Ulid>, PlanError> {
    let name = &context.identity().await?.account.name;
    let localpart = name.strip_prefix('@').and_then(|name| name.split_once(':'));
    let Some((localpart, _)) = localpart else { return Ok(None) };
    Ok(mas.user_by_name(localpart).await?.map(|user| user.id))
}

struct Planning<'a> {
    keys: &'a Keys,
    rules: &'a Arc<Rules>,
    server_name: &'a str,
    /// The sessions of each account.
    sessions: HashMap<Ulid, Judged>,
    matched: Matched,
    changes: Vec<Box<dyn Change>>,
}

impl Planning<'_> {
    fn account(&mut self, user: Resource<User>, owner: Owner, plan: &mut Plan) {
        let Resource { id, attributes: user } = user;
        let user_id = format!("@{}:{}", user.username, self.server_name);
        let Keys { users, except_users, .. } = self.keys;
        let selection = select(&user_id, users, except_users, &mut self.matched);
        let Some(mut judged) = self.sessions.remove(&id) else { return };
        let exempt = match selection {
            Selection::Unmatched => return,
            Selection::Excluded => Some(Exempt::Excluded),
            // MAS itself ends what is left of its sessions.
            Selection::Chosen if user.deactivated_at.is_some() => return,
            Selection::Chosen => user.locked_at.map(|_| Exempt::Locked),
        };
        if let Some(reason) = exempt {
            plan.leave_alone(reason, || user_id);
            return;
        }
        self.rules.keep_last(&mut judged);
        for (reason, device) in &judged.left_alone {
            plan.leave_alone(*reason, || format!("{user_id} -> {}", device.describe()));
        }
        let finishing =
            Finishing::new(Account { id, user_id, owner }, judged, Arc::clone(self.rules));
        self.changes.extend(finishing.map(|finishing| Box::new(finishing) as Box<dyn Change>));
    }
}
