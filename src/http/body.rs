//! The limits of response bodies, and reading within them.

use std::time::Duration;

use super::client::root_cause;
use super::error::Cause;
use super::request::{BodyStream, JOIN_ENDPOINT};
use crate::values::duration::HumanDuration;
use crate::values::size::Size;

/// The limit of a list, such as the state of a room with 100,000 members.
const MAX_LIST: Size = Size(64 << 20);
/// The limit of a response about one object.
const MAX_OBJECT: Size = Size(1 << 20);
/// Bytes of a streamed response that an error may show.
const BEGINNING: usize = 1024;
/// The limit of a response with an error status.
pub(super) const MAX_ERROR: Size = MAX_OBJECT;

/// Returns the limit of an endpoint's successful responses.
pub(super) fn max_body(endpoint: &str) -> Size {
    match endpoint {
        "/_matrix/client/v3/account/whoami"
        | "/_matrix/client/v1/auth_metadata"
        | "/oauth2/token"
        | "/_matrix/client/v3/directory/room/{}"
        | "/_matrix/client/v3/login"
        | "/_matrix/client/v3/logout"
        | "/_matrix/client/versions"
        | "/.well-known/matrix/client"
        | "/_synapse/admin/v1/server_version"
        | "/_synapse/admin/v1/rooms/{}/block"
        | JOIN_ENDPOINT
        | "/_synapse/admin/v1/media/{}/{}"
        | "/_synapse/admin/v1/media/protect/{}"
        | "/_synapse/admin/v1/media/unprotect/{}"
        | "/_synapse/admin/v1/purge_media_cache"
        | "/_synapse/admin/v1/deactivate/{}"
        | "/_synapse/admin/v1/send_server_notice/{}"
        | "/_synapse/admin/v2/users/{}" => MAX_OBJECT,
        _ => MAX_LIST,
    }
}

/// Reads a body of at most `max` bytes, which has to arrive within `timeout` of its head.
///
/// The timeout matters for media purges, which have none of their own: once the response has begun, Synapse has finished
/// the work.
pub(super) async fn read(
    mut response: reqwest::Response,
    max: Size,
    timeout: Duration,
) -> Result<Vec<u8>, Cause> {
    if response.content_length().is_some_and(|length| length > max.0) {
        return Err(Cause::TooLarge(max));
    }
    let read = async {
        let mut body = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| Cause::Lost(root_cause(&error)))?
        {
            if (body.len() + chunk.len()) as u64 > max.0 {
                return Err(Cause::TooLarge(max));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    tokio::time::timeout(timeout, read).await.unwrap_or_else(|_| {
        Err(Cause::Lost(format!(
            "the response began but did not end within {}",
            HumanDuration(timeout)
        )))
    })
}

/// Passes a body on while it arrives; each silence in it may last up to `timeout`. Returns its beginning.
pub(super) async fn pass_on(
    mut response: reqwest::Response,
    stream: &BodyStream<'_>,
    timeout: Duration,
) -> Result<Vec<u8>, Cause> {
    let parser = (stream.begin)();
    let (mut beginning, mut length) = (Vec::new(), 0_u64);
    loop {
        let chunk = match tokio::time::timeout(timeout, response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => return Ok(beginning),
            Ok(Err(error)) => return Err(Cause::Lost(root_cause(&error))),
            Err(_) => {
                return Err(Cause::Lost(format!(
                    "the response stopped for {} before its end",
                    HumanDuration(timeout)
                )));
            }
        };
        length += chunk.len() as u64;
        if length > stream.max.0 {
            return Err(Cause::TooLarge(stream.max));
        }
        if beginning.is_empty() {
            beginning.extend(chunk.iter().take(BEGINNING));
        }
        if parser.send(chunk.to_vec()).await.is_err() {
            // The parser has found an error, which it returns to whoever started it.
            return Ok(beginning);
        }
    }
}
