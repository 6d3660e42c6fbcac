//! Who is gone, as MAS says: under MAS, Synapse only repeats what it was told, perhaps by another program.

use std::collections::HashMap;

use crate::http::Error;
use crate::mas::{User, UserStatus};
use crate::plan::report::Exempt;
use crate::synapse::Reader;

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
    let localpart = user_id.strip_prefix('@').and_then(|id| id.split_once(':'));
    let (Some(mas), Some((localpart, _))) = (reader.mas(), localpart) else { return Ok(false) };
    // The case of the name does not matter to MAS, but to Synapse.
    let user = mas.user_by_name(localpart).await?.map(|user| user.attributes);
    Ok(user.is_some_and(|user| user.username == localpart && exempt(&user).is_some()))
}

fn exempt(user: &User) -> Option<Exempt> {
    match user {
        User { deactivated_at: Some(_), .. } => Some(Exempt::Deactivated),
        User { locked_at: Some(_), .. } => Some(Exempt::Locked),
        _ => None,
    }
}
