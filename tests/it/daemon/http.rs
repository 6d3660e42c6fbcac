//! The HTTP listener: health, metrics, the JSON API, and authorization.

use std::collections::{BTreeMap, BTreeSet};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::fake::TOKEN;
use crate::program::until;

/// Every family of the interface with its labels, as `name type labels`; `process_*` aside.
const FAMILIES: &str = "\
microglia_build_info gauge revision,version
microglia_config_last_reload_success_timestamp_seconds gauge -
microglia_config_last_reload_successful gauge -
microglia_history_write_errors_total counter -
microglia_homeserver_info gauge homeserver,mas,version
microglia_homeserver_lease_held gauge homeserver
microglia_homeserver_request_duration_seconds histogram api,endpoint,homeserver
microglia_homeserver_request_rate_limit gauge homeserver
microglia_homeserver_requests_total counter api,endpoint,homeserver,method,status
microglia_homeserver_token_valid gauge homeserver
microglia_homeserver_up gauge homeserver
microglia_job_approval_pending gauge homeserver,job_name
microglia_job_bytes_freed_total counter homeserver,job_name
microglia_job_changes_total counter action,homeserver,job_name,state
microglia_job_consecutive_failures gauge homeserver,job_name
microglia_job_info gauge homeserver,job_name,kind,mode,schedule,timezone
microglia_job_last_round_timestamp_seconds gauge homeserver,job_name
microglia_job_last_run_duration_seconds gauge homeserver,job_name
microglia_job_last_run_items gauge homeserver,job_name,state
microglia_job_last_run_outcome gauge homeserver,job_name,outcome
microglia_job_last_run_timestamp_seconds gauge homeserver,job_name
microglia_job_last_success_timestamp_seconds gauge homeserver,job_name
microglia_job_next_run_timestamp_seconds gauge homeserver,job_name
microglia_job_retries_total counter homeserver,job_name
microglia_job_round_progress_ratio gauge homeserver,job_name
microglia_job_running gauge homeserver,job_name
microglia_job_runs_total counter homeserver,job_name,mode,outcome
microglia_job_skipped_total counter homeserver,job_name,reason
microglia_job_success_due_timestamp_seconds gauge homeserver,job_name
microglia_job_waiting gauge homeserver,job_name
microglia_login_failures_total counter -
microglia_paused gauge -
microglia_replicas_with_other_configuration gauge -
microglia_run_duration_seconds histogram kind
microglia_scheduler_last_tick_timestamp_seconds gauge -
microglia_start_delay_seconds histogram -
microglia_start_time_seconds gauge -
";

/// The families of a scrape as in `FAMILIES`, held to the rules of `promtool check metrics`.
fn families(text: &str) -> String {
    let (mut types, mut helps) = (BTreeMap::new(), BTreeSet::new());
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(
                !["_count", "_sum", "_bucket", "_info_total"].iter().any(|end| name.ends_with(end)),
                "{line}"
            );
            assert!(
                !["milli", "minutes", "hours", "_ms"].iter().any(|unit| name.contains(unit)),
                "{line}"
            );
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && helps.insert(name.to_owned()), "{line}");
        } else {
            let (head, _value) = line.rsplit_once(' ').unwrap();
            assert!(series.insert(head), "{line} twice");
            let (name, pairs) = head.split_once('{').unwrap_or((head, "}"));
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|end| name.strip_suffix(end))
                .find(|family| types.get(*family).is_some_and(|kind| kind == "histogram"))
                .unwrap_or(name);
            assert!(types.contains_key(family), "{family} has no type");
            let found = labels.entry(family.to_owned()).or_default();
            for pair in pairs.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty()) {
                let label = pair.split('=').next().unwrap();
                if label != "le" {
                    found.insert(label.to_owned());
                }
            }
        }
    }
    assert_eq!(types.keys().collect::<Vec<_>>(), helps.iter().collect::<Vec<_>>());
    assert!(types.contains_key("process_resident_memory_bytes"), "{text}");
    let ours = types.iter().filter(|(name, _)| !name.starts_with("process_"));
    let lines: Vec<String> = ours
        .map(|(name, kind)| {
            let labels: Vec<&str> =
                labels.get(name).into_iter().flatten().map(String::as_str).collect();
            let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(",") };
            format!("{name} {kind} {labels}\n")
        })
        .collect();
    lines.concat()
}

