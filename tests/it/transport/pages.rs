//! Lists that do not end.

use super::{ONCE, message, sweep, with_users};
use crate::fake::{Fake, Fault, TOKEN, Trouble};
use crate::program::Program;

/// Responds to `path` with pages whose tokens alternate.
fn alternating(fake: &Fake, path: &str, passes: usize, page: impl Fn(usize, &str) -> String) {
    for number in 0..30 {
        let body = page(number, ["\"a\"", "\"b\""][number % 2]);
        let page = Trouble::Answer { status: 200, headers: Vec::new(), body };
        fake.fault(Fault::new("GET", path, page).after(passes));
    }
}

#[tokio::test]
async fn a_list_with_repeated_page_tokens_fails_with_its_endpoint() {
    let fake = with_users(1);
    // The first request that fits is for the daemon's own account.
    alternating(&fake, "/_synapse/admin/v2/users", 1, |number, next| {
        format!(
            r#"{{"users": [{{"name": "@u{number}:fake.test"}}], "total": 1000, "next_token": {next}}}"#
        )
    });
    let program = sweep(&fake, &format!("users = [\"@nobody:fake.test\"]\n{ONCE}"));
    let report = program.dry_run("sweep").await;
    insta::assert_snapshot!(message(&program, &fake, &report), @r#"GET /_synapse/admin/v2/users: this list does not end: the page token "a" was repeated, after 3 rows of 1,000 on 3 pages. Check that the URL of the homeserver is that of Synapse's own listener, and that no proxy caches responses"#);

    let fake = Fake::start();
    let statistics = "/_synapse/admin/v1/statistics/users/media";
    alternating(&fake, statistics, 0, |number, next| {
        format!(
            r#"{{"users": [{{"user_id": "@u{number}:fake.test", "media_count": 1}}], "total": 1000, "next_token": {next}}}"#
        )
    });
    let job = format!("[jobs.sweep]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\n{ONCE}");
    let program = Program::new(&fake.url(), TOKEN, &job);
    let report = program.dry_run("sweep").await;
    insta::assert_snapshot!(message(&program, &fake, &report), @r#"GET /_synapse/admin/v1/statistics/users/media: this list does not end: the page token "a" was repeated, after 3 rows of 1,000 on 3 pages. Check that the URL of the homeserver is that of Synapse's own listener, and that no proxy caches responses"#);
    assert_eq!(fake.count("GET", statistics), 3);

    let fake = Fake::start();
    fake.world(|world| {
        world.media("@owner:fake.test", "file", 10, 1_500_000_000_000, None).owner.clone()
    });
    alternating(&fake, "/_synapse/admin/v1/users/", 0, |number, next| {
        format!(
            r#"{{"media": [{{"media_id": "m{number}", "media_length": 1, "created_ts": 1}}], "total": 1000, "next_token": {next}}}"#
        )
    });
    let program = Program::new(&fake.url(), TOKEN, &job);
    let report = program.dry_run("sweep").await;
    insta::assert_snapshot!(message(&program, &fake, &report), @r#"GET /_synapse/admin/v1/users/@owner:fake.test/media: this list does not end: the page token "a" was repeated, after 3 rows of 1,000 on 3 pages. Check that the URL of the homeserver is that of Synapse's own listener, and that no proxy caches responses"#);
}

const LIST: &str = "/_synapse/admin/v2/users";

/// The `limit` of each request for the list of accounts.
fn limits(fake: &Fake) -> String {
    let limit = |query: &str| {
        let limit = query.split('&').find_map(|pair| pair.strip_prefix("limit="));
        limit.unwrap_or("none").to_owned()
    };
    let seen = fake.requests();
    let lists = seen.iter().filter(|seen| seen.path == LIST);
    let limits: Vec<String> = lists.map(|seen| limit(&seen.query)).collect();
    limits.join(" ")
}

#[tokio::test]
async fn a_page_that_the_homeserver_cannot_serve_is_halved_for_the_rest_of_the_run() {
    let invalid = Trouble::Synapse(400, "M_INVALID_PARAM", "limit is too large");
    let failed = Trouble::Synapse(500, "M_UNKNOWN", "Internal server error");
    for trouble in [invalid, failed, Trouble::Proxy(504), Trouble::Announced(65 << 20)] {
        let fake = with_users(650);
        // The first request that fits is for the daemon's own account.
        fake.fault(Fault::new("GET", LIST, trouble.clone()).after(1).times(5));
        let report = sweep(&fake, "").dry_run("sweep").await;
        assert_eq!(report["outcome"], "succeeded", "{trouble:?}: {report}");
        assert_eq!(limits(&fake), "10000 5000 2500 1250 625 312 312 312", "{trouble:?}");
    }
}

#[tokio::test]
async fn a_page_that_times_out_is_halved_and_one_that_is_lost_is_asked_for_again() {
    let fake = with_users(3);
    fake.fault(Fault::new("GET", LIST, Trouble::CutAfter).after(1));
    let report = sweep(&fake, "").dry_run("sweep").await;
    assert_eq!(
        (&report["outcome"], limits(&fake)),
        (&"succeeded".into(), "10000 10000".to_owned())
    );
    let fake = with_users(3);
    fake.fault(Fault::new("GET", LIST, Trouble::Hang).after(1));
    let program = sweep(&fake, "");
    let config = program.read("microglia.toml");
    let config =
        config.replace("max_joins_per_second", "request_timeout = \"1s\"\nmax_joins_per_second");
    program.write("microglia.toml", &config);
    let report = program.dry_run("sweep").await;
    assert_eq!((&report["outcome"], limits(&fake)), (&"succeeded".into(), "10000 5000".to_owned()));
}

#[tokio::test]
async fn pages_are_not_made_smaller_than_a_hundred_rows() {
    let fake = with_users(250);
    let failed = Trouble::Synapse(500, "M_UNKNOWN", "Internal server error");
    fake.fault(Fault::new("GET", LIST, failed).after(1).times(7));
    let report = sweep(&fake, "").dry_run("sweep").await;
    assert_eq!(report["outcome"], "succeeded", "{report}");
    assert_eq!(limits(&fake), "10000 5000 2500 1250 625 312 156 100 100 100");
}
