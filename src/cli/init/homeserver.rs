//! The homeserver: its URL, and the access token.

use std::fs;
use std::path::Path;

use anyhow::anyhow;
use secrecy::{ExposeSecret, SecretString};

use super::super::failure::Failure;
use super::super::new_file::{exists, parent};
use super::super::output::{print_error, print_message};
use super::super::prompt::{InputEnded, ask, ask_secret};
use super::super::session::{Session, begin, reader, refuse_mas};
use super::draft::{Draft, HOMESERVER, TOKEN_FILE};
use super::options::Options;
use super::setup::{Setup, TokenSource};
use crate::config::Homeserver;
use crate::http::{Token, trim_newline, validate_token};
use crate::synapse::{Reader, Responder};
use crate::values::bounded_file::read_bounded;

/// Where Synapse listens unless it is told otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:8008";
/// No token is longer.
const MAX_TOKEN: u64 = 16 * 1024;
const READ_TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Chooses a URL where Synapse responds; with `--print` and `--url`, nothing is sent.
pub(super) async fn choose_url(
    setup: &Setup<'_>,
    options: &Options,
    draft: &mut Draft,
) -> Result<(), Failure> {
    if let Some(url) = &options.url {
        draft.url.clone_from(url);
        if let Some(problem) = setup.problem(draft) {
            return Err(Failure::Usage(format!("--url: {problem}")));
        }
        if options.print {
            return Ok(());
        }
        return match respond(setup, draft).await? {
            None => Ok(()),
            Some(problem) => Err(anyhow!(problem).into()),
        };
    }
    DEFAULT_URL.clone_into(&mut draft.url);
    let default = respond(setup, draft).await?.is_none().then_some(DEFAULT_URL);
    loop {
        draft.url = ask(
            "URL of the homeserver, as Synapse itself listens (`listeners` in homeserver.yaml)",
            default,
        )
        .await?;
        if let Some(problem) = setup.problem(draft) {
            print_error(&problem);
            continue;
        }
        match respond(setup, draft).await? {
            None => return Ok(()),
            Some(problem) => print_error(&problem),
        }
    }
}

/// Says which Synapse responds at the draft's URL, or returns why that URL will not do.
async fn respond(setup: &Setup<'_>, draft: &Draft) -> Result<Option<String>, Failure> {
    let homeserver = homeserver(setup, draft)?;
    let reader = reader(&homeserver, Token::none(), &setup.clock)?;
    let url = &draft.url;
    Ok(match reader.responder().await {
        Responder::Synapse { version } => {
            print_message(&format!("{url} is Synapse {version}"));
            None
        }
        Responder::WithoutAdminApi(error) => Some(format!(
            "{url} is a Matrix homeserver, but its admin API is not available there, as behind most public proxies ({}): use Synapse's own listener, on its machine usually {DEFAULT_URL}",
            error.message()
        )),
        Responder::Other(error) => {
            Some(format!("{url} is not a Matrix homeserver ({})", error.message()))
        }
        Responder::Nothing(error) => Some(format!("{url} does not respond. {error}")),
    })
}

/// The homeserver as the configuration will describe it.
fn homeserver(setup: &Setup<'_>, draft: &Draft) -> Result<Homeserver, Failure> {
    let draft = Draft { jobs: Vec::new(), ..draft.clone() };
    let mut homeservers = setup.parse(&draft)?.homeservers;
    homeservers.remove(HOMESERVER).ok_or_else(|| anyhow!("there is no homeserver").into())
}

/// Names the token file as it would be with the same options without `--print`.
pub(super) fn print_token_file(
    setup: &Setup<'_>,
    options: &Options,
    draft: &mut Draft,
) -> TokenSource {
    if let Some(name) = options.token_file.as_deref().and_then(|file| beside(setup.path, file)) {
        draft.token_file = name;
    }
    TokenSource::InPlace
}

/// Returns read access with the token that was obtained.
pub(super) fn reader_of(
    setup: &Setup<'_>,
    draft: &Draft,
    source: &TokenSource,
    session: Option<&Session>,
) -> Result<Option<Reader>, Failure> {
    let token = match source {
        TokenSource::Session => return Ok(session.map(|session| session.reader.clone())),
        TokenSource::Copied(token) => Token::inline(token.clone()),
        TokenSource::InPlace => {
            Token::from_file(parent(setup.path).join(&draft.token_file), SecretString::default())
        }
    };
    reader(&homeserver(setup, draft)?, token, &setup.clock).map(Some)
}

