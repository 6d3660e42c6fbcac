//! The removal of one link from MAS.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::link_criteria::{LinkCriteria, Verdict};
use crate::jobs::mas_accounts::no_mas;
use crate::mas::{self, Link, Links, Resource};
use crate::plan::change::{Change, ChangeResult, Check, Lane, Warning};
use crate::plan::report::Action;
use crate::synapse::{Error, Reader, Writer};
use crate::values::glob::Matched;

#[derive(Debug)]
pub(super) struct LinkRemoval {
    pub link: Resource<Link>,
    pub target: String,
    pub warning: Option<Warning>,
    pub criteria: Arc<LinkCriteria>,
}

impl LinkRemoval {
    /// Why the link is no longer to be removed, by what MAS says of it and its account now.
    async fn obstacle(&self, mas: &mas::Reader) -> Result<Option<&'static str>, Error> {
        let Some(now) = mas.link(&self.link.id).await? else {
            return Ok(Some("the link no longer exists"));
        };
        let (now, planned) = (now.attributes, &self.link.attributes);
        let is_same = |link: &Link| {
            (&link.user_id, &link.provider_id, &link.subject)
                == (&planned.user_id, &planned.provider_id, &planned.subject)
        };
        if !is_same(&now) {
            return Ok(Some("the link changed since the plan"));
        }
        let Some(user_id) = &planned.user_id else {
            let is_recent = self.criteria.is_recent_orphan(&now);
            return Ok(is_recent.then_some("the link was created within the last day"));
        };
        let Some(user) = mas.user(user_id).await? else {
            return Ok(Some("the account of the link no longer exists"));
        };
        let user = user.attributes;
        if self.criteria.judge(&user, &mut Matched::default()) != Verdict::Remove {
            return Ok(Some("the account changed since the plan, and is no longer selected"));
        }
        if self.criteria.keys.keep_last && super::link_criteria::is_active(&user) {
            let links = mas.links(Links::OfUser(user_id)).await?;
            if self.criteria.keeps_for_last(&user, links.iter()) {
                return Ok(Some("the account has no other link any more (`keep_last`)"));
            }
        }
        Ok(None)
    }
}

impl Change for LinkRemoval {
    fn action(&self) -> Action {
        Action::RemoveExternalId
    }

    fn target(&self) -> String {
        self.target.clone()
    }

    /// With `keep_last`, two links of one account, of two jobs or processes, must not each count the other as what remains.
    fn lane(&self) -> Lane {
        if self.criteria.keys.keep_last { Lane::ExternalIds } else { Lane::Free }
    }

    fn warning(&self) -> Option<Warning> {
        self.warning
    }

    fn check<'a>(&'a self, reader: &'a Reader) -> BoxFuture<'a, Result<Check, Error>> {
        Box::pin(async move {
            let Some(mas) = reader.mas() else { return Err(no_mas()) };
            if let Some(obstacle) = self.obstacle(mas).await? {
                return Ok(Check::Skip(obstacle.to_owned()));
            }
            let Link { provider_id, subject, user_id, human_account_name, .. } =
                &self.link.attributes;
            Ok(Check::Proceed(Some(json!({
                "link_id": self.link.id.as_str(),
                "user_id": user_id.as_ref().map(mas::Ulid::as_str),
                "provider_id": provider_id.as_str(),
                "subject": subject,
                "human_account_name": human_account_name,
            }))))
        })
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, Error>> {
        Box::pin(async move {
            let Some(mas) = writer.mas() else { return Err(no_mas()) };
            mas.delete_link(&self.link.id).await?;
            Ok(ChangeResult::items(1))
        })
    }
}
