//! The token for the Admin API: issued once, kept, and replaced once where MAS refuses it.

use microglia::mas::Writer;
use tokio_util::sync::CancellationToken;

use super::{CLIENT_SECRET, Setup, TOKEN_200, ulid};
use crate::fake::{CLIENT_ID, Fault, Provider, Trouble};
use crate::program::until;

const VERSION_200: &str = "GET /api/admin/v1/version 200";

#[tokio::test]
async fn a_token_is_issued_once_for_all_requests_at_the_internal_listener() {
    let mas = Setup::new();
    let reader = mas.reader();
    let (one, other) = tokio::join!(reader.version(), reader.version());
    assert_eq!(one.unwrap(), "1.22.0-36-g682b8d26d");
    other.unwrap();
    reader.version().await.unwrap();
    assert_eq!(mas.sent(), [TOKEN_200, VERSION_200, VERSION_200, VERSION_200]);
    assert_eq!(mas.internal.count("POST", "/oauth2/token"), 1);
    let requests = mas.internal.requests();
    let form = requests.iter().find(|seen| seen.path == "/oauth2/token").unwrap();
    assert_eq!(form.body, "grant_type=client_credentials&scope=urn%3Amas%3Aadmin");
    assert_eq!(form.content_type, "application/x-www-form-urlencoded");
}

#[tokio::test]
async fn a_token_is_asked_for_at_the_public_listener_where_the_internal_one_has_no_oauth() {
    let mas = Setup::new();
    mas.homeserver.world(|world| {
        world.auth_service.internal_oauth = false;
        // Used for 0.8 s, so that a second one is needed soon.
        world.auth_service.token_life = 1;
    });
    let reader = mas.reader();
    reader.version().await.unwrap();
    assert_eq!(mas.sent(), ["POST /oauth2/token 404", TOKEN_200, VERSION_200]);
    let requests = || mas.internal.count("POST", "/oauth2/token");
    until("another token", 10, async || {
        reader.version().await.unwrap();
        requests() > 2
    })
    .await;
    let mut sent = mas.sent();
    sent.retain(|line| line.contains("/oauth2/token"));
    assert_eq!(sent, [TOKEN_200], "the listener is remembered");
}

#[tokio::test]
async fn a_token_that_was_revoked_is_replaced_once() {
    let mas = Setup::new();
    let reader = mas.reader();
    reader.version().await.unwrap();
    let revoke = || {
        mas.homeserver.world(|world| {
            world.auth_service.tokens.values_mut().for_each(|token| token.revoked = true);
        });
    };
    revoke();
    mas.sent();
    reader.version().await.unwrap();
    let refused = "GET /api/admin/v1/version 401";
    assert_eq!(mas.sent(), [refused, TOKEN_200, VERSION_200]);
    // MAS goes on refusing what it has just issued: no more tokens within a minute.
    revoke();
    let error = reader.version().await.unwrap_err();
    assert_eq!(mas.sent(), [refused]);
    insta::assert_snapshot!(mas.text(&error), @"GET /api/admin/v1/version: 401 Access token revoked. A token that MAS had just issued is not valid any more: check that `url` and `admin_url` belong to the same MAS, and that its clock is right");
}

#[tokio::test]
async fn a_missing_scope_is_not_a_reason_for_another_token() {
    let mas = Setup::new();
    let reader = mas.reader();
    reader.version().await.unwrap();
    mas.homeserver.world(|world| {
        world.auth_service.tokens.values_mut().for_each(|token| token.scope.clear());
    });
    mas.sent();
    let error = reader.version().await.unwrap_err();
    assert_eq!(mas.sent(), ["GET /api/admin/v1/version 401"]);
    assert!(error.to_string().contains("401 Missing urn:mas:admin scope"), "{error}");
}

#[tokio::test]
async fn credentials_that_mas_does_not_accept_are_not_sent_again_until_the_secret_changes() {
    let mas = Setup::new();
    mas.program.write("mas-client-secret", "wrong");
    let reader = mas.reader();
    let error = reader.version().await.unwrap_err();
    insta::assert_snapshot!(mas.text(&error), @"POST /oauth2/token: 401 invalid_client: Client authentication failed. MAS does not accept the client: compare `client_id` and the content of `client_secret_file` with `clients` in MAS's configuration, where client_auth_method must be client_secret_basic; a new secret in the file is used at once");
    for _ in 0..3 {
        assert_eq!(reader.version().await.unwrap_err().to_string(), error.to_string());
    }
    assert_eq!(mas.sent(), ["POST /oauth2/token 401"]);
    mas.program.write("mas-client-secret", CLIENT_SECRET);
    reader.version().await.unwrap();
    assert_eq!(mas.sent(), [TOKEN_200, VERSION_200]);
}

