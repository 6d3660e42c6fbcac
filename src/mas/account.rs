//! The account that the program acts as.

use super::resources::{Resource, User};

/// Returns the account if it can have a token; `found` is what MAS has by its name.
///
/// The error says why it cannot, and what to do about it.
pub(crate) fn usable_account(
    found: Option<Resource<User>>,
    account: &str,
    homeserver: &str,
) -> Result<Resource<User>, String> {
    let Some(user) = found else {
        return Err(format!(
            "MAS has no account `{account}`: create it (mas-cli manage register-user {account}), or correct `account` in [homeservers.{homeserver}.mas]"
        ));
    };
    let (state, remedy) = match (user.attributes.deactivated_at, user.attributes.locked_at) {
        (Some(_), _) => ("deactivated", "reactivate"),
        (None, Some(_)) => ("locked", "unlock"),
        (None, None) => return Ok(user),
    };
    Err(format!("the account `{account}` is {state} in MAS: {remedy} it, or use another one"))
}
