//! Reads server-sent events.

use anyhow::{Context, bail};
use axum::body::{Body, BodyDataStream};
use futures_util::StreamExt;

use crate::scheduler::JobEvent;

/// Far above any event: the largest is a report with its changes.
const MAX_EVENT_BYTES: usize = 64 * 1024 * 1024;

/// The events of a response.
pub(super) struct EventStream {
    body: BodyDataStream,
    /// What was received after the last event.
    received: Vec<u8>,
}

impl EventStream {
    pub(super) fn new(body: Body) -> Self {
        Self { body: body.into_data_stream(), received: Vec::new() }
    }

    /// Returns the next event; `None` at the end of the stream. Cancel safe.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<JobEvent>> {
        loop {
            while let Some(message) = self.take_message() {
                if let Some(event) = parse(&message)? {
                    return Ok(Some(event));
                }
            }
            let Some(Ok(chunk)) = self.body.next().await else { return Ok(None) };
            if self.received.len() + chunk.len() > MAX_EVENT_BYTES {
                bail!("the daemon sent an event of more than {MAX_EVENT_BYTES} bytes");
            }
            self.received.extend_from_slice(&chunk);
        }
    }

    /// Takes what stands before the next empty line.
    fn take_message(&mut self) -> Option<Vec<u8>> {
        let end = self.received.windows(2).position(|two| two == b"\n\n")?;
        let rest = self.received.split_off(end + 2);
        Some(std::mem::replace(&mut self.received, rest))
    }
}

/// Returns the event of a message; `None` for a comment, which only keeps the connection alive.
fn parse(message: &[u8]) -> anyhow::Result<Option<JobEvent>> {
    let message = std::str::from_utf8(message).context("the daemon sent an invalid event")?;
    let Some(data) = message.lines().find_map(|line| line.strip_prefix("data:")) else {
        return Ok(None);
    };
    let event = serde_json::from_str(data.trim_start());
    Ok(Some(event.with_context(|| format!("the daemon sent an unknown event: {data}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::report::Event;

    #[tokio::test]
    async fn events_are_found_however_they_are_cut_into_chunks() {
        let text = ": keep-alive\n\nevent: resumed\ndata: {\"job\":\"a\",\"event\":\"resumed\"}\n\n\
                    event: slow\ndata: {\"job\":\"b\",\"event\":{\"slow\":true}}\n\nevent: cut";
        for size in [1, 7, text.len()] {
            let chunks = text.as_bytes().chunks(size).map(<[u8]>::to_vec);
            let chunks =
                futures_util::stream::iter(chunks.map(Ok::<_, std::io::Error>).collect::<Vec<_>>());
            let mut events = EventStream::new(Body::from_stream(chunks));
            let mut found = Vec::new();
            while let Some(JobEvent { job, event }) = events.next().await.unwrap() {
                found.push((job, event));
            }
            let expected = [("a".to_owned(), Event::Resumed), ("b".to_owned(), Event::Slow(true))];
            assert_eq!(found, expected, "chunks of {size} bytes");
        }
    }
}
