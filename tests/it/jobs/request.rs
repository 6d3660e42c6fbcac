//! `request`.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fake::{Fake, Fault, Process, Seen, TOKEN, Trouble};
use crate::homeserver::{Synapse, encoded};
use crate::program::{Program, changes, figures, until};

fn job(name: &str, keys: &str) -> String {
    format!(
        "[jobs.{name}]\nkind = \"request\"\nretries = {{ attempts = 3, first_delay = \"0s\" }}\n{keys}\n\n"
    )
}

fn program(fake: &Fake, keys: &str) -> Program {
    Program::new(&fake.url(), TOKEN, &job("ask", keys))
}

fn message(report: &Value) -> &str {
    report["message"].as_str().unwrap_or("none")
}

/// What arrived under a path that only the job asks for.
fn sent_to(fake: &Fake) -> Vec<Seen> {
    fake.requests().into_iter().filter(|seen| seen.path.starts_with("/ask")).collect()
}

fn ago(report: &Value, ago: TimeDelta) -> DateTime<Utc> {
    report["started_at"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap() - ago
}

/// `MS` for timestamps in milliseconds, `S` for those in seconds.
fn without_moments(text: &str) -> String {
    let mut shown = String::new();
    for part in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
        match digits.len() {
            13 => shown.push_str(&part.replacen(digits, "MS", 1)),
            10 => shown.push_str(&part.replacen(digits, "S", 1)),
            _ => shown.push_str(part),
        }
    }
    shown
}

#[tokio::test]
async fn each_request_is_sent_exactly_as_written() {
    let fake = Fake::start();
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
        fake.forget();
        let body = if method == "GET" {
            ""
        } else {
            "body = { reason = \"ü\", n = 5, list = [true, 1.5, { a = [] }] }"
        };
        let keys = format!(
            "method = \"{method}\"\npath = \"/ask/%2Fa%20b/!r:hs//@u:hs?x=%26+1\"\nquery = {{ b = true, a = 5, c = \"ü &/\" }}\nexpect = [200, 404]\n{body}"
        );
        let report = program(&fake, &keys).apply("ask").await;
        assert_eq!(figures(&report), "succeeded: 1/1/0/0/0", "{report}");
        let [seen] = &sent_to(&fake)[..] else { panic!("{:?}", sent_to(&fake)) };
        assert_eq!(
            (seen.method.as_str(), seen.path.as_str()),
            (method, "/ask/%2Fa%20b/!r:hs//@u:hs")
        );
        assert_eq!(seen.query, "x=%26+1&a=5&b=true&c=%C3%BC+%26%2F");
        assert!(seen.authorization_present);
        if method == "GET" {
            assert_eq!(seen.body, "");
        } else {
            let body: Value = serde_json::from_str(&seen.body).unwrap();
            assert_eq!(body, json!({ "reason": "ü", "n": 5, "list": [true, 1.5, { "a": [] }] }));
        }
    }
}

const TEMPLATES: &str = r#"
method = "POST"
path = "/ask/{{ '#a/b c:ü%' | urlencode }}/{{ ago_ms('30d') }}"
query = { before = "{{ ago_seconds('12h') }}", 'plain' = "{ago_ms}" }
body = { since = "{{ now_ms() }}", nested = [{ text = "up to {{ ago_ms(\"90d\") }}" }], number = 1 }
expect = [404]
"#;

#[tokio::test]
async fn templates_use_the_start_time_of_the_run() {
    let fake = Fake::start();
    let report = program(&fake, TEMPLATES).apply("ask").await;
    assert_eq!(figures(&report), "succeeded: 1/1/0/0/0", "{report}");
    let [seen] = &sent_to(&fake)[..] else { panic!("{:?}", sent_to(&fake)) };
    let ms = |days| ago(&report, TimeDelta::days(days)).timestamp_millis();
    assert_eq!(seen.path, format!("/ask/%23a%2Fb%20c%3A%C3%BC%25/{}", ms(30)));
    let before = ago(&report, TimeDelta::hours(12)).timestamp();
    assert_eq!(seen.query, format!("before={before}&plain=%7Bago_ms%7D"));
    let body: Value = serde_json::from_str(&seen.body).unwrap();
    let wanted =
        json!({ "since": ms(0), "nested": [{ "text": format!("up to {}", ms(90)) }], "number": 1 });
    assert_eq!(body, wanted);
}

