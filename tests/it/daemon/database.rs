//! A history in PostgreSQL: its URL, what its loss does and does not do, and copying it from and to SQLite.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;

use super::*;
use crate::fake::TOKEN;
use crate::postgres::{self, Postgres};
use crate::program::{on_postgres, until};

fn with_database(fake: &Fake, url: &str, jobs: &str) -> Program {
    let config = format!(
        "[daemon]\nstate_dir = \"state\"\ndatabase_url = \"{url}\"\n\n[homeservers.main]\nurl = \"{}\"\naccess_token_file = \"token\"\nmax_requests_per_second = \"unlimited\"\nmax_joins_per_second = \"unlimited\"\n\n{jobs}",
        fake.url()
    );
    let program = Program::with_database(Some(url.to_owned()), &config);
    program.write("token", TOKEN);
    program
}

/// A server for one test, started and stopped off the threads of the runtime.
async fn server() -> Arc<Postgres> {
    tokio::task::spawn_blocking(|| Arc::new(Postgres::start())).await.unwrap()
}

async fn told(server: &Arc<Postgres>, what: fn(&Postgres)) {
    let server = Arc::clone(server);
    tokio::task::spawn_blocking(move || what(&server)).await.unwrap();
}

#[tokio::test]
async fn an_unusable_url_of_a_database_is_told_with_its_place_and_without_its_password() {
    if on_postgres() {
        return;
    }
    for (url, why) in [
        ("mysql://a:hunter2@h/d", "the URL must begin with postgres:// or postgresql://"),
        ("postgres://a:hunter2@h", "name the database in the URL"),
        ("postgres:///d?password=hunter2", "name the host or the directory of the Unix socket"),
        ("postgres://a:hunter2@h:port/d", "invalid URL of a database (invalid port number)"),
        ("postgres://a:hunter2@h:0/d", "the port of the database must not be 0"),
        ("postgres://a:hunter2%@h/d", "the password in the URL of the database has a % that"),
        (
            "postgres://a:hunter2@h/d?sslmode=allow",
            "sslmode must be one of disable, prefer, require",
        ),
        ("postgres://a:hunter2@h/d?sslrootcert=/ca", "sslrootcert needs sslmode=verify-full"),
        ("postgres://a:hunter2@h/d?hunter2=1", "unknown parameter in the URL of the database"),
    ] {
        let homeserver =
            "[homeservers.main]\nurl = \"http://127.0.0.1:1\"\naccess_token_file = \"token\"\n";
        for inline in [true, false] {
            let key = if inline { "database_url" } else { "database_url_file" };
            let value = if inline { url } else { "database" };
            let config =
                format!("[daemon]\nstate_dir = \"state\"\n{key} = \"{value}\"\n{homeserver}");
            let program = Program::with_database(None, &config);
            program.write("token", TOKEN);
            program.write("database", url);
            let output = program.run(&["check"]).await;
            assert_eq!(output.code, 2, "{url}: {output:?}");
            let place = format!("microglia.toml:3:{}: ", key.len() + 4);
            assert!(output.stderr.contains(&place), "{url}: {output:?}");
            assert!(output.stderr.contains(why), "{url}: {output:?}");
            assert!(!output.stderr.contains("hunter2"), "{output:?}");
        }
    }
}

#[tokio::test]
async fn a_database_that_does_not_answer_is_told_without_its_password() {
    let fake = with_lobby(1);
    let url = "postgresql://microglia:hunter2@127.0.0.1:1/history";
    let program = with_database(&fake, url, &sweep("lobby", 50, ""));
    let runs = program.run(&["runs"]).await;
    let told = "the history cannot be read: the database postgresql://microglia@127.0.0.1:1/history cannot be used: ";
    assert!(runs.code == 1 && runs.stderr.contains(told), "{runs:?}");
    let run = program.json(&["run", "lobby", "--json"]).await;
    assert_eq!(run["outcome"], "refused", "{run}");
    assert!(!format!("{runs:?}{run}").contains("hunter2"), "{runs:?} {run}");
    assert_eq!(joined(&fake), 0);
    // A change requires a restart.
    let daemon = program.serve().await;
    edit(&program, ":1/history", ":2/history");
    let reload = program.run(&["reload"]).await;
    let need = "daemon.database_url: the present history stays in use until a restart";
    assert!(format!("{reload:?}").contains(need), "{reload:?}");
    assert!(!daemon.stop().await.contains("hunter2"));
}

