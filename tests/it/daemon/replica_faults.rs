//! What replicas do when one of them, or their database, fails at random moments, a hundred times each.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;

use super::faults::serve_with_clock;
use super::replicas::{held, replica};
use super::*;
use crate::postgres::Postgres;
use crate::program::until;

/// How often each fault happens, over all groups; `MICROGLIA_TEST_FAULTS` names another number.
const FAULTS: usize = 100;
/// Groups of replicas that fail at the same time, each with homeservers and a database of its own.
const GROUPS: usize = 5;
/// Users who are to be joined on each homeserver when a fault happens, 20 a second.
const USERS: usize = 50;

/// Replicas that share as many homeservers, one each while all is well.
struct Group {
    server: Arc<Postgres>,
    database: String,
    fakes: Vec<Fake>,
    programs: Vec<Program>,
    proxies: Vec<Proxy>,
    daemons: Vec<Option<Daemon>>,
    users: usize,
    takeovers: Vec<Duration>,
}

impl Group {
    async fn start(replicas: usize) -> Self {
        let server = tokio::task::spawn_blocking(|| Arc::new(Postgres::start())).await.unwrap();
        let url = server.database();
        let database = url.rsplit_once('/').unwrap().1.to_owned();
        let fakes: Vec<Fake> = (0..replicas).map(|_| with_lobby(0)).collect();
        let names: Vec<String> = (0..replicas).map(|number| format!("hs{number}")).collect();
        let homeservers: Vec<(&str, &Fake)> =
            names.iter().map(String::as_str).zip(fakes.iter()).collect();
        let jobs = sweep(
            "lobby",
            20,
            &format!("homeserver = [\"{}\"]\nschedule = \"* * * * * *\"", names.join("\", \"")),
        );
        let (mut programs, mut proxies) = (Vec::new(), Vec::new());
        for _ in 0..replicas {
            let proxy = Proxy::start(server.socket()).await;
            let url = format!("postgresql://postgres@127.0.0.1:{}/{database}", proxy.port);
            programs.push(replica(&url, &homeservers, &jobs));
            proxies.push(proxy);
        }
        let daemons = programs.iter().map(|_| None).collect();
        let takeovers = Vec::new();
        let mut group =
            Self { server, database, fakes, programs, proxies, daemons, users: 0, takeovers };
        for number in 0..replicas {
            group.serve(number).await;
        }
        group.until_even().await;
        group
    }

    async fn serve(&mut self, number: usize) {
        self.daemons[number] = Some(self.programs[number].serve().await);
    }

    fn daemon(&self, number: usize) -> &Daemon {
        self.daemons[number].as_ref().expect("the replica runs")
    }

    /// How many homeservers the replicas hold, but for one of them.
    async fn held_without(&self, number: usize) -> usize {
        let mut sum = 0;
        for (other, daemon) in self.daemons.iter().enumerate() {
            if let Some(daemon) = daemon.as_ref().filter(|_| other != number) {
                sum += held(daemon).await;
            }
        }
        sum
    }

