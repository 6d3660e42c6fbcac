//! The table `[daemon]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use secrecy::ExposeSecret;
use toml::Spanned;
use toml::de::DeTable;

use super::super::keys::{DaemonKeys, HostName, Listen};
use super::super::secrets::SecretFile;
use super::super::settings::Daemon;
use super::super::source::beside;
use super::{LISTEN, Parser, Reported, STATE_DIR};
use crate::values::schema::{Entry, Table};

/// Whoever has the admin token may start jobs over HTTP: it must not be guessed.
const MIN_ADMIN_TOKEN: usize = 16;

impl Parser<'_> {
    pub(super) fn daemon(&mut self, entries: &DeTable<'_>, root: &DeTable<'_>) -> Option<Daemon> {
        let table = Table::new(entries, root.get("daemon").map_or(0..0, Spanned::span));
        table.reject_unknown(&[DaemonKeys::KEYS], &mut self.errors);
        let keys = DaemonKeys::parse(&table, &mut self.errors);
        let admin = self.admin_token(&keys.admin_token_file);
        let listen = self.listen(&keys.listen, &table);
        let state_dir = keys.state_dir.value?.map(|dir| beside(self.sources.main(), &dir));
        let (admin_token_file, admin_token) =
            admin.ok()?.map_or((None, None), |admin| (Some(admin.path), Some(admin.secret)));
        Some(Daemon {
            listen: listen?,
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
