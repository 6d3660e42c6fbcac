//! Changes in MAS. Only the runner creates a writer, and never in a dry run.

use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::queries::{LINK, LINKS};
use super::reader::Reader;
use super::resources::{Link, Resource, Single, User};
use super::ulid::Ulid;
use crate::http::{Call, Error, Repeat};

#[derive(Debug)]
pub struct Writer {
    reader: Reader,
    cancel: CancellationToken,
}

/// How a link came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreatedLink {
    New(Resource<Link>),
    /// There was a link of nobody for the identity, which now belongs to the user.
    Adopted(Resource<Link>),
}

impl Writer {
    /// Once `cancel` is cancelled, requests that still wait to be sent fail without an effect.
    pub fn new(reader: Reader, cancel: CancellationToken) -> Self {
        Self { reader, cancel }
    }

    /// Deletes a link; one that does not exist is as good as deleted.
    pub async fn delete_link(&self, id: &Ulid) -> Result<(), Error> {
        let ids = [id.as_str()];
        let call = Call { repeat: Repeat::Always, ..self.reader.call(Method::DELETE, LINK, &ids) };
        match self.reader.send(&call, &self.cancel).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Revokes a registration token; one that is revoked, or does not exist, is left as it is.
    pub async fn revoke_registration_token(&self, id: &Ulid) -> Result<(), Error> {
        let endpoint = "/api/admin/v1/user-registration-tokens/{}/revoke";
        match self.post(endpoint, id, " is already revoked").await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the revocation of a registration token back; one that is not revoked is left as it is.
    pub async fn unrevoke_registration_token(&self, id: &Ulid) -> Result<(), Error> {
        let endpoint = "/api/admin/v1/user-registration-tokens/{}/unrevoke";
        self.post(endpoint, id, " is not revoked").await
    }

    /// Makes a change that MAS refuses, in words that end with `already`, where it is made already.
    pub(super) async fn post(
        &self,
        endpoint: &'static str,
        id: &Ulid,
        already: &str,
    ) -> Result<(), Error> {
        let ids = [id.as_str()];
        let call =
            Call { repeat: Repeat::Always, ..self.reader.call(Method::POST, endpoint, &ids) };
        match self.reader.send(&call, &self.cancel).await {
            Err(error) if !error.is_made_already(already) => Err(error),
            _ => Ok(()),
        }
    }

    /// Locks an account: nobody can use it, and its sessions stay. Repeating it changes nothing.
    pub async fn lock(&self, id: &Ulid) -> Result<(), Error> {
        let user = self.change_user("/api/admin/v1/users/{}/lock", id, None).await?;
        contradicted_unless(user.locked_at.is_some(), id, "MAS did not lock the account")
    }

    pub async fn unlock(&self, id: &Ulid) -> Result<(), Error> {
        let user = self.change_user("/api/admin/v1/users/{}/unlock", id, None).await?;
        contradicted_unless(user.locked_at.is_none(), id, "MAS did not unlock the account")
    }

    /// Deactivates an account: ends its sessions, and has the homeserver take it out of its rooms and, with `erase`,
    /// its messages out of the sight of those who join later.
    pub async fn deactivate(&self, id: &Ulid, erase: bool) -> Result<(), Error> {
        let body = json!({ "skip_erase": !erase });
        let user = self.change_user("/api/admin/v1/users/{}/deactivate", id, Some(body)).await?;
        let is_deactivated = user.deactivated_at.is_some();
        contradicted_unless(is_deactivated, id, "MAS did not deactivate the account")
    }

    async fn change_user(
        &self,
        endpoint: &'static str,
        id: &Ulid,
        body: Option<Value>,
    ) -> Result<User, Error> {
        let ids = [id.as_str()];
        let call = self.reader.call(Method::POST, endpoint, &ids);
        let call = Call { body, repeat: Repeat::Always, ..call };
        let response = self.reader.send(&call, &self.cancel).await?;
        Ok(response.decode::<Single<User>>()?.data.attributes)
    }

    /// Links an identity to a user. A conflict (409) where it is linked to somebody already, be it to the same user.
    pub async fn create_link(
        &self,
        user: &Ulid,
        provider: &Ulid,
        subject: &str,
        human_account_name: Option<&str>,
    ) -> Result<CreatedLink, Error> {
        let mut body = json!({
            "user_id": user.as_str(),
            "provider_id": provider.as_str(),
            "subject": subject,
        });
        if let Some(name) = human_account_name {
            body["human_account_name"] = name.into();
        }
        let call = Call { body: Some(body), ..self.reader.call(Method::POST, LINKS, &[]) };
        let response = self.reader.send(&call, &self.cancel).await?;
        let link = response.decode::<Single<Link>>()?.data;
        Ok(match response.status.as_u16() {
            201 => CreatedLink::New(link),
            _ => CreatedLink::Adopted(link),
        })
    }
}

fn contradicted_unless(is_so: bool, id: &Ulid, problem: &str) -> Result<(), Error> {
    if is_so { Ok(()) } else { Err(Error::contradicted(id.as_str(), problem)) }
}
