//! The config file: TOML text to settings and jobs, or every mistake with its place.

mod place;
mod secrets;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use uuid::Uuid;

pub use place::{Found, NotLoaded};

use crate::clock::Timestamp;
use crate::job::AnyJob;
use crate::jobs::{KINDS, kind};
use crate::keys;
use crate::keys::{Key, Limit, Mistake, Rate, Table, Value, unknown_key, wrong_type};
use crate::length::Length;
use crate::report::Mode;
use crate::schedule::{Schedule, Window, Zone};
use crate::synapse::{Settings, Token};
use crate::text_values;
use crate::words;
use secrets::Secrets;

keys! {
    pub struct DaemonKeys {
        /// Where the status page, metrics and health are served; default: `$MICROGLIA_LISTEN`, else 127.0.0.1:8749.
        pub listen: Option<Listen>,
        /// The time zone of every schedule that names none.
        pub timezone: Zone = "\"UTC\"",
        /// Where history, locks and control socket live; default: `$STATE_DIRECTORY`, else /var/lib/microglia.
        pub state_dir: Option<PathBuf>,
        /// How long running runs may go on after SIGTERM.
        pub shutdown_grace: Length = "\"30s\"",
        /// How long runs are remembered.
        pub keep_history: Length = "\"90d\"",
        /// How often to look whether this file changed, or "off".
        pub watch_config: Switch = "\"off\"",
        /// The token that every HTTP endpoint which acts asks for; without it they answer 403.
        pub admin_token_file: Option<Spanned<PathBuf>>,
    }
}

keys! {
    pub struct HomeserverKeys {
        /// Synapse's own listener, rather than the public proxy.
        pub url: BaseUrl,
        /// The worker that serves the media endpoints, where that is not the main process.
        pub media_url: Option<BaseUrl>,
        /// The token of a server admin; better in a file.
        pub access_token: Option<Spanned<String>>,
        /// A file with the token of a server admin; read again whenever it changes.
        pub access_token_file: Option<Spanned<PathBuf>>,
        /// PEM certificates to trust besides the system's.
        pub ca_file: Option<Spanned<PathBuf>>,
        /// Runs at a time; a run that waits to retry holds no place.
        pub max_concurrent_runs: u32 = "1",
        /// Requests at a time.
        pub max_concurrent_requests: u32 = "4",
        /// Requests a second; halved while answers take three times as long as at the start of the run.
        pub max_requests_per_second: Limit<Rate> = "50",
        /// Joins a second over all rooms.
        pub max_joins_per_second: Limit<Rate> = "5",
        /// How long an answer may take; media purges ignore it, since Synapse works on regardless.
        pub request_timeout: Length = "\"60s\"",
        /// Whether media lives in object storage: Synapse never deletes the objects.
        pub media_in_object_storage: bool = "false",
    }
}

keys! {
    pub struct HeadKeys {
        /// What the job does: `microglia kinds` lists them.
        pub kind: KindName,
        /// When it runs: cron with five fields, six with leading seconds, or @hourly, @daily, @weekly, @monthly, @yearly. Without it the job only runs by hand.
        pub schedule: Option<Schedule>,
    }
}

keys! {
    pub struct CommonKeys {
        /// Where it runs: a name, or a list for one job per homeserver; may be left out where there is only one.
        pub homeserver: Option<Spanned<Names>>,
        /// "dry-run" plans and reports, "apply" makes the changes.
        pub mode: Mode = "\"dry-run\"",
        /// The time zone of schedule and window; default: the daemon's.
        pub timezone: Option<Zone>,
        /// false keeps the entry and never runs it on schedule.
        pub enabled: bool = "true",
        /// A plan of more things is refused before anything is changed.
        pub max_changes: Limit<u32> = "1000",
        /// The run makes the first of its plan, so many things, and leaves the rest for the next run.
        pub at_most: Option<u32>,
        /// Hours of the day: a run starts only inside and stops at the end between two changes.
        pub window: Option<Window>,
        /// How long a run may take, all attempts together.
        pub time_limit: Length = "\"1h\"",
        /// How a run that fails for a passing reason is tried again: `attempts` (tries in all), `first_delay`, `max_delay`.
        pub retries: Retries = "{}",
        /// What happens to an occurrence that comes while the job runs: "skip", or "queue" one.
        pub overlap: Overlap = "\"skip\"",
        /// An occurrence missed while the daemon was down, no older than this, runs once at start; or "off".
        pub catch_up: Switch = "\"24h\"",
        /// A fixed delay below this, from the job's name and the homeserver's URL.
        pub splay: Length = "\"0s\"",
    }
}

