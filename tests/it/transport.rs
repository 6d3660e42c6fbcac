//! HTTP to a homeserver: what is sent, what is retried, and what is reported.

mod bodies;
mod headers;
mod ids;
mod mas;
mod numbers;
mod pages;
mod proxies;
mod tokens;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::fake::{Fake, Fault, Seen, TOKEN, Trouble, User};
use crate::program::{Program, figures, until};

const SWEEP: &str =
    "[jobs.sweep]\nkind = \"remove-external-ids\"\nproviders = [\"saml\"]\naccounts = \"all\"\n";
const ONCE: &str = "retries = { attempts = 1 }\n";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
/// The daemon's own account, read once in each attempt.
const OWN: &str = "/_synapse/admin/v2/users/@microglia:fake.test";

fn with_users(users: usize) -> Fake {
    let fake = Fake::start();
    fake.world(|world| world.users(users, |i| User::default().external("saml", &format!("s{i}"))));
    fake
}

/// A sweep with one change; `rest` are further keys of the job.
fn sweep(fake: &Fake, rest: &str) -> Program {
    Program::new(&fake.url(), TOKEN, &format!("{SWEEP}{rest}"))
}

/// The intervals between the requests for this path.
fn distances(fake: &Fake, path: &str) -> Vec<Duration> {
    let at: Vec<Instant> = fake
        .requests()
        .iter()
        .filter(|seen| seen.path.starts_with(path))
        .map(|seen| seen.at)
        .collect();
    at.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// A run's message where the address and the directory are names.
fn message(program: &Program, fake: &Fake, report: &Value) -> String {
    report["message"]
        .as_str()
        .unwrap()
        .replace(&fake.url(), "URL")
        .replace(&program.path("").display().to_string(), "")
}

/// The message of a run if every response to `path` is this one.
async fn message_after(path: &str, trouble: Trouble) -> (String, usize) {
    let fake = with_users(1);
    fake.fault(Fault::new("GET", path, trouble).always());
    let program = sweep(&fake, ONCE);
    let report = program.apply("sweep").await;
    let said =
        format!("{}: {}", report["outcome"].as_str().unwrap(), message(&program, &fake, &report));
    (said, fake.count("*", path))
}

#[tokio::test]
async fn system_certificates_are_only_needed_for_https() {
    let fake = with_users(1);
    let mut program = sweep(&fake, ONCE);
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        program.environment.push((name.to_owned(), "/dev/null".to_owned()));
    }
    assert_eq!(program.dry_run("sweep").await["outcome"], "succeeded");
    program.write("microglia.toml", &program.read("microglia.toml").replace("http:", "https:"));
    let said = program.run(&["run", "sweep"]).await;
    assert!(said.code == 1 && said.stderr.contains("No CA certificates"), "{said:?}");
}

