//! `microglia login`: against a real Synapse, and against a fake for what that cannot be made to do.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::fake::{Fake, Fault, TOKEN, Trouble};
use crate::homeserver::{Account, Synapse, encoded};
use crate::program::{Output, Program};
use crate::terminal::Terminal;

/// Of every account of the fixture.
const PASSWORD: &str = "wordpass";
const NOBODY: u32 = 65534;

fn program(url: &str) -> Program {
    Program::new(url, "the-previous-token", "")
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn mode(program: &Program) -> u32 {
    std::fs::metadata(program.path("token")).unwrap().permissions().mode() & 0o7777
}

/// The new token, which must not have been printed.
fn new_token(program: &Program, output: &Output) -> String {
    assert_eq!(output.code, 0, "{output:?}");
    let token = program.read("token").trim_end().to_owned();
    assert_ne!(token, "the-previous-token");
    assert_no_secret(output, &[&token, PASSWORD]);
    token
}

fn assert_no_secret(output: &Output, secrets: &[&str]) {
    for secret in secrets {
        assert!(!format!("{output:?}").contains(secret), "{secret} is in {output:?}");
    }
}

async fn whoami(synapse: &Synapse, token: &str) -> (u16, Value) {
    let account = Account { user_id: String::new(), token: token.to_owned() };
    synapse.client(&account, Method::GET, "/_matrix/client/v3/account/whoami", Value::Null).await
}

async fn devices(synapse: &Synapse, user_id: &str) -> Vec<String> {
    let path = format!("/_synapse/admin/v2/users/{}/devices", encoded(user_id));
    let devices = synapse.get(&path).await;
    let ids = devices["devices"].as_array().unwrap().iter();
    ids.map(|device| device["device_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_login_writes_the_token_a_second_one_adds_no_device_and_a_logout_ends_it() {
    let synapse = Synapse::start().await;
    let program = program(&synapse.url);
    let before = devices(&synapse, &synapse.admin.user_id).await;
    let login = program.run_with_input(&["login", "--user", "admin"], "wordpass\n").await;
    let first = new_token(&program, &login);
    assert_eq!((mode(&program), program.read("token").matches('\n').count()), (0o600, 1));
    let (_, account) = whoami(&synapse, &first).await;
    assert_eq!(account["user_id"], synapse.admin.user_id.as_str());
    assert_eq!(account["device_id"], "MICROGLIA");
    insta::assert_snapshot!(login.stderr, @"logged in as @admin:hs.test, device MICROGLIA");

    let login =
        program.run_with_input(&["login", "main", "--user", "@admin:hs.test"], "wordpass").await;
    let second = new_token(&program, &login);
    assert_ne!(first, second);
    assert_eq!(whoami(&synapse, &first).await.0, 200, "Synapse ends a token with its device only");
    assert_eq!(devices(&synapse, &synapse.admin.user_id).await.len(), before.len() + 1);
    let check = program.run(&["check", "--online"]).await;
    assert!(check.stdout.contains("main: token valid: yes, of @admin:hs.test"), "{check:?}");

    let logout = program.run(&["login", "--logout"]).await;
    assert_eq!((logout.code, logout.stderr.as_str()), (0, ""));
    let file = program.path("token");
    assert_eq!(logout.stdout, format!("ended the session, and deleted {}\n", file.display()));
    assert!(!file.exists());
    for token in [first, second] {
        assert_eq!(whoami(&synapse, &token).await.0, 401);
    }
    assert_eq!(devices(&synapse, &synapse.admin.user_id).await, before);
    let logout = program.run(&["login", "--logout"]).await;
    assert_eq!(logout.code, 1);
    assert!(logout.stderr.contains("there is no session to end"), "{logout:?}");
}

#[tokio::test]
async fn who_cannot_log_in_or_is_no_server_admin_keeps_the_previous_token() {
    let synapse = Synapse::start().await;
    let program = program(&synapse.url);
    let plain = synapse.register("plain").await;
    let before = devices(&synapse, &plain.user_id).await;
    let wrong = program.run_with_input(&["login", "--user", "admin"], "wrong\n").await;
    assert_eq!(wrong.code, 1);
    insta::assert_snapshot!(wrong.stderr, @"error: the homeserver refused the login: Invalid username or password (M_FORBIDDEN)");
    let not_admin = program.run_with_input(&["login", "--user", "plain"], "wordpass\n").await;
    assert_eq!(not_admin.code, 1);
    insta::assert_snapshot!(not_admin.stderr, @r#"
    logged out @plain:hs.test
    error: @plain:hs.test is not a server admin. Make it one, and log in again: as another server admin with
      PUT /_synapse/admin/v1/users/@plain:hs.test/admin and the body {"admin": true}
    or in Synapse's database, followed by a restart of Synapse, with
      UPDATE users SET admin = 1 WHERE name = '@plain:hs.test';
    "#);
    assert_eq!(devices(&synapse, &plain.user_id).await, before, "the session was ended again");
    let empty = program.run_with_input(&["login", "--user", "admin"], "\n").await;
    assert_eq!((empty.code, empty.stderr.as_str()), (2, "error: the password on stdin is empty\n"));
    let nothing = program.run_with_input(&["login", "--user", "admin"], "").await;
    assert_eq!(
        (nothing.code, nothing.stderr.as_str()),
        (2, "error: the password is missing: write it to stdin\n")
    );
    let long = program.run_with_input(&["login", "--user", "admin"], &"x".repeat(100_000)).await;
    assert_eq!(
        (long.code, long.stderr.as_str()),
        (1, "error: the line on stdin is longer than 16 KiB\n")
    );
    assert_eq!(program.read("token"), "the-previous-token");
    let left = std::fs::read_dir(program.path("")).unwrap().count();
    assert_eq!(left, 2, "only the configuration and the token");
}

#[tokio::test]
async fn a_login_that_fails_late_leaves_the_session_of_the_previous_token_alone() {
    let synapse = Synapse::start().await;
    let program = program(&synapse.url);
    let login = program.run_with_input(&["login", "--user", "admin"], "wordpass\n").await;
    let token = new_token(&program, &login);
    let other = synapse.register_admin("other").await;
    let path = "/_synapse/admin/v1/users/%40admin%3Ahs.test/admin";
    let (status, _) = synapse.client(&other, Method::PUT, path, json!({ "admin": false })).await;
    assert_eq!(status, 200);
    let again = program.run_with_input(&["login", "--user", "admin"], "wordpass\n").await;
    assert_eq!(again.code, 1, "{again:?}");
    assert!(
        again.stderr.starts_with("the device MICROGLIA of @admin:hs.test existed before"),
        "{again:?}"
    );
    assert_eq!(program.read("token").trim_end(), token);
    assert_eq!(whoami(&synapse, &token).await.0, 200);
}

#[tokio::test]
async fn a_rate_limit_is_announced_and_waited_for() {
    let limited = "rc_login: {address: {per_second: 0.5, burst_count: 1}, account: {per_second: 0.5, burst_count: 1}}\n";
    let synapse = Synapse::with_config(limited).await;
    let program = program(&synapse.url);
    for attempt in 0..3 {
        let login = program.run_with_input(&["login", "--user", "admin"], "wordpass\n").await;
        new_token(&program, &login);
        let waited =
            login.stderr.contains("the homeserver limits logins (rc_login): trying again in");
        if attempt > 0 && waited {
            return;
        }
    }
    panic!("none of three logins was limited: {:?}", synapse.requests());
}

#[tokio::test]
async fn a_wait_of_hours_is_an_error_and_a_response_without_a_session_shows_nothing_of_it() {
    let fake = Fake::start();
    let program = program(&fake.url());
    let trouble = Trouble::Limited { retry_after_ms: Some(3_600_000), retry_after_header: None };
    fake.fault(Fault::new("POST", "/_matrix/client/v3/login", trouble));
    let limited =
        program.run_with_input(&["login", "--user", "microglia"], "secret-password\n").await;
    assert_eq!(limited.code, 1);
    insta::assert_snapshot!(limited.stderr, @"error: the homeserver limits logins (rc_login) and demands another 1 h: try again then");
    let body = r#"{"user_id": 5, "access_token": "secret-token"}"#.to_owned();
    let trouble = Trouble::Answer { status: 200, headers: vec![], body };
    fake.fault(Fault::new("POST", "/_matrix/client/v3/login", trouble));
    let invalid =
        program.run_with_input(&["login", "--user", "microglia"], "secret-password\n").await;
    assert_eq!(invalid.code, 1);
    insta::assert_snapshot!(invalid.stderr, @"error: POST /_matrix/client/v3/login: cannot decode the response (line 1 column 13): not shown, because it may contain a token");
    assert_no_secret(&limited, &["secret-password"]);
    let sent = fake.requests().into_iter().filter(|seen| seen.method == "POST");
    assert_eq!(sent.filter(|seen| seen.authorization_present).count(), 0);
    assert_eq!(program.read("token"), "the-previous-token");
}

#[tokio::test]
async fn on_a_terminal_the_password_is_not_shown_and_ctrl_c_changes_nothing() {
    let synapse = Synapse::start().await;
    let program = program(&synapse.url);
    let mut terminal = Terminal::start(&program, &["login"]);
    terminal.answer("User name of a server admin [microglia]: ", "admin");
    terminal.expect("Password (not shown): ");
    assert!(!terminal.echoes());
    terminal.press("\x03");
    assert_eq!(terminal.end(), 1);
    assert!(terminal.echoes(), "the terminal is as before");
    assert_eq!(program.read("token"), "the-previous-token");

    let mut terminal = Terminal::start(&program, &["login", "--user", "admin"]);
    terminal.answer("Password (not shown): ", PASSWORD);
    assert_eq!(terminal.end(), 0, "{}", terminal.screen());
    terminal.expect("wrote the access token to");
    assert!(!terminal.screen().contains(PASSWORD), "{}", terminal.screen());
    let (status, _) = whoami(&synapse, program.read("token").trim_end()).await;
    assert_eq!(status, 200);
}

/// A CAS server that vouches for `admin`, for one ticket.
async fn cas() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 8192]).await;
            let body = "<cas:serviceResponse xmlns:cas=\"http://www.yale.edu/tp/cas\"><cas:authenticationSuccess><cas:user>admin</cas:user></cas:authenticationSuccess></cas:serviceResponse>";
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn sso_ends_with_a_redirect_to_this_machine() {
    let cas = cas().await;
    let sso = format!(
        "cas_config: {{enabled: true, server_url: \"{cas}\"}}\npassword_config: {{enabled: false}}\nsso: {{client_whitelist: [\"http://127.0.0.1:\"]}}\npublic_baseurl: \"http://hs.test/\"\n"
    );
    let synapse = Synapse::with_config(&sso).await;
    let program = program(&synapse.url);
    let mut child = program.command(&["login"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let url = loop {
        let line = lines.next_line().await.unwrap().expect("it prints a URL");
        if let Some(url) = line.trim().strip_prefix("http") {
            break format!("http{url}");
        }
    };
    // What a browser does: it follows redirects, and has cookies.
    let browser =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let (mut at, mut cookies, mut last) =
        (reqwest::Url::parse(&url).unwrap(), Vec::new(), String::new());
    for _ in 0..10 {
        if at.as_str().starts_with(&cas) {
            let service =
                at.query_pairs().find(|(name, _)| name == "service").unwrap().1.into_owned();
            at = reqwest::Url::parse(&service).unwrap();
            at.query_pairs_mut().append_pair("ticket", "ST-1");
        }
        let mut request = browser.get(at.clone());
        // The public name, which .well-known says, leads to Synapse.
        if at.host_str() == Some("hs.test") {
            let query = at.query().unwrap_or_default();
            request = browser
                .get(format!("{}{}?{query}", synapse.url, at.path()))
                .header("host", "hs.test");
        }
        let request = request.header("cookie", cookies.join("; "));
        #[expect(clippy::disallowed_methods, reason = "the test plays the browser")]
        let response = request.send().await.unwrap();
        for cookie in response.headers().get_all("set-cookie") {
            cookies.push(cookie.to_str().unwrap().split(';').next().unwrap().to_owned());
        }
        let Some(next) = response.headers().get("location") else {
            last = response.text().await.unwrap();
            break;
        };
        at = at.join(next.to_str().unwrap()).unwrap();
        // A request with another path gets nothing, and ends nothing.
        if at.query().is_some_and(|query| query.contains("loginToken")) {
            let mut wrong = at.clone();
            wrong.set_path("/");
            #[expect(clippy::disallowed_methods, reason = "the test plays a stranger")]
            let response = browser.get(wrong).send().await.unwrap();
            assert_eq!(response.status(), 404);
        }
    }
    insta::assert_snapshot!(last, @"microglia has received the login. Close this page and return to the terminal.");
    let output = child.wait_with_output().await.unwrap();
    let rest = {
        let mut rest = String::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            rest.push_str(&line);
        }
        rest
    };
    assert!(output.status.success(), "{rest}");
    let token = program.read("token");
    let (_, account) = whoami(&synapse, token.trim_end()).await;
    assert_eq!(account["device_id"], "MICROGLIA", "{account}");
    let login_token =
        at.query_pairs().find(|(name, _)| name == "loginToken").unwrap().1.into_owned();
    for secret in [token.trim_end(), &login_token] {
        assert!(
            !rest.contains(secret) && !String::from_utf8_lossy(&output.stdout).contains(secret)
        );
    }
}

#[tokio::test]
async fn under_mas_the_settings_are_printed_and_nothing_is_sent_to_log_in() {
    let fake = Fake::start();
    fake.world(|world| world.mas = true);
    let program = program(&fake.url());
    let login = program.run_with_input(&["login", "--user", "microglia"], "secret\n").await;
    assert_eq!(login.code, 1);
    insta::assert_snapshot!(login.stderr, @"error: no login at homeserver `main`: the Matrix Authentication Service (MAS) manages its accounts. The daemon issues its own token there, once [homeservers.main.mas] is configured as above");
    for part in [
        "  - client_id: 0",
        "    client_auth_method: client_secret_basic",
        "  data:\n    admin_clients:\n      - 0",
        "        - name: adminapi\n        - name: oauth\n        - name: discovery\n        - name: health",
        "        - host: 127.0.0.1\n          port: 8081",
        "[homeservers.main.mas]\nurl = \"https://auth.fake.test/\"\nadmin_url = \"http://127.0.0.1:8081\"\nclient_id = \"0",
        "client_secret_file = \"mas-client-secret\"\naccount = \"microglia\"",
    ] {
        assert!(login.stdout.contains(part), "{part} is not in {}", login.stdout);
    }
    fake.fault(
        Fault::new(
            "GET",
            "/_matrix/client/v1/auth_metadata",
            Trouble::Synapse(500, "M_UNKNOWN", "Internal server error"),
        )
        .always(),
    );
    let down = program.run_with_input(&["login", "--user", "microglia"], "secret\n").await;
    assert_eq!(down.code, 1);
    assert!(down.stdout.contains("url = \"https://account.example.com\""), "{down:?}");
    assert_eq!(fake.count("POST", "/"), 0);
    assert_eq!(program.read("token"), "the-previous-token");
}

#[tokio::test]
async fn where_mas_is_configured_login_prints_what_mas_needs_for_this_client() {
    let program = Program::with_config(
        "[homeservers.main]\nurl = \"http://127.0.0.1:1\"\n[homeservers.main.mas]\nurl = \"http://127.0.0.1:1\"\nclient_id = \"01J44RKQYM4G3TNVANTMTDYTX6\"\nclient_secret = \"secret\"\naccount = \"microglia\"\n",
    );
    for arguments in [&["login", "--user", "microglia"][..], &["login", "--logout"]] {
        let login = program.run(arguments).await;
        assert_eq!(login.code, 1);
        insta::allow_duplicates! {
            insta::assert_snapshot!(login.stderr, @"error: no login at homeserver `main`: with [homeservers.main.mas], the daemon issues its own token. `microglia check --online` says whether it can");
        }
        for part in ["- client_id: 01J44RKQYM4G3TNVANTMTDYTX6", "admin_clients:", "port: 8081"] {
            assert!(login.stdout.contains(part), "{part} is not in {}", login.stdout);
        }
    }
}

#[tokio::test]
async fn what_login_cannot_do_is_a_usage_error_with_the_fix() {
    let fake = Fake::start();
    let url = fake.url();
    let inline = Program::with_config(&format!(
        "[homeservers.main]\nurl = \"{url}\"\naccess_token = \"inline-secret\"\n"
    ));
    let output = inline.run_with_input(&["login", "--user", "x"], "y\n").await;
    assert_eq!(output.code, 2);
    insta::assert_snapshot!(output.stderr, @r#"error: the configuration itself contains the token of homeserver `main`: in [homeservers.main], replace `access_token = …` by `access_token_file = "token"`"#);
    let two = Program::with_config(&format!(
        "[homeservers.a]\nurl = \"{url}\"\naccess_token_file = \"a\"\n[homeservers.b]\nurl = \"{url}/b\"\naccess_token_file = \"b\"\n"
    ));
    let output = two.run_with_input(&["login", "--user", "x"], "y\n").await;
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (2, "error: name one of the homeservers: a, b\n")
    );
    let output = two.run_with_input(&["login", "c", "--user", "x"], "y\n").await;
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (2, "error: unknown homeserver \"c\" (did you mean \"a\"?)\n")
    );
    let output = two.run_with_input(&["login", "a"], "y\n").await;
    assert_eq!(output.code, 2);
    insta::assert_snapshot!(output.stderr, @"error: the account is missing: add --user NAME, with its password on stdin, or --sso");
    assert_eq!(fake.count("POST", "/"), 0);
}

#[tokio::test]
async fn the_owner_of_the_file_is_kept_and_links_are_not_followed() {
    let synapse = Synapse::start().await;
    let program = program(&synapse.url);
    let other = program.path("other");
    std::fs::write(&other, "do not touch").unwrap();
    std::fs::remove_file(program.path("token")).unwrap();
    symlink(&other, program.path("token")).unwrap();
    let output = program.run_with_input(&["login", "--user", "admin"], "wordpass\n").await;
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("token is a symbolic link, which is not replaced: set `access_token_file` to the file itself"), "{output:?}");
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "do not touch");
    assert_eq!(
        synapse
            .requests()
            .iter()
            .filter(|request| request.contains("POST /_matrix/client/v3/login"))
            .count(),
        0
    );
    std::fs::remove_file(program.path("token")).unwrap();

    let owner = |program: &Program| {
        let file = std::fs::metadata(program.path("token")).unwrap();
        (file.uid(), file.gid())
    };
    if is_root() {
        // As after the installation of the Debian package: the daemon's user owns the state directory, root the rest.
        std::fs::create_dir(program.path("state")).unwrap();
        chown(program.path("state"), Some(NOBODY), Some(NOBODY)).unwrap();
        let output = program.run_with_input(&["login", "--user", "admin"], "wordpass\n").await;
        new_token(&program, &output);
        assert_eq!((owner(&program), mode(&program)), ((NOBODY, NOBODY), 0o600));
        // As with `install -m 640 -g microglia`: the group is how the daemon reads the file.
        chown(program.path("token"), Some(0), Some(NOBODY)).unwrap();
        std::fs::set_permissions(program.path("token"), PermissionsExt::from_mode(0o644)).unwrap();
        let output = program.run_with_input(&["login", "--user", "admin"], "wordpass\n").await;
        new_token(&program, &output);
        assert_eq!((owner(&program), mode(&program)), ((0, NOBODY), 0o640));
    } else {
        program.write("token", "the-previous-token");
        std::fs::set_permissions(program.path("token"), PermissionsExt::from_mode(0o644)).unwrap();
        let output = program.run_with_input(&["login", "--user", "admin"], "wordpass\n").await;
        new_token(&program, &output);
        assert_eq!(mode(&program), 0o600);
    }
}

