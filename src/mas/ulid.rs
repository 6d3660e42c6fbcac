//! The ids of MAS.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A ULID in upper case; the order is that of creation, to a millisecond.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String")]
pub struct Ulid(String);

impl Ulid {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Ulid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        // 26 characters have two bits more than an id, which the crate drops.
        if ulid::Ulid::from_string(text).is_ok_and(|id| id.to_string() == upper) {
            Ok(Self(upper))
        } else {
            Err(format!(
                "invalid ULID {text:.40?}: expected 26 digits and letters without I, L, O and U, such as \"01J44RKQYM4G3TNVANTMTDYTX6\""
            ))
        }
    }
}

impl TryFrom<String> for Ulid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Ulid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ulid_has_26_characters_of_its_alphabet_and_128_bits() {
        let ulid: Ulid = "01j44rkqym4g3tnvantmtdytx6".parse().unwrap();
        assert_eq!(ulid.as_str(), "01J44RKQYM4G3TNVANTMTDYTX6");
        for wrong in [
            "",
            "01J44RKQYM4G3TNVANTMTDYTX",
            "01J44RKQYM4G3TNVANTMTDYTX66",
            "01J44RKQYM4G3TNVANTMTDYTXU",
            "81J44RKQYM4G3TNVANTMTDYTX6",
            "01J44RKQYM4G3TNVANTMTDYTé",
        ] {
            assert!(wrong.parse::<Ulid>().unwrap_err().starts_with("invalid ULID"), "{wrong}");
        }
    }
}
