//! The program as a user runs it: a configuration in its own directory, the built binary, its output.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use microglia::history::state_dir::StateDir;
use microglia::history::{DatabaseUrl, Place};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::postgres;

/// Whether the tests run on PostgreSQL: `on_postgres` sets this for a second run of those that a history is about.
#[expect(clippy::disallowed_methods, reason = "a test tells its second run so")]
pub fn on_postgres() -> bool {
    std::env::var("MICROGLIA_TEST_HISTORY").is_ok_and(|on| on == "postgres")
}

/// A directory with `microglia.toml`, a token file and a state directory.
pub struct Program {
    dir: tempfile::TempDir,
    /// The database of its history, where these tests run on PostgreSQL.
    database: Option<String>,
    pub environment: Vec<(String, String)>,
}

/// What a command did.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Program {
    /// A config with one homeserver `main` at `url`, followed by `rest`.
    pub fn new(url: &str, token: &str, rest: &str) -> Self {
        let program = Self::with_config(&format!(
            "[daemon]\nstate_dir = \"state\"\n\n[homeservers.main]\nurl = \"{url}\"\naccess_token_file = \"token\"\nmax_requests_per_second = \"unlimited\"\nmax_joins_per_second = \"unlimited\"\n\n{rest}"
        ));
        program.write("token", token);
        program
    }

    /// A complete configuration.
    pub fn with_config(config: &str) -> Self {
        let database = on_postgres().then(postgres::database);
        Self::with_database(database, config)
    }

    /// A config as it stands, with the history in a database.
    pub fn with_database(database: Option<String>, config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = Self { dir, database, environment: Vec::new() };
        program.write("microglia.toml", config);
        program
    }

    /// Where its history is.
    pub fn place(&self) -> Place {
        match &self.database {
            Some(url) => DatabaseUrl::parse(&url.as_str().into()).unwrap().into(),
            None => (&StateDir::open(&self.path("state")).unwrap()).into(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file beside the config, readable by its owner only.
    pub fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        const STATE_DIR: &str = "state_dir = \"state\"\n";
        let text = match &self.database {
            Some(url) if name == "microglia.toml" && !text.contains("database_url") => {
                text.replacen(STATE_DIR, &format!("{STATE_DIR}database_url = \"{url}\"\n"), 1)
            }
            _ => text.to_owned(),
        };
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// The program with these arguments, ready to be started; it ends with the test.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("--config").arg(self.path("microglia.toml")).args(arguments);
        command
            .env_remove("RUST_LOG")
            .env_remove("MICROGLIA_CONFIG")
            .env_remove("CREDENTIALS_DIRECTORY")
            .env_remove("STATE_DIRECTORY")
            .env_remove("JOURNAL_STREAM");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().await.unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that reads its standard input.
    pub async fn run_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that refuses its arguments does not read.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that prints JSON; its exit code may be any.
    pub async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments).await;
        serde_json::from_str(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON ({error}): {output:?}"))
    }

    /// The report of `run JOB --dry-run`.
    pub async fn dry_run(&self, job: &str) -> Value {
        self.json(&["run", job, "--dry-run", "--json"]).await
    }

    /// The report of `run JOB --apply`.
    pub async fn apply(&self, job: &str) -> Value {
        self.json(&["run", job, "--apply", "--json"]).await
    }
}

/// A running `microglia serve`, killed when dropped.
pub struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
    /// Where it serves HTTP.
    pub address: String,
}

impl Program {
    /// Starts the daemon on a port of its own, and waits until it serves.
    pub async fn serve(&self) -> Daemon {
        self.serve_as(self.command(&["serve"])).await
    }

