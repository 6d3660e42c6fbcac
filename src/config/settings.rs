//! The configuration as the program uses it, complete and valid.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use secrecy::SecretString;
use serde_json::json;

use super::diagnostics::Diagnostic;
use super::job_spec::JobSpec;
use super::notification_keys::NotifyOn;
use crate::history::state_dir::StateDir;
use crate::history::{DatabaseUrl, Place};
use crate::http::{Address, Api, LimitValues, Limits, Settings, Token, TokenSource};
use crate::mas;
use crate::synapse::YieldTo;
use crate::values::duration::HumanDuration;
use crate::values::fingerprint::Fingerprint;
use crate::values::matrix_id::UserId;
use crate::values::schedule::{Schedule, Zone};
use crate::values::schema::{Limit, Rate, RateLimit};

/// A configuration that was read completely and without an error.
#[derive(Debug)]
pub struct Config {
    pub daemon: Daemon,
    pub homeservers: BTreeMap<String, Homeserver>,
    /// One for each job and homeserver, sorted by name.
    pub jobs: Vec<JobSpec>,
    /// Sorted by name.
    pub notifications: Vec<Notification>,
    /// The files that the main file includes, in the order in which they were read.
    pub included: Vec<PathBuf>,
    pub warnings: Vec<Diagnostic>,
    /// Secrets that were read from systemd's credentials, which do not change while the service runs.
    pub from_credentials: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Daemon {
    pub listen: SocketAddr,
    pub timezone: Zone,
    pub state_dir: PathBuf,
    pub history: HistoryPlace,
    pub database_url_file: Option<PathBuf>,
    pub shutdown_grace: HumanDuration,
    pub keep_history: HumanDuration,
    pub watch_config: Option<HumanDuration>,
    /// Names under which the HTTP API is served, in lower case.
    pub allowed_hosts: Vec<String>,
    pub admin_token_file: Option<PathBuf>,
    pub admin_token: Option<SecretString>,
    /// Where people reach the status page.
    pub public_url: Option<Url>,
}

/// A Matrix room to which the daemon reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    pub name: String,
    /// The name of the homeserver whose account sends the messages.
    pub homeserver: String,
    /// An id or an alias.
    pub room: String,
    pub on: Vec<NotifyOn>,
    /// When a summary is sent, in the daemon's time zone.
    pub digest: Option<Schedule>,
    /// Whose reactions decide about plans.
    pub approvers: Vec<UserId>,
    /// Whether messages may name accounts and rooms.
    pub names: bool,
}

/// Where the configuration puts the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryPlace {
    /// In a SQLite file of the state directory.
    StateDir,
    Database(DatabaseUrl),
    /// In a database whose URL this user may not read, and why; only where secrets are not read.
    Unreadable(String),
}

/// A homeserver as the configuration describes it.
#[derive(Debug, Clone)]
pub struct Homeserver {
    pub name: String,
    pub url: Url,
    pub media_url: Option<Url>,
    pub max_concurrent_runs: u32,
    pub max_concurrent_requests: u32,
    pub max_requests_per_second: RateLimit,
    pub max_joins_per_second: Limit<Rate>,
    pub request_timeout: Duration,
    pub yield_to: Vec<YieldTo>,
    pub media_in_object_storage: bool,
    pub(super) token_file: Option<PathBuf>,
    /// `None` where MAS issues it.
    pub(super) token: Option<SecretString>,
    pub mas: Option<Mas>,
    pub(super) ca: Option<Vec<u8>>,
    /// Of all its keys, and of a token that is one of them.
    pub(super) definition: Fingerprint,
}

/// The MAS of a homeserver as the configuration describes it.
#[derive(Debug, Clone)]
pub struct Mas {
    pub url: Url,
    /// The same as `url` where the configuration has none.
    pub admin_url: Url,
    pub client_id: mas::Ulid,
    /// A localpart.
    pub account: String,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) secret: SecretString,
    /// Of all its keys, and of a secret that is one of them.
    pub(super) definition: Fingerprint,
}

/// Values of the environment, used where the configuration has none.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    pub listen: Option<String>,
    pub state_directory: Option<PathBuf>,
    pub credentials_directory: Option<PathBuf>,
}

impl Config {
    /// The number of concurrent runs and the request limits of each address.
    ///
    /// Homeservers with the same address share the lowest of their limits. A MAS has the limits of its homeserver for itself:
    /// it is another server.
    pub fn limits(&self) -> BTreeMap<Address, (u32, LimitValues)> {
        let mut limits = BTreeMap::new();
        for homeserver in self.homeservers.values() {
            let own = (homeserver.max_concurrent_runs, homeserver.limit_values());
            let mas = homeserver.mas.iter().flat_map(|mas| [&mas.url, &mas.admin_url]);
            // Each address once: MAS may be reached at one only, or at that of the homeserver.
            let addresses: BTreeSet<Address> =
                mas.map(Address::of).chain([homeserver.address()]).collect();
            for address in addresses {
                limits
                    .entry(address)
                    .and_modify(|(runs, values): &mut (u32, LimitValues)| {
                        *runs = own.0.min(*runs);
                        *values = lower_values(*values, own.1);
                    })
                    .or_insert(own);
            }
        }
        limits
    }

