//! The leases of homeservers as the owner of the jobs sees them: what may run here, and until when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;

use super::held::Leases;
use super::job_state::Event;
use super::owner::{Entry, Owner};
use crate::history::Wanted;
use crate::http::Transport;
use crate::values::fingerprint::Fingerprint;

impl Owner {
    /// Whether a job may be another replica's to run.
    pub(super) fn is_standby(&self, entry: &Entry) -> bool {
        self.leases.as_ref().is_some_and(|leases| !leases.is_held(entry.address()))
    }

    /// Whether a job is another replica's to run, which can be asked to.
    pub(super) fn is_elsewhere(&self, entry: &Entry) -> bool {
        let current = self.leases.as_ref().filter(|leases| leases.is_current);
        current.is_some_and(|leases| !leases.is_held(entry.address()))
    }

    /// The connection to a homeserver, unless another replica works on it.
    pub(super) fn homeserver(&self, name: &str) -> Option<Arc<Transport>> {
        let transport = &self.homeservers.handle(name)?.transport;
        let leases = self.leases.as_ref();
        let is_standby = leases.is_some_and(|leases| !leases.is_held(transport.address.as_str()));
        (!is_standby).then(|| Arc::clone(transport))
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
    pub(super) fn take_leases(&mut self, mut leases: Leases) {
        leases.held.retain(|address, _| !self.handover.given.contains(address));
        if leases.held.is_empty() {
            self.handover.surplus = 0;
        }
        let before = self.leases.replace(leases).unwrap_or_default();
        let held = self.leases.iter().flat_map(|leases| leases.held.keys());
        let held: BTreeSet<String> = held.cloned().collect();
        let had: BTreeSet<String> = before.held.into_keys().collect();
        let lost: BTreeSet<&String> = had.difference(&held).collect();
        let moved: BTreeSet<String> = had.symmetric_difference(&held).cloned().collect();
        let entries = self.jobs.values().chain(self.leaving.values());
        for entry in entries {
            if let Some(running) = &entry.running
                && lost.iter().any(|address| **address == running.address)
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
    /// Where too few are idle, those follow whose runs end first. Returns what is left to others since the last call.
    pub(super) fn stand_down(&mut self, surplus: Option<usize>) -> Vec<String> {
        let known: BTreeSet<String> = self.wanted().homeservers;
        let handover = &mut self.handover;
        if let Some(surplus) = surplus {
            handover.surplus = surplus.saturating_sub(handover.given.intersection(&known).count());
        }
        let idle: Vec<String> = {
            let busy = self.busy(None);
            let held = self.leases.iter().flat_map(|leases| leases.held.keys());
            held.filter(|address| !busy.contains(address.as_str())).cloned().collect()
        };
        for address in idle {
            self.leave(&address, !known.contains(&address));
        }
        std::mem::take(&mut self.handover.given).into_iter().collect()
    }

    /// The homeserver of a job whose run has ended, if another replica should have it and no other run needs it.
    pub(super) fn to_leave_after(&self, job: &str) -> Option<String> {
        let address = self.jobs.get(job).filter(|_| self.handover.surplus > 0)?.address();
        let is_held = self.leases.as_ref().is_some_and(|leases| leases.held.contains_key(address));
        (is_held && !self.busy(Some(job)).contains(address)).then(|| address.to_owned())
    }

    /// Addresses at which jobs run, or are about to; `ended` is a job whose run has ended.
    fn busy(&self, ended: Option<&str>) -> BTreeSet<&str> {
        let entries = self.jobs.iter().chain(&self.leaving);
        entries
            .filter(|(job, _)| Some(job.as_str()) != ended)
            .filter(|(_, entry)| {
                entry.running.is_some() || (entry.state.is_running() && !self.draining)
            })
            .map(|(_, entry)| match &entry.running {
                Some(running) => running.address.as_str(),
                None => entry.address(),
            })
            .collect()
    }

    /// Leaves a homeserver where nothing runs to others, if it is unneeded or one too many.
    pub(super) fn leave(&mut self, address: &str, is_unneeded: bool) {
        let Some(leases) = &mut self.leases else { return };
        let handover = &mut self.handover;
        if (!is_unneeded && handover.surplus == 0) || leases.held.remove(address).is_none() {
            return;
        }
        if !is_unneeded {
            handover.surplus -= 1;
        }
        handover.given.insert(address.to_owned());
        handover.wake_keeper.notify_one();
        self.moved(&BTreeSet::from([address.to_owned()]));
        self.show_leases();
    }

    fn show_leases(&self) {
        for (name, address) in self.homeservers.addresses() {
            let held = self.leases.as_ref().is_none_or(|leases| leases.is_held(address));
            self.metrics.homeservers.set_lease_held(name, held);
        }
    }
}
