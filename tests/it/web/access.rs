//! Who may see and do what: sessions, cookies, CSRF tokens, and headers.

use super::*;

const PAGES: [&str; 8] =
    ["/", "/jobs/lobby", "/runs", "/runs/1", "/login", "/jobs/none", "/runs/99", "/runs/x"];

#[tokio::test]
async fn every_page_forbids_what_it_does_not_use_and_is_not_kept() {
    let (fake, jobs) = (with_lobby(2), LOBBY);
    let program = program(&fake, jobs);
    let daemon = program.serve().await;
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    let visitor = Visitor::sign_in(&daemon).await;
    for path in PAGES.into_iter().chain(["/reload", "/pause", "/jobs/lobby/run"]) {
        for page in [get(&daemon, path).await, visitor.get(path).await] {
            let policy = page.header("content-security-policy").unwrap();
            for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
                assert!(policy.contains(part) && !policy.contains("unsafe"), "{path}: {policy}");
            }
            assert_eq!(page.header("x-content-type-options"), Some("nosniff"), "{path}");
            assert_eq!(page.header("referrer-policy"), Some("same-origin"), "{path}");
            assert_eq!(page.header("cache-control"), Some("no-store"), "{path}");
            for inline in [" style=", "<style", "<script>", " onclick", "javascript:", "src=\"http"]
            {
                assert!(!page.body.contains(inline), "{path} has {inline}: {}", page.body);
            }
            assert!(page.body.len() < 50_000, "{path}: {}", page.body.len());
        }
    }
    let page = get(&daemon, "/").await;
    let loaded = page.body.split('"').filter(|text| text.starts_with("/static/"));
    for path in loaded {
        let file = get(&daemon, path).await;
        assert_eq!(file.status, 200, "{path}");
        assert!(file.header("cache-control").unwrap().contains("immutable"), "{path}");
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"), "{path}");
    }
    assert_eq!(get(&daemon, "/static/page.html").await.status, 404);
    daemon.stop().await;
}

