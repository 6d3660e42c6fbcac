//! `microglia man`: the man page, from the definition of the command line and the table of kinds.

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{EXIT_CODES, Ended, print};
use crate::jobs::KINDS;

const EXAMPLES: [(&str, &str); 5] = [
    (
        "microglia check --online",
        "Every mistake of the config at once, what each homeserver says to its token, and when each job is due.",
    ),
    ("microglia run nightly-media --dry-run", "What the job would do: nothing is changed."),
    ("microglia run nightly-media --apply", "The same for real, now."),
    ("microglia runs show 42", "Each change of a recorded run, and what it replaced."),
    ("microglia reload", "Has the daemon adopt the edited config, or says why it did not."),
];

const ENVIRONMENT: [(&str, &str); 6] = [
    ("MICROGLIA_CONFIG", "The config file, where --config is not given."),
    ("MICROGLIA_LISTEN", "Where the daemon listens, where daemon.listen is not set."),
    (
        "STATE_DIRECTORY",
        "The state directory, where daemon.state_dir is not set. systemd sets it for StateDirectory=.",
    ),
    (
        "CREDENTIALS_DIRECTORY",
        "Where files of secrets with relative names are looked for first. systemd sets it for LoadCredential=.",
    ),
    (
        "RUST_LOG",
        "The levels of the log on stderr, such as debug or microglia::run=warn,info. Targets: microglia::run, \
         microglia::audit, microglia::scheduler, microglia::config, microglia::homeserver, microglia::history, \
         microglia::daemon.",
    ),
    ("MICROGLIA_LOG_FORMAT", "json makes each line of the log a JSON object."),
];

const FILES: [(&str, &str); 3] = [
    (
        "/etc/microglia/microglia.toml",
        "The config. Files that it names by a relative path, such as the one with the access token, are looked for \
         beside it.",
    ),
    (
        "/var/lib/microglia",
        "The state: the history with every run, every change and what it replaced, and the locks.",
    ),
    (
        "/var/lib/microglia/control.sock",
        "The socket by which the commands reach the running daemon.",
    ),
];

pub(super) fn run(cli: Command) -> Result<(), Ended> {
    // `help` would have a section that only says that it is there.
    let mut cli = cli.disable_help_subcommand(true);
    cli.build();
    let man = Man::new(cli.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    let mut synopsis = Roff::new();
    synopsis.control("SH", ["SYNOPSIS"]);
    synopsis.text([bold(usage(&cli))]);
    synopsis.to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;

    let mut rest = Roff::new();
    rest.control("SH", ["COMMANDS"]);
    commands(&mut rest, &cli);
    section(&mut rest, "KINDS OF JOBS", KINDS.iter().map(|kind| (kind.name, kind.about)));
    rest.control("PP", []);
    rest.text([bold("microglia kinds "), roman("KIND describes the keys of one.")]);
    section(&mut rest, "EXAMPLES", EXAMPLES);
    section(&mut rest, "EXIT STATUS", EXIT_CODES);
    section(&mut rest, "ENVIRONMENT", ENVIRONMENT);
    section(&mut rest, "FILES", FILES);
    rest.to_writer(&mut page)?;
    print(&String::from_utf8_lossy(&page))
}

fn commands(page: &mut Roff, parent: &Command) {
    for command in parent.get_subcommands() {
        let usage = usage(command);
        page.control("SS", [usage.as_str()]);
        page.text([roman(format!("{}.", command.get_about().cloned().unwrap_or_default()))]);
        for arg in command.get_arguments() {
            if !arg.is_global_set() && arg.get_id() != "help" {
                page.control("TP", []);
                page.text([bold(arg.to_string())]);
                page.text([roman(meaning(arg))]);
            }
        }
        commands(page, command);
    }
}

fn usage(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    // A second form is that of the commands below it, which have their own.
    let first = usage.lines().next().unwrap_or_default();
    first.trim_start_matches("Usage: ").to_owned()
}

/// What the help of an argument says, with what it takes where it may be left out.
fn meaning(arg: &Arg) -> String {
    let mut text = arg.get_help().cloned().unwrap_or_default().to_string();
    if arg.get_num_args().is_some_and(|count| count.takes_values()) {
        let values: Vec<_> =
            arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        if !values.is_empty() {
            text.push_str(&format!(" [{}]", values.join(", ")));
        }
        if let Some(default) = arg.get_default_values().first() {
            text.push_str(&format!(" [default: {}]", default.to_string_lossy()));
        }
    }
    text
}

fn section<'a>(
    page: &mut Roff,
    heading: &str,
    entries: impl IntoIterator<Item = (&'a str, &'a str)>,
) {
    page.control("SH", [heading]);
    for (name, meaning) in entries {
        page.control("TP", []);
        page.text([bold(name)]);
        page.text([roman(meaning)]);
    }
}
