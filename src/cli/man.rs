//! `microglia man`: the man page, from the definition of the command line and the table of kinds.

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::failure::{EXIT_CODES, Failure};
use super::output::print;
use crate::jobs::KINDS;

const EXAMPLES: [(&str, &str); 7] = [
    (
        "microglia init",
        "Asks for what a first configuration needs, writes it, and shows the plan of its first job.",
    ),
    (
        "microglia login --user microglia",
        "Asks for the password, and replaces the token file of the homeserver.",
    ),
    (
        "microglia check --online",
        "Reports every error in the configuration at once, checks each homeserver, and lists when each job is due next.",
    ),
    ("microglia run nightly-media --dry-run", "Shows what the job would do, and changes nothing."),
    ("microglia run nightly-media --apply", "Runs the job now and makes its changes."),
    ("microglia runs show 42", "Shows each change of a recorded run, and what it replaced."),
    (
        "microglia reload",
        "Makes the daemon use the edited configuration, or reports why it cannot.",
    ),
];

const ENVIRONMENT: [(&str, &str); 6] = [
    ("MICROGLIA_CONFIG", "The configuration file, if --config is not given."),
    ("MICROGLIA_LISTEN", "The address to listen on, if daemon.listen is not set."),
    (
        "STATE_DIRECTORY",
        "The state directory, if daemon.state_dir is not set. systemd sets it for StateDirectory=.",
    ),
    (
        "CREDENTIALS_DIRECTORY",
        "The directory searched first for secret files with relative paths. systemd sets it for LoadCredential=.",
    ),
    ("RUST_LOG", "Log levels, such as debug or microglia=debug,warn."),
    ("MICROGLIA_LOG_FORMAT", "Set to json to log one JSON object per line."),
];

const FILES: [(&str, &str); 3] = [
    (
        "/etc/microglia/microglia.toml",
        "The configuration. Relative paths in it, such as that of the access token file, are relative to its directory.",
    ),
    ("/var/lib/microglia", "The state directory: the history of runs and changes, and the locks."),
    (
        "/var/lib/microglia/control.sock",
        "The socket through which commands reach the running daemon.",
    ),
];

pub(super) fn run(cli: Command) -> Result<(), Failure> {
    // A section for `help` would say nothing.
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
    rest.text([bold("microglia kinds "), roman("KIND describes the keys of a kind.")]);
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
    // The second line is the usage of subcommands, which have sections of their own.
    let first = usage.lines().next().unwrap_or_default();
    first.trim_start_matches("Usage: ").to_owned()
}

/// The help of an argument, with its possible values and its default.
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
