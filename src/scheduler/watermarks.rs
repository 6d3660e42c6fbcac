//! Writes up to where occurrences are dealt with, in the order in which it was decided.

use tokio::sync::{mpsc, oneshot};

use crate::history::History;
use crate::values::clock::Timestamp;

/// What is to be written, in order.
pub(super) enum Remember {
    Until(String, Timestamp),
    Flush(oneshot::Sender<()>),
}

/// Writes watermarks one after the other, so that a later one is never overtaken by an earlier one.
pub(super) async fn write_watermarks(
    history: History,
    mut watermarks: mpsc::UnboundedReceiver<Remember>,
) {
    while let Some(remember) = watermarks.recv().await {
        match remember {
            Remember::Until(job, until) => {
                if let Err(error) = history.set_watermark(&job, until).await {
                    tracing::error!(target: "microglia::scheduler", "{job}: cannot record a skipped occurrence: {error}");
                }
            }
            Remember::Flush(reply) => drop(reply.send(())),
        }
    }
}
