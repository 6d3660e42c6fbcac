//! The config file: TOML text to settings and jobs, or every mistake with its place.

mod entries;
mod parser;
mod place;
mod secrets;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use toml::de::DeTable;

pub use entries::{CommonKeys, DaemonKeys, HeadKeys, HomeserverKeys, Overlap, Retries, TABLES};
pub use place::{Found, NotLoaded, content};

use crate::jobs::job::AnyJob;
use crate::synapse::{Address, LimitValues, Limits, Settings, Token};
use crate::values::clock::Timestamp;
use crate::values::duration::HumanDuration;
use crate::values::schedule::{Schedule, Zone};
use crate::values::schema::{ConfigError, Limit, Rate};
use parser::Parser;
use secrets::Secrets;

/// A config that was read whole and without a mistake.
#[derive(Debug)]
pub struct Config {
    pub daemon: Daemon,
    pub homeservers: BTreeMap<String, Homeserver>,
    /// One for each job and homeserver, in the order of their names.
    pub jobs: Vec<JobSpec>,
    /// What is no mistake and should be looked at all the same.
    pub warnings: Vec<Found>,
    /// Secrets that were read from systemd's credentials, which do not change while the service runs.
    pub from_credentials: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Daemon {
    pub listen: SocketAddr,
    pub timezone: Zone,
    pub state_dir: PathBuf,
    pub shutdown_grace: HumanDuration,
    pub keep_history: HumanDuration,
    pub watch_config: Option<HumanDuration>,
    /// Names under which the HTTP API is served, in lower case.
    pub allowed_hosts: Vec<String>,
    pub admin_token_file: Option<PathBuf>,
    pub admin_token: Option<SecretString>,
}

/// A homeserver as the config describes it.
#[derive(Debug, Clone)]
pub struct Homeserver {
    pub name: String,
    pub keys: HomeserverKeys,
    token_file: Option<PathBuf>,
    token: SecretString,
    ca: Option<Vec<u8>>,
}

/// A job on one homeserver.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Unique; `job@homeserver` where the config names several homeservers.
    pub name: String,
    pub homeserver: String,
    pub schedule: Option<Schedule>,
    pub zone: Zone,
    pub common: CommonKeys,
    pub job: Arc<dyn AnyJob>,
    /// Whether the homeserver keeps its media in object storage, where Synapse deletes nothing.
    pub media_in_object_storage: bool,
    /// From the job's name and the homeserver's URL: two homeservers with the same jobs are not asked at the same moment.
    pub splay_seed: u64,
}

/// What the environment says where the config is silent.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    pub listen: Option<String>,
    pub state_directory: Option<PathBuf>,
    pub credentials_directory: Option<PathBuf>,
}

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8749);
const STATE_DIR: &str = "/var/lib/microglia";

impl Config {
    /// Reads the file and everything that it names.
    pub fn load(path: &Path, environment: &Environment, now: Timestamp) -> Result<Self, NotLoaded> {
        Self::parse(path, environment, now, Secrets::new(path, environment))
    }

    /// Reads the file alone: for who asks no homeserver, and may not be allowed to read the secrets.
    ///
    /// Tokens from files are empty then, and certificates missing.
    pub fn load_without_secrets(
        path: &Path,
        environment: &Environment,
        now: Timestamp,
    ) -> Result<Self, NotLoaded> {
        Self::parse(path, environment, now, Secrets::unread(path))
    }

    fn parse(
        path: &Path,
        environment: &Environment,
        now: Timestamp,
        secrets: Secrets,
    ) -> Result<Self, NotLoaded> {
        let text = &place::read(path)?;
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut mistakes: Vec<ConfigError> = errors.iter().map(place::syntax).collect();
        let broken = errors.iter().any(|error| !error.message().contains("duplicate key"));
        let mut parser =
            Parser { path, environment, now, mistakes: Vec::new(), warnings: Vec::new(), secrets };
        let config = if broken { None } else { parser.config(root.get_ref()) };
        mistakes.append(&mut parser.mistakes);
        mistakes.sort_by(|a, b| {
            (a.span.start, a.span.end, &a.text).cmp(&(b.span.start, b.span.end, &b.text))
        });
        mistakes.dedup();
        match config {
            Some(mut config) if mistakes.is_empty() => {
                parser.warnings.sort_by_key(|warning| warning.span.start);
                config.warnings =
                    parser.warnings.iter().map(|warning| Found::at(path, text, warning)).collect();
                config.from_credentials = parser.secrets.from_credentials;
                Ok(config)
            }
            _ => Err(NotLoaded::mistakes(path, text, &mistakes)),
        }
    }

    /// How many runs an address takes at a time, and how fast it may be asked.
    ///
    /// Where several homeservers have the address, they share the lowest of their limits.
    pub fn limits(&self, address: &Address) -> Option<(u32, LimitValues)> {
        self.homeservers
            .values()
            .filter(|homeserver| homeserver.address() == *address)
            .map(|homeserver| (homeserver.keys.max_concurrent_runs, homeserver.limit_values()))
            .reduce(|(runs, one), (other_runs, other)| {
                let values = LimitValues {
                    max_concurrent_requests: one
                        .max_concurrent_requests
                        .min(other.max_concurrent_requests),
                    max_requests_per_second: lower(
                        one.max_requests_per_second,
                        other.max_requests_per_second,
                    ),
                    max_joins_per_second: lower(
                        one.max_joins_per_second,
                        other.max_joins_per_second,
                    ),
                };
                (runs.min(other_runs), values)
            })
    }

