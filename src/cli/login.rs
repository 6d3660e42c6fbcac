//! `microglia login`: an access token in the homeserver's token file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use secrecy::{ExposeSecret, SecretString};

use super::client::Client;
use super::context::{become_owner, blocking, find_homeserver};
use super::failure::Failure;
use super::mas_settings::{mas_settings, settings_of_mas};
use super::new_file::{Existing, NewFile, become_owner_of_directory};
use super::output::{print, print_error, print_message, print_warning};
use super::session::{LoginOptions, Session, begin, reader};
use super::signals::signalled;
use crate::config::{Config, Homeserver, Mas};
use crate::http::Token;
use crate::synapse::{Authenticator, Reader};
use crate::values::clock::Clock;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    microglia login --user microglia                    asks for the password\n  \
    microglia login main --user microglia <password     reads it from a file\n  \
    microglia login --sso                               prints a URL to open in a browser\n  \
    microglia login --logout                            ends the session and deletes the token file")]
pub(super) struct Options {
    /// The homeserver's name in the configuration; optional if there is only one.
    homeserver: Option<String>,
    #[command(flatten)]
    login: LoginOptions,
    /// End the session at the homeserver, with every token of its device, and delete the token file.
    #[arg(long, conflicts_with_all = ["user", "sso"])]
    logout: bool,
}

pub(super) async fn run(path: &Path, options: Options) -> Result<(), Failure> {
    let clock = Clock::system();
    let now = clock.now();
    let load = move |path: &Path, environment| Config::load_for_login(path, &environment, now);
    let config = blocking(path, load).await??;
    let homeserver = choose(&config, options.homeserver.as_deref())?;
    if let Some(mas) = &homeserver.mas {
        return refuse_configured_mas(&homeserver.name, mas);
    }
    let file = token_file(homeserver)?;
    become_owner_of_directory(&file)?;
    let mut slot = None;
    let result = tokio::select! {
        result = async {
            match options.logout {
                true => log_out(homeserver, &file, &clock).await,
                false => log_in(&config, homeserver, &options.login, &file, &clock, &mut slot).await,
            }
        } => result,
        () = signalled() => {
            print_message("\nstopped; the token file was not changed");
            Err(Failure::Unsuccessful)
        }
    };
    if let Err(failure) = result {
        if let Some(session) = slot {
            session.end().await;
        }
        return Err(failure);
    }
    let token = if options.logout { TokenFile::Deleted } else { TokenFile::Written };
    advise_about_daemon(&config, homeserver, &file, token).await;
    Ok(())
}

fn choose<'a>(config: &'a Config, name: Option<&str>) -> Result<&'a Homeserver, Failure> {
    if let Some(name) = name {
        find_homeserver(config, name)?;
    }
    let mut fitting =
        config.homeservers.values().filter(|server| name.is_none_or(|name| server.name == name));
    if let (Some(homeserver), None) = (fitting.next(), fitting.next()) {
        return Ok(homeserver);
    }
    let names: Vec<&str> = config.homeservers.keys().map(String::as_str).collect();
    Err(Failure::Usage(format!("name one of the homeservers: {}", names.join(", "))))
}

fn token_file(homeserver: &Homeserver) -> Result<PathBuf, Failure> {
    let file = homeserver.token_file().ok_or_else(|| {
        Failure::Usage(format!(
            "the configuration itself contains the token of homeserver `{}`: in [homeservers.{}], replace `access_token = …` by `access_token_file = \"token\"`",
            homeserver.name, homeserver.name
        ))
    })?;
    Ok(file.to_owned())
}

/// Fails with what MAS has to be configured with: the daemon obtains the token itself.
fn refuse_configured_mas(homeserver: &str, mas: &Mas) -> Result<(), Failure> {
    print(&format!(
        "The configuration of MAS needs this; keep what it has besides, and restart it:\n\n{}",
        settings_of_mas(mas.client_id.as_str())
    ))?;
    print_error(&format!(
        "no login at homeserver `{homeserver}`: with [homeservers.{homeserver}.mas], the daemon issues its own token. `microglia check --online` says whether it can"
    ));
    Err(Failure::Unsuccessful)
}

