//! The items that the rules of a kind left out of a run's plan.

use std::sync::{Mutex, PoisonError};

use crate::plan::report::{Event, LeftAlone};
use crate::values::text::format_number;

/// What the last plan of a run left alone, and how many more items there are than are named.
#[derive(Debug, Default)]
pub(super) struct LeftAloneList(Mutex<(Vec<LeftAlone>, u64)>);

impl LeftAloneList {
    pub(super) fn observe(&self, event: &Event) {
        if let Event::LeftAlone { named, more } = event {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (named.clone(), *more);
        }
    }

    /// One line per item.
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
