//! `microglia init`: against a real Synapse, and against a fake for what that cannot be made to do.

#![expect(clippy::print_stderr, reason = "a test that can only do a part of it says so")]

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use serde_json::json;

use crate::fake::{Fake, Fault, TOKEN, Trouble};
use crate::homeserver::Synapse;
use crate::program::Program;
use crate::terminal::Terminal;

/// A directory without a configuration; the state is below it.
fn program() -> Program {
    let mut program = Program::with_config("");
    std::fs::remove_file(program.path("microglia.toml")).unwrap();
    let state = program.path("state").to_str().unwrap().to_owned();
    program.environment.push(("STATE_DIRECTORY".to_owned(), state));
    program.environment.push(("TZ".to_owned(), "Europe/Berlin".to_owned()));
    program
}

/// What is in the directory of the configuration.
fn files(program: &Program) -> Vec<String> {
    let files = std::fs::read_dir(program.path("")).unwrap();
    let mut names: Vec<String> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(program: &Program, name: &str) -> u32 {
    std::fs::metadata(program.path(name)).unwrap().permissions().mode() & 0o7777
}

async fn with_lobby() -> Synapse {
    let synapse = Synapse::start().await;
    let room = json!({ "preset": "public_chat", "room_alias_name": "lobby" });
    synapse.create_room(&synapse.admin, room).await;
    let gone = synapse.register("gone").await;
    synapse.external_ids(&gone.user_id, &[("oidc-google", "g-1")]).await;
    synapse
}

#[tokio::test]
async fn options_make_a_checked_configuration_whose_plan_is_shown() {
    let synapse = with_lobby().await;
    let program = program();
    // As the Debian package makes it.
    std::fs::set_permissions(program.path(""), PermissionsExt::from_mode(0o750)).unwrap();
    let arguments = [
        "init",
        "--url",
        &synapse.url,
        "--user",
        "admin",
        "--job",
        "join-rooms",
        "--job",
        "purge-local-media",
        "--job",
        "remove-external-ids",
        "--room",
        "#lobby:hs.test",
        "--provider",
        "oidc-google",
        "--schedule",
        "every hour",
        "--timezone",
        "Europe/Vienna",
    ];
    let init = program.run_with_input(&arguments, "wordpass\n").await;
    assert_eq!(init.code, 0, "{init:?}");
    for part in [
        "homeservers: all checks passed",
        "purge-local-media on main), dry run",
        "Next:\n",
        "run purge-local-media --apply",
    ] {
        assert!(init.stdout.contains(part), "{part} is not in {init:?}");
    }
    let token = program.read("token");
    assert!(!format!("{init:?}").contains(token.trim_end()), "{init:?}");
    assert_eq!((mode(&program, "token"), mode(&program, "microglia.toml")), (0o600, 0o640));
    let jobs = program.json(&["jobs", "--json"]).await;
    let jobs: Vec<String> = jobs
        .as_array()
        .unwrap()
        .iter()
        .map(|job| {
            format!("{} {} {} {}", job["name"], job["schedule"], job["timezone"], job["mode"])
        })
        .collect();
    insta::assert_snapshot!(jobs.join("\n"), @r#"
    "join-rooms" "@hourly" "Europe/Vienna" "dry-run"
    "purge-local-media" "@hourly" "Europe/Vienna" "dry-run"
    "remove-external-ids" "@hourly" "Europe/Vienna" "dry-run"
    "#);

    let written = program.read("microglia.toml");
    let again = program.run_with_input(&arguments, "wordpass\n").await;
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("microglia.toml exists already and is not overwritten: move it away, or specify another file with --config FILE"), "{again:?}");
    std::fs::remove_file(program.path("microglia.toml")).unwrap();
    let again = program.run_with_input(&arguments, "wordpass\n").await;
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("token exists already and is not overwritten: move it away, or use it with --token-file FILE"), "{again:?}");
    assert_eq!(program.read("token"), token);

    // The token is where it belongs, and is used there.
    let file = program.path("token").to_str().unwrap().to_owned();
    let mut with_file = arguments.to_vec();
    with_file.splice(3..5, ["--token-file", &file]);
    let init = program.run(&with_file).await;
    assert_eq!(init.code, 0, "{init:?}");
    assert_eq!((program.read("token"), program.read("microglia.toml")), (token, written));
}

