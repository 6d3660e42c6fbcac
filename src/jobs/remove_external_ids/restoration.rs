//! Undoing what a run changed: ids are linked again, or, to undo that, removed again.

use std::collections::HashMap;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::removal::remove;
use crate::jobs::mas_accounts::no_mas;
use crate::mas::{self, CreatedLink, Ulid};
use crate::plan::change::{Change, ChangeResult, Check, Lane};
use crate::plan::report::{Action, ChangeRecord};
use crate::synapse::{Error, ExternalId, Reader, Writer};

/// What is recorded of ids that are added. Of ids that are removed the list before is recorded; the target names them.
#[derive(Debug, Serialize, Deserialize)]
struct BeforeAdding {
    external_ids: Vec<ExternalId>,
    added: Vec<ExternalId>,
}

/// The record of a link that was deleted from MAS.
#[derive(Debug, Deserialize)]
struct DeletedLink {
    user_id: Option<Ulid>,
    provider_id: Ulid,
    subject: String,
    human_account_name: Option<String>,
}

/// The record of a link that was created again in MAS.
#[derive(Debug, Serialize, Deserialize)]
struct CreatedAgain {
    created_user_id: Ulid,
    provider_id: Ulid,
    subject: String,
}

/// The change that restores what a recorded one changed; the error says why there is none.
pub(super) fn restoration(
    record: &ChangeRecord,
    _known: &HashMap<String, String>,
) -> Result<Box<dyn Change>, String> {
    let unknown = || "what it changed is not recorded".to_owned();
    let before = record.before.as_ref().ok_or_else(unknown)?;
    if let Ok(created) = serde_json::from_value::<CreatedAgain>(before.clone()) {
        return Ok(Box::new(LinkRemovalAgain { created, target: record.target.clone() }));
    }
    if let Ok(link) = serde_json::from_value::<DeletedLink>(before.clone()) {
        let user_id = link.user_id.clone().ok_or("it was a link of nobody")?;
        return Ok(Box::new(LinkRestoration { link, user_id, target: record.target.clone() }));
    }
    let (user_id, listed) = record.target.split_once(" -> ").ok_or_else(unknown)?;
    let user_id = user_id.to_owned();
    let adding = serde_json::from_value::<BeforeAdding>(before.clone());
    let (ids, direction) = if let Ok(BeforeAdding { added, .. }) = adding {
        (added, Direction::Remove)
    } else {
        let list: Vec<ExternalId> =
            serde_json::from_value(before.clone()).map_err(|_| unknown())?;
        (named(listed, list), Direction::Add)
    };
    if ids.is_empty() {
        return Err(unknown());
    }
    Ok(Box::new(Restoration { user_id, ids, direction }))
}

/// Which ids of a list a target names.
fn named(mut listed: &str, mut list: Vec<ExternalId>) -> Vec<ExternalId> {
    // An id may contain what separates ids: the longest one that fits is meant.
    list.sort_by_key(|id| std::cmp::Reverse(id.to_string().len()));
    let mut named = Vec::new();
    while !listed.is_empty() {
        let found = list.iter().find_map(|id| Some((id, after(listed, &id.to_string())?)));
        listed = match found {
            Some((id, rest)) => {
                named.push(id.clone());
                rest
            }
            // One that did not exist any more.
            None => listed.split_once(", ").map_or("", |(_, rest)| rest),
        };
    }
    named
}

/// What follows an id that a list begins with; `saml:1` is not the beginning of `saml:12`.
fn after<'a>(listed: &'a str, id: &str) -> Option<&'a str> {
    let rest = listed.strip_prefix(id)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(", ") }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// Undoes a removal.
    Add,
    /// Undoes that.
    Remove,
}

/// Ids of an account on classic Synapse. Others that it has now stay.
#[derive(Debug)]
struct Restoration {
    user_id: String,
    ids: Vec<ExternalId>,
    direction: Direction,
}

impl Change for Restoration {
    fn action(&self) -> Action {
        match self.direction {
            Direction::Add => Action::AddExternalId,
            Direction::Remove => Action::RemoveExternalId,
        }
    }

    fn target(&self) -> String {
        let ids: Vec<String> = self.ids.iter().map(ToString::to_string).collect();
        format!("{} -> {}", self.user_id, ids.join(", "))
    }

    fn count(&self) -> u64 {
        self.ids.len() as u64
    }

