//! What the measurements need besides microglia: the fake homeserver in a process of its own, and a bare load generator.
//!
//! `fake serve ACCOUNTS` prints its URL and serves until its standard input ends: every second account holds an id of
//! `saml`, every tenth one of `oidc-google`. `fake load URL TOKEN CONCURRENCY` reads account ids from its standard input,
//! GETs each once over connections that are kept open, and prints the seconds that took.

#![expect(clippy::print_stdout, reason = "this is a command line")]
#![expect(clippy::disallowed_methods, reason = "there is no clock to inject")]

#[path = "../tests/it/fake.rs"]
mod fake;

use std::{
    env,
    io::{BufRead, Read, stdin},
    sync::Mutex,
    time::Instant,
};

use reqwest::{Client, Url};
use tokio::net::TcpListener;

use crate::fake::{User, World};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the bench");
    match arguments[..] {
        ["serve", accounts] => {
            runtime.block_on(serve(accounts.parse().expect("a number of accounts")))
        }
        ["load", url, token, concurrency] => {
            let url = url.parse().expect("a URL");
            let concurrency = concurrency.parse().expect("a number of requests at a time");
            runtime.block_on(load(&url, token, concurrency));
        }
        _ => panic!("usage: fake serve ACCOUNTS | fake load URL TOKEN CONCURRENCY"),
    }
}

async fn serve(accounts: usize) {
    let mut world = World::new();
    world.record_requests = false;
    world.users(accounts, |number| {
        let mut user = User::default();
        if number % 2 == 0 {
            user = user.external("saml", &format!("saml-{number}"));
        }
        if number % 10 == 0 {
            user = user.external("oidc-google", &format!("google-{number}"));
        }
        user
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port to listen on");
    println!("http://{}", listener.local_addr().expect("an address of its own"));
    let gone = tokio::task::spawn_blocking(|| stdin().read_to_end(&mut Vec::new()));
    tokio::select! {
        never = fake::serve_forever(world, listener) => match never {},
        _ = gone => {}
    }
}

async fn load(url: &Url, token: &str, concurrency: usize) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ids: Vec<String> = stdin().lock().lines().collect::<Result<_, _>>().expect("account ids");
    let client = Client::builder().http1_only().no_proxy().build().expect("a client");
    let left = Mutex::new(ids.iter());
    let start = Instant::now();
    let workers = (0..concurrency).map(|_| async {
        loop {
            let Some(id) = left.lock().expect("a queue").next() else { return };
            let mut url = url.clone();
            url.path_segments_mut()
                .expect("a URL with a path")
                .extend(["_synapse", "admin", "v2", "users", id]);
            let answer = client.get(url).bearer_auth(token).send().await.expect("an answer");
            assert!(answer.status().is_success(), "{} for {id}", answer.status());
            answer.bytes().await.expect("a whole answer");
        }
    });
    futures_util::future::join_all(workers).await;
    println!("{}", start.elapsed().as_secs_f64());
}
