//! Adopting a configuration: unchanged jobs continue, the others are replaced, started or retired.

use std::sync::Arc;

use super::job_state::Event;
use super::owner::{Entry, Owner, timing};
use super::request::Adopted;
use crate::config::Config;
use crate::history::state_dir::StateDir;

impl Owner {
    /// All or nothing: a homeserver that cannot be set up leaves everything as it was.
    pub(super) fn adopt(&mut self, config: &Config) -> Result<Adopted, anyhow::Error> {
        // One that the configuration changed stays in use until a restart.
        let in_use = self.runner.dir.as_ref().map(StateDir::directory);
        let state_dir = in_use.unwrap_or(&config.daemon.state_dir);
        let prepared = self.homeservers.prepare(config, &self.metrics, &self.clock, state_dir)?;
        self.homeservers.adopt(config, prepared, &self.metrics);
        let mut adopted = Adopted::default();
        let removed: Vec<String> =
            self.jobs.keys().filter(|name| config.job(name).is_none()).cloned().collect();
        for name in removed {
            self.retire(&name);
            adopted.removed.push(name);
        }
        for spec in &config.jobs {
            let (Some(handle), Some(homeserver)) = (
                self.homeservers.handle(&spec.homeserver).cloned(),
                config.homeservers.get(&spec.homeserver),
            ) else {
                continue;
            };
            let fingerprint = spec.fingerprint(homeserver.fingerprint());
            let name = spec.name.clone();
            let Some(entry) = self.jobs.get_mut(&name) else {
                self.add(Entry::new(spec, fingerprint, handle, self.clock.now()));
                adopted.added.push(name);
                continue;
            };
            entry.homeserver = handle;
            if entry.fingerprint == fingerprint {
                adopted.unchanged.push(name);
                continue;
            }
            (entry.spec, entry.fingerprint) = (Arc::new(spec.clone()), fingerprint);
            self.on(&name, Event::Redefined(Box::new(timing(spec))));
            adopted.changed.push(name);
        }
        self.homeservers.set_limits(config, &self.metrics);
        self.refresh_config();
        Ok(adopted)
    }

    fn add(&mut self, mut entry: Entry) {
        let name = entry.spec.name.clone();
        // One that was just removed may still be running.
        let timing = timing(&entry.spec);
        if let Some(leaving) = self.leaving.remove(&name) {
            (entry.state, entry.running) = (leaving.state, leaving.running);
            entry.approved = leaving.approved;
        }
        self.jobs.insert(name.clone(), Box::new(entry));
        self.on(&name, Event::Redefined(Box::new(timing)));
    }

    /// Takes a job out; its run ends at its next change boundary.
    fn retire(&mut self, name: &str) {
        let Some(entry) = self.jobs.get(name) else { return };
        let mut never = timing(&entry.spec);
        never.enabled = false;
        self.on(name, Event::Redefined(Box::new(never)));
        let Some(entry) = self.jobs.remove(name) else { return };
        self.agenda().set(name, None);
        if let Some(running) = &entry.running {
            running.stop.cancelled_by("a reload that removed the job");
            self.leaving.insert(name.to_owned(), entry);
        }
    }
}
