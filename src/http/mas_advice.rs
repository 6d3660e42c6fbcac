//! What an administrator can do about an error of MAS.

use super::error::{Cause, INVALID_CLIENT, INVALID_SCOPE, MISSING_SCOPE, USER_LOCKED};

/// The advice for a response that exceeds the limit of its endpoint.
pub(super) const TOO_LARGE: &str = "Check that `admin_url` is MAS's own listener; if it is, please report this as a bug in microglia";

/// Returns the advice for a response with an error status, where there is any; `path` is the one that was requested.
pub(super) fn for_refusal(cause: &Cause, path: &str) -> Option<String> {
    let advice = match cause {
        Cause::Mas { status, errors, .. } => for_mas(*status, errors),
        Cause::NotMas { status, .. } => for_listener(*status, path),
        _ => None,
    };
    advice.map(str::to_owned)
}

fn for_mas(status: u16, errors: &[String]) -> Option<&'static str> {
    let is = |title: &str| errors.iter().any(|error| error == title);
    Some(match status {
        401 | 403 if is(INVALID_SCOPE) => {
            "MAS does not let this client use its Admin API: add `client_id` to policy.data.admin_clients in MAS's configuration, and restart MAS"
        }
        401 if is(INVALID_CLIENT) => {
            "MAS does not accept the client: compare `client_id` and the content of `client_secret_file` with `clients` in MAS's configuration, where client_auth_method must be client_secret_basic; a new secret in the file is used at once"
        }
        _ if is("unauthorized_client") || is("unsupported_grant_type") => {
            "This client may not use client credentials: give it client_auth_method: client_secret_basic under `clients` in MAS's configuration"
        }
        400 if is("Missing authorization header") || is("Invalid authorization header") => {
            "The Authorization header did not arrive: a proxy in front of MAS removed or changed it; set `admin_url` to MAS's own listener"
        }
        401 if is(MISSING_SCOPE) => {
            "The token was issued without the scope urn:mas:admin: add `client_id` to policy.data.admin_clients in MAS's configuration"
        }
        401 if is(USER_LOCKED) => {
            "The account of the token is locked or deactivated in MAS: unlock or reactivate it there"
        }
        401 if is("Access token expired") || is("Access token revoked") => {
            "A token that MAS had just issued is not valid any more: check that `url` and `admin_url` belong to the same MAS, and that its clock is right"
        }
        401 => {
            "MAS does not recognize the token that it issued: check that `url` and `admin_url` belong to the same MAS"
        }
        400 | 415 | 422 if is(UNREADABLE_REQUEST) => {
            "This MAS does not understand a request of microglia: upgrade both, or report it as a bug in microglia"
        }
        500 => "MAS failed: its log says why",
        _ => return None,
    })
}

/// A title that stands for MAS's plain-text refusals, which are about the form of a request.
pub(super) const UNREADABLE_REQUEST: &str = "the request has the wrong form";

fn for_listener(status: u16, path: &str) -> Option<&'static str> {
    let is_admin = path.contains("/api/admin/");
    Some(match status {
        300..=399 => "Redirects are not followed: set `admin_url` to MAS's own listener",
        404 if is_admin => {
            "The listener that responded does not serve MAS's Admin API: set `admin_url` to the listener with the resource `adminapi`, such as http://127.0.0.1:8081"
        }
        404 => {
            "MAS's token endpoint is not served here: set `url` to MAS's public URL, and `admin_url` to the listener with the resources `adminapi` and `oauth`"
        }
        401 | 403 => {
            "A proxy responded: set `admin_url` to MAS's own listener, such as http://127.0.0.1:8081"
        }
        405 => {
            "This MAS does not know the operation: upgrade MAS, or set `admin_url` to its own listener"
        }
        502..=504 => {
            "The proxy has no MAS to forward the request to: check that MAS is running, or set `admin_url` to MAS's own listener"
        }
        _ => return None,
    })
}
