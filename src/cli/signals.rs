//! The signals that end a command.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM or SIGINT, which the first process of a container would otherwise ignore.
pub(super) async fn signalled() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
}
