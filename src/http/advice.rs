//! What an administrator can do about an error of a homeserver.

use super::api::Api;
use super::error::{Cause, NO_SERVER_NOTICES, is_not_admin, is_unknown_account};
use super::excerpt::one_line;
use super::token_source::TokenSource;

/// Returns the advice for a response with an error status, where there is any.
///
/// `path` is the one that was requested, `location` the target of a redirect.
pub(super) fn for_refusal(
    cause: &Cause,
    path: &str,
    location: Option<&str>,
    token: &TokenSource,
) -> Option<String> {
    match cause {
        Cause::Synapse { status, errcode, error, .. } => {
            for_synapse(*status, errcode, error, path, token)
        }
        Cause::NotSynapse { status, .. } => for_proxy(*status, path, location),
        _ => None,
    }
}

/// Returns the advice for a connection that was not established.
pub(super) fn for_unreachable(problem: &str, origin: &str, api: Api) -> String {
    let (server, keys) = match api {
        Api::Synapse => ("Synapse", "the URL of the homeserver is"),
        Api::Mas => ("MAS", "`url` and `admin_url` in [homeservers.NAME.mas] are"),
    };
    let certificate_of = match api {
        Api::Synapse => "the homeserver",
        Api::Mas => "MAS",
    };
    if problem.starts_with("invalid peer certificate") {
        format!(
            "The certificate of {certificate_of} is not trusted: set `ca_file` to the certificate of the CA that signed it, and `url` to a host name in it"
        )
    } else {
        format!(
            "Nothing is listening at {origin}: check that {server} is running and that {keys} correct"
        )
    }
}

/// Synapse 1.163 asks MAS about each token without a timeout, and all requests with a token wait for the same question.
pub(super) const WAITS_FOR_MAS: &str = "Synapse may be waiting for MAS, which it asks about each token: check that MAS responds; if requests go on hanging when it does, restart Synapse";

/// The advice for a response that exceeds the limit of its endpoint.
pub(super) const TOO_LARGE: &str = "Check that the URL of the homeserver is that of Synapse's own listener; if it is, please report this as a bug in microglia";

fn for_synapse(
    status: u16,
    errcode: &str,
    error: &str,
    path: &str,
    token: &TokenSource,
) -> Option<String> {
    let advice = match status {
        401 if errcode == "M_USER_LOCKED" => {
            "The account of the token is locked: unlock it, or use the token of another server admin"
        }
        401 if error.starts_with("Token doesn't grant access") => {
            "This token does not grant access to the Matrix client-server API; MAS issues such tokens for client credentials. Use a personal or compatibility token with the scopes urn:matrix:client:api:* and urn:synapse:admin:*"
        }
        401 => return Some(format!("The access token is not valid: {}", token.remedy())),
        503 if error.starts_with("Unable to introspect") => {
            "Synapse checks every token with MAS, which did not respond: check that MAS is running and that Synapse can reach it"
        }
        500 if is_unknown_account(errcode, error) => {
            "MAS knows the account of the token, but Synapse does not have it yet: log in once with this account, with any Matrix client"
        }
        500 if error.starts_with("Invalid username claim") => {
            "Synapse does not accept MAS client-credentials tokens such as this one: use a personal or compatibility token"
        }
        400 if error == NO_SERVER_NOTICES => {
            "Add `server_notices` with a `system_mxid_localpart` to the configuration of Synapse and restart it, or remove `notice` from the job"
        }
        403 if is_not_admin(error) => {
            "The account of the token is not a server admin: make it one (under MAS the token needs the scope urn:synapse:admin:*), or use the token of a server admin"
        }
        _ if errcode == "M_UNRECOGNIZED" && path.contains("media") => {
            "The process that responded does not serve this media endpoint: set `media_url` to the worker that does, or upgrade Synapse"
        }
        _ if errcode == "M_UNRECOGNIZED" => {
            "Synapse does not know this endpoint: it is too old, it delegates to MAS, or a worker responded; `url` should be the listener of the main process"
        }
        _ => return None,
    };
    Some(advice.to_owned())
}

fn for_proxy(status: u16, path: &str, location: Option<&str>) -> Option<String> {
    let key = if path.contains("media") { "media_url" } else { "url" };
    Some(match status {
        300..=399 => {
            let target = location.map(|target| format!(" (to {})", one_line(target, 200)));
            format!(
                "Redirects are not followed{}: set `url` to Synapse's own listener",
                target.unwrap_or_default()
            )
        }
        502 => format!(
            "The proxy cannot reach Synapse: check that Synapse is running and that the upstream address of the proxy is correct, or set `{key}` to Synapse's own listener"
        ),
        503 => format!(
            "The proxy has no Synapse to forward the request to: check that Synapse is running and that the proxy has not taken it out of service, or set `{key}` to Synapse's own listener"
        ),
        504 => format!(
            "The proxy timed out, and Synapse may still be processing the request: increase the read timeout of the proxy, or set `{key}` to Synapse's own listener"
        ),
        401 | 403 | 404 if path.contains("/_synapse/") => {
            "A proxy responded, and most of them block /_synapse/admin: set `url` to Synapse's own listener, such as http://127.0.0.1:8008".to_owned()
        }
        401 | 403 | 404 => {
            "The server that responded is not Synapse: set `url` to Synapse's own listener, such as http://127.0.0.1:8008".to_owned()
        }
        _ => return None,
    })
}
