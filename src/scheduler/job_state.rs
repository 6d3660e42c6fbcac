//! What the scheduler remembers of one job, and how it decides: no clock, no lock, no I/O.
//!
//! One watermark per job: every occurrence up to it was run, skipped or given up. It is all that a restart needs to know.
//! Everything else is derived from the schedule, or belongs to a run that ends with the process.

use chrono::TimeDelta;

use crate::config::Overlap;
use crate::observe::metrics::Skipped;
use crate::plan::report::Trigger;
use crate::values::clock::Timestamp;
use crate::values::schedule::{Schedule, Window, Zone};

/// When a job is to run, according to its definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// `None` where the job runs only by hand.
    pub schedule: Option<Schedule>,
    pub zone: Zone,
    pub window: Option<Window>,
    pub enabled: bool,
    pub overlap: Overlap,
    /// How old a missed occurrence may be to be caught up; `None` where none is.
    pub catch_up: Option<TimeDelta>,
    pub splay: TimeDelta,
}

/// The present, as far as decisions depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub time: Timestamp,
    /// Whether a person paused all scheduled runs.
    pub paused: bool,
    /// Whether the daemon is stopping: nothing starts any more.
    pub draining: bool,
    /// Whether another replica may run the job: nothing starts here, and nothing is remembered.
    pub standby: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The time that [`JobState::wake_at`] named has come, or something that it depends on has changed.
    Wake,
    /// The clock went back.
    ClockSetBack,
    /// The definition was read again.
    Redefined(Box<Timing>),
    /// The history was opened and read.
    Recalled(Recalled),
    /// A user requests a run. Only while no run is in progress.
    Requested,
    /// A user approved the plan of a run. It is applied as soon as no run is in progress and the window is open.
    Approved { plan: i64 },
    /// The run that was started has the job's lock; whether it is recorded in the history.
    Started { recorded: bool },
    /// The run that was started has ended.
    Ended(Ending),
    /// A user cancels the run, or the waiting one.
    Cancelled,
}

/// What the history knows about a scheduled job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recalled {
    /// Since when the job has been enabled with its present schedule.
    pub since: Timestamp,
    /// The last occurrence that was run or skipped.
    pub watermark: Option<Timestamp>,
    /// The run of that occurrence, where it was cut off for the first time and may be repeated.
    pub interrupted: Option<Interrupted>,
}

/// What the successor of an interrupted run takes over from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted {
    pub occurrence: Timestamp,
    pub attempts: u32,
}

/// How a run ended, as far as scheduling depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, or because a person wanted it so.
    Finished,
    /// With the daemon: occurrences during the run are missed.
    CutOff,
    /// It never began: another process runs the job.
    Busy,
    /// It never began: another replica has run the occurrence.
    Elsewhere,
}

/// What is to be done. Decisions are carried out in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Start(Start),
    /// Count an occurrence that is not run.
    Skip(Skipped),
    /// Write the watermark: occurrences up to it are no longer run, even after a restart.
    Remember(Timestamp),
    /// Ask the active run to end at its next change boundary.
    Stop,
    /// Log that an occurrence was missed, and when it can be caught up; `None` if it can be now.
    Missed {
        occurrence: Timestamp,
        opens: Option<Timestamp>,
    },
    /// Log that a waiting run is given up.
    GivenUp(Why),
}

/// A run that is to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    pub trigger: Trigger,
    pub occurrence: Option<Timestamp>,
    /// The approved plan that it applies.
    pub plan: Option<i64>,
    /// Attempts of the interrupted run that this one continues.
    pub attempts_made: u32,
}

/// Why an occurrence that waited is not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Cancelled,
    /// The job was disabled or given another schedule.
    Redefined,
}

/// An occurrence that came and is not run yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    pub what: WaitFor,
    pub occurrence: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    Splay { until: Timestamp },
    Window { opens: Timestamp },
    RunUnderWay,
}

