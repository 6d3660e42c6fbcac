//! Implausible counts in responses.

use super::ONCE;
use crate::fake::{Fake, Fault, TOKEN, Trouble};
use crate::program::Program;

fn answer(body: &str) -> Trouble {
    Trouble::Answer { status: 200, headers: Vec::new(), body: body.to_owned() }
}

#[tokio::test]
async fn implausible_counts_and_sizes_are_added_without_overflow() {
    let fake = Fake::start();
    let owners = r#"{"users": [
        {"user_id": "@a:fake.test", "media_count": 18446744073709551615, "media_length": 18446744073709551615},
        {"user_id": "@b:fake.test", "media_count": 18446744073709551615, "media_length": -7}
    ], "total": 2}"#;
    let file = |id: &str, bytes: &str| {
        format!(
            r#"{{"media_id": "{id}", "media_length": {bytes}, "created_ts": -9223372036854775808}}"#
        )
    };
    let files = format!(
        r#"{{"media": [{}, {}, {}], "total": 18446744073709551615}}"#,
        file("one", "18446744073709551615"),
        file("two", "18446744073709551615"),
        file("three", "-1"),
    );
    fake.fault(
        Fault::new("GET", "/_synapse/admin/v1/statistics/users/media", answer(owners)).always(),
    );
    fake.fault(Fault::new("GET", "/_synapse/admin/v1/users/", answer(&files)).always());
    let job = "[jobs.media]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\n";
    let program = Program::new(&fake.url(), TOKEN, &format!("{job}{ONCE}"));
    let report = program.dry_run("media").await;
    assert_eq!(report["outcome"], "succeeded", "{report}");
    assert_eq!(report["planned"], 4, "{report}");
}

#[tokio::test]
async fn an_implausible_number_of_deleted_files_is_counted_without_overflow() {
    let fake = Fake::start();
    let purge = "/_synapse/admin/v1/purge_media_cache";
    fake.fault(Fault::new("POST", purge, answer(r#"{"deleted": 18446744073709551615}"#)).always());
    let job = "[jobs.cache]\nkind = \"purge-remote-media\"\nolder_than = \"30d\"\n";
    let program = Program::new(&fake.url(), TOKEN, &format!("{job}{ONCE}"));
    let report = program.apply("cache").await;
    assert!(fake.count("POST", purge) > 2);
    assert_eq!(report["outcome"], "succeeded", "{report}");
}
