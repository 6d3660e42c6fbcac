//! Many homeservers: included files, globs and defaults, listings by homeserver, and homeservers that are down.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::fake::{Fake, TOKEN};
use crate::program::{Program, until};

const MAIN: &str =
    "[homeservers.main]\nurl = \"http://127.0.0.1:8008\"\naccess_token_file = \"token\"\n";
const PURGE: &str = "kind = \"purge-local-media\"\nolder_than = \"180d\"\n";

/// A table of one homeserver.
fn homeserver(name: &str, url: &str) -> String {
    format!("[homeservers.{name}]\nurl = \"{url}\"\naccess_token_file = \"token\"\n")
}

/// A configuration with a directory of included files.
fn including(include: &str, main: &str) -> Program {
    let program = Program::with_config(&format!(
        "include = {include}\n[daemon]\nstate_dir = \"state\"\n{main}"
    ));
    std::fs::create_dir(program.path("homeservers.d")).unwrap();
    program.write("token", TOKEN);
    program.write("homeservers.d/token", TOKEN);
    program
}

/// The code of `check` and what it prints, without the directory.
async fn check(program: &Program) -> (i32, String) {
    let output = program.run(&["check"]).await;
    let dir = program.path("").display().to_string();
    (output.code, (output.stderr + &output.stdout).replace(&dir, ""))
}

async fn refusal(program: &Program) -> String {
    let (code, text) = check(program).await;
    assert_eq!(code, 2, "{text}");
    text
}

/// The names of the jobs.
async fn jobs(program: &Program) -> Vec<String> {
    names(&program.json(&["jobs", "--json"]).await)
}

