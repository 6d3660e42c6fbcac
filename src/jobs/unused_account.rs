//! What is remembered of accounts that were not used for long: when their users were told, and when they were locked.

use std::collections::HashMap;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::job::Context;
use crate::plan::facts::{Fact, Topic};
use crate::synapse::UserRow;
use crate::values::clock::Timestamp;

/// Synapse keeps neither: what this program did not do itself is not remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// When the notice was confirmed, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_ms: Option<i64>,
    /// When the lock was sent, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_ms: Option<i64>,
}

/// How much later than a lock an account may be used: under MAS, Synapse goes on accepting a token for two minutes, and MAS
/// records that up to a minute late.
const LOCKS_WITHIN: TimeDelta = TimeDelta::minutes(10);
/// How far the clock of MAS may be from that of this machine, and how long a lock may take to be sent.
const SAME_LOCK: TimeDelta = TimeDelta::minutes(10);

impl Memory {
    /// Of a fact as it was stored; nothing where it cannot be read.
    pub fn parse(fact: &str) -> Self {
        serde_json::from_str(fact).unwrap_or_default()
    }

    pub fn fact(self, user_id: &str) -> Fact {
        let value = serde_json::to_string(&self).unwrap_or_default();
        Fact { topic: Topic::UnusedAccount, key: user_id.to_owned(), value }
    }

    pub fn told_at(self) -> Option<Timestamp> {
        self.told_ms.and_then(Timestamp::from_timestamp_millis)
    }

    pub fn locked_at(self) -> Option<Timestamp> {
        self.locked_ms.and_then(Timestamp::from_timestamp_millis)
    }

    /// Whether a lock that MAS knows the moment of is the one that is remembered.
    pub fn is_lock_of(self, locked_at: Timestamp) -> bool {
        self.locked_at().is_some_and(|at| (at - locked_at).abs() <= SAME_LOCK)
    }

    /// Whether the user came back after the notice, which then is void.
    pub fn came_back(self, last_seen_at: Option<Timestamp>) -> bool {
        self.told_at().zip(last_seen_at).is_some_and(|(told, seen)| seen > told)
    }

    /// Whether somebody used the account after it was locked.
    pub fn is_used_since_lock(self, last_seen_at: Option<Timestamp>) -> bool {
        self.locked_at().zip(last_seen_at).is_some_and(|(at, seen)| seen > at + LOCKS_WITHIN)
    }

    /// What still counts, by the row of the account: who came back is told anew, and an account that is not locked was
    /// unlocked by somebody else.
    pub fn as_of(self, row: &UserRow) -> Self {
        if row.deactivated {
            return Self::default();
        }
        Self {
            told_ms: self.told_ms.filter(|_| !self.came_back(row.last_seen_at)),
            locked_ms: self.locked_ms.filter(|_| row.locked),
        }
    }
}

/// Returns what still counts of these accounts, and forgets the rest.
pub(super) async fn recall(context: &Context<'_>, rows: &[UserRow]) -> HashMap<String, Memory> {
    let (mut memories, mut changed, mut gone) = (HashMap::new(), Vec::new(), Vec::new());
    for row in rows {
        let Some(fact) = context.facts.known().get(&row.name) else { continue };
        let known = Memory::parse(fact);
        let memory = known.as_of(row);
        if memory == Memory::default() {
            gone.push(row.name.clone());
            continue;
        }
        if memory != known {
            changed.push(memory.fact(&row.name));
        }
        memories.insert(row.name.clone(), memory);
    }
    context.facts.store(changed).await;
    context.facts.forget(Topic::UnusedAccount, gone).await;
    memories
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_remembered_is_read_again() {
        for memory in [
            Memory { told_ms: Some(5), locked_ms: None },
            Memory { told_ms: None, locked_ms: Some(1_700_000_000_000) },
            Memory { told_ms: Some(5), locked_ms: Some(6) },
            Memory::default(),
        ] {
            assert_eq!(Memory::parse(&memory.fact("@a:hs").value), memory);
        }
        for text in ["", "5", "{\"told_ms\": \"5\"}"] {
            assert_eq!(Memory::parse(text), Memory::default(), "{text}");
        }
    }

    #[test]
    fn a_notice_counts_until_the_user_comes_back_and_a_lock_until_somebody_unlocks() {
        let memory = Memory { told_ms: Some(10_000_000), locked_ms: Some(20_000_000) };
        let as_of = |row: serde_json::Value| memory.as_of(&serde_json::from_value(row).unwrap());
        let row = |seen: i64, locked: bool| json!({"name": "@a:hs", "last_seen_ts": seen, "locked": locked});
        assert_eq!(as_of(row(9_000_000, true)), memory);
        assert_eq!(as_of(row(10_000_001, true)), Memory { told_ms: None, ..memory });
        assert_eq!(as_of(row(9_000_000, false)), Memory { locked_ms: None, ..memory });
        let gone = json!({"name": "@a:hs", "locked": true, "deactivated": true});
        assert_eq!(as_of(gone), Memory::default());
        let seen = Timestamp::from_timestamp_millis;
        // A token that worked for two more minutes.
        assert!(!memory.is_used_since_lock(seen(20_120_000)));
        assert!(memory.is_used_since_lock(seen(20_700_000)));
        assert!(!memory.is_used_since_lock(None));
    }
}
