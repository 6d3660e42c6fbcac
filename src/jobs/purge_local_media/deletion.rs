//! The deletion of one file by its id, which is judged again just before.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::batch::{Rules, file_of};
use super::selection::{Seen, Selection, Verdict};
use crate::jobs::mas_accounts::state_of;
use crate::plan::change::{Change, ChangeResult, Check};
use crate::plan::report::{Action, Exempt};
use crate::synapse::{Error, File, FileSet, Reader, Writer};

/// What was read again counts for this long.
const FRESH: Duration = Duration::from_secs(1);
/// Files that are judged again with one request: each with its own would take half as long again as the deletions.
const AT_ONCE: usize = 32;
/// With fewer of them among the files of a request, each is read alone.
const WORTH_A_LIST: usize = 4;
/// Rows of a list between the first and the last of them.
const MAX_SPAN: u32 = 200;
/// How far files may have moved in the list because others deleted some.
const DRIFT: u32 = 8;

/// What the deletions of a job share.
#[derive(Debug)]
pub(super) struct Exact {
    pub selection: Arc<Selection>,
    pub rules: Rules,
    pub server_name: String,
}

/// An account whose files are deleted.
#[derive(Debug)]
pub(super) struct Account {
    user_id: String,
    exact: Arc<Exact>,
    /// Where the planned files were in the list of all its files, oldest first.
    places: Vec<u32>,
    deleted: AtomicU32,
    recent: Mutex<Recent>,
}

/// What was read again of an account.
#[derive(Debug, Default)]
struct Recent {
    owner: Option<(Instant, Owner)>,
    files: Option<(Instant, SomeFiles)>,
}

/// The account itself.
#[derive(Debug, Clone)]
struct Owner {
    is_selected: bool,
    avatar: FileSet,
}

/// Some of its planned files.
#[derive(Debug)]
struct SomeFiles {
    /// The index after the last planned one that is among them if it still exists.
    end: usize,
    verdicts: HashMap<String, Verdict>,
}

impl Account {
    pub fn new(user_id: String, exact: Arc<Exact>, places: Vec<u32>) -> Self {
        let (deleted, recent) = (AtomicU32::new(0), Mutex::default());
        Self { user_id, exact, places, deleted, recent }
    }

    /// Judges a planned file once more.
    async fn judge(&self, reader: &Reader, index: usize, id: &str) -> Result<Check, Error> {
        let mut recent = self.recent.lock().await;
        let owner = match recent.owner.take().filter(|(at, _)| at.elapsed() < FRESH) {
            Some(owner) => owner,
            None => (Instant::now(), self.owner(reader).await?),
        };
        let Owner { is_selected, avatar } = &recent.owner.insert(owner).1;
        if !is_selected {
            return Ok(skip("the account is not one of `accounts` any more"));
        }
        if avatar.contains(id) {
            return Ok(skip("it became the avatar of its account since the plan"));
        }
        let is_fresh =
            |(at, files): &(Instant, SomeFiles)| at.elapsed() < FRESH && index < files.end;
        if !recent.files.as_ref().is_some_and(is_fresh) {
            recent.files = None;
            recent.files = Some((Instant::now(), self.files_from(reader, index).await?));
        }
        let listed = recent.files.as_ref().and_then(|(_, files)| files.verdicts.get(id).copied());
        drop(recent);
        let verdict = match listed {
            Some(verdict) => verdict,
            None => match reader.file(&self.exact.server_name, id).await {
                Err(error) if error.is_not_found() => {
                    return Ok(skip("it was deleted since the plan"));
                }
                file => self.verdict(&file?),
            },
        };
        Ok(match verdict {
            Verdict::Delete => Check::Proceed(None),
            Verdict::Keep(Exempt::Quarantined) => skip("it was quarantined since the plan"),
            Verdict::Keep(Exempt::Protected) => skip("it was protected since the plan"),
            Verdict::Keep(_) | Verdict::NotSelected => skip("it was accessed since the plan"),
        })
    }

    fn verdict(&self, file: &File) -> Verdict {
        self.exact.selection.judge(file, self.exact.rules, &mut Seen::default())
    }

    async fn owner(&self, reader: &Reader) -> Result<Owner, Error> {
        let Exact { selection, rules, server_name } = &*self.exact;
        let mut owner = Owner { is_selected: true, avatar: FileSet::new(server_name) };
        if selection.accounts.is_none() && !rules.keep_avatars {
            return Ok(owner);
        }
        let user = match reader.user(&self.user_id).await {
            Err(error) if error.is_not_found() => None,
            user => Some(user?),
        };
        if let Some(avatar) = user.as_ref().and_then(|user| user.avatar_url.as_deref())
            && rules.keep_avatars
        {
            owner.avatar.add_named(avatar);
        }
        if let Some(accounts) = &selection.accounts {
            owner.is_selected = match &user {
                Some(user) => accounts.include(state_of(reader, user).await?),
                None => false,
            };
        }
        Ok(owner)
    }

    /// Lists the planned files from the one at `index` on again, if enough of them are close together.
    async fn files_from(&self, reader: &Reader, index: usize) -> Result<SomeFiles, Error> {
        let first = self.places.get(index).copied().unwrap_or_default();
        let ahead = self.places.iter().skip(index).take(AT_ONCE);
        let count = ahead.clone().take_while(|place| **place - first <= MAX_SPAN).count();
        if count < WORTH_A_LIST {
            return Ok(SomeFiles { end: index + 1, verdicts: HashMap::new() });
        }
        let last = ahead.take(count).next_back().copied().unwrap_or(first);
        let deleted = self.deleted.load(Ordering::Relaxed);
        let from = first.saturating_sub(deleted).saturating_sub(DRIFT);
        let files = reader.some_files(&self.user_id, from, last - first + 1 + 2 * DRIFT).await?;
        let verdicts = files
            .into_iter()
            .map(|file| (self.verdict(&file), file))
            .map(|(verdict, file)| (file.media_id, verdict));
        Ok(SomeFiles { end: index + count, verdicts: verdicts.collect() })
    }
}

fn skip(why: &str) -> Check {
    Check::Skip(why.to_owned())
}

/// The deletion of a planned file.
#[derive(Debug)]
pub(super) struct Deletion {
    pub account: Arc<Account>,
    /// Its index among the planned files of the account.
    pub index: u32,
    pub id: Box<str>,
    pub bytes: u64,
}

impl Change for Deletion {
    fn action(&self) -> Action {
        Action::PurgeLocalMedia
    }

    fn target(&self) -> String {
        file_of(&self.id, &self.account.user_id)
    }

    fn items(&self) -> Vec<(String, Option<u64>)> {
        vec![(self.id.to_string(), Some(self.bytes))]
    }

    fn usage(&self) -> Option<(&str, u64)> {
        Some((&self.account.user_id, self.bytes))
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(self.account.judge(reader, self.index as usize, &self.id))
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            writer.delete_file(&self.account.exact.server_name, &self.id).await?;
            self.account.deleted.fetch_add(1, Ordering::Relaxed);
            Ok(ChangeResult {
                bytes: self.bytes,
                files: vec![(self.id.to_string(), Some(self.bytes))],
                ..ChangeResult::items(1)
            })
        })
    }
}