/// A job as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobState {
    timing: Timing,
    /// Every occurrence up to here was run, skipped or given up; `None` until the history was read.
    watermark: Option<Timestamp>,
    /// The last occurrence that has passed, whether it was run or not.
    last: Option<Timestamp>,
    /// The next occurrence.
    next: Option<Timestamp>,
    run: Option<Run>,
    /// The last occurrence that was skipped during runs: it counts as skipped when they end, and as missed when they are cut off.
    skipped: Option<Timestamp>,
    /// The occurrence that runs when the active run has ended.
    queued: Option<Timestamp>,
    /// What was missed, until its run can start.
    missed: Option<Interrupted>,
    /// The approved plan, until the run that applies it can start.
    approved: Option<i64>,
}

/// An active run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: Start,
    /// When its splay ends; `None` once it was started.
    held_until: Option<Timestamp>,
}

/// A clock set back by less than this was corrected: as in cron(8), fixed times do not come a second time.
const MAX_CORRECTION: TimeDelta = TimeDelta::hours(3);

impl JobState {
    /// A new job. No earlier occurrence counts as missed, unless [`Event::Recalled`] says so.
    pub fn new(timing: Timing, now: Timestamp) -> Self {
        let mut state = Self {
            timing,
            watermark: None,
            last: None,
            next: None,
            run: None,
            skipped: None,
            queued: None,
            missed: None,
            approved: None,
        };
        state.plan_from(now);
        state
    }

    /// When to examine the job again if nothing else happens to it.
    pub fn wake_at(&self, now: Timestamp) -> Option<Timestamp> {
        let held = self.run.and_then(|run| run.held_until);
        let is_held_up = self.run.is_none() && (self.missed.is_some() || self.approved.is_some());
        let opens = is_held_up.then(|| self.opens(now));
        [self.next, held, opens.map(|opens| opens.unwrap_or(now))].into_iter().flatten().min()
    }

    /// The next occurrence, in the job's window or not.
    pub fn next(&self) -> Option<Timestamp> {
        self.next
    }

    /// Whether the job must not be started: a run is active, or delayed by its splay.
    pub fn is_running(&self) -> bool {
        self.run.is_some()
    }

    /// Whether this plan is being applied, or will be.
    pub fn knows_plan(&self, plan: i64) -> bool {
        self.approved == Some(plan) || self.run.is_some_and(|run| run.start.plan == Some(plan))
    }

    /// What a run that was not started yet is waiting for.
    pub fn waiting(&self, now: Timestamp) -> Option<Wait> {
        let held = self.run.and_then(|run| run.held_until.zip(run.start.occurrence));
        if let Some((until, occurrence)) = held {
            return Some(Wait { what: WaitFor::Splay { until }, occurrence });
        }
        let missed = self.missed.map(|missed| missed.occurrence);
        let what = match self.opens(now).filter(|_| self.run.is_none()) {
            Some(opens) => WaitFor::Window { opens },
            None => WaitFor::RunUnderWay,
        };
        Some(Wait { what, occurrence: missed.or(self.queued)? })
    }

    /// Whether a run is delayed by its splay, or waits for the job's window to open.
    pub fn is_waiting(&self) -> bool {
        self.missed.is_some() || self.run.is_some_and(|run| run.held_until.is_some())
    }

    /// Whether the history was not read for this job yet.
    pub fn is_unknown(&self) -> bool {
        self.watermark.is_none() && self.timing.enabled && self.timing.schedule.is_some()
    }

    /// Decides what follows from an event.
    #[must_use]
    pub fn decide(mut self, now: Now, event: Event) -> (Self, Vec<Decision>) {
        let mut decisions = Vec::new();
        match event {
            // What the history says changes until the job is run here; it is read again then.
            Event::Recalled(_) if now.standby => {}
            Event::Wake => {}
            Event::ClockSetBack => self.set_back(now.time),
            Event::Redefined(timing) => self.redefine(*timing, now.time, &mut decisions),
            Event::Recalled(recalled) => self.recall(recalled, now, &mut decisions),
            Event::Requested => self.start(Trigger::Manual, None, 0, &mut decisions),
            Event::Approved { plan } => self.approved = Some(plan),
            Event::Started { recorded } => self.started(recorded),
            Event::Ended(ending) => self.ended(ending, now, &mut decisions),
            Event::Cancelled => self.cancel(now, &mut decisions),
        }
        if now.standby {
            self.stand_by(now.time);
        } else if !now.draining {
            self.release(now, &mut decisions);
            self.look(now, &mut decisions);
            self.catch_up(now, &mut decisions);
            self.apply_approved(now, &mut decisions);
        }
        (self, decisions)
    }

