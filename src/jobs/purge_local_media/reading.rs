//! Reads which files of all accounts are old, in as many runs as it takes.

use std::future::ready;
use std::io;
use std::path::Path;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use tokio::task::yield_now;

use super::batch::{Rules, file_of};
use super::file_spool::{Record, SpoolWriter};
use super::round_file::{AccountState, EXEMPT, LeftAlone, Saved};
use crate::jobs::job::{Context, PlanError};
use crate::plan::change::Plan;
use crate::synapse::{self, File, MediaOwner};

/// What is read one by one.
pub(super) const OWNERS: &str = "accounts with files";

/// The accounts with files, and the records of the old files of those that were read.
pub(super) struct Reading<'a> {
    context: &'a Context<'a>,
    rules: Rules,
    /// In the order of their names, each once.
    pub owners: Vec<MediaOwner>,
    pub states: Vec<AccountState>,
    pub left_alone: Vec<LeftAlone>,
    /// The owner of each is an index of the accounts.
    pub records: SpoolWriter<'a>,
    /// Whether this run read any account.
    pub has_read: bool,
}

/// What was read of an account's files.
enum Listed {
    Page(Vec<File>),
    /// Synapse does not list the account.
    Unlisted,
    End,
}

impl<'a> Reading<'a> {
    pub fn new(context: &'a Context<'a>, rules: Rules, owners: Vec<MediaOwner>) -> Self {
        let state = |owner: &MediaOwner| match owner.user_id {
            Some(_) => AccountState::Unread,
            None => AccountState::Unlisted,
        };
        let states = owners.iter().map(state).collect();
        let left_alone = vec![LeftAlone::default(); owners.len()];
        let records = SpoolWriter::new(context.spool_directory);
        Self { context, rules, owners, states, left_alone, records, has_read: false }
    }

    /// Takes over what earlier runs read of accounts that have the same files as then.
    ///
    /// Files were deleted from any other, or a lost call may have deleted them: it is read again.
    pub async fn take_over(&mut self, saved: &Saved, plan: &mut Plan) -> io::Result<()> {
        let Self { owners, states, left_alone, records, .. } = self;
        let mut indices: Vec<Option<u32>> = Vec::new();
        for account in saved.accounts() {
            let find = |owner: &MediaOwner| owner.user_id.as_deref().cmp(&Some(account.user_id));
            let index = owners.binary_search_by(find).ok().filter(|index| {
                let known = (account.files, account.bytes);
                let is_same = |owner: &MediaOwner| {
                    known == (owner.media_count, owner.media_length.unwrap_or(0))
                };
                account.state != AccountState::Unread && owners.get(*index).is_some_and(is_same)
            });
            if let Some(index) = index {
                states[index] = account.state;
                left_alone[index] = account.left_alone;
                for (reason, count) in EXEMPT.into_iter().zip(account.left_alone) {
                    plan.add_left_alone(reason, count.into());
                }
            }
            indices.push(index.and_then(|index| u32::try_from(index).ok()));
        }
        let mut next = Some(0);
        while let Some(start) = next {
            next = saved.records.scan_piece(start, |_, record| {
                match indices.get(record.owner as usize) {
                    Some(&Some(owner)) => records.push(&Record { owner, ..record }).map(drop),
                    _ => Ok(()),
                }
            })?;
            yield_now().await;
        }
        Ok(())
    }

