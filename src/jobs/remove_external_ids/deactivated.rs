//! Since when accounts are deactivated, by this program's own memory: Synapse does not store it.

use std::collections::{HashMap, HashSet};

use super::super::job::Context;
use super::keys::Keys;
use crate::plan::facts::{Fact, Topic};
use crate::synapse::UserRow;
use crate::values::clock::Timestamp;

/// The deactivated accounts of a page that have not been seen so for `deactivated_for`; none without that key.
///
/// Remembers those that are seen so for the first time, and forgets who was reactivated or is gone.
pub(super) async fn recently_deactivated(
    keys: &Keys,
    context: &Context<'_>,
    rows: &[UserRow],
) -> HashSet<String> {
    let Some(least) = keys.deactivated_for else { return HashSet::new() };
    let names: HashMap<&str, bool> =
        rows.iter().map(|row| (row.name.as_str(), row.deactivated)).collect();
    let (Some(min), Some(max)) = (names.keys().min(), names.keys().max()) else {
        return HashSet::new();
    };
    let mut known = context.facts.between(Topic::DeactivatedAccount, min, max).await;
    // A database that sorts otherwise has accounts on other pages that would be among these.
    let is_sorted = rows.is_sorted_by(|a, b| a.name <= b.name);
    let is_over = |name: &str| names.get(name).map_or(is_sorted, |deactivated| !deactivated);
    let over = known.keys().filter(|name| is_over(name)).cloned().collect();
    known.retain(|name, _| !is_over(name));
    context.facts.forget(Topic::DeactivatedAccount, over).await;
    let now = context.started_at;
    let oldest = now - least.as_chrono();
    let (mut recent, mut new) = (HashSet::new(), Vec::new());
    for row in rows.iter().filter(|row| row.deactivated) {
        let seen_ms = known.get(&row.name).and_then(|value| value.parse().ok());
        let first_seen = seen_ms.and_then(Timestamp::from_timestamp_millis).unwrap_or_else(|| {
            let (key, value) = (row.name.clone(), now.timestamp_millis().to_string());
            new.push(Fact { topic: Topic::DeactivatedAccount, key, value });
            now
        });
        if first_seen > oldest {
            recent.insert(row.name.clone());
        }
    }
    context.facts.store(new).await;
    recent
}
