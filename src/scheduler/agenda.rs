//! Which job is due when: pure, without a clock of its own.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use chrono::TimeDelta;

use crate::values::clock::Timestamp;
use crate::values::schedule::{Schedule, Zone};

/// The next occurrence of each job.
#[derive(Debug, Default)]
pub struct Agenda {
    entries: HashMap<Arc<str>, Entry>,
    queue: BTreeSet<(Timestamp, Arc<str>)>,
    last_look: Option<Timestamp>,
}

#[derive(Debug)]
struct Entry {
    schedule: Schedule,
    zone: Zone,
    next: Option<Timestamp>,
    /// The last occurrence that was handed out.
    last: Option<Timestamp>,
}

/// A job is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub job: Arc<str>,
    pub occurrence: Timestamp,
}

/// A clock set back by less than this was corrected, by more it was set: as in cron(8), fixed times are not run again within it.
const CORRECTION: TimeDelta = TimeDelta::hours(3);
/// A smaller step back is the clock's own trembling.
const TREMBLING: TimeDelta = TimeDelta::seconds(60);

impl Agenda {
    /// Puts a job in, or changes its schedule; one whose schedule stays keeps its next occurrence.
    pub fn set(&mut self, job: &str, schedule: &Schedule, zone: Zone, now: Timestamp) {
        if self
            .entries
            .get(job)
            .is_some_and(|entry| entry.schedule == *schedule && entry.zone == zone)
        {
            return;
        }
        self.remove(job);
        let job: Arc<str> = job.into();
        let next = schedule.next(now, zone).map(|next| next.to_utc());
        self.queue.extend(next.map(|next| (next, Arc::clone(&job))));
        self.entries.insert(job, Entry { schedule: schedule.clone(), zone, next, last: None });
    }

    pub fn remove(&mut self, job: &str) {
        if let Some((job, Entry { next: Some(next), .. })) = self.entries.remove_entry(job) {
            self.queue.remove(&(next, job));
        }
    }

    pub fn next(&self, job: &str) -> Option<Timestamp> {
        self.entries.get(job)?.next
    }

    /// The job that is due first.
    pub fn first(&self) -> Option<Due> {
        self.queue
            .first()
            .map(|(occurrence, job)| Due { job: Arc::clone(job), occurrence: *occurrence })
    }

    /// Takes out everything that is due: a job once, with the last of the occurrences that passed while nobody looked.
    pub fn pop_due(&mut self, now: Timestamp) -> Vec<Due> {
        if self.last_look.is_some_and(|last| now < last - TREMBLING) {
            self.plan_again(now);
        }
        self.last_look = Some(now);
        let mut due = Vec::new();
        while self.queue.first().is_some_and(|(occurrence, _)| *occurrence <= now) {
            let Some((occurrence, job)) = self.queue.pop_first() else { break };
            let Some(entry) = self.entries.get_mut(&job) else { continue };
            let Entry { schedule, zone, .. } = entry;
            let next = schedule.next(occurrence, *zone).map(|next| next.to_utc());
            // Nobody looked for a while: the last of several stands for all.
            let (occurrence, next) = match next {
                Some(also_due) if also_due <= now => (
                    schedule.last(occurrence, now, *zone).unwrap_or(also_due),
                    schedule.next(now, *zone).map(|next| next.to_utc()),
                ),
                next => (occurrence, next),
            };
            (entry.last, entry.next) = (Some(occurrence), next);
            self.queue.extend(entry.next.map(|next| (next, Arc::clone(&job))));
            due.push(Due { job, occurrence });
        }
        due
    }

    /// The clock went back: without this every job would be silent until the old time comes again.
    fn plan_again(&mut self, now: Timestamp) {
        self.queue.clear();
        for (job, entry) in &mut self.entries {
            entry.next = entry.next_after(now);
            self.queue.extend(entry.next.map(|next| (next, Arc::clone(job))));
        }
    }

    /// Learns the last occurrence of a job that was handed out before the program started.
    pub fn remember(&mut self, job: &str, last: Timestamp, now: Timestamp) {
        let Some((job, mut entry)) = self.entries.remove_entry(job) else { return };
        if let Some(next) = entry.next {
            self.queue.remove(&(next, Arc::clone(&job)));
        }
        entry.last = Some(last);
        entry.next = entry.next_after(now);
        self.queue.extend(entry.next.map(|next| (next, Arc::clone(&job))));
        self.entries.insert(job, entry);
    }
}

