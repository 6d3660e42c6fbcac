//! Requests of other replicas for jobs that this one runs: taken once, carried out, and answered.

use std::sync::Arc;
use std::time::Duration;

use super::request::{Answer, ApproveRequest, ForwardedRequest, Refusal};
use super::supervisor::Supervisor;
use crate::history::TakenRequest;
use crate::plan::report::Event;

impl Supervisor {
    /// Takes a request, if it is still this replica's to take, and carries it out in a task of its own.
    pub(super) async fn take_request(self: &Arc<Self>, id: i64, timeout: Duration) {
        let taking = self.history().take_request(id);
        match tokio::time::timeout(timeout, taking).await {
            Ok(Ok(Some(taken))) => {
                let supervisor = Arc::clone(self);
                self.tasks.spawn(async move { supervisor.carry_out(id, taken).await });
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::debug!(target: "microglia::scheduler", "cannot take a request of another replica: {error}");
            }
            Err(_) => {
                tracing::debug!(target: "microglia::scheduler", "cannot take a request of another replica: no answer in time");
            }
        }
    }

    async fn carry_out(&self, id: i64, taken: TakenRequest) {
        let TakenRequest { job, request, asked_by } = taken;
        let answer = self.answer_to(&job, &request, &asked_by).await;
        let answer = serde_json::to_string(&answer).unwrap_or_default();
        if let Err(error) = self.history().answer_request(id, &answer).await {
            tracing::warn!(target: "microglia::scheduler", job, "{job}: cannot answer a request of the replica {asked_by}: {error}");
        }
    }

    async fn answer_to(&self, job: &str, request: &str, asked_by: &str) -> Answer {
        let request: ForwardedRequest = serde_json::from_str(request).map_err(|error| {
            Refusal::Unanswered(format!(
                "the replica that runs {job} cannot read the request: give all replicas the same version of microglia ({error})"
            ))
        })?;
        let overrides = match request {
            ForwardedRequest::Run(overrides) => overrides,
            ForwardedRequest::Cancel { by } => {
                let by = format!("{by} on the replica {asked_by}");
                return self.cancel_here(job, &by).await.map(|()| None);
            }
            ForwardedRequest::Approve(request) => {
                let by = format!("{} on the replica {asked_by}", request.by);
                let approved = self.approve_plan_of(ApproveRequest { by, ..request }).await?;
                return Ok(approved.run);
            }
        };
        tracing::info!(target: "microglia::scheduler", job, "{job}: a run was requested on the replica {asked_by}");
        let mut events = self.run_here(job, overrides).await?;
        while let Some(event) = events.recv().await {
            if let Event::Started(report) | Event::Ended(report) = event {
                let unrecorded = || {
                    Refusal::Unanswered(format!(
                        "{job} was started, but its run cannot be recorded: see the log of the replica that runs it"
                    ))
                };
                return report.id.map(Some).ok_or_else(unrecorded);
            }
        }
        // Another process has the job's lock.
        Err(Refusal::Running { job: job.to_owned(), run: None })
    }
}
