//! Text from a homeserver cannot control a terminal, and cannot forge a line of output or log.

use serde_json::Value;

use crate::fake::{Fake, Fault, TOKEN, Trouble, User};
use crate::program::{Output, Program, binary};

/// Sets the title of a terminal, begins a line that looks like one of ours, and hides what follows from the eye.
const HOSTILE: &str =
    "x\u{1b}]0;PWNED\u{7}\n  done     remove-external-id @forged\r\u{9b}2J\u{202e}\u{2028}y";
const ESCAPED: &str =
    r"x\u{1b}]0;PWNED\u{7}\n  done     remove-external-id @forged\r\u{9b}2J\u{202e}\u{2028}y";

/// The same in an error text, a version or another phrase of a homeserver: control characters end where they enter.
const STRIPPED: &str = r"x ]0;PWNED done remove-external-id @forged 2J\u{202e} y";

const USER: &str = "/_synapse/admin/v2/users/";

const JOB: &str = "[jobs.ids]\nkind = \"remove-external-ids\"\naccounts = \"all\"\nproviders = [\"oidc-old\"]\nretries = { attempts = 1 }\n";

/// A homeserver with one account that has a hostile external id.
fn with_hostile_id() -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        *world.user("@a:fake.test") = User::default().external("oidc-old", HOSTILE);
    });
    fake
}

/// Fails where a character other than the end of a line could steer a terminal, or where a line was forged.
fn assert_harmless(text: &str) {
    let steering = |c: &char| {
        (c.is_control() && *c != '\n')
            || matches!(*c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert_eq!(text.chars().find(steering), None, "{text:?}");
    let forged =
        text.lines().find(|line| line.starts_with("  done     remove-external-id @forged"));
    assert_eq!(forged, None, "{text:?}");
}

fn assert_escaped(text: &str) {
    assert_harmless(text);
    assert!(text.contains(ESCAPED), "{text:?}");
}

fn assert_stripped(text: &str) {
    assert_harmless(text);
    assert!(text.contains(STRIPPED), "{text:?}");
}

async fn run(program: &Program, arguments: &[&str]) -> Output {
    let output = program.run(arguments).await;
    assert_harmless(&output.stdout);
    assert_harmless(&output.stderr);
    output
}

#[tokio::test]
async fn a_hostile_external_id_is_escaped_on_the_terminal_and_in_the_text_log() {
    let fake = with_hostile_id();
    let program = Program::new(&fake.url(), TOKEN, JOB);
    assert_escaped(&run(&program, &["run", "ids", "--dry-run"]).await.stdout);
    let applied = run(&program, &["run", "ids", "--apply"]).await;
    assert_escaped(&applied.stdout);
    assert_escaped(&applied.stderr);
    let audit: Vec<&str> =
        applied.stderr.lines().filter(|line| line.contains("microglia::audit")).collect();
    assert_eq!(audit.len(), 1, "one change is one line: {}", applied.stderr);
    assert_escaped(&run(&program, &["runs", "show", "2"]).await.stdout);
    let shown: Value = program.json(&["runs", "show", "2", "--json"]).await;
    let target = shown["changes"][0]["target"].as_str().unwrap();
    assert_eq!(target, format!("@a:fake.test -> oidc-old:{HOSTILE}"), "JSON keeps what was sent");
}

#[tokio::test]
async fn a_hostile_error_text_is_escaped_on_the_terminal_and_in_the_text_log() {
    let fake = with_hostile_id();
    let program = Program::new(&fake.url(), TOKEN, JOB);
    fake.fault(Fault::new("PUT", USER, Trouble::Synapse(400, "M_UNKNOWN", HOSTILE)).always());
    let failed = run(&program, &["run", "ids", "--apply"]).await;
    assert_stripped(&failed.stdout);
    fake.fault(
        Fault::new("GET", "/_synapse", Trouble::Synapse(403, "M_FORBIDDEN", HOSTILE)).always(),
    );
    let daemon = program.serve().await;
    let failed = run(&program, &["run", "ids", "--apply"]).await;
    assert_stripped(&failed.stdout);
    assert_stripped(&run(&program, &["runs"]).await.stdout);
    let online = run(&program, &["check", "--online"]).await;
    assert_stripped(&online.stdout);
    assert_stripped(&daemon.stop().await);
}

#[tokio::test]
async fn a_hostile_version_is_escaped_by_check_and_in_the_text_log() {
    let fake = Fake::start();
    fake.world(|world| world.version = format!("1.100.{HOSTILE}"));
    let job = "[jobs.lobby]\nkind = \"join-rooms\"\nrooms = [\"!lobby:fake.test\"]\n";
    let program = Program::new(&fake.url(), TOKEN, job);
    assert_stripped(&run(&program, &["check", "--online"]).await.stdout);
    let daemon = program.serve().await;
    assert_stripped(&run(&program, &["run", "lobby", "--apply"]).await.stdout);
    assert_stripped(&daemon.stop().await);
}

#[tokio::test]
async fn a_hostile_room_is_escaped_on_the_terminal() {
    let fake = Fake::start();
    fake.world(|world| world.room("!lobby:fake.test").tombstone = Some(HOSTILE.to_owned()));
    let job = "[jobs.lobby]\nkind = \"join-rooms\"\nrooms = [\"!lobby:fake.test\"]\n";
    let program = Program::new(&fake.url(), TOKEN, job);
    assert_stripped(&run(&program, &["run", "lobby", "--dry-run"]).await.stdout);
}

#[tokio::test]
async fn on_a_terminal_the_colour_of_an_errors_label_reaches_it_and_the_rest_is_escaped() {
    let program = Program::new("http://127.0.0.1:9", "token", "");
    let terminal = "import pty, sys; pty.spawn(sys.argv[1:])";
    let output = tokio::process::Command::new("python3")
        .args(["-c", terminal])
        .arg(binary())
        .arg("--config")
        .arg(program.path("micro\x1b[31mglia.toml"))
        .arg("jobs")
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.starts_with("\x1b[1;31merror\x1b[0m: "), "{shown:?}");
    assert_eq!(shown.matches('\x1b').count(), 2, "{shown:?}");
    assert!(shown.contains("micro\\u{1b}[31mglia.toml"), "{shown:?}");
}
