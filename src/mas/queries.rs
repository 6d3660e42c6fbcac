//! What can be read from MAS: GET requests only.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::list::Page;
use super::reader::Reader;
use super::resources::{
    Link, PersonalSession, Provider, RegistrationToken, Resource, Session, Single, SiteConfig, User,
};
use super::ulid::Ulid;
use crate::http::{Error, Repeat, one_line};

/// In what state accounts are listed; one that is locked and deactivated is in both lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserStatus {
    /// Neither locked nor deactivated.
    Active,
    Locked,
    Deactivated,
}

/// The kinds of sessions in which a person uses an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// Of a client that logs in through MAS.
    OAuth2,
    /// Of a client that logs in through the API of Synapse.
    Compatibility,
    /// Of a browser that shows the pages of MAS.
    Browser,
}

/// Which links are listed.
#[derive(Debug, Clone, Copy)]
pub enum Links<'a> {
    All,
    OfUser(&'a Ulid),
}

pub(super) const USERS: &str = "/api/admin/v1/users";
pub(super) const LINKS: &str = "/api/admin/v1/upstream-oauth-links";
pub(super) const LINK: &str = "/api/admin/v1/upstream-oauth-links/{}";
pub(super) const SESSIONS: &str = "/api/admin/v1/personal-sessions";

impl Reader {
    /// The version as MAS reports it, such as `1.22.0-36-g682b8d26d` or `v1.5.0`.
    pub async fn version(&self) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        let version: Version = self.get("/api/admin/v1/version", &[]).await?;
        Ok(one_line(&version.version, 100))
    }

    /// Needs no scope beyond that of every request: shows that the Admin API accepts the client.
    pub async fn site_config(&self) -> Result<SiteConfig, Error> {
        self.get("/api/admin/v1/site-config", &[]).await
    }

    /// All accounts in that state.
    pub async fn users(&self, status: UserStatus) -> Result<Vec<Resource<User>>, Error> {
        self.list(USERS, &[("filter[status]", status.as_str())]).await
    }

    /// A page of all accounts, in the order of their creation.
    pub async fn users_page(&self, after: Option<&Ulid>) -> Result<Page<User>, Error> {
        self.page(USERS, &[], after).await
    }

    /// An account, `None` if there is none with that id.
    pub async fn user(&self, id: &Ulid) -> Result<Option<Resource<User>>, Error> {
        self.get_single("/api/admin/v1/users/{}", id.as_str()).await
    }

    /// An account by its localpart, whose case does not matter.
    pub async fn user_by_name(&self, localpart: &str) -> Result<Option<Resource<User>>, Error> {
        self.get_single("/api/admin/v1/users/by-username/{}", localpart).await
    }

    /// All sessions of a user, also those that ended.
    pub async fn sessions(
        &self,
        kind: SessionKind,
        user: &Ulid,
    ) -> Result<Vec<Resource<Session>>, Error> {
        self.list(kind.endpoint(), &[("filter[user]", user.as_str())]).await
    }

    /// All identity providers, also those that are disabled (MAS 1.3).
    pub async fn providers(&self) -> Result<Vec<Resource<Provider>>, Error> {
        self.list("/api/admin/v1/upstream-oauth-providers", &[]).await
    }

    /// Links with all identities, or those of one user; an error if that does not exist.
    pub async fn links(&self, links: Links<'_>) -> Result<Vec<Resource<Link>>, Error> {
        self.list(LINKS, links.filter().as_slice()).await
    }

    /// A page of those links, in the order of their creation.
    pub async fn links_page(
        &self,
        links: Links<'_>,
        after: Option<&Ulid>,
    ) -> Result<Page<Link>, Error> {
        self.page(LINKS, links.filter().as_slice(), after).await
    }

    /// A link, `None` if there is none with that id.
    pub async fn link(&self, id: &Ulid) -> Result<Option<Resource<Link>>, Error> {
        self.get_single(LINK, id.as_str()).await
    }

    /// The link of an identity, whoever it belongs to.
    pub async fn link_of(
        &self,
        provider: &Ulid,
        subject: &str,
    ) -> Result<Option<Resource<Link>>, Error> {
        #[derive(Deserialize)]
        struct Found {
            data: Vec<Resource<Link>>,
        }
        // Any text may be a subject: `links.self` repeats it without encoding, so that the rows are checked instead.
        let query = vec![
            ("filter[provider]", provider.to_string()),
            ("filter[subject]", subject.to_owned()),
            ("count", "false".to_owned()),
            ("page[first]", "2".to_owned()),
        ];
        let response = self.get_repeatedly(Repeat::Always, LINKS, &[], query).await?;
        let Found { mut data } = response.decode()?;
        let is_it = |link: &Link| link.provider_id == *provider && link.subject == subject;
        if data.len() > 1 || !data.iter().all(|link| is_it(&link.attributes)) {
            return Err(response.unexpected("MAS ignored a filter of this list: upgrade MAS"));
        }
        Ok(data.pop())
    }

    /// All registration tokens, also those that are revoked.
    pub async fn registration_tokens(&self) -> Result<Vec<Resource<RegistrationToken>>, Error> {
        self.list("/api/admin/v1/user-registration-tokens", &[]).await
    }

    /// A registration token, `None` if there is none with that id.
    pub async fn registration_token(
        &self,
        id: &Ulid,
    ) -> Result<Option<Resource<RegistrationToken>>, Error> {
        self.get_single("/api/admin/v1/user-registration-tokens/{}", id.as_str()).await
    }

    /// The active sessions of a user that belong to the client of this connection (MAS 1.5).
    pub async fn own_personal_sessions(
        &self,
        actor: &Ulid,
    ) -> Result<Vec<Resource<PersonalSession>>, Error> {
        let filters = [
            ("filter[owner_client]", self.connection.client_id.as_str()),
            ("filter[actor_user]", actor.as_str()),
            ("filter[status]", "active"),
        ];
        self.list(SESSIONS, &filters).await
    }

    /// An object, `None` if MAS reports that it does not exist.
    async fn get_single<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        id: &str,
    ) -> Result<Option<Resource<T>>, Error> {
        match self.get::<Single<T>>(endpoint, &[id]).await {
            Ok(single) => Ok(Some(single.data)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        ids: &[&str],
    ) -> Result<T, Error> {
        self.get_repeatedly(Repeat::Always, endpoint, ids, vec![]).await?.decode()
    }
}

impl UserStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Locked => "locked",
            Self::Deactivated => "deactivated",
        }
    }
}

impl SessionKind {
    pub const ALL: [Self; 3] = [Self::OAuth2, Self::Compatibility, Self::Browser];

    fn endpoint(self) -> &'static str {
        match self {
            Self::OAuth2 => "/api/admin/v1/oauth2-sessions",
            Self::Compatibility => "/api/admin/v1/compat-sessions",
            Self::Browser => "/api/admin/v1/user-sessions",
        }
    }
}

impl<'a> Links<'a> {
    fn filter(self) -> Option<(&'static str, &'a str)> {
        match self {
            Self::All => None,
            Self::OfUser(id) => Some(("filter[user]", id.as_str())),
        }
    }
}
