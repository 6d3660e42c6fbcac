//! What the measurements need besides microglia: the fake homeserver in a process of its own, and a bare load generator.
//!
//! `fake serve ACCOUNTS [ADDRESSES]` prints its URL and serves until its standard input ends, also at that many addresses
//! from 127.1.0.1 on, 250 in a row: every second account holds an id of
//! `saml`, every tenth one of `oidc-google`, and all are in two rooms. `fake deactivated ACCOUNTS` does so with
//! deactivated accounts without ids, `fake members MEMBERS` with
//! one room of that many members. `fake load URL TOKEN CONCURRENCY` reads account ids from its standard input,
//! GETs each once over connections that are kept open, and prints the seconds that took.
//!
//! `fake unused ACCOUNTS UNUSED` has accounts that were used yesterday, and among them unused ones. For each line of its
//! standard input it prints how many requests arrived since the last one.
//!
//! `fake load-devices URL TOKEN CONCURRENCY` does the same with the lists of their devices. `fake devices ACCOUNTS OWNERS STALE`
//! serves a homeserver that responds after 5 ms: each account has a device in use, and so many of them so many stale ones. It
//! prints its URL, and reports its requests as the next one does.
//!
//! `fake mas LINKS REMOVED` serves a homeserver and its MAS, which responds after 5 ms. It has that many accounts with a link
//! each, of which as many as are to be removed are deactivated. It prints the URLs of the homeserver, of MAS and of its Admin
//! API, and in a second line each link to remove with its account, as `LINK:USER`. For each line of its standard input it
//! prints how many requests arrived since the last one, how many of these were about a single link or account, and the seconds
//! from the first to the last of those.
//!
//! `fake packs ROOMS CHANGED` serves rooms, of which each twentieth has a pack of five images and each tenth an avatar, and
//! `fake emptied ROOMS EMPTY` rooms of which some are empty. For each line of their standard input they print how many
//! requests arrived since the last one, and `packs` then changes rooms: one more member in each, a new image in each tenth.
//!
//! `fake remove URL TOKEN CONCURRENCY LINK:USER …` reads and deletes these links: the requests that a run sends for each.

#![expect(clippy::print_stdout, reason = "this is a command line")]

#[expect(dead_code, unused_imports, reason = "the tests use all of it, the measurements a part")]
#[path = "../tests/it/fake.rs"]
mod fake;

use std::{
    env,
    io::{BufRead, BufReader, Read, Write, stdin},
    net::{Ipv4Addr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::net::TcpListener;

use crate::fake::{Device, Fake, Process, Provider, SERVER_NAME, Seen, Shared, User, World};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", accounts] => {
            serve(all_in(accounts.parse().expect("a number of accounts")), 0);
        }
        ["serve", accounts, addresses] => serve(
            all_in(accounts.parse().expect("a number of accounts")),
            addresses.parse().expect("a number of addresses"),
        ),
        ["deactivated", accounts] => {
            serve(deactivated(accounts.parse().expect("a number of accounts")), 0);
        }
        ["members", members] => {
            serve(huge_room(members.parse().expect("a number of members")), 0);
        }
        ["load", url, token, concurrency] => {
            let address = url.strip_prefix("http://").expect("a plain http URL");
            let concurrency = concurrency.parse().expect("a number of requests at a time");
            load(address, token, concurrency, "");
        }
        ["load-devices", url, token, concurrency] => {
            let address = url.strip_prefix("http://").expect("a plain http URL");
            let concurrency = concurrency.parse().expect("a number of requests at a time");
            load(address, token, concurrency, "/devices");
        }
        ["devices", accounts, owners, stale] => serve_devices(
            accounts.parse().expect("a number of accounts"),
            owners.parse().expect("a number of accounts"),
            stale.parse().expect("a number of devices"),
        ),
        ["mas", links, removed] => serve_mas(
            links.parse().expect("a number of links"),
            removed.parse().expect("a number of links"),
        ),
        ["packs", rooms, changed] => {
            let rooms: usize = rooms.parse().expect("a number of rooms");
            let changed: usize = changed.parse().expect("a number of rooms");
            let mut night = 0;
            serve_counted(with_packs(rooms), |world| {
                night += 1;
                change_rooms(world, night, rooms / changed);
            });
        }
        ["emptied", rooms, empty] => {
            let rooms: usize = rooms.parse().expect("a number of rooms");
            let empty: usize = empty.parse().expect("a number of rooms");
            serve_counted(emptied(rooms, rooms / empty), |_| {});
        }
        ["unused", accounts, unused] => serve_unused(
            accounts.parse().expect("a number of accounts"),
            unused.parse().expect("a number of accounts"),
        ),
        ["remove", url, token, concurrency, ref links @ ..] => {
            let address = url.strip_prefix("http://").expect("a plain http URL");
            let concurrency = concurrency.parse().expect("a number of requests at a time");
            remove(address, token, concurrency, links);
        }
        _ => panic!(
            "usage: fake serve ACCOUNTS [ADDRESSES] | fake members MEMBERS | fake load URL TOKEN CONCURRENCY | fake load-devices URL TOKEN CONCURRENCY | fake devices ACCOUNTS OWNERS STALE | fake mas LINKS REMOVED | fake packs ROOMS CHANGED | fake emptied ROOMS EMPTY | fake remove URL TOKEN CONCURRENCY LINK:USER …"
        ),
    }
}

