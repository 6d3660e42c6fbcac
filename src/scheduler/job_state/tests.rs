//! The rules of scheduling, each a row of a table; then the same core, driven by chance.

use proptest::prelude::*;

use super::*;

/// Of November 2026: `23 03:30`, or `23 03:30:05`.
fn at(text: &str) -> Timestamp {
    let (day, time) = text.split_once(' ').unwrap();
    let seconds = if time.len() == 5 { ":00" } else { "" };
    format!("2026-11-{day}T{time}{seconds}Z").parse().unwrap()
}

fn text(time: Timestamp) -> String {
    let text = time.format("%d %H:%M:%S").to_string();
    text.strip_suffix(":00").map_or(text.clone(), str::to_owned)
}

fn timing(schedule: &str) -> Timing {
    Timing {
        schedule: Some(schedule.parse().unwrap()),
        zone: "UTC".parse().unwrap(),
        window: None,
        enabled: true,
        overlap: Overlap::Skip,
        catch_up: Some(TimeDelta::hours(24)),
        splay: TimeDelta::zero(),
    }
}

fn nightly() -> Timing {
    timing("30 3 * * *")
}

fn hourly() -> Timing {
    timing("0 * * * *")
}

fn in_window(timing: Timing, window: &str) -> Timing {
    Timing { window: Some(window.parse().unwrap()), ..timing }
}

fn queueing(timing: Timing) -> Timing {
    Timing { overlap: Overlap::Queue, ..timing }
}

fn splayed(timing: Timing, minutes: i64) -> Timing {
    Timing { splay: TimeDelta::minutes(minutes), ..timing }
}

fn disabled(timing: Timing) -> Timing {
    Timing { enabled: false, ..timing }
}

/// What happens in a row of the table.
#[derive(Clone)]
enum Step {
    Event(Event),
    /// The same, while scheduled runs are paused.
    Paused(Event),
    /// The same, while the daemon stops.
    Draining(Event),
    /// While another replica may run the job.
    Standby(Event),
    /// The history is read again, with what another replica recorded.
    Recall,
    /// The daemon is restarted with a history in which every decision was recorded.
    Restart,
}

use Step::{Draining, Event as On, Paused, Recall, Restart, Standby};

const WAKE: Step = On(Event::Wake);
const STARTED: Step = On(Event::Started { recorded: true });
const REFUSED: Step = On(Event::Started { recorded: false });
const FINISHED: Step = On(Event::Ended(Ending::Finished));
const CUT_OFF: Step = On(Event::Ended(Ending::CutOff));
const BUSY: Step = On(Event::Ended(Ending::Busy));
const REQUESTED: Step = On(Event::Requested);
const APPROVED: Step = On(Event::Approved { plan: 7 });
const CANCELLED: Step = On(Event::Cancelled);
const SET_BACK: Step = On(Event::ClockSetBack);
const PAUSED: Step = Paused(Event::Wake);

fn redefined(timing: Timing) -> Step {
    On(Event::Redefined(Box::new(timing)))
}

fn recalled(since: &str, watermark: &str) -> Step {
    On(Event::Recalled(Recalled {
        since: at(since),
        watermark: (!watermark.is_empty()).then(|| at(watermark)),
        interrupted: None,
    }))
}

fn in_words(decision: Decision) -> String {
    match decision {
        Decision::Start(Start { trigger, occurrence, plan, attempts_made }) => {
            let occurrence = occurrence.map_or(String::new(), |time| format!(" {}", text(time)));
            let attempts = match attempts_made {
                0 => String::new(),
                made => format!(" after {made}"),
            };
            let plan = plan.map_or(String::new(), |plan| format!(" of {plan}"));
            format!("start {trigger}{occurrence}{plan}{attempts}")
        }
        Decision::Skip(reason) => format!("skip {reason}"),
        Decision::Remember(until) => format!("remember {}", text(until)),
        Decision::Stop => "stop".to_owned(),
        Decision::Missed { occurrence, opens } => {
            let opens = opens.map_or(String::new(), |opens| format!(" opens {}", text(opens)));
            format!("missed {}{opens}", text(occurrence))
        }
        Decision::GivenUp(why) => format!("given up {why:?}").to_lowercase(),
    }
}

/// A job with a history that records what it decides.
struct Driven {
    state: JobState,
    since: Timestamp,
    recorded: Option<Timestamp>,
    interrupted: Option<Interrupted>,
    interruptions: u32,
    attempts: u32,
}

impl Driven {
    fn new(timing: Timing, now: Timestamp) -> Self {
        let state = JobState::new(timing, now);
        let mut driven = Self {
            state,
            since: now,
            recorded: None,
            interrupted: None,
            interruptions: 0,
            attempts: 0,
        };
        driven.recall(now);
        driven
    }

    fn recall(&mut self, now: Timestamp) -> Vec<Decision> {
        let recalled = Recalled {
            since: self.since,
            watermark: self.recorded,
            interrupted: self.interrupted.filter(|_| self.interruptions <= 1),
        };
        self.decide(
            Now { time: now, paused: false, draining: false, standby: false },
            Event::Recalled(recalled),
        )
    }

