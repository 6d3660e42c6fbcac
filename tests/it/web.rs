//! The status page over HTTP, as a browser without JavaScript uses it.

mod access;
mod actions;
mod escaping;
mod events;
mod pages;

use chrono::{DateTime, Utc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fake::{Fake, TOKEN, User, World};
use crate::program::{Daemon, Program, until};

const ADMIN_TOKEN: &str = "secret-of-the-tests";

/// A response with its head in lower case.
#[derive(Debug)]
struct Page {
    status: u16,
    head: String,
    body: String,
}

impl Page {
    /// The value of a header.
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Where a redirect leads.
    fn location(&self) -> &str {
        assert_eq!(self.status, 303, "{}", self.body);
        self.header("location").unwrap()
    }

    /// The CSRF token of the form on the page.
    fn csrf(&self) -> &str {
        let (_, rest) = self.body.split_once("name=\"csrf\" value=\"").unwrap();
        rest.split('"').next().unwrap()
    }
}

/// Sends a request and reads the response to its end.
async fn send(
    daemon: &Daemon,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Page {
    let mut text = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
        daemon.address,
        body.len()
    );
    if method == "POST" {
        text.push_str("Content-Type: application/x-www-form-urlencoded\r\n");
    }
    for (name, value) in headers {
        text.extend([name, ": ", value, "\r\n"]);
    }
    let mut stream = TcpStream::connect(&daemon.address).await.unwrap();
    stream.write_all(format!("{text}\r\n{body}").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    Page {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

async fn get(daemon: &Daemon, path: &str) -> Page {
    send(daemon, "GET", path, &[], "").await
}

/// A person who is signed in.
struct Visitor<'a> {
    daemon: &'a Daemon,
    cookie: String,
    csrf: String,
}

impl<'a> Visitor<'a> {
    async fn sign_in(daemon: &'a Daemon) -> Self {
        let page = send(daemon, "POST", "/login", &[], &format!("token={ADMIN_TOKEN}")).await;
        assert_eq!(page.location(), "/");
        let cookie = page.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let mut visitor = Self { daemon, cookie, csrf: String::new() };
        visitor.get("/").await.csrf().clone_into(&mut visitor.csrf);
        visitor
    }

    async fn get(&self, path: &str) -> Page {
        send(self.daemon, "GET", path, &[("Cookie", &self.cookie)], "").await
    }

    /// Opens the page that asks, and sends its form.
    async fn confirm(&self, path: &str) -> Page {
        let asks = self.get(path).await;
        assert_eq!(asks.status, 200, "{path}: {}", asks.body);
        assert!(
            asks.body.contains(&format!("<form method=\"post\" action=\"{path}\"")),
            "{}",
            asks.body
        );
        self.post(path, &format!("csrf={}", self.csrf)).await
    }

    async fn post(&self, path: &str, body: &str) -> Page {
        send(self.daemon, "POST", path, &[("Cookie", &self.cookie)], body).await
    }
}

/// A program with an admin token and these jobs.
fn program(fake: &Fake, jobs: &str) -> Program {
    let program = Program::new(&fake.url(), TOKEN, jobs);
    program.write("admin-token", &format!("{ADMIN_TOKEN}\n"));
    let config = program.read("microglia.toml");
    program.write(
        "microglia.toml",
        &config.replace("[daemon]\n", "[daemon]\nadmin_token_file = \"admin-token\"\n"),
    );
    program
}

const LOBBY: &str = "[jobs.lobby]\nkind = \"join-rooms\"\nrooms = [\"!lobby:fake.test\"]\njoins_per_second = 1000\n";

fn with_lobby(users: usize) -> Fake {
    let mut world = World::new();
    world.users(users, |_| User::default());
    world.room("!lobby:fake.test");
    Fake::of(world)
}

fn joined(fake: &Fake) -> usize {
    let is_in = |(user, member): &(&String, &crate::fake::Member)| {
        user.starts_with("@user") && member.membership == "join"
    };
    fake.world(|world| world.rooms["!lobby:fake.test"].members.iter().filter(is_in).count())
}

#[expect(clippy::disallowed_methods, reason = "the program under test has the real clock")]
fn now() -> DateTime<Utc> {
    Utc::now()
}

/// Waits until so many runs of the job have ended.
async fn until_ended(program: &Program, job: &str, runs: usize) {
    until("its end", 30, async || program.ended(job).await.len() >= runs).await;
}
