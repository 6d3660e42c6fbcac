//! The program's own token: issued, kept in the state directory, renewed, and given back to nobody else.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use microglia::config::{Config, Environment};
use microglia::http::{Issuer, NoToken, TokenSource, Transport};
use microglia::mas::{OwnToken, OwnTokenSettings};
use microglia::plan::report::Mode;
use microglia::synapse::Reader;
use microglia::values::clock::{Clock, Timestamp};
use secrecy::ExposeSecret;

use super::Setup;
use crate::fake::{Fault, Trouble, World};
use crate::jobs::in_process;
use crate::program::{figures, until};

const EXPIRY: &str = "microglia_homeserver_token_expiry_timestamp_seconds";
const JOIN: &str = "/_synapse/admin/v1/join/";
const SESSIONS: &str = "/api/admin/v1/personal-sessions";

/// A MAS with the account of the program, which Synapse has, too.
fn setup() -> Setup {
    let mas = Setup::new();
    std::fs::create_dir_all(mas.program.path("state")).unwrap();
    mas.homeserver.world(|world| world.auth_service.user("microglia"));
    mas
}

impl Setup {
    fn own_token_at(&self, state_dir: &str, clock: Clock, expires: Expiry) -> OwnToken {
        OwnToken::new(self.settings(state_dir, clock, expires))
    }

    fn settings(&self, state_dir: &str, clock: Clock, expires: Expiry) -> OwnTokenSettings {
        OwnTokenSettings {
            homeserver: "main".to_owned(),
            connection: self.connection(),
            state_dir: self.program.path(state_dir),
            clock,
            observer: Arc::new(move |at| *expires.lock().unwrap() = Some(at)),
            refusals_cached_for: Duration::from_secs(2),
        }
    }

    fn own_token(&self) -> OwnToken {
        self.own_token_at("state", Clock::system(), Expiry::default())
    }

    /// Sessions, and how often one was renewed.
    fn issued(&self) -> (usize, usize) {
        let sessions = self.homeserver.world(|world| world.auth_service.sessions.len());
        let regenerated = self
            .internal
            .requests()
            .iter()
            .filter(|seen| seen.path.ends_with("/regenerate"))
            .count();
        (sessions, regenerated)
    }

    /// The connection to Synapse, with a token that MAS issues.
    fn transport(&self, own_token: OwnToken) -> Transport {
        let path = self.program.path("microglia.toml");
        let now = Clock::system().now();
        let config = Config::load(&path, &Environment::default(), now).unwrap();
        let mut settings = config.homeservers["main"].settings();
        settings.token = TokenSource::Issued(Arc::new(own_token));
        Transport::new(settings, Arc::new(|_| {})).unwrap()
    }

    fn synapse(&self, own_token: OwnToken) -> Reader {
        Reader::new(Arc::new(self.transport(own_token)), Clock::system())
    }
}

type Expiry = Arc<Mutex<Option<Timestamp>>>;

async fn token(own_token: &OwnToken) -> String {
    own_token.token().await.unwrap().expose_secret().to_owned()
}

async fn error(mas: &Setup, own_token: &OwnToken) -> String {
    let state = mas.program.path("state");
    mas.text(&own_token.token().await.unwrap_err()).replace(state.to_str().unwrap(), "STATE")
}

#[expect(clippy::disallowed_methods, reason = "the fake has the real clock")]
fn now() -> DateTime<Utc> {
    Utc::now()
}

/// A clock that is a number of minutes ahead.
fn clock() -> (Clock, Arc<AtomicI64>) {
    let ahead = Arc::new(AtomicI64::new(0));
    let minutes = Arc::clone(&ahead);
    (Clock::of(move || now() + TimeDelta::minutes(minutes.load(Ordering::Relaxed))), ahead)
}

