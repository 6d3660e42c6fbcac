//! The revocation of a token in MAS, and its undo.

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::jobs::mas_accounts::no_mas;
use crate::mas::{RegistrationToken, Ulid};
use crate::plan::change::{Change, ChangeResult, Check};
use crate::plan::report::{Action, ChangeRecord};
use crate::synapse::{Error, Reader, Writer};

#[derive(Debug)]
pub(super) struct Revocation {
    pub id: Ulid,
    pub target: String,
    pub direction: Direction,
}

#[derive(Debug)]
pub(super) enum Direction {
    Revoke {
        /// The token as it was planned; `None` to undo an undo.
        planned: Option<RegistrationToken>,
    },
    Unrevoke,
}

/// The change that undoes a recorded one; the error says why there is none.
pub(super) fn reverse(record: &ChangeRecord) -> Result<Box<dyn Change>, String> {
    #[derive(Deserialize)]
    struct Recorded {
        id: Ulid,
    }
    let direction = match record.action {
        Action::RevokeRegistrationToken => Direction::Unrevoke,
        Action::UnrevokeRegistrationToken => Direction::Revoke { planned: None },
        _ => {
            return Err("Synapse deleted the token; it counts the uses of a new one from 0, and creates none that is expired".to_owned());
        }
    };
    let recorded = record.before.clone().map(serde_json::from_value::<Recorded>);
    let Some(Ok(Recorded { id })) = recorded else {
        return Err("what it changed is not recorded".to_owned());
    };
    Ok(Box::new(Revocation { id, target: record.target.clone(), direction }))
}

impl Change for Revocation {
    fn action(&self) -> Action {
        match self.direction {
            Direction::Revoke { .. } => Action::RevokeRegistrationToken,
            Direction::Unrevoke => Action::UnrevokeRegistrationToken,
        }
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            let mas = reader.mas().ok_or_else(no_mas)?;
            let skip = |why: &str| Ok(Check::Skip(why.to_owned()));
            let Some(now) = mas.registration_token(&self.id).await? else {
                return skip("the token no longer exists");
            };
            let now = now.attributes;
            match (&self.direction, now.revoked_at) {
                (Direction::Revoke { .. }, Some(_)) => return skip("the token is revoked already"),
                (Direction::Unrevoke, None) => return skip("the token is not revoked any more"),
                (Direction::Revoke { planned: Some(planned) }, None) if *planned != now => {
                    return skip("the token changed since the plan");
                }
                _ => {}
            }
            Ok(Check::Proceed(Some(json!({ "id": self.id.as_str(), "token": now.token }))))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            let mas = writer.mas().ok_or_else(no_mas)?;
            match self.direction {
                Direction::Revoke { .. } => mas.revoke_registration_token(&self.id).await?,
                Direction::Unrevoke => mas.unrevoke_registration_token(&self.id).await?,
            }
            Ok(ChangeResult::items(1))
        })
    }
}
