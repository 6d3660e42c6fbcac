//! Protecting one file, or ending that; and undoing either.

use std::collections::HashMap;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::memory::Protected;
use crate::plan::change::{Change, ChangeResult, Check};
use crate::plan::facts::Fact;
use crate::plan::report::{Action, ChangeRecord};
use crate::synapse::{Error, Protection, Reader, Writer};

#[derive(Debug)]
pub(super) struct ProtectionChange {
    pub protection: Protection,
    pub media_id: String,
    /// The file, and what it is used for.
    pub target: String,
}

/// The change that restores what a recorded one changed; the error says why there is none.
pub(super) fn restoration(
    record: &ChangeRecord,
    _known: &HashMap<String, String>,
) -> Result<Box<dyn Change>, String> {
    let protection = match record.action {
        Action::ProtectMedia => Protection::Unprotect,
        Action::UnprotectMedia => Protection::Protect,
        _ => return Err("it is not about the protection of a file".to_owned()),
    };
    let media_id = record.before.as_ref().and_then(|before| before["media_id"].as_str());
    let media_id = media_id.ok_or("what it changed is not recorded")?;
    let (media_id, target) = (media_id.to_owned(), record.target.clone());
    Ok(Box::new(ProtectionChange { protection, media_id, target }))
}

impl Change for ProtectionChange {
    fn action(&self) -> Action {
        match self.protection {
            Protection::Protect => Action::ProtectMedia,
            Protection::Unprotect => Action::UnprotectMedia,
        }
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            let skip = |why: &str| Ok(Check::Skip(why.to_owned()));
            let server_name = &reader.identity().await?.server_name;
            let file = match reader.file(server_name, &self.media_id).await {
                Err(error) if error.is_not_found() => return skip(GONE),
                file => file?,
            };
            match self.protection {
                Protection::Protect if file.quarantined_by.is_some() => {
                    skip("the file is quarantined")
                }
                Protection::Protect if file.safe_from_quarantine => skip("the file is protected"),
                Protection::Unprotect if !file.safe_from_quarantine => {
                    skip("the file is not protected any more")
                }
                Protection::Protect | Protection::Unprotect => {
                    Ok(Check::Proceed(Some(json!({ "media_id": self.media_id }))))
                }
            }
        })
    }

    fn facts(&self, _before: Option<&Value>) -> Vec<Fact> {
        vec![Protected::Sent.fact(&self.media_id)]
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            if !writer.set_protection(&self.media_id, self.protection).await? {
                let detail = Some(GONE.to_owned());
                return Ok(ChangeResult { skipped: 1, detail, ..ChangeResult::default() });
            }
            let protected = match self.protection {
                Protection::Protect => Protected::Yes,
                Protection::Unprotect => Protected::No,
            };
            let facts = vec![protected.fact(&self.media_id)];
            Ok(ChangeResult { facts, ..ChangeResult::items(1) })
        })
    }
}

const GONE: &str = "the file does not exist any more";