    /// Leaves everything to another replica; an active run ends by itself.
    fn stand_by(&mut self, now: Timestamp) {
        self.run.take_if(|run| run.held_until.is_some());
        (self.queued, self.skipped, self.missed, self.watermark) = (None, None, None, None);
        self.approved = None;
        if let Some(first) = self.next.filter(|next| *next <= now) {
            let latest = self.latest(first, now);
            self.last = Some(latest);
            self.plan_from(latest);
        }
    }

    /// Handles the occurrences since the last time: the last of several stands for all of them.
    fn look(&mut self, now: Now, decisions: &mut Vec<Decision>) {
        let Some(first) = self.next.filter(|next| *next <= now.time) else { return };
        let latest = self.latest(first, now.time);
        self.last = Some(latest);
        self.plan_from(latest);
        self.due(latest, now, decisions);
    }

    fn due(&mut self, occurrence: Timestamp, now: Now, decisions: &mut Vec<Decision>) {
        // That run stands for all earlier occurrences.
        if self.run.is_some_and(|run| run.catches_up(occurrence)) {
            return;
        }
        if let Some(reason) = self.obstacle(now) {
            return self.skip(occurrence, reason, decisions);
        }
        match self.run {
            None => self.start_on_schedule(occurrence, now.time, decisions),
            Some(_) if self.timing.overlap == Overlap::Queue && self.queued.is_none() => {
                self.queued = Some(occurrence);
            }
            Some(_) => self.skip(occurrence, Skipped::Overlap, decisions),
        }
    }

    /// What prevents an occurrence from being run now, apart from an active run.
    fn obstacle(&self, now: Now) -> Option<Skipped> {
        if now.paused {
            Some(Skipped::Paused)
        } else if self.opens(now.time).is_some() {
            Some(Skipped::Window)
        } else {
            None
        }
    }

    fn skip(&mut self, occurrence: Timestamp, reason: Skipped, decisions: &mut Vec<Decision>) {
        decisions.push(Decision::Skip(reason));
        self.pass(occurrence, decisions);
    }

    /// Lets an occurrence pass.
    ///
    /// The watermark moves only where that forgets nothing: neither what is missed, nor what a run that is cut off leaves.
    fn pass(&mut self, occurrence: Timestamp, decisions: &mut Vec<Decision>) {
        self.skipped = self.skipped.max(Some(occurrence));
        if self.run.is_none()
            && self.queued.is_none()
            && self.missed.is_none()
            && let Some(until) = self.skipped.take()
        {
            self.remember(until, decisions);
        }
    }

    fn remember(&mut self, until: Timestamp, decisions: &mut Vec<Decision>) {
        if let Some(watermark) = &mut self.watermark
            && *watermark < until
        {
            *watermark = until;
            decisions.push(Decision::Remember(until));
        }
    }

    fn start(
        &mut self,
        trigger: Trigger,
        occurrence: Option<Timestamp>,
        attempts_made: u32,
        decisions: &mut Vec<Decision>,
    ) {
        let start = Start { trigger, occurrence, plan: None, attempts_made };
        self.run = Some(Run { start, held_until: None });
        decisions.push(Decision::Start(start));
    }

    fn start_on_schedule(
        &mut self,
        occurrence: Timestamp,
        now: Timestamp,
        decisions: &mut Vec<Decision>,
    ) {
        // It stands for what was missed before it.
        self.missed = None;
        if self.timing.splay.is_zero() {
            return self.start(Trigger::Schedule, Some(occurrence), 0, decisions);
        }
        let start = Start {
            trigger: Trigger::Schedule,
            occurrence: Some(occurrence),
            plan: None,
            attempts_made: 0,
        };
        self.run = Some(Run { start, held_until: Some(now + self.timing.splay) });
    }

