//! Closed sets of words: one definition gives the enum, its text, its config value and its JSON.

/// Defines an enum whose variants are words that users read and write.
///
/// `ALL` lists them in order; `as_str`, `Display`, `FromStr`, `Serialize`, `Deserialize` and the config's `Value` use the same text.
#[macro_export]
macro_rules! words {
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
                    $crate::words::not_one_of(text, &[$($text,)+])
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

        impl $crate::keys::Value for $name {
            const TYPE: &'static str = concat!("one of", $(" \"", $text, "\"",)+);
            fn read(value: &toml::Spanned<toml::de::DeValue<'_>>, mistakes: &mut Vec<$crate::keys::Mistake>) -> Option<Self> {
                $crate::keys::read_text(value, Self::TYPE, mistakes)
            }
        }
    };
}

/// Says that `text` is none of `known`, and which one was probably meant.
pub fn not_one_of(text: &str, known: &[&str]) -> String {
    match nearest(text, known.iter().copied()) {
        Some(near) => format!("`{text}` is not known here, did you mean `{near}`?"),
        None => format!("`{text}` is not known here, expected one of: {}", known.join(", ")),
    }
}

/// The known word that differs least from `word`, if it is near enough to be a slip.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// `1 file`, `2 files`: a count with its noun.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"].map(str::to_owned),
            [0, 999, 1000, 1_234_567].map(grouped)
        );
        assert_eq!(counted(1, "file", "files"), "1 file");
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        assert_eq!(nearest("older_then", ["older_than", "before"].into_iter()), Some("older_than"));
        assert_eq!(nearest("zzz", ["older_than", "before"].into_iter()), None);
    }
}