fn all_in(accounts: usize) -> World {
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
    let everybody: Vec<String> = world.users.keys().cloned().collect();
    for name in ["lobby", "staff"] {
        let room = world.room(&format!("!{name}:{SERVER_NAME}"));
        room.alias(&format!("#{name}:{SERVER_NAME}"));
        for user in &everybody {
            room.joined(user);
        }
    }
    world
}

/// Deactivated accounts without ids, and a room in which nobody is but the account of the token.
fn deactivated(accounts: usize) -> World {
    let mut world = World::new();
    world.record_requests = false;
    world.users(accounts, |_| User { deactivated: true, ..User::default() });
    let admin = world.admin();
    world
        .room(&format!("!lobby:{SERVER_NAME}"))
        .alias(&format!("#lobby:{SERVER_NAME}"))
        .joined(&admin);
    world
}

/// A room of so many members, of whom a thousand are local, and as many accounts that are not in it.
fn huge_room(members: usize) -> World {
    let mut world = World::new();
    world.record_requests = false;
    world.users(2000, |_| User::default());
    let local: Vec<String> = world.users.keys().take(1000).cloned().collect();
    let room = world.room(&format!("!lobby:{SERVER_NAME}"));
    room.alias(&format!("#lobby:{SERVER_NAME}"));
    for user in &local {
        room.joined(user);
    }
    for number in local.len()..members {
        room.joined(&format!("@user{number:07}:elsewhere.test"));
    }
    world
}

fn room_id(number: usize) -> String {
    format!("!room{number:06}:{SERVER_NAME}")
}

/// Uploads a file, and returns its URI.
fn upload(world: &mut World, id: &str, created_ms: i64) -> String {
    let user = format!("@user{:03}:{SERVER_NAME}", world.files().len() % 500);
    world.user(&user);
    world.media(&user, id, 10_000, created_ms, None);
    format!("mxc://{SERVER_NAME}/{id}")
}

fn with_packs(rooms: usize) -> World {
    const UPLOADED_MS: i64 = 1_700_000_000_000;
    let mut world = World::new();
    for number in 0..rooms {
        world.room(&room_id(number));
        if number % 10 == 0 {
            let url = upload(&mut world, &format!("avatar{number:018}"), UPLOADED_MS);
            world.room(&room_id(number)).set_state("m.room.avatar", "", &json!({"url": url}));
        }
        if number % 20 == 0 {
            add_pack(&mut world, number, "image", UPLOADED_MS);
        }
    }
    world
}

/// Puts five new images into the only pack of a room.
fn add_pack(world: &mut World, room: usize, name: &str, created_ms: i64) {
    let mut images = serde_json::Map::new();
    for image in 0..5 {
        let id = format!("{name}{room:08}x{image:08}");
        let url = upload(world, &id, created_ms);
        images.insert(id, json!({"url": url}));
    }
    let pack = json!({"images": images});
    world.room(&room_id(room)).set_state("im.ponies.room_emotes", "", &pack);
}

