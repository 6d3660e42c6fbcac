//! What is known of an empty room from earlier runs.

use std::fmt;
use std::str::FromStr;

use crate::plan::facts::{Fact, Topic};

/// When a room was first seen empty, which no clock of another server decides, and when it was shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// In milliseconds since 1970, as all times here.
    pub seen_ms: i64,
    pub shut_down_ms: Option<i64>,
}

impl Memory {
    pub fn fact(self, room_id: &str) -> Fact {
        Fact { topic: Topic::EmptyRoom, key: room_id.to_owned(), value: self.to_string() }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seen_ms)?;
        self.shut_down_ms.map_or(Ok(()), |at| write!(f, " {at}"))
    }
}

impl FromStr for Memory {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (seen, shut_down) = match text.split_once(' ') {
            Some((seen, shut_down)) => (seen, Some(shut_down.parse()?)),
            None => (text, None),
        };
        Ok(Self { seen_ms: seen.parse()?, shut_down_ms: shut_down })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_read_again() {
        for memory in [
            Memory { seen_ms: 5, shut_down_ms: None },
            Memory { seen_ms: 5, shut_down_ms: Some(1_700_000_000_000) },
        ] {
            assert_eq!(memory.to_string().parse(), Ok(memory));
        }
        assert!("5 x".parse::<Memory>().is_err());
    }
}
