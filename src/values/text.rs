//! Words and numbers in sentences.

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
pub fn format_count(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", format_number(count), if count == 1 { one } else { many })
}

/// `1234567` as `1,234,567`.
pub fn format_number(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"].map(str::to_owned),
            [0, 999, 1000, 1_234_567].map(format_number)
        );
        assert_eq!(format_count(1, "file", "files"), "1 file");
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        assert_eq!(nearest("older_then", ["older_than", "before"].into_iter()), Some("older_than"));
        assert_eq!(nearest("zzz", ["older_than", "before"].into_iter()), None);
    }
}
