//! Reloading the configuration: on a signal, on request, or because the file changed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::SecretString;

use crate::config::{self, Config, Daemon, Environment, Notification};
use crate::http::Token;
use crate::observe::metrics::{Metrics, seconds};
use crate::scheduler::Adopted;
use crate::scheduler::supervisor::Supervisor;
use crate::values::clock::Clock;
use crate::values::fingerprint::Fingerprint;

/// How long reading and parsing the configuration may take.
const LONGEST_LOAD: Duration = Duration::from_secs(10);

/// Reloads the configuration, one reload at a time, all or nothing.
pub struct Reloader {
    path: PathBuf,
    environment: Environment,
    supervisor: Arc<Supervisor>,
    metrics: Arc<Metrics>,
    clock: Clock,
    one_at_a_time: tokio::sync::Mutex<()>,
    daemon: Mutex<Daemon>,
    notifications: Mutex<Arc<[Notification]>>,
    admin_token: Mutex<Option<Arc<Token>>>,
    /// The contents of the files when the configuration was last adopted or rejected.
    seen: Mutex<Option<Fingerprint>>,
}

impl Reloader {
    /// Starts from a config that is adopted already.
    pub fn new(
        path: PathBuf,
        environment: Environment,
        config: &Config,
        supervisor: Arc<Supervisor>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let seen = config::files_fingerprint(&path);
        let reloader = Self {
            path,
            environment,
            supervisor,
            metrics,
            clock,
            one_at_a_time: tokio::sync::Mutex::default(),
            daemon: Mutex::new(config.daemon.clone()),
            notifications: Mutex::new(config.notifications.as_slice().into()),
            admin_token: Mutex::new(admin_token(&config.daemon)),
            seen: Mutex::new(seen),
        };
        reloader.succeeded();
        reloader
    }

    /// Reads the configuration and adopts it. If it has errors, nothing changes and all errors are returned.
    pub async fn reload(&self, requested_by: &str) -> Result<Adopted, Vec<String>> {
        let _one = self.one_at_a_time.lock().await;
        let config = match self.load().await {
            Ok(config) => Arc::new(config),
            Err(errors) => return Err(self.rejected(errors)),
        };
        let mut adopted = match self.supervisor.adopt(&config).await {
            Ok(adopted) => adopted,
            Err(error) => return Err(self.rejected(vec![error.to_string()])),
        };
        for warning in &config.warnings {
            tracing::warn!(target: "microglia::config", "{}", warning.line());
        }
        adopted.restart_needed = self.settings(&config);
        self.succeeded();
        let Adopted { added, changed, removed, unchanged, restart_needed } = &adopted;
        tracing::info!(
            target: "microglia::config",
            "configuration reloaded ({requested_by}): {} added{}, {} changed{}, {} removed{}, {} unchanged",
            added.len(),
            named(added),
            changed.len(),
            named(changed),
            removed.len(),
            named(removed),
            unchanged.len()
        );
        for need in restart_needed {
            tracing::warn!(target: "microglia::config", "{need}");
        }
        self.supervisor.probe_all();
        Ok(adopted)
    }

    /// Reads and parses the file on a blocking thread: a slow disk or a large file delays nothing else.
    async fn load(&self) -> Result<Config, Vec<String>> {
        let (path, environment, now) =
            (self.path.clone(), self.environment.clone(), self.clock.now());
        let (sender, seen) = tokio::sync::oneshot::channel();
        let loading = tokio::task::spawn_blocking(move || {
            // After a timeout nobody receives it.
            let _ = sender.send(config::files_fingerprint(&path));
            Config::load(&path, &environment, now)
        });
        let file = self.path.display();
        let loaded = tokio::time::timeout(LONGEST_LOAD, async {
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen.await.ok().flatten();
            loading.await
        });
        match loaded.await {
            Ok(Ok(loaded)) => loaded.map_err(|errors| errors.lines()),
            Ok(Err(error)) => {
                Err(vec![format!("{file}: a bug in microglia, please report it: {error}")])
            }
            Err(_) => Err(vec![format!(
                "{file}: not read within {} s: check the disk, or make the file smaller",
                LONGEST_LOAD.as_secs()
            )]),
        }
    }

