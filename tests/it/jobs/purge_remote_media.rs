//! `purge-remote-media`.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::in_process::{self, SOON};
use crate::{
    fake::{Fake, Fault, TOKEN, Trouble},
    homeserver::Synapse,
    program::{Program, figures},
};

const JOB: &str = "[jobs.cache]\nkind = \"purge-remote-media\"\nolder_than = \"30d\"\n";
const PURGE: &str = "/_synapse/admin/v1/purge_media_cache";
/// 2022-01-01, long before any test runs.
const LONG_AGO_MS: i64 = 1_640_995_200_000;
const NO_PREVIEW: &str =
    "Synapse cannot list its cache of remote media: the number of files is not known in advance";

#[tokio::test]
async fn only_old_copies_are_deleted_and_the_second_run_is_short() {
    let synapse = Synapse::start().await;
    let program = Program::new(&synapse.url, &synapse.admin.token, JOB);
    for (id, days) in [("ancient", 3000), ("old", 31), ("fresh", 29), ("evil", 400)] {
        synapse.insert_remote_media("far.example", id, days).await;
    }
    let path = "/_synapse/admin/v1/media/quarantine/far.example/evil";
    let (status, answer) = synapse.admin(Method::POST, path, json!({})).await;
    assert_eq!(status, 200, "{answer}");

    synapse.forget_requests();
    let dry = program.dry_run("cache").await;
    assert_eq!(
        (figures(&dry), &dry["message"]),
        ("succeeded: null/0/0/0/0".to_owned(), &json!(NO_PREVIEW))
    );
    assert_eq!((&dry["bytes_planned"], &dry["bytes_freed"]), (&Value::Null, &Value::Null));
    assert_eq!(posts(&synapse), [0; 0]);
    let printed = program.run(&["run", "cache", "--dry-run"]).await;
    assert_eq!(printed.code, 0);
    assert!(printed.stdout.contains("this kind cannot count items in advance"), "{printed:?}");

    let report = program.apply("cache").await;
    assert_eq!(figures(&report), "succeeded: null/2/0/0/0");
    for (id, there) in [("ancient", false), ("old", false), ("fresh", true), ("evil", true)] {
        assert_eq!(synapse.remote_media_exists("far.example", id).await, there, "{id}");
    }
    let steps = posts(&synapse);
    assert!(steps.is_sorted_by(|a, b| a < b), "{steps:?}");
    let longest = steps.windows(2).map(|two| two[1] - two[0]).max();
    assert_eq!(longest, Some(60 * 86_400_000), "no step is longer than sixty days");
    assert!(steps[0] < 1_420_000_000_000, "the first step ends before 2015: {}", steps[0]);
    assert_eq!(report["changes"].as_array().unwrap().len(), steps.len());

    synapse.insert_remote_media("far.example", "one-more", 31).await;
    synapse.forget_requests();
    assert_eq!(figures(&program.apply("cache").await), "succeeded: null/1/0/0/0");
    assert_eq!(posts(&synapse).len(), 1);
    let shown = program.run(&["runs", "show", "4"]).await.stdout;
    assert!(
        shown.contains("done     purge-remote-media cached remote files last accessed before"),
        "{shown}"
    );
}

#[tokio::test]
async fn keys_that_limit_a_count_are_errors() {
    for (key, named) in [("max_changes = 5", "max_changes"), ("at_most = 5", "at_most")] {
        let program = Program::new("http://127.0.0.1:9", TOKEN, &format!("{JOB}{key}\n"));
        let output = program.run(&["run", "cache", "--apply"]).await;
        assert_eq!((output.code, output.stdout.as_str()), (2, ""));
        assert!(
            output.stderr.contains(&format!("`{named}`")) && output.stderr.contains("cannot count"),
            "{}",
            output.stderr
        );
    }
    let program = Program::new("http://127.0.0.1:9", TOKEN, JOB);
    let output = program.run(&["run", "cache", "--max-changes", "5"]).await;
    assert_eq!(output.code, 2);
    assert_eq!(
        output.stderr.trim_end(),
        "error: max_changes is not supported by purge-remote-media, which cannot count items in advance"
    );
}

#[tokio::test]
async fn a_process_that_does_not_serve_media_is_refused_before_anything_is_sent() {
    let fake = cache(5);
    let worker = fake.media_worker();
    let program = Program::new(&fake.url(), TOKEN, JOB);
    for mode in ["--dry-run", "--apply"] {
        let report = program.json(&["run", "cache", mode, "--json"]).await;
        let message = report["message"].as_str().unwrap();
        assert_eq!(figures(&report), "refused: null/0/0/0/null", "{mode}: {message}");
        assert!(message.contains("set `media_url` to the worker that does"), "{message}");
    }
    assert_eq!(fake.count("POST", ""), 0);
    let config = program.read("microglia.toml");
    program.write(
        "microglia.toml",
        &config.replacen("url = ", &format!("media_url = \"{}\"\nurl = ", worker.url()), 1),
    );
    assert_eq!(figures(&program.apply("cache").await), "succeeded: null/5/0/0/0");
}

