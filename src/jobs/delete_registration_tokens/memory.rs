//! Since when tokens have been used up, where the server does not record it.

use std::collections::HashSet;

use super::super::job::Context;
use crate::plan::facts::{Fact, Topic};
use crate::values::clock::Timestamp;

/// What earlier runs saw, and what this one adds.
pub(super) struct Memory<'a> {
    context: &'a Context<'a>,
    used_up: HashSet<String>,
    new: Vec<Fact>,
}

impl<'a> Memory<'a> {
    pub fn new(context: &'a Context<'a>) -> Self {
        Self { context, used_up: HashSet::new(), new: Vec::new() }
    }

    /// Returns when a token was first seen used up, after so many uses.
    ///
    /// With other uses than at that time it was usable in between.
    pub fn since(&mut self, key: &str, uses: u64) -> Timestamp {
        self.used_up.insert(key.to_owned());
        let known = self.context.facts.known().get(key).and_then(|value| parsed(value));
        if let Some((since, _)) = known.filter(|(_, before)| *before == uses) {
            return since;
        }
        let now = self.context.started_at;
        let value = format!("{} {uses}", now.timestamp_millis());
        self.new.push(Fact { topic: Topic::UsedUpToken, key: key.to_owned(), value });
        now
    }

    /// How many tokens were seen used up for the first time.
    pub fn new_count(&self) -> u64 {
        self.new.len() as u64
    }

    /// Stores what is new, and forgets the tokens that are gone or can be used again.
    pub async fn keep(self) {
        let Self { context, used_up, new } = self;
        let known = context.facts.known().keys();
        let others = known.filter(|key| !used_up.contains(*key)).cloned().collect();
        context.facts.forget(Topic::UsedUpToken, others).await;
        context.facts.store(new).await;
    }
}

fn parsed(value: &str) -> Option<(Timestamp, u64)> {
    let (since, uses) = value.split_once(' ')?;
    Some((Timestamp::from_timestamp_millis(since.parse().ok()?)?, uses.parse().ok()?))
}