    async fn until_even(&self) {
        until("an even spread", 60, async || {
            for daemon in self.daemons.iter().flatten() {
                if held(daemon).await != 1 {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// Adds users to be joined, and waits for a random moment while they are.
    async fn some_joins(&mut self) {
        let users = self.users..self.users + USERS;
        for fake in &self.fakes {
            fake.world(|world| {
                for number in users.clone() {
                    world.user(&format!("@user{number}:fake.test"));
                }
            });
        }
        self.users += USERS;
        until("a join", 60, async || {
            self.fakes.iter().all(|fake| joined(fake) > self.users - USERS)
        })
        .await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..1500))).await;
    }

    /// Waits until the others have taken over what a replica held, and notes how long after the fault that was.
    async fn until_taken_over(&mut self, number: usize, fault: Instant) {
        until("the takeover", 60, async || self.held_without(number).await == self.fakes.len())
            .await;
        self.takeovers.push(fault.elapsed());
    }

    async fn until_joined(&self) {
        until("all joins", 120, async || self.fakes.iter().all(|fake| joined(fake) == self.users))
            .await;
    }

    async fn sql(&self, statement: &str) -> String {
        let (server, database) = (Arc::clone(&self.server), self.database.clone());
        let statement = statement.to_owned();
        let run = move || server.psql(&database, &statement);
        let (succeeded, output) = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(succeeded, "{output}");
        output
    }

    async fn tell(&self, what: fn(&Postgres)) {
        let server = Arc::clone(&self.server);
        tokio::task::spawn_blocking(move || what(&server)).await.unwrap();
    }

    /// Checks, when all have stopped, that everything was done once and is recorded.
    async fn end(mut self, repeated: usize) -> Vec<Duration> {
        self.until_joined().await;
        self.until_even().await;
        for daemon in self.daemons.iter_mut().filter_map(Option::take) {
            daemon.stop().await;
        }
        let mut sent = 0;
        for fake in &self.fakes {
            sent += fake.count("POST", JOIN);
            assert_eq!(fake.complaints(), Vec::<String>::new());
        }
        let users = self.users * self.fakes.len();
        assert!((users..=users + repeated).contains(&sent), "{sent} joins of {users}");
        for (what, query) in [
            (
                "an occurrence that was run twice",
                "SELECT job, scheduled_for FROM runs WHERE outcome <> 'interrupted'
                GROUP BY 1, 2 HAVING COUNT(*) > 1",
            ),
            ("a run without an end", "SELECT id FROM runs WHERE outcome IS NULL"),
            ("a change without an end", "SELECT run, seq FROM changes WHERE state = 'making'"),
        ] {
            assert_eq!(self.sql(query).await, "", "{what}");
        }
        // Targets are the same on all homeservers.
        let recorded = self
            .sql(
                "SELECT COUNT(*) FROM (SELECT DISTINCT job, target FROM changes
                JOIN runs ON runs.id = run WHERE changes.state IN ('done', 'failed')) made",
            )
            .await;
        assert_eq!(recorded, users.to_string(), "changes that were made, and are recorded");
        self.takeovers
    }
}

/// How many faults a test makes.
#[expect(clippy::disallowed_methods, reason = "who runs the test may ask for fewer")]
fn faults() -> usize {
    std::env::var("MICROGLIA_TEST_FAULTS").map_or(FAULTS, |faults| faults.parse().unwrap())
}

/// Runs `fault` on some groups, `FAULTS` times in all; the sends that each fault may repeat are those that a replica had
/// recorded before it.
#[expect(clippy::print_stdout, reason = "figures for benches/README.md")]
async fn a_hundred_times(
    name: &str,
    replicas: usize,
    repeated_by_each: usize,
    fault: impl AsyncFn(&mut Group, usize),
) {
    let faults = faults();
    let each = faults.div_ceil(GROUPS);
    let groups = (0..faults.min(GROUPS)).map(|_| async {
        let mut group = Group::start(replicas).await;
        for _ in 0..each {
            group.some_joins().await;
            let victim = fastrand::usize(..replicas);
            fault(&mut group, victim).await;
            group.until_joined().await;
            group.until_even().await;
        }
        group.end(repeated_by_each * each).await
    });
    let mut takeovers = futures_util::future::join_all(groups).await.concat();
    takeovers.sort();
    if let [least, .., most] = takeovers[..] {
        let count = takeovers.len();
        let (half, nearly_all) = (takeovers[count / 2], takeovers[count * 95 / 100]);
        println!(
            "{name}, {replicas} replicas: takeover after {least:.2?} to {most:.2?}, median {half:.2?}, 95th percentile {nearly_all:.2?}, of {count}"
        );
    }
}

/// Connections to the database of one replica, which can be cut, or hang as where packets are lost.
struct Proxy {
    port: u16,
    state: watch::Sender<Line>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Open,
    /// Nothing passes, and nothing is closed.
    Hangs,
    /// Connections end after a random number of bytes.
    Cut,
}

impl Proxy {
    async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, line) = watch::channel(Line::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&socket).await else { continue };
                tokio::spawn(forward(client, server, line.clone()));
            }
        });
        Self { port, state }
    }

    fn set(&self, line: Line) {
        self.state.send_replace(line);
    }
}

async fn forward(
    mut client: tokio::net::TcpStream,
    mut server: UnixStream,
    mut line: watch::Receiver<Line>,
) {
    let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
    let mut left = fastrand::usize(500..20_000);
    loop {
        if line.wait_for(|line| *line != Line::Hangs).await.is_err() {
            return;
        }
        tokio::select! {
            _ = line.changed() => {}
            read = client.read(&mut from_client) => {
                let Ok(read @ 1..) = read else { return };
                if server.write_all(&from_client[..read]).await.is_err() { return }
                if *line.borrow() == Line::Cut {
                    left = left.saturating_sub(read);
                    // The answer to the last bytes is lost.
                    if left == 0 { return }
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&from_server[..read]).await.is_err() { return }
            }
        }
    }
}