#[tokio::test]
async fn a_token_file_elsewhere_is_copied_and_a_wrong_one_writes_nothing() {
    let fake = Fake::start();
    let (program, elsewhere) = (program(), tempfile::tempdir().unwrap());
    let file = elsewhere.path().join("my-token");
    std::fs::write(&file, "wrong").unwrap();
    let arguments = [
        "init",
        "--url",
        &fake.url(),
        "--token-file",
        file.to_str().unwrap(),
        "--job",
        "purge-local-media",
    ];
    let init = program.run(&arguments).await;
    assert_eq!(init.code, 1);
    assert!(init.stderr.contains("my-token: 401 M_UNKNOWN_TOKEN"), "{init:?}");
    assert_eq!(files(&program), [""; 0]);
    std::fs::write(&file, TOKEN).unwrap();
    let init = program.run(&arguments).await;
    assert_eq!(init.code, 0, "{init:?}");
    assert_eq!((program.read("token").trim_end(), mode(&program, "token")), (TOKEN, 0o600));
    assert!(
        program
            .read("microglia.toml")
            .contains("schedule = \"30 3 * * *\"  # every night at 03:30")
    );
    assert!(program.read("microglia.toml").contains("timezone = \"Europe/Berlin\""));
}

#[tokio::test]
async fn the_user_that_has_the_group_of_the_directory_can_read_both_files() {
    /// The user and the group `daemon`, everywhere.
    const DAEMON: u32 = 1;
    let (fake, program) = (Fake::start(), program());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), TOKEN).unwrap();
    if chown(program.path(""), Some(0), Some(DAEMON)).is_err() {
        eprintln!("not root: the directory cannot be given to another group");
        return;
    }
    // As the Debian package makes it.
    std::fs::set_permissions(program.path(""), PermissionsExt::from_mode(0o750)).unwrap();
    let token = file.path().to_str().unwrap();
    let init = program
        .run(&["init", "--url", &fake.url(), "--token-file", token, "--job", "purge-local-media"])
        .await;
    assert_eq!(init.code, 0, "{init:?}");
    let access = |name: &str| {
        let file = std::fs::metadata(program.path(name)).unwrap();
        (file.uid(), file.gid(), mode(&program, name))
    };
    assert_eq!(access("token"), (DAEMON, DAEMON, 0o600));
    assert_eq!(access("microglia.toml"), (0, DAEMON, 0o640));
}

#[tokio::test]
async fn print_writes_no_file_and_sends_nothing() {
    let fake = Fake::start();
    let program = program();
    let url = fake.url();
    let init = program
        .run(&[
            "init",
            "--print",
            "--url",
            &url,
            "--job",
            "join-rooms",
            "--room",
            "!a",
            "--schedule",
            "never",
        ])
        .await;
    assert_eq!(init.code, 0, "{init:?}");
    assert_eq!((files(&program), fake.requests().len()), (vec![], 0));
    program.write("microglia.toml", &init.stdout);
    let check = program.run(&["check", "--no-secrets"]).await;
    assert!(check.stdout.contains("join-rooms: join-rooms on main, manual only"), "{check:?}");
    assert!(check.stdout.contains("no errors, no warnings"), "{check:?}");
    assert!(init.stderr.contains(" login --user NAME`, and check both with `"), "{init:?}");
}