keys! {
    #[derive(Copy)]
    pub struct Retries {
        /// Tries in all; 1 means none again.
        pub attempts: u32 = "3",
        /// The longest first delay; each delay is drawn at random below a bound that doubles.
        pub first_delay: Length = "\"10s\"",
        /// The longest delay.
        pub max_delay: Length = "\"10m\"",
    }
}

words! {
    /// What happens to an occurrence that comes while the job still runs.
    pub enum Overlap {
        Skip = "skip",
        Queue = "queue",
    }
}

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
    pub shutdown_grace: Length,
    pub keep_history: Length,
    pub watch_config: Option<Length>,
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
        let text = place::read(path)?;
        Self::parse(path, &text, environment, now)
    }

    /// Reads a config's text; files that it names are looked for beside `path`.
    pub fn parse(
        path: &Path,
        text: &str,
        environment: &Environment,
        now: Timestamp,
    ) -> Result<Self, NotLoaded> {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut mistakes: Vec<Mistake> = errors.iter().map(place::syntax).collect();
        let broken = errors.iter().any(|error| !error.message().contains("duplicate key"));
        let mut parser = Parser {
            path,
            environment,
            now,
            mistakes: Vec::new(),
            warnings: Vec::new(),
            secrets: Secrets::new(path, environment),
        };
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

    pub fn job(&self, name: &str) -> Option<&JobSpec> {
        self.jobs.iter().find(|job| job.name == name)
    }
}

impl Homeserver {
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
            max_concurrent_requests: keys.max_concurrent_requests,
            max_requests_per_second: keys.max_requests_per_second,
            max_joins_per_second: keys.max_joins_per_second,
            request_timeout: keys.request_timeout.0,
            media_in_object_storage: keys.media_in_object_storage,
        }
    }
}

impl Homeserver {
    /// Tells apart what settings and secrets make a connection; a token in a file is read for each request and does not.
    pub fn fingerprint(&self) -> u64 {
        let inline = self.token_file.is_none().then(|| self.token.expose_secret());
        fingerprint(&(format!("{:?}", self.keys), inline))
    }
}

impl JobSpec {
    /// Tells apart what a job is; `homeserver` is the fingerprint of the one it runs on.
    pub fn fingerprint(&self, homeserver: u64) -> u64 {
        fingerprint(&(format!("{self:?}"), homeserver))
    }

    /// A fixed delay below the job's splay.
    /// Whether the job has a window, and the moment is not in it.
    pub fn is_outside_window(&self, moment: Timestamp) -> bool {
        self.common.window.is_some_and(|window| !window.contains(moment, self.zone))
    }

    pub fn splay(&self) -> Duration {
        let bound = u64::try_from(self.common.splay.0.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.splay_seed.checked_rem(bound).unwrap_or(0))
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
    let text = place::read(path)?;
    let (root, _) = DeTable::parse_recoverable(&text);
    let named = daemon_text(root.get_ref(), "state_dir").map(|dir| beside(path, Path::new(dir)));
    Ok(named.or_else(|| environment.state_directory.clone()).unwrap_or_else(|| STATE_DIR.into()))
}

fn daemon_text<'t>(root: &'t DeTable<'_>, key: &str) -> Option<&'t str> {
    root.get("daemon")?.get_ref().as_table()?.get(key)?.get_ref().as_str()
}

/// A relative path is meant from the config file, not from wherever the program was started.
fn beside(config: &Path, path: &Path) -> PathBuf {
    config.parent().unwrap_or(Path::new("")).join(path)
}

struct Parser<'a> {
    path: &'a Path,
    environment: &'a Environment,
    now: Timestamp,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
    secrets: Secrets,
}

