//! Every key of the configuration outside the kinds, and its type.

use std::net::SocketAddr;
use std::path::PathBuf;

use reqwest::Url;
use secrecy::SecretString;
use toml::Spanned;
use toml::de::DeValue;

use crate::jobs::job::Kind;
use crate::jobs::{KINDS, kind};
use crate::plan::report::Mode;
use crate::synapse::YieldTo;
use crate::values::duration::HumanDuration;
use crate::values::glob::is_glob;
use crate::values::schedule::{Schedule, Window, Zone};
use crate::values::schema::{
    ConfigError, Limit, Rate, RateLimit, Table, Value, parse_text, schema, text_values, wrong_type,
};
use crate::values::string_enum::string_enum;
use crate::values::text::unknown;

schema! {
    pub entries DaemonKeys {
        /// Where the status page, metrics, health and the API are served; default: `$MICROGLIA_LISTEN`, else 127.0.0.1:8749.
        pub listen: Option<Listen>,
        /// The time zone of every schedule without one of its own.
        pub timezone: Zone = "\"UTC\"",
        /// The directory of the history, locks, the control socket, tokens that MAS issued, and the lists of unfinished rounds; default: `$STATE_DIRECTORY`, else /var/lib/microglia.
        pub state_dir: Option<PathBuf>,
        /// A PostgreSQL database for the history, in place of SQLite in `state_dir`: `postgresql://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full`; prefer `database_url_file`.
        pub database_url: Option<SecretString>,
        /// A file with that URL; only a restart takes a new one.
        pub database_url_file: Option<PathBuf>,
        /// How long active runs may continue after SIGTERM.
        pub shutdown_grace: HumanDuration where "\"0s\"" to "\"1d\"" = "\"30s\"",
        /// How long finished runs are kept.
        pub keep_history: HumanDuration where "\"1h\"" to "\"3650d\"" = "\"90d\"",
        /// How often to check this file for changes, or "off".
        pub watch_config: DurationOrOff where "\"1s\"" to "\"1d\"" = "\"off\"",
        /// Host names under which the HTTP API is served, besides localhost and IP addresses; metrics and health are served under any name.
        pub allowed_hosts: Vec<HostName> = "[]",
        /// A file with the token that HTTP endpoints which change something require, at least 16 characters; without it they respond with 403.
        pub admin_token_file: Option<PathBuf>,
        /// The URL under which people reach the status page, for links in notifications.
        pub public_url: Option<PublicUrl>,
    }
}

schema! {
    pub entries HomeserverHeadKeys {
        /// Synapse's own listener rather than the public proxy.
        pub url: BaseUrl,
        /// The worker that serves the media endpoints, if that is not the main process.
        pub media_url: Option<BaseUrl>,
        /// The access token of a server admin; prefer `access_token_file`. Neither of them where `mas` is configured.
        pub access_token: Option<SecretString>,
        /// A file with the access token of a server admin; a rotated token is used from the next request on.
        pub access_token_file: Option<PathBuf>,
    }
}

schema! {
    pub entries HomeserverKeys {
        /// PEM certificates to trust in addition to those of the system.
        pub ca_file: Option<PathBuf>,
        /// The maximum number of concurrent runs; a run that waits to retry does not count.
        pub max_concurrent_runs: u32 where "1" to "10000" = "1",
        /// The maximum number of concurrent requests.
        pub max_concurrent_requests: u32 where "1" to "1000" = "4",
        /// The maximum number of requests per second; halved while responses take three times as long as at the start of the run. "auto" finds the rate at which the homeserver still responds about as fast as at rest; each run starts at 50.
        pub max_requests_per_second: RateLimit where "0.001" to "10000" = "50",
        /// The maximum number of joins per second over all rooms.
        pub max_joins_per_second: Limit<Rate> where "0.001" to "10000" = "5",
        /// How long a response may take; member lists of rooms as long as they go on. Media purges ignore it, because Synapse continues regardless.
        pub request_timeout: HumanDuration where "\"1s\"" to "\"1d\"" = "\"60s\"",
        /// What of Synapse's own work a run waits for before it reads, and between two changes, until its time limit: "background-updates" changes of the database schema after an upgrade, "room-purges" deletions of rooms and of their history. A run that changes nothing does not wait.
        pub yield_to: Vec<YieldTo> = "[\"background-updates\", \"room-purges\"]",
        /// Whether media is in object storage, from which Synapse never deletes the objects.
        pub media_in_object_storage: bool = "false",
    }
}