#[tokio::test]
async fn what_is_missing_or_wrong_without_a_terminal_is_a_usage_error() {
    let program = program();
    let nothing = program.run(&["init"]).await;
    assert_eq!(nothing.code, 2);
    insta::assert_snapshot!(nothing.stderr, @"error: there is no terminal to ask on, so these options are required as well: --url URL, --user NAME (with the password on stdin), --token-file FILE or, under MAS, --mas URL, --job KIND");
    let fake = Fake::start();
    let url = fake.url();
    let base = ["init", "--url", &url, "--user", "x"];
    for (options, problem) in [
        (vec!["--job", "join-rooms"], "--room ROOM"),
        (vec!["--job", "remove-external-ids"], "--provider NAME"),
        (vec!["--job", "join-rooms", "--room", "lobby"], "join-rooms: "),
        (
            vec!["--job", "purge-local-media", "--older-than", "6mo"],
            "months are not supported, use days",
        ),
        (vec!["--job", "purge-local-media", "--older-than", "1d"], "purge-local-media: "),
        (
            vec!["--job", "purge-local-media", "--schedule", "sometimes"],
            "--schedule: cannot read the schedule \"sometimes\": write \"every night at 03:30\"",
        ),
        (
            vec!["--job", "purge-local-media", "--timezone", "Europe/Berlim"],
            "--timezone: unknown time zone \"Europe/Berlim\" (did you mean \"Europe/Berlin\"?)",
        ),
        (vec!["--job", "delete-rooms"], "invalid value 'delete-rooms' for '--job <KIND>'"),
    ] {
        let init = program.run_with_input(&[&base[..], &options].concat(), "y\n").await;
        assert_eq!(init.code, 2, "{options:?}: {init:?}");
        assert!(init.stderr.contains(problem), "{options:?}: {init:?}");
    }
    assert_eq!(fake.count("POST", "/"), 0, "nobody logged in");
    let init = program
        .run(&["init", "--print", "--url", "127.0.0.1:8008", "--job", "purge-local-media"])
        .await;
    assert!(init.code == 2 && init.stderr.contains("--url: invalid URL"), "{init:?}");
    assert_eq!(files(&program), [""; 0]);
}

#[tokio::test]
async fn what_responds_is_told_apart() {
    let fake = Fake::start();
    let program = program();
    let url = fake.url();
    let arguments = ["init", "--url", &url, "--user", "x", "--job", "purge-local-media"];
    fake.fault(Fault::new("GET", "/_synapse", Trouble::Proxy(404)).always());
    let proxy = program.run_with_input(&arguments, "y\n").await;
    assert!(
        proxy.code == 1
            && proxy
                .stderr
                .contains("is a Matrix homeserver, but its admin API is not available there"),
        "{proxy:?}"
    );
    fake.fault(Fault::new("GET", "/_matrix", Trouble::Proxy(404)).always());
    let other = program.run_with_input(&arguments, "y\n").await;
    assert!(
        other.code == 1 && other.stderr.contains("is not a Matrix homeserver (404"),
        "{other:?}"
    );
    fake.go_down();
    let nothing = program.run_with_input(&arguments, "y\n").await;
    assert!(nothing.code == 1 && nothing.stderr.contains("does not respond. GET"), "{nothing:?}");
    assert_eq!(files(&program), [""; 0]);
}

