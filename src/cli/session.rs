//! A new session at a homeserver: login with a password or SSO, the check of the account, and logout.

use std::time::Duration;

use anyhow::anyhow;
use secrecy::SecretString;

use super::failure::Failure;
use super::output::{print_message, print_warning};
use super::prompt::{ask, ask_secret, is_interactive};
use super::sso;
use crate::config::Homeserver;
use crate::http::{Cause, Error, Settings, Token, TokenSource, Transport};
use crate::synapse::{Authenticator, Credentials, DEVICE_ID, NewSession, Reader};
use crate::values::clock::Clock;
use crate::values::duration::format_duration;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct LoginOptions {
    /// The account to log in to, by localpart or Matrix id. Its password is asked for, or read from stdin as one line.
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,
    /// Log in with a browser, also if the homeserver accepts passwords.
    #[arg(long)]
    pub(super) sso: bool,
}

/// A session of this program at a homeserver.
pub(super) struct Session {
    pub(super) user_id: String,
    pub(super) token: SecretString,
    pub(super) reader: Reader,
    /// The name of the device, if the session created it.
    device_name: String,
}

/// How long a rate limit is waited for in all; the default of Synapse's `rc_login` makes it 5 min and a half.
const MAX_RATE_LIMIT_WAIT: Duration = Duration::from_mins(15);
/// The wait if the homeserver names none.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns read access with this token; no job runs on it.
pub(super) fn reader(
    homeserver: &Homeserver,
    token: Token,
    clock: &Clock,
) -> Result<Reader, Failure> {
    let settings = Settings { token: TokenSource::Configured(token), ..homeserver.settings() };
    let transport =
        Transport::new(settings, std::sync::Arc::new(|_| {})).map_err(anyhow::Error::msg)?;
    Ok(Reader::new(std::sync::Arc::new(transport), clock.clone()))
}

/// Logs in, and puts the session into `slot` before it checks that the account is a server admin.
///
/// Whatever goes wrong afterwards, the caller has to end what is in `slot`.
pub(super) async fn begin<'a>(
    homeserver: &Homeserver,
    options: &LoginOptions,
    clock: &Clock,
    slot: &'a mut Option<Session>,
) -> Result<&'a Session, Failure> {
    let anonymous = reader(homeserver, Token::none(), clock)?;
    let credentials = credentials(homeserver, options, &anonymous).await?;
    let NewSession { user_id, token, expires_in_ms, device_name } =
        log_in(&Authenticator::new(anonymous), &credentials).await?;
    let reader = reader(homeserver, Token::inline(token.clone()), clock)?;
    let session = slot.insert(Session { user_id, token, reader, device_name });
    session.check(options.user.as_deref()).await?;
    print_message(&format!("logged in as {}, device {DEVICE_ID}", session.user_id));
    if let Some(expires_in_ms) = expires_in_ms {
        print_warning(&format!(
            "the homeserver lets this token expire after {}: log in again before that, or raise session_lifetime and nonrefreshable_access_token_lifetime in Synapse",
            format_duration(Duration::from_millis(expires_in_ms))
        ));
    }
    Ok(session)
}

async fn credentials(
    homeserver: &Homeserver,
    options: &LoginOptions,
    reader: &Reader,
) -> Result<Credentials, Failure> {
    let flows = reader.login_flows().await?.ok_or_else(|| {
        anyhow!("the server at {} does not serve logins: `url` should be the listener of Synapse's main process", homeserver.url)
    })?;
    if options.sso && !flows.sso {
        return Err(
            anyhow!("homeserver `{}` offers no SSO: log in with --user", homeserver.name).into()
        );
    }
    if flows.password && !options.sso {
        let user = match &options.user {
            Some(user) => user.clone(),
            None if is_interactive() => {
                ask("User name of a server admin", Some("microglia")).await?
            }
            None => {
                return Err(Failure::Usage(
                    "the account is missing: add --user NAME, with its password on stdin, or --sso"
                        .to_owned(),
                ));
            }
        };
        let password = ask_secret("Password").await?;
        return Ok(Credentials::Password { user, password });
    }
    if !flows.sso {
        return Err(anyhow!(
            "homeserver `{}` offers no login with a password or SSO: write the token of a server admin to the token file",
            homeserver.name
        )
        .into());
    }
    // Synapse's own listener, where this program reaches it, is rarely reachable for a browser.
    let browser_url = reader.public_url().await.unwrap_or_else(|| homeserver.url.clone());
    Ok(Credentials::LoginToken(sso::login_token(&browser_url).await?))
}