schema! {
    pub entries HeadKeys {
        /// What the job does; `microglia kinds` lists the kinds.
        pub kind: KindName,
        /// When it runs: cron with five fields, six with leading seconds, or @hourly, @daily, @weekly, @monthly, @yearly. When clocks change, a fixed time that is skipped runs right after the gap, and one that is repeated runs once; lists and intervals follow the local clock. Without a schedule, the job runs only when started manually.
        pub schedule: Option<Schedule>,
    }
}

schema! {
    pub struct CommonKeys, entries CommonEntries {
        /// The homeserver, or a list of names and globs such as ["customer-*"] for one job per homeserver, named job@homeserver; optional if there is only one.
        pub homeserver: Option<HomeserverNames>,
        /// "dry-run" only plans and reports, "approve" plans and waits until a person approves the plan, "apply" makes the changes.
        pub mode: Mode = "\"dry-run\"",
        /// How long a plan waits for approval in approve mode; a newer plan of the job replaces it.
        pub approval_ttl: HumanDuration where "\"1s\"" to "\"365d\"" = "\"3d\"",
        /// The time zone of schedule and window; default: that of the daemon.
        pub timezone: Option<Zone>,
        /// false keeps the job but never runs it on schedule.
        pub enabled: bool = "true",
        /// A plan with more items is refused before anything is changed.
        pub max_changes: Limit<u32> where "1" to "1000000000" = "1000",
        /// The maximum number of items that one run changes; the rest of the plan is left for the next run.
        pub at_most: Option<u32> where "1" to "1000000000",
        /// The hours of the day in which the job may run: a run starts only inside the window and stops between two changes at its end; `run --ignore-window` ignores it once.
        pub window: Option<Window>,
        /// How long a run may take, all attempts together; `check --online` says in how many runs a job reads everything.
        pub time_limit: HumanDuration where "\"1s\"" to "\"365d\"" = "\"1h\"",
        /// How a run that fails for a transient reason is retried: `attempts` (in total), `first_delay`, `max_delay`.
        pub retries: Retries = "{}",
        /// What happens when the job is due while it is still running: "skip" the occurrence, or "queue" one run.
        pub overlap: Overlap = "\"skip\"",
        /// An occurrence missed while the daemon was down runs once at start if it is no older than this; or "off".
        pub catch_up: DurationOrOff where "\"1s\"" to "\"365d\"" = "\"24h\"",
        /// The upper bound of a fixed delay, derived from the job's name and the homeserver's URL.
        pub splay: HumanDuration where "\"0s\"" to "\"7d\"" = "\"0s\"",
    }
}

schema! {
    #[derive(Copy)]
    pub struct Retries {
        /// Attempts in total; 1 disables retries.
        pub attempts: u32 where "1" to "100" = "3",
        /// The upper bound of the first delay; each delay is random below a bound that doubles.
        pub first_delay: HumanDuration where "\"0s\"" to "\"1d\"" = "\"10s\"",
        /// The maximum of that bound.
        pub max_delay: HumanDuration where "\"0s\"" to "\"1d\"" = "\"10m\"",
    }
}

string_enum! {
    /// What happens to an occurrence while the job is still running.
    pub enum Overlap {
        Skip = "skip",
        Queue = "queue",
    }
}

/// An address for the HTTP listener.
#[derive(Debug, Clone, Copy)]
pub struct Listen(pub SocketAddr);

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("invalid listen address {text:?}: expected an IP address and a port, such as \"127.0.0.1:8749\" or \"[::]:8749\""))
    }
}

/// A host name in lower case.
#[derive(Debug, Clone)]
pub struct HostName(pub String);

impl std::str::FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(fits) {
            return Err(format!(
                "invalid host name {text:?}: expected a name without scheme, port and path, such as \"microglia.example.com\""
            ));
        }
        Ok(Self(name))
    }
}

/// The base URL of a homeserver, without query and fragment.
#[derive(Debug, Clone)]
pub struct BaseUrl(pub Url);

impl std::str::FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "use Synapse's own listener, such as \"http://127.0.0.1:8008\"";
        base_url(text, "a homeserver", example, &["/_matrix", "/_synapse"]).map(Self)
    }
}

/// The URL under which people reach the status page.
#[derive(Debug, Clone)]
pub struct PublicUrl(pub Url);

impl std::str::FromStr for PublicUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "use the URL of the status page, such as \"https://microglia.example.com\"";
        base_url(text, "the status page", example, &["/api/v1"]).map(Self)
    }
}

