//! The leases of homeservers as the owner of the jobs sees them: what may run here, and until when.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::held::Leases;
use super::job_state::Event;
use super::owner::{Entry, Owner};
use crate::history::Wanted;
use crate::values::fingerprint::Fingerprint;

impl Owner {
    /// Whether a job may be another replica's to run.
    pub(super) fn is_standby(&self, entry: &Entry) -> bool {
        self.leases.as_ref().is_some_and(|leases| !leases.is_held(entry.address()))
    }

    /// The replica that runs a job, if it is known and not this one.
    pub(super) fn holder(&self, entry: &Entry) -> Option<&str> {
        let leases = self.leases.as_ref().filter(|leases| !leases.is_held(entry.address()))?;
        leases.elsewhere.get(entry.address()).map(String::as_str)
    }

    /// Addresses of all homeservers, and what tells this configuration from another.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            homeservers: self
                .homeservers
                .addresses()
                .map(|(_, address)| address.to_owned())
                .collect(),
            name: String::new(),
            config: self.config.clone(),
            stopping: self.draining,
        }
    }

    /// Works out again what tells this configuration from another.
    pub(super) fn refresh_config(&mut self) {
        let jobs: BTreeMap<&String, &Fingerprint> =
            self.jobs.iter().map(|(job, entry)| (job, &entry.fingerprint)).collect();
        let addresses: BTreeMap<&str, &str> = self.homeservers.addresses().collect();
        self.config = Fingerprint::of(&json!([jobs, addresses])).to_string();
        self.show_leases();
    }

    /// Takes over which leases are held. Runs whose lease was lost end at their next change boundary.
    pub(super) fn take_leases(&mut self, leases: Leases) {
        let before = self.leases.replace(leases).unwrap_or_default();
        let held = self.leases.iter().flat_map(|leases| leases.held.keys());
        let held: BTreeSet<String> = held.cloned().collect();
        let had: BTreeSet<String> = before.held.into_keys().collect();
        let lost: BTreeSet<&String> = had.difference(&held).collect();
        let moved: BTreeSet<String> = had.symmetric_difference(&held).cloned().collect();
        let entries = self.jobs.values().chain(self.leaving.values());
        for entry in entries {
            if let Some(running) = &entry.running
                && lost.iter().any(|address| *address == entry.address())
            {
                running.stop.lease_lost();
            }
        }
        self.moved(&moved);
        self.show_leases();
    }

    /// Has the jobs on homeservers see whether they are this replica's to run now.
    fn moved(&mut self, moved: &BTreeSet<String>) {
        if moved.is_empty() {
            return;
        }
        let jobs = self.jobs.iter().filter(|(_, entry)| moved.contains(entry.address()));
        let jobs: Vec<(String, bool)> =
            jobs.map(|(job, entry)| (job.clone(), self.is_standby(entry))).collect();
        for (job, is_standby) in jobs {
            if is_standby {
                self.on(&job, Event::Wake);
            }
            self.metrics.jobs.update(&job, |series| {
                // What happened elsewhere is read from the history again.
                (series.recalled, series.last_success, series.success_due) = (None, None, None);
                (series.last_run, series.consecutive_failures) = (None, 0);
            });
        }
    }

    /// Leaves homeservers where nothing runs to others: those that are not needed any more, and so many beside them.
    pub(super) fn stand_down(&mut self, surplus: usize) -> Vec<String> {
        let known: BTreeSet<String> = self.wanted().homeservers;
        let entries = self.jobs.values().chain(self.leaving.values());
        let busy: BTreeSet<&str> = entries
            .filter(|entry| entry.running.is_some() || (entry.state.is_running() && !self.draining))
            .map(|entry| entry.address())
            .collect();
        let Some(leases) = &self.leases else { return Vec::new() };
        let idle = leases.held.keys().filter(|address| !busy.contains(address.as_str()));
        let (needed, unneeded): (Vec<&String>, Vec<&String>) =
            idle.partition(|address| known.contains(*address));
        let given: BTreeSet<String> =
            unneeded.into_iter().chain(needed.into_iter().take(surplus)).cloned().collect();
        if let Some(leases) = &mut self.leases {
            leases.held.retain(|address, _| !given.contains(address));
        }
        self.moved(&given);
        self.show_leases();
        given.into_iter().collect()
    }

    fn show_leases(&self) {
        for (name, address) in self.homeservers.addresses() {
            let held = self.leases.as_ref().is_none_or(|leases| leases.is_held(address));
            self.metrics.homeservers.set_lease_held(name, held);
        }
    }
}
