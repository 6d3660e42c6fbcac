//! What is reported about a token that the Matrix Authentication Service checks.

use super::{ONCE, OWN, WHOAMI, message_after, sweep, with_users};
use crate::fake::{Fault, Trouble};
use crate::program::until;

const DOWN: Trouble = Trouble::Synapse(503, "M_UNKNOWN", "Unable to introspect the access token");
const METADATA: &str = "/_matrix/client/v1/auth_metadata";

/// What `check --online` prints about the token and after it.
async fn online(faults: &[(&str, Trouble)]) -> (i32, String) {
    let fake = with_users(1);
    fake.world(|world| world.mas = true);
    for (path, trouble) in faults {
        fake.fault(Fault::new("GET", path, trouble.clone()).always());
    }
    let program = sweep(&fake, ONCE);
    let online = program.run(&["check", "--online"]).await;
    let answers: Vec<&str> = online
        .stdout
        .lines()
        .filter(|line| line.starts_with("main: ") && !line.starts_with("main: reachable"))
        .take(2)
        .collect();
    let file = program.path("token").display().to_string();
    (online.code, answers.join("\n").replace(&file, "TOKEN_FILE"))
}

#[tokio::test]
async fn a_token_that_cannot_be_checked_is_unknown_rather_than_invalid() {
    let mut all = String::new();
    let cases: [(&str, Trouble); 6] = [
        (WHOAMI, DOWN),
        (WHOAMI, Trouble::Proxy(502)),
        (WHOAMI, Trouble::CutAfter),
        (WHOAMI, Trouble::Synapse(401, "M_UNKNOWN_TOKEN", "Token is not active")),
        (WHOAMI, Trouble::Synapse(500, "M_FORBIDDEN", "User not found")),
        (OWN, DOWN),
    ];
    for (path, trouble) in cases {
        let (code, answers) = online(&[(path, trouble)]).await;
        assert_eq!(code, 1, "{answers}");
        all.push_str(&answers);
        all.push_str("\n--\n");
    }
    insta::assert_snapshot!(all, @"
    main: token valid: unknown: GET /_matrix/client/v3/account/whoami: 503 M_UNKNOWN: Unable to introspect the access token. Synapse checks every token with MAS, which did not respond: check that MAS is running and that Synapse can reach it
    --
    main: token valid: unknown: GET /_matrix/client/v3/account/whoami: 502 from a server that is not Synapse: 502 Bad Gateway. The proxy cannot reach Synapse: check that Synapse is running and that the upstream address of the proxy is correct, or set `url` to Synapse's own listener
    --
    main: token valid: unknown: GET /_matrix/client/v3/account/whoami: the response was lost: connection closed before message completed
    --
    main: token valid: NO: GET /_matrix/client/v3/account/whoami: 401 M_UNKNOWN_TOKEN: Token is not active. The access token is not valid: run `microglia login`, or write a valid token of a server admin to TOKEN_FILE; it is used from the next request on
    --
    main: token valid: NO: GET /_matrix/client/v3/account/whoami: 500 M_FORBIDDEN: User not found. MAS knows the account of the token, but Synapse does not have it yet: log in once with this account, with any Matrix client
    --
    main: token valid: yes, of @microglia:fake.test
    main: server admin: unknown: GET /_synapse/admin/v2/users/@microglia:fake.test: 503 M_UNKNOWN: Unable to introspect the access token. Synapse checks every token with MAS, which did not respond: check that MAS is running and that Synapse can reach it
    --
    ");
}

#[tokio::test]
async fn mas_is_detected_even_if_its_metadata_cannot_be_fetched() {
    let broken = Trouble::Synapse(500, "M_UNKNOWN", "Internal server error");
    let fake = with_users(1);
    fake.world(|world| world.mas = true);
    fake.fault(Fault::new("GET", METADATA, broken).always());
    let online = sweep(&fake, ONCE).run(&["check", "--online"]).await;
    assert!(online.stdout.contains("main: accounts in MAS: yes"), "{online:?}");
}

#[tokio::test]
async fn an_account_unknown_to_synapse_and_a_token_without_account_are_not_retried() {
    let mut all = String::new();
    for trouble in [
        Trouble::Synapse(500, "M_FORBIDDEN", "User not found"),
        Trouble::Synapse(
            401,
            "M_UNKNOWN_TOKEN",
            "Token doesn't grant access to the Matrix C-S API",
        ),
    ] {
        let (said, requests) = message_after(WHOAMI, trouble).await;
        all.push_str(&format!("{requests} request, {said}\n"));
    }
    insta::assert_snapshot!(all, @"
    1 request, failed: GET /_matrix/client/v3/account/whoami: 500 M_FORBIDDEN: User not found. MAS knows the account of the token, but Synapse does not have it yet: log in once with this account, with any Matrix client
    1 request, failed: GET /_matrix/client/v3/account/whoami: 401 M_UNKNOWN_TOKEN: Token doesn't grant access to the Matrix C-S API. This token does not grant access to the Matrix client-server API; MAS issues such tokens for client credentials. Use a personal or compatibility token with the scopes urn:matrix:client:api:* and urn:synapse:admin:*
    ");
}

#[tokio::test]
async fn the_token_metric_does_not_change_while_mas_is_down() {
    let fake = with_users(1);
    fake.world(|world| {
        world.mas = true;
    });
    let program = sweep(&fake, ONCE);
    let daemon = program.serve().await;
    let valid = async || daemon.metric("microglia_homeserver_token_valid", &["main"]).await;
    until("the token is probed", 20, async || valid().await == Some(1.0)).await;
    fake.fault(Fault::new("GET", "/", DOWN).always());
    fake.forget();
    assert_eq!(program.run(&["run", "sweep"]).await.code, 1);
    assert!(fake.count("GET", WHOAMI) > 1);
    assert_eq!(valid().await, Some(1.0));
    daemon.stop().await;
}