    fn decide(&mut self, now: Now, event: Event) -> Vec<Decision> {
        let run = self.state.run;
        match &event {
            Event::Started { recorded: true } => {
                let occurrence = run.and_then(|run| run.start.occurrence);
                if let Some(occurrence) = occurrence {
                    if self.recorded != Some(occurrence) {
                        self.interruptions = 0;
                    }
                    self.recorded = Some(occurrence);
                }
                self.interrupted = None;
                self.attempts = run.map_or(0, |run| run.start.attempts_made) + 1;
            }
            Event::Ended(Ending::CutOff) => {
                let occurrence = run.and_then(|run| run.start.occurrence);
                self.interrupted = occurrence
                    .map(|occurrence| Interrupted { occurrence, attempts: self.attempts });
                self.interruptions += 1;
            }
            _ => {}
        }
        let (state, decisions) = self.state.clone().decide(now, event);
        self.state = state;
        for decision in &decisions {
            if let Decision::Remember(until) = decision {
                self.recorded = self.recorded.max(Some(*until));
            }
        }
        decisions
    }

    fn restart(&mut self, now: Timestamp) -> Vec<Decision> {
        self.state = JobState::new(self.state.timing.clone(), now);
        self.recall(now)
    }
}

fn play(timing: Timing, start: &str, steps: &[(&str, Step, &str)]) -> Vec<String> {
    let mut driven = Driven::new(timing, at(start));
    let mut played = Vec::new();
    for (time, step, _) in steps {
        let time = at(time);
        let now = Now { time, paused: false, draining: false, standby: false };
        let decisions = match step.clone() {
            On(event) => driven.decide(now, event),
            Paused(event) => driven.decide(Now { paused: true, ..now }, event),
            Draining(event) => driven.decide(Now { draining: true, ..now }, event),
            Standby(event) => driven.decide(Now { standby: true, ..now }, event),
            Recall => driven.recall(time),
            Restart => driven.restart(time),
        };
        played.push(decisions.into_iter().map(in_words).collect::<Vec<_>>().join(", "));
    }
    played
}

type Row = (&'static str, Timing, &'static str, Vec<(&'static str, Step, &'static str)>);