#[tokio::test]
async fn a_database_that_is_lost_in_mid_run_ends_and_refuses_changes_and_all_recovers_by_itself() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(100);
    let jobs = [sweep("lobby", 50, ""), ping("looks", "schedule = \"* * * * * *\"")].concat();
    let server = server().await;
    let program = with_database(&fake, &server.database(), &jobs);
    let daemon = program.serve().await;
    assert_eq!(daemon.get("/readyz").await.0, 200);
    let run = program.command(&["run", "lobby", "--json"]).spawn().unwrap();
    until("some joins", 20, async || joined(&fake) >= 10).await;
    told(&server, Postgres::stop).await;
    let run = run.wait_with_output().await.unwrap();
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("what cannot be recorded is not done"), "{message}");
    let (before, done) = (joined(&fake), report["done"].as_u64().unwrap());
    // Beside those recorded, the one in flight.
    let done = usize::try_from(done).unwrap();
    assert!(before == done || before == done + 1, "{before} and {report}");
    let (status, why) = daemon.get("/readyz").await;
    assert!(status == 503 && why.contains("cannot be used"), "{status} {why}");
    assert_eq!(daemon.get("/healthz").await.0, 200);
    let again = program.json(&["run", "lobby", "--json"]).await;
    assert_eq!(again["outcome"], "refused", "{again}");
    assert_eq!(joined(&fake), before);
    let dry = program.dry_run("lobby").await;
    assert_eq!((&dry["outcome"], &dry["id"]), (&"succeeded".into(), &Value::Null), "{dry}");
    let ran = async || {
        let labels = ["mode=\"dry-run\"", "outcome=\"succeeded\""];
        daemon.of_job("looks", "microglia_job_runs_total", &labels).await
    };
    let so_far = ran().await;
    until("the schedule goes on", 40, async || ran().await > so_far).await;
    told(&server, Postgres::start_again).await;
    until("it is ready", 20, async || daemon.get("/readyz").await.0 == 200).await;
    // What could not be recorded then is recorded by itself.
    until("the end of the first run", 20, async || {
        program.runs("lobby").await[0]["outcome"] == report["outcome"]
    })
    .await;
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    assert_eq!((joined(&fake), fake.count("POST", JOIN)), (100, 100));
    daemon.stop().await;
}

#[tokio::test]
async fn a_database_that_is_down_at_the_start_is_opened_when_it_comes_back() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(3);
    let server = server().await;
    let program =
        with_database(&fake, &server.database(), &sweep("lobby", 50, "schedule = \"* * * * * *\""));
    told(&server, Postgres::stop).await;
    let daemon = program.serve().await;
    let (status, why) = daemon.get("/readyz").await;
    assert!(status == 503 && why.contains("the history cannot be opened"), "{status} {why}");
    assert_eq!(joined(&fake), 0);
    told(&server, Postgres::start_again).await;
    until_log(&daemon, "the history is open").await;
    until("what was refused", 20, async || joined(&fake) == 3).await;
    assert_eq!(daemon.get("/readyz").await.0, 200);
    daemon.stop().await;
}

/// Between the program and PostgreSQL; cuts connections after so many bytes of the client, or all at once.
pub(super) struct Proxy {
    pub(super) port: u16,
    cut: watch::Sender<u32>,
    cuts: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Each connection is cut after a random number of bytes up to `most`.
    pub(super) async fn start(socket: PathBuf, most: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, cuts) = (watch::channel(0).0, Arc::new(AtomicUsize::new(0)));
        let (ends, counted) = (cut.clone(), Arc::clone(&cuts));
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let Ok(mut server) = UnixStream::connect(&socket).await else { continue };
                let (mut end, counted) = (ends.subscribe(), Arc::clone(&counted));
                let lifetime = fastrand::usize(most / 10..most);
                tokio::spawn(async move {
                    tokio::select! {
                        _ = end.changed() => {}
                        () = forward(&mut client, &mut server, lifetime) => {}
                    }
                    counted.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        Self { port, cut, cuts, accepting }
    }

    /// Cuts all connections, and accepts no more.
    pub(super) fn close(&self) {
        self.accepting.abort();
        self.cut_all();
    }

    fn cut_all(&self) {
        self.cut.send_modify(|times| *times += 1);
    }
}

/// Forwards both ways until the client has sent so many bytes; the answer to the last of them is lost.
async fn forward(client: &mut tokio::net::TcpStream, server: &mut UnixStream, lifetime: usize) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
    let mut sent = 0;
    while sent < lifetime {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(read @ 1..) = read else { return };
                if server.write_all(&from_client[..read]).await.is_err() { return }
                sent += read;
            }
            read = server.read(&mut from_server) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&from_server[..read]).await.is_err() { return }
            }
        }
    }
}