#[tokio::test]
async fn a_string_that_is_one_expression_is_sent_with_the_type_of_its_value() {
    let fake = Fake::start();
    let body = r#"
method = "POST"
path = "/ask/{{ ago_seconds('1h') }}"
query = { before_ts = "{{ ago_ms('30d') }}", flag = "{{ 1 == 1 }}" }
expect = [404]

[jobs.ask.body]
number = "{{ ago_ms('90d') }}"
trimmed = "{{- ago_seconds('90d') -}}"
string = "{{ ago_ms('90d') | string }}"
sum = "{{ 1 + 1 }}"
half = "{{ 1 / 2 }}"
boolean = "{{ 1 == 1 }}"
list = "{{ [1, 'a', true] }}"
map = "{{ {'a': {'b': 1}} }}"
null = "{{ none }}"
braces = "{{ '}} {{' }}"
two = "{{ 1 }}{{ 2 }}"
space = " {{ 1 }}"
statement = "{% if true %}1{% endif %}"
plain = "1"
nested = [["{{ 1 }}"]]
"#;
    let report = program(&fake, body).apply("ask").await;
    assert_eq!(figures(&report), "succeeded: 1/1/0/0/0", "{report}");
    let [seen] = &sent_to(&fake)[..] else { panic!("{:?}", sent_to(&fake)) };
    let at = |days| ago(&report, TimeDelta::days(days));
    let sent: Value = serde_json::from_str(&seen.body).unwrap();
    let expected = json!({
        "number": at(90).timestamp_millis(),
        "trimmed": at(90).timestamp(),
        "string": at(90).timestamp_millis().to_string(),
        "sum": 2,
        "half": 0.5,
        "boolean": true,
        "list": [1, "a", true],
        "map": { "a": { "b": 1 } },
        "null": null,
        "braces": "}} {{",
        "two": "12",
        "space": " 1",
        "statement": "1",
        "plain": "1",
        "nested": [[1]],
    });
    assert_eq!(sent, expected);
    // A URL contains text only.
    let hour = ago(&report, TimeDelta::hours(1)).timestamp();
    assert_eq!(seen.path, format!("/ask/{hour}"));
    assert_eq!(seen.query, format!("before_ts={}&flag=true", at(30).timestamp_millis()));
}

#[tokio::test]
async fn a_real_synapse_takes_a_computed_timestamp_in_a_body() {
    let synapse = Synapse::start().await;
    let room = synapse.create_room(&synapse.admin, json!({})).await;
    let path = format!("/_synapse/admin/v1/purge_history/{}", encoded(&room));
    let purge = |name: &str, timestamp: &str| {
        job(
            name,
            &format!(
                "method = \"POST\"\npath = \"{path}\"\nbody = {{ purge_up_to_ts = \"{{{{ {timestamp} }}}}\" }}"
            ),
        )
    };
    let jobs = purge("purge", "ago_ms('0s')") + &purge("text", "ago_ms('0s') | string");
    let program = Program::new(&synapse.url, &synapse.admin.token, &jobs);
    assert_eq!(figures(&program.apply("purge").await), "succeeded: 1/1/0/0/0");
    let refused = program.apply("text").await;
    let change = &changes(&refused)[0];
    assert!(change.contains("400 M_BAD_JSON: purge_up_to_ts must be an int"), "{change}");
}

