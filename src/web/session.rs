//! Sessions of people who signed in to the status page with the admin token.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use chrono::TimeDelta;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::values::clock::Timestamp;
use crate::values::random::random_bytes;

const COOKIE: &str = "microglia_session";
/// How long a session lasts.
const LIFETIME: TimeDelta = TimeDelta::hours(12);
/// Beyond it the session that ends first is closed for a new one.
const MAX_SESSIONS: usize = 1000;
/// How long a client waits after a wrong token, for each one in a row.
const DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// Beyond it an attempt is refused at once.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// How many clients are remembered for their wrong tokens. Beyond it the one that waits least is forgotten for a new one.
const MAX_CLIENTS: usize = 10_000;

/// The open sessions; they end with the process.
#[derive(Default)]
pub(crate) struct Sessions {
    open: Mutex<HashMap<String, Session>>,
    attempts: Mutex<HashMap<IpAddr, Attempts>>,
}

struct Session {
    csrf: String,
    /// Another one ends the session.
    token: SecretString,
    expires_at: Timestamp,
}

/// The wrong tokens in a row of one client.
struct Attempts {
    wrong: u32,
    /// When the next attempt is made.
    next: Instant,
}

/// The session that a request belongs to.
#[derive(Debug, Clone)]
pub(super) struct OpenSession {
    id: String,
    /// What a request that changes something has to carry beside the cookie.
    pub(super) csrf: String,
}

impl OpenSession {
    pub(super) fn has_csrf(&self, sent: &str) -> bool {
        sent.as_bytes().ct_eq(self.csrf.as_bytes()).into()
    }
}

/// Why nobody was signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignInError {
    WrongToken,
    /// There were too many wrong tokens from the same client: how long to wait.
    TooMany(Duration),
}

impl Sessions {
    fn open(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempts(&self) -> MutexGuard<'_, HashMap<IpAddr, Attempts>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session for the right token, and returns its id; attempts after a wrong one wait for their turn.
    pub(super) async fn sign_in(
        &self,
        client: IpAddr,
        sent: &str,
        token: &SecretString,
        now: Timestamp,
    ) -> Result<String, SignInError> {
        let client = of_network(client);
        tokio::time::sleep_until(self.take_turn(client)?).await;
        if !bool::from(sent.as_bytes().ct_eq(token.expose_secret().as_bytes())) {
            return Err(SignInError::WrongToken);
        }
        self.attempts().remove(&client);
        let id = random_text();
        let session =
            Session { csrf: random_text(), token: token.clone(), expires_at: now + LIFETIME };
        let mut open = self.open();
        open.retain(|_, session| session.expires_at > now);
        if open.len() >= MAX_SESSIONS {
            let first = open.iter().min_by_key(|(_, session)| session.expires_at);
            if let Some(first) = first.map(|(id, _)| id.clone()) {
                open.remove(&first);
            }
        }
        open.insert(id.clone(), session);
        Ok(id)
    }

    /// Returns when an attempt may be made. Counts it as wrong beforehand: a client that does not wait gains nothing.
    fn take_turn(&self, client: IpAddr) -> Result<Instant, SignInError> {
        let (mut attempts, now) = (self.attempts(), Instant::now());
        if attempts.len() >= MAX_CLIENTS && !attempts.contains_key(&client) {
            attempts.retain(|_, attempts| attempts.next > now);
        }
        if attempts.len() >= MAX_CLIENTS && !attempts.contains_key(&client) {
            let first = attempts.iter().min_by_key(|(_, attempts)| attempts.next);
            if let Some(first) = first.map(|(client, _)| *client) {
                attempts.remove(&first);
            }
        }
        let Attempts { wrong, next } =
            attempts.entry(client).or_insert(Attempts { wrong: 0, next: now });
        if *next + MAX_DELAY * 12 < now {
            *wrong = 0;
        }
        let turn = (*next).max(now);
        if turn - now > MAX_WAIT {
            return Err(SignInError::TooMany(turn - now));
        }
        *wrong += 1;
        *next = turn + (DELAY * *wrong).min(MAX_DELAY);
        Ok(turn)
    }

    /// Finds the session of a request; one that was opened with another token than `token` has ended.
    pub(super) fn find(
        &self,
        headers: &HeaderMap,
        token: Option<&SecretString>,
        now: Timestamp,
    ) -> Option<OpenSession> {
        let id = session_id(headers)?;
        let mut open = self.open();
        let session = open.get(id)?;
        let is_valid = session.expires_at > now
            && token.is_some_and(|token| {
                session
                    .token
                    .expose_secret()
                    .as_bytes()
                    .ct_eq(token.expose_secret().as_bytes())
                    .into()
            });
        if !is_valid {
            open.remove(id);
            return None;
        }
        Some(OpenSession { id: id.to_owned(), csrf: session.csrf.clone() })
    }

    pub(super) fn close(&self, session: &OpenSession) {
        self.open().remove(&session.id);
    }
}

/// The cookie that opens a session in the browser, or ends it.
pub(super) fn cookie(id: Option<&str>, secure: bool) -> Option<HeaderValue> {
    let (id, max_age) = id.map_or(("", 0), |id| (id, LIFETIME.num_seconds()));
    let secure = if secure { "; Secure" } else { "" };
    let text =
        format!("{COOKIE}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={max_age}{secure}");
    text.parse().ok()
}

fn session_id(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';'));
    pairs.find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// A provider gives each of its customers many addresses of IPv6.