impl Entry {
    /// The next occurrence; a fixed time that was run before the clock was set back is not run again.
    fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        let ran_meanwhile = self
            .last
            .filter(|last| self.schedule.is_fixed() && *last > now && *last - now < CORRECTION);
        let next = self.schedule.next(ran_meanwhile.unwrap_or(now), self.zone)?;
        Some(next.to_utc())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn moment(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let (schedule, zone): (Schedule, Zone) = (schedule.parse().unwrap(), zone.parse().unwrap());
        let mut found = Vec::new();
        let mut after = moment(after);
        for _ in 0..count {
            let next = schedule.next(after, zone).unwrap();
            found.push(next.to_rfc3339());
            after = next.to_utc();
        }
        found
    }

    #[test]
    fn a_time_in_the_gap_runs_right_after_it_once_and_the_days_around_at_their_time() {
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2027-03-27T00:00:00Z", 3),
            ["2027-03-27T02:30:00+01:00", "2027-03-28T03:00:00+02:00", "2027-03-29T02:30:00+02:00"]
        );
        assert_eq!(
            next("30 2 * * *", "America/New_York", "2027-03-14T05:00:00Z", 2),
            ["2027-03-14T03:00:00-04:00", "2027-03-15T02:30:00-04:00"]
        );
        assert_eq!(
            next("15 2 * * *", "Australia/Lord_Howe", "2027-10-02T12:00:00Z", 2),
            ["2027-10-03T02:30:00+11:00", "2027-10-04T02:15:00+11:00"]
        );
    }

    #[test]
    fn a_time_that_comes_twice_runs_once_the_first_time() {
        assert_eq!(
            next("30 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 2),
            ["2027-10-31T02:30:00+02:00", "2027-11-01T02:30:00+01:00"]
        );
        assert_eq!(
            next("30 1 * * *", "America/New_York", "2027-11-07T00:00:00Z", 2),
            ["2027-11-07T01:30:00-04:00", "2027-11-08T01:30:00-05:00"]
        );
    }

    #[test]
    fn a_time_before_the_gap_runs_once_and_the_next_days_are_not_an_hour_off() {
        assert_eq!(
            next("30 1 * * *", "Europe/Berlin", "2027-03-27T12:00:00Z", 2),
            ["2027-03-28T01:30:00+01:00", "2027-03-29T01:30:00+02:00"]
        );
        assert_eq!(
            next("30 9 * * *", "Europe/Berlin", "2027-03-27T08:30:00Z", 1),
            ["2027-03-28T09:30:00+02:00"]
        );
        assert_eq!(
            next("30 9 * * *", "Europe/Berlin", "2027-10-30T07:30:00Z", 1),
            ["2027-10-31T09:30:00+01:00"]
        );
        assert_eq!(
            next("30 3 * * *", "America/New_York", "2027-03-13T08:30:00Z", 1),
            ["2027-03-14T03:30:00-04:00"]
        );
    }

    #[test]
    fn hourly_jobs_run_in_both_hours_of_the_repeated_one() {
        assert_eq!(
            next("0 * * * *", "Europe/Berlin", "2027-10-30T23:30:00Z", 4),
            [
                "2027-10-31T02:00:00+02:00",
                "2027-10-31T02:00:00+01:00",
                "2027-10-31T03:00:00+01:00",
                "2027-10-31T04:00:00+01:00"
            ]
        );
        assert_eq!(
            next("*/10 * * * *", "Europe/Berlin", "2027-10-31T01:15:00Z", 1),
            ["2027-10-31T02:20:00+01:00"]
        );
    }

    #[test]
    fn a_list_of_times_goes_by_the_clock_on_the_wall() {
        assert_eq!(
            next("15,45 2 * * *", "Europe/Berlin", "2027-03-27T12:00:00Z", 2),
            ["2027-03-29T02:15:00+02:00", "2027-03-29T02:45:00+02:00"]
        );
        assert_eq!(
            next("15,45 2 * * *", "Europe/Berlin", "2027-10-30T12:00:00Z", 4),
            [
                "2027-10-31T02:15:00+02:00",
                "2027-10-31T02:45:00+02:00",
                "2027-10-31T02:15:00+01:00",
                "2027-10-31T02:45:00+01:00"
            ]
        );
    }

    #[test]
    fn utc_knows_no_summer() {
        assert_eq!(
            next("30 2 28 3 *", "UTC", "2027-03-27T00:00:00Z", 2),
            ["2027-03-28T02:30:00+00:00", "2028-03-28T02:30:00+00:00"]
        );
    }

    fn agenda(schedule: &str, now: &str) -> Agenda {
        let mut agenda = Agenda::default();
        agenda.set("job", &schedule.parse().unwrap(), "UTC".parse().unwrap(), moment(now));
        agenda
    }

    fn due(agenda: &mut Agenda, now: &str) -> Vec<String> {
        agenda.pop_due(moment(now)).into_iter().map(|due| due.occurrence.to_rfc3339()).collect()
    }

    #[test]
    fn occurrences_that_passed_while_nobody_looked_are_one() {
        let mut agenda = agenda("* * * * *", "2026-11-23T10:00:00Z");
        assert_eq!(due(&mut agenda, "2026-11-23T10:01:00Z"), ["2026-11-23T10:01:00+00:00"]);
        assert_eq!(due(&mut agenda, "2026-11-23T11:30:30Z"), ["2026-11-23T11:30:00+00:00"]);
        assert_eq!(agenda.next("job"), Some(moment("2026-11-23T11:31:00Z")));
    }

    #[test]
    fn a_clock_set_back_does_not_silence_intervals_and_does_not_repeat_fixed_times() {
        let mut every_minute = agenda("* * * * *", "2026-11-23T10:00:00Z");
        due(&mut every_minute, "2026-11-23T10:01:00Z");
        due(&mut every_minute, "2026-11-23T09:01:30Z");
        assert_eq!(every_minute.next("job"), Some(moment("2026-11-23T09:02:00Z")));
        let mut fixed = agenda("30 9 * * *", "2026-11-23T09:00:00Z");
        assert_eq!(due(&mut fixed, "2026-11-23T09:30:00Z").len(), 1);
        due(&mut fixed, "2026-11-23T08:31:00Z");
        assert_eq!(fixed.next("job"), Some(moment("2026-11-24T09:30:00Z")));
        due(&mut fixed, "2026-11-22T08:31:00Z");
        assert_eq!(fixed.next("job"), Some(moment("2026-11-22T09:30:00Z")));
    }

    #[test]
    fn a_job_whose_schedule_stays_keeps_its_occurrence_and_a_removed_one_is_never_due() {
        let mut agenda = agenda("0 12 * * *", "2026-11-23T10:00:00Z");
        agenda.set(
            "job",
            &"0 12 * * *".parse().unwrap(),
            "UTC".parse().unwrap(),
            moment("2026-11-23T12:00:01Z"),
        );
        assert_eq!(agenda.next("job"), Some(moment("2026-11-23T12:00:00Z")));
        agenda.remove("job");
        assert_eq!(agenda.pop_due(moment("2026-11-25T12:00:00Z")), []);
    }

    #[test]
    fn a_thousand_jobs_of_one_second_are_all_due() {
        let mut agenda = Agenda::default();
        for number in 0..1000 {
            agenda.set(
                &format!("job-{number}"),
                &"0 0 * * *".parse().unwrap(),
                "UTC".parse().unwrap(),
                moment("2026-11-23T10:00:00Z"),
            );
        }
        assert_eq!(agenda.pop_due(moment("2026-11-24T00:00:00Z")).len(), 1000);
    }

    proptest! {
        #[test]
        fn occurrences_strictly_increase_and_are_never_in_the_past(
            start in 1_767_225_600_i64..1_861_920_000,
            zone in prop::sample::select(vec!["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Kathmandu"]),
            schedule in prop::sample::select(vec!["* * * * *", "*/10 * * * *", "0 * * * *", "30 1 * * *", "30 2 * * *", "15,45 2 * * *", "0 3 1 * 1", "*/7 1-3 * * *", "30 30 2 * * *"]),
        ) {
            let (schedule, zone): (Schedule, Zone) = (schedule.parse().unwrap(), zone.parse().unwrap());
            let mut last = Timestamp::from_timestamp(start, 0).unwrap();
            for _ in 0..50 {
                let next = schedule.next(last, zone).unwrap().to_utc();
                prop_assert!(next > last);
                last = next;
            }
        }
    }
}
