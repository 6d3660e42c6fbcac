//! Plans the deletion of files that are chosen one by one, account by account.

use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt;

use super::batch::{Rules, file_of};
use super::deletion::{Account, Deletion, Exact};
use super::in_use::InUse;
use super::reading::OWNERS;
use super::selection::{Seen, Selection, Verdict};
use crate::jobs::job::{Context, PlanError};
use crate::jobs::mas_accounts::state_of;
use crate::jobs::portion::{Next, PortionProgress, in_order};
use crate::plan::change::{Change, Plan, Work};
use crate::plan::report::Exempt;
use crate::plan::round::Portion;
use crate::synapse::{Identity, MediaOwner, Position, Version};
use crate::values::text::format_count;

/// The first version that returns a file by its id.
const NEEDS: Version = Version(1, 140);
/// A portion ends with the account that reaches this: the plan is in memory, and at 50 requests per second its deletion
/// takes half an hour.
const MAX_FILES: u64 = 100_000;

/// Why the homeserver does not allow exact mode.
pub(super) fn refusal(selection: &Selection, identity: &Identity, has_mas: bool) -> Option<String> {
    if identity.version < NEEDS {
        return Some(format!(
            "files can only be chosen one by one with Synapse {NEEDS} or later, this is {}: upgrade Synapse, or remove the keys that choose files",
            identity.version_text
        ));
    }
    (selection.accounts.is_some() && identity.mas && !has_mas).then(|| {
        "the state of accounts is stored in the Matrix Authentication Service: configure [homeservers.NAME.mas], or remove `accounts`".to_owned()
    })
}

/// Adds the files of the portion's accounts to the plan.
pub(super) async fn plan(
    selection: &Arc<Selection>,
    rules: Rules,
    context: &Context<'_>,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let identity = context.identity().await?;
    if let Some(refusal) = refusal(selection, identity, context.reader.mas().is_some()) {
        return Err(PlanError::Refused(refusal));
    }
    let server_name = identity.server_name.clone();
    let exact = Arc::new(Exact { selection: Arc::clone(selection), rules, server_name });
    let mut owners = context.reader.media_owners(Some(rules.before)).await?;
    if let Some(from) = &context.portion.from {
        owners.retain(|owner| owner.user_id.as_ref().is_some_and(|id| *id > from.after));
    }
    let portion = bounded(&context.portion);
    let mut planning = Planning {
        exact: &exact,
        context,
        in_use: InUse::read(&exact, context, &owners).await?,
        seen: portion
            .findings
            .clone()
            .and_then(|seen| serde_json::from_value(seen).ok())
            .unwrap_or_default(),
        progress: PortionProgress::new(&portion),
        changes: Vec::new(),
        unlisted: 0,
    };
    // Accounts that earlier runs of the round read may have no files any more.
    planning.progress.set_total(portion.read_before.saturating_add(owners.len() as u64));
    planning.accounts(owners, plan).await?;
    let Planning { in_use, seen, progress, changes, unlisted, .. } = planning;
    if let Some(rooms) = in_use.rooms {
        let rooms = format_count(rooms, "room", "rooms");
        plan.notes.push(format!("the state of {rooms} was read for files in use"));
    }
    if unlisted > 0 {
        let files = format_count(unlisted, "file", "files");
        plan.notes.push(format!("{files} of accounts that Synapse does not list cannot be chosen"));
    }
    if progress.is_complete() {
        plan.notes.extend(selection.notes(&seen));
    }
    plan.some_up_to_date = true;
    plan.portion = Some(progress.finish(serde_json::to_value(&seen).unwrap_or_default()));
    plan.work = Work::Changes(changes);
    plan.bytes = Some(0);
    plan.add_up_usage();
    Ok(())
}

/// Limits the files of a run, unless a person wants to see all.
fn bounded(portion: &Portion) -> Portion {
    let most = portion.enough.map_or(MAX_FILES, |enough| enough.min(MAX_FILES));
    let enough = if portion.until.is_some() { Some(most) } else { portion.enough };
    Portion { enough, ..portion.clone() }
}

/// A portion of the accounts while it is planned.
struct Planning<'a> {
    exact: &'a Arc<Exact>,
    context: &'a Context<'a>,
    in_use: InUse,
    seen: Seen,
    progress: PortionProgress<'a>,
    changes: Vec<Box<dyn Change>>,
    /// Files of accounts that Synapse does not list.
    unlisted: u64,
}

