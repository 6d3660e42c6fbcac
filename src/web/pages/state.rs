//! What the status page remembers between requests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::history::{self, HistoryReader, Totals};
use crate::scheduler::Adopted;
use crate::values::clock::Timestamp;
use crate::values::fingerprint::Fingerprint;

/// How many dry runs that were started from the page may be followed by a run that applies.
const MAX_PLANS: usize = 256;
/// How much longer than it took to compute them sums are used.
const REUSE_FACTOR: u32 = 100;
const MIN_REUSE: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct PageState {
    totals: tokio::sync::Mutex<Option<Known>>,
    plans: Mutex<BTreeMap<i64, PlannedRun>>,
    last_reload: Mutex<Option<Reload>>,
}

struct Known {
    totals: Arc<Vec<Totals>>,
    until: Instant,
}

/// A dry run that was started from the page.
struct PlannedRun {
    definition: Fingerprint,
    /// Whether a person was shown its end.
    was_seen: bool,
}

/// A reload that was requested from the page.
#[derive(Clone)]
pub(super) struct Reload {
    pub(super) at: Timestamp,
    pub(super) result: Result<Adopted, Vec<String>>,
}

impl PageState {
    /// The sums of the runs since a time; where there are very many runs, as of some seconds ago.
    pub(super) async fn totals(
        &self,
        history: &HistoryReader,
        since: Timestamp,
    ) -> Result<Arc<Vec<Totals>>, history::Error> {
        let mut known = self.totals.lock().await;
        let began = Instant::now();
        if let Some(known) = known.as_ref().filter(|known| began < known.until) {
            return Ok(Arc::clone(&known.totals));
        }
        let totals = Arc::new(history.totals(since).await?);
        let took = began.elapsed();
        let until = Instant::now() + (took * REUSE_FACTOR).max(MIN_REUSE);
        *known = Some(Known { totals: Arc::clone(&totals), until });
        Ok(totals)
    }

    fn plans(&self) -> MutexGuard<'_, BTreeMap<i64, PlannedRun>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn dry_run_started(&self, run: i64, definition: Fingerprint) {
        let mut plans = self.plans();
        plans.insert(run, PlannedRun { definition, was_seen: false });
        while plans.len() > MAX_PLANS {
            plans.pop_first();
        }
    }

    /// Returns the definition that a dry run was made with, and remembers that its end was shown.
    pub(super) fn show_plan(&self, run: i64) -> Option<Fingerprint> {
        let mut plans = self.plans();
        let plan = plans.get_mut(&run)?;
        plan.was_seen = true;
        Some(plan.definition.clone())
    }

    /// Returns the definition of a dry run whose end was shown.
    pub(super) fn seen_plan(&self, run: i64) -> Option<Fingerprint> {
        let plans = self.plans();
        plans.get(&run).filter(|plan| plan.was_seen).map(|plan| plan.definition.clone())
    }

    pub(super) fn last_reload(&self) -> Option<Reload> {
        self.last_reload.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn reloaded(&self, reload: Reload) {
        *self.last_reload.lock().unwrap_or_else(PoisonError::into_inner) = Some(reload);
    }
}