#[tokio::test]
async fn a_token_is_issued_once_and_kept_for_a_start_without_mas() {
    let mas = setup();
    let first = token(&mas.own_token()).await;
    assert_eq!(mas.issued(), (1, 0));
    let file = mas.program.path("state/tokens/main");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let scope = mas
        .homeserver
        .world(|world| world.auth_service.sessions.values().next().unwrap().scope.clone());
    assert!(
        scope.contains("urn:synapse:admin:*")
            && scope.contains("urn:matrix:client:device:MICROGLIA"),
        "{scope}"
    );
    mas.internal.go_down();
    mas.public.go_down();
    let expires = Expiry::default();
    let restarted = mas.own_token_at("state", Clock::system(), Arc::clone(&expires));
    assert_eq!(token(&restarted).await, first);
    let life = expires.lock().unwrap().unwrap() - now();
    assert!(life > TimeDelta::hours(23) && life <= TimeDelta::hours(24), "{life}");
    let shown = format!("{restarted:?}");
    assert!(!shown.contains(&first), "{shown}");
}

#[tokio::test]
async fn a_token_is_renewed_after_70_percent_of_its_life_and_used_on_while_mas_is_down() {
    let mas = setup();
    let (clock, ahead) = clock();
    let own_token = mas.own_token_at("state", clock, Expiry::default());
    let first = token(&own_token).await;
    ahead.store(16 * 60, Ordering::Relaxed);
    assert_eq!(token(&own_token).await, first);
    ahead.store(17 * 60, Ordering::Relaxed);
    mas.internal
        .fault(Fault::new("GET", "/api/admin/v1/users", Trouble::Synapse(403, "x", "x")).always());
    assert_eq!(token(&own_token).await, first);
    assert_eq!(token(&own_token).await, first);
    let asked = mas.internal.count("GET", "/api/admin/v1/users");
    assert_eq!(asked, 2, "once to issue it, once to renew it, and not again within a minute");
    mas.internal.no_more_faults();
    let (clock, ahead) = self::clock();
    ahead.store(17 * 60, Ordering::Relaxed);
    let restarted = mas.own_token_at("state", clock, Expiry::default());
    let second = token(&restarted).await;
    assert_ne!(second, first);
    assert_eq!(mas.issued(), (1, 1));
    let (clock, ahead) = self::clock();
    ahead.store(18 * 60, Ordering::Relaxed);
    let kept = mas.own_token_at("state", clock, Expiry::default());
    assert_eq!(token(&kept).await, second, "the renewed one is kept");
}

#[tokio::test]
async fn a_lost_response_leaves_no_second_session() {
    let mas = setup();
    mas.internal.fault(Fault::new("POST", SESSIONS, Trouble::CutAfter));
    let own_token = mas.own_token();
    let lost = error(&mas, &own_token).await;
    assert!(lost.contains("the response was lost"), "{lost}");
    // Also not after a restart: the device is kept before the session exists.
    mas.internal.fault(Fault::new("POST", SESSIONS, Trouble::CutAfter));
    let restarted = mas.own_token();
    let lost = error(&mas, &restarted).await;
    assert!(lost.contains("/regenerate: the response was lost"), "{lost}");
    let issued = token(&restarted).await;
    assert_eq!(mas.issued().0, 1);
    let current = mas
        .homeserver
        .world(|world| world.auth_service.sessions.values().next().unwrap().token.clone());
    assert_eq!(issued, current);
}

#[tokio::test]
async fn each_state_directory_has_a_session_of_its_own_and_processes_share_that_of_theirs() {
    let mas = setup();
    std::fs::create_dir_all(mas.program.path("other")).unwrap();
    let one = mas.own_token();
    let other = mas.own_token_at("other", Clock::system(), Expiry::default());
    let second_process = mas.own_token();
    let (first, another, shared) = tokio::join!(token(&one), token(&other), token(&second_process));
    assert_eq!(first, shared);
    assert_ne!(first, another);
    assert_eq!(mas.issued(), (2, 0));
    let valid = mas.homeserver.world(|world| {
        let sessions = world.auth_service.sessions.values();
        sessions.map(|session| session.token.clone()).collect::<Vec<_>>()
    });
    assert!(valid.contains(&first) && valid.contains(&another));
}