#[tokio::test]
async fn a_client_that_may_not_use_the_admin_api_is_told_what_to_configure() {
    let mas = Setup::new();
    mas.homeserver.world(|world| {
        world.auth_service.clients.get_mut(CLIENT_ID).unwrap().admin = false;
    });
    let reader = mas.reader();
    let error = reader.version().await.unwrap_err();
    reader.version().await.unwrap_err();
    assert_eq!(mas.sent(), ["POST /oauth2/token 403"]);
    insta::assert_snapshot!(mas.text(&error), @"POST /oauth2/token: 403 invalid_scope: scope 'urn:mas:admin' not allowed. MAS does not let this client use its Admin API: add `client_id` to policy.data.admin_clients in MAS's configuration, and restart MAS");
}

#[tokio::test]
async fn no_secret_is_in_an_error_or_in_debug_output() {
    let mas = Setup::new();
    let body = "{\"access_token\": \"mat_s3cret\", \"expires_in\": \"mat_s3cret\"}".to_owned();
    let answer = Trouble::Answer { status: 200, headers: vec![], body };
    mas.internal.fault(Fault::new("POST", "/oauth2/token", answer));
    let connection = mas.connection();
    let reader = microglia::mas::Reader::new(connection, microglia::values::clock::Clock::system());
    let error = reader.version().await.unwrap_err();
    insta::assert_snapshot!(mas.text(&error), @"POST /oauth2/token: cannot decode the response (line 1 column 57): not shown, because it may contain a token");
    let shown = format!("{reader:?} {error:?}");
    assert!(!shown.contains("s3cret"), "{shown}");
}

/// A response of the token endpoint that is no token.
fn refusal(status: u16, error: &str) -> Trouble {
    let body = serde_json::json!({ "error": error }).to_string();
    Trouble::Answer { status, headers: vec![], body }
}

#[tokio::test]
async fn a_failed_request_for_a_token_is_not_taken_for_an_answer_about_a_link_or_an_account() {
    let mas = Setup::new();
    let (link, user) = mas.homeserver.world(|world| {
        let service = &mut world.auth_service;
        let (provider, user) = (service.provider(Provider::default()), service.user("alice"));
        (service.link(&provider, "alice", Some(&user)), user)
    });
    for (trouble, expected) in [
        (refusal(404, "not_found"), "POST /oauth2/token: 404 "),
        (refusal(400, "invalid_request"), "POST /oauth2/token: 400 invalid_request"),
        (Trouble::CutAfter, "POST /oauth2/token: the response was lost"),
    ] {
        mas.internal.fault(Fault::new("POST", "/oauth2/token", trouble).always());
        let (reader, writer) = (mas.reader(), mas.writer());
        for error in [
            writer.delete_link(&ulid(&link)).await.unwrap_err(),
            reader.link(&ulid(&link)).await.unwrap_err(),
            reader.user(&ulid(&user)).await.unwrap_err(),
            reader.user_by_name("alice").await.unwrap_err(),
        ] {
            assert!(error.to_string().starts_with(expected), "{error}");
        }
        mas.internal.no_more_faults();
    }
    assert_eq!(mas.internal.count("*", "/api/"), 0);
}

#[tokio::test]
async fn requests_that_wait_for_a_token_share_the_failure_to_obtain_it() {
    let mas = Setup::new();
    mas.internal.fault(Fault::new("POST", "/oauth2/token", Trouble::Proxy(502)).always());
    let reader = mas.reader();
    let all = futures_util::future::join_all((0..20).map(|_| reader.version())).await;
    assert!(all.iter().all(Result::is_err));
    assert_eq!(mas.sent(), ["POST /oauth2/token 502"]);
    // It may pass, so that the next request asks again.
    mas.internal.no_more_faults();
    reader.version().await.unwrap();
}

#[tokio::test]
async fn a_change_that_waits_for_a_token_is_given_up_when_the_run_ends() {
    let mas = Setup::new();
    mas.internal.fault(Fault::new("POST", "/oauth2/token", Trouble::Hang).always());
    let cancel = CancellationToken::new();
    let writer = Writer::new(mas.reader(), cancel.clone());
    let id = ulid("01J44RKQYM4G3TNVANTMTDYTX7");
    let end = async {
        let asked = async || mas.internal.count("POST", "/oauth2/token") > 0;
        until("the request for a token", 10, asked).await;
        cancel.cancel();
    };
    let (deleted, ()) = tokio::join!(writer.delete_link(&id), end);
    insta::assert_snapshot!(mas.text(&deleted.unwrap_err()), @"DELETE /api/admin/v1/upstream-oauth-links/01J44RKQYM4G3TNVANTMTDYTX7: the run ended before the request was sent");
}
