//! Keeps the leases of this replica, where several daemons share a history in PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use chrono::TimeDelta;

use super::held::Leases;
use super::lease_times::LeaseTimes;
use super::message::Message;
use super::supervisor::Supervisor;
use crate::history::{self, Others, Renewal, Replica, Wanted};
use crate::values::clock::Timestamp;

/// How far clocks may be apart; the answer of the database may take some seconds.
const MAX_CLOCK_DIFFERENCE: TimeDelta = TimeDelta::seconds(10);

/// The task that renews leases, spreads them over the replicas, and sends the owner of the jobs those that are held.
pub struct LeaseKeeper {
    supervisor: Arc<Supervisor>,
    times: LeaseTimes,
    name: String,
    /// The terms of the leases that the owner of the jobs has, which are valid until `trusted_until`.
    sent_terms: BTreeMap<String, i64>,
    trusted_until: Instant,
    /// Whether the owner of the jobs counts on the database.
    is_current: bool,
    elsewhere: Elsewhere,
    differing: BTreeSet<String>,
    /// How far this machine's clock is ahead of the database's, where that is too far.
    clock_ahead: Option<TimeDelta>,
    is_failing: bool,
    is_stopping: bool,
}

/// The homeservers that are not this replica's.
#[derive(Default)]
struct Elsewhere {
    /// What others hold: free, it may be this replica's to take.
    held: BTreeSet<String>,
    /// What nobody held when it was looked at last, or is being left to others, each with its last term.
    free: BTreeMap<String, i64>,
}

impl Elsewhere {
    /// Takes note of what nobody holds now; returns whether others held some of it since.
    fn look(&mut self, free: BTreeMap<String, i64>, mine: &BTreeMap<String, i64>) -> bool {
        let before = std::mem::replace(&mut self.free, free);
        // One with a later term was taken and left between two looks.
        let taken = before.into_iter().filter(|(one, term)| self.free.get(one) != Some(term));
        let taken = taken.map(|(one, _)| one).filter(|one| !mine.contains_key(one));
        self.held.extend(taken);
        self.free.keys().any(|one| self.held.contains(one))
    }
}

impl LeaseKeeper {
    /// `None` where nobody shares the history.
    pub fn new(supervisor: &Arc<Supervisor>, times: LeaseTimes, name: String) -> Option<Self> {
        supervisor.history().is_shared().then(|| Self {
            supervisor: Arc::clone(supervisor),
            times,
            name,
            sent_terms: BTreeMap::new(),
            trusted_until: Instant::now(),
            is_current: false,
            elsewhere: Elsewhere::default(),
            differing: BTreeSet::new(),
            clock_ahead: None,
            is_failing: false,
            is_stopping: false,
        })
    }

    /// Runs as long as the daemon.
    pub async fn keep(mut self) {
        let mut renewed = Instant::now();
        loop {
            let is_woken = tokio::select! {
                () = tokio::time::sleep(self.times.poll_every) => false,
                () = self.supervisor.wake_keeper.notified() => true,
            };
            let stops = is_woken && !self.is_stopping && self.wanted().await.stopping;
            // Before requests are taken, which the next holder carries out.
            if is_woken && let Err(error) = self.give(None).await {
                self.failed(&error).await;
            }
            let due = renewed.elapsed() >= self.times.renew_every || self.is_failing || stops;
            if due || self.check_others().await {
                self.is_stopping |= stops;
                renewed = Instant::now();
                self.renew().await;
            }
        }
    }

    /// Checks what other replicas did and request; returns whether leases became free.
    async fn check_others(&mut self) -> bool {
        let Self { supervisor, times, .. } = self;
        let (mut free, mut requests) = (None, Vec::new());
        let look = supervisor.follow_pause(async || {
            let state = supervisor.history().shared_state().await.ok()?;
            (free, requests) = (Some(state.free), state.requests);
            Some(state.pause)
        });
        let looked = tokio::time::timeout(times.renew_every, look).await;
        let became_free = match free.filter(|_| looked.is_ok()) {
            Some(free) => self.elsewhere.look(free, &self.sent_terms),
            None => false,
        };
        for request in requests {
            // The successor of a replica that is stopping takes them.
            if !self.is_stopping && self.sent_terms.contains_key(&request.homeserver) {
                self.supervisor.take_request(request.id, self.times.renew_every).await;
            }
        }
        became_free
    }