#[tokio::test]
async fn under_mas_a_client_is_configured_and_a_token_that_exists_is_used() {
    let fake = Fake::start();
    fake.world(|world| world.mas = true);
    let program = program();
    let url = fake.url();
    let base = ["init", "--url", &url, "--job", "purge-local-media"];
    let with = |options: &[&'static str]| [&base[..], options].concat();
    let init = program.run_with_input(&with(&["--user", "x"]), "y\n").await;
    assert_eq!(init.code, 2);
    assert!(
        init.stderr.contains("use --mas https://auth.fake.test/, or --token-file FILE"),
        "{init:?}"
    );
    let init = program.run(&with(&["--mas", "auth.fake.test"])).await;
    assert!(init.code == 2 && init.stderr.contains("--mas: invalid URL"), "{init:?}");
    assert_eq!((files(&program), fake.count("POST", "/")), (vec![], 0));

    let init = program.run(&with(&["--mas", "https://auth.fake.test/"])).await;
    assert_eq!(init.code, 0, "{init:?}");
    assert_eq!(files(&program), ["mas-client-secret", "microglia.toml"]);
    assert_eq!(mode(&program, "mas-client-secret"), 0o600);
    let secret = program.read("mas-client-secret");
    assert_eq!(secret.trim_end().len(), 64);
    assert!(!format!("{init:?}").contains(secret.trim_end()), "{init:?}");
    let config: toml::Table = program.read("microglia.toml").parse().unwrap();
    let main = config["homeservers"]["main"].as_table().unwrap();
    assert!(!main.contains_key("access_token_file"), "{main:?}");
    assert_eq!(main["mas"]["url"].as_str(), Some("https://auth.fake.test/"));
    let client_id = main["mas"]["client_id"].as_str().unwrap();
    for part in [
        &format!("  - client_id: {client_id}\n"),
        &format!("    admin_clients:\n      - {client_id}\n"),
        "mas-cli manage register-user microglia",
        "check --online",
    ] {
        assert!(init.stdout.contains(part), "{part} is not in {}", init.stdout);
    }
    let check = program.run(&["check"]).await;
    assert!(check.stdout.contains("no errors, no warnings"), "{check:?}");
    std::fs::remove_file(program.path("microglia.toml")).unwrap();
    let again = program.run(&with(&["--mas", "https://auth.fake.test/"])).await;
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("mas-client-secret exists already"), "{again:?}");
    assert_eq!(program.read("mas-client-secret"), secret);

    program.write("token", TOKEN);
    let file = program.path("token").to_str().unwrap().to_owned();
    let init = program.run(&[&base[..], &["--token-file", &file]].concat()).await;
    assert_eq!(init.code, 0, "{init:?}");
    fake.world(|world| world.mas = false);
    std::fs::remove_file(program.path("microglia.toml")).unwrap();
    let init = program.run(&with(&["--mas", "https://auth.fake.test/"])).await;
    assert_eq!(init.code, 2);
    assert!(init.stderr.contains("manages its accounts itself: leave out --mas"), "{init:?}");
}

#[tokio::test]
async fn under_mas_a_terminal_is_asked_for_its_url() {
    let fake = Fake::start();
    fake.world(|world| world.mas = true);
    let program = program();
    let mut terminal = Terminal::start(&program, &["init", "--url", &fake.url()]);
    terminal.answer("URL of MAS [https://auth.fake.test/]: ", "nonsense");
    terminal.expect("invalid URL");
    terminal.answer("URL of MAS [https://auth.fake.test/]: ", "");
    terminal.answer("Set up purge-local-media? [yes]: ", "");
    terminal.answer("older_than [180d]: ", "");
    terminal.answer("Set up join-rooms? [no]: ", "");
    terminal.answer("Set up remove-external-ids? [no]: ", "");
    terminal.answer("Schedule [every night at 03:30]: ", "never");
    assert_eq!(terminal.end(), 0, "{}", terminal.screen());
    terminal.expect("client_auth_method: client_secret_basic");
    let config = program.read("microglia.toml");
    assert!(config.contains("runs only by hand: microglia run purge-local-media\n"), "{config}");
}

#[tokio::test]
async fn a_failed_check_keeps_the_files_and_exits_with_1() {
    let fake = Fake::start();
    let program = program();
    program.write("token", TOKEN);
    let file = program.path("token").to_str().unwrap().to_owned();
    let arguments = [
        "init",
        "--url",
        &fake.url(),
        "--token-file",
        &file,
        "--job",
        "join-rooms",
        "--room",
        "#none:fake.test",
    ];
    let init = program.run(&arguments).await;
    assert_eq!(init.code, 1, "{init:?}");
    assert!(init.stdout.contains("join-rooms may join users to #none:fake.test: NO"), "{init:?}");
    assert!(init.stderr.contains("Fix what is NO above."), "{init:?}");
    assert!(init.stdout.contains("check --online  # check again\n"), "{init:?}");
    assert!(program.path("microglia.toml").exists());
}