    /// Starts the daemon by a command of the test's own.
    pub async fn serve_as(&self, mut command: Command) -> Daemon {
        if !self.environment.iter().any(|(name, _)| name == "MICROGLIA_LISTEN") {
            command.env("MICROGLIA_LISTEN", "127.0.0.1:0");
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                written.lock().unwrap().extend([line.as_str(), "\n"]);
            }
        });
        let mut daemon = Daemon { child, log, address: String::new() };
        for _ in 0..600 {
            let log = daemon.log();
            if let Some((_, rest)) = log.split_once("serves http://") {
                rest.split(' ').next().unwrap().clone_into(&mut daemon.address);
                return daemon;
            }
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended ({ended:?}): {}", daemon.log());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the daemon does not serve: {}", daemon.log());
    }

    /// Writes into the history behind the program's back.
    pub async fn sql(&self, statement: &str) {
        use sqlx::{ConnectOptions, Connection, Executor};
        if let Some((_, database)) = self.database.as_ref().and_then(|url| url.rsplit_once('/')) {
            let done = postgres::server().psql(database, statement);
            assert!(done.0, "{}", done.1);
            return;
        }
        let mut database = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(self.path("state/history.db"))
            .connect()
            .await
            .unwrap();
        database.execute(sqlx::AssertSqlSafe(statement.to_owned())).await.unwrap();
        database.close().await.unwrap();
    }

    /// The recorded runs of a job, oldest first.
    pub async fn runs(&self, job: &str) -> Vec<Value> {
        let runs = self.json(&["runs", job, "--limit", "5000", "--json"]).await;
        runs.as_array().unwrap().iter().rev().cloned().collect()
    }

    /// The recorded runs of a job that ended, oldest first: trigger and outcome.
    pub async fn ended(&self, job: &str) -> Vec<String> {
        let runs = self.runs(job).await;
        let ended = runs.iter().filter(|run| !run["outcome"].is_null());
        ended
            .map(|run| {
                format!("{} {}", run["trigger"].as_str().unwrap(), run["outcome"].as_str().unwrap())
            })
            .collect()
    }
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// What it wrote into its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// The exit code, when the daemon has ended.
    pub async fn exit(&mut self) -> i32 {
        let limit = std::time::Duration::from_mins(1);
        let status = tokio::time::timeout(limit, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("it does not end: {}", self.log())).unwrap();
        status.code().unwrap_or(-1)
    }

    /// Stops it in order.
    pub async fn stop(mut self) -> String {
        self.signal("TERM");
        let code = self.exit().await;
        assert_eq!(code, 0, "{}", self.log());
        self.log()
    }

    /// Stops it as the kernel or a power cut does.
    pub async fn kill(mut self) -> String {
        self.child.kill().await.unwrap();
        self.log()
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        self.http("GET", path, &[], "").await
    }

    pub async fn get_json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub async fn post(&self, path: &str, token: &str, body: &str) -> (u16, String) {
        self.http("POST", path, &[("Authorization", &format!("Bearer {token}"))], body).await
    }

    /// One plain request; the status and the body of the response.
    pub async fn http(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, String) {
        let mut text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        for (name, value) in headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        // A server that refuses what it is sent may close before it has read all of it.
        let _ = stream.write_all(format!("{text}\r\n{body}").as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).unwrap_or_else(|| panic!("no response: {head:?}"));
        (status.parse().unwrap(), body.to_owned())
    }

    /// The value of the one series of that name that carries all the labels, written `name="value"`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let (_, text) = self.get("/metrics").await;
        let fitting: Vec<&str> = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .collect();
        assert!(fitting.len() < 2, "{name} {labels:?} is several: {fitting:#?}");
        fitting.first().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// The value of a job's series; 0 where it is absent.
    pub async fn of_job(&self, job: &str, name: &str, labels: &[&str]) -> f64 {
        let job = format!("job_name=\"{job}\"");
        let labels: Vec<&str> = labels.iter().copied().chain([job.as_str()]).collect();
        self.metric(name, &labels).await.unwrap_or(0.0)
    }
}

/// Sends a signal by its name.
pub fn signal(pid: u32, name: &str) {
    let kill = format!("kill -{name} {pid}");
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_microglia"))
}

/// `state target (count): detail` of each change of a report, sorted.
pub fn changes(report: &Value) -> Vec<String> {
    let mut lines: Vec<String> = report["changes"]
        .as_array()
        .unwrap_or_else(|| panic!("no changes in {report}"))
        .iter()
        .map(|change| {
            let detail =
                change["detail"].as_str().map(|detail| format!(": {detail}")).unwrap_or_default();
            format!(
                "{} {} ({}){detail}",
                change["state"].as_str().unwrap(),
                change["target"].as_str().unwrap(),
                change["count"]
            )
        })
        .collect();
    lines.sort();
    lines
}

/// `outcome: planned/done/failed/skipped/remaining` of a report.
pub fn figures(report: &Value) -> String {
    let figure = |name: &str| report[name].to_string();
    format!(
        "{}: {}/{}/{}/{}/{}",
        report["outcome"].as_str().unwrap_or("running"),
        figure("planned"),
        figure("done"),
        figure("failed"),
        figure("skipped"),
        figure("remaining")
    )
}

/// Polls until the condition holds, for at most `seconds`.
pub async fn until<F: Future<Output = bool>>(
    what: &str,
    seconds: u64,
    mut condition: impl FnMut() -> F,
) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while !condition().await {
        assert!(std::time::Instant::now() < end, "{what}: not within {seconds} s");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
