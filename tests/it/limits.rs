//! Limits of a homeserver as a whole, whatever job, process or name uses it.

use std::time::{Duration, Instant};

use crate::fake::{Fake, Fault, TOKEN, Trouble, User};
use crate::program::{Program, until};

const LATENCY: Duration = Duration::from_millis(20);

/// A homeserver of accounts with an id of each of two providers, which responds no sooner than `LATENCY`.
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

/// How many changes of external ids were sent before the response to the previous one.
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
async fn two_processes_change_external_ids_one_at_a_time_but_read_concurrently() {
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
    fake.fault(Fault::new("PUT", "/", Trouble::Hang));
    let program = two_jobs(&fake);
    let daemon = program.serve().await;
    let first = program.command(&["run", "saml"]).spawn().unwrap();
    until("the first change is sent", 20, async || fake.count("PUT", "/") == 1).await;
    let second = program.command(&["run", "cas"]).spawn().unwrap();
    super::daemon::until_log(&daemon, "waiting for another run's changes of external ids to end")
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
async fn a_request_that_sets_external_ids_waits_in_the_same_queue() {
    let fake = with_ids(1);
    fake.world(|world| world.latency = Duration::ZERO);
    fake.fault(Fault::new("PUT", "/", Trouble::Hang));
    let program = two_jobs(&fake);
    let put = "[jobs.put]\nkind = \"request\"\nmode = \"apply\"\nmethod = \"PUT\"\npath = \"/_synapse/admin/v2/users/@user000000:fake.test\"\nbody = { external_ids = [] }\n";
    program.write("microglia.toml", &format!("{}{put}", program.read("microglia.toml")));
    let daemon = program.serve().await;
    let removal = program.command(&["run", "saml"]).spawn().unwrap();
    until("the first change is sent", 20, async || fake.count("PUT", "/") == 1).await;
    let request = program.command(&["run", "put"]).spawn().unwrap();
    super::daemon::until_log(&daemon, "waiting for another run's changes of external ids to end")
        .await;
    assert_eq!(fake.count("PUT", "/"), 1);
    drop((removal, request));
    daemon.kill().await;
}

/// A homeserver that never responds to changes, and two jobs that send some.
fn hanging(fake: &Fake, homeservers: &str) -> Program {
    fake.world(|world| world.latency = Duration::ZERO);
    fake.fault(Fault::new("PUT", "/", Trouble::Hang).always());
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n\n{homeservers}\n\
         [jobs.saml]\nkind = \"remove-external-ids\"\nmode = \"apply\"\nhomeserver = \"main\"\nproviders = [\"saml\"]\naccounts = \"all\"\n"
    ));
    program.write("token", TOKEN);
    program
}

fn homeserver(name: &str, url: &str, keys: &str) -> String {
    format!("[homeservers.{name}]\nurl = \"{url}\"\naccess_token_file = \"token\"\n{keys}\n")
}

/// A job that asks one harmless question on a homeserver.
fn ping(homeserver: &str) -> String {
    format!(
        "[jobs.ping]\nkind = \"request\"\nmode = \"apply\"\nhomeserver = \"{homeserver}\"\nmethod = \"GET\"\npath = \"/_matrix/client/versions\"\n"
    )
}

#[tokio::test]
async fn a_reload_that_renames_a_homeserver_gives_it_no_second_set_of_limits() {
    let fake = with_ids(1);
    let program = hanging(&fake, &homeserver("main", &fake.url(), ""));
    let daemon = program.serve().await;
    let first = program.command(&["run", "saml"]).spawn().unwrap();
    until("the first change is sent", 20, async || fake.count("PUT", "/") == 1).await;
    // The old name was removed, and its job with it: that run ends after the response to its change.
    program.write(
        "microglia.toml",
        &format!(
            "[daemon]\nstate_dir = \"state\"\n{}{}",
            homeserver("other", &format!("{}/", fake.url()), ""),
            ping("other")
        ),
    );
    let reloaded = program.run(&["reload"]).await;
    assert_eq!(reloaded.code, 0, "{reloaded:?}");
    let second = program.command(&["run", "ping"]).spawn().unwrap();
    super::daemon::until_log(&daemon, "waiting for another run on other to end").await;
    drop((first, second));
    daemon.kill().await;
}