/// Logs in, and waits as long as the homeserver demands between two attempts.
async fn log_in(
    authenticator: &Authenticator,
    credentials: &Credentials,
) -> Result<NewSession, Failure> {
    let mut waited = Duration::ZERO;
    loop {
        let error = match authenticator.log_in(credentials).await {
            Ok(session) => return Ok(session),
            Err(error) => error,
        };
        if !error.is_rate_limited() {
            return Err(refusal(&error));
        }
        let wait = error.retry_after().unwrap_or(DEFAULT_WAIT).max(Duration::from_millis(100));
        waited += wait;
        if waited > MAX_RATE_LIMIT_WAIT {
            return Err(anyhow!(
                "the homeserver limits logins (rc_login) and demands another {}: try again then",
                format_duration(wait)
            )
            .into());
        }
        print_message(&format!(
            "the homeserver limits logins (rc_login): trying again in {}",
            format_duration(wait)
        ));
        tokio::time::sleep(wait).await;
    }
}

/// What the homeserver says about the login; advice about access tokens does not apply to it.
fn refusal(error: &Error) -> Failure {
    match &error.cause {
        Cause::Synapse { error: text, errcode, .. } => {
            anyhow!("the homeserver refused the login: {text} ({errcode})").into()
        }
        _ => anyhow!("{error}").into(),
    }
}

impl Session {
    /// Checks that the session is of the expected account, and that this account is a server admin.
    async fn check(&self, user: Option<&str>) -> Result<(), Failure> {
        let user_id = &self.user_id;
        if let Some(user) = user.filter(|user| !is_account(user_id, user)) {
            return Err(anyhow!(
                "the login was that of {user_id}, not of {user}: log out of the SSO provider in the browser, and log in again"
            )
            .into());
        }
        match self.reader.identity().await {
            Ok(identity) if identity.account.name == *user_id => Ok(()),
            Ok(identity) => Err(anyhow!(
                "the login was that of {user_id}, but its token belongs to {}",
                identity.account.name
            )
            .into()),
            Err(error) if error.is_about_token() => Err(anyhow!("{}", not_admin(user_id)).into()),
            Err(error) => {
                Err(anyhow!("cannot check whether {user_id} is a server admin: {error}").into())
            }
        }
    }

    /// Ends the session at the homeserver; prints a warning if that fails.
    ///
    /// A device that existed before is left alone: its logout would end the tokens that the daemon uses.
    pub(super) async fn end(self) {
        let Self { user_id, reader, device_name, .. } = self;
        let ended = tokio::time::timeout(END_TIMEOUT, async {
            if reader.device_name().await?.as_deref() != Some(&device_name) {
                return Ok(false);
            }
            Authenticator::new(reader).log_out().await.map(|()| true)
        });
        let failed = match ended.await {
            Ok(Ok(true)) => return print_message(&format!("logged out {user_id}")),
            Ok(Ok(false)) => {
                return print_message(&format!(
                    "the device {DEVICE_ID} of {user_id} existed before: its tokens stay valid"
                ));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no response within {}", format_duration(END_TIMEOUT)),
        };
        print_warning(&format!(
            "the new session of {user_id} is still active ({failed}): unless another program uses its device {DEVICE_ID}, delete that in a Matrix client"
        ));
    }
}

fn is_account(user_id: &str, user: &str) -> bool {
    let localpart = user_id.trim_start_matches('@').split(':').next().unwrap_or_default();
    match user.starts_with('@') {
        true => user_id.eq_ignore_ascii_case(user),
        false => localpart.eq_ignore_ascii_case(user),
    }
}

fn not_admin(user_id: &str) -> String {
    // Synapse remembers who is an admin: it does not notice a change of its database.
    format!(
        "{user_id} is not a server admin. Make it one, and log in again: as another server admin with\n  \
         PUT /_synapse/admin/v1/users/{user_id}/admin and the body {{\"admin\": true}}\n\
         or in Synapse's database, followed by a restart of Synapse, with\n  \
         UPDATE users SET admin = 1 WHERE name = '{user_id}';"
    )
}
