//! Responses that are parsed while they arrive, and never held as a whole.

use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::Method;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::reader::Reader;
use crate::http::{Base, BodyStream, Call, Error, Pacing, Repeat};
use crate::values::size::Size;

/// How much of a response may wait for the parser.
const MAX_WAITING_CHUNKS: usize = 8;

/// The body of a response for a parser on a thread of its own.
pub(super) struct ChunkReader {
    chunks: mpsc::Receiver<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.position == self.current.len() {
            let Some(chunk) = self.chunks.blocking_recv() else { return Ok(0) };
            (self.current, self.position) = (chunk, 0);
        }
        let rest = self.current.get(self.position..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.position += length;
        Ok(length)
    }
}

type Parsing<T> = JoinHandle<Result<T, serde_json::Error>>;

impl Reader {
    /// Reads a response of any size up to `max`, which may take `extra` longer than others to begin.
    pub(super) async fn get_streamed<T: Send + 'static>(
        &self,
        endpoint: &'static str,
        ids: &[&str],
        query: Vec<(&'static str, String)>,
        (max, extra): (Size, Duration),
        parse: impl Fn(ChunkReader) -> Result<T, serde_json::Error> + Clone + Send + Sync + 'static,
    ) -> Result<T, Error> {
        let parsing: Mutex<Option<Parsing<T>>> = Mutex::new(None);
        let begin = || {
            let (sender, chunks) = mpsc::channel(MAX_WAITING_CHUNKS);
            let reader = ChunkReader { chunks, current: Vec::new(), position: 0 };
            let parse = parse.clone();
            let parser = tokio::task::spawn_blocking(move || parse(reader));
            *parsing.lock().unwrap_or_else(PoisonError::into_inner) = Some(parser);
            sender
        };
        let call = Call {
            method: Method::GET,
            base: Base::Homeserver,
            endpoint,
            ids,
            query,
            body: None,
            repeat: Repeat::Always,
            pacing: Pacing::Normal,
            timeout: None,
        };
        let timeout = self.transport.request_timeout().saturating_add(extra);
        let stream = BodyStream { begin: &begin, max, timeout };
        let never = CancellationToken::new();
        let response = self.transport.send_streamed(&call, &stream, self.session(&never)).await;
        self.count_request();
        let response = response?;
        let parser = parsing.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some(parser) = parser else { return Err(response.unexpected("it has no body")) };
        match parser.await {
            Ok(parsed) => parsed.map_err(|problem| response.undecodable(&problem)),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
