//! The events that browsers follow.

use super::*;

/// An event stream over TCP.
struct Stream {
    stream: TcpStream,
    text: String,
}

impl Stream {
    async fn open(daemon: &Daemon, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(&daemon.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", daemon.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut opened = Self { stream, text: String::new() };
        opened.until("\nid: ").await;
        opened
    }

    async fn until(&mut self, text: &str) {
        let reading = async {
            let mut part = [0; 4096];
            while !self.text.contains(text) {
                let length = self.stream.read(&mut part).await.unwrap();
                assert!(length > 0, "the stream ended: {}", self.text);
                self.text.push_str(std::str::from_utf8(&part[..length]).unwrap());
            }
        };
        let limit = std::time::Duration::from_secs(20);
        let read = tokio::time::timeout(limit, reading).await;
        assert!(read.is_ok(), "no {text}: {}", self.text);
    }
}

#[tokio::test]
async fn events_name_people_only_to_who_has_the_token_or_a_session() {
    let fake = with_lobby(3);
    let program = program(
        &fake,
        &format!(
            "{LOBBY}mode = \"apply\"\n[jobs.other]\nkind = \"request\"\nmethod = \"GET\"\npath = \"/_matrix/client/versions\"\n"
        ),
    );
    let daemon = program.serve().await;
    let visitor = Visitor::sign_in(&daemon).await;
    let bearer = format!("Authorization: Bearer {ADMIN_TOKEN}\r\n");
    let cookie = format!("Cookie: {}\r\n", visitor.cookie);
    let path = "/api/v1/events";
    let mut public = Stream::open(&daemon, path, "").await;
    let mut of_other = Stream::open(&daemon, "/api/v1/events?job=other", "").await;
    let mut admin = Stream::open(&daemon, path, &bearer).await;
    let mut session = Stream::open(&daemon, path, &cookie).await;
    assert!(public.text.starts_with("HTTP/1.1 200"), "{}", public.text);
    assert!(public.text.contains("content-type: text/event-stream"), "{}", public.text);
    for job in ["lobby", "other"] {
        assert_eq!(program.run(&["run", job]).await.code, 0);
    }
    let end = |run: u32| format!("\"run\":{run}");
    for stream in [&mut public, &mut admin, &mut session, &mut of_other] {
        stream.until("event: ended").await;
        stream.until(&end(2)).await;
    }
    for name in ["started", "planned", "progress", "change", "ended"] {
        assert!(public.text.contains(&format!("event: {name}\n")), "{name}: {}", public.text);
    }
    assert!(!public.text.contains("fake.test"), "{}", public.text);
    for stream in [admin, session] {
        assert!(stream.text.contains("@user000001:fake.test"), "{}", stream.text);
    }
    assert!(!of_other.text.contains("lobby"), "{}", of_other.text);
    // An endless stream does not delay the end of the daemon.
    daemon.stop().await;
}

#[tokio::test]
async fn a_browser_that_comes_back_is_told_to_reload_if_it_missed_something() {
    let fake = with_lobby(1);
    let program = program(&fake, LOBBY);
    let daemon = program.serve().await;
    let first = Stream::open(&daemon, "/api/v1/events", "").await;
    let id = first.text.rsplit_once("\nid: ").unwrap().1.lines().next().unwrap().to_owned();
    let since = format!("Last-Event-ID: {id}\r\n");
    let same = Stream::open(&daemon, "/api/v1/events", &since).await;
    assert!(!same.text.contains("event: reload"), "{}", same.text);
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    let mut later = Stream::open(&daemon, "/api/v1/events", &since).await;
    later.until("event: reload\ndata: {}\n\n").await;
    daemon.stop().await;
}
