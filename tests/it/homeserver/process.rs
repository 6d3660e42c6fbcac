//! The processes of a homeserver, which end with the test process, however that ends.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use tokio::task::spawn_blocking;

use super::last_lines;

const START_TIMEOUT: Duration = Duration::from_mins(3);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// A process of Synapse; it is killed where this is dropped.
pub struct Process {
    child: Child,
    /// Its end shows `synapse.py` that the test process has ended.
    stdin: ChildStdin,
}

impl Process {
    /// Returns when Synapse listens, with the port; keys of later `configs` replace those of earlier ones.
    pub async fn start(python: &Path, dir: &Path, app: &str, configs: &[&str]) -> (Self, u16) {
        let mut child = Command::new(python)
            .arg("-I")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/synapse.py"))
            .arg(app)
            .args(configs.iter().flat_map(|config| ["--config-path", config]))
            .current_dir(dir)
            // A Ctrl-C at the tests is not for Synapse: the end of its stdin is.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log(dir))
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", python.display()));
        let stdin = child.stdin.take().expect("stdin is a pipe");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let process = Self { child, stdin };
        let first_line = spawn_blocking(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).map(|_| line)
        });
        let port = match tokio::time::timeout(START_TIMEOUT, first_line).await {
            Ok(line) => line.expect("reading does not panic").ok(),
            Err(_) => None,
        };
        match port.and_then(|line| line.trim().parse().ok()) {
            Some(port) => (process, port),
            None => panic!(
                "Synapse does not start; its log ends:\n{}",
                last_lines(&dir.join("homeserver.log"))
            ),
        }
    }

    pub async fn stop(mut self) {
        self.stdin.write_all(b"stop\n").expect("stop Synapse");
        let start = Instant::now();
        while self.child.try_wait().expect("wait for Synapse").is_none() {
            assert!(start.elapsed() < STOP_TIMEOUT, "Synapse does not stop");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Another server beside Synapse, which does not know by itself when to end.
pub struct Server {
    shell: Child,
}

impl Server {
    pub fn start(dir: &Path, program: &Path, arguments: &[&str]) -> Self {
        const UNTIL_STDIN_ENDS: &str = r#""$@" </dev/null & read -r _; kill -KILL $!; wait $!"#;
        let log = log(dir);
        let shell = Command::new("sh")
            .args(["-c", UNTIL_STDIN_ENDS, "sh"])
            .arg(program)
            .args(arguments)
            .current_dir(dir)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .expect("run sh");
        Self { shell }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

fn log(dir: &Path) -> File {
    let log = OpenOptions::new().create(true).append(true).open(dir.join("homeserver.log"));
    log.expect("open homeserver.log")
}
