//! The facts that a job plans with: read before the plan, stored while it is made.

use std::collections::HashMap;

use super::context::{Abort, RunContext};
use crate::history::History;
use crate::plan::facts::Fact;
use crate::plan::report::Mode;

/// Reads the facts of the job's topic; empty for a job that needs none.
pub(super) async fn known_facts(
    run: &RunContext<'_>,
    server: &str,
) -> Result<HashMap<String, String>, Abort> {
    let Some(topic) = run.spec.job.topic() else { return Ok(HashMap::new()) };
    match run.history.facts(server, topic).await {
        Ok(facts) => Ok(facts),
        // It changes nothing, and may look up again what was found out.
        Err(error) if run.params.mode == Mode::DryRun => {
            tracing::warn!(target: "microglia::history", "this dry run plans without what is known about {server}: {error}");
            Ok(HashMap::new())
        }
        Err(error) => Err(Abort::Failed(format!("cannot read the history: {error}"))),
    }
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
