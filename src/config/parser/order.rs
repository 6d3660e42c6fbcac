//! Warns of jobs that run before another one that needs what they delete.

use std::collections::BTreeSet;

use toml::de::DeTable;

use super::super::job_spec::JobSpec;
use super::Parser;
use crate::values::clock::Timestamp;

impl Parser<'_> {
    /// `jobs` are the tables of the jobs.
    pub(super) fn check_order(&mut self, specs: &[JobSpec], jobs: &DeTable<'_>) {
        let mut found = BTreeSet::new();
        for spec in specs {
            let Some(kind) = spec.job.kind().runs_after else { continue };
            let others = specs.iter().filter(|other| {
                other.homeserver == spec.homeserver && other.job.kind().name == kind
            });
            let others = others.filter(|other| runs_before(spec, other, self.now) == Some(true));
            found.extend(others.map(|other| (base(spec), base(other), kind)));
        }
        for (name, other, kind) in found {
            let table = jobs.get(name).and_then(|job| job.get_ref().as_table());
            let Some(schedule) = table.and_then(|table| table.get("schedule")) else { continue };
            let text = format!(
                "this job runs before `{other}` ({kind}) on the same homeserver, which judges by what this one deletes: schedule it after that job"
            );
            self.warn(schedule.span(), text);
        }
    }
}

/// The name of the job's table.
fn base(spec: &JobSpec) -> &str {
    spec.name.split('@').next().unwrap_or_default()
}

/// Whether a job runs sooner before the other one than after it; `None` if one of them does not run on schedule.
///
/// Judged by an occurrence of the one that runs less often.
fn runs_before(spec: &JobSpec, other: &JobSpec, now: Timestamp) -> Option<bool> {
    if !spec.common.enabled || !other.common.enabled {
        return None;
    }
    let (own, others) = (spec.next(now)?, other.next(now)?);
    let (own_interval, others_interval) = (spec.next(own)? - own, other.next(others)? - others);
    if own_interval >= others_interval {
        let before = own - last(other, own - chrono::TimeDelta::milliseconds(1))?;
        let after = other.next(own - chrono::TimeDelta::milliseconds(1))? - own;
        Some(after < before)
    } else {
        let before = others - last(spec, others)?;
        let after = spec.next(others)? - others;
        Some(before < after)
    }
}

/// The last occurrence at or before `until`.
fn last(spec: &JobSpec, until: Timestamp) -> Option<Timestamp> {
    let from = until - chrono::TimeDelta::days(1500);
    spec.schedule.as_ref()?.last(from, until, spec.zone)
}