#[tokio::test]
async fn a_run_from_before_a_rename_shares_its_requests_with_those_after_it() {
    let fake = with_ids(3);
    let jobs = |name: &str| {
        let keys = "max_concurrent_requests = 1\nmax_concurrent_runs = 2";
        let job = |provider: &str| {
            format!(
                "[jobs.{provider}]\nkind = \"remove-external-ids\"\nproviders = [\"{provider}\"]\naccounts = \"all\"\n"
            )
        };
        format!(
            "[daemon]\nstate_dir = \"state\"\n{}{}{}",
            homeserver(name, &fake.url(), keys),
            job("saml"),
            job("cas")
        )
    };
    let program = Program::with_config(&jobs("main"));
    program.write("token", TOKEN);
    let daemon = program.serve().await;
    until("the probe is over", 20, async || {
        daemon.metric("microglia_homeserver_info", &[]).await == Some(1.0)
    })
    .await;
    fake.forget();
    let account = "/_synapse/admin/v2/users/@user";
    let slow = Trouble::Delay(Duration::from_secs(3));
    fake.fault(Fault::new("GET", account, slow));
    let first = program.command(&["run", "saml"]).spawn().unwrap();
    until("the first run reads", 20, async || fake.count("GET", account) == 1).await;
    program.write("microglia.toml", &jobs("other"));
    let reloaded = program.run(&["reload"]).await;
    assert_eq!(reloaded.code, 0, "{reloaded:?}");
    let second = program.run(&["run", "cas"]).await;
    let first = first.wait_with_output().await.unwrap();
    assert_eq!((first.status.code(), second.code), (Some(0), 0), "{first:?} {second:?}");
    assert_eq!(fake.max_concurrent(), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn two_names_for_one_address_share_its_runs_and_the_check_says_so() {
    let fake = with_ids(1);
    let homeservers = [
        homeserver("main", &fake.url(), "max_concurrent_runs = 3"),
        homeserver("other", &format!("{}/", fake.url()), ""),
        ping("other"),
    ];
    let mut program = hanging(&fake, &homeservers.concat());
    let checked = program.run(&["check"]).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    let warning =
        "warning: `other` has the same address as `main`: they share the lower of each limit";
    assert!(checked.stderr.contains(&warning.replace("warning: ", "")), "{checked:?}");
    // Without a daemon the two runs are processes of their own.
    program.environment.push(("RUST_LOG".to_owned(), "info".to_owned()));
    let first = program.command(&["run", "saml"]).spawn().unwrap();
    until("the first change is sent", 20, async || fake.count("PUT", "/") == 1).await;
    let log = std::fs::File::create(program.path("log")).unwrap();
    let second = program.command(&["run", "ping"]).stderr(log).spawn().unwrap();
    until("the second run waits", 20, async || {
        program.read("log").contains("waiting for another run on other to end")
    })
    .await;
    drop((first, second));
}

const USERS: &str = "/_synapse/admin/v2/users/@user";

/// A homeserver whose request rate the program determines, with a job that reads every account.
fn with_auto_rate(fake: &Fake) -> Program {
    Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n\n[homeservers.main]\nurl = \"{}\"\naccess_token = \"{TOKEN}\"\nmax_requests_per_second = \"auto\"\n\n\
         [jobs.ids]\nkind = \"remove-external-ids\"\nproviders = [\"saml\"]\naccounts = \"all\"\n",
        fake.url()
    ))
}

#[tokio::test]
async fn with_auto_a_failed_request_halves_the_rate_and_the_next_run_starts_anew() {
    let fake = Fake::start();
    fake.world(|world| world.users(8, |_| User::default()));
    let program = with_auto_rate(&fake);
    let daemon = program.serve().await;
    let limit = async || daemon.metric("microglia_homeserver_request_rate_limit", &["main"]).await;
    assert_eq!(limit().await, Some(50.0));
    fake.fault(Fault::new("GET", USERS, Trouble::Proxy(502)));
    assert_eq!(program.run(&["run", "ids"]).await.code, 0);
    assert_eq!(limit().await, Some(25.0));
    let log = daemon.log();
    assert!(log.contains("main: the request rate is now 25 per second, it was 50"), "{log}");
    assert_eq!(program.run(&["run", "ids"]).await.code, 0);
    assert_eq!(limit().await, Some(50.0));
    let config = program.read("microglia.toml").replace("\"auto\"", "\"unlimited\"");
    program.write("microglia.toml", &config);
    assert_eq!(program.run(&["reload"]).await.code, 0);
    assert_eq!(limit().await, None);
    daemon.stop().await;
}

#[tokio::test]
async fn with_auto_the_rate_rises_and_the_summary_shows_it() {
    let fake = Fake::start();
    fake.world(|world| {
        world.users(400, |_| User::default());
        world.latency = Duration::from_millis(1);
    });
    let report = with_auto_rate(&fake).dry_run("ids").await;
    let message = report["message"].as_str().unwrap();
    let (_, figures) = message.split_once("allowed request rate: ").unwrap();
    let (mean, peak) = figures.split_once(" per second on average, ").unwrap();
    let mean: f64 = mean.parse().unwrap();
    let peak: f64 = peak.strip_suffix(" at its peak").unwrap().parse().unwrap();
    assert!(mean <= peak && peak <= 1000.0, "{message}");
}