impl Parser<'_> {
    fn config(&mut self, root: &DeTable<'_>) -> Option<Config> {
        const TABLES: [&str; 4] = ["daemon", "homeservers", "defaults", "jobs"];
        for key in root.keys() {
            if !TABLES.contains(&key.get_ref().as_ref()) {
                self.mistakes.push(unknown_key(key.span(), key.get_ref(), &TABLES));
            }
        }
        let empty = DeTable::new();
        let daemon = self.table(root, "daemon", &empty).and_then(|table| self.daemon(table, root));
        let homeservers =
            self.table(root, "homeservers", &empty).map(|table| self.homeservers(table));
        let defaults = self.table(root, "defaults", &empty).unwrap_or(&empty);
        self.check_defaults(defaults);
        let jobs = self.table(root, "jobs", &empty).unwrap_or(&empty);
        // A mistake in one table must not hide those in the others.
        let zone = daemon.as_ref().map_or(Zone(chrono_tz::UTC), |daemon| daemon.timezone);
        let names: Vec<&str> =
            homeservers.iter().flatten().map(|(name, _)| name.as_str()).collect();
        let mut specs = Vec::new();
        for (name, value) in jobs {
            if let Some(table) = self.named_table(
                name,
                value,
                "job",
                |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-',
                "lower-case letters, digits and -",
            ) {
                specs.extend(self.job(name, table, defaults, &names, zone));
            }
        }
        if jobs.is_empty() {
            self.warnings.push(Mistake::new(
                0..0,
                "there is no job: add a table such as [jobs.nightly-media]",
            ));
        }
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        let homeservers: BTreeMap<String, Homeserver> = homeservers?
            .into_iter()
            .map(|(name, homeserver)| Some((name, homeserver?)))
            .collect::<Option<_>>()?;
        for spec in &mut specs {
            let url = homeservers.get(&spec.homeserver)?.keys.url.0.as_str();
            let name = format!("{} {url}", spec.name);
            (spec.splay_seed, _) =
                Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).as_u64_pair();
        }
        Some(Config {
            daemon: daemon?,
            homeservers,
            jobs: specs,
            warnings: Vec::new(),
            from_credentials: Vec::new(),
        })
    }

    /// A table of the root: an empty one where it is absent, `None` with a mistake where it is something else.
    fn table<'t, 'i>(
        &mut self,
        root: &'t DeTable<'i>,
        name: &str,
        empty: &'t DeTable<'i>,
    ) -> Option<&'t DeTable<'i>> {
        let Some(value) = root.get(name) else { return Some(empty) };
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.mistakes.push(wrong_type(value, &format!("a table [{name}]")));
        }
        table
    }

    fn daemon(&mut self, entries: &DeTable<'_>, root: &DeTable<'_>) -> Option<Daemon> {
        let table = Table { entries, span: root.get("daemon").map_or(0..0, Spanned::span) };
        table.reject_unknown(&[DaemonKeys::KEYS], &mut self.mistakes);
        let keys = DaemonKeys::read(&table, &mut self.mistakes);
        let file =
            table.read::<Option<Spanned<PathBuf>>>("admin_token_file", None, &mut Vec::new());
        let admin = file.flatten().map(|file| {
            self.secrets.read(&file, "admin_token_file", &mut self.mistakes, &mut self.warnings)
        });
        let keys = keys?;
        let listen = match (&keys.listen, &self.environment.listen) {
            (Some(listen), _) => listen.0,
            (None, Some(text)) => match text.parse::<Listen>() {
                Ok(listen) => listen.0,
                Err(error) => {
                    self.mistakes.push(Mistake::new(
                        table.span.clone(),
                        format!("$MICROGLIA_LISTEN: {error}"),
                    ));
                    return None;
                }
            },
            (None, None) => LISTEN,
        };
        let (admin_token_file, admin_token) = match admin {
            Some(read) => read.map(|(path, secret)| (Some(path), Some(secret)))?,
            None => (None, None),
        };
        let state_dir = keys
            .state_dir
            .clone()
            .map(|dir| beside(self.path, &dir))
            .or_else(|| self.environment.state_directory.clone())
            .unwrap_or_else(|| STATE_DIR.into());
        let DaemonKeys { timezone, shutdown_grace, keep_history, watch_config, .. } = keys;
        Some(Daemon {
            listen,
            timezone,
            state_dir,
            shutdown_grace,
            keep_history,
            watch_config: watch_config.0,
            admin_token_file,
            admin_token,
        })
    }

    fn homeservers(&mut self, table: &DeTable<'_>) -> Vec<(String, Option<Homeserver>)> {
        if table.is_empty() {
            self.mistakes.push(Mistake::new(0..0, "there is no homeserver: add [homeservers.main] with `url = \"http://127.0.0.1:8008\"` and `access_token_file = \"token\"`"));
        }
        let mut homeservers = Vec::new();
        for (name, value) in table {
            let read = self
                .named_table(
                    name,
                    value,
                    "homeserver",
                    |c| c.is_ascii_alphanumeric() || "-_.".contains(c),
                    "letters, digits and - _ .",
                )
                .and_then(|table| self.homeserver(name, table));
            homeservers.push((name.get_ref().to_string(), read));
        }
        homeservers.sort_by(|a, b| a.0.cmp(&b.0));
        homeservers
    }

    fn homeserver(
        &mut self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        entries: &DeTable<'_>,
    ) -> Option<Homeserver> {
        let table = Table { entries, span: name.span() };
        table.reject_unknown(&[HomeserverKeys::KEYS], &mut self.mistakes);
        let keys = HomeserverKeys::read(&table, &mut self.mistakes);
        // What is wrong with the other keys must not hide what is wrong with the files.
        let file =
            |key| table.read::<Option<Spanned<PathBuf>>>(key, None, &mut Vec::new()).flatten();
        let ca = match file("ca_file") {
            Some(file) => self.secrets.certificates(&file, &mut self.mistakes).map(Some),
            None => Some(None),
        };
        let inline =
            table.read::<Option<Spanned<String>>>("access_token", None, &mut Vec::new()).flatten();
        let file = file("access_token_file");
        let token = match (inline, file) {
            (Some(text), None) if text.get_ref().trim().is_empty() => {
                self.mistakes.push(Mistake::new(text.span(), "the token is empty"));
                None
            }
            (Some(text), None) => {
                self.secrets.warn_inline(&text, &mut self.warnings);
                Some((None, SecretString::from(text.into_inner())))
            }
            (None, Some(file)) => self
                .secrets
                .read(&file, "access_token_file", &mut self.mistakes, &mut self.warnings)
                .map(|(path, secret)| (Some(path), secret)),
            (Some(_), Some(_)) => {
                self.mistakes.push(Mistake::new(table.span_of("access_token"), "`access_token` and `access_token_file` are both given: keep exactly one, better the file"));
                None
            }
            (None, None) => {
                if !table.has("access_token") && !table.has("access_token_file") {
                    self.mistakes.push(Mistake::new(
                        table.span.clone(),
                        "the token is missing: add `access_token_file = \"token\"`",
                    ));
                }
                None
            }
        };
        let ((token_file, token), keys, ca) = (token?, keys?, ca?);
        Some(Homeserver { name: name.get_ref().to_string(), keys, token_file, token, ca })
    }

    fn named_table<'t, 'i>(
        &mut self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        value: &'t Spanned<DeValue<'i>>,
        what: &str,
        allowed: impl Fn(char) -> bool,
        allowed_text: &str,
    ) -> Option<&'t DeTable<'i>> {
        let text = name.get_ref();
        if text.is_empty() || text.starts_with('.') || !text.chars().all(allowed) {
            self.mistakes.push(Mistake::new(
                name.span(),
                format!("`{text}` is no name for a {what}: use {allowed_text}"),
            ));
        }
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.mistakes.push(Mistake::new(
                name.span(),
                format!("a {what} is a table: write [{what}s.{text}]"),
            ));
        }
        table
    }

    fn check_defaults(&mut self, defaults: &DeTable<'_>) {
        let table = Table { entries: defaults, span: 0..0 };
        for key in defaults
            .keys()
            .filter(|key| HeadKeys::KEYS.iter().any(|head| head.name == key.get_ref().as_ref()))
        {
            self.mistakes.push(Mistake::new(
                key.span(),
                format!("`{}` has no default: each job names its own", key.get_ref()),
            ));
        }
        table.reject_unknown(&[CommonKeys::KEYS, HeadKeys::KEYS], &mut self.mistakes);
        let _ = CommonKeys::read(&table, &mut self.mistakes);
    }

    fn job(
        &mut self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        own: &DeTable<'_>,
        defaults: &DeTable<'_>,
        homeservers: &[&str],
        daemon_zone: Zone,
    ) -> Vec<JobSpec> {
        let merged = merge(defaults, own);
        let table = Table { entries: &merged, span: name.span() };
        let head = HeadKeys::read(&table, &mut self.mistakes);
        let common = CommonKeys::read(&table, &mut self.mistakes);
        let chosen = table
            .read::<Option<Spanned<Names>>>("homeserver", None, &mut Vec::new())
            .map(|names| self.homeservers_of(names, homeservers, &table));
        // Without its kind it is not known which other keys are right.
        let Some(kind) = table
            .read::<KindName>("kind", None, &mut Vec::new())
            .and_then(|KindName(name)| kind(&name))
        else {
            return Vec::new();
        };
        table.reject_unknown(&[HeadKeys::KEYS, CommonKeys::KEYS, kind.keys], &mut self.mistakes);
        for key in ["max_changes", "at_most"] {
            if !kind.counts && own.contains_key(key) {
                self.mistakes.push(Mistake::new(
                    table.span_of(key),
                    format!(
                        "`{key}` means nothing for {}, which cannot count beforehand: take it out",
                        kind.name
                    ),
                ));
            }
        }
        let job = (kind.read)(&table, self.now, &mut self.mistakes);
        let (Some(head), Some(common), Some(job), Some(chosen)) = (head, common, job, chosen)
        else {
            return Vec::new();
        };
        self.warnings.extend(
            job.warnings().into_iter().map(|(key, text)| Mistake::new(table.span_of(key), text)),
        );
        let several = chosen.len() > 1
            || common.homeserver.as_ref().is_some_and(|names| names.get_ref().list);
        let name = name.get_ref().as_ref();
        chosen
            .into_iter()
            .map(|homeserver| JobSpec {
                name: if several { format!("{name}@{homeserver}") } else { name.to_owned() },
                homeserver,
                schedule: head.schedule.clone(),
                zone: common.timezone.unwrap_or(daemon_zone),
                common: common.clone(),
                job: Arc::clone(&job),
                splay_seed: 0,
            })
            .collect()
    }

    fn homeservers_of(
        &mut self,
        names: Option<Spanned<Names>>,
        known: &[&str],
        table: &Table<'_, '_>,
    ) -> Vec<String> {
        // That there is no homeserver at all is said elsewhere.
        if known.is_empty() {
            return Vec::new();
        }
        let Some(names) = names else {
            if let [only] = known {
                return vec![(*only).to_owned()];
            }
            self.mistakes.push(Mistake::new(table.span.clone(), format!("there are several homeservers: add `homeserver = \"…\"`, one of {}, or a list of them", known.join(", "))));
            return Vec::new();
        };
        for name in &names.get_ref().names {
            if !known.contains(&name.as_str()) {
                self.mistakes.push(Mistake::new(
                    names.span(),
                    format!("homeserver {}", words::not_one_of(name, known)),
                ));
            }
        }
        names.into_inner().names
    }
}

