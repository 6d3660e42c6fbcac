//! The token with which the program acts as its account on the homeserver: a personal session of a device of its own.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::account::usable_account;
use super::connection::Connection;
use super::personal_sessions::{IssuedToken, PersonalSessions};
use super::reader::Reader;
use super::token_file::{FileLock, Kept, KeptToken, TokenFile};
use super::ulid::Ulid;
use crate::http::{Cause, Error, Issuer, NoToken};
use crate::values::clock::{Clock, Timestamp};
use crate::values::random::random_bytes;

/// Called with the time at which the token expires, whenever that changes.
pub type ExpiryObserver = Arc<dyn Fn(Timestamp) + Send + Sync>;

/// Issues the program's own token, renews it, and keeps it in the state directory.
pub struct OwnToken(Arc<Inner>);

/// Whose token it is, and where it is kept.
pub struct OwnTokenSettings {
    /// The name of the homeserver.
    pub homeserver: String,
    pub connection: Arc<Connection>,
    /// It must exist.
    pub state_dir: PathBuf,
    pub clock: Clock,
    pub observer: ExpiryObserver,
    /// How long Synapse may go on refusing a token after the reason is gone.
    pub refusals_cached_for: Duration,
}

struct Inner {
    reader: Reader,
    account: String,
    bound_to: String,
    homeserver: String,
    file: TokenFile,
    clock: Clock,
    observer: ExpiryObserver,
    refusals_cached_for: Duration,
    state: Mutex<State>,
    /// Held by the one renewal in progress.
    renewing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    is_loaded: bool,
    kept: Option<Kept>,
    /// Whether Synapse refuses the token, and waiting for its cache did not help.
    is_refused: bool,
    /// When this process received the token; `None` for one of an earlier start.
    received_at: Option<Instant>,
    /// Whether the token was renewed because the one before was refused.
    replaces_refused: bool,
    failure: Option<(NoToken, Instant)>,
}

/// What a request finds.
enum Found {
    Valid(SecretString),
    /// It is valid, and should be renewed.
    Due(SecretString),
    Failed(NoToken),
    Nothing,
}

const LIFE: Duration = Duration::from_hours(24);
/// How much of its life is left when it is renewed: it is used for 70 %.
const RENEW_BEFORE: Duration = Duration::from_mins(24 * 60 * 3 / 10);
/// A failure is not repeated within this time.
const RETRY_INTERVAL: Duration = Duration::from_mins(1);
/// How long another process may take to renew the token.
const LOCK_TIMEOUT: Duration = Duration::from_mins(2);
const LOCK_POLL: Duration = Duration::from_millis(50);
/// Synapse keeps for two minutes what MAS said about a token.
pub(crate) const REFUSALS_CACHED_FOR: Duration = Duration::from_secs(121);
const SCOPES: [&str; 2] = ["urn:matrix:client:api:*", "urn:synapse:admin:*"];
const DEVICE_SCOPE: &str = "urn:matrix:client:device:";

impl OwnToken {
    pub fn new(settings: OwnTokenSettings) -> Self {
        let OwnTokenSettings {
            homeserver,
            connection,
            state_dir,
            clock,
            observer,
            refusals_cached_for,
        } = settings;
        let account = connection.account.clone();
        let bound_to = format!("{} {} {account}", connection.url, connection.client_id);
        Self(Arc::new(Inner {
            reader: Reader::new(connection, clock.clone()),
            account,
            bound_to,
            file: TokenFile { state_dir, name: homeserver.clone() },
            homeserver,
            clock,
            observer,
            refusals_cached_for,
            state: Mutex::default(),
            renewing: Arc::default(),
        }))
    }

    async fn current(&self) -> Result<SecretString, NoToken> {
        let asked_at = Instant::now();
        Inner::load(&self.0).await?;
        let inner = &self.0;
        match inner.found(asked_at) {
            Found::Valid(token) => Ok(token),
            Found::Failed(error) => Err(error),
            // One request renews it; the others go on with the old one.
            Found::Due(token) => match Arc::clone(&inner.renewing).try_lock_owned() {
                Ok(guard) => Ok(Inner::renew(inner, guard).await.unwrap_or(token)),
                Err(_) => Ok(token),
            },
            Found::Nothing => {
                let guard = Arc::clone(&inner.renewing).lock_owned().await;
                match inner.found(asked_at) {
                    Found::Valid(token) | Found::Due(token) => Ok(token),
                    Found::Failed(error) => Err(error),
                    Found::Nothing => Inner::renew(inner, guard).await,
                }
            }
        }
    }