#[tokio::test]
async fn names_of_people_are_shown_only_to_who_is_signed_in() {
    let fake = with_lobby(2);
    fake.world(|world| {
        world.room("!lobby:fake.test").banned("@user000001:fake.test", "@microglia:fake.test");
    });
    let jobs = format!("{LOBBY}except_users = [\"@user000009:fake.test\"]\n");
    let program = program(&fake, &jobs);
    let daemon = program.serve().await;
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    program.sql("UPDATE runs SET message = '@somebody:fake.test is banned', outcome = 'failed' WHERE id = 1").await;
    let paths = ["/", "/jobs/lobby", "/runs", "/runs/1", "/runs/2"];
    for path in paths {
        let page = get(&daemon, path).await;
        assert_eq!(page.status, 200, "{path}");
        assert!(!page.body.contains("fake.test"), "{path}: {}", page.body);
    }
    let visitor = Visitor::sign_in(&daemon).await;
    let shown = ["/jobs/lobby", "/runs", "/runs/1", "/runs/2"];
    for path in shown {
        let page = visitor.get(path).await;
        assert!(page.body.contains(":fake.test"), "{path}: {}", page.body);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_session_is_opened_by_the_admin_token_and_ended_by_signing_out_another_token_or_a_restart()
 {
    let program = program(&with_lobby(1), LOBBY);
    let daemon = program.serve().await;
    let wrong = send(&daemon, "POST", "/login", &[], "token=wrong&next=/runs").await;
    assert_eq!(wrong.status, 401);
    assert!(wrong.body.contains("This is not the admin token."), "{}", wrong.body);
    assert!(wrong.header("set-cookie").is_none());
    assert_eq!(daemon.metric("microglia_login_failures_total", &[]).await, Some(1.0));
    let right = format!("token={ADMIN_TOKEN}&next=/runs%3Fjob%3Dlobby");
    let page = send(&daemon, "POST", "/login", &[], &right).await;
    assert_eq!(page.location(), "/runs?job=lobby");
    let cookie = page.header("set-cookie").unwrap();
    for part in ["microglia_session=", "httponly", "samesite=strict", "path=/", "max-age=43200"] {
        assert!(cookie.contains(part) && !cookie.contains("secure"), "{cookie}");
    }
    let proxied = [("X-Forwarded-Proto", "https")];
    let page = send(&daemon, "POST", "/login", &proxied, &right).await;
    assert!(page.header("set-cookie").unwrap().contains("; secure"), "{}", page.head);
    let elsewhere = send(&daemon, "POST", "/login", &[], &format!("{right}&next=//evil")).await;
    assert!(matches!(elsewhere.status, 303 | 400 | 422), "{}", elsewhere.status);

    let visitor = Visitor::sign_in(&daemon).await;
    let is_signed_in =
        async |visitor: &Visitor<'_>| visitor.get("/").await.body.contains("Sign out");
    assert!(is_signed_in(&visitor).await);
    assert_eq!(visitor.post("/logout", "csrf=wrong").await.status, 403);
    assert!(is_signed_in(&visitor).await);
    let out = visitor.post("/logout", &format!("csrf={}", visitor.csrf)).await;
    assert!(out.header("set-cookie").unwrap().contains("max-age=0"), "{}", out.head);
    assert!(!is_signed_in(&visitor).await);

    let visitor = Visitor::sign_in(&daemon).await;
    program.write("admin-token", "another-secret-of-the-tests\n");
    assert!(!is_signed_in(&visitor).await, "another token");
    program.write("admin-token", &format!("{ADMIN_TOKEN}\n"));
    assert!(!is_signed_in(&visitor).await, "the session does not come back");
    let Visitor { cookie, csrf, .. } = Visitor::sign_in(&daemon).await;
    daemon.stop().await;
    let daemon = program.serve().await;
    assert!(!is_signed_in(&Visitor { daemon: &daemon, cookie, csrf }).await, "a restart");
    daemon.stop().await;
}

#[tokio::test]
async fn what_acts_requires_a_session_its_csrf_token_and_a_page_of_the_daemon() {
    let fake = with_lobby(1);
    let program = program(&fake, LOBBY);
    let daemon = program.serve().await;
    let visitor = Visitor::sign_in(&daemon).await;
    let paths = [
        "/jobs/lobby/run",
        "/jobs/lobby/cancel",
        "/runs/1/apply",
        "/pause",
        "/resume",
        "/reload",
        "/logout",
    ];
    for path in paths {
        let csrf = format!("csrf={}", visitor.csrf);
        assert_eq!(
            send(&daemon, "POST", path, &[], &csrf).await.status,
            401,
            "{path} without a session"
        );
        for body in ["", "csrf=", "csrf=0"] {
            assert_eq!(visitor.post(path, body).await.status, 403, "{path} with {body:?}");
        }
        let foreign = [("Cookie", visitor.cookie.as_str()), ("Origin", "https://evil.example")];
        assert_eq!(send(&daemon, "POST", path, &foreign, &csrf).await.status, 403, "{path}");
        if path != "/logout" {
            let asked = get(&daemon, path).await;
            let expected = if path == "/runs/1/apply" { 404 } else { 303 };
            assert_eq!(asked.status, expected, "{path} asks nobody who is not signed in");
        }
    }
    // The API: the cookie alone does nothing.
    let with = |csrf: &str| {
        [
            ("Cookie".to_owned(), visitor.cookie.clone()),
            ("X-CSRF-Token".to_owned(), csrf.to_owned()),
        ]
    };
    for (csrf, status) in [("", 403), ("wrong", 403), (visitor.csrf.as_str(), 200)] {
        let headers = with(csrf);
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            send(&daemon, "POST", "/api/v1/pause", &headers, "").await.status,
            status,
            "{csrf}"
        );
    }
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(1.0));
    let run = visitor.get("/api/v1/jobs").await;
    assert_eq!(run.status, 200, "{}", run.body);
    assert!(program.ended("lobby").await.is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn without_an_admin_token_the_page_says_how_to_set_one() {
    let program = Program::new(&with_lobby(1).url(), TOKEN, LOBBY);
    let daemon = program.serve().await;
    let page = get(&daemon, "/login").await;
    assert!(page.body.contains("daemon.admin_token_file"), "{}", page.body);
    assert_eq!(send(&daemon, "POST", "/login", &[], "token=").await.status, 403);
    assert!(!get(&daemon, "/").await.body.contains("Sign in"));
    daemon.stop().await;
}
