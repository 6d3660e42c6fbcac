//! How much of a response is read, and for how long.

use std::time::{Duration, Instant};

use super::{ONCE, OWN, WHOAMI, message, message_after, sweep, with_users};
use crate::fake::{Fake, Fault, TOKEN, Trouble};
use crate::program::Program;

#[tokio::test]
async fn an_endless_response_is_read_up_to_the_limit_of_its_endpoint() {
    let mut all = String::new();
    for (path, status) in [(WHOAMI, 200), (WHOAMI, 500), (OWN, 200)] {
        let (said, requests) = message_after(path, Trouble::Endless(status)).await;
        all.push_str(&format!("{requests} request, {status}: {said}\n"));
    }
    let fake = with_users(1);
    // The first request that fits is for the daemon's own account.
    fake.fault(
        Fault::new("GET", "/_synapse/admin/v2/users", Trouble::Endless(200)).after(1).times(8),
    );
    let program = sweep(&fake, ONCE);
    let report = program.apply("sweep").await;
    all.push_str(&format!("a list: {}", message(&program, &fake, &report)));
    insta::assert_snapshot!(all, @"
    1 request, 200: failed: GET /_matrix/client/v3/account/whoami: the response exceeds 1.0 MiB, the limit for this endpoint. Check that the URL of the homeserver is that of Synapse's own listener; if it is, please report this as a bug in microglia
    1 request, 500: failed: GET /_matrix/client/v3/account/whoami: the response exceeds 1.0 MiB, the limit for this endpoint. Check that the URL of the homeserver is that of Synapse's own listener; if it is, please report this as a bug in microglia
    1 request, 200: failed: GET /_synapse/admin/v2/users/@microglia:fake.test: the response exceeds 1.0 MiB, the limit for this endpoint. Check that the URL of the homeserver is that of Synapse's own listener; if it is, please report this as a bug in microglia
    a list: GET /_synapse/admin/v2/users: the response exceeds 64.0 MiB, the limit for this endpoint. Check that the URL of the homeserver is that of Synapse's own listener; if it is, please report this as a bug in microglia
    ");
}

#[tokio::test]
async fn a_response_that_announces_more_than_the_limit_is_not_read() {
    let (said, requests) = message_after(WHOAMI, Trouble::Announced(1 << 40)).await;
    assert_eq!(requests, 1, "{said}");
    insta::assert_snapshot!(said, @"failed: GET /_matrix/client/v3/account/whoami: the response exceeds 1.0 MiB, the limit for this endpoint. Check that the URL of the homeserver is that of Synapse's own listener; if it is, please report this as a bug in microglia");
}

#[tokio::test]
async fn a_trickling_response_ends_with_the_request_timeout_even_for_a_purge() {
    let fake = Fake::start();
    fake.fault(
        Fault::new("POST", "/_synapse/admin/v1/purge_media_cache", Trouble::Trickle).always(),
    );
    let program = Program::new(
        &fake.url(),
        TOKEN,
        &format!(
            "request_timeout = \"1s\"\n[jobs.cache]\nkind = \"purge-remote-media\"\nolder_than = \"30d\"\ntime_limit = \"50s\"\n{ONCE}"
        ),
    );
    let start = Instant::now();
    let report = program.apply("cache").await;
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(report["outcome"], "failed", "{report}");
    let message = message(&program, &fake, &report);
    let why = "POST /_synapse/admin/v1/purge_media_cache: the response was lost: the response began but did not end within 1s";
    assert!(message.starts_with(why), "{message}");
}