/// The series of a job without their values.
fn series(text: &str, job: &str) -> BTreeSet<String> {
    let label = format!("job_name=\"{job}\"");
    let of_job = text.lines().filter(|line| line.contains(&label));
    of_job.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

#[tokio::test]
async fn every_documented_metric_exists_from_the_start_and_is_restored_after_a_restart() {
    let fake = with_lobby(3);
    let jobs = [
        sweep("lobby", 1000, "schedule = \"0 0 1 1 *\""),
        ping("idle", "schedule = \"0 0 1 1 *\""),
        ping("manual", ""),
    ];
    let program = Program::new(&fake.url(), TOKEN, &jobs.concat());
    let limited = "max_requests_per_second = 1000";
    let config = program.read("microglia.toml");
    program.write(
        "microglia.toml",
        &config.replace("max_requests_per_second = \"unlimited\"", limited),
    );
    let daemon = program.serve().await;
    until("the probe", 20, async || {
        daemon.metric("microglia_homeserver_info", &["version=\"1.163.2\""]).await.is_some()
    })
    .await;
    let (_, text) = daemon.get("/metrics").await;
    let idle = series(&text, "idle");
    // Two modes by eight outcomes, four reasons, eight last outcomes, five states of things, two of changes,
    // and one each of info, retries, running, waiting, approval, next run, success due, failures, bytes.
    assert_eq!(idle.len(), 16 + 4 + 8 + 5 + 2 + 9, "{idle:#?}");
    assert_eq!(series(&text, "manual").len(), idle.len() - 2);
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    assert_eq!(program.run(&["run", "lobby", "--dry-run"]).await.code, 0);
    let (_, text) = daemon.get("/metrics").await;
    assert_eq!(families(&text), FAMILIES);
    assert_eq!(daemon.of_job("lobby", "microglia_job_changes_total", &["done"]).await, 3.0);
    let success = "microglia_job_last_success_timestamp_seconds";
    let runs = program.runs("lobby").await;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of this century fit")]
    let of = |run: &Value| time_of(run, "finished_at").timestamp_millis() as f64 / 1000.0;
    // The dry run is the last run, and not the job's success.
    assert_eq!(daemon.of_job("lobby", success, &[]).await, of(&runs[0]));
    assert_eq!(
        daemon.of_job("lobby", "microglia_job_last_run_timestamp_seconds", &[]).await,
        of(&runs[1])
    );
    let described = |text: &str| -> Vec<String> {
        let of_last_run =
            |line: &&str| line.contains("_job_last_") || line.contains("_job_success_due_");
        text.lines().filter(of_last_run).map(str::to_owned).collect()
    };
    daemon.stop().await;
    let daemon = program.serve().await;
    let (_, after) = daemon.get("/metrics").await;
    assert_eq!(described(&after), described(&text));
    assert_eq!(daemon.of_job("lobby", "microglia_job_changes_total", &["done"]).await, 0.0);
    daemon.stop().await;
}

#[tokio::test]
async fn success_is_due_at_the_end_of_the_second_occurrence() {
    let fake = Fake::start();
    let program =
        Program::new(&fake.url(), TOKEN, &ping("a", "schedule = \"@daily\"\ntime_limit = \"2h\""));
    let daemon = program.serve().await;
    let tomorrow = now().date_naive().succ_opt().unwrap().and_hms_opt(0, 0, 0).unwrap().and_utc();
    let due = tomorrow + TimeDelta::days(1) + TimeDelta::hours(2);
    #[expect(clippy::cast_precision_loss, reason = "seconds of this century fit")]
    let due = due.timestamp() as f64;
    assert_eq!(daemon.of_job("a", "microglia_job_success_due_timestamp_seconds", &[]).await, due);
    daemon.stop().await;
}

#[tokio::test]
async fn changes_and_names_of_people_require_the_admin_token() {
    let fake = with_lobby(2);
    fake.world(|world| {
        world.room("!lobby:fake.test").banned("@user000001:fake.test", "@microglia:fake.test");
    });
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 1000, ""));
    program.write("admin-token", "secret-of-the-tests\n");
    let daemon = program.serve().await;
    let posts = [
        "/-/reload",
        "/api/v1/jobs/lobby/run",
        "/api/v1/jobs/lobby/cancel",
        "/api/v1/pause",
        "/api/v1/resume",
    ];
    for path in posts {
        assert_eq!(
            daemon.post(path, "secret-of-the-tests", "").await.0,
            403,
            "{path} without a token file"
        );
        assert_eq!(daemon.get(path).await.0, 405, "{path}");
    }
    edit(&program, "[daemon]\n", "[daemon]\nadmin_token_file = \"admin-token\"\n");
    assert_eq!(program.run(&["reload"]).await.code, 0);
    for path in posts {
        assert_eq!(daemon.post(path, "wrong", "").await.0, 401, "{path}");
        assert_eq!(daemon.http("POST", path, &[], "").await.0, 401, "{path}");
    }
    let (status, body) =
        daemon.post("/api/v1/jobs/lobby/run", "secret-of-the-tests", "{\"mode\": \"apply\"}").await;
    assert_eq!((status, body.as_str()), (202, "{\"id\":1}"));
    until("its end", 20, async || !program.ended("lobby").await.is_empty()).await;
    assert_eq!(joined(&fake), 1);
    for (body, status) in [("{\"mode\": \"wrong\"}", 400), ("{\"x\": 1}", 400), ("nonsense", 400)] {
        assert_eq!(
            daemon.post("/api/v1/jobs/lobby/run", "secret-of-the-tests", body).await.0,
            status,
            "{body}"
        );
    }
    assert_eq!(daemon.post("/api/v1/jobs/unknown/run", "secret-of-the-tests", "").await.0, 404);
    assert_eq!(daemon.post("/api/v1/jobs/lobby/cancel", "secret-of-the-tests", "").await.0, 409);
    assert_eq!(daemon.post("/api/v1/pause", "secret-of-the-tests", "").await.0, 200);
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(1.0));
    assert_eq!(daemon.post("/api/v1/resume", "secret-of-the-tests", "").await.0, 200);

    let gets = [
        "/",
        "/metrics",
        "/healthz",
        "/readyz",
        "/api/v1/jobs",
        "/api/v1/runs",
        "/api/v1/runs?job=lobby&limit=1",
        "/api/v1/runs/1",
    ];
    for path in gets {
        let (status, body) = daemon.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(!body.contains("@user") && !body.contains("@microglia"), "{path}: {body}");
        assert!(!body.contains("secret-of-the-tests") && !body.contains(TOKEN), "{path}: {body}");
    }
    let plain = daemon.get_json("/api/v1/runs/1").await;
    assert_eq!(plain.get("changes"), None);
    let admin = [("Authorization", "Bearer secret-of-the-tests")];
    let (_, body) = daemon.http("GET", "/api/v1/runs/1", &admin, "").await;
    let mut shown: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(shown["changes"][0]["target"], "@user000000:fake.test -> !lobby:fake.test");
    let recorded = program.json(&["runs", "show", "1", "--json"]).await;
    for change in shown["changes"].as_array_mut().unwrap() {
        assert_eq!(change.get("before"), None);
    }
    // Otherwise HTTP and command line say the same.
    let mut without_before = recorded.clone();
    for change in without_before["changes"].as_array_mut().unwrap() {
        change.as_object_mut().unwrap().remove("before");
    }
    assert_eq!(shown, without_before);
    assert_eq!(daemon.get_json("/api/v1/jobs").await, program.json(&["jobs", "--json"]).await);
    assert_eq!(daemon.get_json("/api/v1/runs").await, program.json(&["runs", "--json"]).await);
    let (_, page) = daemon.http("GET", "/api/v1/runs/1?offset=1&limit=5", &admin, "").await;
    let page: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["changes"], Value::Array(vec![]));
    assert_eq!(daemon.get("/api/v1/runs/99").await.0, 404);
    assert_eq!(daemon.get("/api/v1/nothing").await.0, 404);

    // A rotated token is the one that counts from the next request on.
    program.write("admin-token", "rotated\n");
    assert_eq!(daemon.post("/api/v1/resume", "secret-of-the-tests", "").await.0, 401);
    assert_eq!(daemon.post("/api/v1/resume", "rotated", "").await.0, 200);
    let log = daemon.stop().await;
    assert!(!log.contains("secret-of-the-tests") && !log.contains(TOKEN), "{log}");
}

