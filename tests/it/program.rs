//! The program as a user runs it: a config file in a directory of its own, the built binary, what it prints.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

/// A directory with `microglia.toml`, a token file and a state directory.
pub struct Program {
    dir: tempfile::TempDir,
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

    /// A config as it stands.
    pub fn with_config(config: &str) -> Self {
        let program = Self { dir: tempfile::tempdir().unwrap(), environment: Vec::new() };
        program.write("microglia.toml", config);
        program
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file beside the config, readable by its owner only.
    pub fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
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

/// Looks again and again until the condition holds, for at most `seconds`.
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