/// The job's table over the defaults; inline tables are merged key by key.
fn merge<'i>(defaults: &DeTable<'i>, own: &DeTable<'i>) -> DeTable<'i> {
    // What is wrong in the defaults is said once, there.
    let mut merged: DeTable<'i> = defaults
        .iter()
        .filter(|(key, _)| {
            CommonKeys::KEYS.iter().any(|common| common.name == key.get_ref().as_ref())
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (key, value) in own {
        let both = (
            merged.get(key.get_ref().as_ref()).and_then(|default| default.get_ref().as_table()),
            value.get_ref().as_table(),
        );
        let value = match both {
            (Some(default), Some(table)) => {
                Spanned::new(value.span(), DeValue::Table(merge_plain(default, table)))
            }
            _ => value.clone(),
        };
        merged.remove(key.get_ref().as_ref());
        merged.insert(key.clone(), value);
    }
    merged
}

fn merge_plain<'i>(defaults: &DeTable<'i>, own: &DeTable<'i>) -> DeTable<'i> {
    let mut merged = defaults.clone();
    for (key, value) in own {
        merged.remove(key.get_ref().as_ref());
        merged.insert(key.clone(), value.clone());
    }
    merged
}

/// An address to listen on.
#[derive(Debug, Clone, Copy)]
pub struct Listen(pub SocketAddr);

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("{text:?} is no address to listen on: write an IP address and a port, such as \"127.0.0.1:8749\" or \"[::]:8749\""))
    }
}

