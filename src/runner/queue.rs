//! Which change may be sent next: lane by lane, each at its own pace.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::plan::change::{BatchPlan, Change, Lane, Work};
use crate::values::schema::Rate;

/// The changes of an approved plan that have not begun.
pub(super) enum Queue {
    Lanes(Vec<Pipe>),
    Batches(Batches),
}

/// The changes of one lane, in order.
pub(super) struct Pipe {
    waiting: VecDeque<(i64, Box<dyn Change>)>,
    at_once: usize,
    running: usize,
    /// From the end of a change to the beginning of the next.
    interval: Duration,
    not_before: Instant,
}

/// Changes that are sized one after another.
pub(super) struct Batches {
    plan: Box<dyn BatchPlan>,
    next_seq: i64,
    running_since: Option<Instant>,
    last: Option<Duration>,
    exhausted: bool,
}

/// A change in progress.
pub(super) struct Task {
    pub lane: usize,
    /// The number of the change in the history.
    pub seq: i64,
    pub change: Box<dyn Change>,
    /// How often its target was read just before it.
    pub checks: u32,
}

/// Whether a request was sent for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    No,
}

impl Queue {
    /// Numbers the changes from `first_seq` on; `problems` numbers after it are taken where changes come in batches.
    pub fn new(work: Work, first_seq: i64, problems: usize, concurrency: usize) -> Self {
        match work {
            Work::Changes(changes) => Self::Lanes(lanes(changes, first_seq, concurrency)),
            Work::BatchPlan(plan) => Self::Batches(Batches {
                plan,
                next_seq: first_seq.saturating_add(i64::try_from(problems).unwrap_or(0)),
                running_since: None,
                last: None,
                exhausted: false,
            }),
        }
    }

    /// Whether a change could begin, now or when its turn comes.
    pub fn can_start(&self) -> bool {
        match self {
            Self::Lanes(lanes) => lanes.iter().any(Pipe::can_start),
            Self::Batches(batches) => batches.running_since.is_none() && !batches.exhausted,
        }
    }

    /// Takes the next change that may begin at `now`.
    pub fn next(&mut self, now: Instant) -> Option<Task> {
        match self {
            Self::Lanes(lanes) => {
                let (lane, pipe) = lanes
                    .iter_mut()
                    .enumerate()
                    .find(|(_, pipe)| pipe.can_start() && pipe.not_before <= now)?;
                let (seq, change) = pipe.waiting.pop_front()?;
                pipe.running += 1;
                Some(Task { lane, seq, change, checks: 1 })
            }
            Self::Batches(batches) if batches.running_since.is_some() => None,
            Self::Batches(batches) => {
                let change = batches.plan.next(batches.last);
                batches.exhausted = change.is_none();
                let (seq, change) = (batches.next_seq, change?);
                batches.next_seq += 1;
                batches.running_since = Some(now);
                Some(Task { lane: 0, seq, change, checks: 1 })
            }
        }
    }

    /// When the next lane that only waits for its turn may continue.
    pub fn next_turn(&self) -> Option<Instant> {
        match self {
            Self::Lanes(lanes) => {
                lanes.iter().filter(|pipe| pipe.can_start()).map(|pipe| pipe.not_before).min()
            }
            Self::Batches(_) => None,
        }
    }

    pub fn finished(&mut self, lane: usize, sent: Sent, now: Instant) {
        match self {
            Self::Lanes(lanes) => {
                if let Some(pipe) = lanes.get_mut(lane) {
                    pipe.running = pipe.running.saturating_sub(1);
                    // A change that was skipped used no turn.
                    if sent == Sent::Yes {
                        pipe.not_before = now + pipe.interval;
                    }
                }
            }
            Self::Batches(batches) => {
                batches.last = batches.running_since.take().map(|since| now - since);
            }
        }
    }

    pub fn is_batches(&self) -> bool {
        matches!(self, Self::Batches(_))
    }
}

impl Pipe {
    fn new(at_once: usize, interval: Duration) -> Self {
        Self { waiting: VecDeque::new(), at_once, running: 0, interval, not_before: Instant::now() }
    }

    fn can_start(&self) -> bool {
        self.running < self.at_once && !self.waiting.is_empty()
    }
}

fn lanes(changes: Vec<Box<dyn Change>>, first_seq: i64, concurrency: usize) -> Vec<Pipe> {
    const FREE: usize = 0;
    const EXTERNAL_IDS: usize = 1;
    const ROOM_DELETIONS: usize = 2;
    const PACED: usize = 3;
    let one_by_one = || Pipe::new(1, Duration::ZERO);
    let free = Pipe::new(concurrency, Duration::ZERO);
    let mut lanes = vec![free, one_by_one(), one_by_one(), one_by_one()];
    let mut rooms: HashMap<String, usize> = HashMap::new();
    for (seq, change) in (first_seq..).zip(changes) {
        let lane = match change.lane() {
            Lane::Free | Lane::Media(_) => FREE,
            Lane::ExternalIds => EXTERNAL_IDS,
            Lane::RoomDeletion { pause } => paused(&mut lanes, ROOM_DELETIONS, pause),
            Lane::Paced { pause } => paused(&mut lanes, PACED, pause),
            Lane::Room { room_id, per_second } => *rooms.entry(room_id).or_insert_with(|| {
                lanes.push(Pipe::new(1, Rate(per_second).interval()));
                lanes.len() - 1
            }),
        };
        if let Some(pipe) = lanes.get_mut(lane) {
            pipe.waiting.push_back((seq, change));
        }
    }
    lanes
}

/// Makes a lane pause after each of its changes; returns the lane.
fn paused(lanes: &mut [Pipe], lane: usize, pause: Duration) -> usize {
    if let Some(pipe) = lanes.get_mut(lane) {
        pipe.interval = pause;
    }
    lane
}
