//! One call of a media purge.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::plan::change::{Change, ChangeResult, Check, Lane, MediaStore};
use crate::plan::facts::{Fact, Topic};
use crate::plan::report::Action;
use crate::synapse::{self, Reader, Writer};
use crate::values::clock::{Timestamp, format_time};
use crate::values::size::Size;
use crate::values::text::format_count;

/// A file with all that is known of it.
#[derive(Debug)]
pub(super) struct Candidate {
    pub used_ms: i64,
    pub bytes: u64,
    pub id: Box<str>,
}

/// Which files a purge deletes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Only files last used before this.
    pub before: Timestamp,
    pub larger_than: Size,
    pub keep_avatars: bool,
    pub read_in: ReadIn,
}

/// How long ago the files of a plan may have been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadIn {
    OneRun,
    SeveralRuns,
}

/// One call: it deletes all files used before a cut-off, of which earlier calls left these.
#[derive(Debug)]
pub(super) struct Batch {
    pub before_ms: i64,
    pub files: Vec<Candidate>,
    /// Why the files cannot be read again.
    pub unreadable: Option<String>,
    /// Not planned, but deleted as well if Synapse no longer keeps them.
    pub kept: Arc<[Candidate]>,
    pub rules: Rules,
}

impl Change for Batch {
    fn action(&self) -> Action {
        Action::PurgeLocalMedia
    }

    fn target(&self) -> String {
        format!("local files last accessed before {}", format_ms(self.before_ms))
    }

    fn count(&self) -> u64 {
        self.files.len() as u64
    }

    fn lane(&self) -> Lane {
        Lane::Media(MediaStore::Local { until: self.before() })
    }

    fn items(&self) -> Vec<(String, Option<u64>)> {
        self.files.iter().map(|file| (file.id.to_string(), Some(file.bytes))).collect()
    }

    fn check<'a>(&'a self, _reader: &'a Reader) -> BoxFuture<'a, Result<Check, synapse::Error>> {
        Box::pin(async {
            match &self.unreadable {
                None => Ok(Check::Proceed(None)),
                Some(problem) => Err(synapse::Error::not_sent(format!(
                    "the list of files in the state directory cannot be read: {problem}"
                ))),
            }
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, synapse::Error>> {
        Box::pin(async move {
            let deleted = writer
                .delete_local_media(
                    self.before(),
                    self.rules.larger_than.0,
                    self.rules.keep_avatars,
                )
                .await?;
            Ok(self.outcome(deleted))
        })
    }
}

impl Batch {
    fn before(&self) -> Timestamp {
        Timestamp::from_timestamp_millis(self.before_ms).unwrap_or_default()
    }

    fn outcome(&self, deleted: Vec<String>) -> ChangeResult {
        let known = self.files.iter().chain(self.kept.iter());
        let sizes: HashMap<&str, u64> = known.map(|file| (&*file.id, file.bytes)).collect();
        let files: Vec<(String, Option<u64>)> = deleted
            .into_iter()
            .map(|id| (sizes.get(id.as_str()).copied(), id))
            .map(|(bytes, id)| (id, bytes))
            .collect();
        let gone: HashSet<&str> = files.iter().map(|(id, _)| id.as_str()).collect();
        let facts: Vec<Fact> = self
            .files
            .iter()
            .filter(|file| !gone.contains(&*file.id))
            .map(|file| Fact {
                topic: Topic::Kept,
                key: file.id.to_string(),
                value: file.used_ms.to_string(),
            })
            .collect();
        let (done, skipped) = (files.len() as u64, facts.len() as u64);
        let kept = match (self.rules.keep_avatars, self.rules.read_in) {
            (true, ReadIn::OneRun) => {
                "most likely avatars; Synapse's log names files that it could not delete"
            }
            (true, ReadIn::SeveralRuns) => {
                "avatars, or accessed since a run of this round read them; Synapse's log names files that it could not delete"
            }
            (false, _) => "accessed since they were read, or not deletable: see Synapse's log",
        };
        ChangeResult {
            done,
            skipped,
            bytes: files.iter().filter_map(|(_, bytes)| *bytes).fold(0, u64::saturating_add),
            detail: (skipped > 0).then(|| {
                format!(
                    "Synapse kept {} of this batch, {kept}",
                    format_count(skipped, "file", "files")
                )
            }),
            files,
            // Only an avatar is kept for good; anything else is planned again by the next run.
            facts: if self.rules.keep_avatars { facts } else { Vec::new() },
            answer: None,
        }
    }
}

pub(super) fn format_ms(ms: i64) -> String {
    format_time(Timestamp::from_timestamp_millis(ms).unwrap_or_default())
}

/// Names a file in a list for people.
pub(super) fn file_of(media_id: &str, user_id: &str) -> String {
    format!("{media_id} of {user_id}")
}