#[tokio::test]
async fn a_request_that_is_too_large_is_rejected_and_a_slow_client_blocks_no_other() {
    let fake = Fake::start();
    let program = with_admin(&fake, &ping("a", ""));
    let daemon = program.serve().await;
    let fits = format!("{{\"mode\": \"dry-run\"{}}}", " ".repeat(60 * 1024));
    assert_eq!(daemon.post("/api/v1/jobs/a/run", "secret-of-the-tests", &fits).await.0, 202);
    let large = format!("{{\"mode\": \"dry-run\"{}}}", " ".repeat(65 * 1024));
    assert_eq!(daemon.post("/api/v1/jobs/a/run", "secret-of-the-tests", &large).await.0, 413);
    let many: Vec<String> = (0..100).map(|number| format!("X-{number}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "x")).collect();
    assert_eq!(daemon.http("GET", "/healthz", &many, "").await.0, 431);
    let long = "x".repeat(32 * 1024);
    assert_eq!(daemon.http("GET", "/healthz", &[("X-Long", &long)], "").await.0, 431);
    let mut slow = Vec::new();
    for half in [
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-",
        "POST /api/v1/jobs/a/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{",
    ] {
        for _ in 0..60 {
            let mut stream = TcpStream::connect(&daemon.address).await.unwrap();
            stream.write_all(half.as_bytes()).await.unwrap();
            slow.push(stream);
        }
    }
    let start = std::time::Instant::now();
    assert_eq!(daemon.get("/healthz").await.0, 200);
    assert!(start.elapsed().as_secs() < 3, "{:?}", start.elapsed());
    // A client that does not send its headers is disconnected.
    let mut answer = Vec::new();
    let closed = slow[0].read_to_end(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(20), closed).await.unwrap().unwrap();
    // A client without the token is rejected before its body has arrived.
    let mut answer = [0; 12];
    slow[119].read_exact(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 401");
    daemon.stop().await;
}

/// Sends a request as it is written here; the status, the header and the body of the response.
async fn raw(daemon: &Daemon, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(&daemon.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    let limit = std::time::Duration::from_secs(20);
    tokio::time::timeout(limit, read).await.expect("no end of the response").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

/// The status and body of a request with this `Host`.
async fn as_host(daemon: &Daemon, host: &str, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let (status, _, body) = raw(daemon, &request).await;
    (status, body)
}

#[tokio::test]
async fn a_host_name_that_is_not_allowed_can_only_read_metrics_and_health() {
    let program = with_admin(&Fake::start(), &ping("a", ""));
    let daemon = program.serve().await;
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(as_host(&daemon, "microglia.monitoring.svc:8749", path).await.0, 200, "{path}");
    }
    let (_, port) = daemon.address.rsplit_once(':').unwrap();
    let own = ["127.0.0.1", "127.0.0.1:8749", "localhost", "LOCALHOST:1", "[::1]:8749", "10.1.2.3"];
    for host in own.map(str::to_owned).into_iter().chain([format!("localhost:{port}")]) {
        let (status, body) = as_host(&daemon, &host, "/api/v1/jobs").await;
        assert_eq!(status, 200, "{host}: {body}");
    }
    let refusal = r#"{"error":"this daemon does not serve \"rebound.example\": use its IP address, or add the name to daemon.allowed_hosts"}"#;
    for path in ["/api/v1/jobs", "/api/v1/runs", "/api/v1/runs/1", "/", "/-/reload", "/nothing"] {
        let answer = as_host(&daemon, "rebound.example:8749", path).await;
        assert_eq!(answer, (421, refusal.to_owned()), "{path}");
    }
    for host in ["127.0.0.1.rebound.example", "localhost.rebound.example", "", "a b", "[::1", "@"] {
        assert_eq!(as_host(&daemon, host, "/api/v1/jobs").await.0, 421, "{host:?}");
    }
    // A browser names the host of an absolute URL there, too.
    assert_eq!(as_host(&daemon, "127.0.0.1", "http://rebound.example/api/v1/jobs").await.0, 421);
    edit(&program, "[daemon]\n", "[daemon]\nallowed_hosts = [\"rebound.example\"]\n");
    assert_eq!(program.run(&["reload"]).await.code, 0);
    assert_eq!(as_host(&daemon, "Rebound.Example.:8749", "/api/v1/jobs").await.0, 200);
    daemon.stop().await;
}

#[tokio::test]
async fn a_page_of_another_site_cannot_post() {
    let program = with_admin(&Fake::start(), &ping("a", ""));
    edit(&program, "[daemon]\n", "[daemon]\nallowed_hosts = [\"status.example\"]\n");
    let daemon = program.serve().await;
    let post = async |origin: &str| {
        let headers = [("Authorization", "Bearer secret-of-the-tests"), ("Origin", origin)];
        daemon.http("POST", "/api/v1/resume", &headers, "").await
    };
    for origin in ["http://evil.example", "null", "http://127.0.0.1", "http://localhost:3000"] {
        let refusal = format!(
            r#"{{"error":"pages of {origin} may not send this request: only pages of this daemon, or of a name in daemon.allowed_hosts, may"}}"#
        );
        assert_eq!(post(origin).await, (403, refusal), "{origin}");
    }
    for origin in [format!("http://{}", daemon.address), "https://status.example".to_owned()] {
        assert_eq!(post(&origin).await.0, 200, "{origin}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn every_error_of_the_api_is_a_json_object_with_an_error() {
    let program = with_admin(&Fake::start(), &ping("a", ""));
    let daemon = program.serve().await;
    let admin = "Authorization: Bearer secret-of-the-tests\r\n";
    let cases = [
        ("GET /api/v1/runs?limit=abc", "", "", 400, "`limit` and `offset` must be whole"),
        ("GET /api/v1/runs?limit=-1", "", "", 400, "limit"),
        ("GET /api/v1/runs?limit=99999999999", "", "", 400, "limit"),
        ("GET /api/v1/runs/abc", "", "", 400, "identified by its number"),
        ("GET /api/v1/runs/1?offset=x", "", "", 400, "offset"),
        ("GET /api/v1/runs/%ff", "", "", 400, "identified by its number"),
        ("GET /api/v1/runs/7", "", "", 404, "there is no run 7"),
        ("GET /api/v1/nothing", "", "", 404, "/api/v1/nothing"),
        ("DELETE /api/v1/runs", "", "", 405, "DELETE"),
        ("GET /-/reload", "", "", 405, "GET"),
        ("POST /api/v1/jobs/a/run", "", "", 401, "admin token"),
        ("POST /api/v1/jobs/a/run", admin, "{\"mode\":", 400, "EOF"),
        ("POST /api/v1/jobs/a/run", admin, "[]", 400, "invalid"),
        ("POST /api/v1/jobs/%ff/run", admin, "", 400, "UTF-8"),
        ("POST /api/v1/jobs/b/run", admin, "", 404, "b"),
    ];
    for (line, headers, body, status, words) in cases {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (found, head, text) = raw(&daemon, &request).await;
        assert_eq!(found, status, "{line}: {text}");
        assert!(head.contains("content-type: application/json"), "{line}: {head}");
        let error: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{line}: {text}"));
        let error = error["error"].as_str().unwrap_or_else(|| panic!("{line}: {text}"));
        assert!(error.contains(words), "{line}: {error}");
    }
    // A body that is shorter than announced.
    let short = format!(
        "POST /api/v1/jobs/a/run HTTP/1.1\r\nHost: 127.0.0.1\r\n{admin}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"
    );
    let (status, _, text) = raw(&daemon, &short).await;
    assert!(status == 400 && text.starts_with("{\"error\":"), "{status} {text}");
    let head = "HEAD /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    let (status, head, text) = raw(&daemon, head).await;
    assert!(status == 200 && text.is_empty() && head.contains("content-length: "), "{head}");
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_change_replaced_is_only_served_on_the_machine_itself() {
    let mut world = World::new();
    world.users(1, |_| User::default().external("saml", "s1"));
    let fake = Fake::of(world);
    let job =
        "[jobs.ids]\nkind = \"remove-external-ids\"\nproviders = [\"saml\"]\naccounts = \"all\"\n";
    let program = with_admin(&fake, job);
    let daemon = program.serve().await;
    assert_eq!(program.run(&["run", "ids", "--apply"]).await.code, 0);
    let admin = [("Authorization", "Bearer secret-of-the-tests")];
    let (_, body) = daemon.http("GET", "/api/v1/runs/1", &admin, "").await;
    let shown: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(shown["changes"][0]["before"], "only available on the machine itself", "{body}");
    let here = program.json(&["runs", "show", "1", "--json"]).await;
    assert!(here["changes"][0]["before"].to_string().contains("s1"), "{here}");
    daemon.stop().await;
}