    /// Starts a run whose splay is over, by the definition and the pause of now.
    fn release(&mut self, now: Now, decisions: &mut Vec<Decision>) {
        let Some(Run { start, held_until: Some(until) }) = self.run else { return };
        if now.time < until {
            return;
        }
        match (self.obstacle(now), start.occurrence) {
            (Some(reason), Some(occurrence)) => {
                self.run = None;
                self.skip(occurrence, reason, decisions);
                self.take_queued(now, decisions);
            }
            _ => self.start(start.trigger, start.occurrence, start.attempts_made, decisions),
        }
    }

    fn started(&mut self, recorded: bool) {
        let occurrence = self.run.and_then(|run| run.start.occurrence);
        if recorded && occurrence.is_some() {
            self.watermark = occurrence;
            self.skipped.take_if(|skipped| Some(*skipped) <= occurrence);
        }
    }

    fn ended(&mut self, ending: Ending, now: Now, decisions: &mut Vec<Decision>) {
        let occurrence = self.run.take().and_then(|run| run.start.occurrence);
        match (ending, occurrence) {
            (Ending::CutOff, _) => return,
            (Ending::Busy, Some(occurrence)) => self.skip(occurrence, Skipped::Overlap, decisions),
            (Ending::Elsewhere, Some(occurrence)) => {
                self.watermark = self.watermark.max(Some(occurrence));
            }
            (Ending::Busy | Ending::Elsewhere, None) | (Ending::Finished, _) => {}
        }
        self.take_queued(now, decisions);
        if let Some(skipped) = self.skipped {
            self.pass(skipped, decisions);
        }
    }

    fn take_queued(&mut self, now: Now, decisions: &mut Vec<Decision>) {
        if !now.draining
            && !now.standby
            && let Some(queued) = self.queued.take()
        {
            self.due(queued, now, decisions);
        }
    }

    fn cancel(&mut self, now: Now, decisions: &mut Vec<Decision>) {
        match self.run {
            Some(Run { start, held_until: Some(_) }) => {
                decisions.push(Decision::GivenUp(Why::Cancelled));
                self.run = None;
                self.pass(start.occurrence.unwrap_or(now.time), decisions);
                self.take_queued(now, decisions);
            }
            Some(_) => decisions.push(Decision::Stop),
            None if self.missed.take().is_some() => {
                decisions.push(Decision::GivenUp(Why::Cancelled));
                self.pass(now.time, decisions);
            }
            None => {}
        }
    }

    /// Applies a new definition. What came on another schedule is forgotten.
    fn redefine(&mut self, timing: Timing, now: Timestamp, decisions: &mut Vec<Decision>) {
        let old = std::mem::replace(&mut self.timing, timing);
        let same = (&old.schedule, old.zone, old.enabled)
            == (&self.timing.schedule, self.timing.zone, self.timing.enabled);
        if same {
            return;
        }
        let held = self.run.take_if(|run| run.held_until.is_some() && !self.timing.enabled);
        if self.missed.take().is_some() || held.is_some() {
            decisions.push(Decision::GivenUp(Why::Redefined));
        }
        (self.queued, self.skipped, self.last, self.watermark) = (None, None, None, None);
        self.plan_from(now);
    }

    /// Applies what the history knows: what came while the daemon was down, or was cut off, is caught up once.
    fn recall(&mut self, recalled: Recalled, now: Now, decisions: &mut Vec<Decision>) {
        if recalled.watermark > Some(now.time) {
            // The clock was set back since.
            self.last = recalled.watermark;
            self.set_back(now.time);
        }
        let known = recalled.watermark.max(Some(recalled.since)).max(self.watermark);
        let under_way = self.run.and_then(|run| run.start.occurrence);
        let from = known.max(under_way).max(self.queued).max(self.skipped);
        self.watermark = known;
        // What is due now does not count as missed: it is handled next.
        let until = match self.next {
            Some(next) if next <= now.time => next - TimeDelta::milliseconds(1),
            _ => now.time,
        };
        let Some(missed) = self.missed_between(from.unwrap_or(now.time), until, recalled) else {
            return;
        };
        let is_young = self.timing.catch_up.is_some_and(|age| now.time - missed.occurrence <= age);
        if now.paused || !is_young {
            let reason = if now.paused { Skipped::Paused } else { Skipped::Missed };
            decisions.push(Decision::Skip(reason));
            return self.remember(until, decisions);
        }
        self.missed = Some(missed);
        let opens = self.opens(now.time);
        decisions.push(Decision::Missed { occurrence: missed.occurrence, opens });
    }

