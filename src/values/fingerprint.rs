//! The identity of a definition, the same in every build and run of the program.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Equal for equal definitions; a hash, from which nobody reads the definition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(Uuid);

/// The namespace of fingerprints, which keeps them apart from the ids of other programs.
const NAMESPACE: Uuid = Uuid::from_u128(0x3f1c_29d4_6a0b_4c57_9e13_8d2f_70b5_a641);

impl Fingerprint {
    /// Of a definition in JSON with every default filled in; the order of keys does not matter.
    pub(crate) fn of(definition: &serde_json::Value) -> Self {
        let mut canonical = definition.clone();
        // serde_json keeps keys sorted, unless a dependency enables its `preserve_order`.
        canonical.sort_all_objects();
        Self::of_bytes(canonical.to_string().as_bytes())
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = uuid::Error;

    fn try_from(text: String) -> Result<Self, uuid::Error> {
        Uuid::try_parse(&text).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(definition: &str) -> Fingerprint {
        Fingerprint::of(&serde_json::from_str(definition).unwrap())
    }

    #[test]
    fn a_fingerprint_stays_the_same_in_every_build() {
        let fingerprint = of(r#"{"kind":"request","expect":[200]}"#);
        insta::assert_snapshot!(fingerprint, @"d486966f-ffc8-5e39-bb48-fba112e391eb");
        let json = serde_json::to_string(&fingerprint).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), fingerprint);
    }

    #[test]
    fn the_order_of_keys_does_not_matter_and_everything_else_does() {
        let fingerprint = of(r#"{"a":{"b":1,"c":[1,2]},"d":null}"#);
        assert_eq!(of(r#"{"d":null, "a":{"c":[1,2],"b":1}}"#), fingerprint);
        for other in [r#"{"a":{"b":1,"c":[2,1]},"d":null}"#, r#"{"a":{"b":1,"c":[1,2]}}"#] {
            assert_ne!(of(other), fingerprint);
        }
    }
}