/// The URL of a homeserver, to which paths are added.
#[derive(Debug, Clone)]
pub struct BaseUrl(pub Url);

impl std::str::FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write Synapse's own listener, such as \"http://127.0.0.1:8008\"";
        if text.contains('@') {
            return Err(
                "a URL with a user or a password would show them in logs: take them out".to_owned()
            );
        }
        let url: Url =
            text.parse().map_err(|error| format!("{text:?} is no URL ({error}): {example}"))?;
        match () {
            () if !matches!(url.scheme(), "http" | "https") => {
                Err(format!("{text:?} begins with neither http:// nor https://: {example}"))
            }
            () if url.query().is_some() || url.fragment().is_some() => {
                Err(format!("a homeserver's URL has no query and no fragment: {example}"))
            }
            () if url.path().contains("/_matrix") || url.path().contains("/_synapse") => {
                Err(format!("{text:?} names an endpoint: {example}"))
            }
            () => Ok(Self(url)),
        }
    }
}

/// The name of a row in the table of kinds.
#[derive(Debug, Clone)]
pub struct KindName(String);

impl std::str::FromStr for KindName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        if names.contains(&text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("kind {}", words::not_one_of(text, &names)))
        }
    }
}

/// A length of time, or "off".
#[derive(Debug, Clone, Copy)]
pub struct Switch(pub Option<Length>);

