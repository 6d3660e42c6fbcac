//! From the tables of the file to settings and job specs, collecting every error on the way.

mod daemon;
mod homeservers;
mod jobs;
mod mas;
mod merge;
mod notifications;
mod order;
mod secrets;
mod written;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use uuid::Uuid;

use super::keys::{CommonEntries, DaemonKeys, HeadKeys, HomeserverHeadKeys, HomeserverKeys};
use super::mas_keys::{MAS_TABLE, MasHeadKeys, MasKeys};
use super::notification_keys::NotificationKeys;
use super::secrets::Secrets;
use super::settings::{Config, Environment, Homeserver};
use super::sources::Sources;
use crate::jobs::KINDS;
use crate::values::clock::Timestamp;
use crate::values::schedule::Zone;
use crate::values::schema::{ConfigError, Key, unknown_key, wrong_type};

pub(super) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8749);
pub(super) const STATE_DIR: &str = "/var/lib/microglia";

const TABLES: [&str; 7] = [
    "include",
    "daemon",
    "homeserver_defaults",
    "homeservers",
    "notifications",
    "defaults",
    "jobs",
];
/// The tables that an included file may have, whose names are unique over all files.
const INCLUDED_TABLES: [&str; 2] = ["homeservers", "jobs"];
/// How many jobs there may be, counted once for each homeserver: globs multiply them.
const MAX_JOBS: usize = 100_000;

pub(super) struct Parser<'a> {
    sources: &'a Sources<'a>,
    environment: &'a Environment,
    now: Timestamp,
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
    pub secrets: Secrets<'a>,
}

/// Stands for an error that has been added to the parser's list.
struct Reported;

/// What the name of a job or homeserver consists of.
struct NameRule {
    what: &'static str,
    is_allowed: fn(char) -> bool,
    allowed: &'static str,
}

impl<'a> Parser<'a> {
    pub fn new(
        sources: &'a Sources<'a>,
        environment: &'a Environment,
        now: Timestamp,
        secrets: Secrets<'a>,
    ) -> Self {
        Self { sources, environment, now, errors: Vec::new(), warnings: Vec::new(), secrets }
    }

    pub fn config(&mut self, root: &DeTable<'_>) -> Option<Config> {
        self.reject_unknown_tables(root);
        let empty = DeTable::new();
        let daemon = self.table(root, "daemon", &empty).and_then(|table| self.daemon(table, root));
        let homeservers =
            self.table(root, "homeservers", &empty).map(|table| self.homeservers(table, root));
        // An error in one table must not hide those in the others.
        let zone = daemon.as_ref().map_or(Zone(chrono_tz::UTC), |daemon| daemon.timezone);
        let names: Vec<&str> =
            homeservers.iter().flatten().map(|(name, _)| name.as_str()).collect();
        let mut jobs = self.jobs(root, &names, zone);
        let notifications = self
            .table(root, "notifications", &empty)
            .map(|table| self.notifications(table, &names));
        let homeservers: BTreeMap<String, Homeserver> = homeservers?
            .into_iter()
            .map(|(name, homeserver)| Some((name, homeserver?)))
            .collect::<Option<_>>()?;
        for job in &mut jobs {
            let homeserver = homeservers.get(&job.homeserver)?;
            job.media_in_object_storage = homeserver.media_in_object_storage;
            let url = &homeserver.url;
            let name = format!("{} {url}", job.name);
            (job.splay_seed, _) = Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).as_u64_pair();
        }
        Some(Config {
            daemon: daemon?,
            homeservers,
            jobs,
            notifications: notifications?,
            included: self.sources.included(),
            warnings: Vec::new(),
            from_credentials: Vec::new(),
        })
    }

    fn reject_unknown_tables(&mut self, root: &DeTable<'_>) {
        for key in root.keys().filter(|key| !TABLES.contains(&key.get_ref().as_ref())) {
            self.reject_unknown_table(key, &TABLES);
        }
    }

    fn reject_unknown_table(&mut self, key: &Spanned<Cow<'_, str>>, known: &[&str]) {
        let name = key.get_ref().as_ref();
        self.errors.push(match table_of(name) {
            Some(table) => ConfigError::new(
                key.span(),
                format!("`{name}` belongs in {table}: move it below that heading"),
            ),
            None => unknown_key(key.span(), name, known),
        });
    }

    /// A table of the root; empty where it is absent, `None` after an error.
    fn table<'t, 'i>(
        &mut self,
        root: &'t DeTable<'i>,
        name: &str,
        empty: &'t DeTable<'i>,
    ) -> Option<&'t DeTable<'i>> {
        let Some(value) = root.get(name) else { return Some(empty) };
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.errors.push(wrong_type(value, &format!("a table [{name}]")));
        }
        table
    }

    /// The table of one job or homeserver.
    fn named_table<'t, 'i>(
        &mut self,
        name: &Spanned<Cow<'_, str>>,
        value: &'t Spanned<DeValue<'i>>,
        rule: &NameRule,
    ) -> Option<&'t DeTable<'i>> {
        let (text, what) = (name.get_ref(), rule.what);
        if text.is_empty() || text.starts_with('.') || !text.chars().all(rule.is_allowed) {
            self.errors.push(ConfigError::new(
                name.span(),
                format!("invalid {what} name `{text}`: use {}", rule.allowed),
            ));
        }
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.errors.push(ConfigError::new(
                name.span(),
                format!("a {what} must be a table: write [{what}s.{text}]"),
            ));
        }
        table
    }

    fn error(&mut self, span: std::ops::Range<usize>, text: impl Into<String>) {
        self.errors.push(ConfigError::new(span, text));
    }

    fn warn(&mut self, span: std::ops::Range<usize>, text: impl Into<String>) {
        self.warnings.push(ConfigError::new(span, text));
    }
}

/// The table to which a key of the configuration belongs.
fn table_of(key: &str) -> Option<&'static str> {
    let is_in = |keys: &[Key]| keys.iter().any(|known| known.name == key);
    if is_in(DaemonKeys::KEYS) {
        Some("[daemon]")
    } else if is_in(HomeserverHeadKeys::KEYS) {
        Some("[homeservers.NAME]")
    } else if is_in(HomeserverKeys::KEYS) {
        Some("[homeservers.NAME] or [homeserver_defaults]")
    } else if is_in(MAS_TABLE) {
        Some("[homeservers.NAME]")
    } else if is_in(MasHeadKeys::KEYS) || is_in(MasKeys::KEYS) {
        Some("[homeservers.NAME.mas]")
    } else if is_in(NotificationKeys::KEYS) {
        Some("[notifications.NAME]")
    } else if is_in(HeadKeys::KEYS) {
        Some("[jobs.NAME]")
    } else if is_in(CommonEntries::KEYS) {
        Some("[jobs.NAME] or [defaults]")
    } else if KINDS.iter().any(|kind| is_in(kind.keys)) {
        Some("[jobs.NAME]")
    } else {
        None
    }
}