    /// The files that secrets were read from.
    pub fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let tokens = self.homeservers.values().flat_map(|server| {
            let secret = server.mas.as_ref().and_then(|mas| mas.secret_file.as_deref());
            server.token_file.as_deref().into_iter().chain(secret)
        });
        let daemon = [&self.daemon.admin_token_file, &self.daemon.database_url_file];
        tokens.chain(daemon.into_iter().filter_map(|file| file.as_deref()))
    }

    pub fn job(&self, name: &str) -> Option<&JobSpec> {
        let index = self.jobs.binary_search_by(|job| job.name.as_str().cmp(name)).ok()?;
        self.jobs.get(index)
    }
}

impl HistoryPlace {
    /// The place itself, for a state directory that is open.
    pub(crate) fn of(&self, dir: &StateDir) -> Result<Place, String> {
        match self {
            Self::StateDir => Ok(dir.into()),
            Self::Database(url) => Ok(url.clone().into()),
            Self::Unreadable(why) => Err(why.clone()),
        }
    }
}

impl Homeserver {
    pub fn address(&self) -> Address {
        Address::of(&self.url)
    }

    /// The file of its token; `None` where the configuration itself contains it.
    pub fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    fn limit_values(&self) -> LimitValues {
        LimitValues {
            max_concurrent_requests: self.max_concurrent_requests,
            max_requests_per_second: self.max_requests_per_second,
            max_joins_per_second: self.max_joins_per_second,
        }
    }

    /// The settings of a connection, with limits of its own.
    pub fn settings(&self) -> Settings {
        Settings {
            name: self.name.clone(),
            api: Api::Synapse,
            url: self.url.clone(),
            media_url: self.media_url.clone(),
            token: match &self.token {
                Some(token) => TokenSource::Configured(secret(self.token_file.as_ref(), token)),
                None => TokenSource::Absent,
            },
            ca: self.ca.clone(),
            limits: Arc::new(Limits::new(self.limit_values())),
            request_timeout: self.request_timeout,
        }
    }

    /// The settings of the connection to its MAS, with the limits of the two addresses.
    pub fn mas_settings(
        &self,
        mut limits: impl FnMut(&Address) -> Option<Arc<Limits>>,
    ) -> Option<mas::Settings> {
        let mas = self.mas.as_ref()?;
        let mut limits_of = |url: &Url| {
            limits(&Address::of(url)).unwrap_or_else(|| Arc::new(Limits::new(self.limit_values())))
        };
        Some(mas::Settings {
            name: self.name.clone(),
            limits: [limits_of(&mas.url), limits_of(&mas.admin_url)],
            url: mas.url.clone(),
            admin_url: mas.admin_url.clone(),
            client_id: mas.client_id.clone(),
            client_secret: secret(mas.secret_file.as_ref(), &mas.secret),
            account: mas.account.clone(),
            ca: self.ca.clone(),
            request_timeout: self.request_timeout,
        })
    }

    /// Changes with every key of the homeserver; not with the content of a token file, which is read for each request.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.definition
    }

    /// Changes with everything that makes a connection.
    ///
    /// Unlike [`Self::fingerprint`] it includes files, which are missing in a configuration loaded without secrets.
    pub fn connection_fingerprint(&self) -> Fingerprint {
        let ca = self.ca.as_deref().map(Fingerprint::of_bytes);
        match &self.mas {
            None => Fingerprint::of(&json!([self.definition, self.token_file, ca])),
            Some(mas) => Fingerprint::of(&json!([self.definition, mas.secret_file, ca])),
        }
    }
}

/// A secret that is read again for each use where it is in a file.
fn secret(file: Option<&PathBuf>, secret: &SecretString) -> Token {
    match file {
        Some(file) => Token::from_file(file.clone(), secret.clone()),
        None => Token::inline(secret.clone()),
    }
}

fn lower_values(one: LimitValues, other: LimitValues) -> LimitValues {
    LimitValues {
        max_concurrent_requests: one.max_concurrent_requests.min(other.max_concurrent_requests),
        max_requests_per_second: one.max_requests_per_second.lower(other.max_requests_per_second),
        max_joins_per_second: lower(one.max_joins_per_second, other.max_joins_per_second),
    }
}

fn lower(one: Limit<Rate>, other: Limit<Rate>) -> Limit<Rate> {
    match (one, other) {
        (Limit::Of(one), Limit::Of(other)) => Limit::Of(Rate(one.0.min(other.0))),
        (Limit::Unlimited, limit) | (limit, Limit::Unlimited) => limit,
    }
}