#[tokio::test]
async fn a_running_daemon_uses_the_new_token_and_a_logout_warns_of_it() {
    let synapse = Synapse::start().await;
    let job = "[jobs.versions]\nkind = \"request\"\nmethod = \"GET\"\npath = \"/_matrix/client/v3/account/whoami\"\nmode = \"apply\"\n";
    let program = Program::new(&synapse.url, &synapse.admin.token, job);
    let daemon = program.serve().await;
    let login = program.run_with_input(&["login", "--user", "admin"], "wordpass\n").await;
    assert_eq!(login.code, 0, "{login:?}");
    assert!(
        login.stdout.contains("the running daemon uses it from its next request on"),
        "{login:?}"
    );
    let run = program.run(&["run", "versions"]).await;
    assert!(run.stdout.contains("MICROGLIA"), "{run:?}");
    let logout = program.run(&["login", "--logout"]).await;
    assert_eq!(logout.code, 0, "{logout:?}");
    insta::assert_snapshot!(logout.stderr, @"warning: a daemon is running, and jobs on homeserver `main` will fail until it has a token again: microglia login");
    daemon.kill().await;
}

#[tokio::test]
async fn a_token_that_is_not_valid_any_more_is_deleted_and_one_that_cannot_be_ended_is_kept() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, "");
    fake.fault(Fault::new("POST", "/_matrix/client/v3/logout", Trouble::Proxy(502)));
    let kept = program.run(&["login", "--logout"]).await;
    assert_eq!(kept.code, 1);
    assert!(kept.stderr.contains("502") && kept.stderr.contains("token was kept"), "{kept:?}");
    assert!(program.path("token").exists());
    let body =
        json!({"errcode": "M_UNKNOWN_TOKEN", "error": "Invalid access token passed."}).to_string();
    let trouble = Trouble::Answer { status: 401, headers: vec![], body };
    fake.fault(Fault::new("POST", "/_matrix/client/v3/logout", trouble));
    let deleted = program.run(&["login", "--logout"]).await;
    assert_eq!(deleted.code, 0, "{deleted:?}");
    assert!(
        deleted.stdout.starts_with("the session had ended already, and deleted "),
        "{deleted:?}"
    );
    assert!(!program.path("token").exists());
}
