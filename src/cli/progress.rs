//! Progress on a terminal: a bar on stderr, nothing where nobody looks.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

use crate::report::Event;

/// Shows a run's events as one line that moves.
pub(super) struct Progress {
    bar: ProgressBar,
    showing: Mutex<String>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new(0);
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        Self { bar, showing: Mutex::default() }
    }

    pub(super) fn hear(&self, event: &Event) {
        if self.bar.is_hidden() {
            return;
        }
        match event {
            Event::Reading { what, done, total } => {
                self.show(&format!("reading {what}"), *done, *total);
            }
            Event::Changing { done, total } => self.show("changing", *done, total.unwrap_or(0)),
            Event::Waiting(why) => self.show(&format!("waiting {why}"), 0, 0),
            Event::Retrying { attempt, wait_seconds, because } => {
                self.bar.suspend(|| {
                    super::say(&format!(
                        "failed: {because}\nattempt {attempt} follows in {wait_seconds} s"
                    ));
                });
            }
            Event::Warning(warning) => {
                self.bar.suspend(|| super::say(&format!("warning: {warning}")));
            }
            Event::Slow(true) => {
                self.bar.suspend(|| super::say("Synapse answers slowly: sending at half the rate"));
            }
            Event::Ended(_) => self.bar.finish_and_clear(),
            _ => {}
        }
    }

    fn show(&self, what: &str, done: u64, total: u64) {
        let mut showing = self.showing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let counted = total > 0 || done > 0;
        let key = format!("{what}{counted}");
        if *showing != key {
            *showing = key;
            let template = match (total > 0, done > 0) {
                (true, _) => "{msg} [{bar:30}] {human_pos}/{human_len} {elapsed} (left {eta})",
                (false, true) => "{spinner} {msg} {human_pos} {elapsed}",
                (false, false) => "{spinner} {wide_msg} {elapsed}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style.progress_chars("=> "));
            }
            self.bar.reset();
            self.bar.set_message(what.to_owned());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}
