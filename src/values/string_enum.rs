//! String enums: one definition gives the enum, its text, its JSON and its value in the configuration.

/// An enum whose variants are words, which can be the value of a key.
pub trait StringEnum: std::str::FromStr<Err = String> + Sized {
    /// What a user has to write: `one of "skip" "queue"`.
    const TYPE: &'static str;
}

/// Defines an enum whose variants are words that users read and write.
///
/// `ALL` lists them in order; `as_str`, `Display`, `FromStr`, `Serialize`, `Deserialize` and `schema::Value` use the same text.
/// `strum` would derive less than half of this: its errors do not name the allowed words, its list of them cannot make the
/// constant `TYPE`, and serde would need each word a second time.
macro_rules! string_enum {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                $name::ALL.iter().copied().find(|word| word.as_str() == text).ok_or_else(|| {
                    $crate::values::text::invalid_value(text, &[$($text,)+])
                })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl $crate::values::string_enum::StringEnum for $name {
            const TYPE: &'static str = concat!("one of", $(" \"", $text, "\"",)+);
        }
    };
}

pub(crate) use string_enum;