fn names(jobs: &Value) -> Vec<String> {
    let jobs = jobs.as_array().unwrap().iter();
    jobs.map(|job| job["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn included_files_add_homeservers_and_jobs_in_alphabetical_order() {
    let program = including(
        "[\"homeservers.d/*.toml\", \"extra.toml\", \"*.toml\"]",
        &format!("{MAIN}[jobs.all]\nhomeserver = \"*\"\n{PURGE}"),
    );
    program.write("homeservers.d/b.toml", &homeserver("b", "http://127.0.0.1:8002"));
    program.write(
        "homeservers.d/a.toml",
        &format!(
            "{}[jobs.only-a]\nhomeserver = \"a\"\n{PURGE}",
            homeserver("a", "http://127.0.0.1:8001")
        ),
    );
    program.write("homeservers.d/.b.toml.swp", "left by an editor");
    program.write("homeservers.d/README", "not a configuration");
    program.write("extra.toml", "# empty\n");
    let (code, text) = check(&program).await;
    assert_eq!(code, 0, "{text}");
    let read: Vec<&str> = text.lines().filter(|line| !line.starts_with([' ', 'a', 'o'])).collect();
    insta::assert_snapshot!(read.join("\n"), @r#"
    read microglia.toml
    read homeservers.d/a.toml
    read homeservers.d/b.toml
    read extra.toml
    microglia.toml: no errors, no warnings; 3 homeservers, 4 jobs
    "#);
    assert_eq!(jobs(&program).await, ["all@a", "all@b", "all@main", "only-a"]);
    let checked = program.json(&["check", "--json"]).await;
    let files = checked["files"].as_array().unwrap();
    assert_eq!(files.len(), 4, "{checked}");
    assert!(files[1].as_str().unwrap().ends_with("/homeservers.d/a.toml"), "{checked}");
}

#[tokio::test]
async fn each_error_is_shown_in_the_file_that_it_is_in() {
    let program = including("[\"homeservers.d/*.toml\"]", &format!("time_zone = \"UTC\"\n{MAIN}"));
    program.write(
        "homeservers.d/a.toml",
        &format!("\n# Customer A\n{}max_concurrent_runs = 0\n", homeserver("a", "ftp://127.0.0.1")),
    );
    program.write(
        "homeservers.d/b.toml",
        &format!("include = [\"*.toml\"]\n{MAIN}[defaults]\nmode = \"apply\"\n[daemon]\n[deafults]\n[jobs.b]\nhomeserver = \"c\"\n{PURGE}"),
    );
    insta::assert_snapshot!(refusal(&program).await, @r#"
    error: microglia.toml:4:1: unknown key `time_zone` (did you mean `timezone`?)
        4 | time_zone = "UTC"
          | ^^^^^^^^^
    homeservers.d/a.toml:4:7: invalid URL "ftp://127.0.0.1": the scheme must be http or https: use Synapse's own listener, such as "http://127.0.0.1:8008"
        4 | url = "ftp://127.0.0.1"
          |       ^^^^^^^^^^^^^^^^^
    homeservers.d/a.toml:6:23: expected a whole number, from 1 to 10000
        6 | max_concurrent_runs = 0
          |                       ^
    homeservers.d/b.toml:1:1: an included file cannot include others: name them in microglia.toml
        1 | include = ["*.toml"]
          | ^^^^^^^
    homeservers.d/b.toml:2:14: homeserver `main` is already defined at microglia.toml:5:14: rename or remove one of them
        2 | [homeservers.main]
          |              ^^^^
    homeservers.d/b.toml:5:2: [defaults] is not allowed in an included file: move it to microglia.toml
        5 | [defaults]
          |  ^^^^^^^^
    homeservers.d/b.toml:7:2: [daemon] is not allowed in an included file: move it to microglia.toml
        7 | [daemon]
          |  ^^^^^^
    homeservers.d/b.toml:8:2: unknown key `deafults`: expected one of homeservers, jobs
        8 | [deafults]
          |  ^^^^^^^^
    homeservers.d/b.toml:10:14: unknown homeserver "c" (did you mean "a"?)
       10 | homeserver = "c"
          |              ^^^
    microglia.toml and the files that it includes: 9 errors
    "#);
}

#[tokio::test]
async fn a_syntax_error_in_one_file_hides_no_syntax_error_in_another() {
    let program = including("[\"homeservers.d/*.toml\"]", MAIN);
    program.write("homeservers.d/a.toml", "[homeservers.a]\nurl = \"http://127.0.0.1:8001\n");
    program.write("homeservers.d/b.toml", "[homeservers.b\naccess_token = s3cret\n");
    std::fs::write(program.path("homeservers.d/c.toml"), b"[homeservers.c]\n# caf\xe9\n").unwrap();
    let text = refusal(&program).await;
    assert!(!text.contains("s3cret"), "{text}");
    insta::assert_snapshot!(text, @r#"
    error: homeservers.d/a.toml:2:29: invalid basic string, expected `"`
        2 | url = "http://127.0.0.1:8001
          |                             ^
    homeservers.d/b.toml:1:15: unclosed table, expected `]`
        1 | [homeservers.b
          |               ^
    homeservers.d/c.toml:2:6: invalid UTF-8: save the file as UTF-8
        2 | # caf�
          |      ^
    microglia.toml and the files that it includes: 3 errors
    "#);
}

#[tokio::test]
async fn an_included_file_that_cannot_be_read_is_named() {
    let program = including(
        "[\"missing.toml\", \"homeservers.d/*.toml\", \"*/a.toml\", \"homeservers.d/\", \"token/*.toml\"]",
        MAIN,
    );
    std::fs::create_dir(program.path("homeservers.d/dir.toml")).unwrap();
    nix::unistd::mkfifo(&program.path("homeservers.d/fifo.toml"), nix::sys::stat::Mode::S_IRWXU)
        .unwrap();
    program.write("homeservers.d/large.toml", &"# 2026\n".repeat(600_000));
    insta::assert_snapshot!(refusal(&program).await, @r#"
    error: microglia.toml:1:52: "*/a.toml" has a glob in the name of a directory: only the file name may contain * and ?
        1 | include = ["missing.toml", "homeservers.d/*.toml", "*/a.toml", "homeservers.d/", "token/*.toml"]
          |                                                    ^^^^^^^^^^
    microglia.toml:1:64: "homeservers.d/" names no file: add a file name or a glob, such as "homeservers.d/*.toml"
        1 | include = ["missing.toml", "homeservers.d/*.toml", "*/a.toml", "homeservers.d/", "token/*.toml"]
          |                                                                ^^^^^^^^^^^^^^^^
    microglia.toml: 2 errors
    "#);
    let config = program.read("microglia.toml").replace("\"*/a.toml\", \"homeservers.d/\", ", "");
    program.write("microglia.toml", &config);
    insta::assert_snapshot!(refusal(&program).await, @r#"
    error: microglia.toml:1:12: missing.toml does not exist: create it, or fix `include`
        1 | include = ["missing.toml", "homeservers.d/*.toml", "token/*.toml"]
          |            ^^^^^^^^^^^^^^
    microglia.toml:1:28: homeservers.d/dir.toml cannot be read: it is not a regular file
        1 | include = ["missing.toml", "homeservers.d/*.toml", "token/*.toml"]
          |                            ^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml:1:28: homeservers.d/fifo.toml cannot be read: it is not a regular file
        1 | include = ["missing.toml", "homeservers.d/*.toml", "token/*.toml"]
          |                            ^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml:1:28: homeservers.d/large.toml is larger than 4 MiB: is it a configuration file?
        1 | include = ["missing.toml", "homeservers.d/*.toml", "token/*.toml"]
          |                            ^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml:1:52: the directory token cannot be read: Not a directory (os error 20)
        1 | include = ["missing.toml", "homeservers.d/*.toml", "token/*.toml"]
          |                                                    ^^^^^^^^^^^^^^
    microglia.toml: 5 errors
    "#);
}

#[tokio::test]
async fn a_glob_that_includes_nothing_is_a_warning() {
    let program = including("[\"homeservers.d/*.toml\", \"no-such/*.toml\"]", MAIN);
    let (code, text) = check(&program).await;
    assert_eq!(code, 0, "{text}");
    insta::assert_snapshot!(text, @r#"
    warning: microglia.toml:1:1: no job is configured: add a table such as [jobs.nightly-media]
        1 | include = ["homeservers.d/*.toml", "no-such/*.toml"]
          | ^
    warning: microglia.toml:1:12: no file in homeservers.d matches "*.toml": nothing is included
        1 | include = ["homeservers.d/*.toml", "no-such/*.toml"]
          |            ^^^^^^^^^^^^^^^^^^^^^^
    warning: microglia.toml:1:36: the directory no-such does not exist: nothing is included
        1 | include = ["homeservers.d/*.toml", "no-such/*.toml"]
          |                                    ^^^^^^^^^^^^^^^^
    microglia.toml: no errors, 3 warnings; 1 homeserver, 0 jobs
    "#);
}

#[tokio::test]
async fn a_relative_path_is_beside_the_file_that_names_it() {
    let program = including("[\"homeservers.d/*.toml\"]", MAIN);
    program.write(
        "homeservers.d/a.toml",
        "[homeservers.a]\nurl = \"http://127.0.0.1:8001\"\naccess_token_file = \"a-token\"\n",
    );
    program.write("a-token", "beside the main file");
    insta::assert_snapshot!(refusal(&program).await, @r#"
    error: homeservers.d/a.toml:3:21: homeservers.d/a-token does not exist: create it with `microglia login`, or fix `access_token_file`
        3 | access_token_file = "a-token"
          |                     ^^^^^^^^^
    microglia.toml and the files that it includes: 1 error
    "#);
    program.write("homeservers.d/a-token", TOKEN);
    // A token in an included file is as readable as that file.
    let inline = homeserver("b", "http://127.0.0.1:8002")
        .replace("access_token_file = \"token\"", "access_token = \"s3cret\"");
    program.write("homeservers.d/b.toml", &inline);
    let everybody = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(program.path("homeservers.d/b.toml"), everybody).unwrap();
    let (code, text) = check(&program).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("set the mode of homeservers.d/b.toml to 640"), "{text}");
}

#[tokio::test]
async fn included_files_are_watched_and_a_reload_names_the_bad_one() {
    let fake = Fake::start();
    let program = including(
        "[\"homeservers.d/*.toml\"]",
        &format!("watch_config = \"1s\"\n[jobs.all]\nhomeserver = [\"*\"]\n{PURGE}"),
    );
    program.write("homeservers.d/a.toml", &homeserver("a", &fake.url()));
    let daemon = program.serve().await;
    let listed = async || names(&daemon.get_json("/api/v1/jobs").await);
    assert_eq!(listed().await, ["all@a"]);
    program.write("homeservers.d/b.toml", &homeserver("b", &fake.url()));
    until("the new file", 20, async || listed().await == ["all@a", "all@b"]).await;
    program.write("homeservers.d/a.toml", &homeserver("c", &fake.url()));
    until("the changed file", 20, async || listed().await == ["all@b", "all@c"]).await;
    std::fs::remove_file(program.path("homeservers.d/b.toml")).unwrap();
    until("the deleted file", 20, async || listed().await == ["all@c"]).await;
    program.write(
        "homeservers.d/bad.toml",
        "[homeservers.bad]\nurl = 3\naccess_token_file = \"token\"\n",
    );
    let bad = "/homeservers.d/bad.toml:2:7: expected a URL";
    until("the error", 20, async || daemon.log().contains(bad)).await;
    assert_eq!(listed().await, ["all@c"]);
    let reload = program.run(&["reload"]).await;
    assert_eq!(reload.code, 1);
    assert!(reload.stderr.contains(bad), "{reload:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_new_homeserver_of_a_glob_adds_a_job_and_changes_none() {
    let fake = Fake::start();
    let program = including(
        "[\"homeservers.d/*.toml\"]",
        &format!("[jobs.all]\nschedule = \"@daily\"\nhomeserver = \"customer-*\"\n{PURGE}"),
    );
    program.write("homeservers.d/a.toml", &homeserver("customer-a", &fake.url()));
    let daemon = program.serve().await;
    program.write("homeservers.d/b.toml", &homeserver("customer-b", &fake.url()));
    let reload = program.run(&["reload"]).await;
    assert_eq!(
        reload.stdout,
        "added: all@customer-b\nreloaded: 1 added, 0 changed, 0 removed, 1 unchanged\n"
    );
    // The last customer may go: the daemon goes on, and says that the job runs nowhere.
    program.write("homeservers.d/a.toml", &homeserver("internal", &fake.url()));
    std::fs::remove_file(program.path("homeservers.d/b.toml")).unwrap();
    let reload = program.run(&["reload"]).await;
    assert!(
        reload.stdout.ends_with("reloaded: 0 added, 0 changed, 2 removed, 0 unchanged\n"),
        "{reload:?}"
    );
    let log = daemon.stop().await;
    assert!(
        log.contains("\"customer-*\" matches no homeserver: the job does not run there"),
        "{log}"
    );
}

#[tokio::test]
async fn globs_and_names_of_homeservers_are_mixed_and_each_homeserver_counts_once() {
    let customers: String = ["customer-a", "customer-b", "main", "x"]
        .iter()
        .zip(8001..)
        .map(|(name, port)| homeserver(name, &format!("http://127.0.0.1:{port}")))
        .collect();
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n{customers}\
[jobs.mixed]\nhomeserver = [\"customer-*\", \"main\", \"customer-b\", \"mai?\"]\n{PURGE}\
[jobs.one]\nhomeserver = [\"?\"]\n{PURGE}\
[jobs.none]\nhomeserver = [\"test-*\", \"x\"]\n{PURGE}"
    ));
    program.write("token", TOKEN);
    let expected = ["mixed@customer-a", "mixed@customer-b", "mixed@main", "none@x", "one@x"];
    assert_eq!(jobs(&program).await, expected);
    let warnings = program.run(&["check"]).await.stderr;
    insta::assert_snapshot!(warnings.replace(&program.path("").display().to_string(), ""), @r#"
    warning: microglia.toml:24:14: "test-*" matches no homeserver: the job does not run there
       24 | homeserver = ["test-*", "x"]
          |              ^^^^^^^^^^^^^^^
    "#);
    let config = program.read("microglia.toml").replace("\"test-*\", \"x\"", "\"costumer-a\"");
    program.write("microglia.toml", &config);
    insta::assert_snapshot!(refusal(&program).await, @r#"
    error: microglia.toml:24:14: unknown homeserver "costumer-a" (did you mean "customer-a"?)
       24 | homeserver = ["costumer-a"]
          |              ^^^^^^^^^^^^^^
    microglia.toml: 1 error
    "#);
}

#[tokio::test]
async fn homeserver_defaults_hold_for_every_homeserver_that_does_not_say_otherwise() {
    let fake = Fake::start();
    let program = including(
        "[\"homeservers.d/*.toml\"]",
        &format!(
            "[homeserver_defaults]\nmedia_in_object_storage = true\n[jobs.all]\nhomeserver = \"*\"\n{PURGE}"
        ),
    );
    program.write("homeservers.d/a.toml", &homeserver("a", &fake.url()));
    program.write(
        "homeservers.d/b.toml",
        &format!("{}media_in_object_storage = false\n", homeserver("b", &fake.url())),
    );
    assert_eq!(program.dry_run("all@a").await["outcome"], "refused");
    assert_eq!(program.dry_run("all@b").await["outcome"], "succeeded");
}

#[tokio::test]
async fn what_is_wrong_in_the_defaults_of_homeservers_is_said_once_and_there() {
    let program = Program::with_config(&format!(
        "[homeserver_defaults]\nurl = \"http://127.0.0.1:8008\"\naccess_token_file = \"token\"\nca_file = \"no-such.pem\"\nmax_concurrent_runs = 0\nrequest_timeot = \"60s\"\n{MAIN}{}request_timeout = \"0s\"\n[jobs.a]\nhomeserver = \"main\"\n{PURGE}",
        homeserver("other", "http://127.0.0.1:8009")
    ));
    program.write("token", TOKEN);
    insta::assert_snapshot!(refusal(&program).await, @r#"
    error: microglia.toml:2:1: `url` cannot have a default: set it in each homeserver
        2 | url = "http://127.0.0.1:8008"
          | ^^^
    microglia.toml:3:1: `access_token_file` cannot have a default: set it in each homeserver
        3 | access_token_file = "token"
          | ^^^^^^^^^^^^^^^^^
    microglia.toml:4:11: no-such.pem cannot be read: No such file or directory (os error 2)
        4 | ca_file = "no-such.pem"
          |           ^^^^^^^^^^^^^
    microglia.toml:5:23: expected a whole number, from 1 to 10000
        5 | max_concurrent_runs = 0
          |                       ^
    microglia.toml:6:1: unknown key `request_timeot` (did you mean `request_timeout`?)
        6 | request_timeot = "60s"
          | ^^^^^^^^^^^^^^
    microglia.toml:13:19: expected a duration such as "90d", "12h", "10m" or "30s", from "1s" to "1d"
       13 | request_timeout = "0s"
          |                   ^^^^
    microglia.toml: 6 errors
    "#);
}

#[tokio::test]
async fn jobs_and_runs_are_listed_by_homeserver() {
    let fake = Fake::start();
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n{}{}[jobs.all]\nhomeserver = \"*\"\n{PURGE}[jobs.one]\nhomeserver = \"main\"\n{PURGE}",
        homeserver("main", &fake.url()),
        homeserver("other", &fake.url())
    ));
    program.write("token", TOKEN);
    for job in ["all@main", "all@other", "one"] {
        program.dry_run(job).await;
    }
    let listed = async |arguments: &[&str]| {
        let rows = program.json(arguments).await;
        let rows = rows.as_array().unwrap().iter();
        rows.map(|row| row["job"].as_str().or(row["name"].as_str()).unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(&["jobs", "--homeserver", "main", "--json"]).await, ["all@main", "one"]);
    assert_eq!(listed(&["runs", "--homeserver", "main", "--json"]).await, ["one", "all@main"]);
    let both = ["runs", "one", "--homeserver", "main", "--limit", "1", "--json"];
    assert_eq!(listed(&both).await, ["one"]);
    assert_eq!(listed(&["runs", "one", "--homeserver", "other", "--json"]).await, [""; 0]);
    let table = program.run(&["jobs", "--homeserver", "other"]).await.stdout;
    assert!(table.contains("all@other") && !table.contains("all@main"), "{table}");
    for command in ["jobs", "runs"] {
        let unknown = program.run(&[command, "--homeserver", "othr"]).await;
        assert_eq!(
            (unknown.code, unknown.stderr.as_str()),
            (2, "error: unknown homeserver \"othr\" (did you mean \"other\"?)\n")
        );
    }
    let daemon = program.serve().await;
    assert_eq!(names(&daemon.get_json("/api/v1/jobs?homeserver=other").await), ["all@other"]);
    let runs = daemon.get_json("/api/v1/runs?homeserver=main&limit=1").await;
    assert_eq!((runs.as_array().unwrap().len(), &runs[0]["job"]), (1, &Value::from("one")));
    let runs = daemon.get_json("/api/v1/runs?homeserver=main&job=all@main").await;
    assert_eq!((runs.as_array().unwrap().len(), &runs[0]["job"]), (1, &Value::from("all@main")));
    assert_eq!(daemon.get_json("/api/v1/runs?homeserver=nobody").await, serde_json::json!([]));
    daemon.stop().await;
    // Removed from the configuration, it still has its runs.
    let config = program.read("microglia.toml").replace("[homeservers.other]", "[homeservers.new]");
    program.write("microglia.toml", &config);
    assert_eq!(listed(&["runs", "--homeserver", "other", "--json"]).await, ["all@other"]);
    let gone = program.run(&["jobs", "--homeserver", "other"]).await;
    assert_eq!(gone.code, 2, "{gone:?}");
}

#[tokio::test]
async fn a_homeserver_that_is_down_holds_up_no_other_check() {
    let (down, up) = (Fake::start(), Fake::start());
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n{}{}[jobs.all]\nhomeserver = \"*\"\n{PURGE}",
        homeserver("a-down", &down.url()),
        homeserver("b-up", &up.url())
    ));
    program.write("token", TOKEN);
    down.go_down();
    let output = program.run(&["check", "--online"]).await;
    assert_eq!(output.code, 1, "{output:?}");
    let (_, online) = output.stdout.split_once("2 jobs\n").unwrap();
    let asked: Vec<&str> = online.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(asked.first(), Some(&"b-up"), "{online}");
    assert_eq!(asked[asked.len() - 2..], ["a-down", "homeservers"], "{online}");
    let json = program.json(&["check", "--online", "--json"]).await;
    assert_eq!(json["online"][0]["homeserver"], "a-down", "{json}");
}

#[tokio::test]
async fn a_homeserver_that_stays_down_is_logged_once() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, "");
    fake.go_down();
    let daemon = program.serve().await;
    let down = "WARN microglia::homeserver: main: ";
    until("the warning", 30, async || daemon.log().contains(down)).await;
    // A second probe, whose end shows only in the number of requests.
    let requests = "microglia_homeserver_requests_total";
    let before = daemon.metric(requests, &["status=\"none\""]).await.unwrap();
    assert_eq!(program.run(&["reload"]).await.code, 0);
    until("another probe", 30, async || {
        daemon.metric(requests, &["status=\"none\""]).await.unwrap() >= before * 2.0
    })
    .await;
    fake.come_up();
    until("its return", 60, async || {
        assert_eq!(program.run(&["reload"]).await.code, 0);
        daemon.log().contains("main: the homeserver can be used again")
    })
    .await;
    let log = daemon.stop().await;
    assert_eq!(log.matches(down).count(), 1, "{log}");
}
