//! Personal sessions: the tokens that act as an account on Synapse, and how Synapse sees them.

use std::time::Duration;

use microglia::mas::{IssuedToken, PersonalSessions};
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{LIFE, Setup, ulid};
use crate::fake::{Fault, Trouble};

const SCOPE: &str =
    "urn:matrix:client:api:* urn:synapse:admin:* urn:matrix:client:device:MICROGLIA01";
const WITHOUT_DEVICE: &str = "urn:matrix:client:api:* urn:synapse:admin:*";
const SESSIONS: &str = "/api/admin/v1/personal-sessions";

fn sessions(mas: &Setup) -> PersonalSessions {
    PersonalSessions::new(mas.reader())
}

/// The account of the daemon in MAS; Synapse has it already.
fn account(mas: &Setup) -> microglia::mas::Ulid {
    ulid(&mas.homeserver.world(|world| world.auth_service.user("microglia")))
}

/// What Synapse says to a request with the token: its status, and the error.
async fn at_synapse(mas: &Setup, issued: &IssuedToken) -> String {
    let address = mas.homeserver.url().replace("http://", "");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let token = issued.token.expose_secret();
    let request = format!(
        "GET /_matrix/client/v3/account/whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap();
    match answer.split_once("\"error\":\"") {
        Some((_, rest)) => format!("{status} {}", rest.split('"').next().unwrap()),
        None => status.to_owned(),
    }
}

#[tokio::test]
async fn a_session_is_created_found_renewed_and_revoked() {
    let mas = Setup::new();
    let (sessions, reader, actor) = (sessions(&mas), mas.reader(), account(&mas));
    assert_eq!(reader.own_personal_sessions(&actor).await.unwrap(), []);
    let first = sessions.create(&actor, "microglia", SCOPE, LIFE).await.unwrap();
    assert!(first.token.expose_secret().starts_with("mpt_"));
    assert!(first.session.attributes.expires_at.is_some());
    let own = reader.own_personal_sessions(&actor).await.unwrap();
    assert_eq!(own.len(), 1);
    assert_eq!(own[0].id, first.session.id);
    let second = sessions.regenerate(&first.session.id, LIFE).await.unwrap();
    assert_ne!(second.token.expose_secret(), first.token.expose_secret());
    assert!(second.session.attributes.expires_at.is_some());
    sessions.revoke(&first.session.id).await.unwrap();
    sessions.revoke(&first.session.id).await.unwrap();
    assert_eq!(reader.own_personal_sessions(&actor).await.unwrap(), []);
    let error = sessions.regenerate(&first.session.id, LIFE).await.unwrap_err();
    assert!(error.to_string().contains("422 Session not valid"), "{error}");
    let shown = format!("{first:?}");
    assert!(!shown.contains("mpt_"), "{shown}");
}

#[tokio::test]
async fn a_session_whose_response_is_lost_is_not_created_twice() {
    let mas = Setup::new();
    let (sessions, actor) = (sessions(&mas), account(&mas));
    mas.internal.fault(Fault::new("POST", SESSIONS, Trouble::CutAfter));
    let error = sessions.create(&actor, "microglia", SCOPE, LIFE).await.unwrap_err();
    assert!(error.to_string().contains("the response was lost"), "{error}");
    assert_eq!(mas.internal.count("POST", SESSIONS), 1);
    assert_eq!(mas.reader().own_personal_sessions(&actor).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_account_that_is_deactivated_or_unknown_gets_no_session() {
    let mas = Setup::new();
    let (sessions, actor) = (sessions(&mas), account(&mas));
    mas.homeserver.world(|world| {
        let user = world.auth_service.users.get_mut(actor.as_str()).unwrap();
        user.deactivated_at = Some("2026-11-24T15:50:10Z".to_owned());
    });
    let error = sessions.create(&actor, "microglia", SCOPE, LIFE).await.unwrap_err();
    insta::assert_snapshot!(mas.text(&error), @"POST /api/admin/v1/personal-sessions: 410 User is not active");
}

#[tokio::test]
async fn synapse_keeps_what_mas_said_about_a_token() {
    let mas = Setup::new();
    let (sessions, actor) = (sessions(&mas), account(&mas));
    let keep = |life| {
        mas.homeserver.world(|world| world.auth_service.introspection_life = life);
    };
    let with_device = sessions.create(&actor, "one", SCOPE, LIFE).await.unwrap();
    let without = sessions.create(&actor, "two", WITHOUT_DEVICE, LIFE).await.unwrap();
    for issued in [&with_device, &without] {
        assert_eq!(at_synapse(&mas, issued).await, "200");
    }
    // The old token works on, device or not.
    let renewed = sessions.regenerate(&with_device.session.id, LIFE).await.unwrap();
    assert_eq!(at_synapse(&mas, &with_device).await, "200");
    assert_eq!(at_synapse(&mas, &renewed).await, "200");
    sessions.revoke(&with_device.session.id).await.unwrap();
    sessions.revoke(&without.session.id).await.unwrap();
    assert_eq!(at_synapse(&mas, &renewed).await, "401 Token is not active");
    assert_eq!(at_synapse(&mas, &without).await, "200", "without a device for two minutes");
    keep(Duration::ZERO);
    assert_eq!(at_synapse(&mas, &without).await, "401 Token is not active");
    // A refusal is kept, too, and MAS that is down is neither yes nor no.
    keep(Duration::from_mins(2));
    let third = sessions.create(&actor, "three", SCOPE, LIFE).await.unwrap();
    mas.homeserver.world(|world| world.auth_service.is_down = true);
    assert_eq!(at_synapse(&mas, &third).await, "503 Unable to introspect the access token");
    mas.homeserver.world(|world| {
        world.auth_service.is_down = false;
        let user = world.auth_service.users.get_mut(actor.as_str()).unwrap();
        user.locked_at = Some("2026-11-24T15:50:10Z".to_owned());
    });
    assert_eq!(at_synapse(&mas, &third).await, "401 Token is not active");
    mas.homeserver.world(|world| {
        world.auth_service.users.get_mut(actor.as_str()).unwrap().locked_at = None;
    });
    assert_eq!(at_synapse(&mas, &third).await, "401 Token is not active");
}
