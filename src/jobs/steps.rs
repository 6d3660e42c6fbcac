//! How large the next step of a media purge is, so that a call takes Synapse 5 to 20 seconds.

use std::time::Duration;

const SHORT: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(20);

/// A size that doubles after a short call and halves after a long one, between two bounds.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub size: i64,
    pub least: i64,
    pub most: i64,
}

impl Step {
    /// The size for the next call, after one that took `last`.
    pub fn next(&mut self, last: Option<Duration>) -> i64 {
        self.size = match last {
            Some(took) if took < SHORT => self.size.saturating_mul(2),
            Some(took) if took > LONG => self.size / 2,
            _ => self.size,
        }
        .clamp(self.least, self.most);
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_grows_after_short_calls_shrinks_after_long_ones_and_keeps_its_bounds() {
        let mut step = Step { size: 200, least: 1, most: 1000 };
        let sizes = [None, Some(1), Some(1), Some(1), Some(10), Some(30), Some(30)]
            .map(|took| step.next(took.map(Duration::from_secs)));
        assert_eq!(sizes, [200, 400, 800, 1000, 1000, 500, 250]);
    }
}
