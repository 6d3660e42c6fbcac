//! The OpenAPI file of MAS, and what the client uses of it.

use crate::fake::Operation;

/// Every endpoint of the Admin API that the source of the client names.
fn endpoints_in_source() -> Vec<String> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/mas");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        found.extend(
            text.split('"').filter(|part| part.starts_with("/api/admin/")).map(str::to_owned),
        );
    }
    found.sort();
    found.dedup();
    found
}

#[test]
fn every_endpoint_that_the_client_names_is_in_the_openapi_file() {
    let endpoints = endpoints_in_source();
    assert!(endpoints.len() >= 10, "{endpoints:?}");
    for endpoint in &endpoints {
        let is_known = ["GET", "POST", "DELETE"]
            .iter()
            .any(|method| Operation::find(method, endpoint).is_some());
        assert!(is_known, "{endpoint} is not in the OpenAPI file");
    }
}

#[test]
fn an_unknown_endpoint_parameter_field_or_value_is_found() {
    let pairs = |query: &[(&str, &str)]| -> Vec<(String, String)> {
        query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    assert!(Operation::find("GET", "/api/admin/v1/upstream-links").is_none());
    assert!(Operation::find("PUT", "/api/admin/v1/users").is_none());
    let list = Operation::find("GET", "/api/admin/v1/personal-sessions").unwrap();
    let known =
        pairs(&[("filter[owner_client]", "01J44RKQYM4G3TNVANTMTDYTX6"), ("count", "false")]);
    assert_eq!(list.unknown_in_request(&known, ""), [""; 0]);
    let query = pairs(&[
        ("filter[owner-client]", "01J44RKQYM4G3TNVANTMTDYTX6"),
        ("filter[actor_user]", "me"),
        ("filter[status]", "finished"),
        ("page[first]", "0"),
    ]);
    insta::assert_snapshot!(list.unknown_in_request(&query, "{}").join("\n"), @r#"
    the parameter filter[owner-client] does not exist
    filter[actor_user]: is not a ULID: "me"
    filter[status]: is none of ["active","revoked"]: "finished"
    page[first]: is too small: 0
    there is a body
    "#);
    let create = Operation::find("POST", "/api/admin/v1/personal-sessions").unwrap();
    let body =
        r#"{"actor_user_id": "01J44RKQYM4G3TNVANTMTDYTX6", "scopes": "a", "expires_in": "1d"}"#;
    insta::assert_snapshot!(create.unknown_in_request(&[], body).join("\n"), @r#"
    body.expires_in: is not of type ["integer","null"]: "1d"
    body: the field scopes does not exist
    body: the field human_name is missing
    body: the field scope is missing
    "#);
    insta::assert_snapshot!(create.unknown_in_request(&[], "").join("\n"), @"there is no body");
    let name = Operation::find("GET", "/api/admin/v1/users/by-username/x").unwrap();
    let user = serde_json::json!({"data": {"type": "user", "id": "1", "attributes": {"username": "x", "created_at": "today", "admin": false, "legacy_guest": false, "locked": true}, "links": {"self": "/"}}, "links": {"self": "/"}});
    insta::assert_snapshot!(name.problems_in_response(200, &user).join("\n"), @r#"
    response.data.attributes.created_at: is not a date: "today"
    response.data.attributes: the field locked does not exist
    response.data.id: is not a ULID: "1"
    "#);
}
