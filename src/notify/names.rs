//! Text without the names of accounts and rooms.

/// Replaces Matrix ids, aliases and addresses in a text by `…`.
pub(super) fn without_names(text: &str) -> String {
    let words = text.split(' ').map(without_name);
    words.collect::<Vec<_>>().join(" ")
}

/// In a word, a path included, that may contain a name: what is before it and after it stays.
fn without_name(word: &str) -> String {
    let lower = word.to_ascii_lowercase();
    // The last segment that contains a mark: a localpart may contain slashes, and a path ends with the name's segment.
    let mark = ["@", "%40", "!", "%21", "#", "%23"]
        .iter()
        .filter_map(|mark| Some((lower.find(mark)?, *mark)))
        .filter(|(at, mark)| is_name(&lower[at + mark.len()..], mark))
        .min();
    let Some((at, mark)) = mark else { return word.to_owned() };
    let is_address = matches!(mark, "@" | "%40");
    let start = match is_address {
        // Of an address such as `alice@example.com`, what is before the mark is the name.
        true => word[..at].rfind(|c: char| "/\"'`([<,=:".contains(c)).map_or(0, |found| found + 1),
        false => at,
    };
    let rest = &word[at + mark.len()..];
    let server = rest.find(':').or_else(|| rest.find("%3A")).or_else(|| rest.find("%3a"));
    // Behind the server name the path goes on.
    let from = server.unwrap_or(0);
    let end = rest[from..]
        .find(|c: char| "/\"'`)]>,;".contains(c))
        .map_or(rest.len(), |found| from + found);
    let tail = &rest[end..];
    format!("{}…{}", &word[..start], without_name_after(tail, &rest[..end]))
}

fn without_name_after(tail: &str, name: &str) -> String {
    // The full stop or colon that ends a sentence is no part of the name.
    let ends: String = name.chars().rev().take_while(|c| ".:!?".contains(*c)).collect();
    let ends: String = ends.chars().rev().collect();
    format!("{ends}{}", if tail.is_empty() { String::new() } else { without_name(tail) })
}

/// Whether what follows a mark looks like a name rather than like punctuation.
fn is_name(rest: &str, mark: &str) -> bool {
    let first = rest.chars().next();
    match mark {
        "@" | "%40" => first.is_some_and(|c| !c.is_whitespace()),
        // An opaque id, with or without a server name.
        "!" | "%21" => rest.len() > 8 && first.is_some_and(char::is_alphanumeric),
        _ => rest.contains(':') || rest.contains("%3a"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_rooms_and_addresses_are_left_out_and_the_rest_stays() {
        for (text, expected) in [
            (
                "GET /_synapse/admin/v2/users/@a:example.com: 404 M_NOT_FOUND: User not found",
                "GET /_synapse/admin/v2/users/…: 404 M_NOT_FOUND: User not found",
            ),
            ("PUT /v2/users/@a/b:example.com/devices: lost", "PUT /v2/users/…/devices: lost"),
            ("GET /users/%40a%3Aexample.com: 500", "GET /users/…: 500"),
            (
                "no account matches \"@*:example.com\", and none is bob@corp.example.",
                "no account matches \"…\", and none is ….",
            ),
            ("joined !abcdefghijk:example.com (#lobby:example.com)!", "joined … (…)!"),
            ("the room !31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM is gone", "the room … is gone"),
            (
                "2 targets failed! Raise max_changes, or see `microglia runs show 3`.",
                "2 targets failed! Raise max_changes, or see `microglia runs show 3`.",
            ),
            ("@a:hs,@b:hs", "…,…"),
        ] {
            assert_eq!(without_names(text), expected);
        }
    }
}
