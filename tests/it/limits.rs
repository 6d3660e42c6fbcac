//! What is limited for a homeserver as a whole, whatever job, process or name it is reached by.

use std::time::{Duration, Instant};

use crate::fake::{Fake, TOKEN, User};
use crate::program::{Program, until};

const LATENCY: Duration = Duration::from_millis(20);

/// A homeserver of accounts with an id of each of two providers, which answers no sooner than `LATENCY`.
fn with_ids(users: usize) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        let user = |i| {
            User::default().external("saml", &format!("s{i}")).external("cas", &format!("c{i}"))
        };
        world.users(users, user);
        world.latency = LATENCY;
    });
    fake
}

/// A homeserver with generous limits, and a job for each of the two providers.
fn two_jobs(fake: &Fake) -> Program {
    let job = |name: &str, provider: &str| {
        format!(
            "[jobs.{name}]\nkind = \"remove-external-ids\"\nmode = \"apply\"\nproviders = [\"{provider}\"]\naccounts = \"all\"\n"
        )
    };
    let limits = "max_concurrent_requests = 8\nmax_concurrent_runs = 2\n\n";
    Program::new(
        &fake.url(),
        TOKEN,
        &format!("{limits}{}{}", job("saml", "saml"), job("cas", "cas")),
    )
}

/// How many changes of external ids were sent before the one before was answered.
fn overlapping(fake: &Fake) -> usize {
    let mut sent: Vec<Instant> =
        fake.requests().iter().filter(|seen| seen.method == "PUT").map(|seen| seen.at).collect();
    sent.sort_unstable();
    sent.windows(2).filter(|pair| pair[1] - pair[0] < LATENCY).count()
}

fn left(fake: &Fake) -> usize {
    fake.world(|world| world.users.values().map(|user| user.external_ids.len()).sum())
}

#[tokio::test]
async fn a_run_changes_external_ids_one_at_a_time_whatever_its_limits() {
    let fake = with_ids(12);
    let program = two_jobs(&fake);
    let run = program.run(&["run", "saml"]).await;
    assert_eq!((run.code, fake.count("PUT", "/")), (0, 24), "{run:?}");
    assert_eq!(overlapping(&fake), 0);
}

#[tokio::test]
async fn two_runs_of_a_daemon_change_external_ids_one_at_a_time() {
    let fake = with_ids(12);
    let program = two_jobs(&fake);
    let daemon = program.serve().await;
    let runs = tokio::join!(program.run(&["run", "saml"]), program.run(&["run", "cas"]));
    assert_eq!((runs.0.code, runs.1.code, left(&fake)), (0, 0, 0), "{runs:?}");
    assert_eq!((fake.count("PUT", "/"), overlapping(&fake)), (48, 0), "{}", daemon.log());
    daemon.stop().await;
}

#[tokio::test]
async fn two_processes_change_external_ids_one_at_a_time_and_read_side_by_side() {
    let fake = with_ids(12);
    let program = two_jobs(&fake);
    let runs = tokio::join!(program.run(&["run", "saml"]), program.run(&["run", "cas"]));
    assert_eq!((runs.0.code, runs.1.code, left(&fake)), (0, 0, 0), "{runs:?}");
    assert_eq!((fake.count("PUT", "/"), overlapping(&fake)), (48, 0), "{runs:?}");
    assert!(fake.max_concurrent() > 1, "accounts are read side by side");
}

#[tokio::test]
async fn a_run_that_waits_to_change_external_ids_says_so_and_can_be_cancelled() {
    let fake = with_ids(3);
    fake.world(|world| world.latency = Duration::ZERO);
    fake.fault(crate::fake::Fault::new("PUT", "/", crate::fake::Trouble::Hang));
    let program = two_jobs(&fake);
    let daemon = program.serve().await;
    let first = program.command(&["run", "saml"]).spawn().unwrap();
    until("the first change is sent", 20, async || fake.count("PUT", "/") == 1).await;
    let second = program.command(&["run", "cas"]).spawn().unwrap();
    super::daemon::until_log(&daemon, "waits for another run's changes of external ids to end")
        .await;
    let cancelled = program.run(&["cancel", "cas"]).await;
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    let second = second.wait_with_output().await.unwrap();
    let stdout = String::from_utf8_lossy(&second.stdout).into_owned();
    assert!(stdout.contains("cancelled after") && stdout.contains("3 planned"), "{stdout}");
    assert_eq!(fake.count("PUT", "/"), 1);
    drop(first);
    daemon.kill().await;
}

#[tokio::test]
async fn a_request_that_sets_external_ids_waits_in_the_same_line() {
    let fake = with_ids(1);
    fake.world(|world| world.latency = Duration::ZERO);
    fake.fault(crate::fake::Fault::new("PUT", "/", crate::fake::Trouble::Hang));
    let program = two_jobs(&fake);
    let put = "[jobs.put]\nkind = \"request\"\nmode = \"apply\"\nmethod = \"PUT\"\npath = \"/_synapse/admin/v2/users/@user000000:fake.test\"\nbody = { external_ids = [] }\n";
    program.write("microglia.toml", &format!("{}{put}", program.read("microglia.toml")));
    let daemon = program.serve().await;
    let removal = program.command(&["run", "saml"]).spawn().unwrap();
    until("the first change is sent", 20, async || fake.count("PUT", "/") == 1).await;
    let request = program.command(&["run", "put"]).spawn().unwrap();
    super::daemon::until_log(&daemon, "waits for another run's changes of external ids to end")
        .await;
    assert_eq!(fake.count("PUT", "/"), 1);
    drop((removal, request));
    daemon.kill().await;
}
