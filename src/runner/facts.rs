//! The facts that a job plans with: read before the plan, stored while it is made.

use std::collections::HashMap;

use super::context::{Abort, RunContext};
use crate::history::History;
use crate::plan::facts::Fact;

/// Reads the facts of the job's topic; empty for a job that needs none.
pub(super) async fn known_facts(
    run: &RunContext<'_>,
    server: &str,
) -> Result<HashMap<String, String>, Abort> {
    let Some(topic) = run.spec.job.topic() else { return Ok(HashMap::new()) };
    let facts = run.history.facts(server, topic).await;
    facts.map_err(|error| Abort::Failed(format!("cannot read the history: {error}")))
}

/// Stores what the job found out; a failure costs only the requests that find it out again.
pub(super) async fn store_facts(history: &History, server: &str, facts: Vec<Fact>) {
    if let Err(error) = history.remember(server, &facts).await {
        tracing::warn!(
            target: "microglia::history",
            "cannot store {} facts about {server}, which will be looked up again: {error}",
            facts.len()
        );
    }
}
