//! What a daemon asks homeservers while nothing runs.

use super::catch_up::Begun;
use super::*;
use crate::fake::{Fault, TOKEN, Trouble};
use crate::program::until;

const VERSION: &str = "/_synapse/admin/v1/server_version";
const ACCOUNT: &str = "/_synapse/admin/v2/users/";

#[tokio::test]
async fn a_probe_takes_one_request_and_once_an_hour_four() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &ping("any", ""));
    let begun = Begun::at(&fake, &program, "2026-01-01T00:00:00Z").await;
    let probed_until = async |what: &str, is_enough: &dyn Fn(usize, usize) -> bool| {
        until(what, 60, async || {
            let enough = is_enough(fake.count("GET", VERSION), fake.count("GET", ACCOUNT));
            if !enough {
                begun.supervisor.probe_next().await;
            }
            enough
        })
        .await;
    };
    probed_until("the second complete probe", &|complete, _| complete == 2).await;
    // The request of the second one may still be on its way.
    assert!([12, 13].contains(&fake.count("GET", ACCOUNT)), "{}", fake.count("GET", ACCOUNT));
    let valid = || begun.metric("microglia_homeserver_token_valid", "main");
    assert_eq!(valid(), 1.0);

    // Whatever goes wrong, the next probe is complete.
    let refused = Trouble::Synapse(401, "M_UNKNOWN_TOKEN", "Invalid access token");
    fake.fault(Fault::new("GET", ACCOUNT, refused));
    probed_until("the third complete probe", &|complete, _| complete == 3).await;
    assert!(fake.count("GET", ACCOUNT) < 17, "{}", fake.count("GET", ACCOUNT));
    until("the token to be valid again", 30, async || valid() == 1.0).await;
    begun.stop().await;
}