#[tokio::test]
async fn a_wrong_clock_or_an_old_synapse_is_refused() {
    let fake = cache(5);
    let program = Program::new(&fake.url(), TOKEN, JOB);
    fake.world(|world| world.clock_offset_seconds = -7200);
    let report = program.apply("cache").await;
    assert_eq!(report["outcome"], "refused");
    let message = report["message"].as_str().unwrap();
    assert!(
        message.starts_with("the local clock is 2 h") && message.contains("ahead of that of main"),
        "{message}"
    );
    fake.world(|world| {
        world.clock_offset_seconds = 0;
        world.version = "1.77.1".to_owned();
    });
    let report = program.apply("cache").await;
    assert_eq!(
        report["message"],
        "main runs Synapse 1.77.1, and purge-remote-media requires 1.78 or later: upgrade Synapse"
    );
    assert_eq!(fake.count("POST", ""), 0);
}

#[tokio::test]
async fn after_a_lost_response_the_next_call_waits_without_statistics_and_the_run_continues() {
    let fake = cache(40);
    let program =
        Program::new(&fake.url(), TOKEN, &format!("{JOB}retries = {{ first_delay = \"1s\" }}\n"));
    fake.fault(Fault::new("POST", PURGE, Trouble::WorkOn(Duration::from_millis(1500))).after(50));
    let ran = in_process::apply(&program, "cache").await;
    assert_eq!((&ran.report["outcome"], &ran.report["attempts"]), (&json!("succeeded"), &json!(2)));
    let calls = calls(&fake);
    let pause = calls[51].0 - calls[50].0;
    assert!(pause >= SOON.unobserved_for, "{pause:?}");
    assert_eq!(fake.complaints(), [""; 0]);
    assert!(calls[51].1 >= calls[49].1, "the second attempt began anew");
    assert_eq!(fake.world(|world| world.remote.len()), 0);
    let lost: Vec<&Value> = ran.report["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| &change["detail"])
        .filter(|detail| !detail.is_null())
        .collect();
    assert_eq!(lost, ["the response was lost: it is unknown how many files were deleted"]);
}

#[tokio::test]
async fn an_interrupted_run_continues_where_it_stopped() {
    let fake = cache(10);
    let program = Program::new(&fake.url(), TOKEN, &format!("{JOB}time_limit = \"4s\"\n"));
    fake.fault(Fault::new("POST", PURGE, Trouble::Hang).after(8));
    let report = program.apply("cache").await;
    assert_eq!(figures(&report), "timed-out: null/0/0/0/null");
    let before = calls(&fake);
    fake.no_more_faults();
    let config = program.read("microglia.toml");
    program.write("microglia.toml", &config.replacen("time_limit = \"4s\"", "", 1));
    let start = Instant::now();
    let ran = in_process::apply(&program, "cache").await;
    assert_eq!(figures(&ran.report), "succeeded: null/10/0/0/0");
    let after = calls(&fake);
    assert!(after[9].0 - start >= SOON.unobserved_for);
    assert!(after[9].1 > before[7].1, "the second run began anew");
}

#[tokio::test]
async fn a_rate_limited_cache_purge_waits_and_continues() {
    let fake = cache(3);
    let program = Program::new(&fake.url(), TOKEN, JOB);
    let limited = Trouble::Limited { retry_after_ms: None, retry_after_header: Some(1) };
    fake.fault(Fault::new("POST", PURGE, limited).after(2));
    let report = program.apply("cache").await;
    assert_eq!(
        (figures(&report), &report["attempts"]),
        ("succeeded: null/3/0/0/0".to_owned(), &json!(1))
    );
    let calls = calls(&fake);
    assert!(calls[3].0 - calls[2].0 >= Duration::from_secs(1));
    assert_eq!(calls[3].1, calls[2].1);
}

/// A homeserver with this many old remote files in its cache.
fn cache(files: usize) -> Fake {
    let fake = Fake::start();
    fake.world(|world| world.remote_media(files, LONG_AGO_MS));
    fake
}

/// When each purge was requested, and its cutoff.
fn calls(fake: &Fake) -> Vec<(Instant, i64)> {
    let cutoff = |query: &str| query.strip_prefix("before_ts=").unwrap().parse().unwrap();
    let requests = fake.requests();
    requests
        .iter()
        .filter(|seen| seen.path == PURGE)
        .map(|seen| (seen.at, cutoff(&seen.query)))
        .collect()
}

/// The cutoffs of the purges, in the order of the requests.
fn posts(synapse: &Synapse) -> Vec<i64> {
    let start = format!("POST {PURGE}?before_ts=");
    let requests = synapse.requests();
    let posts = requests.iter().filter(|request| !request.starts_with("GET "));
    posts.map(|request| request.strip_prefix(&start).unwrap().parse().unwrap()).collect()
}