    /// Renews the leases, and sends the owner those that are held.
    pub async fn renew(&mut self) {
        let wanted = self.wanted().await;
        // From before the request: what the database counts from is later.
        let sent = Instant::now();
        let history = self.supervisor.history();
        let renewing = history.renew_leases(&wanted, self.times.ttl);
        let renewed = match tokio::time::timeout(self.times.renew_every, renewing).await {
            Ok(Ok(renewal)) => self.renewed(renewal, &wanted, sent).await,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        match renewed {
            Ok(()) if std::mem::take(&mut self.is_failing) => {
                tracing::info!(target: "microglia::scheduler", "leases of homeservers are renewed again");
            }
            Ok(()) => {}
            Err(error) => self.failed(&error).await,
        }
    }

    async fn wanted(&self) -> Wanted {
        let wanted = self.supervisor.ask(|reply| Message::Wanted { reply }).await;
        Wanted { name: self.name.clone(), ..wanted.unwrap_or_default() }
    }

    async fn failed(&mut self, error: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::error!(target: "microglia::scheduler", "cannot renew the leases of homeservers: {error}");
        }
        if Instant::now() >= self.trusted_until && std::mem::take(&mut self.is_current) {
            if !self.sent_terms.is_empty() {
                tracing::error!(target: "microglia::scheduler", "the leases of all homeservers have ended: nothing runs on schedule here until they can be renewed");
            }
            self.sent_terms.clear();
            self.send_leases(Leases::default()).await;
        }
    }

    async fn renewed(
        &mut self,
        renewal: Renewal,
        wanted: &Wanted,
        sent: Instant,
    ) -> Result<(), String> {
        self.compare(&renewal.replicas, wanted);
        if let Some(now) = renewal.now {
            self.compare_clocks(now);
        }
        let Renewal { held, surplus, elsewhere, .. } = renewal;
        self.trusted_until = sent + self.times.ttl.saturating_sub(self.times.margin);
        self.elsewhere.held = elsewhere.intersection(&wanted.homeservers).cloned().collect();
        // One with another term was lost in between, and another replica may have worked.
        self.sent_terms.retain(|homeserver, term| held.get(homeserver) == Some(term));
        self.is_current = true;
        self.send_leases(self.leases()).await;
        if held.len() > self.sent_terms.len() {
            self.gain(held).await.map_err(|error| error.to_string())?;
        }
        let surplus = if wanted.stopping { usize::MAX } else { surplus };
        self.give(Some(surplus)).await
    }

    fn leases(&self) -> Leases {
        let held =
            self.sent_terms.keys().map(|homeserver| (homeserver.clone(), self.trusted_until));
        Leases { held: held.collect(), is_current: true }
    }

    async fn send_leases(&self, leases: Leases) {
        self.supervisor.ask(|reply| Message::Leases { leases, reply }).await;
    }

    /// Lets the owner run jobs on homeservers that it did not have, with what the history knows about them.
    async fn gain(&mut self, held: BTreeMap<String, i64>) -> Result<(), history::Error> {
        let others = if self.differing.is_empty() { Others::Delete } else { Others::Keep };
        let ended = self.supervisor.try_end_interrupted().await?;
        let recollection = self.supervisor.recollect(others).await?;
        for homeserver in
            held.keys().filter(|homeserver| !self.sent_terms.contains_key(*homeserver))
        {
            tracing::info!(target: "microglia::scheduler", "this replica runs the jobs on {homeserver} from now on");
        }
        self.sent_terms = held;
        self.send_leases(self.leases()).await;
        self.supervisor.describe().await;
        self.supervisor.count_interrupted(ended);
        self.supervisor.tell_recollection(recollection, false).await;
        Ok(())
    }