impl std::str::FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            text => match text.parse::<Length>() {
                Ok(length) if length.0.is_zero() => {
                    Err(format!("{text:?} is no time at all: write \"off\""))
                }
                Ok(length) => Ok(Self(Some(length))),
                Err(error) => Err(format!("{error}, or \"off\"")),
            },
        }
    }
}

/// One name or a list of names.
#[derive(Debug, Clone)]
pub struct Names {
    names: Vec<String>,
    list: bool,
}

impl Value for Names {
    const TYPE: &'static str = "a name or a list of names";

    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(name) => Some(Self { names: vec![name.to_string()], list: false }),
            DeValue::Array(items) if items.is_empty() => {
                mistakes.push(Mistake::new(
                    value.span(),
                    "this list is empty: name at least one homeserver",
                ));
                None
            }
            DeValue::Array(_) => {
                let mut names = Vec::<String>::read(value, mistakes)?;
                names.sort();
                names.dedup();
                Some(Self { names, list: true })
            }
            _ => {
                mistakes.push(wrong_type(value, Self::TYPE));
                None
            }
        }
    }
}

impl Value for Retries {
    const TYPE: &'static str = "{ attempts = 3, first_delay = \"10s\", max_delay = \"10m\" }";

    fn read(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let Some(entries) = value.get_ref().as_table() else {
            mistakes.push(wrong_type(value, &format!("a table such as {}", <Self as Value>::TYPE)));
            return None;
        };
        let table = Table { entries, span: value.span() };
        table.reject_unknown(&[Self::KEYS], mistakes);
        Self::read(&table, mistakes)
    }
}

text_values! {
    Listen: "an address and a port such as \"127.0.0.1:8749\"";
    BaseUrl: "a URL such as \"http://127.0.0.1:8008\"";
    KindName: "a kind such as \"purge-local-media\"";
    Switch: "a length of time such as \"1m\", or \"off\"";
}

/// Every key of the config outside the kinds, by its table.
pub const TABLES: &[(&str, &[Key])] = &[
    ("daemon", DaemonKeys::KEYS),
    ("homeservers.NAME", HomeserverKeys::KEYS),
    ("jobs.NAME, every kind", HeadKeys::KEYS),
    ("jobs.NAME and defaults, every kind", CommonKeys::KEYS),
];