    /// The occurrence to catch up: the last one that came, and where none came the one whose run was cut off.
    fn missed_between(
        &self,
        from: Timestamp,
        until: Timestamp,
        recalled: Recalled,
    ) -> Option<Interrupted> {
        if !self.timing.enabled {
            return None;
        }
        let schedule = self.timing.schedule.as_ref()?;
        let missed = schedule.last(from, until, self.timing.zone);
        let missed = missed.map(|occurrence| Interrupted { occurrence, attempts: 0 });
        let cut_off = recalled.interrupted.filter(|cut_off| {
            recalled.watermark == Some(cut_off.occurrence)
                && from == cut_off.occurrence
                && cut_off.occurrence > recalled.since
                && self.run.is_none()
        });
        missed.or(cut_off)
    }

    /// Starts what was missed as soon as nothing prevents it: one run for everything that came until now.
    fn catch_up(&mut self, now: Now, decisions: &mut Vec<Decision>) {
        let waits = self.opens(now.time).is_some() && !now.paused;
        if self.run.is_some() || waits {
            return;
        }
        let Some(missed) = self.missed.take() else { return };
        let latest = self.latest(missed.occurrence, now.time);
        if now.paused {
            return self.skip(latest, Skipped::Paused, decisions);
        }
        // A later occurrence has all its attempts.
        let attempts = if latest == missed.occurrence { missed.attempts } else { 0 };
        self.start(Trigger::CatchUp, Some(latest), attempts, decisions);
    }

    /// Starts the run of an approved plan, paused or not: a person asked for it.
    fn apply_approved(&mut self, now: Now, decisions: &mut Vec<Decision>) {
        if self.run.is_some() || self.opens(now.time).is_some() {
            return;
        }
        if let Some(plan) = self.approved.take() {
            let start = Start {
                trigger: Trigger::Approval,
                occurrence: None,
                plan: Some(plan),
                attempts_made: 0,
            };
            self.run = Some(Run { start, held_until: None });
            decisions.push(Decision::Start(start));
        }
    }

    /// Until when the window keeps an approved plan from being applied.
    pub fn approved_waits_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.approved.and_then(|_| self.opens(now))
    }

    /// Plans again after the clock went back; otherwise no job would run until the old time comes again.
    fn set_back(&mut self, now: Timestamp) {
        let schedule = self.timing.schedule.as_ref();
        let came = self.last.filter(|last| *last > now && *last - now < MAX_CORRECTION);
        let came = came.filter(|_| schedule.is_some_and(Schedule::is_fixed));
        self.plan_from(came.unwrap_or(now));
        if let Some(Run { held_until: Some(until), .. }) = &mut self.run {
            *until = (*until).min(now + self.timing.splay);
        }
    }

    fn plan_from(&mut self, after: Timestamp) {
        let schedule = self.timing.schedule.as_ref().filter(|_| self.timing.enabled);
        self.next = schedule
            .and_then(|schedule| schedule.next(after, self.timing.zone))
            .map(|next| next.to_utc());
    }

    /// The last occurrence by `until`, from one on that is known.
    fn latest(&self, known: Timestamp, until: Timestamp) -> Timestamp {
        let schedule = self.timing.schedule.as_ref();
        schedule.and_then(|schedule| schedule.last(known, until, self.timing.zone)).unwrap_or(known)
    }

    /// When the job's window opens; `None` where it is open, or there is none.
    fn opens(&self, now: Timestamp) -> Option<Timestamp> {
        let window = self.timing.window.filter(|window| !window.contains(now, self.timing.zone));
        window.map(|window| window.start_after(now, self.timing.zone))
    }
}

impl Run {
    /// Whether this run makes up for `occurrence` and what came before it.
    fn catches_up(self, occurrence: Timestamp) -> bool {
        self.start.trigger == Trigger::CatchUp && self.start.occurrence >= Some(occurrence)
    }
}

#[cfg(test)]
mod tests;