/// Every `step`th room gets a member, and every tenth of these an image.
fn change_rooms(world: &mut World, night: usize, step: usize) {
    let now = world.now().timestamp_millis();
    let changed: Vec<usize> =
        (0..world.rooms.len()).filter(|number| number % step == night % step).collect();
    for (index, number) in changed.into_iter().enumerate() {
        world.room(&room_id(number)).joined(&format!("@guest{night}:{SERVER_NAME}"));
        if index % 10 == 0 {
            let url = upload(world, &format!("new{night:04}x{number:08}"), now);
            let pack = json!({"images": {"new": {"url": url}}});
            world.room(&room_id(number)).set_state("im.ponies.room_emotes", "new", &pack);
        }
    }
}

/// Every `step`th room was emptied 30 days ago.
fn emptied(rooms: usize, step: usize) -> World {
    let mut world = World::new();
    let user = format!("@user000:{SERVER_NAME}");
    for number in 0..rooms {
        match number % step {
            0 => world.emptied_room(&room_id(number), &user, 30),
            _ => world.room(&room_id(number)),
        };
    }
    world
}

/// Serves until the standard input ends; for each line of it, prints the number of requests, and has the world change.
fn serve_counted(world: World, mut between: impl FnMut(&mut World)) {
    let homeserver = Fake::of(world);
    println!("{}", homeserver.url());
    for _ in stdin().lines() {
        println!("{}", homeserver.requests().len());
        homeserver.forget();
        homeserver.world(&mut between);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(world: World, addresses: u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port to listen on");
    let own = listener.local_addr().expect("an address of its own");
    let mut listeners = vec![listener];
    for number in 0..addresses {
        let [high, low] =
            [number / 250, number % 250 + 1].map(|part| u8::try_from(part).expect("an address"));
        let address = (Ipv4Addr::new(127, 1, high, low), own.port());
        listeners.push(TcpListener::bind(address).await.expect("the same port at another address"));
    }
    println!("http://{own}");
    let gone = tokio::task::spawn_blocking(|| stdin().read_to_end(&mut Vec::new()));
    let shared = Arc::new(Shared::of(world));
    tokio::select! {
        never = fake::serve(shared, Process::Main, listeners) => match never {},
        _ = gone => {}
    }
}

/// Distributes the ids over threads with one connection each, on which they use minimal HTTP.
fn load(address: &str, token: &str, concurrency: usize, what: &str) {
    let ids: Vec<String> = stdin().lock().lines().collect::<Result<_, _>>().expect("account ids");
    let start = Instant::now();
    side_by_side(address, token, concurrency, &ids, |id| {
        let id = id.replace('@', "%40").replace(':', "%3A");
        vec![format!("GET /_synapse/admin/v2/users/{id}{what}")]
    });
    println!("{}", start.elapsed().as_secs_f64());
}

/// Reads each link and its account, and deletes the link.
fn remove(address: &str, token: &str, concurrency: usize, links: &[&str]) {
    const API: &str = "/api/admin/v1";
    side_by_side(address, token, concurrency, links, |link| {
        let (link, user) = link.split_once(':').expect("a link and a user");
        vec![
            format!("GET {API}/upstream-oauth-links/{link}"),
            format!("GET {API}/users/{user}"),
            format!("DELETE {API}/upstream-oauth-links/{link}"),
        ]
    });
}

/// Sends the requests of each item, one after the other, over a connection for each thread.
fn side_by_side<T: Sync>(
    address: &str,
    token: &str,
    concurrency: usize,
    items: &[T],
    requests: impl Fn(&T) -> Vec<String> + Sync,
) {
    let left = Mutex::new(items.iter());
    thread::scope(|scope| {
        for _ in 0..concurrency {
            scope.spawn(|| {
                let stream = TcpStream::connect(address).expect("a connection");
                stream.set_nodelay(true).expect("no delay");
                let (mut answers, mut stream) = (BufReader::new(&stream), &stream);
                loop {
                    let Some(item) = left.lock().expect("a queue").next() else { return };
                    for request in requests(item) {
                        let request = format!(
                            "{request} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n"
                        );
                        stream.write_all(request.as_bytes()).expect("a request");
                        skip_answer(&mut answers);
                    }
                }
            });
        }
    });
}

fn serve_unused(accounts: usize, unused: usize) {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    let mut world = World::new();
    let now_ms = world.now().timestamp_millis();
    world.users(accounts, |number| {
        // Spread over all pages.
        let days = if number % (accounts / unused) == 0 { 200 } else { 1 };
        let seen_ms = Some(now_ms - days * DAY_MS);
        let device = Device { id: "PHONE".to_owned(), last_seen_ms: seen_ms, ..Device::default() };
        User { last_seen_ms: seen_ms, devices: vec![device], ..User::default() }
    });
    let homeserver = Fake::of(world);
    println!("{}", homeserver.url());
    for _ in stdin().lines() {
        println!("{}", homeserver.requests().len());
        homeserver.forget();
    }
}

fn serve_mas(links: usize, removed: usize) {
    let mut world = World::new();
    world.latency = Duration::from_millis(5);
    let service = &mut world.auth_service;
    service.user("microglia");
    let google = Provider { human_name: Some("Google".to_owned()), ..Provider::default() };
    let provider = service.provider(google);
    let mut pairs = Vec::new();
    for number in 0..links {
        let user = service.user(&format!("user{number:06}"));
        let link = service.link(&provider, &format!("subject-{number}"), Some(&user));
        // Spread over all pages.
        if number % (links / removed) == 0 {
            let at = Some("2026-01-01T00:00:00Z".to_owned());
            service.users.get_mut(&user).expect("a user").deactivated_at = at;
            pairs.push(format!("{link}:{user}"));
        }
    }
    let homeserver = Fake::of(world);
    let (public, internal) = homeserver.mas();
    println!("{} {} {}", homeserver.url(), public.url(), internal.url());
    println!("{}", pairs.join(" "));
    report(&homeserver, |seen| {
        let path = seen.path.strip_prefix("/api/admin/v1/").unwrap_or_default();
        path.starts_with("upstream-oauth-links/") || path.starts_with("users/0")
    });
}

/// Accounts with a device in use, of which the first `owners` have `stale` others, too.
fn serve_devices(accounts: usize, owners: usize, stale: usize) {
    let mut world = World::new();
    world.latency = Duration::from_millis(5);
    let device = |id: String, last_seen_ms| Device {
        id,
        last_seen_ms: Some(last_seen_ms),
        ..Device::default()
    };
    let now_ms = world.now().timestamp_millis();
    world.users(accounts, |number| {
        let stale = if number < owners { stale } else { 0 };
        // 2023-12-01, after the accounts were created.
        let stale = (0..stale).map(|id| device(format!("STALE{id:04}"), 1_701_388_800_000));
        let devices = stale.chain([device("INUSE".to_owned(), now_ms)]).collect();
        User { devices, ..User::default() }
    });
    let homeserver = Fake::of(world);
    println!("{}", homeserver.url());
    report(&homeserver, |seen| {
        let rest = seen.path.strip_prefix("/_synapse/admin/v2/users/").unwrap_or_default();
        seen.method == "GET"
            && rest.trim_start_matches("%40").trim_start_matches('@').starts_with("user")
    });
}

/// For each line of the standard input, prints how many requests arrived since the last one, how many of them `counts`, and
/// the seconds from the first to the last of these.
fn report(homeserver: &Fake, counts: fn(&Seen) -> bool) {
    for _ in stdin().lines() {
        let requests = homeserver.requests();
        let times: Vec<Instant> =
            requests.iter().filter(|seen| counts(seen)).map(|seen| seen.at).collect();
        let span = times.first().zip(times.last()).map(|(first, last)| *last - *first);
        let seconds = span.unwrap_or_default().as_secs_f64();
        println!("{} {} {seconds}", requests.len(), times.len());
        homeserver.forget();
    }
}

/// Reads a successful response to its end; Synapse and MAS send all of them in chunks.
fn skip_answer(answers: &mut impl BufRead) {
    let mut line = String::new();
    let mut next = || {
        line.clear();
        answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    };
    let status = next();
    while !next().is_empty() {}
    if status == "HTTP/1.1 204 No Content" {
        return;
    }
    assert_eq!(status, "HTTP/1.1 200 OK");
    loop {
        // Chunks of JSON on one line: a size, a line of text, and so on until an empty chunk.
        let chunk = next();
        assert!(usize::from_str_radix(&chunk, 16).is_ok(), "{chunk:?} is no chunk's size");
        next();
        if chunk == "0" {
            return;
        }
    }
}
