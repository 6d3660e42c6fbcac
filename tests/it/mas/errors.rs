//! Errors of MAS, each told apart from the others and with what to do.

use super::{Setup, ulid};
use crate::fake::{Fault, Trouble};

fn json(status: u16, titles: &[&str]) -> Trouble {
    let titles: Vec<_> = titles.iter().map(|title| serde_json::json!({ "title": title })).collect();
    let body = serde_json::json!({ "errors": titles }).to_string();
    Trouble::Answer { status, headers: vec![], body }
}

fn plain(status: u16, text: &str) -> Trouble {
    let headers = vec![("content-type", "text/plain; charset=utf-8".to_owned())];
    Trouble::Answer { status, headers, body: text.to_owned() }
}

/// The error of a request to which MAS responds so, and how many requests were sent.
async fn told(trouble: Trouble) -> String {
    let mas = Setup::new();
    mas.internal.fault(Fault::new("GET", "/api/admin/v1/version", trouble).always());
    let error = mas.reader().version().await.unwrap_err();
    let requests = mas.internal.count("GET", "/api/admin/v1/version");
    format!("{requests}: {}\n", mas.text(&error))
}

#[tokio::test]
async fn each_error_has_its_own_advice() {
    let mut all = String::new();
    for trouble in [
        json(400, &["Missing authorization header"]),
        json(401, &["Invalid type of access token", "invalid token format"]),
        json(401, &["Access token expired"]),
        json(401, &["Missing urn:mas:admin scope"]),
        json(401, &["User locked"]),
        json(500, &["Internal server error"]),
        plain(415, "Expected request with `Content-Type: application/json`"),
        plain(422, "Failed to deserialize the JSON body into the target type: missing field `x`"),
        Trouble::Proxy(403),
        Trouble::Proxy(502),
    ] {
        all.push_str(&told(trouble).await);
    }
    insta::assert_snapshot!(all, @r"
    1: GET /api/admin/v1/version: 400 Missing authorization header. The Authorization header did not arrive: a proxy in front of MAS removed or changed it; set `admin_url` to MAS's own listener
    2: GET /api/admin/v1/version: 401 Invalid type of access token: invalid token format. MAS does not recognize the token that it issued: check that `url` and `admin_url` belong to the same MAS
    2: GET /api/admin/v1/version: 401 Access token expired. A token that MAS had just issued is not valid any more: check that `url` and `admin_url` belong to the same MAS, and that its clock is right
    1: GET /api/admin/v1/version: 401 Missing urn:mas:admin scope. The token was issued without the scope urn:mas:admin: add `client_id` to policy.data.admin_clients in MAS's configuration
    1: GET /api/admin/v1/version: 401 User locked. The account of the token is locked or deactivated in MAS: unlock or reactivate it there
    4: GET /api/admin/v1/version: 500 Internal server error. MAS failed: its log says why
    1: GET /api/admin/v1/version: 415 the request has the wrong form: Expected request with `Content-Type: application/json`. This MAS does not understand a request of microglia: upgrade both, or report it as a bug in microglia
    1: GET /api/admin/v1/version: 422 the request has the wrong form: Failed to deserialize the JSON body into the target type: missing field `x`. This MAS does not understand a request of microglia: upgrade both, or report it as a bug in microglia
    1: GET /api/admin/v1/version: 403 from a listener that is not MAS's Admin API: 403 Forbidden. A proxy responded: set `admin_url` to MAS's own listener, such as http://127.0.0.1:8081
    4: GET /api/admin/v1/version: 502 from a listener that is not MAS's Admin API: 502 Bad Gateway. The proxy has no MAS to forward the request to: check that MAS is running, or set `admin_url` to MAS's own listener
    ");
}

#[tokio::test]
async fn the_wrong_listener_is_recognized_by_its_page() {
    let mas = Setup::new();
    let config = mas.program.read("microglia.toml");
    mas.program.write("microglia.toml", &config.replace(&mas.internal.url(), &mas.public.url()));
    let error = mas.reader().version().await.unwrap_err();
    insta::assert_snapshot!(mas.text(&error), @"GET /api/admin/v1/version: 404 from a listener that is not MAS's Admin API: matrix-authentication-service. The listener that responded does not serve MAS's Admin API: set `admin_url` to the listener with the resource `adminapi`, such as http://127.0.0.1:8081");
}

#[tokio::test]
async fn a_mas_that_is_down_is_told_from_a_homeserver_that_is() {
    let mas = Setup::new();
    mas.internal.go_down();
    let error = mas.reader().version().await.unwrap_err();
    insta::assert_snapshot!(mas.text(&error), @"POST /oauth2/token: not reachable: Connection refused (os error 111). Nothing is listening at INTERNAL: check that MAS is running and that `url` and `admin_url` in [homeservers.NAME.mas] are correct");
    assert_eq!(mas.sent().len(), 4, "it is tried four times");
}

#[tokio::test]
async fn what_does_not_exist_is_none_and_not_an_error() {
    let mas = Setup::new();
    let reader = mas.reader();
    let id = ulid("01J44RKQYM4G3TNVANTMTDYTX7");
    assert_eq!(reader.user(&id).await.unwrap(), None);
    assert_eq!(reader.user_by_name("no/body?").await.unwrap(), None);
    assert_eq!(reader.link(&id).await.unwrap(), None);
    // An HTML page with the same status is something else: the wrong listener.
    mas.internal.fault(Fault::new("GET", "/api/admin/v1/users", Trouble::Proxy(404)).always());
    assert!(reader.user(&id).await.unwrap_err().to_string().contains("`admin_url`"));
}

#[tokio::test]
async fn an_error_of_another_server_is_not_one_of_mas() {
    let mut all = String::new();
    for body in
        [r#"{"error": "nothing here"}"#, r#"{"errcode": "M_NOT_FOUND", "error": "User not found"}"#]
    {
        for status in [401, 404] {
            let body = body.to_owned();
            all.push_str(&told(Trouble::Answer { status, headers: vec![], body }).await);
        }
    }
    insta::assert_snapshot!(all, @r#"
    1: GET /api/admin/v1/version: 401 from a listener that is not MAS's Admin API: {"error": "nothing here"}. A proxy responded: set `admin_url` to MAS's own listener, such as http://127.0.0.1:8081
    1: GET /api/admin/v1/version: 404 from a listener that is not MAS's Admin API: {"error": "nothing here"}. The listener that responded does not serve MAS's Admin API: set `admin_url` to the listener with the resource `adminapi`, such as http://127.0.0.1:8081
    1: GET /api/admin/v1/version: 401 from a listener that is not MAS's Admin API: {"errcode": "M_NOT_FOUND", "error": "User not found"}. A proxy responded: set `admin_url` to MAS's own listener, such as http://127.0.0.1:8081
    1: GET /api/admin/v1/version: 404 from a listener that is not MAS's Admin API: {"errcode": "M_NOT_FOUND", "error": "User not found"}. The listener that responded does not serve MAS's Admin API: set `admin_url` to the listener with the resource `adminapi`, such as http://127.0.0.1:8081
    "#);
}
