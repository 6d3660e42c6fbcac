//! Names and numbers in messages.

use std::any::Any;

/// `invalid value "aply" (did you mean "apply"?)`
pub fn invalid_value(text: &str, known: &[&str]) -> String {
    format!("invalid value {text:?}{}", one_of_hint(text, known, '"'))
}

/// `unknown job "nightly-medai" (did you mean "nightly-media"?)`
pub fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    format!("unknown {what} {name:?}{}", one_of_hint(name, known, '"'))
}

/// What follows a word that is none of `known`: the one that was probably meant, or all of them.
pub(crate) fn one_of_hint(word: &str, known: &[&str], quote: char) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!(" (did you mean {quote}{near}{quote}?)"),
        None if known.len() == 1 => format!(": expected {}", join_some(known)),
        None => format!(": expected one of {}", join_some(known)),
    }
}

/// Names, separated by commas; of very many only the first.
pub(crate) fn join_some(names: &[&str]) -> String {
    const MAX: usize = 40;
    match names.len().checked_sub(MAX) {
        None | Some(0) => names.join(", "),
        Some(more) => {
            format!("{} and {} more", names[..MAX].join(", "), format_number(more as u64))
        }
    }
}

/// The known word that differs least from `word`, if it is near enough to be a typo.
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

/// The message that a panic was raised with.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the panic has no message")
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
    fn only_a_similar_word_is_suggested() {
        assert_eq!(nearest("older_then", ["older_than", "before"].into_iter()), Some("older_than"));
        assert_eq!(nearest("zzz", ["older_than", "before"].into_iter()), None);
    }
}