/// What was read of an account.
#[derive(Default)]
struct Read {
    files: Vec<Found>,
    left_alone: Vec<(Exempt, String)>,
    seen: Seen,
    unlisted: u64,
}

struct Found {
    /// Where it is in the list of all files of the account, oldest first.
    place: u32,
    id: Box<str>,
    bytes: u64,
}

impl Planning<'_> {
    async fn accounts(
        &mut self,
        owners: Vec<MediaOwner>,
        plan: &mut Plan,
    ) -> Result<(), PlanError> {
        let (exact, context) = (self.exact, self.context);
        let states = std::mem::take(&mut self.in_use.listed);
        let last = owners.len().checked_sub(1);
        let start = context.portion.from.as_ref().map_or(0, |from| from.offset);
        let mut accounts = pin!(in_order(owners, context, |owner| {
            let states = &states;
            async move {
                let user_id = owner.user_id.clone().unwrap_or_default();
                let read = exact.read(context, &owner, states.get(&user_id).copied()).await;
                (user_id, read)
            }
        }));
        while let Some((index, (user_id, read))) = accounts.next().await {
            let Read { mut files, left_alone, seen, unlisted } = read?;
            self.seen.merge(&seen);
            self.unlisted += unlisted;
            for (reason, id) in left_alone {
                plan.leave_alone(reason, || file_of(&id, &user_id));
            }
            if exact.rules.keep_avatars && !files.is_empty() {
                let in_use = self.in_use.files(exact, context).await?;
                files.retain(|file| {
                    let keep = in_use.contains(&file.id);
                    if keep {
                        plan.leave_alone(Exempt::InUse, || file_of(&file.id, &user_id));
                    }
                    !keep
                });
            }
            let items = vec![1; files.len()];
            self.delete(&user_id, files);
            let after = Position { after: user_id, offset: start + index as u64 + 1 };
            let next = self.progress.advance(after, &items, Some(index) == last);
            let (read, total) = self.progress.figures();
            context.reading(OWNERS, read, total);
            if next == Next::Stop {
                return Ok(());
            }
        }
        self.progress.end_page();
        Ok(())
    }

    fn delete(&mut self, user_id: &str, files: Vec<Found>) {
        let places = files.iter().map(|file| file.place).collect();
        let account = Account::new(user_id.to_owned(), Arc::clone(self.exact), places);
        let account = Arc::new(account);
        self.changes.extend((0..).zip(files).map(|(index, Found { id, bytes, .. })| {
            let account = Arc::clone(&account);
            Box::new(Deletion { account, index, id, bytes }) as Box<dyn Change>
        }));
    }
}

impl Exact {
    /// Reads which files of an account are selected; `listed` says whether it is deactivated and locked.
    async fn read(
        &self,
        context: &Context<'_>,
        owner: &MediaOwner,
        listed: Option<(bool, bool)>,
    ) -> Result<Read, PlanError> {
        let Self { selection, rules, .. } = self;
        let mut read = Read::default();
        let Some(user_id) = &owner.user_id else {
            read.unlisted = owner.media_count;
            return Ok(read);
        };
        if !selection.names_user(user_id, &mut read.seen) {
            return Ok(read);
        }
        if let Some(accounts) = &selection.accounts {
            let may_be = |(deactivated, locked)| accounts.may_include(deactivated, locked);
            // Under MAS, Synapse's list may be wrong.
            if context.reader.mas().is_none() && !listed.is_some_and(may_be) {
                return Ok(read);
            }
            let user = match context.reader.user(user_id).await {
                Err(error) if error.is_not_found() => return Ok(read),
                user => user?,
            };
            if !accounts.include(state_of(context.reader, &user).await?) {
                return Ok(read);
            }
        }
        let mut pages = pin!(context.reader.file_pages(user_id, rules.before));
        let mut place = 0;
        while let Some(page) = pages.next().await {
            let page = match page {
                Err(error) if error.is_not_found() => {
                    read.unlisted = owner.media_count;
                    break;
                }
                page => page?,
            };
            for file in page {
                match selection.judge(&file, *rules, &mut read.seen) {
                    Verdict::Delete => {
                        let (id, bytes) = (file.media_id.into(), file.media_length.unwrap_or(0));
                        read.files.push(Found { place, id, bytes });
                    }
                    Verdict::Keep(reason) => read.left_alone.push((reason, file.media_id)),
                    Verdict::NotSelected => {}
                }
                place += 1;
            }
        }
        Ok(read)
    }
}