    /// Gives away what others should have and where nothing runs.
    pub async fn give(&mut self, surplus: Option<usize>) -> Result<(), String> {
        let given = self.supervisor.ask(|reply| Message::StandDown { surplus, reply }).await;
        let given = given.unwrap_or_default();
        for homeserver in &given {
            tracing::info!(target: "microglia::scheduler", "this replica leaves the jobs on {homeserver} to another one");
            if let Some(term) = self.sent_terms.remove(homeserver) {
                self.elsewhere.free.insert(homeserver.clone(), term);
            }
        }
        if given.is_empty() {
            return Ok(());
        }
        let resign = async {
            // The next holder reads which occurrences were skipped.
            self.supervisor.ask(|reply| Message::Flush { reply }).await;
            self.supervisor.history().resign_leases(&given).await
        };
        match tokio::time::timeout(self.times.renew_every, resign).await {
            Ok(resigned) => resigned.map_err(|error| error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    /// Warns once where the clock of this machine is wrong, or that of the database.
    fn compare_clocks(&mut self, database: Timestamp) {
        let ahead = self.supervisor.now() - database;
        let too_far = Some(ahead).filter(|ahead| ahead.abs() > MAX_CLOCK_DIFFERENCE);
        if too_far.is_some() && self.clock_ahead.is_none() {
            let seconds = ahead.num_seconds().abs();
            let direction = if ahead > TimeDelta::zero() { "ahead of" } else { "behind" };
            tracing::warn!(target: "microglia::scheduler", "the clock of this machine is {seconds} s {direction} that of the database: jobs start at other times on each replica, and not again at the times that another one has run already; synchronize the clocks (`timedatectl`)");
        }
        self.clock_ahead = too_far;
    }

    /// Warns once of each replica with another configuration.
    fn compare(&mut self, replicas: &[Replica], wanted: &Wanted) {
        let differing: BTreeSet<String> = replicas
            .iter()
            .filter(|replica| replica.config != wanted.config)
            .map(|replica| replica.name.clone())
            .collect();
        for name in differing.difference(&self.differing) {
            tracing::warn!(target: "microglia::scheduler", "the replica {name} has another configuration: give all replicas the same jobs and homeservers");
        }
        self.supervisor.show_differing(differing.len());
        self.differing = differing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(elsewhere: &mut Elsewhere, free: &[(&str, i64)]) -> bool {
        let free = free.iter().map(|(name, term)| ((*name).to_owned(), *term)).collect();
        elsewhere.look(free, &BTreeMap::from([("mine".to_owned(), 1)]))
    }

    #[test]
    fn what_another_replica_took_and_left_between_two_renewals_is_noticed_once_it_is_free() {
        let held = BTreeSet::from(["theirs".to_owned()]);
        let mut elsewhere = Elsewhere { held, ..Elsewhere::default() };
        assert!(!look(&mut elsewhere, &[]));
        assert!(look(&mut elsewhere, &[("theirs", 1)]));

        let free = BTreeMap::from([("left".to_owned(), 3), ("mine".to_owned(), 1)]);
        let mut elsewhere = Elsewhere { free, ..Elsewhere::default() };
        assert!(!look(&mut elsewhere, &[("left", 3)]), "nobody has taken it yet");
        assert!(!look(&mut elsewhere, &[]), "another one has");
        assert!(look(&mut elsewhere, &[("left", 4)]), "and has left it");
        assert!(!look(&mut elsewhere, &[("mine", 1)]), "this replica held it");
        assert!(!look(&mut elsewhere, &[("nobody wants", 1)]));
        assert!(!look(&mut elsewhere, &[("nobody wants", 1)]));
    }

    #[test]
    fn what_another_replica_took_and_left_between_two_looks_is_noticed_by_its_term() {
        let free = BTreeMap::from([("left".to_owned(), 3)]);
        let mut elsewhere = Elsewhere { free, ..Elsewhere::default() };
        assert!(look(&mut elsewhere, &[("left", 4)]));
    }
}