#[tokio::test]
async fn connections_that_are_cut_in_mid_transaction_lose_no_record_and_repeat_nothing() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(300);
    let server = postgres::server();
    let direct = server.database();
    let database = direct.rsplit_once('/').unwrap().1.to_owned();
    let jobs = sweep("lobby", 10_000, "");
    // Its tables are there before connections are cut.
    let program = with_database(&fake, &direct, &jobs);
    assert_eq!(program.run(&["run", "lobby", "--dry-run"]).await.code, 0);
    let proxy = Proxy::start(server.socket(), 60_000).await;
    let url = format!("postgresql://postgres@127.0.0.1:{}/{database}", proxy.port);
    let program = with_database(&fake, &url, &jobs);
    let daemon = program.serve().await;
    let mut runs = 0;
    while joined(&fake) < 300 {
        // A run may find no connection twice in a row: it ends then, and the next one goes on.
        let report = program.json(&["run", "lobby", "--json"]).await;
        runs += 1;
        // On a slow machine the renewal of leases uses up more of what passes between two cuts.
        assert!(runs < 200, "{report}");
        proxy.cut_all();
    }
    assert!(proxy.cuts.load(Ordering::Relaxed) > 10, "this showed nothing");
    assert_eq!(fake.count("POST", JOIN), 300, "nobody was joined twice");
    daemon.stop().await;
    let recorded = async |state: &str| {
        let sql = format!("SELECT COUNT(*) FROM changes WHERE state = '{state}'");
        server.psql(&database, &sql).1.parse::<usize>().unwrap()
    };
    // The few whose answer could not be recorded are on record as sent.
    let (done, unknown) =
        (recorded("done").await, recorded("failed").await + recorded("making").await);
    assert!(done <= 300 && done + unknown >= 300, "{done} and {unknown} in {runs} runs");
    let (_, doubled) = server.psql(
        &database,
        "SELECT target FROM changes WHERE state = 'done' GROUP BY target HAVING COUNT(*) > 1",
    );
    assert_eq!(doubled, "");
    let open = server.psql(&database, "SELECT COUNT(*) FROM runs WHERE outcome IS NULL").1;
    assert_eq!(open, "0");
}

#[tokio::test]
async fn a_history_is_copied_to_postgresql_and_back_and_nothing_of_it_changes() {
    if on_postgres() {
        return;
    }
    let fake = with_lobby(20);
    let program = Program::with_database(None, "");
    program.write("token", TOKEN);
    let url = postgres::database();
    let config = format!(
        "[daemon]\nstate_dir = \"state\"\n[homeservers.main]\nurl = \"{}\"\naccess_token_file = \"token\"\n{}",
        fake.url(),
        sweep("lobby", 10_000, "schedule = \"@yearly\"")
    );
    program.write("microglia.toml", &config);
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    let daemon = program.serve().await;
    assert_eq!(program.run(&["pause"]).await.code, 0);
    let place = |dir: &str| format!("sqlite:{}", program.path(dir).display());
    let copy = async |from: &str, to: &str| {
        program.run(&["history", "copy", "--from", from, "--to", to]).await
    };
    let refused = copy(&place("state"), &url).await;
    assert!(
        refused.code == 1 && refused.stderr.contains("is in use: stop the daemon"),
        "{refused:?}"
    );
    daemon.stop().await;
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    let shown = async || {
        let runs = program.json(&["runs", "--json"]).await;
        let first = program.json(&["runs", "show", "1", "--json"]).await;
        let jobs = program.run(&["jobs"]).await.stdout.replace("/other:", "/state:");
        (runs, first, jobs)
    };
    let before = shown().await;
    assert!(before.2.contains("paused"), "{}", before.2);
    let copied = copy("config", &url).await;
    assert_eq!(copied.code, 0, "{copied:?}");
    assert!(copied.stdout.starts_with("copied 2 runs from "), "{copied:?}");
    let again = copy("config", &url).await;
    assert!(again.code == 1 && again.stderr.contains("is not empty (2 in runs)"), "{again:?}");
    edit(&program, "[homeservers.main]", &format!("database_url = \"{url}\"\n[homeservers.main]"));
    assert_eq!(shown().await, before);
    let daemon = program.serve().await;
    let refused = copy("config", &place("other")).await;
    assert!(refused.code == 1 && refused.stderr.contains("is in use"), "{refused:?}");
    daemon.stop().await;
    // Ids go on where they were.
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    let before = shown().await;
    assert_eq!(before.0[0]["id"], 3);
    let back = copy("config", &place("other")).await;
    assert_eq!(back.code, 0, "{back:?}");
    edit(&program, &format!("database_url = \"{url}\"\n"), "");
    edit(&program, "\"state\"", "\"other\"");
    assert_eq!(shown().await, before);
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    assert_eq!(shown().await.0[0]["id"], 4);
    let missing = copy(&place("nowhere"), &url).await;
    assert!(missing.code == 1 && missing.stderr.contains("there is no history in"), "{missing:?}");
}
