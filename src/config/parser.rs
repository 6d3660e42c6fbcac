//! From the tables of the config to settings and jobs, with every mistake on the way.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use uuid::Uuid;

use super::entries::{
    CommonKeys, DaemonKeys, HeadKeys, HomeserverKeys, HostName, KindName, Listen, Names,
};
use super::secrets::{Secrets, pasted};
use super::{Config, Daemon, Environment, Homeserver, JobSpec, LISTEN, STATE_DIR, beside};
use crate::jobs::{KINDS, kind};
use crate::synapse::Address;
use crate::values::clock::Timestamp;
use crate::values::schedule::{Schedule, Zone};
use crate::values::schema::{ConfigError, Key, Table, unknown_key, wrong_type};

/// Whoever has the admin token may start jobs over HTTP: it must not be guessed.
const SHORTEST_ADMIN_TOKEN: usize = 16;

pub(super) struct Parser<'a> {
    pub path: &'a Path,
    pub environment: &'a Environment,
    pub now: Timestamp,
    pub mistakes: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
    pub secrets: Secrets,
}

impl Parser<'_> {
    pub fn config(&mut self, root: &DeTable<'_>) -> Option<Config> {
        const TABLES: [&str; 4] = ["daemon", "homeservers", "defaults", "jobs"];
        for key in root.keys() {
            let name = key.get_ref().as_ref();
            if TABLES.contains(&name) {
                continue;
            }
            self.mistakes.push(match table_of(name) {
                Some(table) => ConfigError::new(
                    key.span(),
                    format!("`{name}` belongs in {table}: write it below that heading"),
                ),
                None => unknown_key(key.span(), name, &TABLES),
            });
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
            self.warnings.push(ConfigError::new(
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
            let keys = &homeservers.get(&spec.homeserver)?.keys;
            spec.media_in_object_storage = keys.media_in_object_storage;
            let name = format!("{} {}", spec.name, keys.url.0.as_str());
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
            let read = self.secrets.read(
                &file,
                "admin_token_file",
                &mut self.mistakes,
                &mut self.warnings,
            )?;
            let length = read.1.expose_secret().len();
            // It is empty where secrets are not read.
            if (1..SHORTEST_ADMIN_TOKEN).contains(&length) {
                self.mistakes.push(ConfigError::new(
                    file.span(),
                    format!("the admin token in {} is shorter than {SHORTEST_ADMIN_TOKEN} characters: write a longer one, such as the output of `openssl rand -hex 32`", read.0.display()),
                ));
                return None;
            }
            Some(read)
        });
        let keys = keys?;
        let listen = match (&keys.listen, &self.environment.listen) {
            (Some(listen), _) => listen.0,
            (None, Some(text)) => match text.parse::<Listen>() {
                Ok(listen) => listen.0,
                Err(error) => {
                    self.mistakes.push(ConfigError::new(
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
        let DaemonKeys {
            timezone, shutdown_grace, keep_history, watch_config, allowed_hosts, ..
        } = keys;
        Some(Daemon {
            listen,
            timezone,
            state_dir,
            shutdown_grace,
            keep_history,
            watch_config: watch_config.0,
            allowed_hosts: allowed_hosts.into_iter().map(|HostName(name)| name).collect(),
            admin_token_file,
            admin_token,
        })
    }

    fn homeservers(&mut self, table: &DeTable<'_>) -> Vec<(String, Option<Homeserver>)> {
        if table.is_empty() {
            self.mistakes.push(ConfigError::new(0..0, "there is no homeserver: add [homeservers.main] with `url = \"http://127.0.0.1:8008\"` and `access_token_file = \"token\"`"));
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
        self.warn_of_shared_addresses(table, &homeservers);
        homeservers
    }

    /// Two names for one homeserver are most likely a slip, and share their limits in any case.
    fn warn_of_shared_addresses(
        &mut self,
        table: &DeTable<'_>,
        homeservers: &[(String, Option<Homeserver>)],
    ) {
        let mut known: BTreeMap<Address, &str> = BTreeMap::new();
        for (name, homeserver) in homeservers {
            let Some(homeserver) = homeserver else { continue };
            let Some(first) = known.insert(homeserver.address(), name) else { continue };
            let span = table.get_key_value(name.as_str()).map_or(0..0, |(key, _)| key.span());
            self.warnings.push(ConfigError::new(
                span,
                format!("`{name}` has the same address as `{first}`: they share their limits, the lowest of each"),
            ));
        }
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
                self.mistakes.push(ConfigError::new(text.span(), "the token is empty"));
                None
            }
            (Some(text), None) => {
                self.secrets.warn_inline(&text, &mut self.warnings);
                if let Some(warning) = pasted(text.get_ref()) {
                    self.warnings
                        .push(ConfigError::new(text.span(), format!("the token {warning}")));
                }
                Some((None, SecretString::from(text.into_inner())))
            }
            (None, Some(file)) => self
                .secrets
                .read(&file, "access_token_file", &mut self.mistakes, &mut self.warnings)
                .map(|(path, secret)| (Some(path), secret)),
            (Some(_), Some(_)) => {
                self.mistakes.push(ConfigError::new(table.span_of("access_token"), "`access_token` and `access_token_file` are both given: keep exactly one, better the file"));
                None
            }
            (None, None) => {
                if !table.has("access_token") && !table.has("access_token_file") {
                    self.mistakes.push(ConfigError::new(
                        table.span.clone(),
                        "the token is missing: add `access_token_file = \"token\"`",
                    ));
                }
                None
            }
        };
        let ((token_file, token), keys, ca) = (token?, keys?, ca?);
        for (key, url) in [("url", Some(&keys.url)), ("media_url", keys.media_url.as_ref())] {
            if url.is_some_and(|url| url.0.scheme() == "http" && !is_loopback(&url.0)) {
                self.warnings.push(ConfigError::new(
                    table.span_of(key),
                    "the token crosses the network unencrypted: use https://, or Synapse's listener on this machine",
                ));
            }
        }
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
            self.mistakes.push(ConfigError::new(
                name.span(),
                format!("`{text}` is no name for a {what}: use {allowed_text}"),
            ));
        }
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.mistakes.push(ConfigError::new(
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
            self.mistakes.push(ConfigError::new(
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
                self.mistakes.push(ConfigError::new(
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
            job.warnings()
                .into_iter()
                .map(|(key, text)| ConfigError::new(table.span_of(key), text)),
        );
        let zone = common.timezone.unwrap_or(daemon_zone);
        if let Some(warning) =
            head.schedule.as_ref().and_then(|schedule| too_often(schedule, self.now))
        {
            self.warnings.push(ConfigError::new(table.span_of("schedule"), warning));
        }
        // Days on which clocks change do not count, as in UTC.
        if let (Some(schedule), Some(window)) = (&head.schedule, common.window)
            && schedule.next_in(window, self.now, Zone(chrono_tz::UTC)).is_none()
        {
            self.mistakes.push(ConfigError::new(
                table.span_of("window"),
                format!("the schedule {:?} never comes in the window {window}, so that the job would never run: change one of them", schedule.as_str()),
            ));
        }
        let several =
            chosen.len() > 1 || common.homeserver.as_ref().is_some_and(|names| names.list);
        let name = name.get_ref().as_ref();
        chosen
            .into_iter()
            .map(|homeserver| JobSpec {
                name: if several { format!("{name}@{homeserver}") } else { name.to_owned() },
                homeserver,
                schedule: head.schedule.clone(),
                zone,
                common: common.clone(),
                job: Arc::clone(&job),
                media_in_object_storage: false,
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
            self.mistakes.push(ConfigError::new(table.span.clone(), format!("there are several homeservers: add `homeserver = \"…\"`, one of {}, or a list of them", known.join(", "))));
            return Vec::new();
        };
        for name in &names.get_ref().names {
            if !known.contains(&name.as_str()) {
                self.mistakes.push(ConfigError::new(
                    names.span(),
                    format!("homeserver {}", crate::values::text::not_one_of(name, known)),
                ));
            }
        }
        names.into_inner().names
    }
}

/// Names the table that a key of the config belongs in.
fn table_of(key: &str) -> Option<&'static str> {
    let named = |keys: &[Key]| keys.iter().any(|known| known.name == key);
    match () {
        () if named(DaemonKeys::KEYS) => Some("[daemon]"),
        () if named(HomeserverKeys::KEYS) => Some("[homeservers.NAME]"),
        () if named(HeadKeys::KEYS) => Some("[jobs.NAME]"),
        () if named(CommonKeys::KEYS) => Some("[jobs.NAME] or [defaults]"),
        () if KINDS.iter().any(|kind| named(kind.keys)) => Some("[jobs.NAME]"),
        () => None,
    }
}

/// Whether a request to the URL stays on this machine.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match address {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// Warns of a schedule with seconds that comes more than once a minute, which is rarely meant.
fn too_often(schedule: &Schedule, now: Timestamp) -> Option<String> {
    let (text, (minute_fields, _)) = (schedule.as_str(), schedule.as_str().rsplit_once(' ')?);
    if text.split_whitespace().count() != 6 {
        return None;
    }
    let next: Vec<_> = schedule.after(now, Zone(chrono_tz::UTC)).take(3).collect();
    let shortest = next.windows(2).map(|pair| (pair[1] - pair[0]).num_seconds()).min()?;
    (shortest < 60).then(|| {
        format!("`{text}` has six fields, the first of which is seconds, and comes every {shortest} s: did you mean `{}`?", minute_fields.trim_end())
    })
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
