//! What a homeserver is, and which account the token belongs to.

use std::fmt;

use chrono::TimeDelta;

use super::account::User;
use crate::values::duration::format_duration;

/// A homeserver and the account of its token.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The account of the token.
    pub account: User,
    /// The part of Matrix ids after the first colon, which may differ from the host of the URL.
    pub server_name: String,
    pub version: Version,
    /// The version as Synapse reports it.
    pub version_text: String,
    /// Whether the Matrix Authentication Service manages the accounts.
    pub mas: bool,
    /// How far the local clock is ahead of the homeserver's `Date`, to a second; `None` without a valid header.
    pub clock_ahead: Option<TimeDelta>,
}

/// A run that sends timestamps is refused if the clocks differ by more than this.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(60);

impl Identity {
    /// Where the local clock is compared with the homeserver's, if they differ too much: `3 min ahead of`.
    pub fn clock_error(&self) -> Option<String> {
        let ahead = self.clock_ahead.filter(|ahead| ahead.abs() > CLOCK_TOLERANCE)?;
        let direction = if ahead > TimeDelta::zero() { "ahead of" } else { "behind" };
        Some(format!("{} {direction}", format_duration(ahead.abs().to_std().unwrap_or_default())))
    }
}

/// The first two numbers of Synapse's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// Requires no token.
pub const VERSION_ENDPOINT: &str = "/_synapse/admin/v1/server_version";

impl Version {
    /// Parses what `server_version` returns: `1.163.2`, `1.147.0rc1`, `0.99.2rc1 (b=develop,abcdef)`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| {
            part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
        });
        Some(Self(parts.next()??, parts.next()??))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_with_any_suffix() {
        let read = ["1.163.2", "1.147.0rc1", "0.99.2rc1 (b=develop,abcdef)", "1.78"]
            .map(|text| Version::parse(text).unwrap());
        assert_eq!(read, [Version(1, 163), Version(1, 147), Version(0, 99), Version(1, 78)]);
        assert_eq!(Version::parse("develop"), None);
        assert!(Version(1, 78) < Version(1, 123));
    }
}