async fn kill(group: &mut Group, victim: usize) {
    let fault = Instant::now();
    group.daemons[victim].take().expect("the replica runs").kill().await;
    group.until_taken_over(victim, fault).await;
    group.until_joined().await;
    group.serve(victim).await;
}

#[tokio::test]
#[ignore = "minutes: run by TRY_ALL=1 .ci/run"]
async fn two_replicas_of_which_one_is_killed_do_everything_once() {
    a_hundred_times("kill -9", 2, 0, kill).await;
}

#[tokio::test]
#[ignore = "minutes: run by TRY_ALL=1 .ci/run"]
async fn three_replicas_of_which_one_is_killed_do_everything_once() {
    a_hundred_times("kill -9", 3, 0, kill).await;
}

#[tokio::test]
#[ignore = "minutes: run by TRY_ALL=1 .ci/run"]
async fn replicas_of_which_one_is_stopped_do_everything_once() {
    a_hundred_times("SIGTERM", 2, 0, async |group, victim| {
        let daemon = group.daemons[victim].take().expect("the replica runs");
        let fault = Instant::now();
        // It ends its run first.
        let stopped = tokio::spawn(daemon.stop());
        group.until_taken_over(victim, fault).await;
        stopped.await.unwrap();
        group.serve(victim).await;
    })
    .await;
}

#[tokio::test]
#[ignore = "minutes: run by TRY_ALL=1 .ci/run"]
async fn replicas_of_which_one_is_frozen_for_half_a_minute_do_everything_once() {
    a_hundred_times("SIGSTOP", 2, 1, async |group, victim| {
        let fault = Instant::now();
        group.daemon(victim).signal("STOP");
        group.until_taken_over(victim, fault).await;
        tokio::time::sleep(Duration::from_secs(30).saturating_sub(fault.elapsed())).await;
        group.daemon(victim).signal("CONT");
    })
    .await;
}

#[tokio::test]
#[ignore = "minutes: run by TRY_ALL=1 .ci/run"]
async fn replicas_whose_database_restarts_do_everything_once() {
    a_hundred_times("restart of PostgreSQL", 2, 2, async |group, _| {
        group.tell(Postgres::stop).await;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..25_000))).await;
        group.tell(Postgres::start_again).await;
    })
    .await;
}

#[tokio::test]
#[ignore = "minutes: run by TRY_ALL=1 .ci/run"]
async fn replicas_whose_connections_are_cut_in_mid_transaction_do_everything_once() {
    a_hundred_times("connections cut", 2, 2, async |group, _| {
        group.proxies.iter().for_each(|proxy| proxy.set(Line::Cut));
        tokio::time::sleep(Duration::from_secs(5)).await;
        group.proxies.iter().for_each(|proxy| proxy.set(Line::Open));
    })
    .await;
}

#[tokio::test]
#[ignore = "minutes: run by TRY_ALL=1 .ci/run"]
async fn replicas_of_which_one_loses_the_database_but_not_the_homeserver_do_everything_once() {
    a_hundred_times("no route to the database", 2, 1, async |group, victim| {
        let fault = Instant::now();
        group.proxies[victim].set(Line::Hangs);
        group.until_taken_over(victim, fault).await;
        group.until_joined().await;
        group.proxies[victim].set(Line::Open);
    })
    .await;
}

#[tokio::test]
#[ignore = "it needs faketime(1), which `apt-get install faketime` brings"]
async fn replicas_whose_clocks_are_an_hour_apart_run_no_occurrence_twice_and_warn() {
    let mut group = Group::start(2).await;
    group.daemons[1].take().expect("the replica runs").stop().await;
    group.daemons[1] = Some(serve_with_clock(&group.programs[1], "+1h").await);
    group.until_even().await;
    let warning = "the clock of this machine is 36";
    until_log(group.daemon(1), warning).await;
    assert!(!group.daemon(0).log().contains(warning), "{}", group.daemon(0).log());
    group.some_joins().await;
    group.daemons[1].take().expect("the replica runs").kill().await;
    until("the takeover", 60, async || held(group.daemon(0)).await == 2).await;
    // For an hour it only meets occurrences that the other one has run.
    let twice = "SELECT job, scheduled_for FROM runs WHERE outcome <> 'interrupted'
        GROUP BY 1, 2 HAVING COUNT(*) > 1";
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(group.sql(twice).await, "");
    }
    group.daemons[0].take().expect("the replica runs").stop().await;
    assert_eq!(group.sql("SELECT id FROM runs WHERE outcome IS NULL").await, "");
}
