//! `microglia history`: moving the history.

use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::context::{become_owner, load_without_secrets};
use super::failure::Failure;
use super::output::{print, print_message};
use crate::config::{Config, HistoryPlace};
use crate::history::state_dir::StateDir;
use crate::history::{DatabaseUrl, Place, copy};
use crate::values::clock::Clock;
use crate::values::text::format_count;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Copies the history between SQLite and PostgreSQL while no daemon runs
    ///
    /// Copies everything or nothing, into an empty target. The ids of the runs stay, and the source stays as it is.
    ///
    /// A place is `sqlite:DIRECTORY` with a state directory, a URL `postgresql://…` as in the key `database_url`, or
    /// `config` for the one that the configuration names. Other users see the command line: use `config`, or leave the
    /// password out of the URL and set $PGPASSWORD.
    ///
    /// Stop the daemon, copy with `--from sqlite:/var/lib/microglia --to config`, start it.
    Copy(CopyOptions),
}

#[derive(Debug, clap::Args)]
struct CopyOptions {
    /// Where the history is: `sqlite:DIRECTORY`, `postgresql://…` or `config`.
    #[arg(long, value_name = "URL")]
    from: String,
    /// Where to copy it to: `sqlite:DIRECTORY`, `postgresql://…` or `config`.
    #[arg(long, value_name = "URL")]
    to: String,
}

/// How many rows there are between two lines of progress.
const PROGRESS_EVERY: u64 = 100_000;

/// A place as it was written, before anything is opened.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    Directory(PathBuf),
    Database(DatabaseUrl),
}

pub(super) async fn run(path: &Path, options: Options) -> Result<(), Failure> {
    let Subcommand::Copy(CopyOptions { from, to }) = options.command;
    let config = match [&from, &to].contains(&&"config".to_owned()) {
        true => Some(load_without_secrets(path, &Clock::system()).await?),
        false => None,
    };
    let from = written("--from", from, config.as_ref())?;
    let to = written("--to", to, config.as_ref())?;
    if from == to {
        return Err(Failure::Usage("--from and --to are the same".to_owned()));
    }
    if let Written::Directory(dir) = &from
        && !dir.is_dir()
    {
        return Err(Failure::Error(anyhow::anyhow!("there is no history in {}", dir.display())));
    }
    // The target last: what is created there must belong to its owner.
    let (from, to) = (open(from)?, open(to)?);
    let progress = |table: &str, rows: u64| {
        if rows.is_multiple_of(PROGRESS_EVERY) {
            print_message(&format!("{table}: {rows} rows"));
        }
    };
    let copied = copy(&from, &to, progress).await.map_err(anyhow::Error::from)?;
    let rows: Vec<String> = copied.iter().map(|(table, rows)| format!("{table} {rows}")).collect();
    let runs = copied.first().map_or(0, |(_, runs)| u64::try_from(*runs).unwrap_or(0));
    print(&format!(
        "copied {} from {from} to {to} (rows: {})\n",
        format_count(runs, "run", "runs"),
        rows.join(", ")
    ))
}

fn written(option: &str, text: String, config: Option<&Config>) -> Result<Written, Failure> {
    if let (Some(config), "config") = (config, text.as_str()) {
        return match &config.daemon.history {
            HistoryPlace::StateDir => Ok(Written::Directory(config.daemon.state_dir.clone())),
            HistoryPlace::Database(url) => Ok(Written::Database(url.clone())),
            HistoryPlace::Unreadable(why) => Err(Failure::Error(anyhow::anyhow!("{why}"))),
        };
    }
    if let Some(dir) = text.strip_prefix("sqlite:") {
        let dir = dir.strip_prefix("//").unwrap_or(dir);
        return match dir {
            "" => Err(Failure::Usage(format!("{option}: name a state directory after `sqlite:`"))),
            dir => Ok(Written::Directory(dir.into())),
        };
    }
    match text.starts_with("postgres") {
        true => DatabaseUrl::parse(&SecretString::from(text))
            .map(Written::Database)
            .map_err(|error| Failure::Usage(format!("{option}: {error}"))),
        false => Err(Failure::Usage(format!(
            "{option}: expected `sqlite:DIRECTORY`, `postgresql://…` or `config`"
        ))),
    }
}

fn open(place: Written) -> Result<Place, Failure> {
    match place {
        Written::Directory(dir) => {
            become_owner(&dir)?;
            Ok(Place::from(&StateDir::open(&dir)?))
        }
        Written::Database(url) => Ok(url.into()),
    }
}