fn of_network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// 256 random bits.
fn random_text() -> String {
    random_bytes::<32>().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn client(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    fn with_cookie(id: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, format!("a=b; {COOKIE}={id}").parse().unwrap());
        headers
    }

    #[tokio::test]
    async fn a_session_ends_after_twelve_hours_with_another_token_and_when_it_is_closed() {
        let (sessions, token) = (Sessions::default(), SecretString::from("right"));
        let open = || sessions.sign_in(client("192.0.2.1"), "right", &token, NOW);
        let find = |id: &str, token: &str, later| {
            let token = SecretString::from(token);
            sessions.find(&with_cookie(id), Some(&token), NOW + later)
        };
        let id = open().await.unwrap();
        let found = find(&id, "right", LIFETIME - TimeDelta::seconds(1)).unwrap();
        assert!(found.has_csrf(&found.csrf) && !found.has_csrf("") && found.csrf != id);
        assert!(find("", "right", TimeDelta::zero()).is_none());
        assert!(find(&id, "right", LIFETIME).is_none());
        let id = open().await.unwrap();
        assert!(find(&id, "other", TimeDelta::zero()).is_none());
        assert!(find(&id, "right", TimeDelta::zero()).is_none(), "also if the token comes back");
        let id = open().await.unwrap();
        sessions.close(&find(&id, "right", TimeDelta::zero()).unwrap());
        assert!(find(&id, "right", TimeDelta::zero()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_of_a_client_are_slowed_down_whether_or_not_it_waits_for_the_response() {
        let (sessions, token) = (Sessions::default(), SecretString::from("right"));
        let start = Instant::now();
        let attempt = |from: &str, sent| {
            let (sessions, token, from) = (&sessions, &token, client(from));
            async move { sessions.sign_in(from, sent, token, NOW).await }
        };
        assert_eq!(attempt("192.0.2.1", "wrong").await, Err(SignInError::WrongToken));
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(attempt("192.0.2.1", "wrong").await, Err(SignInError::WrongToken));
        assert_eq!(start.elapsed(), DELAY);
        // Without waiting for a response.
        for _ in 0..100 {
            let _ = futures_util::FutureExt::now_or_never(attempt("192.0.2.1", "right"));
        }
        let refused = attempt("192.0.2.1", "right").await;
        assert!(
            matches!(refused, Err(SignInError::TooMany(wait)) if wait > MAX_WAIT),
            "{refused:?}"
        );
        // Others are not affected; the addresses of one network are one client.
        assert!(attempt("192.0.2.2", "right").await.is_ok());
        assert_eq!(start.elapsed(), DELAY);
        assert_eq!(attempt("2001:db8::1", "wrong").await, Err(SignInError::WrongToken));
        assert!(attempt("2001:db8::2", "right").await.is_ok());
        assert_eq!(start.elapsed(), DELAY * 2);
        tokio::time::advance(Duration::from_mins(5)).await;
        let later = Instant::now();
        assert!(attempt("192.0.2.1", "right").await.is_ok());
        assert_eq!(later.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_clients_that_are_remembered_is_limited() {
        let (sessions, token) = (Sessions::default(), SecretString::from("right"));
        let attempt = |client: u32| {
            let client = IpAddr::from(std::net::Ipv4Addr::from_bits(client));
            sessions.sign_in(client, "wrong", &token, NOW)
        };
        // The first one has to wait longer than all others.
        for _ in 0..3 {
            assert_eq!(attempt(0).await, Err(SignInError::WrongToken));
        }
        let clients = u32::try_from(MAX_CLIENTS).unwrap();
        for client in 1..clients + 10 {
            assert_eq!(attempt(client).await, Err(SignInError::WrongToken));
        }
        let attempts = sessions.attempts();
        assert_eq!(attempts.len(), MAX_CLIENTS);
        assert!(attempts.contains_key(&IpAddr::from([0, 0, 0, 0])));
    }

    #[test]
    fn the_cookie_is_kept_from_scripts_other_sites_and_plain_http_behind_tls() {
        let text = |id, secure| cookie(id, secure).unwrap().to_str().unwrap().to_owned();
        insta::assert_snapshot!(text(Some("ab"), true), @"microglia_session=ab; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200; Secure");
        insta::assert_snapshot!(text(None, false), @"microglia_session=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    }
}