    /// The files that secrets were read from.
    pub fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let tokens = self.homeservers.values().filter_map(|server| server.token_file.as_deref());
        tokens.chain(self.daemon.admin_token_file.as_deref())
    }

    pub fn job(&self, name: &str) -> Option<&JobSpec> {
        self.jobs.iter().find(|job| job.name == name)
    }
}

impl Homeserver {
    pub fn address(&self) -> Address {
        Address::of(&self.keys.url.0)
    }

    fn limit_values(&self) -> LimitValues {
        let HomeserverKeys {
            max_concurrent_requests,
            max_requests_per_second,
            max_joins_per_second,
            ..
        } = self.keys;
        LimitValues { max_concurrent_requests, max_requests_per_second, max_joins_per_second }
    }

    /// What it takes to talk to the homeserver, with limits of its own.
    pub fn settings(&self) -> Settings {
        let keys = &self.keys;
        Settings {
            name: self.name.clone(),
            url: keys.url.0.clone(),
            media_url: keys.media_url.as_ref().map(|url| url.0.clone()),
            token: match &self.token_file {
                Some(file) => Token::from_file(file.clone(), self.token.clone()),
                None => Token::inline(self.token.clone()),
            },
            ca: self.ca.clone(),
            limits: Arc::new(Limits::new(self.limit_values())),
            request_timeout: keys.request_timeout.0,
        }
    }
}

impl Homeserver {
    /// Tells apart what settings and secrets make a connection; a token in a file is read for each request and does not.
    pub fn fingerprint(&self) -> u64 {
        let inline = self.token_file.is_none().then(|| self.token.expose_secret());
        fingerprint(&(format!("{:?}", self.keys), inline))
    }

    /// Tells apart what makes a connection: the certificates, too, which who asks no homeserver does not know.
    pub fn connection_fingerprint(&self) -> u64 {
        fingerprint(&(self.fingerprint(), &self.ca))
    }
}

impl JobSpec {
    /// Tells apart what a job is; `homeserver` is the fingerprint of the one it runs on.
    pub fn fingerprint(&self, homeserver: u64) -> u64 {
        fingerprint(&(format!("{self:?}"), homeserver))
    }

    /// Whether the job has a window, and the moment is not in it.
    pub fn is_outside_window(&self, moment: Timestamp) -> bool {
        self.common.window.is_some_and(|window| !window.contains(moment, self.zone))
    }

    /// The first occurrence after `moment` at which the job can run: in its window, where it has one.
    pub fn next(&self, moment: Timestamp) -> Option<Timestamp> {
        let schedule = self.schedule.as_ref()?;
        match self.common.window {
            Some(window) => schedule.next_in(window, moment, self.zone),
            None => schedule.next(moment, self.zone).map(|next| next.to_utc()),
        }
    }

    /// A fixed delay below the job's splay.
    pub fn splay(&self) -> Duration {
        let bound = u64::try_from(self.common.splay.0.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.splay_seed.checked_rem(bound).unwrap_or(0))
    }
}

fn lower(one: Limit<Rate>, other: Limit<Rate>) -> Limit<Rate> {
    match (one, other) {
        (Limit::Of(one), Limit::Of(other)) => Limit::Of(Rate(one.0.min(other.0))),
        (Limit::Unlimited, limit) | (limit, Limit::Unlimited) => limit,
    }
}

/// Stands for a value while the program runs.
fn fingerprint(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Where the daemon listens, as far as the file can be read: a broken edit must not make a healthy daemon look dead.
pub fn listen(path: &Path, environment: &Environment) -> SocketAddr {
    let text = place::read(path).unwrap_or_default();
    let (root, _) = DeTable::parse_recoverable(&text);
    let listen = daemon_text(root.get_ref(), "listen").or(environment.listen.as_deref());
    listen.and_then(|listen| listen.parse().ok()).unwrap_or(LISTEN)
}

/// Where the state directory is, as far as the file can be read: a reload is asked for just when the file may be wrong.
pub fn state_dir(path: &Path, environment: &Environment) -> Result<PathBuf, NotLoaded> {
    Ok(state_dir_in(&place::read(path)?, path, environment))
}

/// The same where even a file that cannot be read must not matter.
pub fn state_dir_or_default(path: &Path, environment: &Environment) -> PathBuf {
    state_dir_in(&place::read(path).unwrap_or_default(), path, environment)
}

fn state_dir_in(text: &str, path: &Path, environment: &Environment) -> PathBuf {
    let (root, _) = DeTable::parse_recoverable(text);
    let named = daemon_text(root.get_ref(), "state_dir").map(|dir| beside(path, Path::new(dir)));
    named.or_else(|| environment.state_directory.clone()).unwrap_or_else(|| STATE_DIR.into())
}

fn daemon_text<'t>(root: &'t DeTable<'_>, key: &str) -> Option<&'t str> {
    root.get("daemon")?.get_ref().as_table()?.get(key)?.get_ref().as_str()
}

/// A relative path is meant from the config file, not from wherever the program was started.
fn beside(config: &Path, path: &Path) -> PathBuf {
    config.parent().unwrap_or(Path::new("")).join(path)
}
