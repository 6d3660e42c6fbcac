//! Watches how a homeserver responds while a run uses it.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;

use super::context::{RunContext, truncated};
use crate::http::Silence;
use crate::plan::report::Event;

const POLL: Duration = Duration::from_millis(500);
/// A shorter silence is over before anybody would notice.
const MIN_SILENCE: Duration = Duration::from_secs(2);

/// Reports when the homeserver stops responding or responds slowly, and when that is over.
pub(super) async fn watch_homeserver(run: &RunContext<'_>) -> Infallible {
    let mut silent_since: Option<Instant> = None;
    let mut slow = false;
    loop {
        tokio::time::sleep(POLL).await;
        run.reader.sample_rate();
        if slow != run.reader.is_slow() {
            slow = !slow;
            run.emit(Event::Slow(slow));
        }
        let silence = run.reader.silence().filter(|silence| silence.since.elapsed() > MIN_SILENCE);
        match (silent_since, silence) {
            (None, Some(Silence { since, problem })) => {
                silent_since = Some(since);
                let since = truncated(run.clock.now() - since.elapsed());
                run.emit(Event::Silent { since, problem });
            }
            (Some(since), None) => {
                silent_since = None;
                run.emit(Event::Answering { after_seconds: since.elapsed().as_secs() });
            }
            _ => {}
        }
    }
}