    /// Reads accounts that were not read yet, as far as there is time for them, and at least one.
    pub async fn read(&mut self, plan: &mut Plan) -> Result<(), PlanError> {
        let Self { context, rules, owners, states, left_alone, records, has_read } = self;
        let (context, owners) = (*context, &*owners);
        let total = files_in(owners.iter());
        let mut unread: Vec<usize> = Vec::new();
        let mut read = 0;
        for (number, (owner, state)) in owners.iter().zip(&*states).enumerate() {
            match state {
                AccountState::Unread => unread.push(number),
                AccountState::Read | AccountState::Unlisted => read += owner.media_count,
            }
        }
        *has_read = !unread.is_empty();
        // Those that take longest first, so that the last ones are read at the same time.
        unread.sort_by_key(|number| {
            std::cmp::Reverse(owners.get(*number).and_then(|owner| owner.media_length))
        });
        let mut lists = stream::iter(unread.into_iter().enumerate())
            .take_while(|(index, _)| ready(*index == 0 || !context.portion.is_late()))
            .map(|(_, number)| {
                let pages = owners.get(number).map(|owner| listed(context, *rules, owner));
                let pages = pages.unwrap_or_else(|| stream::empty().boxed());
                pages.map_ok(move |listed| (number, listed)).boxed()
            })
            .flatten_unordered(context.concurrency);
        context.reading("files", read.min(total), total);
        while let Some((number, listed)) = lists.try_next().await? {
            let (Some(owner), Some(state), Some(left_alone)) =
                (owners.get(number), states.get_mut(number), left_alone.get_mut(number))
            else {
                continue;
            };
            match listed {
                Listed::Page(files) => {
                    let number = u32::try_from(number).unwrap_or(u32::MAX);
                    for file in files.iter().filter(|file| is_old(file, *rules)) {
                        if let Some(reason) = exempt(file) {
                            let user_id = owner.user_id.as_deref().unwrap_or_default();
                            plan.leave_alone(EXEMPT[reason], || file_of(&file.media_id, user_id));
                            left_alone[reason] = left_alone[reason].saturating_add(1);
                            continue;
                        }
                        add(file, number, records).map_err(|error| unwritable(context, &error))?;
                    }
                }
                Listed::Unlisted => *state = AccountState::Unlisted,
                Listed::End => {
                    if *state == AccountState::Unread {
                        *state = AccountState::Read;
                    }
                    read = owner.media_count.saturating_add(read);
                    context.reading("files", read.min(total), total);
                }
            }
        }
        Ok(())
    }

    /// How many accounts are left to be read.
    pub fn unread(&self) -> u64 {
        self.states.iter().filter(|state| **state == AccountState::Unread).count() as u64
    }

    /// The files of accounts that Synapse does not list.
    pub fn unlisted_files(&self) -> u64 {
        let states = self.owners.iter().zip(&self.states);
        let unlisted = states.filter(|(_, state)| **state == AccountState::Unlisted);
        files_in(unlisted.map(|(owner, _)| owner))
    }
}

/// The error of a list of files that cannot be written.
pub(super) fn unwritable(context: &Context<'_>, error: &io::Error) -> PlanError {
    let directory = context.spool_directory.unwrap_or(Path::new("memory")).display();
    PlanError::Refused(format!(
        "the list of files cannot be kept in {directory} ({error}): it takes about 50 bytes per file, and three times that if several runs read it; free some space there"
    ))
}

fn files_in<'a>(owners: impl Iterator<Item = &'a MediaOwner>) -> u64 {
    owners.fold(0, |sum, owner| sum.saturating_add(owner.media_count))
}

/// Reads the files of one account, page by page.
fn listed<'a>(
    context: &'a Context<'_>,
    rules: Rules,
    owner: &'a MediaOwner,
) -> BoxStream<'a, Result<Listed, synapse::Error>> {
    let Some(user_id) = &owner.user_id else { return stream::empty().boxed() };
    let pages = context.reader.file_pages(user_id, rules.before).map(|page| match page {
        Err(error) if error.is_not_found() => Ok(Listed::Unlisted),
        page => page.map(Listed::Page),
    });
    pages.chain(stream::once(async { Ok(Listed::End) })).boxed()
}

fn add(file: &File, owner: u32, records: &mut SpoolWriter<'_>) -> io::Result<()> {
    let (bytes, id) = (file.media_length.unwrap_or(0), file.media_id.as_str().into());
    let record = Record { used_ms: file.last_used_ms(), bytes, owner, id };
    records.push(&record).map(drop)
}

/// Whether age and size select the file; one without a size is selected and then exempt.
pub(super) fn is_old(file: &File, rules: Rules) -> bool {
    file.last_used_ms() < rules.before.timestamp_millis()
        && file.media_length.is_none_or(|bytes| bytes == 0 || bytes > rules.larger_than.0)
}

/// Why a file is left alone, as an index of [`EXEMPT`].
///
/// Synapse's own rule (1.163, `get_local_media_ids`), except for avatars, which no list shows.
pub(super) fn exempt(file: &File) -> Option<usize> {
    let applies = [
        file.quarantined_by.is_some(),
        file.safe_from_quarantine,
        file.media_length.is_none_or(|bytes| bytes == 0),
    ];
    applies.iter().position(|applies| *applies)
}