    async fn take_refusal(&self, token: &SecretString, error: &Error) -> bool {
        if !is_about_this_token(error) {
            return false;
        }
        let inner = &self.0;
        let cached_until = {
            let mut state = inner.state();
            let current = state.kept.as_ref().and_then(|kept| kept.issued.as_ref());
            if current.is_none_or(|it| it.token.expose_secret() != token.expose_secret()) {
                return true;
            }
            let until = state.received_at.map(|at| at + inner.refusals_cached_for);
            let Some(until) = until.filter(|until| Instant::now() < *until) else {
                state.is_refused = true;
                return true;
            };
            until
        };
        tracing::warn!(target: "microglia::homeserver", homeserver = %inner.homeserver, "{}: the homeserver refuses a token that was just issued; it may remember a refusal for two minutes, which are waited for", inner.homeserver);
        tokio::time::sleep_until(cached_until).await;
        true
    }
}

/// Whether another token of the same account may be accepted.
fn is_about_this_token(error: &Error) -> bool {
    match &error.cause {
        Cause::Synapse { status: 401, errcode, error, .. } => {
            errcode != "M_USER_LOCKED" && !error.starts_with("Token doesn't grant access")
        }
        _ => false,
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request finds that needs a token since `asked_at`.
    fn found(&self, asked_at: Instant) -> Found {
        let (state, now) = (self.state(), self.clock.now());
        let issued = state.kept.as_ref().and_then(|kept| kept.issued.as_ref());
        let failure =
            state.failure.as_ref().filter(|(_, at)| Instant::now() < *at + RETRY_INTERVAL);
        match issued.filter(|issued| !state.is_refused && now < issued.expires_at) {
            Some(issued) if !is_due(issued, now) || failure.is_some() => {
                Found::Valid(issued.token.clone())
            }
            Some(issued) => Found::Due(issued.token.clone()),
            // Those who waited for a renewal share its failure, also one that may pass.
            None => match failure.filter(|(why, at)| !why.is_transient() || *at >= asked_at) {
                Some((why, _)) => Found::Failed(why.clone()),
                None => Found::Nothing,
            },
        }
    }

    /// Reads the file at the first request.
    async fn load(self: &Arc<Self>) -> Result<(), NoToken> {
        if self.state().is_loaded {
            return Ok(());
        }
        let kept = self.read().await?;
        let mut state = self.state();
        if !state.is_loaded {
            state.is_loaded = true;
            if let Some(issued) = kept.as_ref().and_then(|kept| kept.issued.as_ref()) {
                (self.observer)(issued.expires_at);
            }
            state.kept = kept;
        }
        Ok(())
    }

    /// What is kept; a token that was issued for something else is left out.
    async fn read(self: &Arc<Self>) -> Result<Option<Kept>, NoToken> {
        let mut kept = self.blocking(TokenFile::read).await?;
        if let Some(kept) = &mut kept
            && kept.issued.as_ref().is_some_and(|issued| issued.bound_to != self.bound_to)
        {
            kept.issued = None;
        }
        Ok(kept)
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&TokenFile) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, NoToken> {
        let inner = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&inner.file)).await;
        let error = match done {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error,
            Err(error) => error.into(),
        };
        let advice = match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::NotFound => {
                ". Run microglia as the owner of the state directory, which must exist"
            }
            _ => "",
        };
        let path = self.file.path();
        Err(NoToken::Problem(format!(
            "cannot keep the program's own token in {}: {error}{advice}",
            path.display()
        )))
    }

    /// Renews in a task of its own: a request that is given up must not lose a token that MAS does not show again.
    async fn renew(
        inner: &Arc<Self>,
        guard: tokio::sync::OwnedMutexGuard<()>,
    ) -> Result<SecretString, NoToken> {
        let inner = Arc::clone(inner);
        let renewal = tokio::spawn(async move {
            let renewed = inner.renewed().await;
            if let Err(why) = &renewed {
                inner.failed(why);
            }
            drop(guard);
            renewed
        });
        renewal.await.unwrap_or_else(|error| {
            Err(NoToken::Problem(format!("the renewal of the access token failed: {error}")))
        })
    }

    fn failed(&self, why: &NoToken) {
        let mut state = self.state();
        let text = why.to_string();
        let is_new = state.failure.as_ref().is_none_or(|(last, _)| last.to_string() != text);
        state.failure = Some((why.clone(), Instant::now()));
        if is_new {
            tracing::warn!(target: "microglia::homeserver", homeserver = %self.homeserver, "{}: cannot obtain an access token from MAS: {text}", self.homeserver);
        }
    }

    async fn renewed(self: &Arc<Self>) -> Result<SecretString, NoToken> {
        let _lock = self.lock().await?;
        let kept = self.read().await?;
        // Another process may have renewed it.
        if let Some(issued) = kept.as_ref().and_then(|kept| kept.issued.clone())
            && !is_due(&issued, self.clock.now())
            && !self.is_refused(&issued)
        {
            return Ok(self.adopt(kept, &issued, "taken over"));
        }
        let device = match kept {
            Some(kept) => kept.device,
            None => new_device(),
        };
        let actor = self.actor().await?;
        let scope = scope(&device);
        let (was_refused, must_replace) = {
            let state = self.state();
            (state.is_refused, state.is_refused && state.replaces_refused)
        };
        let sessions = PersonalSessions::new(self.reader.clone());
        let mut own = self.reader.own_personal_sessions(&actor).await?;
        own.retain(|session| has_scopes(&session.attributes.scope, &scope));
        let existing = match own.pop() {
            // A new token did not help: Synapse lost the device, which only a new session creates.
            Some(session) if must_replace => {
                sessions.revoke(&session.id).await?;
                None
            }
            existing => existing,
        };
        // Kept before the session exists, so that one whose response is lost is found again.
        let mut kept = Kept { device, issued: None };
        if existing.is_none() {
            let kept = kept.clone();
            self.blocking(move |file| file.write(&kept)).await?;
        }
        let asked_at = self.clock.now();
        let renewed = match &existing {
            Some(session) => sessions.regenerate(&session.id, LIFE).await,
            None => sessions.create(&actor, "microglia", &scope, LIFE).await.map_err(no_session),
        };
        let IssuedToken { session, token } = renewed?;
        let issued = KeptToken {
            bound_to: self.bound_to.clone(),
            session: session.id,
            token,
            expires_at: asked_at + LIFE,
        };
        kept.issued = Some(issued.clone());
        let written = kept.clone();
        let saved = self.blocking(move |file| file.write(&written)).await;
        let what = if existing.is_some() { "renewed" } else { "issued" };
        let token = self.adopt(Some(kept), &issued, what);
        self.state().replaces_refused = was_refused;
        // It is valid all the same; the next start looks for its session and renews it.
        if let Err(why) = saved {
            self.failed(&why);
        }
        Ok(token)
    }

    /// Whether this is the token that Synapse refuses.
    fn is_refused(&self, issued: &KeptToken) -> bool {
        let state = self.state();
        let current = state.kept.as_ref().and_then(|kept| kept.issued.as_ref());
        state.is_refused
            && current.is_some_and(|it| it.token.expose_secret() == issued.token.expose_secret())
    }

    fn adopt(&self, kept: Option<Kept>, issued: &KeptToken, what: &str) -> SecretString {
        {
            let mut state = self.state();
            state.kept = kept;
            (state.is_refused, state.replaces_refused, state.failure) = (false, false, None);
            state.received_at = Some(Instant::now());
        }
        (self.observer)(issued.expires_at);
        tracing::info!(target: "microglia::homeserver", homeserver = %self.homeserver, session = %issued.session, "{}: the access token was {what}; it is valid until {}", self.homeserver, crate::values::clock::format_time(issued.expires_at));
        issued.token.clone()
    }

    async fn lock(self: &Arc<Self>) -> Result<FileLock, NoToken> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            if let Some(lock) = self.blocking(TokenFile::try_lock).await? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(NoToken::Busy(format!(
                    "another process of microglia has been renewing the access token in {} for two minutes",
                    self.file.path().display()
                )));
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// The account, if it can have a token.
    async fn actor(&self) -> Result<Ulid, NoToken> {
        let found = self.reader.user_by_name(&self.account).await?;
        let user = usable_account(found, &self.account, &self.homeserver);
        Ok(user.map_err(NoToken::Problem)?.id)
    }
}

