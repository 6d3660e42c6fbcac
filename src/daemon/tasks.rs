//! Background tasks of the daemon, none of which may end before the daemon does.

use std::collections::HashMap;

use tokio::task::{Id, JoinError, JoinSet};

use crate::values::text::panic_text;

/// Running tasks by name.
#[derive(Default)]
pub(super) struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = self.running.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Waits until a task ends, and says which and why. Cancel safe; never returns where no task is left.
    pub(super) async fn unexpected_end(&mut self) -> String {
        let (id, how) = match self.running.join_next_with_id().await {
            None => return std::future::pending().await,
            Some(Ok((id, ()))) => (id, "ended".to_owned()),
            Some(Err(error)) => (error.id(), failure(error)),
        };
        let name = self.names.get(&id).copied().unwrap_or("unknown");
        format!("a bug in microglia, please report it: the background task `{name}` {how}")
    }

    pub(super) fn abort(&mut self) {
        self.running.abort_all();
    }

    /// Waits until every task has ended.
    pub(super) async fn ended(mut self) {
        while self.running.join_next().await.is_some() {}
    }
}

/// Says how a task failed: "panicked: …".
pub(super) fn failure(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => format!("panicked: {}", panic_text(&*panic)),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_or_returns_is_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("config watcher", std::future::pending());
        tasks.spawn("homeserver probe", async { std::panic::panic_any("it is a test") });
        insta::assert_snapshot!(tasks.unexpected_end().await, @"a bug in microglia, please report it: the background task `homeserver probe` panicked: it is a test");
        tasks.spawn("HTTP listener", async {});
        insta::assert_snapshot!(tasks.unexpected_end().await, @"a bug in microglia, please report it: the background task `HTTP listener` ended");
        tasks.abort();
        tasks.ended().await;
    }
}
