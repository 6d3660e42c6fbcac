//! The command line: what each command prints, where, and how it exits.

use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::fake::{Fake, Fault, TOKEN, Trouble, User};
use crate::program::{Program, binary, signal, until};

/// A job that removes an id from each account of the fake.
const SWEEP: &str =
    "[jobs.sweep]\nkind = \"remove-external-ids\"\nproviders = [\"saml\"]\naccounts = \"all\"\n";
const NO_CONFIG: &str = "/nowhere/microglia.toml";

fn with_ids(users: usize) -> Fake {
    let fake = Fake::start();
    fake.world(|world| world.users(users, |i| User::default().external("saml", &format!("s{i}"))));
    fake
}

fn sweep(fake: &Fake, rest: &str) -> Program {
    Program::new(&fake.url(), TOKEN, &format!("{SWEEP}{rest}"))
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn every_command_has_help_and_the_program_a_version() {
    let program = Program::with_config("");
    let help = program.run(&["--help"]).await;
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    let without_commands: Vec<&str> =
        help.stdout.split("\n\n").filter(|part| !part.starts_with("Commands:")).collect();
    let shown: Vec<&str> = without_commands
        .iter()
        .flat_map(|part| part.lines().chain([""]))
        .map(str::trim_end)
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    Recurring housekeeping for Synapse, the Matrix homeserver.

    Jobs are defined in a TOML file. Create a first one with `microglia init`, list the kinds of jobs
    with `microglia kinds`, check the file with `microglia check --online`, preview a job with
    `microglia run JOB --dry-run`, and make its changes with `microglia run JOB --apply`.

    Usage: microglia [OPTIONS] <COMMAND>

    Options:
          --config <FILE>
              The configuration file

              [env: MICROGLIA_CONFIG=]
              [default: /etc/microglia/microglia.toml]

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Exit codes: 0 success (including a successful dry run); 1 the command failed: for example, the run,
    the reload, the login or `check --online` did not succeed, or the job is already running; 2 usage
    error, such as a missing option or password, or an error in the configuration.
    Environment: RUST_LOG sets the levels of the log on stderr, MICROGLIA_LOG_FORMAT=json selects JSON.
    "#);
    let commands: Vec<&str> = help
        .stdout
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(
        commands,
        [
            "serve",
            "init",
            "login",
            "check",
            "run",
            "approve",
            "reject",
            "undo",
            "jobs",
            "runs",
            "history",
            "kinds",
            "reload",
            "cancel",
            "pause",
            "resume",
            "healthcheck",
            "completions",
            "man",
            "help"
        ]
    );
    for command in commands.into_iter().filter(|command| *command != "help") {
        let help = program.run(&[command, "--help"]).await;
        assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{command}");
        assert!(help.stdout.contains("Usage: microglia "), "{command}: {}", help.stdout);
    }
    let version = program.run(&["--version"]).await;
    assert_eq!(
        (version.code, version.stdout),
        (0, format!("microglia {}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[tokio::test]
async fn usage_errors_exit_with_2() {
    let fake = Fake::start();
    let program =
        sweep(&fake, "[jobs.fresh]\nkind = \"purge-remote-media\"\nolder_than = \"30d\"\n");
    let mut said = Vec::new();
    for arguments in [
        vec![],
        vec!["chekc"],
        vec!["run"],
        vec!["run", "sweep", "--dry-run", "--apply"],
        vec!["run", "sweep", "--max-changes", "0"],
        vec!["run", "sweeep"],
        vec!["run", "nothing-like-it"],
        vec!["run", "fresh", "--max-changes", "5"],
        vec!["runs", "sweeep"],
        vec!["runs", "show"],
        vec!["runs", "show", "first"],
        vec!["kinds", "purge-media"],
        vec!["kinds", "join-room"],
        vec!["completions", "dos"],
    ] {
        let output = program.run(&arguments).await;
        assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{arguments:?}");
        let first = output.stderr.lines().next().unwrap_or_default().to_owned();
        said.push(format!("{}: {first}", arguments.join(" ")));
    }
    insta::assert_snapshot!(said.join("\n"), @r#"
    : error: 'microglia' requires a subcommand but one was not provided
    chekc: error: unrecognized subcommand 'chekc'
    run: error: the following required arguments were not provided:
    run sweep --dry-run --apply: error: the argument '--dry-run' cannot be used with '--apply'
    run sweep --max-changes 0: error: invalid value '0' for '--max-changes <N>': 0 is not in 1..=4294967295
    run sweeep: error: unknown job "sweeep" (did you mean "sweep"?)
    run nothing-like-it: error: unknown job "nothing-like-it": expected one of fresh, sweep
    run fresh --max-changes 5: error: max_changes is not supported by purge-remote-media, which cannot count items in advance
    runs sweeep: error: unknown job "sweeep" (did you mean "sweep"?)
    runs show: error: the following required arguments were not provided:
    runs show first: error: invalid value 'first' for '<ID>': invalid digit found in string
    kinds purge-media: error: unknown kind "purge-media": expected one of purge-local-media, purge-remote-media, join-rooms, remove-external-ids, delete-rooms, purge-history, protect-media, lock-inactive-accounts, deactivate-accounts, delete-stale-devices, delete-registration-tokens, delete-event-reports, delete-user-reports, request
    kinds join-room: error: unknown kind "join-room" (did you mean "join-rooms"?)
    completions dos: error: invalid value 'dos' for '<SHELL>'
    "#);
    assert_eq!(fake.requests().len(), 0);
}

#[tokio::test]
async fn every_command_that_reads_the_configuration_exits_with_2_if_it_has_an_error() {
    let program = Program::with_config("[demon]\n");
    let commands = [
        vec!["check"],
        vec!["check", "--online"],
        vec!["run", "a"],
        vec!["run", "a", "--json"],
        vec!["jobs"],
        vec!["jobs", "--json"],
        vec!["runs"],
        vec!["runs", "a", "--json"],
        vec!["runs", "show", "1"],
    ];
    for arguments in commands {
        let output = program.run(&arguments).await;
        assert_eq!(
            (output.code, output.stdout.as_str()),
            (2, ""),
            "{arguments:?}: {}",
            output.stderr
        );
        assert!(
            output.stderr.contains("unknown key `demon` (did you mean `daemon`?)"),
            "{arguments:?}: {}",
            output.stderr
        );
    }
    for arguments in [vec!["kinds"], vec!["kinds", "request"], vec!["completions", "bash"]] {
        assert_eq!(program.run(&arguments).await.code, 0, "{arguments:?} needs no config");
    }
}

/// As the first process of a container nothing else would end it.
#[tokio::test]
async fn commands_that_wait_for_a_response_end_on_a_signal() {
    for name in ["TERM", "INT"] {
        let fake = Fake::start();
        fake.fault(Fault::new("*", "/", Trouble::Hang).always());
        let program = Program::new(&fake.url(), TOKEN, "");
        let mut check = program.command(&["check", "--online"]).spawn().unwrap();
        until("a question", 20, async || !fake.requests().is_empty()).await;
        signal(check.id().unwrap(), name);
        let ended = tokio::time::timeout(Duration::from_secs(10), check.wait()).await;
        assert_eq!(ended.unwrap().unwrap().code(), Some(1), "{name}");
    }
}

#[tokio::test]
async fn the_configuration_is_the_option_or_else_the_environment_variable() {
    let program = Program::with_config(
        "[homeservers.here]\nurl = \"http://127.0.0.1:1\"\naccess_token = \"a\"\n[jobs.from-here]\nkind = \"purge-remote-media\"\nolder_than = \"30d\"\n",
    );
    let jobs = async |environment: &str, arguments: &[&str]| {
        let mut command = tokio::process::Command::new(binary());
        let output = command
            .env("MICROGLIA_CONFIG", environment)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap(),
        )
    };
    let here = program.path("microglia.toml").display().to_string();
    let (code, said) = jobs(&here, &["jobs"]).await;
    assert!(code == 0 && said.contains("from-here"), "{said}");
    let (code, said) = jobs(NO_CONFIG, &["jobs", "--config", &here]).await;
    assert!(code == 0 && said.contains("from-here"), "{said}");
    assert_eq!(
        jobs(NO_CONFIG, &["jobs"]).await,
        (
            2,
            format!(
                "error: {NO_CONFIG}: no such file: create it with `microglia init` (in a container: mount its directory), or specify another file with --config FILE or $MICROGLIA_CONFIG\n"
            )
        )
    );
}

#[tokio::test]
async fn check_lists_each_job_with_its_next_occurrences_in_its_zone() {
    let program = Program::new(
        "http://127.0.0.1:1",
        "a",
        "\
[jobs.yearly]
kind = \"purge-remote-media\"
older_than = \"30d\"
schedule = \"30 12 1 7 *\"
timezone = \"Asia/Tokyo\"
mode = \"apply\"
[jobs.off]
kind = \"purge-local-media\"
older_than = \"30d\"
schedule = \"@daily\"
enabled = false
[jobs.fast]
kind = \"join-rooms\"
rooms = [\"#a:b\"]
joins_per_second = 2
",
    );
    let output = program.run(&["check"]).await;
    assert_eq!(output.code, 0, "{output:?}");
    let years: Vec<String> = output
        .stdout
        .split("-07-01 12:30:00 JST")
        .filter_map(|before| before.get(before.len().checked_sub(4)?..))
        .map(str::to_owned)
        .collect();
    let year: i32 = years[0].parse().unwrap();
    let mut stdout = output.stdout.replace(&program.path("").display().to_string(), "");
    for (index, name) in ["YEAR", "YEAR+1", "YEAR+2"].iter().enumerate() {
        stdout = stdout.replace(
            &format!("{}-07-01", year + i32::try_from(index).unwrap()),
            &format!("{name}-07-01"),
        );
    }
    insta::assert_snapshot!(stdout, @r#"
    fast: join-rooms on main, manual only (UTC), dry-run
      only plans and reports; set mode = "apply" to make its changes
    off: purge-local-media on main, @daily (UTC), dry-run, disabled
      only plans and reports; set mode = "apply" to make its changes
    yearly: purge-remote-media on main, 30 12 1 7 * (Asia/Tokyo), apply
      next: YEAR-07-01 12:30:00 JST, YEAR+1-07-01 12:30:00 JST, YEAR+2-07-01 12:30:00 JST
    microglia.toml: no errors, 1 warning; 1 homeserver, 3 jobs
    "#);
    insta::assert_snapshot!(output.stderr.replace(&program.path("").display().to_string(), ""), @r#"
    warning: microglia.toml:24:20: above 0.5 joins per second, the run uses up Synapse's rc_joins_per_room (1 per second by default), and in the meantime Synapse refuses other users who want to join the room
       24 | joins_per_second = 2
          |                    ^
    "#);
}

#[tokio::test]
async fn jobs_are_listed_with_their_last_run_and_the_offset_of_their_zone() {
    let fake = with_ids(3);
    let program = sweep(
        &fake,
        "schedule = \"30 12 1 7 *\"\ntimezone = \"Asia/Tokyo\"\n[jobs.by-hand]\nkind = \"request\"\nmethod = \"GET\"\npath = \"/_matrix/client/versions\"\nenabled = false\n",
    );
    let before = program.json(&["jobs", "--json"]).await;
    assert_eq!(
        keys(&before[0]),
        [
            "enabled",
            "homeserver",
            "kind",
            "last_run",
            "mode",
            "name",
            "next_runs",
            "schedule",
            "timezone",
            "waiting"
        ]
    );
    let by_hand = serde_json::json!({
        "name": "by-hand", "kind": "request", "homeserver": "main", "schedule": null, "timezone": "UTC",
        "mode": "dry-run", "enabled": false, "next_runs": [], "waiting": null,
        "last_run": null,
    });
    assert_eq!(before[0], by_hand);
    let next: Vec<&str> = before[1]["next_runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|next| next.as_str().unwrap())
        .collect();
    assert_eq!(next.len(), 3, "{next:?}");
    assert!(next.iter().all(|next| next.ends_with("-07-01T12:30:00+09:00")), "{next:?}");
    assert!(!program.path("state").exists(), "looking makes nothing");

    program.dry_run("sweep").await;
    let report = program.apply("sweep").await;
    let after = program.json(&["jobs", "--json"]).await;
    let last = &after[1]["last_run"];
    let mut wanted = report.as_object().unwrap().clone();
    wanted.remove("changes");
    assert_eq!(*last, Value::Object(wanted));
    let table = program.run(&["jobs"]).await.stdout;
    let lines: Vec<String> =
        table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines[0], "JOB KIND HOMESERVER SCHEDULE MODE NEXT LAST RUN");
    assert_eq!(lines[1], "by-hand request main manual only dry-run disabled never");
    assert!(lines[2].starts_with("sweep remove-external-ids main 30 12 1 7 * dry-run "), "{table}");
    assert!(lines[2].ends_with("UTC succeeded: 3 planned, 3 done"), "{table}");
    assert!(
        table.contains("\nno daemon is running on ") && table.ends_with("`microglia serve`\n"),
        "{table}"
    );
}

#[tokio::test]
async fn runs_are_listed_newest_first_and_shown_with_their_changes() {
    let fake = with_ids(3);
    let program = sweep(
        &fake,
        "[jobs.other]\nkind = \"request\"\nmethod = \"GET\"\npath = \"/_matrix/client/versions\"\n",
    );
    assert_eq!(program.json(&["runs", "--json"]).await, serde_json::json!([]));
    let none = program.run(&["runs", "sweep"]).await;
    assert_eq!(
        (none.code, none.stderr),
        (0, format!("no run of sweep is recorded in {}\n", program.path("state").display()))
    );
    for job in ["sweep", "other", "sweep"] {
        program.dry_run(job).await;
    }
    let report = program.apply("sweep").await;
    assert_eq!(
        keys(&report),
        [
            "approval",
            "attempts",
            "bytes_freed",
            "bytes_planned",
            "changes",
            "done",
            "failed",
            "finished_at",
            "homeserver",
            "id",
            "job",
            "kind",
            "left_alone",
            "message",
            "mode",
            "outcome",
            "planned",
            "remaining",
            "round",
            "scheduled_for",
            "skipped",
            "started_at",
            "trigger",
            "waited_seconds",
        ]
    );
    let ids = |runs: &Value| {
        runs.as_array().unwrap().iter().map(|run| run["id"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&program.json(&["runs", "--json"]).await), [4, 3, 2, 1]);
    assert_eq!(ids(&program.json(&["runs", "sweep", "--json"]).await), [4, 3, 1]);
    assert_eq!(ids(&program.json(&["runs", "sweep", "--limit", "2", "--json"]).await), [4, 3]);
    assert_eq!(program.json(&["runs", "--json"]).await[0].get("changes"), None);

    assert_eq!(program.json(&["runs", "show", "4", "--json"]).await, report);
    let page =
        program.json(&["runs", "show", "4", "--offset", "1", "--limit", "1", "--json"]).await;
    let target = |change: &Value| change["target"].as_str().unwrap().to_owned();
    assert_eq!(
        page["changes"].as_array().unwrap().iter().map(target).collect::<Vec<_>>(),
        [target(&report["changes"][1])]
    );
    let shown = program.run(&["runs", "show", "4"]).await.stdout;
    assert!(shown.starts_with("run 4: sweep (remove-external-ids on main), apply, "), "{shown}");
    let changes: Vec<&str> = shown
        .lines()
        .filter(|line| line.contains("user00000") || line.contains("before:"))
        .collect();
    insta::assert_snapshot!(changes.join("\n"), @r#"
    done     remove-external-id @user000000:fake.test -> saml:s0
             before: [{"auth_provider":"saml","external_id":"s0"}]
    done     remove-external-id @user000001:fake.test -> saml:s1
             before: [{"auth_provider":"saml","external_id":"s1"}]
    done     remove-external-id @user000002:fake.test -> saml:s2
             before: [{"auth_provider":"saml","external_id":"s2"}]
    "#);

    let unknown = program.run(&["runs", "show", "99"]).await;
    assert_eq!(
        (unknown.code, unknown.stdout.as_str(), unknown.stderr.as_str()),
        (1, "", "error: there is no run 99: `microglia runs` lists them\n")
    );
    program.write(
        "microglia.toml",
        &program.read("microglia.toml").replace("[jobs.sweep]", "[jobs.renamed]"),
    );
    assert_eq!(
        program.run(&["runs", "sweep"]).await.code,
        0,
        "a job that is gone from the config keeps its runs"
    );
}

#[tokio::test]
async fn each_kind_shows_every_key_with_its_type_its_default_and_its_meaning() {
    let program = Program::with_config("");
    let all = program.run(&["kinds"]).await.stdout;
    for kind in microglia::jobs::KINDS {
        let one = program.run(&["kinds", kind.name]).await.stdout;
        assert!(one.starts_with(&format!("{}\n", kind.name)), "{one}");
        assert!(
            all.contains(one.split("\n\n").nth(1).unwrap()),
            "{} is not in the list of all",
            kind.name
        );
        let common = microglia::config::TABLES.iter().flat_map(|(_, keys)| keys.iter());
        let counts = |key: &&microglia::values::schema::Key| {
            kind.counts || !matches!(key.name, "max_changes" | "at_most")
        };
        for key in kind.keys.iter().chain(common.filter(counts)) {
            let own = kind.max_changes.filter(|_| key.name == "max_changes");
            let default = match key.default {
                _ if key.required => "required".to_owned(),
                Some(_) if own.is_some() => format!("default {}", own.unwrap()),
                Some(default) => format!("default {default}"),
                None => "optional".to_owned(),
            };
            let range = key.range.map(|(least, greatest)| format!(", from {least} to {greatest}"));
            let value = (key.value)() + &range.unwrap_or_default();
            let head = format!("\n  {} ({default}): {value}\n      ", key.name);
            let about =
                one.split_once(&head).unwrap_or_else(|| panic!("{head:?} is not in {one}")).1;
            let first_words: Vec<&str> = key.about.split_whitespace().take(5).collect();
            assert!(about.starts_with(&first_words.join(" ")), "{}: {about}", key.name);
        }
    }
    insta::assert_snapshot!(all.split("\n\n").take(4).collect::<Vec<_>>().join("\n\n"), @r#"
    purge-local-media

      Deletes files that local users uploaded and that have not been accessed for a long time. They
      cannot be restored: other servers may have cached copies, but microglia does not request them.
      Skips quarantined and protected files, empty and pending uploads, and (keep_avatars) avatars:
      those in use, and former ones of users in rooms. Does not recognize stickers, custom emoji or
      other files that rooms refer to: protect those in Synapse first. With one of the keys users,
      except_users, accounts, media_types, except_media_types and upload_names (exact mode), chooses
      files one by one and deletes them by id: the plan names each file, and is exactly what is
      deleted. Each file is read again just before, and left alone if it was used, protected or
      quarantined since. Also skips link previews, and (keep_avatars) what the state of any room
      refers to, stickers and custom emoji of its image packs among it: for that, the state of every
      room is read, one request each, as soon as there is a file to delete. Takes a request per
      file: without these keys, far fewer. Needs Synapse 1.140. If reading the files of all accounts
      takes several runs, these delete nothing before the last one has read the rest (in exact mode,
      each deletes what it has read); a file that was accessed since it was read is then planned,
      kept by Synapse and counted as skipped.

      Requires Synapse 1.78 or later.

      older_than (optional): a duration such as "90d", "12h", "10m" or "30s", from "0s" to "3650d"
          Deletes files not accessed for this long, counted back from the start of the run, or of
          the first run of a round; a file that was never accessed counts from its upload. Set
          exactly one of `older_than` and `before`.
    "#);
}

#[tokio::test]
async fn completions_contain_the_commands() {
    let program = Program::with_config("");
    for (shell, mark) in [
        ("bash", "complete -F _microglia"),
        ("zsh", "#compdef microglia"),
        ("fish", "complete -c microglia"),
    ] {
        let output = program.run(&["completions", shell]).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{shell}");
        for word in [mark, "check", "dry-run", "kinds"] {
            assert!(output.stdout.contains(word), "{shell} lacks {word}");
        }
    }
}

#[tokio::test]
async fn the_man_page_contains_every_command_with_its_options_and_every_kind() {
    let program = Program::with_config("");
    let output = program.run(&["man"]).await;
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    // roff escapes the hyphens of options.
    let page = output.stdout.replace("\\-", "-");
    assert!(
        page.contains(&format!(".TH microglia 1  \"microglia {}\"", env!("CARGO_PKG_VERSION")))
    );
    let help = program.run(&["--help"]).await.stdout;
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.contains(&"man"), "{help}");
    for command in commands.into_iter().chain(["runs show"]) {
        let (_, section) = page
            .split_once(&format!(".SS \"microglia {command}"))
            .unwrap_or_else(|| panic!("nothing about {command} in {page}"));
        let section = section.split("\n.S").next().unwrap();
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = program.run(&arguments).await.stdout;
        let options = help
            .split_whitespace()
            .map(|word| word.trim_end_matches([',', ':', ']']))
            .filter(|word| word.starts_with("--") && !["--config", "--help"].contains(word));
        for option in options {
            assert!(section.contains(option), "{option} of {command} is not in {section}");
        }
    }
    for kind in microglia::jobs::KINDS {
        assert!(page.contains(&format!("\\fB{}\\fR", kind.name)), "{} in {page}", kind.name);
    }
    for part in [
        "--config",
        "EXIT STATUS",
        "ENVIRONMENT",
        "CREDENTIALS_DIRECTORY",
        "/etc/microglia/microglia.toml",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
}

#[tokio::test]
async fn a_closed_pipe_is_not_a_failure() {
    let fake = with_ids(1);
    let program = sweep(&fake, "");
    for arguments in [
        vec!["kinds"],
        vec!["completions", "bash"],
        vec!["man"],
        vec!["jobs", "--json"],
        vec!["check"],
        vec!["run", "sweep"],
    ] {
        let mut command = program.command(&arguments);
        command.env("RUST_LOG", "debug");
        let mut child = command.spawn().unwrap();
        // Nothing reads the output.
        drop((child.stdout.take(), child.stderr.take()));
        let status = child.wait().await.unwrap();
        assert_eq!(status.code(), Some(0), "{arguments:?}: {status}");
    }
}

#[tokio::test]
async fn a_run_prints_its_report_to_stdout_and_logs_to_stderr() {
    let fake = with_ids(2);
    let program = sweep(&fake, "");
    let json = program.run(&["run", "sweep", "--json"]).await;
    let mut documents = serde_json::Deserializer::from_str(&json.stdout).into_iter::<Value>();
    assert_eq!(documents.next().unwrap().unwrap()["outcome"], "succeeded");
    assert!(documents.next().is_none(), "{}", json.stdout);
    assert_eq!(json.stderr, "", "nothing extra when piped");

    let text = program.run(&["run", "sweep"]).await;
    let time = text.stdout.find("20").unwrap();
    let stdout = format!("{}TIME{}", &text.stdout[..time], &text.stdout[time + 23..]);
    let took =
        stdout.split("succeeded after ").nth(1).unwrap().split(':').next().unwrap().to_owned();
    insta::assert_snapshot!(stdout.replace(&took, "TOOK"), @r#"
    run 2: sweep (remove-external-ids on main), dry run, TIME
      succeeded after TOOK: 2 planned
      2 of the planned ids are the only ones of active accounts, which then need a password or another identity to log in (`keep_last = true` leaves those alone)
      left alone: 1 own-account
      planned  remove-external-id @user000000:fake.test -> saml:s0
      planned  remove-external-id @user000001:fake.test -> saml:s1
    Nothing was changed. To make these changes now: microglia run sweep --apply; on schedule: set mode = "apply" in the job
    "#);

    let apply = program.run(&["run", "sweep", "--apply"]).await;
    assert_eq!(apply.code, 0);
    assert!(!apply.stderr.contains('\u{1b}') && !apply.stdout.contains('\u{1b}'), "{apply:?}");
    let mut audit: Vec<String> = apply
        .stderr
        .lines()
        .map(|line| line.split_once("  INFO ").unwrap_or(("", line)).1.to_owned())
        .collect();
    audit.sort();
    insta::assert_snapshot!(audit.join("\n"), @r#"
    microglia::audit: sweep: run 3: remove-external-id @user000000:fake.test -> saml:s0
    microglia::audit: sweep: run 3: remove-external-id @user000001:fake.test -> saml:s1
    "#);
}

#[tokio::test]
async fn the_log_is_json_on_request_with_one_line_per_event() {
    let fake = with_ids(2);
    fake.fault(Fault::new("GET", "/_matrix/client/v3/account/whoami", Trouble::BrokenJson));
    let mut program = sweep(&fake, "retries = { first_delay = \"0s\" }\n");
    program.environment.push(("MICROGLIA_LOG_FORMAT".to_owned(), "json".to_owned()));
    program.environment.push(("RUST_LOG".to_owned(), "microglia=info".to_owned()));
    let output = program.run(&["run", "sweep", "--apply"]).await;
    let lines: Vec<Value> = output
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    let mut said: Vec<String> = lines
        .iter()
        .map(|line| {
            format!(
                "{} {} run={}",
                line["level"].as_str().unwrap(),
                line["target"].as_str().unwrap(),
                line["run"]
            )
        })
        .collect();
    said[2..4].sort();
    assert_eq!(
        said,
        [
            "INFO microglia::run run=1",
            "WARN microglia::run run=1",
            "INFO microglia::audit run=1",
            "INFO microglia::audit run=1",
            "INFO microglia::run run=1",
        ],
        "{}",
        output.stderr
    );
    let first = &lines[2];
    assert_eq!(
        (first["action"].as_str(), first["job"].as_str(), first["count"].as_i64()),
        (Some("remove-external-id"), Some("sweep"), Some(1)),
        "{first}"
    );
    let mut targets = [&lines[2], &lines[3]].map(|line| line["change_target"].as_str().unwrap());
    targets.sort_unstable();
    assert_eq!(targets, ["@user000000:fake.test -> saml:s0", "@user000001:fake.test -> saml:s1"]);
    for line in output.stderr.lines() {
        // A parser would lose a duplicate key.
        assert_eq!(line.matches("\"target\":").count(), 1, "{line}");
    }
    assert_eq!(
        (lines[4]["done"].as_i64(), lines[4]["outcome"].as_str()),
        (Some(2), Some("succeeded")),
        "{}",
        lines[4]
    );
}

/// Returns what a terminal shows of a command.
async fn on_a_terminal(program: &Program, arguments: &[&str]) -> String {
    let mut python = tokio::process::Command::new("python3");
    python.args(["-c", "import pty, sys; pty.spawn(sys.argv[1:])"]).arg(binary());
    python.arg("--config").arg(program.path("microglia.toml")).args(arguments);
    let output = python.env_remove("RUST_LOG").stdin(Stdio::null()).output().await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_terminal_shows_a_failed_change_in_the_summary_and_not_in_the_log_too() {
    let fake = with_ids(1);
    fake.fault(
        Fault::new("PUT", "/_synapse/admin/v2/users/", Trouble::Synapse(403, "M_FORBIDDEN", "No"))
            .always(),
    );
    let program = sweep(&fake, "retries = { attempts = 1 }\n");
    let shown = on_a_terminal(&program, &["run", "sweep", "--apply"]).await;
    assert!(shown.contains("failed   remove-external-id @user000000:fake.test"), "{shown}");
    assert!(!shown.contains("microglia::run"), "{shown}");
}

#[tokio::test]
async fn a_missing_state_directory_is_created_and_changes_are_refused_if_it_cannot_be() {
    let fake = with_ids(1);
    let program = sweep(&fake, "");
    assert_eq!(program.apply("sweep").await["outcome"], "succeeded");
    assert_eq!(std::fs::metadata(program.path("state")).unwrap().mode() & 0o777, 0o750);

    fake.world(|world| {
        world.user("@again:fake.test").external_ids.push(("saml".to_owned(), "x".to_owned()));
    });
    program.write(
        "microglia.toml",
        &program.read("microglia.toml").replace("\"state\"", "\"token/state\""),
    );
    fake.forget();
    let refused = program.run(&["run", "sweep", "--apply", "--json"]).await;
    let report: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(
        (refused.code, &report["outcome"], &report["id"]),
        (1, &Value::from("refused"), &Value::Null)
    );
    let message =
        report["message"].as_str().unwrap().replace(&program.path("").display().to_string(), "");
    insta::assert_snapshot!(message, @r#"the history cannot be written, and what cannot be recorded is not done: the state directory token/state cannot be used (Not a directory (os error 20)): run as the daemon's user, or set daemon.state_dir"#);
    assert_eq!(fake.requests().len(), 0);

    let looked = program.run(&["run", "sweep", "--json"]).await;
    let report: Value = serde_json::from_str(&looked.stdout).unwrap();
    assert_eq!(
        (looked.code, &report["outcome"], &report["id"]),
        (0, &Value::from("succeeded"), &Value::Null)
    );
    assert_eq!(report["changes"].as_array().unwrap().len(), 1);
    assert!(looked.stderr.contains("this dry run is not recorded"), "{}", looked.stderr);
}

#[tokio::test]
async fn files_that_a_command_creates_in_the_state_directory_belong_to_its_owner() {
    let fake = with_ids(5);
    let program = sweep(&fake, "");
    let state = program.path("state");
    std::fs::create_dir(&state).unwrap();
    // Only root may give a directory away; anybody else owns what they make.
    let _ = std::os::unix::fs::chown(&state, Some(1234), Some(1234));
    let owner = std::fs::metadata(&state).unwrap().uid();
    // Also during the run: a daemon that starts now must be able to use the files.
    fake.world(|world| world.latency = Duration::from_millis(200));
    let child = program.command(&["run", "sweep", "--apply"]).spawn().unwrap();
    until("the first change is sent", 20, async || fake.count("PUT", "/") > 0).await;
    let made = owners(&state);
    assert!(made.iter().any(|(name, _)| name == "history.db-wal"), "{made:?}");
    assert_eq!(
        made.iter().filter(|(_, uid)| *uid != owner).collect::<Vec<_>>(),
        [] as [&(String, u32); 0]
    );
    fake.world(|world| world.latency = Duration::ZERO);
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    let made = owners(&state);
    assert_eq!(
        made.iter().filter(|(_, uid)| *uid != owner).collect::<Vec<_>>(),
        [] as [&(String, u32); 0]
    );
}

fn owners(dir: &std::path::Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        // A file may go between two looks: SQLite deletes what it does not need any more.
        let Ok(metadata) = entry.metadata() else { continue };
        found.push((entry.file_name().to_string_lossy().into_owned(), metadata.uid()));
        if metadata.is_dir() {
            found.extend(owners(&entry.path()));
        }
    }
    found
}
