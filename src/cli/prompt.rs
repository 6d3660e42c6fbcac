//! Questions to the person at the terminal, on stderr: stdout is for results.

use std::io::{BufRead, IsTerminal, Read, Write};

use anyhow::anyhow;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use secrecy::SecretString;

use super::failure::Failure;
use super::output::print_message;
use crate::values::escape;

/// The longest line that is read, with its end; no password or token is longer.
const MAX_LINE: u64 = 16 * 1024;

/// The end of the input, or Ctrl-D.
#[derive(Debug, thiserror::Error)]
#[error("stdin ended before the answer")]
pub(super) struct InputEnded;

/// Whether a person can be asked.
pub(super) fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for a line of text; an empty answer is the default.
pub(super) async fn ask(question: &str, default: Option<&str>) -> Result<String, Failure> {
    let hint = default.map(|default| format!(" [{default}]")).unwrap_or_default();
    loop {
        match (ask_optional(&format!("{question}{hint}")).await?, default) {
            (Some(answer), _) => return Ok(answer),
            (None, Some(default)) => return Ok(default.to_owned()),
            (None, None) => {
                print_message("this has no default: enter a value, or press Ctrl-C to stop");
            }
        }
    }
}

/// Asks for a line of text; `None` if it is empty.
pub(super) async fn ask_optional(question: &str) -> Result<Option<String>, Failure> {
    prompt(&format!("{question}: "));
    let line = read_line().await?;
    Ok(Some(line.trim().to_owned()).filter(|answer| !answer.is_empty()))
}

/// Asks until the answer is yes or no; an empty one is the default.
pub(super) async fn confirm(question: &str, default: &str) -> Result<bool, Failure> {
    loop {
        match ask(question, Some(default)).await?.to_ascii_lowercase().as_str() {
            "y" | "yes" => return Ok(true),
            "n" | "no" => return Ok(false),
            _ => print_message("answer yes or no"),
        }
    }
}

/// Asks for a line that the terminal does not show; without a terminal, reads one line from stdin.
pub(super) async fn ask_secret(question: &str) -> Result<SecretString, Failure> {
    let hidden = match std::io::stdin().is_terminal() {
        true => Some(HiddenInput::start()?),
        false => None,
    };
    if hidden.is_some() {
        prompt(&format!("{question} (not shown): "));
    }
    let what = question.to_lowercase();
    let line = match read_line().await {
        Err(Failure::Error(error)) if hidden.is_none() && error.is::<InputEnded>() => {
            return Err(Failure::Usage(format!("the {what} is missing: write it to stdin")));
        }
        line => line?,
    };
    match (line.is_empty(), hidden) {
        (false, _) => Ok(line.into()),
        (true, Some(_)) => Err(anyhow!("the {what} is empty").into()),
        (true, None) => Err(Failure::Usage(format!("the {what} on stdin is empty"))),
    }
}

fn prompt(text: &str) {
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{}", escape::lines(text));
    let _ = stderr.flush();
}

/// Reads one line without its end, on a blocking thread, which Ctrl-C does not wait for.
async fn read_line() -> Result<String, Failure> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = Vec::new();
        std::io::stdin().lock().take(MAX_LINE).read_until(b'\n', &mut line)?;
        Ok::<_, std::io::Error>(line)
    });
    let line =
        read.await?.map_err(|error| anyhow!("cannot read the answer from stdin: {error}"))?;
    if line.is_empty() {
        return Err(InputEnded.into());
    }
    if line.len() as u64 == MAX_LINE {
        return Err(anyhow!("the line on stdin is longer than {} KiB", MAX_LINE >> 10).into());
    }
    let mut line =
        String::from_utf8(line).map_err(|_| anyhow!("the line on stdin is not UTF-8"))?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

/// Keeps the terminal from showing what is typed until it is dropped, also because of a signal.
struct HiddenInput(Termios);

impl HiddenInput {
    fn start() -> Result<Self, Failure> {
        let before = tcgetattr(std::io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        hidden.local_flags.insert(LocalFlags::ECHONL);
        // Also discards what was typed, and shown, before the question.
        tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &hidden)?;
        Ok(Self(before))
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        // The terminal is gone otherwise.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