/// Fails with what to configure instead if MAS manages the accounts.
async fn refuse_mas(
    homeserver: &Homeserver,
    reader: &Reader,
    clock: &Clock,
) -> Result<(), Failure> {
    if !reader.delegates_to_mas().await? {
        return Ok(());
    }
    let url = reader.mas_url().await;
    print(&mas_settings(&homeserver.name, url.as_ref(), clock.now()))?;
    print_error(&format!(
        "no login at homeserver `{}`: the Matrix Authentication Service (MAS) manages its accounts. The daemon issues its own token there, once [homeservers.{}.mas] is configured as above",
        homeserver.name, homeserver.name
    ));
    Err(Failure::Unsuccessful)
}

/// Logs in and writes the token; if that fails, the caller has to end the session in `slot`.
async fn log_in(
    config: &Config,
    homeserver: &Homeserver,
    options: &LoginOptions,
    file: &Path,
    clock: &Clock,
    slot: &mut Option<Session>,
) -> Result<(), Failure> {
    refuse_mas(homeserver, &reader(homeserver, Token::none(), clock)?, clock).await?;
    // Before the login: a file that cannot be written is noticed in time.
    let new_file = NewFile::secret(file, &config.daemon.state_dir, Existing::Replace)?;
    let session = begin(homeserver, options, clock, slot).await?;
    write_secret(new_file, &session.token)?;
    print(&format!("wrote the access token to {}", file.display()))
}

pub(super) fn write_secret(file: NewFile, secret: &SecretString) -> Result<(), Failure> {
    file.write(&format!("{}\n", secret.expose_secret()))
}

async fn log_out(homeserver: &Homeserver, file: &Path, clock: &Clock) -> Result<(), Failure> {
    match fs::symlink_metadata(file) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => {
            return Err(
                anyhow!("{} is not a regular file, and is not deleted", file.display()).into()
            );
        }
        Err(error) => {
            return Err(anyhow!("{}: {error}: there is no session to end", file.display()).into());
        }
    }
    let token = Token::from_file(file.to_owned(), SecretString::default());
    if token.current().await.expose_secret().is_empty() {
        return Err(anyhow!("{} contains no valid token: delete it by hand", file.display()).into());
    }
    let ended = match Authenticator::new(reader(homeserver, token, clock)?).log_out().await {
        Ok(()) => "ended the session",
        Err(error) if error.is_about_token() => "the session had ended already",
        Err(error) if error.is_unrecognized() => {
            return Err(anyhow!(
                "{error}: the session belongs to the Matrix Authentication Service (MAS): end it there, and delete {}",
                file.display()
            )
            .into());
        }
        Err(error) => return Err(anyhow!("{error}; {} was kept", file.display()).into()),
    };
    fs::remove_file(file)
        .map_err(|error| anyhow!("{ended}, but {} cannot be deleted: {error}", file.display()))?;
    print(&format!("{ended}, and deleted {}", file.display()))
}

/// What happened to the token file.
#[derive(Clone, Copy, PartialEq)]
enum TokenFile {
    Written,
    Deleted,
}

/// Where deploy/systemd/microglia.service looks for the token first, at start.
const CREDENTIAL: &str = "/etc/credstore/microglia.token";

/// Prints what the new state of the file means for a running daemon.
async fn advise_about_daemon(
    config: &Config,
    homeserver: &Homeserver,
    file: &Path,
    token: TokenFile,
) {
    let state_dir = &config.daemon.state_dir;
    // A daemon that cannot be reached may use another token.
    if become_owner(state_dir).is_err() || !matches!(Client::connect(state_dir).await, Ok(Some(_)))
    {
        return;
    }
    let real = |path: &Path| fs::canonicalize(path).ok();
    let is_credential =
        real(Path::new(CREDENTIAL)).is_some_and(|credential| Some(credential) == real(file));
    match token {
        TokenFile::Deleted => print_warning(&format!(
            "a daemon is running, and jobs on homeserver `{}` will fail until it has a token again: microglia login",
            homeserver.name
        )),
        TokenFile::Written if is_credential => print_warning(&format!(
            "a daemon is running, and systemd passed the previous token to it ({CREDENTIAL}), which is no longer valid: restart it (systemctl restart microglia)"
        )),
        TokenFile::Written => {
            let _ = print("the running daemon uses it from its next request on");
        }
    }
}
