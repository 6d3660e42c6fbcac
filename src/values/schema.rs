//! Tables of the configuration as typed keys: parsing reports every error, and `kinds` prints the same definition.

mod definition;
mod error;
mod limit;
mod table;
mod types;
mod value;

pub use error::{ConfigError, unknown_key, wrong_type};
pub use limit::{Limit, Rate, RateLimit};
pub use table::{Entry, Key, Table};
pub use types::NonEmpty;
pub use value::{Value, between, parse_text};

pub(crate) use definition::schema;
pub(crate) use value::{text_quantities, text_values};