/// Obtains a token of a server admin; a session that was begun is in `slot`.
pub(super) async fn obtain_token(
    setup: &Setup<'_>,
    options: &Options,
    draft: &mut Draft,
    slot: &mut Option<Session>,
) -> Result<TokenSource, Failure> {
    let homeserver = homeserver(setup, draft)?;
    if let Some(file) = &options.token_file {
        return use_file(setup, &homeserver, file, draft).await;
    }
    not_there(setup)?;
    let anonymous = reader(&homeserver, Token::none(), &setup.clock)?;
    if let Err(failure) = refuse_mas(&homeserver, &anonymous, &setup.clock).await {
        print_message(
            "To continue with a token that MAS has issued: microglia init --token-file FILE",
        );
        return Err(failure);
    }
    let is_chosen = options.login.user.is_some() || options.login.sso;
    loop {
        let result = match is_chosen || !setup.interactive {
            true => log_in(setup, options, &homeserver, slot).await,
            false => ask_for_token(setup, options, &homeserver, draft, slot).await,
        };
        match result {
            Ok(source) => return Ok(source),
            // What the person typed can be typed again.
            Err(Failure::Error(error)) if setup.interactive && !error.is::<InputEnded>() => {
                if let Some(session) = slot.take() {
                    session.end().await;
                }
                print_error(&format!("{error:#}"));
            }
            Err(failure) => return Err(failure),
        }
    }
}

async fn ask_for_token(
    setup: &Setup<'_>,
    options: &Options,
    homeserver: &Homeserver,
    draft: &mut Draft,
    slot: &mut Option<Session>,
) -> Result<TokenSource, Failure> {
    let question = "Access token of a server admin: \"login\" to log in now, \"paste\", or the path of a file that contains one";
    match ask(question, Some("login")).await?.as_str() {
        "login" => log_in(setup, options, homeserver, slot).await,
        "paste" => {
            let token = ask_secret("Access token").await?;
            check_token(setup, homeserver, token.clone()).await?;
            Ok(TokenSource::Copied(token))
        }
        file => use_file(setup, homeserver, Path::new(file), draft).await,
    }
}

async fn log_in(
    setup: &Setup<'_>,
    options: &Options,
    homeserver: &Homeserver,
    slot: &mut Option<Session>,
) -> Result<TokenSource, Failure> {
    begin(homeserver, &options.login, &setup.clock, slot).await?;
    Ok(TokenSource::Session)
}

async fn use_file(
    setup: &Setup<'_>,
    homeserver: &Homeserver,
    file: &Path,
    draft: &mut Draft,
) -> Result<TokenSource, Failure> {
    let in_place = beside(setup.path, file);
    if in_place.is_none() {
        not_there(setup)?;
    }
    let bytes = read_bounded(file, MAX_TOKEN, READ_TIME_LIMIT)
        .map_err(|error| anyhow!("cannot read {}: {error}", file.display()))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| anyhow!("{} contains characters that are not ASCII", file.display()))?;
    let token = SecretString::from(trim_newline(&text));
    check_token(setup, homeserver, token.clone()).await.map_err(|problem| match problem {
        Failure::Error(error) => anyhow!("the token in {}: {error:#}", file.display()).into(),
        other => other,
    })?;
    Ok(match in_place {
        Some(name) => {
            draft.token_file = name;
            TokenSource::InPlace
        }
        None => TokenSource::Copied(token),
    })
}

/// The name of a file that is in the directory of the configuration, where it is used as it is.
fn beside(config: &Path, file: &Path) -> Option<String> {
    let directory = |path: &Path| fs::canonicalize(parent(path)).ok();
    let is_beside = directory(config).is_some_and(|dir| directory(file) == Some(dir));
    let is_regular = fs::symlink_metadata(file).is_ok_and(|file| file.is_file());
    (is_beside && is_regular).then(|| Some(file.file_name()?.to_str()?.to_owned()))?
}

fn not_there(setup: &Setup<'_>) -> Result<(), Failure> {
    let file = parent(setup.path).join(TOKEN_FILE);
    match fs::symlink_metadata(&file) {
        Ok(_) => Err(exists(&file, "use it with --token-file FILE")),
        Err(_) => Ok(()),
    }
}

async fn check_token(
    setup: &Setup<'_>,
    homeserver: &Homeserver,
    token: SecretString,
) -> Result<(), Failure> {
    validate_token(token.expose_secret()).map_err(|problem| anyhow!("the token {problem}"))?;
    let reader = reader(homeserver, Token::inline(token), &setup.clock)?;
    let identity = reader.identity().await.map_err(|error| anyhow!("{}", error.message()))?;
    print_message(&format!("the token is that of {}, a server admin", identity.account.name));
    Ok(())
}
