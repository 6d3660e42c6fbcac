//! Every key of the config outside the kinds, and the values that it takes.

use std::net::SocketAddr;
use std::path::PathBuf;

use reqwest::Url;
use toml::Spanned;
use toml::de::DeValue;

use crate::jobs::KINDS;
use crate::plan::report::Mode;
use crate::values::duration::HumanDuration;
use crate::values::schedule::{Schedule, Window, Zone};
use crate::values::schema::schema;
use crate::values::schema::text_values;
use crate::values::schema::{ConfigError, Key, Limit, Rate, Table, Value, read_text, wrong_type};
use crate::values::string_enum::string_enum;

schema! {
    pub struct DaemonKeys {
        /// Where the status page, metrics and health are served; default: `$MICROGLIA_LISTEN`, else 127.0.0.1:8749.
        pub listen: Option<Listen>,
        /// The time zone of every schedule that names none.
        pub timezone: Zone = "\"UTC\"",
        /// Where history, locks and control socket live; default: `$STATE_DIRECTORY`, else /var/lib/microglia.
        pub state_dir: Option<PathBuf>,
        /// How long running runs may go on after SIGTERM.
        pub shutdown_grace: HumanDuration where "\"0s\"" to "\"1d\"" = "\"30s\"",
        /// How long runs are remembered.
        pub keep_history: HumanDuration where "\"1h\"" to "\"3650d\"" = "\"90d\"",
        /// How often to look whether this file changed, or "off".
        pub watch_config: DurationOrOff where "\"1s\"" to "\"1d\"" = "\"off\"",
        /// HomeserverNames by which clients may reach the HTTP API, besides localhost and any IP address; metrics and health are served under every name.
        pub allowed_hosts: Vec<HostName> = "[]",
        /// The token that every HTTP endpoint which acts asks for, at least 16 characters; without it they answer 403.
        pub admin_token_file: Option<PathBuf>,
    }
}

schema! {
    pub struct HomeserverKeys {
        /// Synapse's own listener, rather than the public proxy.
        pub url: BaseUrl,
        /// The worker that serves the media endpoints, where that is not the main process.
        pub media_url: Option<BaseUrl>,
        /// The token of a server admin; better in a file.
        pub access_token: Option<String>,
        /// A file with the token of a server admin; read again whenever it changes.
        pub access_token_file: Option<PathBuf>,
        /// PEM certificates to trust besides the system's.
        pub ca_file: Option<PathBuf>,
        /// Runs at a time; a run that waits to retry holds no place.
        pub max_concurrent_runs: u32 where "1" to "10000" = "1",
        /// Requests at a time.
        pub max_concurrent_requests: u32 where "1" to "1000" = "4",
        /// Requests a second; halved while answers take three times as long as at the start of the run.
        pub max_requests_per_second: Limit<Rate> where "0.001" to "10000" = "50",
        /// Joins a second over all rooms.
        pub max_joins_per_second: Limit<Rate> where "0.001" to "10000" = "5",
        /// How long an answer may take; media purges ignore it, since Synapse works on regardless.
        pub request_timeout: HumanDuration where "\"1s\"" to "\"1d\"" = "\"60s\"",
        /// Whether media lives in object storage: Synapse never deletes the objects.
        pub media_in_object_storage: bool = "false",
    }
}

schema! {
    pub struct HeadKeys {
        /// What the job does: `microglia kinds` lists them.
        pub kind: KindName,
        /// When it runs: cron with five fields, six with leading seconds, or @hourly, @daily, @weekly, @monthly, @yearly. When clocks change, a single time of the day that is left out runs right after, and one that comes twice runs once; lists and intervals go by the clock on the wall. Without a schedule the job only runs by hand.
        pub schedule: Option<Schedule>,
    }
}