#[tokio::test]
async fn a_terminal_is_asked_and_bad_answers_are_explained() {
    let synapse = with_lobby().await;
    let program = program();
    let mut terminal = Terminal::start(&program, &["init"]);
    terminal.answer("URL of the homeserver", "nonsense");
    terminal.expect("invalid URL \"nonsense\"");
    terminal.answer("URL of the homeserver", &synapse.url);
    terminal.expect("is Synapse 1.");
    terminal.answer("Access token of a server admin", "/does/not/exist");
    terminal.expect("cannot read /does/not/exist");
    terminal.answer("Access token of a server admin", "");
    terminal.answer("User name of a server admin [microglia]: ", "admin");
    terminal.answer("Password (not shown): ", "wrong");
    terminal.expect("the homeserver refused the login: Invalid username or password");
    terminal.answer("Access token of a server admin", "login");
    terminal.answer("User name of a server admin [microglia]: ", "admin");
    terminal.answer("Password (not shown): ", "wordpass");
    terminal.expect("logged in as @admin:hs.test");
    terminal.answer("Set up purge-local-media? [yes]: ", "perhaps");
    terminal.answer("Set up purge-local-media? [yes]: ", "no");
    terminal.answer("Set up join-rooms? [no]: ", "yes");
    terminal.answer("rooms (Enter for none): ", "lobby");
    terminal.expect("\"lobby\" is not a valid room: expected an alias");
    terminal.answer("rooms (Enter for none): ", "#lobby:hs.test");
    terminal.answer("Set up remove-external-ids? [no]: ", "y");
    terminal.expect("Seen on this homeserver: oidc-google");
    terminal.answer("providers (Enter for none): ", "");
    terminal.expect("remove-external-ids is not set up");
    terminal.answer("Schedule [every night at 03:30]: ", "when I sleep");
    terminal.expect("cannot read the schedule");
    terminal.answer("Schedule [every night at 03:30]: ", "every sunday at 4:00");
    terminal.answer("Time zone [Europe/Berlin]: ", "");
    assert_eq!(terminal.end(), 0, "{}", terminal.screen());
    terminal.expect("next: ");
    terminal.expect("homeservers: all checks passed");
    terminal.expect("join-rooms on main), dry run");
    terminal.expect("Next:");
    assert!(!terminal.screen().contains("wordpass"), "{}", terminal.screen());
    let config = program.read("microglia.toml");
    assert!(config.contains("schedule = \"0 4 * * 0\"  # every sunday at 4:00"), "{config}");
    assert_eq!(config.matches("[jobs.").count(), 1, "{config}");
}

#[tokio::test]
async fn the_end_of_input_and_ctrl_c_leave_no_session_behind_and_end_none_that_existed_before() {
    let synapse = Synapse::start().await;
    let program = program();
    for keys in ["\x04", "\x03"] {
        let mut terminal =
            Terminal::start(&program, &["init", "--url", &synapse.url, "--user", "admin"]);
        terminal.answer("Password (not shown): ", "wordpass");
        terminal.expect("Set up purge-local-media? [yes]: ");
        terminal.press(keys);
        assert_eq!(terminal.end(), 1, "{}", terminal.screen());
        terminal.expect("logged out @admin:hs.test");
        assert_eq!(files(&program), [""; 0]);
        let devices = synapse.get("/_synapse/admin/v2/users/%40admin%3Ahs.test/devices").await;
        assert!(!devices.to_string().contains("MICROGLIA"), "{devices}");
    }

    let working = Program::new(&synapse.url, "none", "");
    let login = working.run_with_input(&["login", "--user", "admin"], "wordpass\n").await;
    assert_eq!(login.code, 0, "{login:?}");
    let mut terminal =
        Terminal::start(&program, &["init", "--url", &synapse.url, "--user", "admin"]);
    terminal.answer("Password (not shown): ", "wordpass");
    terminal.expect("Set up purge-local-media? [yes]: ");
    terminal.press("\x03");
    assert_eq!(terminal.end(), 1, "{}", terminal.screen());
    terminal.expect("the device MICROGLIA of @admin:hs.test existed before: its tokens stay valid");
    let check = working.run(&["check", "--online"]).await;
    assert!(check.stdout.contains("main: token valid: yes, of @admin:hs.test"), "{check:?}");
}
