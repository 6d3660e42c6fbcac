//! Times as Prometheus has them.

use crate::values::clock::Timestamp;

/// Returns seconds since 1970.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of this century fit")]
pub(crate) fn seconds(time: Timestamp) -> f64 {
    time.timestamp_millis() as f64 / 1000.0
}