#[tokio::test]
async fn many_requests_at_once_issue_one_token() {
    let mas = setup();
    let own_token = mas.own_token();
    let tokens = futures_util::future::join_all((0..20).map(|_| token(&own_token))).await;
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(mas.issued(), (1, 0));
}

#[tokio::test]
async fn a_homeserver_that_hangs_while_it_asks_mas_is_told_to_wait_for_it() {
    let mas = setup();
    let config = mas.program.read("microglia.toml");
    let config = config.replace("request_timeout = \"5s\"", "request_timeout = \"1s\"");
    mas.program.write("microglia.toml", &config);
    let whoami = "/_matrix/client/v3/account/whoami";
    mas.homeserver.fault(Fault::new("GET", whoami, Trouble::Hang).always());
    let synapse = mas.synapse(mas.own_token());
    let error = synapse.whoami().await.unwrap_err();
    insta::assert_snapshot!(mas.text(&error));
    // Each attempt has a connection of its own, and the next one works as soon as MAS responds.
    let requests = mas.homeserver.requests();
    let requests = requests.iter().filter(|seen| seen.path == whoami);
    let connections: Vec<u64> = requests.map(|seen| seen.connection).collect();
    let different: BTreeSet<&u64> = connections.iter().collect();
    assert_eq!((different.len(), connections.len()), (4, 4));
    mas.homeserver.no_more_faults();
    assert_eq!(synapse.whoami().await.unwrap().user_id, "@microglia:fake.test");
    // Neither a request without a token nor one to MAS itself waits for that.
    mas.homeserver.fault(Fault::new("GET", "/", Trouble::Hang).always());
    let reader = mas.reader();
    let (synapse, mas_itself) = tokio::join!(synapse.version(), reader.version());
    insta::assert_snapshot!(format!("{}\n{}", synapse.unwrap_err(), mas_itself.unwrap_err()), @r"
    GET /_synapse/admin/v1/server_version: the response was lost: no response within the timeout
    GET /api/admin/v1/version: the response was lost: no response within the timeout
    ");
}

#[tokio::test]
async fn a_session_that_was_revoked_is_replaced_for_the_request_that_notices_it() {
    let mas = setup();
    let synapse = mas.synapse(mas.own_token());
    synapse.whoami().await.unwrap();
    mas.homeserver.world(|world| {
        for session in world.auth_service.sessions.values_mut() {
            session.revoked_at = Some("2026-11-24T15:50:10Z".to_owned());
        }
    });
    // A token that was just issued may be refused from Synapse's memory: that is waited for first.
    synapse.whoami().await.unwrap();
    assert_eq!(mas.issued(), (2, 0));
    let restarted = mas.synapse(mas.own_token());
    mas.homeserver.world(|world| {
        for session in world.auth_service.sessions.values_mut() {
            session.revoked_at = Some("2026-11-24T15:50:10Z".to_owned());
        }
    });
    restarted.whoami().await.unwrap();
    assert_eq!(mas.issued(), (3, 0));
}

#[tokio::test]
async fn a_refusal_that_synapse_remembers_is_waited_out_once() {
    const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
    let mas = setup();
    // Longer than it takes until the token is refused.
    let refusals_cached_for = Duration::from_secs(5);
    let settings = mas.settings("state", Clock::system(), Expiry::default());
    let own_token = OwnToken::new(OwnTokenSettings { refusals_cached_for, ..settings });
    token(&own_token).await;
    mas.homeserver.world(|world| {
        for user in world.auth_service.users.values_mut() {
            user.locked_at = Some("2026-11-24T15:50:10Z".to_owned());
        }
    });
    let unlock: fn(&mut World) = |world| {
        let service = &mut world.auth_service;
        service.users.values_mut().for_each(|user| user.locked_at = None);
        service.introspection_life = Duration::ZERO;
    };
    mas.homeserver.fault(Fault::new("GET", WHOAMI, Trouble::Then(unlock)));
    mas.synapse(own_token).whoami().await.unwrap();
    assert_eq!(mas.issued(), (1, 0));
    assert_eq!(mas.homeserver.count("GET", WHOAMI), 2);
}

#[tokio::test]
async fn an_account_that_can_have_no_token_is_not_asked_about_again_within_a_minute() {
    let mas = setup();
    mas.homeserver.world(|world| {
        for user in world.auth_service.users.values_mut() {
            user.locked_at = Some("2026-11-24T15:50:10Z".to_owned());
        }
    });
    let own_token = mas.own_token();
    insta::assert_snapshot!(error(&mas, &own_token).await, @"the account `microglia` is locked in MAS: unlock it, or use another one");
    error(&mas, &own_token).await;
    assert_eq!(mas.internal.count("GET", "/api/admin/v1/users"), 1);
    mas.homeserver.world(|world| world.auth_service.users.clear());
    insta::assert_snapshot!(error(&mas, &mas.own_token()).await, @"MAS has no account `microglia`: create it (mas-cli manage register-user microglia), or correct `account` in [homeservers.main.mas]");
    assert_eq!(mas.issued(), (0, 0));
}

#[tokio::test]
async fn a_token_of_another_account_is_not_used_after_a_change_of_the_configuration() {
    let mas = setup();
    let first = token(&mas.own_token()).await;
    mas.homeserver.world(|world| world.auth_service.user("other"));
    let config = mas.program.read("microglia.toml");
    mas.program
        .write("microglia.toml", &config.replace("account = \"microglia\"", "account = \"other\""));
    assert_ne!(token(&mas.own_token()).await, first);
    assert_eq!(mas.issued(), (2, 0));
}

#[tokio::test]
async fn a_link_in_place_of_the_token_file_is_not_followed() {
    let mas = setup();
    mas.program.write("target", "untouched");
    std::fs::create_dir(mas.program.path("state/tokens")).unwrap();
    std::os::unix::fs::symlink(mas.program.path("target"), mas.program.path("state/tokens/main"))
        .unwrap();
    insta::assert_snapshot!(error(&mas, &mas.own_token()).await, @"cannot keep the program's own token in STATE/tokens/main: there is a link or another kind of file: remove it");
    assert_eq!(mas.program.read("target"), "untouched");
    assert_eq!(mas.issued(), (0, 0));
}

#[tokio::test]
async fn a_daemon_issues_its_token_shows_its_expiry_and_starts_again_while_mas_is_down() {
    let mas = setup();
    let daemon = mas.program.serve().await;
    until("the expiry", 20, async || daemon.metric(EXPIRY, &["main"]).await.is_some()).await;
    let log = daemon.stop().await;
    assert!(log.contains("the access token was issued; it is valid until"), "{log}");
    assert!(!log.contains("mpt_"), "{log}");
    mas.internal.go_down();
    mas.public.go_down();
    let daemon = mas.program.serve().await;
    until("the token", 20, async || {
        daemon.metric("microglia_homeserver_token_valid", &["main"]).await == Some(1.0)
    })
    .await;
    assert!(daemon.metric(EXPIRY, &["main"]).await.is_some());
    daemon.stop().await;
    assert_eq!(mas.issued(), (1, 0));
}

#[tokio::test]
async fn a_token_that_is_replaced_during_a_run_of_a_thousand_changes_fails_none_and_repeats_none() {
    let mas = with_thousand_to_join();
    // The token is that of an earlier process.
    token(&mas.own_token()).await;
    let run = mas.program.apply("sweep");
    let renew = async {
        until("half of the joins", 60, async || mas.homeserver.count("POST", JOIN) > 500).await;
        mas.homeserver.world(|world| {
            for session in world.auth_service.sessions.values_mut() {
                session.revoked_at = Some("2026-11-24T15:50:10Z".to_owned());
            }
        });
    };
    let (report, ()) = tokio::join!(run, renew);
    assert_eq!(figures(&report), "succeeded: 1000/1000/0/0/0");
    assert_eq!(mas.issued(), (2, 0));
    let sent = mas.homeserver.count("POST", JOIN);
    assert!((1000..=1004).contains(&sent), "{sent}: only what was refused is sent again");
}

/// A thousand accounts, and the job `sweep` that joins them to a room.
fn with_thousand_to_join() -> Setup {
    let mas = setup();
    mas.homeserver.world(|world| {
        world.users(1000, |_| crate::fake::User::default());
        world.room("!lobby:fake.test");
    });
    let config = mas.program.read("microglia.toml");
    let fast = "max_joins_per_second = \"unlimited\"\nrequest_timeout";
    let config = config.replace("request_timeout", fast);
    mas.program.write(
        "microglia.toml",
        &format!("{config}\n[jobs.sweep]\nkind = \"join-rooms\"\nmode = \"apply\"\nrooms = [\"!lobby:fake.test\"]\njoins_per_second = 1000\n"),
    );
    mas
}

#[tokio::test]
async fn a_token_that_is_renewed_during_a_run_of_a_thousand_changes_fails_none_and_repeats_none() {
    let mas = with_thousand_to_join();
    let (clock, ahead) = clock();
    let own_token = mas.own_token_at("state", clock, Expiry::default());
    let transport = mas.transport(own_token);
    let run = in_process::run_over(transport, &mas.program, "sweep", Mode::Apply);
    let renew = async {
        until("half of the joins", 60, async || mas.homeserver.count("POST", JOIN) > 500).await;
        ahead.store(17 * 60, Ordering::Relaxed);
    };
    let (ran, ()) = tokio::join!(run, renew);
    assert_eq!(figures(&ran.report), "succeeded: 1000/1000/0/0/0");
    assert_eq!(mas.issued(), (1, 1));
    assert_eq!(mas.homeserver.count("POST", JOIN), 1000);
    let requests = mas.homeserver.requests();
    let renewed = requests.iter().position(|seen| seen.path.ends_with("/regenerate")).unwrap();
    let later = requests[renewed..].iter().filter(|seen| seen.path.starts_with(JOIN)).count();
    assert!(later > 0, "the run was over");
}

#[tokio::test]
async fn requests_that_wait_for_a_renewal_share_its_failure() {
    let mas = setup();
    mas.internal.fault(Fault::new("POST", SESSIONS, Trouble::Proxy(502)).always());
    let own_token = mas.own_token();
    let all = futures_util::future::join_all((0..20).map(|_| own_token.token())).await;
    assert!(all.iter().all(Result::is_err));
    assert_eq!(mas.internal.count("POST", SESSIONS), 1);
    // It may pass, so that the next request asks again.
    mas.internal.no_more_faults();
    token(&own_token).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_by_another_process_is_waited_for_and_then_an_error_that_may_pass() {
    let mas = setup();
    std::fs::create_dir(mas.program.path("state/tokens")).unwrap();
    let lock = std::fs::File::create(mas.program.path("state/tokens/.main.lock")).unwrap();
    lock.lock().unwrap();
    let why = mas.own_token().token().await.unwrap_err();
    assert!(matches!(why, NoToken::Busy(_)), "{why:?}");
    let state = mas.program.path("state").display().to_string();
    insta::assert_snapshot!(why.to_string().replace(&state, "STATE"), @"another process of microglia has been renewing the access token in STATE/tokens/main for two minutes");
    assert_eq!(mas.internal.requests().len(), 0);
}

#[tokio::test]
async fn a_state_directory_that_does_not_exist_is_named_with_what_to_do() {
    let mas = setup();
    std::fs::remove_dir(mas.program.path("state")).unwrap();
    insta::assert_snapshot!(error(&mas, &mas.own_token()).await, @"cannot keep the program's own token in STATE/tokens/main: No such file or directory (os error 2). Run microglia as the owner of the state directory, which must exist");
}