/// A rule, the job, when it is first known, and what is decided at each step.
#[expect(clippy::too_many_lines, reason = "a table")]
fn rules() -> Vec<Row> {
    vec![
        (
            "an occurrence starts a run when it is due and not before",
            nightly(),
            "22 12:00",
            vec![
                ("23 03:29:59", WAKE, ""),
                ("23 03:30", WAKE, "start schedule 23 03:30"),
                ("23 03:30", STARTED, ""),
                ("23 03:31", FINISHED, ""),
                ("23 03:31", WAKE, ""),
                ("24 03:30", WAKE, "start schedule 24 03:30"),
            ],
        ),
        (
            "after a stall or a suspend one run stands for all occurrences",
            hourly(),
            "23 00:30",
            vec![
                ("23 05:10", WAKE, "start schedule 23 05:00"),
                ("23 05:10", STARTED, ""),
                ("23 05:11", FINISHED, ""),
                ("23 05:12", Restart, ""),
                ("23 06:00", WAKE, "start schedule 23 06:00"),
            ],
        ),
        (
            "a manual job starts only on request",
            Timing { schedule: None, ..nightly() },
            "22 12:00",
            vec![
                ("24 12:00", WAKE, ""),
                ("24 12:00", REQUESTED, "start manual"),
                ("24 12:00", STARTED, ""),
                ("24 12:01", FINISHED, ""),
                ("24 12:02", Restart, ""),
            ],
        ),
        (
            "an approved plan is applied, even while paused",
            nightly(),
            "23 11:00",
            vec![
                ("23 12:00", Paused(Event::Approved { plan: 7 }), "start approval of 7"),
                ("23 12:00", STARTED, ""),
                ("23 12:01", FINISHED, ""),
                ("23 12:02", Restart, ""),
            ],
        ),
        (
            "an approved plan waits for the end of a run and for the window",
            in_window(nightly(), "03:00-05:00"),
            "22 12:00",
            vec![
                ("23 03:30", WAKE, "start schedule 23 03:30"),
                ("23 03:30", STARTED, ""),
                ("23 04:00", APPROVED, ""),
                ("23 05:30", FINISHED, ""),
                ("24 02:59", WAKE, ""),
                ("24 03:00", WAKE, "start approval of 7"),
                ("24 03:00", STARTED, ""),
                ("24 03:30", WAKE, "skip overlap"),
            ],
        ),
        (
            "an approved plan is left to the next holder of the lease",
            in_window(nightly(), "03:00-05:00"),
            "23 11:00",
            vec![
                ("23 12:00", APPROVED, ""),
                ("23 13:00", Standby(Event::Wake), ""),
                ("24 03:00", WAKE, ""),
            ],
        ),
        (
            "a disabled job starts only on request, and misses nothing",
            disabled(hourly()),
            "22 12:00",
            vec![
                ("23 12:00", WAKE, ""),
                ("23 12:00", REQUESTED, "start manual"),
                ("23 12:01", FINISHED, ""),
                ("23 14:30", Restart, ""),
            ],
        ),
        (
            "an occurrence during a run is skipped, and is settled when the run has ended",
            hourly(),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 02:00", WAKE, "skip overlap"),
                ("23 03:00", WAKE, "skip overlap"),
                ("23 03:10", FINISHED, "remember 23 03:00"),
                ("23 03:20", Restart, ""),
            ],
        ),
        (
            "an occurrence skipped during a run that is interrupted counts as missed",
            hourly(),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 02:00", WAKE, "skip overlap"),
                ("23 02:10", CUT_OFF, ""),
                ("23 02:20", Restart, "missed 23 02:00, start catch-up 23 02:00"),
            ],
        ),
        (
            "a manual run overlaps like any other",
            hourly(),
            "23 00:30",
            vec![
                ("23 00:50", REQUESTED, "start manual"),
                ("23 00:50", STARTED, ""),
                ("23 01:00", WAKE, "skip overlap"),
                ("23 01:10", FINISHED, "remember 23 01:00"),
            ],
        ),
        (
            "one occurrence is queued, the others are skipped and stay skipped",
            queueing(hourly()),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 02:00", WAKE, ""),
                ("23 03:00", WAKE, "skip overlap"),
                ("23 03:10", FINISHED, "start schedule 23 02:00"),
                ("23 03:10", STARTED, ""),
                ("23 03:20", FINISHED, "remember 23 03:00"),
                ("23 03:30", Restart, ""),
            ],
        ),
        (
            "a queued occurrence counts as missed if the daemon stops first",
            queueing(hourly()),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 02:00", WAKE, ""),
                ("23 02:10", Draining(Event::Ended(Ending::Finished)), ""),
                ("23 02:20", Restart, "missed 23 02:00, start catch-up 23 02:00"),
            ],
        ),
        (
            "what was skipped during a run is settled though the homeserver is left when it ends",
            hourly(),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 02:00", WAKE, "skip overlap"),
                ("23 02:10", Draining(Event::Ended(Ending::Finished)), "remember 23 02:00"),
                ("23 02:10", Standby(Event::Wake), ""),
                ("23 02:11", Restart, ""),
            ],
        ),
        (
            "what is queued when the homeserver is left is caught up by the next holder",
            queueing(hourly()),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 02:00", WAKE, ""),
                ("23 02:10", Draining(Event::Ended(Ending::Finished)), ""),
                ("23 02:10", Standby(Event::Wake), ""),
                ("23 02:11", Restart, "missed 23 02:00, start catch-up 23 02:00"),
            ],
        ),
        (
            "on standby nothing starts, and nothing is remembered or skipped",
            hourly(),
            "23 00:30",
            vec![
                ("23 01:00", Standby(Event::Wake), ""),
                ("23 02:00", Standby(Event::Wake), ""),
                ("23 02:10", Recall, "missed 23 02:00, start catch-up 23 02:00"),
                ("23 02:10", STARTED, ""),
                ("23 02:20", FINISHED, ""),
                ("23 03:00", WAKE, "start schedule 23 03:00"),
            ],
        ),
        (
            "a run that ends on standby leaves its successors to another replica",
            queueing(hourly()),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 02:00", WAKE, ""),
                ("23 02:10", Standby(Event::Wake), ""),
                ("23 02:20", Standby(Event::Ended(Ending::CutOff)), ""),
                ("23 03:00", Standby(Event::Wake), ""),
                ("23 03:10", Recall, "missed 23 03:00, start catch-up 23 03:00"),
            ],
        ),
        (
            "an occurrence that another replica has run is not skipped, and is not missed",
            hourly(),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", On(Event::Ended(Ending::Elsewhere)), ""),
                ("23 02:00", WAKE, "start schedule 23 02:00"),
            ],
        ),
        (
            "an occurrence while the daemon stops starts nothing and counts as missed",
            hourly(),
            "23 00:30",
            vec![
                ("23 01:00", Draining(Event::Wake), ""),
                ("23 01:01", Restart, "missed 23 01:00, start catch-up 23 01:00"),
            ],
        ),
        (
            "another process that runs the job counts as an overlap",
            hourly(),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", BUSY, "skip overlap, remember 23 01:00"),
                ("23 01:10", Restart, ""),
            ],
        ),
        (
            "an occurrence outside the window is skipped for good",
            in_window(hourly(), "02:00-04:00"),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "skip window, remember 23 01:00"),
                ("23 02:00", WAKE, "start schedule 23 02:00"),
                ("23 02:00", STARTED, ""),
                ("23 02:10", FINISHED, ""),
                ("23 04:00", WAKE, "skip window, remember 23 04:00"),
                ("23 04:10", Restart, ""),
            ],
        ),
        (
            "a manual run starts outside the window: the runner decides what it may do",
            in_window(nightly(), "03:00-05:00"),
            "22 12:00",
            vec![("22 13:00", REQUESTED, "start manual")],
        ),
        (
            "an occurrence during a pause is skipped for good",
            hourly(),
            "23 00:30",
            vec![
                ("23 01:00", PAUSED, "skip paused, remember 23 01:00"),
                ("23 01:30", WAKE, ""),
                ("23 01:40", Restart, ""),
                ("23 02:00", WAKE, "start schedule 23 02:00"),
            ],
        ),
        (
            "a manual run starts during a pause",
            hourly(),
            "23 00:30",
            vec![("23 00:40", Paused(Event::Requested), "start manual")],
        ),
        (
            "occurrences while the daemon was down run once, for the last of them",
            hourly(),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 01:10", FINISHED, ""),
                ("23 05:10", Restart, "missed 23 05:00, start catch-up 23 05:00"),
                ("23 05:10", STARTED, ""),
                ("23 05:11", FINISHED, ""),
                ("23 05:12", Restart, ""),
            ],
        ),
        (
            "nothing is missed at a first start",
            nightly(),
            "23 12:00",
            vec![("23 12:00", Restart, ""), ("24 02:00", Restart, "")],
        ),
        (
            "an occurrence too old to be caught up is counted and forgotten",
            Timing { catch_up: Some(TimeDelta::hours(6)), ..nightly() },
            "22 12:00",
            vec![
                ("23 09:31", Restart, "skip missed, remember 23 09:31"),
                ("23 09:32", Restart, ""),
            ],
        ),
        (
            "with catch_up off nothing is caught up",
            Timing { catch_up: None, ..nightly() },
            "22 12:00",
            vec![("23 03:31", Restart, "skip missed, remember 23 03:31")],
        ),
        (
            "missed occurrences wait for the window across restarts, and are one run",
            in_window(nightly(), "03:00-05:00"),
            "22 12:00",
            vec![
                ("23 12:00", Restart, "missed 23 03:30 opens 24 03:00"),
                ("23 20:00", Restart, "missed 23 03:30 opens 24 03:00"),
                ("24 02:59:59", WAKE, ""),
                ("24 03:00", WAKE, "start catch-up 23 03:30"),
                ("24 03:00", STARTED, ""),
                ("24 03:10", FINISHED, ""),
                ("24 03:20", Restart, ""),
                ("24 03:30", WAKE, "start schedule 24 03:30"),
            ],
        ),
        (
            "an occurrence outside the window does not make a restart forget a missed one",
            in_window(timing("30 */6 * * *"), "00:00-02:00"),
            "22 03:00",
            vec![
                ("23 03:00", Restart, "missed 23 00:30 opens 24 00:00"),
                ("23 06:30", WAKE, "skip window"),
                ("23 07:00", Restart, "missed 23 06:30 opens 24 00:00"),
                ("23 12:30", WAKE, "skip window"),
                ("23 18:30", WAKE, "skip window"),
                ("24 00:00", WAKE, "start catch-up 23 18:30"),
                ("24 00:00", STARTED, ""),
                ("24 00:10", FINISHED, ""),
            ],
        ),
        (
            "an occurrence due when the window opens stands for those missed before",
            in_window(nightly(), "03:30-05:00"),
            "22 12:00",
            vec![
                ("23 12:00", Restart, "missed 23 03:30 opens 24 03:30"),
                ("24 03:30", WAKE, "start schedule 24 03:30"),
            ],
        ),
        (
            "a job that waits to be caught up can be run manually, and catches up after",
            in_window(nightly(), "03:00-05:00"),
            "22 12:00",
            vec![
                ("23 12:00", Restart, "missed 23 03:30 opens 24 03:00"),
                ("24 02:59", REQUESTED, "start manual"),
                ("24 02:59", STARTED, ""),
                ("24 03:00", WAKE, ""),
                ("24 03:05", FINISHED, "start catch-up 23 03:30"),
            ],
        ),
        (
            "a waiting catch-up is dropped when a user cancels it",
            in_window(nightly(), "03:00-05:00"),
            "22 12:00",
            vec![
                ("23 12:00", Restart, "missed 23 03:30 opens 24 03:00"),
                ("23 13:00", CANCELLED, "given up cancelled, remember 23 13:00"),
                ("23 13:10", Restart, ""),
            ],
        ),
        (
            "a pause drops a waiting catch-up",
            in_window(nightly(), "03:00-05:00"),
            "22 12:00",
            vec![
                ("23 12:00", Restart, "missed 23 03:30 opens 24 03:00"),
                ("23 13:00", PAUSED, "skip paused, remember 23 03:30"),
                ("23 13:10", Restart, ""),
            ],
        ),
        (
            "another schedule drops a waiting catch-up",
            in_window(nightly(), "03:00-05:00"),
            "22 12:00",
            vec![
                ("23 12:00", Restart, "missed 23 03:30 opens 24 03:00"),
                (
                    "23 12:10",
                    redefined(in_window(timing("45 3 * * *"), "03:00-05:00")),
                    "given up redefined",
                ),
                ("24 03:00", WAKE, ""),
                ("24 03:45", WAKE, "start schedule 24 03:45"),
            ],
        ),
        (
            "removing the window starts a waiting catch-up at once",
            in_window(nightly(), "03:00-05:00"),
            "22 12:00",
            vec![
                ("23 12:00", Restart, "missed 23 03:30 opens 24 03:00"),
                ("23 12:10", redefined(nightly()), "start catch-up 23 03:30"),
            ],
        ),
        (
            "an interrupted run is caught up only once, with the remaining attempts",
            nightly(),
            "22 12:00",
            vec![
                ("23 03:30", WAKE, "start schedule 23 03:30"),
                ("23 03:30", STARTED, ""),
                ("23 03:31", CUT_OFF, ""),
                ("23 03:40", Restart, "missed 23 03:30, start catch-up 23 03:30 after 1"),
                ("23 03:40", STARTED, ""),
                ("23 03:41", CUT_OFF, ""),
                ("23 03:50", Restart, ""),
            ],
        ),
        (
            "an occurrence after an interrupted run stands for it",
            nightly(),
            "22 12:00",
            vec![
                ("23 03:30", WAKE, "start schedule 23 03:30"),
                ("23 03:30", STARTED, ""),
                ("23 03:31", CUT_OFF, ""),
                ("24 03:40", Restart, "missed 24 03:30, start catch-up 24 03:30"),
            ],
        ),
        (
            "an interrupted manual run is not caught up",
            nightly(),
            "22 12:00",
            vec![
                ("22 13:00", REQUESTED, "start manual"),
                ("22 13:00", STARTED, ""),
                ("22 13:01", CUT_OFF, ""),
                ("22 13:10", Restart, ""),
            ],
        ),
        (
            "a splay delays a run, and counts as overlap in the meantime",
            splayed(hourly(), 70),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, ""),
                ("23 02:00", WAKE, "skip overlap"),
                ("23 02:10", WAKE, "start schedule 23 01:00"),
                ("23 02:10", STARTED, ""),
                ("23 02:20", FINISHED, "remember 23 02:00"),
            ],
        ),
        (
            "pause and window are checked when the splay of a run ends",
            splayed(in_window(hourly(), "01:00-02:00"), 65),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, ""),
                (
                    "23 02:05",
                    WAKE,
                    "skip window, remember 23 01:00, skip window, remember 23 02:00",
                ),
            ],
        ),
        (
            "a pause during the splay skips the run",
            splayed(hourly(), 10),
            "23 00:30",
            vec![("23 01:00", WAKE, ""), ("23 01:10", PAUSED, "skip paused, remember 23 01:00")],
        ),
        (
            "a run that is cancelled during its splay is settled",
            splayed(hourly(), 10),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, ""),
                ("23 01:05", CANCELLED, "given up cancelled, remember 23 01:00"),
                ("23 01:06", Restart, ""),
            ],
        ),
        (
            "a run that a stop ends during its splay counts as missed",
            splayed(hourly(), 10),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, ""),
                ("23 01:05", Restart, "missed 23 01:00, start catch-up 23 01:00"),
            ],
        ),
        (
            "a job that is disabled during its splay does not run",
            splayed(hourly(), 10),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, ""),
                ("23 01:05", redefined(disabled(splayed(hourly(), 10))), "given up redefined"),
                ("23 01:10", WAKE, ""),
            ],
        ),
        (
            "a cancelled run is asked to stop",
            hourly(),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 01:05", CANCELLED, "stop"),
                ("23 01:06", FINISHED, ""),
            ],
        ),
        (
            "a changed definition with the same schedule keeps queued and missed occurrences",
            queueing(hourly()),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 02:00", WAKE, ""),
                ("23 02:05", redefined(queueing(hourly())), ""),
                ("23 02:10", FINISHED, "start schedule 23 02:00"),
            ],
        ),
        (
            "another schedule drops a queued occurrence",
            queueing(hourly()),
            "23 00:30",
            vec![
                ("23 01:00", WAKE, "start schedule 23 01:00"),
                ("23 01:00", STARTED, ""),
                ("23 02:00", WAKE, ""),
                ("23 02:05", redefined(queueing(timing("30 * * * *"))), ""),
                ("23 02:06", recalled("23 02:05", ""), ""),
                ("23 02:10", FINISHED, ""),
                ("23 02:30", WAKE, "start schedule 23 02:30"),
            ],
        ),
        (
            "a job that is enabled again misses nothing of the time between",
            hourly(),
            "23 00:30",
            vec![
                ("23 00:40", redefined(disabled(hourly())), ""),
                ("23 05:10", redefined(hourly()), ""),
                ("23 05:10", recalled("23 05:10", ""), ""),
                ("23 06:00", WAKE, "start schedule 23 06:00"),
            ],
        ),
        (
            "a clock set back does not silence intervals",
            timing("* * * * *"),
            "23 10:00",
            vec![
                ("23 10:01", WAKE, "start schedule 23 10:01"),
                ("23 10:01", STARTED, ""),
                ("23 10:01:10", FINISHED, ""),
                ("23 09:01:30", SET_BACK, ""),
                ("23 09:02", WAKE, "start schedule 23 09:02"),
            ],
        ),
        (
            "a clock set back by less than three hours repeats no fixed time",
            timing("30 9 * * *"),
            "23 09:00",
            vec![
                ("23 09:30", WAKE, "start schedule 23 09:30"),
                ("23 09:30", STARTED, ""),
                ("23 09:31", FINISHED, ""),
                ("23 08:31", SET_BACK, ""),
                ("23 09:30", WAKE, ""),
                ("24 09:30", WAKE, "start schedule 24 09:30"),
            ],
        ),
        (
            "a clock set back by a day repeats a fixed time",
            timing("30 9 * * *"),
            "23 09:00",
            vec![
                ("23 09:30", WAKE, "start schedule 23 09:30"),
                ("23 09:30", STARTED, ""),
                ("23 09:31", FINISHED, ""),
                ("22 08:31", SET_BACK, ""),
                ("22 09:30", WAKE, "start schedule 22 09:30"),
            ],
        ),
        (
            "a fixed time is not repeated when the clock was set back and the daemon restarted",
            timing("30 9 * * *"),
            "23 09:00",
            vec![
                ("23 09:30", WAKE, "start schedule 23 09:30"),
                ("23 09:30", STARTED, ""),
                ("23 09:31", FINISHED, ""),
                ("23 08:40", Restart, ""),
                ("23 09:30", WAKE, ""),
                ("24 09:30", WAKE, "start schedule 24 09:30"),
            ],
        ),
        (
            "a clock set forward is one run, like a stall",
            hourly(),
            "23 00:30",
            vec![("24 00:30", WAKE, "start schedule 24 00:00")],
        ),
        (
            "a clock set back does not delay a run for longer than its splay",
            splayed(hourly(), 10),
            "23 05:30",
            vec![
                ("23 06:00", WAKE, ""),
                ("23 02:00", SET_BACK, ""),
                ("23 02:10", WAKE, "start schedule 23 06:00"),
            ],
        ),
        (
            "runs refused because of the history count as missed when it can be written again",
            nightly(),
            "22 12:00",
            vec![
                ("23 03:30", WAKE, "start schedule 23 03:30"),
                ("23 03:30", REFUSED, ""),
                ("23 03:30", FINISHED, ""),
                ("23 03:40", recalled("22 12:00", ""), "missed 23 03:30, start catch-up 23 03:30"),
            ],
        ),
        (
            "a run in progress when the history is opened is not run again",
            nightly(),
            "22 12:00",
            vec![
                ("23 03:30", WAKE, "start schedule 23 03:30"),
                ("23 03:30", REFUSED, ""),
                ("23 03:40", recalled("22 12:00", ""), ""),
                ("23 03:41", FINISHED, ""),
            ],
        ),
        (
            "occurrences missed during a pause are skipped when the history is read",
            nightly(),
            "22 12:00",
            vec![(
                "23 03:40",
                Paused(Event::Recalled(Recalled {
                    since: at("22 12:00"),
                    watermark: None,
                    interrupted: None,
                })),
                "skip paused, remember 23 03:30",
            )],
        ),
    ]
}

