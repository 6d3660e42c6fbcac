//! The API on the control socket, and the event streams that it serves there.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::*;
use crate::fake::TOKEN;
use crate::program::until;

/// A response on the control socket that is still being received.
struct Response {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Response {
    async fn to(program: &Program, request: &str) -> Self {
        let mut stream = UnixStream::connect(program.path("state/control.sock")).await.unwrap();
        let request = format!("{request}Host: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self { stream, received: Vec::new() }
    }

    /// Reads on until `text` was received.
    async fn until(&mut self, text: &str) {
        let read = async {
            while !String::from_utf8_lossy(&self.received).contains(text) {
                let more = self.stream.read_buf(&mut self.received).await.unwrap();
                assert!(more > 0, "no {text} in {}", String::from_utf8_lossy(&self.received));
            }
        };
        timeout(Duration::from_secs(30), read).await.unwrap_or_else(|_| panic!("no {text}"));
    }

    /// The head and the body, at the end of the connection.
    async fn whole(mut self) -> (String, String) {
        let read = self.stream.read_to_end(&mut self.received);
        timeout(Duration::from_secs(30), read).await.expect("no end of the response").unwrap();
        let text = String::from_utf8(self.received).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        (head.to_lowercase(), body.to_owned())
    }
}

async fn ask(program: &Program, line: &str) -> (String, String) {
    let (head, body) = Response::to(program, &format!("{line} HTTP/1.1\r\n")).await.whole().await;
    (head.lines().next().unwrap().to_owned(), body)
}

/// The names and data of the events of a stream.
fn events(body: &str) -> Vec<(String, Value)> {
    let lines: Vec<&str> = body.lines().collect();
    let pairs = lines.windows(2).filter_map(|pair| {
        let name = pair[0].strip_prefix("event: ")?;
        let data = pair[1].strip_prefix("data: ").unwrap_or_else(|| panic!("{pair:?}"));
        Some((name.to_owned(), serde_json::from_str(data).unwrap()))
    });
    pairs.collect()
}

const FOLLOW: &str = "HTTP/1.1\r\nAccept: text/event-stream\r\n";

#[tokio::test]
async fn the_api_on_the_control_socket_needs_no_token_and_withholds_nothing() {
    let mut world = World::new();
    world.users(1, |_| User::default().external("saml", "s1"));
    let fake = Fake::of(world);
    let job = "[jobs.ids]\nkind = \"remove-external-ids\"\nproviders = [\"saml\", \"oidc\"]\naccounts = \"all\"\n";
    let program = Program::new(&fake.url(), TOKEN, job);
    let daemon = program.serve().await;
    assert_eq!(daemon.post("/api/v1/pause", "", "").await.0, 403, "there is no admin token");
    assert_eq!(ask(&program, "POST /api/v1/pause").await.1, r#"{"paused":true}"#);
    assert_eq!(ask(&program, "POST /api/v1/resume").await.1, r#"{"paused":false}"#);
    let (_, reloaded) = ask(&program, "POST /-/reload").await;
    assert_eq!(reloaded, r#"{"added":[],"changed":[],"removed":[],"unchanged":["ids"]}"#);
    until_log(&daemon, "configuration reloaded (the control socket)").await;
    assert_eq!(program.run(&["run", "ids", "--apply"]).await.code, 0);
    let (_, shown) = ask(&program, "GET /api/v1/runs/1").await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert!(shown["changes"][0]["before"].to_string().contains("s1"), "{shown}");
    assert!(shown["message"].to_string().contains("oidc"), "{shown}");
    let (_, jobs) = ask(&program, "GET /api/v1/jobs").await;
    assert!(jobs.contains("oidc"), "{jobs}");
    let unknown = ask(&program, "POST /api/v1/jobs/none/cancel").await;
    assert_eq!(unknown.0, "http/1.1 404 not found", "{}", unknown.1);
    assert_eq!(ask(&program, "GET /healthz").await.1, "ok\n");
    daemon.stop().await;
}

#[tokio::test]
async fn a_run_that_is_cancelled_on_the_control_socket_says_which_user_cancelled_it() {
    let fake = with_lobby(200);
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 10, ""));
    let daemon = program.serve().await;
    let caller = program.command(&["run", "lobby", "--json"]).spawn().unwrap();
    until("a join", 20, async || joined(&fake) > 0).await;
    assert_eq!(program.run(&["cancel", "lobby"]).await.code, 0);
    let report: Value =
        serde_json::from_slice(&caller.wait_with_output().await.unwrap().stdout).unwrap();
    let message = report["message"].as_str().unwrap();
    let owner = program.path("state").metadata().unwrap();
    let uid = std::os::unix::fs::MetadataExt::uid(&owner);
    assert!(message.starts_with("cancelled by "), "{message}");
    assert!(message.contains(&format!("uid {uid}")), "{message}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_run_that_is_started_with_its_event_stream_sends_all_events_from_start_to_end() {
    let fake = with_lobby(3);
    let program = with_admin(&fake, &sweep("lobby", 1000, ""));
    let daemon = program.serve().await;
    for _ in 0..2 {
        let request = format!("POST /api/v1/jobs/lobby/run {FOLLOW}");
        let (head, body) = Response::to(&program, &request).await.whole().await;
        assert!(head.starts_with("http/1.1 202 accepted"), "{head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        let events = events(&body);
        let (first, last) = (events.first().unwrap(), events.last().unwrap());
        assert_eq!((first.0.as_str(), last.0.as_str()), ("started", "ended"), "{body}");
        assert!(events.iter().any(|(name, _)| name == "planned"), "{body}");
        assert!(events.iter().all(|(_, data)| data["job"] == "lobby"), "{body}");
        let report = &last.1["event"]["ended"];
        assert_eq!(report["outcome"], "succeeded", "{body}");
        assert_eq!(report["id"], first.1["event"]["started"]["id"], "{body}");
    }
    assert_eq!(joined(&fake), 3);
    // Over TCP, where events are not served, the run has an id.
    let headers =
        [("Authorization", "Bearer secret-of-the-tests"), ("Accept", "text/event-stream")];
    let started = daemon.http("POST", "/api/v1/jobs/lobby/run", &headers, "").await;
    assert_eq!(started, (202, r#"{"id":3}"#.to_owned()));
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_disconnects_from_the_event_stream_does_not_end_the_run() {
    let fake = with_lobby(30);
    let program = Program::new(&fake.url(), TOKEN, &sweep("lobby", 10, ""));
    let daemon = program.serve().await;
    let mut follower =
        Response::to(&program, &format!("POST /api/v1/jobs/lobby/run {FOLLOW}")).await;
    follower.until("event: changed\n").await;
    let (status, refusal) = ask(&program, "POST /api/v1/jobs/lobby/run").await;
    assert_eq!(status, "http/1.1 409 conflict");
    assert_eq!(refusal, r#"{"error":"lobby is already running (run 1)"}"#);
    drop(follower);
    until("its end", 20, async || program.ended("lobby").await == ["manual succeeded"]).await;
    assert_eq!(joined(&fake), 30);
    daemon.stop().await;
}

#[tokio::test]
async fn the_events_of_all_runs_are_streamed_on_the_control_socket() {
    let program = with_admin(&Fake::start(), &[ping("a", ""), ping("b", "")].concat());
    let daemon = program.serve().await;
    let mut all = Response::to(&program, "GET /api/v1/events HTTP/1.1\r\n").await;
    let mut of_a = Response::to(&program, "GET /api/v1/events?job=a HTTP/1.1\r\n").await;
    for stream in [&mut all, &mut of_a] {
        stream.until("\r\n\r\n").await;
    }
    for job in ["b", "a"] {
        assert_eq!(program.run(&["run", job]).await.code, 0);
    }
    let is_end = |job: &str| format!("event: ended\ndata: {{\"job\":\"{job}\"");
    all.until(&is_end("a")).await;
    of_a.until(&is_end("a")).await;
    // An endless stream does not delay the end of the daemon.
    daemon.stop().await;
    let (_, all) = all.whole().await;
    let (_, of_a) = of_a.whole().await;
    assert!(all.contains(&is_end("b")), "{all}");
    let jobs: Vec<Value> = events(&of_a).into_iter().map(|(_, data)| data["job"].clone()).collect();
    assert!(jobs.len() >= 3 && jobs.iter().all(|job| job == "a"), "{of_a}");
}