schema! {
    pub struct CommonKeys {
        /// Where it runs: a name, or a list for one job per homeserver; may be left out where there is only one.
        pub homeserver: Option<HomeserverNames>,
        /// "dry-run" plans and reports, "apply" makes the changes.
        pub mode: Mode = "\"dry-run\"",
        /// The time zone of schedule and window; default: the daemon's.
        pub timezone: Option<Zone>,
        /// false keeps the entry and never runs it on schedule.
        pub enabled: bool = "true",
        /// A plan of more things is refused before anything is changed.
        pub max_changes: Limit<u32> where "1" to "1000000000" = "1000",
        /// The run makes the first of its plan, so many things, and leaves the rest for the next run.
        pub at_most: Option<u32> where "1" to "1000000000",
        /// Hours of the day: a run starts only inside and stops at the end between two changes; `run --ignore-window` lifts it once.
        pub window: Option<Window>,
        /// How long a run may take, all attempts together; `check --online` warns where reading alone takes longer.
        pub time_limit: HumanDuration where "\"1s\"" to "\"365d\"" = "\"1h\"",
        /// How a run that fails for a passing reason is tried again: `attempts` (tries in all), `first_delay`, `max_delay`.
        pub retries: Retries = "{}",
        /// What happens to an occurrence that comes while the job runs: "skip", or "queue" one.
        pub overlap: Overlap = "\"skip\"",
        /// An occurrence missed while the daemon was down, no older than this, runs once at start; or "off".
        pub catch_up: DurationOrOff where "\"1s\"" to "\"365d\"" = "\"24h\"",
        /// A fixed delay below this, from the job's name and the homeserver's URL.
        pub splay: HumanDuration where "\"0s\"" to "\"7d\"" = "\"0s\"",
    }
}

schema! {
    #[derive(Copy)]
    pub struct Retries {
        /// Tries in all; 1 means none again.
        pub attempts: u32 where "1" to "100" = "3",
        /// The longest first delay; each delay is drawn at random below a bound that doubles.
        pub first_delay: HumanDuration where "\"0s\"" to "\"1d\"" = "\"10s\"",
        /// The longest delay.
        pub max_delay: HumanDuration where "\"0s\"" to "\"1d\"" = "\"10m\"",
    }
}

string_enum! {
    /// What happens to an occurrence that comes while the job still runs.
    pub enum Overlap {
        Skip = "skip",
        Queue = "queue",
    }
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
                "{text:?} is not a host name: leave out scheme, port and path, as in \"microglia.example.com\""
            ));
        }
        Ok(Self(name))
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
            () if url.port() == Some(0) => {
                Err(format!("{text:?} has the port 0, at which nothing listens: {example}"))
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
pub struct KindName(pub(super) String);

impl std::str::FromStr for KindName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        if names.contains(&text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("kind {}", crate::values::text::not_one_of(text, &names)))
        }
    }
}

/// A length of time, or "off".
#[derive(Debug, Clone, Copy)]
pub struct DurationOrOff(pub Option<HumanDuration>);

impl std::str::FromStr for DurationOrOff {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            text => match text.parse::<HumanDuration>() {
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
pub struct HomeserverNames {
    pub(super) names: Vec<String>,
    pub(super) list: bool,
}

impl Value for HomeserverNames {
    const TYPE: &'static str = "a name or a list of names";

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(name) => Some(Self { names: vec![name.to_string()], list: false }),
            DeValue::Array(items) if items.is_empty() => {
                mistakes.push(ConfigError::new(
                    value.span(),
                    "this list is empty: name at least one homeserver",
                ));
                None
            }
            DeValue::Array(_) => {
                let mut names = Vec::<String>::parse(value, mistakes)?;
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

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        let Some(entries) = value.get_ref().as_table() else {
            mistakes.push(wrong_type(value, &format!("a table such as {}", <Self as Value>::TYPE)));
            return None;
        };
        let table = Table { entries, span: value.span() };
        table.reject_unknown(&[Self::KEYS], mistakes);
        Self::parse(&table, mistakes)
    }
}

text_values! {
    Listen: "an address and a port such as \"127.0.0.1:8749\"";
    HostName: "a host name such as \"microglia.example.com\"";
    BaseUrl: "a URL such as \"http://127.0.0.1:8008\"";
    KindName: "a kind such as \"purge-local-media\"";
}

impl Value for DurationOrOff {
    const TYPE: &'static str = "\"off\" or a length of time such as \"1m\"";
    const QUANTITY: bool = true;

    fn is_within(&self, least: &str, greatest: &str) -> bool {
        self.0.is_within(least, greatest)
    }

    fn parse(value: &Spanned<DeValue<'_>>, mistakes: &mut Vec<ConfigError>) -> Option<Self> {
        read_text(value, <Self as Value>::TYPE, mistakes)
    }
}

/// Every key of the config outside the kinds, by its table.
pub const TABLES: &[(&str, &[Key])] = &[
    ("daemon", DaemonKeys::KEYS),
    ("homeservers.NAME", HomeserverKeys::KEYS),
    ("jobs.NAME, every kind", HeadKeys::KEYS),
    ("jobs.NAME and defaults, every kind", CommonKeys::KEYS),
];
