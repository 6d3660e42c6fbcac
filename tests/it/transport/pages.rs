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
