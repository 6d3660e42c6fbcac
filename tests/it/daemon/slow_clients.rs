//! Clients that send requests and do not read the responses, or connect and send nothing.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;

use super::*;
use crate::fake::TOKEN;
use crate::program::until;

/// More than the daemon serves at a time.
const CLIENTS: usize = 300;

/// Connects with a small receive buffer, asks for the metrics again and again, and reads nothing.
async fn slow_reader(daemon: &Daemon) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(daemon.address.parse().unwrap()).await.unwrap();
    let requests = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    // The daemon may have closed the connection, or stopped reading from it.
    let _ = timeout(Duration::from_millis(100), stream.write_all(requests.as_bytes())).await;
    stream
}

fn open_files(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

#[tokio::test]
async fn health_is_served_while_more_clients_than_the_limit_do_not_read() {
    let program = Program::new(&Fake::start().url(), TOKEN, &ping("a", ""));
    let daemon = program.serve().await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(slow_reader(&daemon).await);
    }
    for path in ["/healthz", "/readyz", "/healthz"] {
        let answer = timeout(Duration::from_secs(2), daemon.get(path)).await;
        let (status, body) = answer.unwrap_or_else(|_| panic!("{path}: no response within 2 s"));
        assert_eq!(status, 200, "{path}: {body}");
    }
    drop(clients);
    daemon.stop().await;
}

#[tokio::test]
async fn a_response_that_nobody_reads_is_given_up() {
    let program = Program::new(&Fake::start().url(), TOKEN, &ping("a", ""));
    let daemon = program.serve().await;
    assert_eq!(daemon.get("/healthz").await.0, 200);
    let before = open_files(&daemon);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(slow_reader(&daemon).await);
    }
    until("their connections", 10, async || open_files(&daemon) >= before + 20).await;
    until("the daemon closes them", 60, async || open_files(&daemon) <= before).await;
    drop(clients);
    daemon.stop().await;
}

#[tokio::test]
async fn a_silent_client_of_the_control_socket_is_disconnected() {
    let program = Program::new(&Fake::start().url(), TOKEN, &ping("a", ""));
    let daemon = program.serve().await;
    let mut caller = UnixStream::connect(program.path("state/control.sock")).await.unwrap();
    let mut answer = Vec::new();
    let closed = timeout(Duration::from_secs(40), caller.read_to_end(&mut answer)).await;
    closed.expect("the daemon waits for a caller that says nothing").unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "");
    daemon.stop().await;
}

#[tokio::test]
async fn the_control_socket_refuses_more_clients_than_its_limit_and_recovers() {
    let program = Program::new(&Fake::start().url(), TOKEN, &ping("a", ""));
    let daemon = program.serve().await;
    let before = open_files(&daemon);
    let mut callers = Vec::new();
    for _ in 0..200 {
        callers.push(UnixStream::connect(program.path("state/control.sock")).await.unwrap());
    }
    let mut refusal = String::new();
    let last = callers.last_mut().unwrap();
    last.write_all(b"POST /api/v1/pause HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    timeout(Duration::from_secs(10), last.read_to_string(&mut refusal))
        .await
        .expect("the last caller is refused at once")
        .unwrap();
    assert!(refusal.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{refusal}");
    let (_, body) = refusal.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, r#"{"error":"too many concurrent requests: try again later"}"#);
    let busy = program.run(&["pause"]).await;
    assert_eq!(
        (busy.code, busy.stderr.as_str()),
        (1, "error: too many concurrent requests: try again later\n")
    );
    assert!(open_files(&daemon) < before + 200);
    drop(callers);
    until("a caller is served", 10, async || program.run(&["pause"]).await.code == 0).await;
    daemon.stop().await;
}