    fn rejected(&self, errors: Vec<String>) -> Vec<String> {
        self.metrics.config_successful.set(0.0);
        for error in &errors {
            tracing::error!(target: "microglia::config", "{error}");
        }
        tracing::error!(target: "microglia::config", "the configuration was not reloaded; keeping the previous configuration");
        errors
    }

    fn succeeded(&self) {
        self.metrics.config_successful.set(1.0);
        self.metrics.config_success_timestamp.set(seconds(self.clock.now()));
    }

    /// Adopts the daemon's own settings, and returns what needs a restart to change.
    fn settings(&self, config: &Config) -> Vec<String> {
        let mut daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        let new = &config.daemon;
        let mut needs: Vec<String> = Vec::new();
        if new.listen != daemon.listen {
            needs.push(format!("daemon.listen: {} stays in use until a restart", daemon.listen));
        }
        if new.state_dir != daemon.state_dir {
            needs.push(format!(
                "daemon.state_dir: {} stays in use until a restart",
                daemon.state_dir.display()
            ));
        }
        if new.history != daemon.history {
            needs.push(
                "daemon.database_url: the present history stays in use until a restart".to_owned(),
            );
        }
        needs.extend(config.from_credentials.iter().map(|file| {
            format!("{} is a systemd credential: only a restart renews it", file.display())
        }));
        *self.admin_token.lock().unwrap_or_else(PoisonError::into_inner) = admin_token(new);
        *self.notifications.lock().unwrap_or_else(PoisonError::into_inner) =
            config.notifications.as_slice().into();
        *daemon = Daemon {
            listen: daemon.listen,
            state_dir: daemon.state_dir.clone(),
            history: daemon.history.clone(),
            ..new.clone()
        };
        needs
    }

    pub fn daemon(&self) -> Daemon {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The rooms to which the daemon reports, sorted by name.
    pub(crate) fn notifications(&self) -> Arc<[Notification]> {
        Arc::clone(&self.notifications.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The token that endpoints which change something require, as its file contains it now.
    pub async fn admin_token(&self) -> Option<SecretString> {
        let token = self.admin_token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(token?.current().await)
    }

    /// Reads all files as often as `watch_config` says, and adopts a change once two consecutive readings agree.
    ///
    /// Compares the content, not timestamps or inodes: this works with Kubernetes' links, editors that rename, and NFS.
    pub async fn watch(self: Arc<Self>) {
        const OFF: Duration = Duration::from_secs(5);
        let mut last: Option<Fingerprint> = None;
        loop {
            let every = self.daemon().watch_config;
            tokio::time::sleep(every.map_or(OFF, |every| every.0)).await;
            if every.is_none() {
                continue;
            }
            let path = self.path.clone();
            let now = tokio::task::spawn_blocking(move || config::files_fingerprint(&path))
                .await
                .unwrap_or_default();
            let changed = now != *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            // A file that disappeared is a failed reload: the daemon could not start again.
            if changed && now == last {
                let _ = self.reload("the file changed").await;
            }
            last = now;
        }
    }
}

/// The first of some jobs, in brackets.
fn named(jobs: &[String]) -> String {
    const MAX_NAMED: usize = 10;
    let more = if jobs.len() > MAX_NAMED { ", …" } else { "" };
    match jobs {
        [] => String::new(),
        _ => format!(" ({}{more})", jobs[..jobs.len().min(MAX_NAMED)].join(", ")),
    }
}

fn admin_token(daemon: &Daemon) -> Option<Arc<Token>> {
    let (file, token) = (daemon.admin_token_file.clone()?, daemon.admin_token.clone()?);
    Some(Arc::new(Token::from_file(file, token)))
}
