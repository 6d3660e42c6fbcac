//! The table `[daemon]`.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use toml::Spanned;
use toml::de::DeTable;

use super::super::keys::{DaemonKeys, HostName, Listen};
use super::super::secrets::SecretFile;
use super::super::settings::{Daemon, HistoryPlace};
use super::super::source::beside;
use super::{LISTEN, Parser, Reported, STATE_DIR};
use crate::history::DatabaseUrl;
use crate::values::schema::{Entry, Table};

/// Anyone with the admin token can start jobs over HTTP, so it must not be guessable.
const MIN_ADMIN_TOKEN: usize = 16;

impl Parser<'_> {
    pub(super) fn daemon(&mut self, entries: &DeTable<'_>, root: &DeTable<'_>) -> Option<Daemon> {
        let table = Table::new(entries, root.get("daemon").map_or(0..0, Spanned::span));
        table.reject_unknown(&[DaemonKeys::KEYS], &mut self.errors);
        let keys = DaemonKeys::parse(&table, &mut self.errors);
        let admin = self.admin_token(&keys.admin_token_file);
        let database = self.database(&keys.database_url, &keys.database_url_file);
        let listen = self.listen(&keys.listen, &table);
        let state_dir = keys.state_dir.value?.map(|dir| beside(self.sources.main(), &dir));
        let (admin_token_file, admin_token) =
            admin.ok()?.map_or((None, None), |admin| (Some(admin.path), Some(admin.secret)));
        let (history, database_url_file) = database.ok()?;
        Some(Daemon {
            listen: listen?,
            history,
            database_url_file,
            timezone: keys.timezone.value?,
            state_dir: state_dir
                .or_else(|| self.environment.state_directory.clone())
                .unwrap_or_else(|| STATE_DIR.into()),
            shutdown_grace: keys.shutdown_grace.value?,
            keep_history: keys.keep_history.value?,
            watch_config: keys.watch_config.value?.0,
            allowed_hosts: keys
                .allowed_hosts
                .value?
                .into_iter()
                .map(|HostName(name)| name)
                .collect(),
            admin_token_file,
            admin_token,
            public_url: keys.public_url.value?.map(|url| url.0),
        })
    }

    fn listen(
        &mut self,
        listen: &Entry<Option<Listen>>,
        table: &Table<'_, '_>,
    ) -> Option<SocketAddr> {
        if let Some(listen) = listen.value? {
            return Some(listen.0);
        }
        let Some(text) = &self.environment.listen else { return Some(LISTEN) };
        match text.parse::<Listen>() {
            Ok(listen) => Some(listen.0),
            Err(error) => {
                self.error(table.span.clone(), format!("$MICROGLIA_LISTEN: {error}"));
                None
            }
        }
    }

    /// Where the history is, and the file that says so.
    fn database(
        &mut self,
        inline: &Entry<Option<SecretString>>,
        file: &Entry<Option<PathBuf>>,
    ) -> Result<(HistoryPlace, Option<PathBuf>), Reported> {
        if inline.is_set && file.is_set {
            self.error(inline.span.clone(), "`database_url` and `database_url_file` are mutually exclusive: remove one of them, preferably `database_url`");
            return Err(Reported);
        }
        let inline_url = inline.value.as_ref().ok_or(Reported)?;
        if let Some(url) = inline_url {
            self.secrets.warn_if_shared(&inline.span, "database_url_file", &mut self.warnings);
            let place = self.database_url(url, &inline.span, None)?;
            return Ok((place, None));
        }
        let Some(path) = file.value.as_ref().ok_or(Reported)? else {
            return Ok((HistoryPlace::StateDir, None));
        };
        match self.secrets.read_always(path, "database_url_file", &file.span, &mut self.warnings) {
            Ok(read) => {
                let place = self.database_url(&read.secret, &file.span, Some(&read.path))?;
                Ok((place, Some(read.path)))
            }
            // Only commands that read the history need it.
            Err(error) if self.secrets.are_optional() => {
                Ok((HistoryPlace::Unreadable(error.text), None))
            }
            Err(error) => {
                self.errors.push(error);
                Err(Reported)
            }
        }
    }

    fn database_url(
        &mut self,
        url: &SecretString,
        span: &Range<usize>,
        file: Option<&Path>,
    ) -> Result<HistoryPlace, Reported> {
        DatabaseUrl::parse(url).map(HistoryPlace::Database).map_err(|error| {
            let file = file.map(|file| format!("{}: ", file.display())).unwrap_or_default();
            self.error(span.clone(), format!("{file}{error}"));
            Reported
        })
    }

    fn admin_token(
        &mut self,
        entry: &Entry<Option<PathBuf>>,
    ) -> Result<Option<SecretFile>, Reported> {
        let Some(path) = entry.value.as_ref().ok_or(Reported)? else { return Ok(None) };
        let read = self.secrets.read(path, "admin_token_file", &entry.span, &mut self.warnings);
        let admin = match read {
            Ok(admin) => admin,
            Err(error) => {
                self.errors.push(error);
                return Err(Reported);
            }
        };
        // It is empty where secrets are not read.
        if (1..MIN_ADMIN_TOKEN).contains(&admin.secret.expose_secret().len()) {
            let text = format!(
                "the admin token in {} is shorter than {MIN_ADMIN_TOKEN} characters: use a longer one, such as the output of `openssl rand -hex 32`",
                admin.path.display()
            );
            self.error(entry.span.clone(), text);
            return Err(Reported);
        }
        Ok(Some(admin))
    }
}