#[tokio::test]
async fn each_kind_of_refusal_says_who_refused_and_what_to_do() {
    let nos = [
        (OWN, Trouble::Proxy(404)),
        (OWN, Trouble::Proxy(403)),
        (WHOAMI, Trouble::Proxy(404)),
        (OWN, Trouble::Synapse(404, "M_UNRECOGNIZED", "Unrecognized request")),
        (OWN, Trouble::Synapse(404, "M_NOT_FOUND", "User not found")),
        (OWN, Trouble::Synapse(400, "M_INVALID_PARAM", "Query parameter limit must be an integer")),
        (OWN, Trouble::Redirect("https://example.com/login".to_owned())),
        (WHOAMI, Trouble::Synapse(401, "M_UNKNOWN_TOKEN", "Invalid access token passed.")),
        (WHOAMI, Trouble::Synapse(401, "M_USER_LOCKED", "User account has been locked")),
        (WHOAMI, Trouble::Synapse(401, "M_MISSING_TOKEN", "Missing access token")),
        (
            WHOAMI,
            Trouble::Synapse(
                500,
                "M_FORBIDDEN",
                "Invalid username claim in the introspection result",
            ),
        ),
        (OWN, Trouble::Synapse(403, "M_FORBIDDEN", "You are not a server admin")),
        (OWN, Trouble::BrokenJson),
    ];
    let mut all = String::new();
    for (path, trouble) in nos {
        let (said, requests) = message_after(path, trouble).await;
        assert_eq!(requests, 1, "{said}: none of these errors is solved by an immediate retry");
        all.push_str(&said);
        all.push('\n');
    }
    insta::assert_snapshot!(all, @r#"
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 404 from a server that is not Synapse: 404 Not Found. A proxy responded, and most of them block /_synapse/admin: set `url` to Synapse's own listener, such as http://127.0.0.1:8008
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 403 from a server that is not Synapse: 403 Forbidden. A proxy responded, and most of them block /_synapse/admin: set `url` to Synapse's own listener, such as http://127.0.0.1:8008
    failed: GET /_matrix/client/v3/account/whoami: 404 from a server that is not Synapse: 404 Not Found. The server that responded is not Synapse: set `url` to Synapse's own listener, such as http://127.0.0.1:8008
    refused: GET /_synapse/admin/v2/users/@microglia:fake.test: 404 M_UNRECOGNIZED: Unrecognized request. Synapse does not know this endpoint: it is too old, it delegates to MAS, or a worker responded; `url` should be the listener of the main process
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 404 M_NOT_FOUND: User not found
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 400 M_INVALID_PARAM: Query parameter limit must be an integer
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 302 from a server that is not Synapse: 302 Found. Redirects are not followed (to https://example.com/login): set `url` to Synapse's own listener
    failed: GET /_matrix/client/v3/account/whoami: 401 M_UNKNOWN_TOKEN: Invalid access token passed. The access token is not valid: run `microglia login`, or write a valid token of a server admin to token; it is used from the next request on
    failed: GET /_matrix/client/v3/account/whoami: 401 M_USER_LOCKED: User account has been locked. The account of the token is locked: unlock it, or use the token of another server admin
    failed: GET /_matrix/client/v3/account/whoami: 401 M_MISSING_TOKEN: Missing access token. The access token is not valid: run `microglia login`, or write a valid token of a server admin to token; it is used from the next request on
    failed: GET /_matrix/client/v3/account/whoami: 500 M_FORBIDDEN: Invalid username claim in the introspection result. Synapse does not accept MAS client-credentials tokens such as this one: use a personal or compatibility token
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 403 M_FORBIDDEN: You are not a server admin. The account of the token is not a server admin: make it one (under MAS the token needs the scope urn:synapse:admin:*), or use the token of a server admin
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: cannot decode the response (EOF while parsing a string at line 1 column 193): {"name":"@microglia:fake.test","admin":true,"deactivated":false,"locked":false,"shadow_banned":false,"creation_ts":1700000000,"appservice_id":null,"consent_serv…
    "#);
}

#[tokio::test]
async fn an_invalid_locked_or_non_admin_token_stops_the_run_at_once() {
    let fake = with_users(1);
    let program = sweep(&fake, "");
    let mut said = Vec::new();
    let mut apply = async |fake: &Fake| {
        fake.forget();
        let report = program.apply("sweep").await;
        assert_eq!(report["attempts"], 1, "a retry does not help: {report}");
        said.push(format!(
            "{}, {} requests: {}",
            report["outcome"].as_str().unwrap(),
            fake.requests().len(),
            message(&program, fake, &report)
        ));
    };
    let admin = fake.world(|world| world.admin());
    fake.world(|world| world.user(&admin).locked = true);
    apply(&fake).await;
    fake.world(|world| {
        world.user(&admin).locked = false;
        world.user(&admin).admin = false;
    });
    apply(&fake).await;
    fake.world(|world| world.tokens.clear());
    apply(&fake).await;
    insta::assert_snapshot!(said.join("\n"), @r#"
    failed, 1 requests: GET /_matrix/client/v3/account/whoami: 401 M_USER_LOCKED: User account has been locked. The account of the token is locked: unlock it, or use the token of another server admin
    failed, 4 requests: GET /_synapse/admin/v2/users/@microglia:fake.test: 403 M_FORBIDDEN: You are not a server admin. The account of the token is not a server admin: make it one (under MAS the token needs the scope urn:synapse:admin:*), or use the token of a server admin
    failed, 1 requests: GET /_matrix/client/v3/account/whoami: 401 M_UNKNOWN_TOKEN: Invalid access token passed. The access token is not valid: run `microglia login`, or write a valid token of a server admin to token; it is used from the next request on
    "#);
}

#[tokio::test]
async fn a_token_that_is_rotated_during_a_run_is_used_from_the_next_request_on() {
    let fake = with_users(60);
    fake.world(|world| world.latency = Duration::from_millis(20));
    let program = sweep(&fake, "");
    let child = program.command(&["run", "sweep", "--apply", "--json"]).spawn().unwrap();
    until("the run", 20, async || fake.count("PUT", "/") > 5).await;
    let admin = fake.world(|world| world.admin());
    fake.world(|world| world.token("rotated", &admin).admin_scope = true);
    program.write("token", "rotated\n");
    fake.world(|world| world.tokens.remove(TOKEN));
    let output = child.wait_with_output().await.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures(&report), "succeeded: 60/60/0/0/0", "{report}");
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let fake = with_users(1);
    let limited = |retry_after_ms, retry_after_header| {
        Fault::new("GET", WHOAMI, Trouble::Limited { retry_after_ms, retry_after_header })
    };
    // Body and header, header only, neither.
    fake.fault(limited(Some(300), Some(9)));
    fake.fault(limited(None, Some(1)));
    fake.fault(limited(None, None));
    let report = sweep(&fake, "").apply("sweep").await;
    assert_eq!(
        (figures(&report), report["attempts"].as_i64()),
        ("succeeded: 1/1/0/0/0".to_owned(), Some(1))
    );
    let waited = distances(&fake, WHOAMI);
    let bounds = [(300, 2000), (1000, 4000), (4000, 8000)];
    assert_eq!(waited.len(), 3);
    for (waited, (least, most)) in waited.iter().zip(bounds) {
        assert!((least..most).contains(&waited.as_millis()), "{waited:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_rate_limited_too_often_or_too_long_is_left_to_the_next_attempt() {
    let fake = with_users(1);
    fake.fault(
        Fault::new(
            "GET",
            WHOAMI,
            Trouble::Limited { retry_after_ms: Some(5), retry_after_header: None },
        )
        .times(10),
    );
    let program = sweep(&fake, "retries = { first_delay = \"0s\" }\ntime_limit = \"50s\"\n");
    let report = program.apply("sweep").await;
    assert_eq!(
        (figures(&report), report["attempts"].as_i64()),
        ("succeeded: 1/1/0/0/0".to_owned(), Some(2)),
        "{report}"
    );
    assert_eq!(fake.count("GET", WHOAMI), 11);

    // Longer than a request waits: the next attempt would have to wait that long, and there is no time for that.
    for trouble in [
        Trouble::Limited { retry_after_ms: Some(600_000), retry_after_header: None },
        Trouble::Limited { retry_after_ms: None, retry_after_header: Some(600) },
    ] {
        fake.fault(Fault::new("GET", WHOAMI, trouble));
        let start = Instant::now();
        let report = program.apply("sweep").await;
        assert!(start.elapsed() < Duration::from_secs(20));
        assert_eq!(
            message(&program, &fake, &report),
            "GET /_matrix/client/v3/account/whoami: 429 M_LIMIT_EXCEEDED: Too Many Requests (no time is left for another attempt)"
        );
        assert_eq!(report["attempts"], 1);
    }
}

#[tokio::test]
async fn transient_errors_are_retried_within_the_run_and_permanent_ones_fail_clearly() {
    let passing = [
        Trouble::Proxy(502),
        Trouble::Proxy(504),
        Trouble::CutBefore,
        Trouble::CutAfter,
        Trouble::CutBody,
        Trouble::Synapse(503, "M_UNKNOWN", "Unable to introspect the access token"),
        Trouble::Synapse(500, "M_UNKNOWN", "Internal server error"),
    ];
    let runs = passing.into_iter().map(|trouble| async move {
        let fake = with_users(1);
        fake.fault(Fault::new("GET", OWN, trouble.clone()));
        let report = sweep(&fake, ONCE).apply("sweep").await;
        assert_eq!(figures(&report), "succeeded: 1/1/0/0/0", "{trouble:?}: {report}");
        assert_eq!(fake.count("GET", OWN), 2, "{trouble:?}");
    });
    futures_util::future::join_all(runs).await;

    let lasting = [Trouble::Proxy(502), Trouble::CutBody].map(|trouble| async {
        let (said, requests) = message_after(OWN, trouble).await;
        format!("{requests} requests, {said}")
    });
    insta::assert_snapshot!(futures_util::future::join_all(lasting).await.join("\n"), @r#"
    4 requests, failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 502 from a server that is not Synapse: 502 Bad Gateway. The proxy cannot reach Synapse: check that Synapse is running and that the upstream address of the proxy is correct, or set `url` to Synapse's own listener
    4 requests, failed: GET /_synapse/admin/v2/users/@microglia:fake.test: the response was lost: unexpected EOF during chunk size line
    "#);
}

#[tokio::test]
async fn a_homeserver_that_is_down_fails_the_run_after_its_retries() {
    let fake = with_users(1);
    fake.go_down();
    let program = sweep(&fake, "retries = { attempts = 2, first_delay = \"0s\" }\n");
    let output = program.run(&["run", "sweep", "--apply", "--json"]).await;
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((output.code, report["attempts"].as_i64()), (1, Some(2)), "{report}");
    insta::assert_snapshot!(message(&program, &fake, &report), @r#"GET /_matrix/client/v3/account/whoami: not reachable: Connection refused (os error 111). Nothing is listening at URL: check that Synapse is running and that the URL of the homeserver is correct"#);
    assert!(output.stderr.contains("retrying in 0 s (attempt 2 of 2)"), "{}", output.stderr);
    fake.come_up();
    assert_eq!(figures(&program.apply("sweep").await), "succeeded: 1/1/0/0/0");
}

#[tokio::test]
async fn an_attempt_that_fails_for_a_transient_reason_is_followed_by_another() {
    let fake = with_users(2);
    fake.fault(Fault::new("GET", OWN, Trouble::BrokenJson).times(2));
    let program = sweep(&fake, "retries = { first_delay = \"1s\" }\n");
    let report = program.apply("sweep").await;
    assert_eq!(
        (figures(&report), report["attempts"].as_i64()),
        ("succeeded: 2/2/0/0/0".to_owned(), Some(3))
    );
    let id = report["id"].to_string();
    let shown = program.run(&["runs", "show", &id]).await.stdout;
    assert!(shown.lines().next().unwrap().ends_with(", 3 attempts"), "{shown}");

    fake.fault(Fault::new("GET", OWN, Trouble::BrokenJson).always());
    let report = program.apply("sweep").await;
    assert_eq!(
        (report["outcome"].as_str(), report["attempts"].as_i64()),
        (Some("failed"), Some(3)),
        "{report}"
    );
}

#[tokio::test]
async fn a_missing_response_ends_with_the_request_timeout_or_the_time_limit() {
    let limits = |request_timeout: &str, time_limit: &str| {
        let fake = with_users(1);
        fake.fault(Fault::new("GET", OWN, Trouble::Hang).always());
        let program = sweep(&fake, &format!("{ONCE}time_limit = \"{time_limit}\"\n"));
        let config = program.read("microglia.toml");
        program.write(
            "microglia.toml",
            &config.replace("[jobs", &format!("request_timeout = \"{request_timeout}\"\n[jobs")),
        );
        async move {
            let start = Instant::now();
            let report = program.apply("sweep").await;
            let said = format!(
                "{}: {}",
                report["outcome"].as_str().unwrap(),
                message(&program, &fake, &report)
            );
            (said, fake.count("GET", OWN), start.elapsed())
        }
    };
    let ((timeout, requests, _), (limit, asked, took)) =
        futures_util::future::join(limits("1s", "1m"), limits("1m", "2s")).await;
    insta::assert_snapshot!(timeout, @r#"failed: GET /_synapse/admin/v2/users/@microglia:fake.test: the response was lost: no response within the timeout"#);
    assert_eq!(requests, 4, "a GET is retried");
    insta::assert_snapshot!(limit, @r#"timed-out: the time limit of 2s was reached"#);
    assert_eq!(asked, 1);
    assert!((2.0..10.0).contains(&took.as_secs_f64()), "{took:?}");
}

#[tokio::test]
async fn the_rate_is_halved_while_responses_take_three_times_as_long() {
    let fake = with_users(220);
    fake.world(|world| world.latency = Duration::from_millis(30));
    let program = sweep(&fake, "");
    let config = program.read("microglia.toml").replace(
        "max_requests_per_second = \"unlimited\"",
        "max_requests_per_second = 50\nmax_concurrent_requests = 30",
    );
    program.write("microglia.toml", &config);
    let child = program.command(&["run", "sweep"]).spawn().unwrap();
    let account = "/_synapse/admin/v2/users/";
    until("a third is read", 30, async || fake.count("GET", account) >= 80).await;
    fake.world(|world| world.latency = Duration::from_millis(200));
    let slowed = Instant::now();
    let output = child.wait_with_output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("main takes three times as long to respond as at the start of the run: sending requests at half the rate"), "{stderr}");
    let at: Vec<Instant> = fake
        .requests()
        .iter()
        .filter(|seen| seen.path.starts_with(account))
        .map(|seen| seen.at)
        .collect();
    let rate = |times: &[Instant]| {
        let took = times[times.len() - 1] - times[0];
        f64::from(u32::try_from(times.len() - 1).unwrap()) / took.as_secs_f64()
    };
    // Twenty slow responses are enough to detect it; those in progress have ended after a second.
    let before: Vec<Instant> = at.iter().copied().filter(|at| *at < slowed).collect();
    let after: Vec<Instant> =
        at.iter().copied().filter(|at| *at > slowed + Duration::from_millis(1500)).collect();
    assert!(after.len() >= 20, "{} are too few to determine a rate", after.len());
    let ratio = rate(&after) / rate(&before);
    assert!(
        (0.35..0.7).contains(&ratio),
        "from {:.1} to {:.1} a second",
        rate(&before),
        rate(&after)
    );
}

#[tokio::test]
async fn requests_carry_the_token_in_the_header_reuse_connections_and_name_the_program() {
    let fake = with_users(250);
    let program = sweep(&fake, "");
    assert_eq!(
        figures(&program.apply("sweep").await),
        "succeeded: 250/250/0/0/0",
        "three pages with string tokens"
    );
    let requests = fake.requests();
    assert!(requests.len() > 500);
    let odd = |odd: &dyn Fn(&Seen) -> bool| {
        requests.iter().filter(|seen| odd(seen)).map(|seen| format!("{seen:?}")).collect::<Vec<_>>()
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(
        odd(&|seen| seen.user_agent != concat!("microglia/", env!("CARGO_PKG_VERSION"))),
        none
    );
    assert_eq!(odd(&|seen| !seen.authorization_present), none);
    assert_eq!(
        odd(&|seen| [&seen.path, &seen.query, &seen.body].iter().any(|text| text.contains(TOKEN))),
        none
    );
    let connections: std::collections::BTreeSet<u64> =
        requests.iter().map(|seen| seen.connection).collect();
    assert!(connections.len() <= 6, "{} connections for 4 requests at a time", connections.len());
    assert!(fake.max_concurrent() <= 4, "{} at a time", fake.max_concurrent());
}

#[tokio::test]
async fn unusual_ids_are_sent_as_one_segment_under_any_base() {
    let fake = Fake::start();
    let odd = [
        "@a/b:fake.test",
        "@a?b=c&d:fake.test",
        "@a#b:fake.test",
        "@50%:fake.test",
        "@ü ñ:fake.test",
        "@..:fake.test",
        "@a+b:fake.test",
        "@a\\b:fake.test",
    ];
    fake.world(|world| {
        for id in odd {
            *world.user(id) = User::default().external("saml", id);
        }
    });
    let program = Program::new(&format!("{}/", fake.url()), TOKEN, SWEEP);
    assert_eq!(figures(&program.apply("sweep").await), "succeeded: 8/8/0/0/0");
    fake.world(|world| {
        for id in odd {
            assert_eq!(world.user(id).external_ids, [], "{id}");
        }
    });
    assert_eq!(fake.complaints(), [""; 0]);
}

#[tokio::test]
async fn lists_with_numeric_page_tokens_are_read_to_their_end() {
    let fake = Fake::start();
    fake.world(|world| {
        for i in 0..130 {
            let owner = format!("@owner{i:03}:fake.test");
            world.user(&owner);
            for file in 0..if i == 0 { 230 } else { 1 } {
                world.media(&owner, &format!("file{i}n{file}"), 10, 1_500_000_000_000, None);
            }
        }
    });
    let program = Program::new(
        &fake.url(),
        TOKEN,
        "[jobs.media]\nkind = \"purge-local-media\"\nolder_than = \"180d\"\n",
    );
    let report = program.dry_run("media").await;
    assert_eq!(
        (figures(&report), report["bytes_planned"].as_i64()),
        ("succeeded: 359/0/0/0/0".to_owned(), Some(3590))
    );
}

#[tokio::test]
async fn a_private_ca_is_trusted_if_configured() {
    let fake = with_users(1);
    let front = tls_in_front_of(&fake).await;
    let program = Program::new(&front, TOKEN, &format!("{SWEEP}{ONCE}"));
    let report = program.apply("sweep").await;
    assert_eq!(report["outcome"], "failed");
    insta::assert_snapshot!(message(&program, &fake, &report), @r#"GET /_matrix/client/v3/account/whoami: not reachable: invalid peer certificate: UnknownIssuer. The certificate of the homeserver is not trusted: set `ca_file` to the certificate of the CA that signed it, and `url` to a host name in it"#);
    let online = program.run(&["check", "--online"]).await;
    assert_eq!(online.code, 1);
    assert!(
        online.stdout.contains("main: reachable: NO: ") && online.stdout.contains("ca_file"),
        "{}",
        online.stdout
    );

    let config = program.read("microglia.toml").replace("[jobs", "ca_file = \"ca.pem\"\n[jobs");
    program.write("microglia.toml", &config);
    program.write("ca.pem", &tls("ca.pem"));
    assert_eq!(figures(&program.apply("sweep").await), "succeeded: 1/1/0/0/0");
}

/// Ends TLS with the certificate of `tests/it/tls` in front of the fake; returns its address.
pub async fn tls_in_front_of(fake: &Fake) -> String {
    let certificate = CertificateDer::from_pem_slice(tls("server.pem").as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(tls("server-key.pem").as_bytes()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let behind = fake.url().trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                // A client that does not trust the certificate disconnects here.
                let Ok(mut client) = acceptor.accept(stream).await else { return };
                let mut server = TcpStream::connect(behind).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    format!("https://{address}")
}

pub fn tls(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/it/tls", name].iter().collect();
    std::fs::read_to_string(path).unwrap()
}
