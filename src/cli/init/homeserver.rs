//! The homeserver: its URL, and the access token.

use std::fs;
use std::path::Path;

use anyhow::anyhow;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

use super::super::failure::Failure;
use super::super::mas_settings::new_client_id;
use super::super::new_file::{exists, parent};
use super::super::output::{print_error, print_message};
use super::super::prompt::{InputEnded, ask, ask_secret};
use super::super::session::{Session, begin, reader};
use super::draft::{Draft, HOMESERVER, MasDraft, SECRET_FILE, TOKEN_FILE};
use super::options::Options;
use super::setup::{OTHER_CONFIG, OTHER_TOKEN, Setup, TokenSource};
use crate::config::Homeserver;
use crate::http::{Token, trim_newline, validate_token};
use crate::synapse::{Reader, Responder};
use crate::values::bounded_file::read_bounded;
use crate::values::random::random_bytes;

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

/// Names MAS or the token file as they would be with the same options without `--print`.
pub(super) fn print_token_source(
    setup: &Setup<'_>,
    options: &Options,
    draft: &mut Draft,
) -> Result<TokenSource, Failure> {
    if let Some(url) = &options.mas {
        set_mas(setup, draft, url)
            .map_err(|problem| Failure::Usage(format!("--mas: {problem}")))?;
    }
    if let Some(name) = options.token_file.as_deref().and_then(|file| beside(setup.path, file)) {
        draft.token_file = name;
    }
    Ok(TokenSource::InPlace)
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
        // Until MAS knows the client, it issues no token.
        TokenSource::Mas(_) => return Ok(None),
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
    let anonymous = reader(&homeserver, Token::none(), &setup.clock)?;
    let is_chosen = options.login.user.is_some() || options.login.sso;
    match (anonymous.delegates_to_mas().await?, &options.mas) {
        (true, None) if is_chosen || !setup.interactive => {
            return Err(Failure::Usage(format!(
                "the Matrix Authentication Service (MAS) manages the accounts of {}, and microglia issues its own token there: use --mas {}, or --token-file FILE for a token that MAS has issued",
                draft.url,
                anonymous.mas_url().await.as_ref().map_or("URL", Url::as_str)
            )));
        }
        (true, _) => return choose_mas(setup, options, draft, &anonymous).await,
        (false, Some(_)) => {
            return Err(Failure::Usage(format!(
                "{} manages its accounts itself: leave out --mas",
                draft.url
            )));
        }
        (false, None) => not_there(setup, TOKEN_FILE, OTHER_TOKEN)?,
    }
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

/// Chooses the MAS that manages the accounts, with a new client.
async fn choose_mas(
    setup: &Setup<'_>,
    options: &Options,
    draft: &mut Draft,
    anonymous: &Reader,
) -> Result<TokenSource, Failure> {
    not_there(setup, SECRET_FILE, OTHER_CONFIG)?;
    let secret: String = random_bytes::<32>().iter().map(|byte| format!("{byte:02x}")).collect();
    let source = TokenSource::Mas(secret.into());
    if let Some(url) = &options.mas {
        set_mas(setup, draft, url)
            .map_err(|problem| Failure::Usage(format!("--mas: {problem}")))?;
        return Ok(source);
    }
    print_message(
        "The Matrix Authentication Service (MAS) manages the accounts: microglia will issue its own token there.",
    );
    let default = anonymous.mas_url().await;
    loop {
        let url = ask("URL of MAS", default.as_ref().map(Url::as_str)).await?;
        match set_mas(setup, draft, &url) {
            Ok(()) => return Ok(source),
            Err(problem) => print_error(&problem),
        }
    }
}

/// Puts MAS into the draft, unless the URL is not valid.
fn set_mas(setup: &Setup<'_>, draft: &mut Draft, url: &str) -> Result<(), String> {
    let client_id = new_client_id(setup.now()).to_string();
    let mas = Some(MasDraft { url: url.to_owned(), client_id });
    let next = Draft { mas, ..draft.clone() };
    if let Some(problem) = setup.problem(&next) {
        return Err(problem);
    }
    *draft = next;
    Ok(())
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
        not_there(setup, TOKEN_FILE, OTHER_TOKEN)?;
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

/// Fails if there is such a file beside the configuration; `instead` says how to do without.
fn not_there(setup: &Setup<'_>, name: &str, instead: &str) -> Result<(), Failure> {
    let file = parent(setup.path).join(name);
    match fs::symlink_metadata(&file) {
        Ok(_) => Err(exists(&file, instead)),
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