/// Parses the base URL of a server, under which `endpoints` lie.
pub fn base_url(
    text: &str,
    server: &str,
    example: &str,
    endpoints: &[&str],
) -> Result<Url, String> {
    if text.contains('@') {
        return Err("a user name or password in the URL would appear in logs: remove it".to_owned());
    }
    let url: Url =
        text.parse().map_err(|error| format!("invalid URL {text:?} ({error}): {example}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("invalid URL {text:?}: the scheme must be http or https: {example}"));
    }
    if url.port() == Some(0) {
        return Err(format!("invalid URL {text:?}: the port must not be 0: {example}"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("the URL of {server} must have no query and no fragment: {example}"));
    }
    if endpoints.iter().any(|endpoint| url.path().contains(endpoint)) {
        return Err(format!("{text:?} is the URL of an endpoint: {example}"));
    }
    Ok(url)
}

/// The name of a kind in [`KINDS`].
#[derive(Debug, Clone, Copy)]
pub struct KindName(pub(super) &'static Kind);

impl std::str::FromStr for KindName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        kind(text).map(Self).ok_or_else(|| {
            let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
            unknown("kind", text, &names)
        })
    }
}

/// A duration, or "off".
#[derive(Debug, Clone, Copy)]
pub struct DurationOrOff(pub Option<HumanDuration>);

impl std::str::FromStr for DurationOrOff {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            text => match text.parse::<HumanDuration>() {
                Ok(duration) if duration.0.is_zero() => {
                    Err(format!("invalid duration {text:?}: use \"off\" to disable it"))
                }
                Ok(duration) => Ok(Self(Some(duration))),
                Err(error) => Err(format!("{error}; \"off\" disables it")),
            },
        }
    }
}

/// One name, or a list of names and globs.
#[derive(Debug, Clone)]
pub struct HomeserverNames {
    pub(super) names: Vec<String>,
    /// Also for a single glob: the name of a job must not depend on how many homeservers there are.
    pub(super) list: bool,
}

impl Value for HomeserverNames {
    const TYPE: &'static str = "a name, or a list of names and globs";

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(name) => {
                Some(Self { names: vec![name.to_string()], list: is_glob(name) })
            }
            DeValue::Array(items) if items.is_empty() => {
                errors.push(ConfigError::new(
                    value.span(),
                    "the list is empty: add at least one homeserver",
                ));
                None
            }
            DeValue::Array(_) => {
                let mut names = Vec::<String>::parse(value, errors)?;
                names.sort();
                names.dedup();
                Some(Self { names, list: true })
            }
            _ => {
                errors.push(wrong_type(value, Self::TYPE));
                None
            }
        }
    }
}

impl Value for Retries {
    const TYPE: &'static str =
        "a table such as { attempts = 3, first_delay = \"10s\", max_delay = \"10m\" }";

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let Some(entries) = value.get_ref().as_table() else {
            errors.push(wrong_type(value, <Self as Value>::TYPE));
            return None;
        };
        let table = Table::new(entries, value.span());
        table.reject_unknown(&[Self::KEYS], errors);
        Self::parse(&table, errors)
    }

    fn canonical(&self, _: &Spanned<DeValue<'_>>) -> serde_json::Value {
        let Self { attempts, first_delay, max_delay } = self;
        serde_json::json!([attempts, first_delay.0.as_secs(), max_delay.0.as_secs()])
    }
}

text_values! {
    Listen: "an address and a port such as \"127.0.0.1:8749\"", |listen| listen.0.to_string();
    HostName: "a host name such as \"microglia.example.com\"", |name| name.0.clone();
    BaseUrl: "a URL such as \"http://127.0.0.1:8008\"", |url| url.0.to_string();
    PublicUrl: "a URL such as \"https://microglia.example.com\"", |url| url.0.to_string();
    KindName: "a kind such as \"purge-local-media\"";
}

impl Value for DurationOrOff {
    const TYPE: &'static str = "\"off\" or a duration such as \"1m\"";
    const QUANTITY: bool = true;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        self.0.is_within(least, greatest)
    }

    fn parse(value: &Spanned<DeValue<'_>>, errors: &mut Vec<ConfigError>) -> Option<Self> {
        parse_text(value, <Self as Value>::TYPE, errors)
    }

    fn canonical(&self, _: &Spanned<DeValue<'_>>) -> serde_json::Value {
        self.0.map(|duration| duration.0.as_secs()).into()
    }
}
