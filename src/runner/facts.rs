//! The facts that a job plans with: read before and during the plan, stored while it is made.

use std::collections::HashMap;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::context::{Abort, RunContext};
use crate::history::History;
use crate::plan::facts::{Fact, FactStore, Topic};
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

/// The facts about one homeserver, in the history.
pub(super) struct RecordedFacts<'a> {
    pub history: &'a History,
    pub server: &'a str,
}

/// A failure costs only the requests that find things out again.
impl FactStore for RecordedFacts<'_> {
    fn between<'a>(
        &'a self,
        topic: Topic,
        first: &'a str,
        last: &'a str,
    ) -> BoxFuture<'a, HashMap<String, String>> {
        let Self { history, server } = self;
        async move {
            history.facts_between(server, topic, (first, last)).await.unwrap_or_else(|error| {
                tracing::warn!(target: "microglia::history", "cannot read facts about {server}, which will be looked up again: {error}");
                HashMap::new()
            })
        }
        .boxed()
    }

    fn store(&self, facts: Vec<Fact>) -> BoxFuture<'_, ()> {
        let Self { history, server } = self;
        async move {
            if let Err(error) = history.remember(server, &facts).await {
                let count = facts.len();
                tracing::warn!(target: "microglia::history", "cannot store {count} facts about {server}, which will be looked up again: {error}");
            }
        }
        .boxed()
    }

    fn forget(&self, topic: Topic, keys: Vec<String>) -> BoxFuture<'_, ()> {
        let Self { history, server } = self;
        async move {
            if let Err(error) = history.forget(server, topic, &keys).await {
                let count = keys.len();
                tracing::warn!(target: "microglia::history", "cannot forget {count} facts about {server}, which the next run will: {error}");
            }
        }
        .boxed()
    }
}
