//! Text for stdout and stderr.

use std::io::{IsTerminal, Write};

use super::failure::Failure;
use crate::values::escape;

/// Prints the result of a command to stdout; escapes what could control a terminal.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_raw(&escape::lines(text))
}

fn print_raw(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()?;
    Ok(())
}

pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    // JSON has escapes of its own.
    print_raw(&serde_json::to_string_pretty(value)?)
}

/// Prints a message to stderr; escapes what could control a terminal.
pub(super) fn print_message(text: &str) {
    // A closed stderr is not a reason to fail.
    let _ = writeln!(std::io::stderr(), "{}", escape::lines(text));
}

pub(super) fn print_error(text: &str) {
    print_labelled("error", "31", text);
}

pub(super) fn print_warning(text: &str) {
    print_labelled("warning", "33", text);
}

/// Only the text is escaped: the colour of the label is meant for the terminal.
fn print_labelled(label: &str, colour: &str, text: &str) {
    let label = coloured(label, colour);
    let _ = writeln!(std::io::stderr(), "{label}: {}", escape::lines(text));
}

/// Bold and in a colour where stderr takes colours.
fn coloured(word: &str, colour: &str) -> String {
    if stderr_takes_colours() { format!("\x1b[1;{colour}m{word}\x1b[0m") } else { word.to_owned() }
}

/// Whether stderr is a terminal and plain text was not requested (<https://no-color.org>).
#[expect(clippy::disallowed_methods, reason = "the environment is read in `cli` only")]
pub(super) fn stderr_takes_colours() -> bool {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    !plain && std::io::stderr().is_terminal()
}
