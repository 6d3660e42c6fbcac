//! The client for the Matrix Authentication Service, against a fake whose every answer fits the OpenAPI file.

mod check;
mod errors;
mod lists;
mod openapi;
mod own_token;
mod sessions;
mod token;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use microglia::config::{Config, Environment};
use microglia::mas::{Connection, Reader, Ulid, Writer};
use microglia::values::clock::Clock;

use crate::fake::{CLIENT_ID, CLIENT_SECRET, Fake};
use crate::program::Program;

/// A homeserver, its MAS, and a configuration for both.
struct Setup {
    homeserver: Fake,
    public: Fake,
    internal: Fake,
    program: Program,
    /// `method endpoint status` of each request that the client sent.
    sent: Arc<Mutex<Vec<String>>>,
}

impl Setup {
    fn new() -> Self {
        let homeserver = Fake::start();
        let (public, internal) = homeserver.mas();
        let config = format!(
            "[daemon]\nstate_dir = \"state\"\n[homeservers.main]\nurl = \"{}\"\nmax_requests_per_second = \"unlimited\"\nrequest_timeout = \"5s\"\n[homeservers.main.mas]\nurl = \"{}\"\nadmin_url = \"{}\"\nclient_id = \"{CLIENT_ID}\"\nclient_secret_file = \"mas-client-secret\"\naccount = \"microglia\"\n",
            homeserver.url(),
            public.url(),
            internal.url(),
        );
        let program = Program::with_config(&config);
        program.write("mas-client-secret", CLIENT_SECRET);
        Self { homeserver, public, internal, program, sent: Arc::default() }
    }

    fn connection(&self) -> Arc<Connection> {
        let clock = Clock::system();
        let path = self.program.path("microglia.toml");
        let config = Config::load(&path, &Environment::default(), clock.now())
            .unwrap_or_else(|error| panic!("{error}"));
        let settings = config.homeservers["main"].mas_settings(|_| None).unwrap();
        let sent = Arc::clone(&self.sent);
        let observer: microglia::http::Observer =
            Arc::new(move |done: &microglia::http::CompletedRequest| {
                let status =
                    done.status.map_or_else(|| "none".to_owned(), |status| status.to_string());
                let line = format!("{} {} {status}", done.method, done.endpoint);
                sent.lock().unwrap().push(line);
            });
        Arc::new(Connection::new(settings, &observer, clock).unwrap())
    }

    fn reader(&self) -> Reader {
        Reader::new(self.connection(), Clock::system())
    }

    fn writer(&self) -> Writer {
        Writer::new(self.reader(), tokio_util::sync::CancellationToken::new())
    }

    /// What the client sent since the last call.
    fn sent(&self) -> Vec<String> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }

    /// An error with names in place of addresses.
    fn text(&self, error: &impl std::fmt::Display) -> String {
        error
            .to_string()
            .replace(&self.public.url(), "PUBLIC")
            .replace(&self.internal.url(), "INTERNAL")
    }
}

fn ulid(text: &str) -> Ulid {
    text.parse().unwrap()
}

const TOKEN_200: &str = "POST /oauth2/token 200";
/// Longer than any test takes.
const LIFE: Duration = Duration::from_hours(24);
