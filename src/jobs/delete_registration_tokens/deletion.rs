//! The deletion of a token from Synapse.

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::plan::change::{Change, ChangeResult, Check};
use crate::plan::report::Action;
use crate::synapse::{Error, Reader, RegistrationToken, Writer};

#[derive(Debug)]
pub(super) struct Deletion {
    pub token: RegistrationToken,
    pub target: String,
}

impl Change for Deletion {
    fn action(&self) -> Action {
        Action::DeleteRegistrationToken
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            Ok(match reader.registration_token(&self.token.token).await? {
                // An administrator may have let it expire later, or be used more often.
                Some(now) if now != self.token => {
                    Check::Skip("the token changed since the plan".to_owned())
                }
                Some(now) => Check::Proceed(serde_json::to_value(&now).ok()),
                None => Check::Skip("the token no longer exists".to_owned()),
            })
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            writer.delete_registration_token(&self.token.token).await?;
            Ok(ChangeResult::items(1))
        })
    }
}
