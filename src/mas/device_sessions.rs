//! Sessions with a device in Synapse, which ends with them.

use serde::{Deserialize, Serialize};

use super::list::Page;
use super::reader::Reader;
use super::resources::{CompatSession, OAuth2Session, Resource};
use super::ulid::Ulid;
use super::writer::Writer;
use crate::http::Error;
use crate::values::clock::Timestamp;
use crate::values::string_enum::string_enum;

string_enum! {
    /// How a client logged in.
    pub enum DeviceSessionKind {
        OAuth2 = "oauth2",
        /// With Matrix's own login.
        Compat = "compat",
    }
}

/// What a session is ended by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRef {
    pub kind: DeviceSessionKind,
    pub id: Ulid,
}

/// An active session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSession {
    pub reference: SessionRef,
    pub user_id: Ulid,
    pub device_id: String,
    pub human_name: Option<String>,
    /// `None` if it was never used; up to a minute late.
    pub last_active_at: Option<Timestamp>,
}

/// Part of a list of sessions.
#[derive(Debug)]
pub struct SessionPage {
    /// Those that have a device.
    pub sessions: Vec<DeviceSession>,
    /// How many there were in all.
    pub read: u64,
    /// The id after which the next page begins; `None` at the end of the list.
    pub next: Option<Ulid>,
}

impl Reader {
    /// A page of the active sessions of one user, or of all; 404 if there is no such user.
    ///
    /// Dates are not compared by MAS: it omits sessions that were never used, and versions before 1.20 ignore the filters.
    pub async fn device_sessions(
        &self,
        kind: DeviceSessionKind,
        user: Option<&Ulid>,
        after: Option<&Ulid>,
    ) -> Result<SessionPage, Error> {
        let mut filters = vec![("filter[status]", "active")];
        filters.extend(user.map(|id| ("filter[user]", id.as_str())));
        Ok(match kind {
            DeviceSessionKind::OAuth2 => {
                let page = self.page("/api/admin/v1/oauth2-sessions", &filters, after).await?;
                SessionPage::of(page, of_oauth2)
            }
            DeviceSessionKind::Compat => {
                let page = self.page("/api/admin/v1/compat-sessions", &filters, after).await?;
                SessionPage::of(page, of_compat)
            }
        })
    }
}

impl SessionPage {
    fn of<T>(page: Page<T>, session: fn(Resource<T>) -> Option<DeviceSession>) -> Self {
        let read = page.rows.len() as u64;
        Self {
            sessions: page.rows.into_iter().filter_map(session).collect(),
            read,
            next: page.next,
        }
    }
}

impl Writer {
    /// Ends a session, and deletes its device; one that has ended, or does not exist, is left as it is.
    pub async fn finish_session(&self, session: &SessionRef) -> Result<(), Error> {
        let endpoint = match session.kind {
            DeviceSessionKind::OAuth2 => "/api/admin/v1/oauth2-sessions/{}/finish",
            DeviceSessionKind::Compat => "/api/admin/v1/compat-sessions/{}/finish",
        };
        match self.post(endpoint, &session.id, " is already finished").await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// The prefixes of the scope that names the device; the second one is that of older clients.
const DEVICE_SCOPES: [&str; 2] =
    ["urn:matrix:client:device:", "urn:matrix:org.matrix.msc2967.client:device:"];

fn of_oauth2(session: Resource<OAuth2Session>) -> Option<DeviceSession> {
    let Resource { id, attributes } = session;
    let device = |scope: &str| {
        DEVICE_SCOPES.iter().find_map(|prefix| scope.strip_prefix(prefix)).map(str::to_owned)
    };
    Some(DeviceSession {
        reference: SessionRef { kind: DeviceSessionKind::OAuth2, id },
        // Those of clients that act for nobody, such as microglia, have none.
        user_id: attributes.user_id?,
        device_id: attributes.scope.split(' ').find_map(device)?,
        human_name: attributes.human_name,
        last_active_at: attributes.last_active_at,
    })
}

fn of_compat(session: Resource<CompatSession>) -> Option<DeviceSession> {
    let Resource { id, attributes } = session;
    Some(DeviceSession {
        reference: SessionRef { kind: DeviceSessionKind::Compat, id },
        user_id: attributes.user_id,
        device_id: attributes.device_id?,
        human_name: attributes.human_name,
        last_active_at: attributes.last_active_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_of_a_session_is_in_its_scope() {
        let device = |user: Option<&str>, scope: &str| {
            let attributes = OAuth2Session {
                user_id: user.map(|id| id.parse().unwrap()),
                scope: scope.to_owned(),
                last_active_at: None,
                human_name: None,
            };
            let id = "01J44RKQYM4G3TNVANTMTDYTX6".parse().unwrap();
            of_oauth2(Resource { id, attributes }).map(|session| session.device_id)
        };
        let user = Some("01J44RKQYM4G3TNVANTMTDYTX7");
        let api = "openid urn:matrix:client:api:*";
        assert_eq!(
            device(user, &format!("{api} urn:matrix:client:device:ABC")),
            Some("ABC".into())
        );
        let old = "urn:matrix:org.matrix.msc2967.client:device:DEF";
        assert_eq!(device(user, &format!("{old} {api}")), Some("DEF".into()));
        assert_eq!(device(user, api), None);
        assert_eq!(device(None, &format!("{api} urn:matrix:client:device:ABC")), None);
    }
}