    fn lane(&self) -> Lane {
        Lane::ExternalIds
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            // A PUT would create it.
            let user = match reader.user(&self.user_id).await {
                Err(error) if error.is_not_found() => {
                    return Ok(Check::Skip("the account no longer exists".to_owned()));
                }
                user => user?,
            };
            let current = user.external_ids;
            let (there, missing): (Vec<_>, Vec<_>) =
                self.ids.iter().cloned().partition(|id| current.contains(id));
            let before = match self.direction {
                Direction::Add if missing.is_empty() => {
                    return Ok(Check::Skip("the account has these ids".to_owned()));
                }
                Direction::Remove if there.is_empty() => {
                    return Ok(Check::Skip("the account does not have these ids".to_owned()));
                }
                Direction::Add => json!(BeforeAdding { external_ids: current, added: missing }),
                Direction::Remove => json!(current),
            };
            Ok(Check::Proceed(Some(before)))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            let before = before.cloned().unwrap_or_default();
            if self.direction == Direction::Remove {
                let current: Vec<ExternalId> = serde_json::from_value(before).unwrap_or_default();
                let gone: Vec<ExternalId> =
                    current.iter().filter(|id| self.ids.contains(id)).cloned().collect();
                remove(writer, &self.user_id, &current, &gone).await?;
                return Ok(self.result(gone.len(), None));
            }
            let BeforeAdding { external_ids: mut current, added } =
                serde_json::from_value(before).map_err(|_| unrecorded())?;
            let all: Vec<ExternalId> = current.iter().chain(&added).cloned().collect();
            match writer.swap_external_ids(&self.user_id, &current, &all).await {
                Ok(_) => return Ok(self.result(added.len(), None)),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
            // One of them belongs to somebody else now: Synapse changed nothing.
            let (mut done, mut taken) = (0, Vec::new());
            for id in added {
                let more: Vec<ExternalId> = current.iter().chain([&id]).cloned().collect();
                match writer.swap_external_ids(&self.user_id, &current, &more).await {
                    Ok(_) => {
                        done += 1;
                        current = more;
                    }
                    Err(error) if error.is_conflict() => {
                        let owner = writer.reader().owner_of(&id).await?;
                        taken.push(format!("{id} belongs to {owner} now"));
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(self.result(done, Some(taken.join("; "))))
        })
    }
}

impl Restoration {
    fn result(&self, done: usize, detail: Option<String>) -> ChangeResult {
        let skipped = self.ids.len() - done;
        let detail =
            detail.or_else(|| (skipped > 0).then(|| "the others did not need it".to_owned()));
        ChangeResult {
            done: done as u64,
            skipped: skipped as u64,
            detail,
            ..ChangeResult::default()
        }
    }
}

/// A link in MAS.
#[derive(Debug)]
struct LinkRestoration {
    link: DeletedLink,
    user_id: Ulid,
    target: String,
}

impl Change for LinkRestoration {
    fn action(&self) -> Action {
        Action::AddExternalId
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            let mas = reader.mas().ok_or_else(no_mas)?;
            if mas.user(&self.user_id).await?.is_none() {
                return Ok(Check::Skip("the account no longer exists".to_owned()));
            }
            let DeletedLink { provider_id, subject, .. } = &self.link;
            let found = mas.link_of(provider_id, subject).await?;
            if let Some(owner) = found.and_then(|found| found.attributes.user_id) {
                return Ok(Check::Skip(match owner == self.user_id {
                    true => "the account has this link".to_owned(),
                    false => format!("the identity belongs to {} now", name(mas, &owner).await?),
                }));
            }
            Ok(Check::Proceed(Some(json!(CreatedAgain {
                created_user_id: self.user_id.clone(),
                provider_id: provider_id.clone(),
                subject: subject.clone(),
            }))))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            let mas = writer.mas().ok_or_else(no_mas)?;
            let DeletedLink { provider_id, subject, human_account_name, .. } = &self.link;
            let name = human_account_name.as_deref();
            let created = mas.create_link(&self.user_id, provider_id, subject, name).await?;
            let detail = match created {
                CreatedLink::New(_) => None,
                CreatedLink::Adopted(_) => {
                    Some("the identity had a link of nobody, which was adopted".to_owned())
                }
            };
            Ok(ChangeResult { detail, ..ChangeResult::items(1) })
        })
    }
}

/// The removal of a link that an undo created.
#[derive(Debug)]
struct LinkRemovalAgain {
    created: CreatedAgain,
    target: String,
}

impl Change for LinkRemovalAgain {
    fn action(&self) -> Action {
        Action::RemoveExternalId
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            let mas = reader.mas().ok_or_else(no_mas)?;
            let CreatedAgain { created_user_id, provider_id, subject } = &self.created;
            let found = mas.link_of(provider_id, subject).await?;
            let Some(link) =
                found.filter(|found| found.attributes.user_id.as_ref() == Some(created_user_id))
            else {
                return Ok(Check::Skip("the account does not have this link".to_owned()));
            };
            Ok(Check::Proceed(Some(json!({
                "link_id": link.id.as_str(),
                "user_id": created_user_id.as_str(),
                "provider_id": provider_id.as_str(),
                "subject": subject,
                "human_account_name": link.attributes.human_account_name,
            }))))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            let mas = writer.mas().ok_or_else(no_mas)?;
            let id = before.and_then(|before| before["link_id"].as_str());
            let id: Ulid = id.and_then(|id| id.parse().ok()).ok_or_else(no_mas)?;
            mas.delete_link(&id).await?;
            Ok(ChangeResult::items(1))
        })
    }
}

/// The name of an account of MAS.
async fn name(mas: &mas::Reader, id: &Ulid) -> Result<String, Error> {
    let user = mas.user(id).await?;
    Ok(user.map_or_else(|| id.as_str().to_owned(), |user| user.attributes.username))
}

fn unrecorded() -> Error {
    Error::not_sent("what the account had before was not recorded".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ExternalId {
        let (auth_provider, external_id) = text.split_once(':').unwrap();
        ExternalId { auth_provider: auth_provider.to_owned(), external_id: external_id.to_owned() }
    }

    #[test]
    fn the_ids_that_a_target_names_are_found_whatever_they_contain() {
        let list = ["saml:1", "saml:12", "saml:a, b", "oidc:x"].map(id);
        let of = |target| -> Vec<String> {
            named(target, list.to_vec()).iter().map(ToString::to_string).collect()
        };
        assert_eq!(of("saml:12, saml:a, b"), ["saml:12", "saml:a, b"]);
        assert_eq!(of("saml:1, gone:7, oidc:x"), ["saml:1", "oidc:x"]);
        assert_eq!(of("saml:a, b, saml:1"), ["saml:a, b", "saml:1"]);
        assert_eq!(of("saml:123, oidc:x2"), [""; 0], "neither existed any more");
    }
}