impl Issuer for OwnToken {
    fn token(&self) -> BoxFuture<'_, Result<SecretString, NoToken>> {
        self.current().boxed()
    }

    fn refused<'a>(&'a self, token: &'a SecretString, error: &'a Error) -> BoxFuture<'a, bool> {
        self.take_refusal(token, error).boxed()
    }

    fn remedy(&self) -> String {
        format!(
            "it was issued by MAS for `{}`; check that Synapse delegates to the MAS at `url` in [homeservers.{}.mas], and that the account is not locked there",
            self.0.account, self.0.homeserver
        )
    }
}

fn is_due(issued: &KeptToken, now: Timestamp) -> bool {
    // A clock that was set back must not keep a token for longer than it lives.
    now + RENEW_BEFORE >= issued.expires_at || now + LIFE < issued.expires_at
}

fn scope(device: &str) -> String {
    format!("{} {DEVICE_SCOPE}{device}", SCOPES.join(" "))
}

/// MAS returns scopes in an order of its own.
fn has_scopes(scope: &str, wanted: &str) -> bool {
    let mut wanted = wanted.split(' ');
    wanted.all(|wanted| scope.split(' ').any(|scope| scope == wanted))
}

/// A device that no other state directory has.
fn new_device() -> String {
    let random = random_bytes::<8>().map(|byte| char::from(b'A' + byte % 26));
    format!("MICROGLIA{}", String::from_iter(random))
}

/// MAS creates the device of a session in Synapse, and fails if it cannot.
fn no_session(error: Error) -> Error {
    if !matches!(error.cause, Cause::Mas { status: 500, .. }) {
        return error;
    }
    let advice = "MAS could not create the device of the session in Synapse: check that Synapse is running, and that the account has logged in once, so that Synapse has it";
    Error { advice: Some(advice.to_owned()), ..error }
}

impl fmt::Debug for OwnToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnToken").field("homeserver", &self.0.homeserver).finish_non_exhaustive()
    }
}
