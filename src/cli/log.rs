//! The log on stderr: text for people, JSON for machines.

use std::fmt::Write as _;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::debug_fn;

use super::output::stderr_takes_colours;
use crate::values::escape::Line;

/// Starts logging; `RUST_LOG` overrides `levels`.
#[expect(clippy::disallowed_methods, reason = "the environment is read in `cli` only")]
pub(super) fn start(levels: &str) {
    let filter = std::env::var("RUST_LOG")
        .ok()
        .and_then(|levels| EnvFilter::try_new(levels).ok())
        .unwrap_or_else(|| EnvFilter::new(levels));
    let terminal = std::io::stderr().is_terminal();
    // journald writes the time itself.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !terminal;
    let json = std::env::var("MICROGLIA_LOG_FORMAT").is_ok_and(|format| format == "json");
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would panic once stderr is closed.
        .log_internal_errors(false)
        .with_ansi(stderr_takes_colours());
    match (json, journal) {
        (true, _) => {
            log.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
        }
        (false, true) => log.fmt_fields(message_only()).without_time().init(),
        (false, false) => log.fmt_fields(message_only()).init(),
    }
}

/// Prints the message only, because it contains what the fields contain; those are for JSON.
///
/// Keeps each event on one line: text that it quotes from a homeserver cannot forge log lines.
fn message_only() -> impl for<'writer> tracing_subscriber::fmt::FormatFields<'writer> {
    debug_fn(|writer, field, value| match field.name() {
        "message" => write!(Line(writer), "{value:?}"),
        _ => Ok(()),
    })
}