#[test]
fn every_rule_of_scheduling_holds() {
    let mut wrong = Vec::new();
    for (rule, timing, start, steps) in rules() {
        let played = play(timing, start, &steps);
        for ((time, _, expected), decided) in steps.iter().zip(&played) {
            if expected != decided {
                wrong.push(format!(
                    "{rule}\n  at {time} expected: {expected}\n  {:>w$} decided: {decided}",
                    "",
                    w = time.len() + 2
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} steps differ\n{}", wrong.len(), wrong.join("\n"));
}

/// What may happen to a job at any time.
#[derive(Debug, Clone)]
enum Chance {
    /// Time passes; the daemon examines the job at each of its wake-up times.
    Pass(i64),
    /// Time passes without any wake-up: the machine was suspended.
    Stall(i64),
    Request,
    Started,
    Ended(Ending),
    Cancel,
    Pause(bool),
    /// The daemon is down for this long, and starts again. An active run is interrupted.
    Restart(i64),
    Redefine(usize),
}

fn chances() -> impl Strategy<Value = Vec<Chance>> {
    let one = prop_oneof![
        6 => (1_i64..200).prop_map(Chance::Pass),
        1 => (1_i64..2000).prop_map(Chance::Stall),
        1 => Just(Chance::Request),
        4 => Just(Chance::Started),
        4 => Just(Chance::Ended(Ending::Finished)),
        1 => Just(Chance::Ended(Ending::Busy)),
        1 => Just(Chance::Cancel),
        1 => any::<bool>().prop_map(Chance::Pause),
        2 => (0_i64..2000).prop_map(Chance::Restart),
        1 => (0_usize..6).prop_map(Chance::Redefine),
    ];
    prop::collection::vec(one, 1..40)
}

fn definition(number: usize) -> Timing {
    let forever = Some(TimeDelta::days(4000));
    let timing = match number {
        0 => hourly(),
        1 => queueing(timing("*/20 * * * *")),
        2 => in_window(hourly(), "01:00-05:00"),
        3 => splayed(queueing(hourly()), 90),
        4 => disabled(hourly()),
        _ => in_window(splayed(nightly(), 20), "22:00-04:00"),
    };
    Timing { catch_up: forever, ..timing }
}

/// Drives a job, and checks what must hold.
struct Account {
    driven: Driven,
    now: Timestamp,
    paused: bool,
    /// Whether the run that was started has reported its start.
    started: bool,
    /// How often each occurrence of the present schedule was started.
    runs: std::collections::BTreeMap<Timestamp, u32>,
}

impl Account {
    fn new(definition: Timing) -> Self {
        let now = at("10 00:10");
        let driven = Driven::new(definition, now);
        Self { driven, now, paused: false, started: false, runs: std::collections::BTreeMap::new() }
    }

    fn on(&mut self, event: Event) -> Result<(), TestCaseError> {
        let now = Now { time: self.now, paused: self.paused, draining: false, standby: false };
        let ends = usize::from(matches!(event, Event::Ended(_)));
        let ran = usize::from(self.driven.state.run.is_some_and(|run| run.held_until.is_none()));
        let decisions = self.driven.decide(now, event);
        self.check(&decisions, ran - ends)
    }

    fn check(&mut self, decisions: &[Decision], under_way: usize) -> Result<(), TestCaseError> {
        let starts: Vec<&Start> = decisions
            .iter()
            .filter_map(|decision| match decision {
                Decision::Start(start) => Some(start),
                _ => None,
            })
            .collect();
        prop_assert!(starts.len() + under_way <= 1, "two runs at once: {:?}", decisions);
        for start in starts {
            self.started = false;
            let Some(occurrence) = start.occurrence else { continue };
            prop_assert!(occurrence <= self.now, "{} runs before it comes", text(occurrence));
            let times = self.runs.entry(occurrence).or_default();
            *times += 1;
            let repeated = start.trigger == Trigger::CatchUp && start.attempts_made > 0;
            prop_assert!(*times == 1 || repeated, "{} ran {} times", text(occurrence), times);
        }
        self.nothing_is_forgotten()
    }

    /// Whenever the daemon ended now and started again, it would catch up exactly what is not dealt with.
    fn nothing_is_forgotten(&self) -> Result<(), TestCaseError> {
        let driven = &self.driven;
        let timing = &driven.state.timing;
        if !timing.enabled {
            return Ok(());
        }
        let from = driven.recorded.max(Some(driven.since)).unwrap();
        let schedule = timing.schedule.as_ref().unwrap();
        let open = schedule.last(from, self.now, timing.zone);
        let restarted = JobState::new(timing.clone(), self.now);
        let recalled =
            Recalled { since: driven.since, watermark: driven.recorded, interrupted: None };
        // It waits for its window or runs at once; here it waits.
        let now = Now { time: self.now, paused: false, draining: true, standby: false };
        let (restarted, _) = restarted.decide(now, Event::Recalled(recalled));
        prop_assert_eq!(restarted.missed.map(|missed| missed.occurrence), open);
        let state = &driven.state;
        let under_way = state.run.and_then(|run| run.start.occurrence);
        for waits in [state.queued, state.skipped].into_iter().flatten() {
            prop_assert!(driven.recorded < Some(waits), "a restart would forget {}", text(waits));
        }
        if open.is_some() {
            // No occurrence is forgotten: it runs, or something known delays it.
            let held = [under_way, state.queued, state.skipped, state.next()];
            let held = held.into_iter().flatten().any(|time| time <= self.now);
            prop_assert!(held || state.missed.is_some(), "{:?} lies: {:?}", open, state);
        }
        Ok(())
    }

    fn pass(&mut self, until: Timestamp) -> Result<(), TestCaseError> {
        while let Some(wake) = self.driven.state.wake_at(self.now).filter(|wake| *wake <= until) {
            self.now = self.now.max(wake);
            let before = self.driven.state.clone();
            self.on(Event::Wake)?;
            prop_assert_ne!(&before, &self.driven.state, "it wakes without end");
        }
        self.now = until;
        Ok(())
    }

    fn take(&mut self, chance: &Chance) -> Result<(), TestCaseError> {
        let under_way = self.driven.state.run.is_some_and(|run| run.held_until.is_none());
        match chance {
            Chance::Pass(minutes) => self.pass(self.now + TimeDelta::minutes(*minutes)),
            Chance::Stall(minutes) => {
                self.now += TimeDelta::minutes(*minutes);
                self.on(Event::Wake)
            }
            Chance::Request if !self.driven.state.is_running() => self.on(Event::Requested),
            Chance::Started if under_way && !self.started => {
                self.started = true;
                self.on(Event::Started { recorded: true })
            }
            // A run that has not reported its start yet may still find the job busy.
            Chance::Ended(Ending::Busy) if under_way && !self.started => {
                self.on(Event::Ended(Ending::Busy))
            }
            Chance::Ended(Ending::Finished) if under_way && self.started => {
                self.on(Event::Ended(Ending::Finished))
            }
            Chance::Cancel => self.on(Event::Cancelled),
            Chance::Pause(paused) => {
                self.paused = *paused;
                self.on(Event::Wake)
            }
            Chance::Restart(minutes) => self.restart(TimeDelta::minutes(*minutes)),
            Chance::Redefine(number) => {
                let timing = definition(*number);
                let old = &self.driven.state.timing;
                let another = (&old.schedule, old.enabled) != (&timing.schedule, timing.enabled);
                if another {
                    (self.driven.since, self.driven.recorded) = (self.now, None);
                    self.driven.interrupted = None;
                    self.runs.clear();
                }
                self.on(Event::Redefined(Box::new(timing)))?;
                if another {
                    let decisions = self.driven.recall(self.now);
                    prop_assert_eq!(decisions, vec![]);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn restart(&mut self, down: TimeDelta) -> Result<(), TestCaseError> {
        let cut_off = self.driven.state.run.is_some_and(|run| run.held_until.is_none());
        if cut_off && self.started {
            let now = Now { time: self.now, paused: self.paused, draining: true, standby: false };
            self.driven.decide(now, Event::Ended(Ending::CutOff));
        } else if let Some(occurrence) = self.driven.state.run.and_then(|run| run.start.occurrence)
        {
            // It never began.
            self.runs.remove(&occurrence);
        }
        self.now += down;
        self.driven.state = JobState::new(self.driven.state.timing.clone(), self.now);
        let recalled = Recalled {
            since: self.driven.since,
            watermark: self.driven.recorded,
            interrupted: self.driven.interrupted.filter(|_| self.driven.interruptions <= 1),
        };
        self.on(Event::Recalled(recalled))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_two_runs_at_once_none_twice_and_none_forgotten_across_a_restart_at_any_point(
        first in 0_usize..6,
        chances in chances(),
    ) {
        let mut account = Account::new(definition(first));
        for chance in &chances {
            account.take(chance)?;
        }
    }

    #[test]
    fn a_restart_of_an_idle_daemon_does_not_change_later_decisions(
        first in 0_usize..6,
        chances in chances(),
    ) {
        let mut account = Account::new(definition(first));
        for chance in &chances {
            account.take(chance)?;
        }
        account.on(Event::Wake)?;
        if account.driven.state.run.is_some_and(|run| run.held_until.is_some()) {
            account.on(Event::Cancelled)?;
        }
        if account.driven.state.run.is_some_and(|run| run.held_until.is_none()) {
            account.started = true;
            account.on(Event::Started { recorded: true })?;
            account.on(Event::Ended(Ending::Finished))?;
        }
        prop_assume!(!account.driven.state.is_running());
        // An occurrence whose run was cut off is not done, and waits for its window: that is not idle.
        let recorded = account.driven.recorded;
        let cut_off = |missed: Interrupted| Some(missed.occurrence) == recorded;
        prop_assume!(!account.driven.state.missed.is_some_and(cut_off));
        let mut restarted = Account::new(definition(0));
        restarted.driven.state = account.driven.state.clone();
        (restarted.driven.since, restarted.driven.recorded) =
            (account.driven.since, account.driven.recorded);
        (restarted.now, restarted.paused) = (account.now, account.paused);
        account.runs.clear();
        restarted.restart(TimeDelta::zero())?;
        for _ in 0..6 {
            for account in [&mut account, &mut restarted] {
                account.take(&Chance::Pass(171))?;
                account.take(&Chance::Started)?;
                account.take(&Chance::Ended(Ending::Finished))?;
            }
            prop_assert_eq!(&account.runs, &restarted.runs);
            prop_assert_eq!(account.driven.recorded, restarted.driven.recorded);
        }
    }
}

#[test]
fn a_run_that_is_not_started_yet_says_what_it_is_waiting_for_and_until_when() {
    let waiting = |timing: Timing, events: &[(&str, Event)]| {
        let mut last = at(events[0].0);
        let mut state = JobState::new(timing, last);
        for (time, event) in events {
            last = at(time);
            let now = Now { time: last, paused: false, draining: false, standby: false };
            state = state.decide(now, event.clone()).0;
        }
        state.waiting(last).map(|wait| {
            let what = match wait.what {
                WaitFor::Splay { until } => format!("splay until {}", text(until)),
                WaitFor::Window { opens } => format!("window until {}", text(opens)),
                WaitFor::RunUnderWay => "run".to_owned(),
            };
            format!("{what} since {}", text(wait.occurrence))
        })
    };
    let missed = Event::Recalled(Recalled {
        since: at("22 00:00"),
        watermark: Some(at("22 03:30")),
        interrupted: None,
    });
    let rows = [
        (hourly(), vec![("23 00:50", Event::Wake)], None),
        (hourly(), vec![("23 00:50", Event::Wake), ("23 01:00", Event::Wake)], None),
        (
            splayed(hourly(), 10),
            vec![("23 00:50", Event::Wake), ("23 01:00", Event::Wake)],
            Some("splay until 23 01:10 since 23 01:00"),
        ),
        (
            queueing(hourly()),
            vec![("23 00:50", Event::Wake), ("23 01:00", Event::Wake), ("23 02:00", Event::Wake)],
            Some("run since 23 02:00"),
        ),
        (
            in_window(nightly(), "03:00-04:00"),
            vec![("23 05:00", missed)],
            Some("window until 24 03:00 since 23 03:30"),
        ),
    ];
    for (timing, events, expected) in rows {
        assert_eq!(waiting(timing, &events).as_deref(), expected, "{events:?}");
    }
}
