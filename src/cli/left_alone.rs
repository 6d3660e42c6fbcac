//! What the rules of a kind left out of a run's plan, by name.

use std::sync::{Mutex, PoisonError};

use crate::plan::report::{Event, LeftAlone};
use crate::values::text::format_number;

/// Remembers what the last plan of a run left alone.
#[derive(Debug, Default)]
pub(super) struct Named(Mutex<(Vec<LeftAlone>, u64)>);

impl Named {
    pub(super) fn hear(&self, event: &Event) {
        if let Event::LeftAlone { named, more } = event {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (named.clone(), *more);
        }
    }

    /// A line for each, and how many more there are.
    pub(super) fn text(&self) -> String {
        let (named, more) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text: String = named
            .iter()
            .map(|LeftAlone { reason, target }| format!("  left alone ({reason}): {target}\n"))
            .collect();
        if *more > 0 {
            text.push_str(&format!("  and {} more left alone\n", format_number(*more)));
        }
        text
    }
}