#[tokio::test]
async fn a_dry_run_shows_the_rendered_request_and_sends_nothing() {
    let fake = Fake::start();
    // Not even the homeserver's clock is looked at.
    fake.world(|world| world.clock_offset_seconds = 7200);
    let program = program(&fake, TEMPLATES);
    let output = program.run(&["run", "ask"]).await;
    assert_eq!(output.code, 0, "{output:?}");
    let text: Vec<&str> = output.stdout.lines().skip(2).collect();
    insta::assert_snapshot!(without_moments(&text.join("\n")), @r#"
      planned  request POST /ask/%23a%2Fb%20c%3A%C3%BC%25/MS?before=…&plain=… {"nested": [{"text": <string>}], "number": <number>, "since": <number>}
    Nothing was changed. To make these changes now: microglia run ask --apply; on schedule: set mode = "apply" in the job
    "#);
    let report = program.dry_run("ask").await;
    assert_eq!(figures(&report), "succeeded: 1/0/0/0/0");
    assert!(
        changes(&report)[0]
            .contains(&ago(&report, TimeDelta::days(30)).timestamp_millis().to_string())
    );
    assert_eq!(fake.requests().len(), 0);
}

#[tokio::test]
async fn values_of_query_and_body_are_shown_only_with_log_body() {
    let fake = Fake::start();
    let keys = r#"
method = "POST"
path = "/ask/{{ 'id' }}?key=s3cret&flag"
query = { access_token = "s3cret" }
body = { new_password = "s3cret", devices = ["s3cret", 1, true], nothing = "{{ none }}" }
expect = [404]
"#;
    let program = program(&fake, keys);
    let mut said = String::new();
    for command in [&["run", "ask"][..], &["run", "ask", "--apply"], &["runs", "show", "2"]] {
        let output = program.run(command).await;
        assert_eq!(output.code, 0, "{output:?}");
        said.push_str(&format!("{output:?}"));
    }
    let history = std::fs::read(program.path("state/history.db")).unwrap();
    said.push_str(&String::from_utf8_lossy(&history));
    assert!(!said.contains("s3cret"), "{said}");
    insta::assert_snapshot!(changes(&program.dry_run("ask").await)[0], @r#"planned POST /ask/id?key=…&flag&access_token=… {"devices": [<string>, <number>, <boolean>], "new_password": <string>, "nothing": <null>} (1)"#);
    assert!(sent_to(&fake)[0].body.contains(r#""new_password":"s3cret""#), "{:?}", sent_to(&fake));
    program.write("microglia.toml", &(program.read("microglia.toml") + "log_body = true\n"));
    insta::assert_snapshot!(changes(&program.dry_run("ask").await)[0], @r#"planned POST /ask/id?key=s3cret&flag&access_token=s3cret {"devices":["s3cret",1,true],"new_password":"s3cret","nothing":null} (1)"#);
}

#[tokio::test]
async fn an_endless_template_is_an_error_and_blocks_neither_check_nor_the_daemon() {
    let endless = "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}{% endfor %}";
    let bomb = "{% for a in range(1000) %}{{ 'x' * 5000 }}{% endfor %}";
    let fake = Fake::start();
    let program = program(&fake, "method = \"GET\"\npath = \"/ask\"");
    let good = program.read("microglia.toml");
    let daemon = program.serve().await;
    for (key, template, problem) in [
        (
            "path = \"/{}\"",
            endless,
            "14:8: the template in `path` cannot be rendered: it needs more than 100,000 steps: shorten its loops",
        ),
        (
            "body = [\"{}\"]",
            endless,
            "15:8: the template in `body[0]` cannot be rendered: it needs more than 100,000 steps: shorten its loops",
        ),
        (
            "query = { a = \"{}\" }",
            bomb,
            "15:9: the template in `query.a` cannot be rendered: it produces more than 1.0 MiB of text",
        ),
        (
            "body = \"{{ 'xxxxxxxx' * 200000 }}{}\"",
            "",
            "15:8: the template in `body` cannot be rendered: ",
        ),
    ] {
        let line = key.replace("{}", template);
        let config = match key.starts_with("path") {
            true => good.replace("path = \"/ask\"", &line),
            false => good.replace("path = \"/ask\"", &format!("path = \"/ask\"\n{line}")),
        };
        program.write("microglia.toml", &config);
        let limit = std::time::Duration::from_secs(20);
        let output = tokio::time::timeout(limit, program.run(&["check"])).await.unwrap();
        assert_eq!(output.code, 2, "{key}: {output:?}");
        assert!(output.stderr.contains(problem), "{key}: {output:?}");
        daemon.signal("HUP");
        until("the failed reload", 20, async || daemon.log().contains(problem)).await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn an_unexpected_status_fails_with_the_text_of_the_response() {
    let fake = Fake::start();
    let users = "/_synapse/admin/v2/users/@nobody:fake.test";
    let mut text = String::new();
    for keys in [
        format!("method = \"GET\"\npath = \"{users}\""),
        format!("method = \"GET\"\npath = \"{users}\"\nexpect = [200, 404]"),
        "method = \"GET\"\npath = \"/health\"\nexpect = [204, 404]".to_owned(),
        "method = \"GET\"\npath = \"/ask\"".to_owned(),
        "method = \"POST\"\npath = \"/_synapse/admin/v1/purge_media_cache\"\nquery = { before_ts = 5 }".to_owned(),
    ] {
        let report = program(&fake, &keys).apply("ask").await;
        text.push_str(&format!("{}\n  {}\n  {}\n", figures(&report), changes(&report)[0], message(&report)));
        assert_eq!(report["attempts"], 1);
    }
    insta::assert_snapshot!(text, @"
    failed: 1/0/1/0/0
      failed GET /_synapse/admin/v2/users/@nobody:fake.test (1): 404 M_NOT_FOUND: User not found
      1 target failed: see the changes for the reasons
    succeeded: 1/1/0/0/0
      done GET /_synapse/admin/v2/users/@nobody:fake.test (1)
      none
    failed: 1/0/1/0/0
      failed GET /health (1): unexpected status 200: OK
      GET /health: unexpected status 200: OK
    refused: 1/0/1/0/0
      failed GET /ask (1): 404 M_UNRECOGNIZED: Unrecognized request
      GET /ask: 404 M_UNRECOGNIZED: Unrecognized request. Synapse does not know this endpoint: it is too old, it delegates to MAS, or a worker responded; `url` should be the listener of the main process
    failed: 1/0/1/0/0
      failed POST /_synapse/admin/v1/purge_media_cache?before_ts=… (1): 400 M_INVALID_PARAM: Query parameter before_ts you provided is from the year 1970. Double check that you are providing a timestamp in milliseconds.
      1 target failed: see the changes for the reasons
    ");
}

#[tokio::test]
async fn only_repeatable_requests_are_sent_again() {
    let keys = |repeatable| {
        format!("method = \"POST\"\npath = \"/ask\"\nexpect = [404]\nrepeatable = {repeatable}")
    };
    let mut text = String::new();
    for trouble in [
        Trouble::CutBefore,
        Trouble::CutAfter,
        Trouble::CutBody,
        Trouble::Proxy(502),
        Trouble::ProxyAfter(504),
        Trouble::Hang,
        // Refused by Synapse itself and so not done: this may always be sent again.
        Trouble::Limited { retry_after_ms: Some(10), retry_after_header: None },
    ] {
        let name = format!("{trouble:?}");
        for repeatable in [false, true] {
            let fake = Fake::start();
            fake.fault(Fault::new("POST", "/ask", trouble.clone()));
            let program = Program::new(
                &fake.url(),
                TOKEN,
                &format!("request_timeout = \"1s\"\n\n{}", job("ask", &keys(repeatable))),
            );
            let report = program.apply("ask").await;
            let sent = sent_to(&fake).len();
            text.push_str(&format!(
                "{name}, repeatable = {repeatable}: sent {sent} times, {} attempts, {}\n",
                report["attempts"],
                figures(&report)
            ));
            if !repeatable && sent == 1 {
                text.push_str(&format!("  {}\n", changes(&report)[0]));
            }
        }
    }
    insta::assert_snapshot!(text, @"
    CutBefore, repeatable = false: sent 1 times, 1 attempts, failed: 1/0/1/0/0
      failed POST /ask (1): the response was lost: connection closed before message completed; it is unknown whether Synapse processed the request, and it is not sent again because `repeatable` is false
    CutBefore, repeatable = true: sent 2 times, 1 attempts, succeeded: 1/1/0/0/0
    CutAfter, repeatable = false: sent 1 times, 1 attempts, failed: 1/0/1/0/0
      failed POST /ask (1): the response was lost: connection closed before message completed; it is unknown whether Synapse processed the request, and it is not sent again because `repeatable` is false
    CutAfter, repeatable = true: sent 2 times, 1 attempts, succeeded: 1/1/0/0/0
    CutBody, repeatable = false: sent 1 times, 1 attempts, failed: 1/0/1/0/0
      failed POST /ask (1): the response was lost: unexpected EOF during chunk size line; it is unknown whether Synapse processed the request, and it is not sent again because `repeatable` is false
    CutBody, repeatable = true: sent 2 times, 1 attempts, succeeded: 1/1/0/0/0
    Proxy(502), repeatable = false: sent 1 times, 1 attempts, failed: 1/0/1/0/0
      failed POST /ask (1): 502 from a server that is not Synapse: 502 Bad Gateway; it is unknown whether Synapse processed the request, and it is not sent again because `repeatable` is false
    Proxy(502), repeatable = true: sent 2 times, 1 attempts, succeeded: 1/1/0/0/0
    ProxyAfter(504), repeatable = false: sent 1 times, 1 attempts, failed: 1/0/1/0/0
      failed POST /ask (1): 504 from a server that is not Synapse: 504 Gateway Timeout; it is unknown whether Synapse processed the request, and it is not sent again because `repeatable` is false
    ProxyAfter(504), repeatable = true: sent 2 times, 1 attempts, succeeded: 1/1/0/0/0
    Hang, repeatable = false: sent 1 times, 1 attempts, failed: 1/0/1/0/0
      failed POST /ask (1): the response was lost: no response within the timeout; it is unknown whether Synapse processed the request, and it is not sent again because `repeatable` is false
    Hang, repeatable = true: sent 2 times, 1 attempts, succeeded: 1/1/0/0/0
    Limited { retry_after_ms: Some(10), retry_after_header: None }, repeatable = false: sent 2 times, 1 attempts, succeeded: 1/1/0/0/0
    Limited { retry_after_ms: Some(10), retry_after_header: None }, repeatable = true: sent 2 times, 1 attempts, succeeded: 1/1/0/0/0
    ");
}

#[tokio::test]
async fn a_request_that_may_have_been_carried_out_is_not_recorded_as_planned() {
    let keys = "method = \"POST\"\npath = \"/ask\"\nexpect = [404]\nrepeatable = true\nretries = { attempts = 1 }";
    let program_at = |fake: &Fake| {
        Program::new(&fake.url(), TOKEN, &format!("[jobs.ask]\nkind = \"request\"\n{keys}\n"))
    };
    let expected = "failed POST /ask (1): no response arrived before the run ended: the change may have been made";

    let down = Fake::start();
    down.fault(Fault::new("POST", "/ask", Trouble::CutAfter));
    let program = program_at(&down);
    let run = program.command(&["run", "ask", "--apply", "--json"]).spawn().unwrap();
    until("the first request", 20, async || sent_to(&down).len() == 1).await;
    down.go_down();
    let report: Value =
        serde_json::from_slice(&run.wait_with_output().await.unwrap().stdout).unwrap();
    assert_eq!(
        (figures(&report).as_str(), changes(&report)[0].as_str()),
        ("failed: 1/0/1/0/0", expected)
    );
    assert_eq!(sent_to(&down).len(), 1);

    let limited = Fake::start();
    limited.fault(Fault::new("POST", "/ask", Trouble::CutAfter));
    let wait = Trouble::Limited { retry_after_ms: Some(100_000), retry_after_header: None };
    limited.fault(Fault::new("POST", "/ask", wait));
    let report = program_at(&limited).apply("ask").await;
    assert_eq!(
        (figures(&report).as_str(), changes(&report)[0].as_str()),
        ("failed: 1/0/1/0/0", expected)
    );
    assert_eq!(sent_to(&limited).len(), 2);
}

#[tokio::test]
async fn the_base_selects_the_process_that_receives_the_request() {
    let fake = Fake::start();
    let worker = fake.media_worker();
    let purge = "method = \"POST\"\npath = \"/_synapse/admin/v1/purge_media_cache?before_ts={{ ago_ms('30d') }}\"";
    let jobs = [job("media", &format!("{purge}\nbase = \"media\"")), job("main", purge)].concat();
    let program =
        Program::new(&fake.url(), TOKEN, &format!("media_url = \"{}/\"\n\n{jobs}", worker.url()));
    assert_eq!(figures(&program.apply("media").await), "succeeded: 1/1/0/0/0");
    let posts: Vec<Process> = fake
        .requests()
        .iter()
        .filter(|seen| seen.method == "POST")
        .map(|seen| seen.process)
        .collect();
    assert_eq!(posts, [Process::MediaWorker]);
    let report = program.apply("main").await;
    insta::assert_snapshot!(format!("{}\n{}", figures(&report), message(&report)), @"
    refused: 1/0/1/0/0
    POST /_synapse/admin/v1/purge_media_cache: 404 M_UNRECOGNIZED: Unrecognized request. The process that responded does not serve this media endpoint: set `media_url` to the worker that does, or upgrade Synapse
    ");
}

#[tokio::test]
async fn a_wrong_clock_is_refused_before_anything_is_sent() {
    let fake = Fake::start();
    let program = program(&fake, "method = \"POST\"\npath = \"/ask\"\nexpect = [404]");
    let mut text = String::new();
    for offset in [-95, 95, 30] {
        fake.world(|world| world.clock_offset_seconds = offset);
        let report = program.apply("ask").await;
        let message = message(&report).replace(|c: char| c.is_ascii_digit(), "_");
        text.push_str(&format!("{offset}: {}, {message}\n", figures(&report)));
    }
    insta::assert_snapshot!(text, @"
    -95: refused: null/0/0/0/null, the local clock is _ min __ s ahead of that of main, and timestamps would be wrong: synchronize the clocks (NTP)
    95: refused: null/0/0/0/null, the local clock is _ min __ s behind that of main, and timestamps would be wrong: synchronize the clocks (NTP)
    30: succeeded: 1/1/0/0/0, none
    ");
    assert_eq!(sent_to(&fake).len(), 1);
}

#[tokio::test]
async fn errors_in_the_configuration_are_reported() {
    let slips = [
        r#"path = "/x/#room:hs/a b""#,
        r#"path = "/x/ü""#,
        r#"path = "/x y""#,
        r#"path = "_synapse/admin""#,
        r#"path = "/a/../b""#,
        r#"path = "/x/{{ '#room:hs' }}""#,
        r#"path = "/x/{{ ago_ms('6mo') }}""#,
        r#"path = "/x/{{ ago_ms() }}""#,
        r#"path = "/x/{{ days_ago(3) }}""#,
        r#"path = "/x/{{ then }}""#,
        r#"path = "/x/{{ now_ms() ""#,
        "path = \"/x\"\nquery = { a = [1], b = \"{{ now() }}\" }",
        "path = \"/x\"\nquery = \"a=1\"\nexpect = []",
        "path = \"/x\"\nbody = { a = [\"{{ ago_ms(30) }}\"], b = nan }\nexpect = [99999]",
        "path = \"/x\"\nbody = [\"{{ ago_ms(30) }}\", \"{% if %}\"]",
        "path = \"/x\"\nmax_changes = 5\nat_most = 1\nrepeatable = \"yes\"\nbase = \"url\"",
        "path = \"/x\"\nmethod = \"post\"",
    ];
    let mut text = String::new();
    for slip in slips {
        let method = if slip.contains("method") { "" } else { "method = \"POST\"\n" };
        let program =
            Program::new("http://localhost:1", "t", &job("ask", &format!("{method}{slip}")));
        let output = program.run(&["check"]).await;
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{slip}");
        text.push_str(&output.stderr.replace(&program.path("").display().to_string(), ""));
    }
    insta::assert_snapshot!(text, @r#"
    error: microglia.toml:14:8: '#' is not allowed in a path: write %23
       14 | path = "/x/#room:hs/a b"
          |        ^^^^^^^^^^^^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:14:8: 'ü' is not allowed in a path: write %C3%BC
       14 | path = "/x/ü"
          |        ^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:14:8: ' ' is not allowed in a path: write %20
       14 | path = "/x y"
          |        ^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:14:8: a path must start with `/`: "/_synapse/admin"
       14 | path = "_synapse/admin"
          |        ^^^^^^^^^^^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:14:8: "/a/../b" would be sent as "/b": write it like that if this is intended
       14 | path = "/a/../b"
          |        ^^^^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:14:8: '#' is not allowed in a path: write %23
       14 | path = "/x/{{ '#room:hs' }}"
          |        ^^^^^^^^^^^^^^^^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:14:8: the template in `path` cannot be rendered: invalid duration "6mo": months are not supported, use days: "180d"
       14 | path = "/x/{{ ago_ms('6mo') }}"
          |        ^^^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:14:8: the template in `path` cannot be rendered: missing argument
       14 | path = "/x/{{ ago_ms() }}"
          |        ^^^^^^^^^^^^^^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:14:8: the template in `path` cannot be rendered: days_ago is unknown
       14 | path = "/x/{{ days_ago(3) }}"
          |        ^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:14:8: the template in `path` cannot be rendered: undefined value
       14 | path = "/x/{{ then }}"
          |        ^^^^^^^^^^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:14:8: the template in `path` cannot be rendered: unexpected end of input, expected end of variable block
       14 | path = "/x/{{ now_ms() "
          |        ^^^^^^^^^^^^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:15:9: expected a table of strings, numbers and booleans such as { before_ts = "{{ ago_ms('30d') }}" }; a parameter that occurs twice can be written in `path`
       15 | query = { a = [1], b = "{{ now() }}" }
          |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml:15:9: the template in `query.b` cannot be rendered: now is unknown
       15 | query = { a = [1], b = "{{ now() }}" }
          |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml: 2 errors
    error: microglia.toml:15:9: expected a table of strings, numbers and booleans such as { before_ts = "{{ ago_ms('30d') }}" }; a parameter that occurs twice can be written in `path`
       15 | query = "a=1"
          |         ^^^^^
    microglia.toml:16:10: the list is empty: add at least one item
       16 | expect = []
          |          ^^
    microglia.toml: 2 errors
    error: microglia.toml:15:40: this number cannot be represented in JSON
       15 | body = { a = ["{{ ago_ms(30) }}"], b = nan }
          |                                        ^^^
    microglia.toml:16:11: expected a whole number
       16 | expect = [99999]
          |           ^^^^^
    microglia.toml: 2 errors
    error: microglia.toml:15:8: the template in `body[0]` cannot be rendered: invalid duration "30": the unit is missing (did you mean "30d" (days), "30h", "30m" (minutes) or "30s"?)
       15 | body = ["{{ ago_ms(30) }}", "{% if %}"]
          |        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml: 1 error
    error: microglia.toml:15:15: `max_changes` is not supported by request, which cannot count items in advance: remove it
       15 | max_changes = 5
          |               ^
    microglia.toml:16:11: `at_most` is not supported by request, which cannot count items in advance: remove it
       16 | at_most = 1
          |           ^
    microglia.toml:17:14: expected true or false, found a string
       17 | repeatable = "yes"
          |              ^^^^^
    microglia.toml:18:8: invalid value "url": expected one of homeserver, media
       18 | base = "url"
          |        ^^^^^
    microglia.toml: 4 errors
    error: microglia.toml:14:10: invalid value "post": expected one of GET, POST, PUT, DELETE, PATCH
       14 | method = "post"
          |          ^^^^^^
    microglia.toml: 1 error
    "#);
}

#[tokio::test]
async fn a_real_synapse_carries_out_the_request() {
    let synapse = Synapse::start().await;
    synapse.insert_remote_media("far.test", "old", 40).await;
    synapse.insert_remote_media("far.test", "recent", 20).await;
    let room = json!({ "room_alias_name": "odd/na%2Fme" });
    synapse.create_room(&synapse.admin, room).await;
    let alias = "/_matrix/client/v3/directory/room/{{ '#odd/na%2Fme:hs.test' | urlencode }}";
    let jobs = [
        job("purge", "mode = \"apply\"\nmethod = \"POST\"\npath = \"/_synapse/admin/v1/purge_media_cache?before_ts={{ ago_ms('30d') }}\""),
        job("alias", &format!("method = \"DELETE\"\npath = \"{alias}\"")),
        job("user", "method = \"PUT\"\npath = \"/_synapse/admin/v2/users/{{ '@new/one:hs.test' | urlencode }}\"\nexpect = [200, 201]\nbody = { displayname = \"made at {{ ago_seconds('0s') }}\" }"),
    ]
    .concat();
    let program = Program::new(&synapse.url, &synapse.admin.token, &jobs);
    assert_eq!(figures(&program.json(&["run", "purge", "--json"]).await), "succeeded: 1/1/0/0/0");
    assert!(!synapse.remote_media_exists("far.test", "old").await);
    assert!(synapse.remote_media_exists("far.test", "recent").await);

    let path = format!("/_matrix/client/v3/directory/room/{}", encoded("#odd/na%2Fme:hs.test"));
    assert_eq!(synapse.admin(Method::GET, &path, Value::Null).await.0, 200);
    assert_eq!(figures(&program.apply("alias").await), "succeeded: 1/1/0/0/0");
    assert_eq!(synapse.admin(Method::GET, &path, Value::Null).await.0, 404);
    let again = program.apply("alias").await;
    assert_eq!(figures(&again), "failed: 1/0/1/0/0");
    insta::assert_snapshot!(changes(&again)[0], @"failed DELETE /_matrix/client/v3/directory/room/%23odd%2Fna%252Fme%3Ahs.test (1): 404 M_NOT_FOUND: Unknown room alias");

    let report = program.apply("user").await;
    let user =
        synapse.get(&format!("/_synapse/admin/v2/users/{}", encoded("@new/one:hs.test"))).await;
    assert_eq!(
        user["displayname"],
        format!("made at {}", ago(&report, TimeDelta::zero()).timestamp())
    );
    assert_eq!(figures(&report), "succeeded: 1/1/0/0/0");
}

#[tokio::test]
async fn the_response_is_shown_and_stored_with_secrets_masked_and_control_characters_escaped() {
    let fake = Fake::start();
    fake.world(|world| world.version = "1.163.2\u{1b}[2J".to_owned());
    let keys = "method = \"GET\"\npath = \"/_synapse/admin/v1/server_version\"\nmode = \"apply\"\n";
    let program = program(&fake, keys);
    let ran = program.run(&["run", "ask"]).await;
    let answer = "           response:\n             {\n               \"server_version\": \"1.163.2\\u001b[2J\"\n             }\n";
    assert!(ran.stdout.ends_with(answer), "{}", ran.stdout);
    let shown = program.run(&["runs", "show", "1"]).await.stdout;
    assert!(shown.ends_with(answer), "{shown}");
    let shown = program.json(&["runs", "show", "1", "--json"]).await;
    assert_eq!(shown["changes"][0]["answer"], r#"{"server_version":"1.163.2\u001b[2J"}"#);
}

#[tokio::test]
async fn a_response_is_stored_only_if_keep_answer_allows_it_and_served_only_to_the_admin() {
    let fake = Fake::start();
    let keys = "method = \"GET\"\npath = \"/_synapse/admin/v1/server_version\"\nmode = \"apply\"\n";
    let silent = format!("{keys}keep_answer = false\n\n[jobs.open]\nkind = \"request\"\n{keys}");
    let program = program(&fake, &silent);
    let config = program.read("microglia.toml");
    program.write(
        "microglia.toml",
        &config.replace("[daemon]\n", "[daemon]\nadmin_token_file = \"admin\"\n"),
    );
    program.write("admin", "a-secret-of-this-test");
    let report = program.apply("ask").await;
    assert_eq!(figures(&report), "succeeded: 1/1/0/0/0");
    assert_eq!(report["changes"][0]["answer"], Value::Null);
    let daemon = program.serve().await;
    assert_eq!(program.run(&["run", "open"]).await.code, 0);
    let (_, public) = daemon.get("/api/v1/runs/2").await;
    assert!(!public.contains("server_version"), "{public}");
    let token = [("Authorization", "Bearer a-secret-of-this-test")];
    let (_, seen) = daemon.http("GET", "/api/v1/runs/2", &token, "").await;
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen["changes"][0]["answer"], r#"{"server_version":"1.163.2"}"#);
    let log = daemon.stop().await;
    assert!(!log.contains("1.163.2\\\"}"), "the log contains no responses: {log}");
}
