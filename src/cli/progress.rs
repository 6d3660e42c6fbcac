//! A progress bar on stderr, where that is a terminal.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::output::print_message;
use crate::plan::report::Event;
use crate::values::duration::format_duration;
use crate::values::escape::line;

/// Shows the events of a run in one line.
pub(super) struct Progress {
    bar: ProgressBar,
    homeserver: String,
    shown: Mutex<Shown>,
}

/// What the line shows; it is set up again when the key changes.
#[derive(Debug, Default)]
struct Shown {
    key: String,
    /// From the last event.
    view: View,
    /// Shown instead while the homeserver does not respond, unless the run waits until a known time.
    silence: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct View {
    what: String,
    done: u64,
    total: u64,
    /// When it ends, where that is known.
    until: Option<Instant>,
}

impl Progress {
    pub(super) fn new(homeserver: &str) -> Self {
        let progress = Self {
            bar: ProgressBar::new(0),
            homeserver: homeserver.to_owned(),
            shown: Mutex::default(),
        };
        // Without a first view the bar would show 0 of 0 as complete.
        progress.show(View { what: format!("querying {homeserver}"), ..View::default() });
        progress.bar.enable_steady_tick(Duration::from_millis(200));
        progress
    }

    pub(super) fn observe(&self, event: &Event) {
        if self.bar.is_hidden() {
            return;
        }
        let homeserver = &self.homeserver;
        match event {
            Event::Reading { what, done, total } => {
                self.show(View {
                    what: format!("reading {what}"),
                    done: *done,
                    total: *total,
                    until: None,
                });
            }
            Event::Changing { done, total } => self.show(View {
                what: "changing".to_owned(),
                done: *done,
                total: total.unwrap_or(0),
                until: None,
            }),
            Event::Waiting(what) => {
                self.show(View { what: format!("waiting for {what}"), ..View::default() });
            }
            Event::Warning(warning) => self.print(&format!("warning: {}", line(warning))),
            Event::Retrying { attempt, attempts, wait_seconds, because } => {
                self.print(&format!("failed: {}", line(because)));
                self.show(View {
                    what: format!("waiting for attempt {attempt} of {attempts}"),
                    until: Some(Instant::now() + Duration::from_secs(*wait_seconds)),
                    ..View::default()
                });
            }
            Event::Resumed => {
                self.show(View { what: format!("querying {homeserver}"), ..View::default() });
            }
            Event::Silent { since, problem } => {
                let since = since.format("%H:%M:%S UTC");
                let problem =
                    if problem.is_empty() { String::new() } else { format!(": {problem}") };
                self.set_silence(Some(format!(
                    "{homeserver} has not responded since {since}{problem}"
                )));
            }
            Event::Answering { after_seconds } => {
                self.print(&format!("{homeserver} responds again after {after_seconds} s"));
                self.set_silence(None);
            }
            Event::Slow(true) => {
                self.print("Synapse responds slowly: sending requests at half the rate");
            }
            Event::Ended(_) => self.bar.finish_and_clear(),
            _ => {}
        }
    }

    fn set_silence(&self, silence: Option<String>) {
        let view = {
            let mut shown = self.shown();
            shown.silence = silence;
            shown.view.clone()
        };
        self.show(view);
    }

    /// Prints a line above the bar.
    fn print(&self, text: &str) {
        self.bar.suspend(|| print_message(text));
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, view: View) {
        let mut shown = self.shown();
        let silent = shown.silence.as_ref().filter(|_| view.until.is_none());
        let silent = silent.map(|what| View { what: what.clone(), ..View::default() });
        shown.view = view.clone();
        let View { what, done, total, until } = &silent.unwrap_or(view);
        let key = format!("{what}{}{}", *total > 0, *done > 0);
        if shown.key != key {
            shown.key = key;
            let template = match (until, *total > 0, *done > 0) {
                (Some(_), ..) => "{spinner} {msg}: {left}",
                (None, true, _) => {
                    "{msg} [{bar:30}] {human_pos}/{human_len} {elapsed} ({eta} left)"
                }
                (None, false, true) => "{spinner} {msg} {human_pos} {elapsed}",
                (None, false, false) => "{spinner} {wide_msg} {elapsed}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                let until = *until;
                let left = move |_: &ProgressState, text: &mut dyn Write| {
                    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                    // Whole seconds, because tenths would flicker.
                    let seconds = left.unwrap_or_default().as_secs();
                    let _ = match seconds {
                        0 => text.write_str("now"),
                        1..10 => write!(text, "{seconds} s left"),
                        _ => write!(text, "{} left", format_duration(Duration::from_secs(seconds))),
                    };
                };
                self.bar.set_style(style.progress_chars("=> ").with_key("left", left));
            }
            self.bar.reset();
            self.bar.set_message(line(what).into_owned());
        }
        self.bar.set_length(*total);
        self.bar.set_position(*done);
    }
}
