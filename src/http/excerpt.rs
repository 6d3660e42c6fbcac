//! Text from outside microglia, shortened for an error message.

/// Returns the beginning of a body on one line, of an HTML page only its title.
pub(crate) fn excerpt(body: &[u8]) -> String {
    const MAX_CHARS: usize = 160;
    if body.trim_ascii_start().starts_with(b"<") {
        return page_title(body);
    }
    one_line(&String::from_utf8_lossy(&body[..body.len().min(4 * MAX_CHARS)]), MAX_CHARS)
}

/// Returns `text` on one line without control characters, cut off after `max_chars` characters.
pub(crate) fn one_line(text: &str, max_chars: usize) -> String {
    // Whitespace in a row becomes one space.
    let text: String = text.chars().take(8 * max_chars).collect();
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Returns the title of an HTML page, or else the beginning of its text.
pub(crate) fn page_title(body: &[u8]) -> String {
    const MAX_CHARS: usize = 100;
    const MAX_BYTES_SEARCHED: usize = 16 * 1024;
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_BYTES_SEARCHED)]);
    if !text.trim_start().starts_with('<') {
        return one_line(&text, MAX_CHARS);
    }
    let lower = text.to_ascii_lowercase();
    let title = lower.find("<title").and_then(|start| {
        let start = start + lower[start..].find('>')? + 1;
        let end = start + lower[start..].find("</title")?;
        Some(&text[start..end])
    });
    one_line(&without_tags(title.unwrap_or(&text)), MAX_CHARS)
}

/// Returns the text between the tags of a page, without scripts and styles.
fn without_tags(page: &str) -> String {
    let (mut text, mut rest) = (String::new(), page);
    while let Some((before, tag)) = rest.split_once('<') {
        text.extend([before, " "]);
        let end = match tag.get(..5).map(str::to_ascii_lowercase).as_deref() {
            Some("style") => "</style>",
            Some("scrip") => "</script>",
            _ => ">",
        };
        rest = tag.split_once(end).map_or("", |(_, after)| after);
    }
    text + rest
}
