//! When to examine which job again: a queue of times without a clock of its own.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use chrono::TimeDelta;

use crate::values::clock::Timestamp;

/// The time at which each job is to be examined.
#[derive(Debug, Default)]
pub struct Agenda {
    times: HashMap<Arc<str>, Timestamp>,
    queue: BTreeSet<(Timestamp, Arc<str>)>,
    last_look: Option<Timestamp>,
}

/// The result of examining the agenda.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Whether the clock went back since the last time, so that every job has to be planned anew.
    pub set_back: bool,
    /// The time of the first of the jobs, or the current time.
    pub at: Timestamp,
    pub jobs: Vec<Arc<str>>,
}

/// A smaller step back is jitter of the clock.
const JITTER: TimeDelta = TimeDelta::seconds(60);

impl Agenda {
    /// Sets the time at which to examine a job, or removes the job.
    pub fn set(&mut self, job: &str, at: Option<Timestamp>) {
        let job: Arc<str> = match self.times.remove_entry(job) {
            Some((job, before)) => {
                let entry = (before, job);
                self.queue.remove(&entry);
                entry.1
            }
            None => job.into(),
        };
        if let Some(at) = at {
            self.queue.insert((at, Arc::clone(&job)));
            self.times.insert(job, at);
        }
    }

    /// When the job is examined next.
    pub fn time(&self, job: &str) -> Option<Timestamp> {
        self.times.get(job).copied()
    }

    /// Removes and returns every job whose time has come; `None` if there is nothing to do.
    pub fn pop_due(&mut self, now: Timestamp) -> Option<Due> {
        let set_back = self.last_look.is_some_and(|last| now < last - JITTER);
        self.last_look = Some(now);
        let mut due = Due { set_back, at: now, jobs: Vec::new() };
        while self.queue.first().is_some_and(|(at, _)| *at <= now) {
            let Some((at, job)) = self.queue.pop_first() else { break };
            self.times.remove(&job);
            due.at = due.at.min(at);
            due.jobs.push(job);
        }
        (due.set_back || !due.jobs.is_empty()).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-11-23T{text}Z").parse().unwrap()
    }

    fn due(agenda: &mut Agenda, now: &str) -> Option<(bool, Vec<String>)> {
        let due = agenda.pop_due(at(now))?;
        Some((due.set_back, due.jobs.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn a_job_is_due_once_at_its_time() {
        let mut agenda = Agenda::default();
        agenda.set("b", Some(at("10:00:02")));
        agenda.set("a", Some(at("10:00:05")));
        agenda.set("a", Some(at("10:00:01")));
        agenda.set("never", Some(at("10:00:00")));
        agenda.set("never", None);
        assert_eq!(due(&mut agenda, "10:00:00"), None);
        assert_eq!(due(&mut agenda, "10:00:03"), Some((false, vec!["a".into(), "b".into()])));
        assert_eq!(due(&mut agenda, "10:00:10"), None);
    }

    #[test]
    fn a_clock_that_goes_back_by_more_than_jitter_is_reported() {
        let mut agenda = Agenda::default();
        assert_eq!(due(&mut agenda, "10:00:00"), None);
        assert_eq!(due(&mut agenda, "09:59:00"), None);
        assert_eq!(due(&mut agenda, "09:57:00"), Some((true, vec![])));
        assert_eq!(due(&mut agenda, "09:57:01"), None);
    }

    #[test]
    fn a_thousand_jobs_of_the_same_second_are_all_due() {
        let mut agenda = Agenda::default();
        for number in 0..1000 {
            agenda.set(&format!("job-{number}"), Some(at("10:00:00")));
        }
        assert_eq!(agenda.pop_due(at("10:00:00")).unwrap().jobs.len(), 1000);
    }
}
