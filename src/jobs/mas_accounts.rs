//! Who is gone, as MAS says: under MAS, Synapse only repeats what it was told, perhaps by another program.

use std::collections::HashMap;

use super::account_state::AccountState;
use crate::http::Error;
use crate::mas::{Resource, User, UserStatus};
use crate::plan::report::Exempt;
use crate::synapse::{self, Identity, Reader};

/// Returns the error of a change in a MAS that is not configured any more.
pub(super) fn no_mas() -> Error {
    Error::not_sent("[homeservers.NAME.mas] is not configured any more".to_owned())
}

/// The accounts that MAS has locked or deactivated; none where no MAS is configured.
#[derive(Debug, Default)]
pub(super) struct GoneAccounts(HashMap<String, Exempt>);

impl GoneAccounts {
    pub async fn read(reader: &Reader, server_name: &str) -> Result<Self, Error> {
        let Some(mas) = reader.mas() else { return Ok(Self::default()) };
        let mut gone = HashMap::new();
        for status in [UserStatus::Locked, UserStatus::Deactivated] {
            for user in mas.users(status).await? {
                if let Some(exempt) = exempt(&user.attributes) {
                    gone.insert(format!("@{}:{server_name}", user.attributes.username), exempt);
                }
            }
        }
        Ok(Self(gone))
    }

    /// Why the account is gone; `None` for one that MAS does not know, such as that of a bridge.
    pub fn exempt(&self, user_id: &str) -> Option<Exempt> {
        self.0.get(user_id).copied()
    }
}

/// Whether MAS has locked or deactivated the account by now; false where no MAS is configured.
pub(super) async fn is_gone(reader: &Reader, user_id: &str) -> Result<bool, Error> {
    Ok(in_mas(reader, user_id).await?.is_some_and(|user| exempt(&user.attributes).is_some()))
}

/// The state of an account by now: as MAS says, or as Synapse says of one that MAS does not know.
pub(super) async fn state_of(reader: &Reader, user: &synapse::User) -> Result<AccountState, Error> {
    Ok(match in_mas(reader, &user.name).await?.map(|user| exempt(&user.attributes)) {
        Some(Some(Exempt::Deactivated)) => AccountState::Deactivated,
        Some(Some(_)) => AccountState::Locked,
        // Suspension is Synapse's own.
        Some(None) if user.suspended => AccountState::Locked,
        Some(None) => AccountState::Active,
        None => AccountState::of(user),
    })
}

/// The account in MAS; `None` for one that MAS does not know, and where none is configured.
pub(super) async fn in_mas(
    reader: &Reader,
    user_id: &str,
) -> Result<Option<Resource<User>>, Error> {
    let localpart = user_id.strip_prefix('@').and_then(|id| id.split_once(':'));
    let (Some(mas), Some((localpart, _))) = (reader.mas(), localpart) else { return Ok(None) };
    // The case of the name does not matter to MAS, but to Synapse.
    let user = mas.user_by_name(localpart).await?;
    Ok(user.filter(|user| user.attributes.username == localpart))
}

/// Why a homeserver with a configured MAS that Synapse does not use is refused: its locks would lock nobody out.
pub(super) fn without_delegation(identity: &Identity, reader: &Reader) -> Option<String> {
    (!identity.mas && reader.mas().is_some()).then(|| "[homeservers.NAME.mas] is configured, but this Synapse does not delegate to MAS, and manages its accounts itself: remove the table, or configure `matrix_authentication_service` in Synapse".to_owned())
}

fn exempt(user: &User) -> Option<Exempt> {
    match user {
        User { deactivated_at: Some(_), .. } => Some(Exempt::Deactivated),
        User { locked_at: Some(_), .. } => Some(Exempt::Locked),
        _ => None,
    }
}
