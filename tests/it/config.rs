//! The configuration file: every error at once, with its location and the fix, and the environment.

#![expect(clippy::too_many_lines, reason = "what a person reads is shown whole")]

use std::path::Path;

use microglia::config::{Config, Environment};
use microglia::values::clock::Clock;

use crate::fake::{Fake, Fault, TOKEN, Trouble};
use crate::program::{Output, Program};

const MAIN: &str =
    "[homeservers.main]\nurl = \"http://127.0.0.1:8008\"\naccess_token = \"s3cret\"\n";
const PURGE: &str = "kind = \"purge-local-media\"\nolder_than = \"180d\"\n";

/// What `check` prints for a configuration that has errors, without the directory it is in.
async fn errors(config: &str) -> String {
    refusal(&Program::with_config(config)).await
}

async fn refusal(program: &Program) -> String {
    let output = program.run(&["check"]).await;
    let said = said(program, &output);
    assert_eq!((output.code, output.stdout.as_str()), (2, ""), "{said}");
    said
}

/// What `check` says about a good config.
async fn accepted(program: &Program) -> (String, String) {
    let output = program.run(&["check"]).await;
    assert_eq!(output.code, 0, "{}", output.stderr);
    (output.stdout.clone(), said(program, &output))
}

fn said(program: &Program, output: &Output) -> String {
    output
        .stderr
        .replace(&format!("{}/", program.path("").display().to_string().trim_end_matches('/')), "")
}

#[tokio::test]
async fn an_unknown_key_in_any_table_is_reported_with_the_closest_known_key() {
    insta::assert_snapshot!(errors(&format!("\
[daemon]
time_zone = \"UTC\"
[deafults]
[defaults]
max_change = 5
older_than = \"180d\"
{MAIN}max_request_per_second = 5
[jobs.media]
{PURGE}colour = \"red\"
retries = {{ atempts = 3 }}
[jobs.join]
kind = \"join-rooms\"
rooms = [\"#a:b\"]
exept_users = []
")).await, @r#"
    error: microglia.toml:2:1: unknown key `time_zone` (did you mean `timezone`?)
        2 | time_zone = "UTC"
          | ^^^^^^^^^
    microglia.toml:3:2: unknown key `deafults` (did you mean `defaults`?)
        3 | [deafults]
          |  ^^^^^^^^
    microglia.toml:5:1: unknown key `max_change` (did you mean `max_changes`?)
        5 | max_change = 5
          | ^^^^^^^^^^
    microglia.toml:6:1: unknown key `older_than`: expected one of homeserver, mode, approval_ttl, timezone, enabled, max_changes, at_most, window, time_limit, retries, overlap, catch_up, splay, kind, schedule
        6 | older_than = "180d"
          | ^^^^^^^^^^
    microglia.toml:10:1: unknown key `max_request_per_second` (did you mean `max_requests_per_second`?)
       10 | max_request_per_second = 5
          | ^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml:14:1: unknown key `colour`: expected one of kind, schedule, homeserver, mode, approval_ttl, timezone, enabled, max_changes, at_most, window, time_limit, retries, overlap, catch_up, splay, older_than, before, allow_recent, larger_than, keep_avatars, batch_files, orphan_objects, users, except_users, accounts, media_types, except_media_types, upload_names
       14 | colour = "red"
          | ^^^^^^
    microglia.toml:15:13: unknown key `atempts` (did you mean `attempts`?)
       15 | retries = { atempts = 3 }
          |             ^^^^^^^
    microglia.toml:19:1: unknown key `exept_users` (did you mean `except_users`?)
       19 | exept_users = []
          | ^^^^^^^^^^^
    microglia.toml: 8 errors
    "#);
}

#[tokio::test]
async fn a_value_of_the_wrong_type_is_reported_with_the_expected_type() {
    insta::assert_snapshot!(errors("\
[daemon]
listen = 8749
timezone = [\"UTC\"]
keep_history = 90
watch_config = \"sometimes\"
[homeservers.main]
url = 8008
access_token = 5
max_concurrent_runs = \"one\"
max_requests_per_second = \"fast\"
request_timeout = 60
media_in_object_storage = \"no\"
[jobs.media]
kind = \"purge-local-media\"
schedule = 3
older_than = 180
larger_than = 10
keep_avatars = 1
max_changes = 0
at_most = -1
enabled = \"true\"
retries = 3
time_limit = 3600.5
catch_up = true
overlap = \"never\"
mode = \"aply\"
[jobs.sweep]
kind = \"join-rooms\"
rooms = \"#lobby:example.com\"
users = [1, \"bob\"]
joins_per_second = 0
").await, @r##"
    error: microglia.toml:2:10: expected an address and a port such as "127.0.0.1:8749", found a number
        2 | listen = 8749
          |          ^^^^
    microglia.toml:3:12: expected an IANA time zone such as "Europe/Berlin", found a list
        3 | timezone = ["UTC"]
          |            ^^^^^^^
    microglia.toml:4:16: expected a duration such as "90d", "12h", "10m" or "30s", found a number
        4 | keep_history = 90
          |                ^^
    microglia.toml:5:16: invalid duration "sometimes": expected a number and a unit, such as "90d", "12h", "10m" or "30s"; "off" disables it
        5 | watch_config = "sometimes"
          |                ^^^^^^^^^^^
    microglia.toml:7:7: expected a URL such as "http://127.0.0.1:8008", found a number
        7 | url = 8008
          |       ^^^^
    microglia.toml:8:16: expected a string, found a number
        8 | access_token = …
          |                ^
    microglia.toml:9:23: expected a whole number, found a string
        9 | max_concurrent_runs = "one"
          |                       ^^^^^
    microglia.toml:10:27: expected "auto", "unlimited" or a number
       10 | max_requests_per_second = "fast"
          |                           ^^^^^^
    microglia.toml:11:19: expected a duration such as "90d", "12h", "10m" or "30s", found a number
       11 | request_timeout = 60
          |                   ^^
    microglia.toml:12:27: expected true or false, found a string
       12 | media_in_object_storage = "no"
          |                           ^^^^
    microglia.toml:15:12: expected a cron pattern such as "30 3 * * *", or @hourly, @daily, @weekly, @monthly, @yearly, found a number
       15 | schedule = 3
          |            ^
    microglia.toml:16:14: expected a duration such as "90d", "12h", "10m" or "30s", found a number
       16 | older_than = 180
          |              ^^^
    microglia.toml:17:15: expected a size such as "500KiB" or "10MiB", found a number
       17 | larger_than = 10
          |               ^^
    microglia.toml:18:16: expected true or false, found a number
       18 | keep_avatars = 1
          |                ^
    microglia.toml:19:15: expected "unlimited" or a whole number, from 1 to 1000000000
       19 | max_changes = 0
          |               ^
    microglia.toml:20:11: expected a whole number, from 1 to 1000000000
       20 | at_most = -1
          |           ^^
    microglia.toml:21:11: expected true or false, found a string
       21 | enabled = "true"
          |           ^^^^^^
    microglia.toml:22:11: expected a table such as { attempts = 3, first_delay = "10s", max_delay = "10m" }, found a number
       22 | retries = 3
          |           ^
    microglia.toml:23:14: expected a duration such as "90d", "12h", "10m" or "30s", found a decimal number
       23 | time_limit = 3600.5
          |              ^^^^^^
    microglia.toml:24:12: expected "off" or a duration such as "1m", found a boolean
       24 | catch_up = true
          |            ^^^^
    microglia.toml:25:11: invalid value "never": expected one of skip, queue
       25 | overlap = "never"
          |           ^^^^^^^
    microglia.toml:26:8: invalid value "aply" (did you mean "apply"?)
       26 | mode = "aply"
          |        ^^^^^^
    microglia.toml:29:9: expected a list, each item an alias such as "#room:example.com" or a room id, found a string
       29 | rooms = "#lobby:example.com"
          |         ^^^^^^^^^^^^^^^^^^^^
    microglia.toml:30:10: expected a Matrix id or a glob over whole Matrix ids, starting with @ or *, found a number
       30 | users = [1, "bob"]
          |          ^
    microglia.toml:30:13: "bob" cannot match any user: expected a Matrix id, or a glob over whole Matrix ids, that starts with `@` or `*`, such as "@bob:example.com" or "@bot-*"
       30 | users = [1, "bob"]
          |             ^^^^^
    microglia.toml:31:20: expected a number, from 0.001 to 10000
       31 | joins_per_second = 0
          |                    ^
    microglia.toml: 26 errors
    "##);
}

#[tokio::test]
async fn a_number_out_of_range_is_reported_with_the_range() {
    insta::assert_snapshot!(errors("\
[daemon]
shutdown_grace = \"2d\"
keep_history = \"3651d\"
watch_config = \"2d\"
[homeservers.main]
url = \"http://127.0.0.1:0\"
access_token = \"a\"
max_concurrent_runs = 10_001
max_concurrent_requests = 0
max_requests_per_second = 1e-300
max_joins_per_second = 0xFFFFFFFFFFFFFFFF
request_timeout = \"0s\"
[jobs.media]
kind = \"purge-local-media\"
older_than = \"180d\"
larger_than = \"1025TiB\"
batch_files = 0
max_changes = 99999999999
at_most = 0
time_limit = \"0s\"
catch_up = \"366d\"
splay = \"8d\"
retries = { attempts = 101, first_delay = \"2d\", max_delay = \"2d\" }
[jobs.join]
kind = \"join-rooms\"
rooms = [\"#a:b\"]
joins_per_second = nan
[jobs.ask]
kind = \"request\"
method = \"GET\"
path = \"/\"
expect = [99, 200]
").await, @r#"
    error: microglia.toml:2:18: expected a duration such as "90d", "12h", "10m" or "30s", from "0s" to "1d"
        2 | shutdown_grace = "2d"
          |                  ^^^^
    microglia.toml:3:16: invalid duration "3651d": the maximum is "3650d" (ten years)
        3 | keep_history = "3651d"
          |                ^^^^^^^
    microglia.toml:4:16: expected "off" or a duration such as "1m", from "1s" to "1d"
        4 | watch_config = "2d"
          |                ^^^^
    microglia.toml:6:7: invalid URL "http://127.0.0.1:0": the port must not be 0: use Synapse's own listener, such as "http://127.0.0.1:8008"
        6 | url = "http://127.0.0.1:0"
          |       ^^^^^^^^^^^^^^^^^^^^
    microglia.toml:8:23: expected a whole number, from 1 to 10000
        8 | max_concurrent_runs = 10_001
          |                       ^^^^^^
    microglia.toml:9:27: expected a whole number, from 1 to 1000
        9 | max_concurrent_requests = 0
          |                           ^
    microglia.toml:10:27: expected "auto", "unlimited" or a number, from 0.001 to 10000
       10 | max_requests_per_second = 1e-300
          |                           ^^^^^^
    microglia.toml:11:24: expected "unlimited" or a number, from 0.001 to 10000
       11 | max_joins_per_second = 0xFFFFFFFFFFFFFFFF
          |                        ^^^^^^^^^^^^^^^^^^
    microglia.toml:12:19: expected a duration such as "90d", "12h", "10m" or "30s", from "1s" to "1d"
       12 | request_timeout = "0s"
          |                   ^^^^
    microglia.toml:16:15: expected a size such as "500KiB" or "10MiB", from "0B" to "1024TiB"
       16 | larger_than = "1025TiB"
          |               ^^^^^^^^^
    microglia.toml:17:15: expected a whole number, from 1 to 1000000
       17 | batch_files = 0
          |               ^
    microglia.toml:18:15: expected "unlimited" or a whole number, from 1 to 1000000000
       18 | max_changes = 99999999999
          |               ^^^^^^^^^^^
    microglia.toml:19:11: expected a whole number, from 1 to 1000000000
       19 | at_most = 0
          |           ^
    microglia.toml:20:14: expected a duration such as "90d", "12h", "10m" or "30s", from "1s" to "365d"
       20 | time_limit = "0s"
          |              ^^^^
    microglia.toml:21:12: expected "off" or a duration such as "1m", from "1s" to "365d"
       21 | catch_up = "366d"
          |            ^^^^^^
    microglia.toml:22:9: expected a duration such as "90d", "12h", "10m" or "30s", from "0s" to "7d"
       22 | splay = "8d"
          |         ^^^^
    microglia.toml:23:24: expected a whole number, from 1 to 100
       23 | retries = { attempts = 101, first_delay = "2d", max_delay = "2d" }
          |                        ^^^
    microglia.toml:23:43: expected a duration such as "90d", "12h", "10m" or "30s", from "0s" to "1d"
       23 | retries = { attempts = 101, first_delay = "2d", max_delay = "2d" }
          |                                           ^^^^
    microglia.toml:23:61: expected a duration such as "90d", "12h", "10m" or "30s", from "0s" to "1d"
       23 | retries = { attempts = 101, first_delay = "2d", max_delay = "2d" }
          |                                                             ^^^^
    microglia.toml:27:20: expected a number, from 0.001 to 10000
       27 | joins_per_second = nan
          |                    ^^^
    microglia.toml:32:10: expected a list, each item a whole number, from 100 to 599
       32 | expect = [99, 200]
          |          ^^^^^^^^^
    microglia.toml: 21 errors
    "#);
}

#[test]
fn every_number_has_a_range_that_contains_its_default() {
    use microglia::{config::TABLES, jobs::KINDS};
    let kinds = KINDS.iter().map(|kind| (kind.name, kind.keys));
    let mut quantities = 0;
    for (table, keys) in TABLES.iter().copied().chain(kinds) {
        for key in keys.iter().filter(|key| key.quantity) {
            assert!(key.range.is_some(), "{table}: {}", key.name);
            quantities += 1;
        }
    }
    assert!(quantities >= 16, "{quantities}");
}

#[tokio::test]
async fn values_that_are_rarely_intended_cause_a_warning() {
    let token = |name: &str, url: &str, token: &str| {
        format!("[homeservers.{name}]\nurl = \"{url}\"\naccess_token = '{token}'\n")
    };
    let program = Program::with_config(
        &[
            token("a", "http://synapse.example.com", "\"s3cret\""),
            token("b", "http://[::1]:8008", "s3cret"),
            token("c", "http://127.1.2.3", "s3cret"),
            token("d", "http://synapse.localhost", "s3cret"),
            "media_url = \"http://192.0.2.1\"\n[homeservers.e]\nurl = \"https://synapse.example.com\"\naccess_token_file = \"quoted\"\n".to_owned(),
            format!("[jobs.seconds]\nhomeserver = \"e\"\nschedule = \"* * * * * *\"\n{PURGE}"),
            format!("[jobs.ten]\nhomeserver = \"e\"\nschedule = \"*/10 * * * * *\"\n{PURGE}"),
            format!("[jobs.daily]\nhomeserver = \"e\"\nschedule = \"15 0 3 * * *\"\n{PURGE}"),
            format!("[jobs.minutes]\nhomeserver = \"e\"\nschedule = \"* * * * *\"\n{PURGE}"),
        ]
        .concat(),
    );
    program.write("quoted", "'s3cret'");
    insta::assert_snapshot!(accepted(&program).await.1, @r#"
    warning: microglia.toml:2:7: the access token is sent unencrypted over the network: use https, or Synapse's listener on this machine
        2 | url = "http://synapse.example.com"
          |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    warning: microglia.toml:3:16: the token has quotes around it, which would be sent as part of it: remove them
        3 | access_token = '"…
          |                ^^^
    warning: microglia.toml:13:13: the access token is sent unencrypted over the network: use https, or Synapse's listener on this machine
       13 | media_url = "http://192.0.2.1"
          |             ^^^^^^^^^^^^^^^^^^
    warning: microglia.toml:16:21: quoted has quotes around the secret, which would be sent as part of it: remove them
       16 | access_token_file = "quoted"
          |                     ^^^^^^^^
    warning: microglia.toml:19:12: `* * * * * *` has six fields, the first of which is seconds, and occurs every 1 s (did you mean `* * * * *`?)
       19 | schedule = "* * * * * *"
          |            ^^^^^^^^^^^^^
    warning: microglia.toml:24:12: `*/10 * * * * *` has six fields, the first of which is seconds, and occurs every 10 s (did you mean `*/10 * * * *`?)
       24 | schedule = "*/10 * * * * *"
          |            ^^^^^^^^^^^^^^^^
    "#);
}

#[tokio::test]
async fn a_short_admin_token_is_an_error() {
    let config = format!("[daemon]\nadmin_token_file = \"admin-token\"\n{MAIN}[jobs.a]\n{PURGE}");
    let program = Program::with_config(&config);
    program.write("admin-token", "fifteen-letters\n");
    insta::assert_snapshot!(refusal(&program).await, @r#"
    error: microglia.toml:2:20: the admin token in admin-token is shorter than 16 characters: use a longer one, such as the output of `openssl rand -hex 32`
        2 | admin_token_file = "admin-token"
          |                    ^^^^^^^^^^^^^
    microglia.toml: 1 error
    "#);
    program.write("admin-token", "sixteen-letters!\n");
    accepted(&program).await;
}

#[tokio::test]
async fn the_error_for_a_key_at_the_top_level_names_its_table() {
    let keys = "state_dir = \"state\"\nurl = \"http://localhost\"\nmode = \"apply\"\nschedule = \"@daily\"\nrooms = []\ncolour = 1\n";
    insta::assert_snapshot!(errors(&format!("{keys}{MAIN}")).await, @r#"
    error: microglia.toml:1:1: `state_dir` belongs in [daemon]: move it below that heading
        1 | state_dir = "state"
          | ^^^^^^^^^
    microglia.toml:2:1: `url` belongs in [homeservers.NAME]: move it below that heading
        2 | url = "http://localhost"
          | ^^^
    microglia.toml:3:1: `mode` belongs in [jobs.NAME] or [defaults]: move it below that heading
        3 | mode = "apply"
          | ^^^^
    microglia.toml:4:1: `schedule` belongs in [jobs.NAME]: move it below that heading
        4 | schedule = "@daily"
          | ^^^^^^^^
    microglia.toml:5:1: `rooms` belongs in [jobs.NAME]: move it below that heading
        5 | rooms = []
          | ^^^^^
    microglia.toml:6:1: unknown key `colour`: expected one of include, daemon, homeserver_defaults, homeservers, notifications, defaults, jobs
        6 | colour = 1
          | ^^^^^^
    microglia.toml: 6 errors
    "#);
}

#[tokio::test]
async fn check_prints_json_and_reads_no_secret_on_request() {
    let program = Program::with_config(&format!(
        "[homeservers.main]\nurl = \"http://192.0.2.1\"\naccess_token_file = \"no-such\"\nca_file = \"no-such\"\n[jobs.a]\nschedule = \"@daily\"\n{PURGE}"
    ));
    let failed = program.run(&["check", "--json"]).await;
    assert_eq!((failed.code, failed.stderr.as_str()), (2, ""));
    let failed: serde_json::Value = serde_json::from_str(&failed.stdout).unwrap();
    assert_eq!(
        (failed["errors"].as_array().unwrap().len(), failed["errors"][0]["line"].as_u64()),
        (2, Some(3)),
        "{failed}"
    );
    let good = program.run(&["check", "--json", "--no-secrets"]).await;
    assert_eq!((good.code, good.stderr.as_str()), (0, ""));
    let good: serde_json::Value = serde_json::from_str(&good.stdout).unwrap();
    assert_eq!(good["errors"], serde_json::json!([]));
    assert_eq!(good["warnings"][0]["line"], 2);
    assert_eq!(good["jobs"][0]["next_runs"].as_array().unwrap().len(), 3);
    assert_eq!(good["online"], serde_json::Value::Null);
    let both = program.run(&["check", "--online", "--no-secrets"]).await;
    assert_eq!(both.code, 2);
}

#[tokio::test]
async fn check_online_prints_its_results_as_json() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &format!("[jobs.a]\n{PURGE}"));
    let checked = program.json(&["check", "--online", "--json"]).await;
    let answers = checked["online"].as_array().unwrap();
    assert!(answers.len() > 4 && answers.iter().all(|answer| answer["ok"] == true), "{checked}");
    assert_eq!(answers[0]["question"], "reachable");
    program.write("token", "wrong");
    let output = program.run(&["check", "--online", "--json"]).await;
    assert_eq!(output.code, 1);
    let text = program.run(&["check", "--online"]).await;
    let last = text.stdout.lines().last().unwrap().to_owned();
    assert_eq!(last, "homeservers: 1 check is NO or unknown, see above");
}

#[tokio::test]
async fn a_configuration_larger_than_four_mebibytes_is_an_error() {
    let program = Program::with_config(&format!("{MAIN}# {}\n", "x".repeat(4 << 20)));
    insta::assert_snapshot!(refusal(&program).await, @"error: microglia.toml: larger than 4 MiB: is this the configuration file?");
}

#[tokio::test]
async fn an_age_is_set_once_in_known_units_and_is_neither_recent_nor_in_the_future() {
    let job =
        |name: &str, rest: &str| format!("[jobs.{name}]\nkind = \"purge-remote-media\"\n{rest}\n");
    let config = [
        MAIN.to_owned(),
        job("both", "older_than = \"30d\"\nbefore = 2023-01-01T00:00:00Z"),
        job("neither", ""),
        job("months", "older_than = \"6mo\""),
        job("weeks", "older_than = \"2w\""),
        job("minutes", "older_than = \"6m\""),
        job("recent", "before = 2026-01-01T00:00:00Z\nolder_than = \"6d\""),
        job("young", "older_than = \"6d\""),
        job("meant", "older_than = \"6d\"\nallow_recent = true"),
        job("future", "before = 2999-01-01T00:00:00Z\nallow_recent = true"),
        job("quoted", "before = \"2023-01-01T00:00:00Z\""),
        job("date", "before = 2023-01-01"),
        "[jobs.two-slips]\nkind = \"purge-local-media\"\nlarger_than = 5\n".to_owned(),
    ];
    insta::assert_snapshot!(errors(&config.concat()).await, @r#"
    error: microglia.toml:7:10: `older_than` and `before` are mutually exclusive: remove one of them
        7 | before = 2023-01-01T00:00:00Z
          |          ^^^^^^^^^^^^^^^^^^^^
    microglia.toml:8:7: no age is set: add `older_than = "180d"` or `before = 2023-01-01T00:00:00Z`
        8 | [jobs.neither]
          |       ^^^^^^^
    microglia.toml:13:14: invalid duration "6mo": months are not supported, use days: "180d"
       13 | older_than = "6mo"
          |              ^^^^^
    microglia.toml:16:14: invalid duration "2w": weeks are not supported, use days: "14d"
       16 | older_than = "2w"
          |              ^^^^
    microglia.toml:19:14: an age of 6 min is below the minimum of 7 days: use at least "7d", or set `allow_recent = true` if this is intended
       19 | older_than = "6m"
          |              ^^^^
    microglia.toml:22:10: `older_than` and `before` are mutually exclusive: remove one of them
       22 | before = 2026-01-01T00:00:00Z
          |          ^^^^^^^^^^^^^^^^^^^^
    microglia.toml:26:14: an age of 6 d is below the minimum of 7 days: use at least "7d", or set `allow_recent = true` if this is intended
       26 | older_than = "6d"
          |              ^^^^
    microglia.toml:33:10: 2999-01-01 00:00:00 UTC is in the future: `before` must be a time in the past
       33 | before = 2999-01-01T00:00:00Z
          |          ^^^^^^^^^^^^^^^^^^^^
    microglia.toml:37:10: expected a date and time such as 2023-01-01T00:00:00Z, without quotes, found a string
       37 | before = "2023-01-01T00:00:00Z"
          |          ^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml:40:10: expected a date and time such as 2023-01-01T00:00:00Z, without quotes: the time or the offset is missing
       40 | before = 2023-01-01
          |          ^^^^^^^^^^
    microglia.toml:41:7: no age is set: add `older_than = "180d"` or `before = 2023-01-01T00:00:00Z`
       41 | [jobs.two-slips]
          |       ^^^^^^^^^
    microglia.toml:43:15: expected a size such as "500KiB" or "10MiB", found a number
       43 | larger_than = 5
          |               ^
    microglia.toml: 12 errors
    "#);
}

#[tokio::test]
async fn the_error_for_an_invalid_schedule_time_zone_or_window_explains_it() {
    let job = |name: &str, rest: &str| format!("[jobs.{name}]\n{PURGE}{rest}\n");
    let config = [
        "[daemon]\ntimezone = \"Mars/Olympus\"\n".to_owned(),
        MAIN.to_owned(),
        job("four", "schedule = \"30 3 * *\""),
        job("never", "schedule = \"0 0 30 2 *\""),
        job("word", "schedule = \"@nightly\""),
        job("minute", "schedule = \"61 3 * * *\""),
        job("zone", "timezone = \"Europe/Berln\""),
        job("w1", "window = \"01:00\""),
        job("w2", "window = \"25:00-26:00\""),
        job("w3", "window = \"03:00-03:00\""),
        job("w4", "schedule = \"30 3 * * *\"\nwindow = \"04:00-05:00\""),
        job("off", "watch_config = \"off\"\ncatch_up = \"0s\""),
    ];
    insta::assert_snapshot!(errors(&config.concat()).await, @r#"
    error: microglia.toml:2:12: unknown time zone "Mars/Olympus" (expected an IANA name such as "Europe/Berlin" or "UTC")
        2 | timezone = "Mars/Olympus"
          |            ^^^^^^^^^^^^^^
    microglia.toml:9:12: invalid schedule "30 3 * *": expected five fields (minute, hour, day of month, month, day of week), or six with leading seconds, found 4; for 03:30 every night write "30 3 * * *"
        9 | schedule = "30 3 * *"
          |            ^^^^^^^^^^
    microglia.toml:13:12: the schedule "0 0 30 2 *" never occurs: this date does not exist
       13 | schedule = "0 0 30 2 *"
          |            ^^^^^^^^^^^^
    microglia.toml:17:12: invalid schedule "@nightly" (expected @hourly, @daily, @weekly, @monthly or @yearly)
       17 | schedule = "@nightly"
          |            ^^^^^^^^^^
    microglia.toml:21:12: invalid schedule "61 3 * * *": minute 61 is out of range (0-59)
       21 | schedule = "61 3 * * *"
          |            ^^^^^^^^^^^^
    microglia.toml:25:12: unknown time zone "Europe/Berln" (did you mean "Europe/Berlin"?)
       25 | timezone = "Europe/Berln"
          |            ^^^^^^^^^^^^^^
    microglia.toml:29:10: invalid window "01:00": expected two times of day, such as "01:00-06:00"
       29 | window = "01:00"
          |          ^^^^^^^
    microglia.toml:33:10: invalid window "25:00-26:00": expected two times of day, such as "01:00-06:00"
       33 | window = "25:00-26:00"
          |          ^^^^^^^^^^^^^
    microglia.toml:37:10: the window "03:00-03:00" is empty: remove the key to allow the whole day
       37 | window = "03:00-03:00"
          |          ^^^^^^^^^^^^^
    microglia.toml:42:10: the schedule "30 3 * * *" has no occurrence in the window 04:00-05:00, so the job would never run: change one of them
       42 | window = "04:00-05:00"
          |          ^^^^^^^^^^^^^
    microglia.toml:46:1: unknown key `watch_config`: expected one of kind, schedule, homeserver, mode, approval_ttl, timezone, enabled, max_changes, at_most, window, time_limit, retries, overlap, catch_up, splay, older_than, before, allow_recent, larger_than, keep_avatars, batch_files, orphan_objects, users, except_users, accounts, media_types, except_media_types, upload_names
       46 | watch_config = "off"
          | ^^^^^^^^^^^^
    microglia.toml:47:12: invalid duration "0s": use "off" to disable it
       47 | catch_up = "0s"
          |            ^^^^
    microglia.toml: 12 errors
    "#);
}

#[tokio::test]
async fn the_kind_and_the_homeserver_of_a_job_must_exist() {
    insta::assert_snapshot!(errors("\
[homeservers.main]
url = \"http://127.0.0.1:8008\"
access_token = \"a\"
[homeservers.second]
url = \"http://127.0.0.1:8009\"
access_token = \"a\"
[jobs.unsaid]
kind = \"purge-remote-media\"
older_than = \"30d\"
[jobs.slip]
kind = \"purge-remote-medai\"
homeserver = \"man\"
[jobs.list]
kind = \"purge-remote-media\"
older_than = \"30d\"
homeserver = [\"main\", \"third\"]
[jobs.none]
kind = \"purge-remote-media\"
older_than = \"30d\"
homeserver = []
[jobs.no-kind]
homeserver = \"main\"
[jobs.Upper_Case]
kind = \"purge-remote-media\"
older_than = \"30d\"
homeserver = \"main\"
[jobs]
flat = \"purge-remote-media\"
").await, @r#"
    error: microglia.toml:7:7: `homeserver` is missing, and several are configured: add `homeserver = "…"` with one of main, second, or a list of them
        7 | [jobs.unsaid]
          |       ^^^^^^
    microglia.toml:11:8: unknown kind "purge-remote-medai" (did you mean "purge-remote-media"?)
       11 | kind = "purge-remote-medai"
          |        ^^^^^^^^^^^^^^^^^^^^
    microglia.toml:12:14: unknown homeserver "man" (did you mean "main"?)
       12 | homeserver = "man"
          |              ^^^^^
    microglia.toml:16:14: unknown homeserver "third": expected one of main, second
       16 | homeserver = ["main", "third"]
          |              ^^^^^^^^^^^^^^^^^
    microglia.toml:20:14: the list is empty: add at least one homeserver
       20 | homeserver = []
          |              ^^
    microglia.toml:21:7: `kind` is missing: add `kind = …`, a kind such as "purge-local-media"
       21 | [jobs.no-kind]
          |       ^^^^^^^
    microglia.toml:23:7: invalid job name `Upper_Case`: use lower-case letters, digits and -
       23 | [jobs.Upper_Case]
          |       ^^^^^^^^^^
    microglia.toml:28:1: a job must be a table: write [jobs.flat]
       28 | flat = "purge-remote-media"
          | ^^^^
    microglia.toml: 8 errors
    "#);
}

#[tokio::test]
async fn a_url_must_be_that_of_synapse_itself() {
    let homeserver = |name: &str, url: &str| {
        format!("[homeservers.{name}]\nurl = \"{url}\"\naccess_token = \"a\"\n")
    };
    let config = [
        homeserver("bare", "localhost:8008"),
        homeserver("words", "my homeserver"),
        homeserver("ftp", "ftp://example.com"),
        homeserver("login", "https://admin:hunter2@example.com"),
        homeserver("login-ftp", "ftp://admin:hunter2@example.com"),
        homeserver("login-bare", "admin:hunter2@example.com"),
        homeserver("endpoint", "http://127.0.0.1:8008/_synapse/admin"),
        homeserver("query", "http://127.0.0.1:8008/?access_token=hunter2"),
        "[homeservers.nothing]\naccess_token = \"a\"\n".to_owned(),
    ];
    let said = errors(&config.concat()).await;
    assert!(!said.contains("hunter2"), "{said}");
    insta::assert_snapshot!(said, @r#"
    error: microglia.toml:2:7: invalid URL "localhost:8008": the scheme must be http or https: use Synapse's own listener, such as "http://127.0.0.1:8008"
        2 | url = "localhost:8008"
          |       ^^^^^^^^^^^^^^^^
    microglia.toml:5:7: invalid URL "my homeserver" (relative URL without a base): use Synapse's own listener, such as "http://127.0.0.1:8008"
        5 | url = "my homeserver"
          |       ^^^^^^^^^^^^^^^
    microglia.toml:8:7: invalid URL "ftp://example.com": the scheme must be http or https: use Synapse's own listener, such as "http://127.0.0.1:8008"
        8 | url = "ftp://example.com"
          |       ^^^^^^^^^^^^^^^^^^^
    microglia.toml:11:7: a user name or password in the URL would appear in logs: remove it
       11 | url = "…
          |       ^^
    microglia.toml:14:7: a user name or password in the URL would appear in logs: remove it
       14 | url = "…
          |       ^^
    microglia.toml:17:7: a user name or password in the URL would appear in logs: remove it
       17 | url = "…
          |       ^^
    microglia.toml:20:7: "http://127.0.0.1:8008/_synapse/admin" is the URL of an endpoint: use Synapse's own listener, such as "http://127.0.0.1:8008"
       20 | url = "http://127.0.0.1:8008/_synapse/admin"
          |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml:23:7: the URL of a homeserver must have no query and no fragment: use Synapse's own listener, such as "http://127.0.0.1:8008"
       23 | url = "http://127.0.0.1:8008/?access_token=…
          |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml:25:14: `url` is missing: add `url = …`, a URL such as "http://127.0.0.1:8008"
       25 | [homeservers.nothing]
          |              ^^^^^^^
    microglia.toml: 9 errors
    "#);
}

#[tokio::test]
async fn a_secret_is_set_in_one_place_and_its_file_contains_one_word() {
    let homeserver = |name: &str, rest: &str| {
        format!("[homeservers.{name}]\nurl = \"http://127.0.0.1:8008\"\n{rest}\n")
    };
    let program = Program::with_config(
        &[
            "[daemon]\nadmin_token_file = \"no-such\"\nlisten = \"here\"\n".to_owned(),
            homeserver("missing", "access_token_file = \"no-such\""),
            homeserver("empty", "access_token_file = \"empty\""),
            homeserver("words", "access_token_file = \"words\""),
            homeserver("directory", "access_token_file = \"dir\""),
            homeserver("both", "access_token = \"s3cret\"\naccess_token_file = \"good\""),
            homeserver("none", ""),
            homeserver("blank", "access_token = \" \""),
            homeserver("ca", "access_token_file = \"good\"\nca_file = \"empty\""),
            homeserver(
                "ca2",
                "access_token_file = \"good\"\nca_file = \"garbage\"\nmax_concurrent_runs = 0",
            ),
            homeserver("ca3", "access_token_file = \"good\"\nca_file = \"no-such\""),
        ]
        .concat(),
    );
    program.write("empty", "\n");
    program.write("words", "s3cret words\n");
    program.write("good", "s3cret\n");
    program
        .write("garbage", "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n");
    std::fs::create_dir(program.path("dir")).unwrap();
    insta::assert_snapshot!(refusal(&program).await, @r#"
    error: microglia.toml:2:20: no-such does not exist: create it with the secret, or fix `admin_token_file`
        2 | admin_token_file = "no-such"
          |                    ^^^^^^^^^
    microglia.toml:3:10: invalid listen address "here": expected an IP address and a port, such as "127.0.0.1:8749" or "[::]:8749"
        3 | listen = "here"
          |          ^^^^^^
    microglia.toml:6:21: no-such does not exist: create it with `microglia login`, or fix `access_token_file`
        6 | access_token_file = "no-such"
          |                     ^^^^^^^^^
    microglia.toml:9:21: empty is empty
        9 | access_token_file = "empty"
          |                     ^^^^^^^
    microglia.toml:12:21: words contains white space
       12 | access_token_file = "words"
          |                     ^^^^^^^
    microglia.toml:15:21: dir cannot be read: is a directory
       15 | access_token_file = "dir"
          |                     ^^^^^
    microglia.toml:18:16: `access_token` and `access_token_file` are mutually exclusive: remove one of them, preferably `access_token`
       18 | access_token = "…
          |                ^^
    microglia.toml:20:14: the access token is missing: add `access_token_file = "token"`
       20 | [homeservers.none]
          |              ^^^^
    microglia.toml:25:16: the token is empty
       25 | access_token = " "
          |                ^^^
    microglia.toml:29:11: empty contains no certificate in PEM format
       29 | ca_file = "empty"
          |           ^^^^^^^
    microglia.toml:33:11: garbage contains no certificate in PEM format
       33 | ca_file = "garbage"
          |           ^^^^^^^^^
    microglia.toml:34:23: expected a whole number, from 1 to 10000
       34 | max_concurrent_runs = 0
          |                       ^
    microglia.toml:38:11: no-such cannot be read: No such file or directory (os error 2)
       38 | ca_file = "no-such"
          |           ^^^^^^^^^
    microglia.toml: 13 errors
    "#);
}

#[tokio::test]
async fn an_inline_token_is_checked_like_one_in_a_file() {
    let tokens =
        ["Bearer s3cret", "s3 cret", "s3cret\\u0007", "s3cret\\n", "s3crét", &"s".repeat(8193)];
    for token in tokens {
        let config = MAIN.replace("s3cret", token);
        let inline = errors(&config).await;
        let program = Program::with_config(
            &MAIN.replace("access_token = \"s3cret\"", "access_token_file = \"token\""),
        );
        program.write("token", &token.replace("\\u0007", "\u{7}").replace("\\n", "\n\n"));
        let from_file = refusal(&program).await;
        let problem = |said: &str, subject: &str| {
            let (_, problem) = said.lines().next().unwrap().split_once(subject).unwrap();
            problem.to_owned()
        };
        assert_eq!(problem(&inline, "the token "), problem(&from_file, "3:21: token "), "{token}");
        assert!(!inline.contains("cret") && !from_file.contains("cret"), "{inline}{from_file}");
    }
}

#[tokio::test]
async fn a_secret_or_certificate_file_is_read_up_to_a_limit_in_size_and_time() {
    let program = Program::with_config(
        "[homeservers.main]\nurl = \"http://127.0.0.1:8008\"\naccess_token_file = \"fifo\"\nca_file = \"large\"\n[homeservers.second]\nurl = \"http://127.0.0.1:8009\"\naccess_token_file = \"/dev/zero\"\n",
    );
    program.write("large", &"x".repeat((1 << 20) + 1));
    nix::unistd::mkfifo(&program.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    insta::assert_snapshot!(refusal(&program).await, @r#"
    error: microglia.toml:3:21: fifo cannot be read: nothing was written to this FIFO within 2 s
        3 | access_token_file = "fifo"
          |                     ^^^^^^
    microglia.toml:4:11: large is larger than 1 MiB
        4 | ca_file = "large"
          |           ^^^^^^^
    microglia.toml:7:21: /dev/zero cannot be read: neither a regular file nor a FIFO
        7 | access_token_file = "/dev/zero"
          |                     ^^^^^^^^^^^
    microglia.toml: 3 errors
    "#);
}

fn loaded(program: &Program) -> Config {
    let environment = Environment::default();
    Config::load(&program.path("microglia.toml"), &environment, Clock::system().now())
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The fingerprint of the only job, with that of its homeserver.
fn fingerprint(config: &str) -> String {
    let program = Program::with_config(config);
    program.write("token", "s3cret");
    let config = loaded(&program);
    let job = &config.jobs[0];
    job.fingerprint(config.homeservers[&job.homeserver].fingerprint()).to_string()
}

#[test]
fn a_fingerprint_is_the_same_in_every_build_and_for_every_spelling() {
    let config = format!("{MAIN}[jobs.media]\n{PURGE}schedule = \"@daily\"\n");
    let first = fingerprint(&config);
    insta::assert_snapshot!(first, @"d61d424a-9639-5f83-b551-b401e01a94f9");
    for other in [
        format!("# A comment.\n[jobs.media]\nschedule = \"0  0 * * *\"\n{PURGE}{MAIN}"),
        config.replace("180d", "4320h"),
        config.replace("8008", "8008/"),
        format!("{config}catch_up = \"24h\"\ntime_limit = \"60m\"\nmax_changes = 0x3e8\n"),
        format!("{config}catch_up = \"1d\"\nsplay = \"0s\"\nhomeserver = \"main\"\n"),
        format!("{config}retries = {{ max_delay = \"600s\", attempts = 3 }}\ntimezone = \"UTC\"\n"),
        format!("{config}larger_than = \"0KiB\"\n[daemon]\nkeep_history = \"1d\"\n"),
        format!("{config}[defaults]\nmode = \"dry-run\"\n"),
        config.replace("\"s3cret\"\n", "\"s3cret\"\nmax_requests_per_second = 50.0\n"),
    ] {
        assert_eq!(fingerprint(&other), first, "{other}");
    }
}

#[test]
fn every_key_changes_the_fingerprint() {
    let homeserver = [
        "media_url = \"http://127.0.0.1:8081\"",
        "max_concurrent_runs = 2",
        "max_concurrent_requests = 2",
        "max_requests_per_second = \"unlimited\"",
        "max_joins_per_second = 4",
        "request_timeout = \"61s\"",
        "media_in_object_storage = true",
        "yield_to = [\"room-purges\"]",
    ];
    let job = [
        "schedule = \"@daily\"",
        "mode = \"apply\"",
        "approval_ttl = \"4d\"",
        "timezone = \"Europe/Berlin\"",
        "enabled = false",
        "max_changes = \"unlimited\"",
        "at_most = 5",
        "window = \"01:00-06:00\"",
        "time_limit = \"2h\"",
        "retries = { first_delay = \"11s\" }",
        "overlap = \"queue\"",
        "catch_up = \"off\"",
        "splay = \"1m\"",
        "homeserver = [\"main\"]",
        "allow_recent = true",
        "larger_than = \"1MiB\"",
        "keep_avatars = false",
        "batch_files = 300",
        "orphan_objects = true",
        "users = [\"*\"]",
        "except_users = []",
        "accounts = [\"active\"]",
        "media_types = [\"image/*\"]",
        "except_media_types = []",
        "upload_names = [\"*\"]",
    ];
    let base = format!("{MAIN}[jobs.media]\n{PURGE}");
    let mut configs = vec![
        base.clone(),
        base.replace("8008", "8009"),
        base.replace("s3cret", "s3cret2"),
        base.replace("access_token = \"s3cret\"", "access_token_file = \"token\""),
        base.replace("180d", "181d"),
        base.replace("older_than = \"180d\"", "before = 2023-01-01T00:00:00Z"),
        base.replace("purge-local-media", "purge-remote-media"),
        base.replace("jobs.media", "jobs.media2"),
        base.replace("homeservers.main", "homeservers.main2"),
    ];
    configs.extend(homeserver.map(|line| base.replace("[jobs", &format!("{line}\n[jobs"))));
    configs.extend(job.map(|line| format!("{base}{line}\n")));
    let mut seen = std::collections::BTreeMap::new();
    for config in configs {
        if let Some(same) = seen.insert(fingerprint(&config), config.clone()) {
            panic!("these have the same fingerprint:\n{same}\n{config}");
        }
    }
    // All keys of these tables but `ca_file`, which needs a certificate; `kind`, `older_than` and `before` are above, and
    // those of MAS below.
    let known: usize = microglia::config::TABLES[2..]
        .iter()
        .filter(|(table, _)| !table.contains("mas") && !table.contains("notifications"))
        .map(|(_, keys)| keys.len())
        .sum();
    let of_kind = microglia::jobs::kind("purge-local-media").unwrap().keys.len();
    assert_eq!(homeserver.len() + job.len(), known + of_kind - 4 - 3);
}

const MAS: &str = "[homeservers.main]\nurl = \"http://127.0.0.1:8008\"\n[homeservers.main.mas]\nurl = \"https://account.example.com\"\nclient_id = \"01J44RKQYM4G3TNVANTMTDYTX6\"\nclient_secret = \"s3cret\"\naccount = \"microglia\"\n";

#[test]
fn every_key_of_mas_changes_the_fingerprint() {
    let base = format!("{MAS}[jobs.media]\n{PURGE}");
    let configs = [
        base.clone(),
        format!("{MAIN}[jobs.media]\n{PURGE}"),
        base.replace("account.example.com", "auth.example.com"),
        base.replace("account =", "admin_url = \"http://127.0.0.1:8081\"\naccount ="),
        base.replace("TX6", "TX7"),
        base.replace("s3cret", "s3cret2"),
        base.replace("client_secret = \"s3cret\"", "client_secret_file = \"token\""),
        base.replace("\"microglia\"", "\"admin\""),
    ];
    let fingerprints: std::collections::BTreeSet<String> =
        configs.iter().map(|config| fingerprint(config)).collect();
    assert_eq!(fingerprints.len(), configs.len());
    let spelt_otherwise = base.replace("TX6", "tx6").replace("example.com", "example.com:443/");
    assert_eq!(fingerprint(&spelt_otherwise), fingerprint(&base));
}

#[tokio::test]
async fn errors_in_the_keys_of_mas_name_the_fix() {
    let both = MAS.replace("8008\"\n", "8008\"\naccess_token = \"s3cret\"\n");
    let wrong = "[homeserver_defaults]\nmas = { client_id = \"me\", client_secret = \"s3cret\", acount = \"a\" }\n[homeservers.main]\nurl = \"http://127.0.0.1:8008\"\nmas = { url = \"https://account.example.com/oauth2/token\", account = \"@microglia:example.com\" }\n[homeservers.other]\nurl = \"http://127.0.0.1:8009\"\naccess_token = \"s3cret\"\nmas = 5\n";
    let empty = "[homeservers.main]\nurl = \"http://127.0.0.1:8008\"\n[homeservers.main.mas]\n";
    let mut all = String::new();
    for config in [&both, wrong, empty] {
        let said = errors(&format!("{config}[jobs.a]\nhomeserver = \"main\"\n{PURGE}")).await;
        assert!(!said.contains("s3cret"), "{said}");
        all.push_str(&said);
    }
    for error in [
        "`access_token` and [homeservers.main.mas] are mutually exclusive: MAS issues the token; remove one of them",
        "`client_secret` cannot have a default: set it in each [homeservers.NAME.mas]",
        "unknown key `acount` (did you mean `account`?)",
        "invalid ULID \"me\": expected 26 digits and letters without I, L, O and U",
        "is the URL of an endpoint: use the base URL of a listener",
        "invalid localpart \"@microglia:example.com\"",
        "expected a table [homeservers.other.mas], found a number",
        "`url` is missing: add `url = …`",
        "`client_id` is missing",
        "`account` is missing",
        "the client secret is missing: add `client_secret_file = \"mas-client-secret\"`",
    ] {
        assert!(all.contains(error), "{error}: {all}");
    }
}

#[tokio::test]
async fn defaults_for_mas_hold_only_where_mas_is_configured() {
    let config = format!(
        "[homeserver_defaults]\nmas = {{ client_id = \"01J44RKQYM4G3TNVANTMTDYTX6\", account = \"microglia\" }}\n{MAIN}[homeservers.other]\nurl = \"http://127.0.0.1:8009\"\nmas = {{ url = \"http://192.0.2.1\", client_secret_file = \"mas-client-secret\" }}\n"
    );
    let program = Program::with_config(&config);
    program.write("mas-client-secret", "s3cret");
    let (_, warnings) = accepted(&program).await;
    let unencrypted = "the client secret and tokens are sent unencrypted over the network";
    assert_eq!(warnings.matches(unencrypted).count(), 1, "{warnings}");
    let config = loaded(&program);
    assert!(config.homeservers["main"].mas.is_none());
    let mas = config.homeservers["other"].mas.as_ref().unwrap();
    assert_eq!((mas.account.as_str(), mas.admin_url.as_str()), ("microglia", "http://192.0.2.1/"));
    // The secret is one of the files that are watched, and is not read where secrets are not.
    assert!(config.secret_files().any(|file| file.ends_with("mas-client-secret")));
    std::fs::remove_file(program.path("mas-client-secret")).unwrap();
    assert_eq!(program.run(&["check", "--no-secrets"]).await.code, 0);
    assert_eq!(program.run(&["check"]).await.code, 2);
}

#[test]
fn debug_output_of_the_configuration_shows_no_secret() {
    let config = format!(
        "[daemon]\nadmin_token_file = \"admin\"\n{MAIN}[homeservers.second]\nurl = \"http://127.0.0.1:8009\"\naccess_token_file = \"token\"\n[jobs.media]\nhomeserver = [\"main\", \"second\"]\n{PURGE}"
    );
    let program = Program::with_config(&config);
    program.write("admin", "s3cret-of-the-admin\n");
    program.write("token", "s3cret-in-a-file\n");
    let config = loaded(&program);
    let mut shown = format!("{config:?}{config:#?}");
    for homeserver in config.homeservers.values() {
        let connection = homeserver.connection_fingerprint();
        shown.push_str(&format!("{:?}{connection:?}", homeserver.settings().token));
    }
    assert!(shown.contains("second") && !shown.contains("s3cret"), "{shown}");
}

#[tokio::test]
async fn a_secret_that_every_user_can_read_causes_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let open = |program: &Program, name: &str| {
        std::fs::set_permissions(program.path(name), std::fs::Permissions::from_mode(0o644))
            .unwrap();
    };
    let program =
        Program::new("http://127.0.0.1:8008", "s3cret", &format!("[jobs.media]\n{PURGE}"));
    open(&program, "token");
    insta::assert_snapshot!(accepted(&program).await.1, @r#"
    warning: microglia.toml:6:21: token is readable by every user of this machine: set its mode to 600 (chmod 600), owned by the user that runs microglia
        6 | access_token_file = "token"
          |                     ^^^^^^^
    "#);
    let program = Program::with_config(&format!("{MAIN}[jobs.media]\n{PURGE}"));
    open(&program, "microglia.toml");
    insta::assert_snapshot!(accepted(&program).await.1, @r#"
    warning: microglia.toml:3:16: this token is readable by every user of this machine: set the mode of microglia.toml to 640 (chmod 640), or use `access_token_file`
        3 | access_token = "…
          |                ^^
    "#);
}

#[tokio::test]
async fn the_error_for_a_file_that_is_not_a_configuration_says_what_it_is() {
    insta::assert_snapshot!(errors("").await, @r#"
    error: microglia.toml:1:1: no homeserver is configured: add [homeservers.main] with `url = "http://127.0.0.1:8008"` and `access_token_file = "token"`
    microglia.toml: 1 error
    "#);
    insta::assert_snapshot!(errors("# nothing yet\n").await, @r#"
    error: microglia.toml:1:1: no homeserver is configured: add [homeservers.main] with `url = "http://127.0.0.1:8008"` and `access_token_file = "token"`
        1 | # nothing yet
          | ^
    microglia.toml: 1 error
    "#);
    let program = Program::with_config("");
    std::fs::write(program.path("microglia.toml"), b"[daemon]\n# \xc3\xbc caf\xe9\n").unwrap();
    insta::assert_snapshot!(refusal(&program).await, @r#"error: microglia.toml: line 2, column 8: invalid UTF-8: save the file as UTF-8"#);
    std::fs::remove_file(program.path("microglia.toml")).unwrap();
    insta::assert_snapshot!(refusal(&program).await, @r#"error: microglia.toml: no such file: create it with `microglia init` (in a container: mount its directory), or specify another file with --config FILE or $MICROGLIA_CONFIG"#);
    std::fs::create_dir(program.path("microglia.toml")).unwrap();
    insta::assert_snapshot!(refusal(&program).await, @r#"error: microglia.toml: this is a directory: specify the configuration file in it"#);
}

#[tokio::test]
async fn syntax_errors_are_all_reported() {
    insta::assert_snapshot!(errors("\
[daemon]
timezone = Europe/Berlin
[homeservers.main]
access_token_file = token
url \"http://127.0.0.1:8008\"
[jobs.media]
kind = \"purge-local-media
older_than = 180d
[jobs.other
").await, @r#"
    error: microglia.toml:2:12: string values must be quoted, expected literal string
        2 | timezone = Europe/Berlin
          |            ^^^^^^^^^^^^^
    microglia.toml:4:21: expected true or false, or a string in quotes
        4 | access_token_file = token
          |                     ^^^^^
    microglia.toml:5:5: key with no value, expected `=`
        5 | …
          |  ^
    microglia.toml:9:12: unclosed table, expected `]`
        9 | [jobs.other
          |            ^
    microglia.toml: 4 errors
    "#);
}

#[tokio::test]
async fn a_duplicate_name_is_reported_together_with_the_other_errors() {
    insta::assert_snapshot!(errors(&format!("\
{MAIN}url = \"http://127.0.0.1:8009\"
[jobs.media]
{PURGE}older_than = \"90d\"
[jobs.media]
kind = \"join-rooms\"
[jobs.other]
kind = \"purge-remote-media\"
")).await, @r#"
    error: microglia.toml:4:1: duplicate key: remove one of them
        4 | url = "http://127.0.0.1:8009"
          | ^^^
    microglia.toml:8:1: duplicate key: remove one of them
        8 | older_than = "90d"
          | ^^^^^^^^^^
    microglia.toml:9:7: duplicate key: remove one of them
        9 | [jobs.media]
          |       ^^^^^
    microglia.toml:10:1: duplicate key: remove one of them
       10 | kind = "join-rooms"
          | ^^^^
    microglia.toml:11:7: no age is set: add `older_than = "180d"` or `before = 2023-01-01T00:00:00Z`
       11 | [jobs.other]
          |       ^^^^^
    microglia.toml: 5 errors
    "#);
}

#[tokio::test]
async fn an_error_in_the_defaults_is_reported_once() {
    insta::assert_snapshot!(errors(&format!("\
[defaults]
kind = \"join-rooms\"
schedule = \"@daily\"
time_limit = \"1w\"
retries = {{ attempts = 0 }}
homeserver = \"mian\"
mode = \"aply\"
{MAIN}
[jobs.one]
{PURGE}
[jobs.two]
{PURGE}
")).await, @r#"
    error: microglia.toml:2:1: `kind` cannot have a default: set it in each job
        2 | kind = "join-rooms"
          | ^^^^
    microglia.toml:3:1: `schedule` cannot have a default: set it in each job
        3 | schedule = "@daily"
          | ^^^^^^^^
    microglia.toml:4:14: invalid duration "1w": weeks are not supported, use days: "7d"
        4 | time_limit = "1w"
          |              ^^^^
    microglia.toml:5:24: expected a whole number, from 1 to 100
        5 | retries = { attempts = 0 }
          |                        ^
    microglia.toml:6:14: unknown homeserver "mian" (did you mean "main"?)
        6 | homeserver = "mian"
          |              ^^^^^^
    microglia.toml:7:8: invalid value "aply" (did you mean "apply"?)
        7 | mode = "aply"
          |        ^^^^^^
    microglia.toml: 6 errors
    "#);
}

#[tokio::test]
async fn keys_that_a_kind_does_not_support_are_errors() {
    insta::assert_snapshot!(errors(&format!("\
{MAIN}
[jobs.remote]
kind = \"purge-remote-media\"
older_than = \"30d\"
max_changes = 5
at_most = 5
[jobs.join]
kind = \"join-rooms\"
rooms = []
users = []
except_users = [\"bob\", \"@bob\"]
[jobs.ids]
kind = \"remove-external-ids\"
providers = [\"oauth-delegated\", \"\"]
accounts = []
external_ids = []
[jobs.ids-too]
kind = \"remove-external-ids\"
providers = []
accounts = [\"gone\"]
[jobs.ask]
kind = \"request\"
method = \"FETCH\"
path = \"_synapse/#a\"
expect = []
[jobs.ask-too]
kind = \"request\"
method = \"GET\"
path = \"/x/{{{{ ago_ms('6mo') }}}}\"
query = 5
body = {{ at = \"{{{{ now() }}}}\" }}
")).await, @r#"
    error: microglia.toml:8:15: `max_changes` is not supported by purge-remote-media, which cannot count items in advance: remove it
        8 | max_changes = 5
          |               ^
    microglia.toml:9:11: `at_most` is not supported by purge-remote-media, which cannot count items in advance: remove it
        9 | at_most = 5
          |           ^
    microglia.toml:12:9: the list is empty: add at least one item
       12 | rooms = []
          |         ^^
    microglia.toml:13:9: the list is empty: add at least one item
       13 | users = []
          |         ^^
    microglia.toml:14:17: "bob" cannot match any user: expected a Matrix id, or a glob over whole Matrix ids, that starts with `@` or `*`, such as "@bob:example.com" or "@bot-*"
       14 | except_users = ["bob", "@bob"]
          |                 ^^^^^
    microglia.toml:14:24: "@bob" cannot match any user: expected a whole Matrix id such as "@bob:example.com"
       14 | except_users = ["bob", "@bob"]
          |                        ^^^^^^
    microglia.toml:17:14: `oauth-delegated` is how Synapse stores the link of an account to MAS: removing it would lock out its user
       17 | providers = ["oauth-delegated", ""]
          |              ^^^^^^^^^^^^^^^^^
    microglia.toml:17:33: a provider must not be empty: expected a name such as "oidc-google" or "saml"
       17 | providers = ["oauth-delegated", ""]
          |                                 ^^
    microglia.toml:18:12: expected "all", or one or more of "active", "deactivated", "locked"
       18 | accounts = []
          |            ^^
    microglia.toml:19:16: the list is empty: add at least one item
       19 | external_ids = []
          |                ^^
    microglia.toml:22:13: the list is empty: add at least one item
       22 | providers = []
          |             ^^
    microglia.toml:23:13: invalid value "gone": expected one of active, deactivated, locked
       23 | accounts = ["gone"]
          |             ^^^^^^
    microglia.toml:26:10: invalid value "FETCH" (did you mean "PATCH"?)
       26 | method = "FETCH"
          |          ^^^^^^^
    microglia.toml:27:8: a path must start with `/`: "/_synapse/#a"
       27 | path = "_synapse/#a"
          |        ^^^^^^^^^^^^^
    microglia.toml:28:10: the list is empty: add at least one item
       28 | expect = []
          |          ^^
    microglia.toml:32:8: the template in `path` cannot be rendered: invalid duration "6mo": months are not supported, use days: "180d"
       32 | path = "/x/{{ ago_ms('6mo') }}"
          |        ^^^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml:33:9: expected a table of strings, numbers and booleans such as { before_ts = "{{ ago_ms('30d') }}" }; a parameter that occurs twice can be written in `path`
       33 | query = 5
          |         ^
    microglia.toml:34:8: the template in `body.at` cannot be rendered: now is unknown
       34 | body = { at = "{{ now() }}" }
          |        ^^^^^^^^^^^^^^^^^^^^^^
    microglia.toml: 18 errors
    "#);
}

#[tokio::test]
async fn twenty_errors_are_reported_at_once_in_the_order_of_the_file() {
    let said = errors(
        "\
[jobs.a]
kind = \"purge-local-media\"
larger_than = \"5\"
mode = \"try\"
[daemon]
listen = \"everywhere\"
timezone = \"Utopia\"
state_dir = 1
keep_history = \"1y\"
watch_config = \"often\"
admin_token_file = \"no-such\"
[homeservers.main]
url = \"nowhere\"
access_token_file = \"no-such\"
ca_file = \"no-such\"
max_joins_per_second = -1
[defaults]
overlap = \"wait\"
splay = 5
[jobs.b]
kind = \"join-rooms\"
schedule = \"* * *\"
homeserver = \"nain\"
rooms = []
rejoin = \"always\"
[surplus]
",
    )
    .await;
    let places: Vec<&str> = said
        .lines()
        .filter_map(|line| {
            line.strip_prefix("error: ").unwrap_or(line).strip_prefix("microglia.toml:")
        })
        .filter_map(|line| line.split(": ").next())
        .collect();
    let expected = [
        "1:7",
        "3:15",
        "4:8",
        "6:10",
        "7:12",
        "8:13",
        "9:16",
        "10:16",
        "11:20",
        "13:7",
        "14:21",
        "15:11",
        "16:24",
        "18:11",
        "19:9",
        "22:12",
        "23:14",
        "24:9",
        "25:10",
        "26:2",
        " 20 errors",
    ];
    assert_eq!(places, expected, "{said}");
}

#[tokio::test]
async fn no_error_in_the_line_of_a_secret_shows_the_secret() {
    let lines = [
        "access_token = \"s3cret",
        "access_token = \"s3cret\" \"",
        "access_token \"s3cret\"",
        "access_token = s3cret",
        "access_token: s3cret",
        "acces_token = \"s3cret\"",
        "acess_tokn = \"s3cret\"",
        "\"access_token\" = \"s3cret\"\n\"access_token\" = \"s3cret\"",
        "access_token = [\"s3cret\"]",
        "access_token = [\n  \"s3cret\"\n",
        "access_token = [\n  \"s3cret\",,\n]",
        "access_token = \"\"\"\ns3cret \\z\n\"\"\"",
        "access_token = \"s3cret\"\naccess_token_file = \"token\"",
        "access_token = \"s3cret\"\nmedia_url = \"http://u:s3cret@h\"",
        "admin_token = \"s3cret\"",
        "ACCESS_TOKEN=s3cret",
    ];
    for line in lines {
        let program = Program::with_config(&format!(
            "[homeservers.main]\nurl = \"http://127.0.0.1:1\"\n{line}\n[jobs.a]\n{PURGE}"
        ));
        for mut command in [vec!["check"], vec!["jobs"], vec!["runs"], vec!["run", "a"]] {
            let output = program.run(&command).await;
            command.push(line);
            assert_eq!(output.code, 2, "{command:?}: {output:?}");
            assert!(!format!("{output:?}").contains("s3cret"), "{command:?}: {output:?}");
        }
    }
    let inline = "homeservers.main = { url = \"ftp://h\", access_token = \"s3cret\", bogus = 1 }";
    let said = errors(inline).await;
    assert!(!said.contains("s3cret"), "{said}");
    insta::assert_snapshot!(said, @r#"
    error: microglia.toml:1:28: invalid URL "ftp://h": the scheme must be http or https: use Synapse's own listener, such as "http://127.0.0.1:8008"
        1 | homeservers.main = { url = "ftp://h", access_token = "…
          |                            ^^^^^^^^^
    microglia.toml:1:64: unknown key `bogus`: expected one of url, media_url, access_token, access_token_file, ca_file, max_concurrent_runs, max_concurrent_requests, max_requests_per_second, max_joins_per_second, request_timeout, yield_to, media_in_object_storage, mas
        1 | homeservers.main = { url = "ftp://h", access_token = "…
          |                                                        ^
    microglia.toml: 2 errors
    "#);
}

#[tokio::test]
async fn no_output_and_no_log_of_any_command_contains_a_token() {
    let fake = Fake::start();
    fake.fault(Fault::new("GET", "/_matrix/client/v1/auth_metadata", Trouble::Proxy(502)));
    for (config, file) in
        [("access_token = \"fake-token\"", false), ("access_token_file = \"token\"", true)]
    {
        let mut program = Program::with_config(&format!(
            "[daemon]\nstate_dir = \"state\"\n[homeservers.main]\nurl = \"{}\"\n{config}\n[jobs.a]\n{PURGE}",
            fake.url()
        ));
        program.environment.push(("RUST_LOG".to_owned(), "trace".to_owned()));
        if file {
            program.write("token", TOKEN);
        }
        for command in [
            vec!["check", "--online"],
            vec!["run", "a"],
            vec!["run", "a", "--apply", "--json"],
            vec!["jobs"],
            vec!["runs"],
            vec!["runs", "show", "1"],
        ] {
            let output = program.run(&command).await;
            assert_eq!(output.code, 0, "{command:?}: {output:?}");
            assert!(!format!("{output:?}").contains(TOKEN), "{command:?}: {output:?}");
        }
        let history = std::fs::read(program.path("state/history.db")).unwrap();
        assert!(
            !String::from_utf8_lossy(&history).contains(TOKEN),
            "the history contains the token"
        );
    }
}

#[tokio::test]
async fn inline_tables_of_the_defaults_are_merged_key_by_key() {
    let fake = Fake::start();
    fake.fault(
        Fault::new("GET", "/_matrix/client/v3/account/whoami", Trouble::BrokenJson).always(),
    );
    let program = Program::new(
        &fake.url(),
        TOKEN,
        &format!(
            "\
[defaults]
retries = {{ attempts = 2, first_delay = \"0s\" }}
[jobs.merged]
{PURGE}retries = {{ max_delay = \"1s\" }}
[jobs.own]
{PURGE}retries = {{ attempts = 4 }}
"
        ),
    );
    assert_eq!(program.dry_run("merged").await["attempts"], 2);
    assert_eq!(program.dry_run("own").await["attempts"], 4);
}

#[tokio::test]
async fn a_list_of_homeservers_creates_one_job_each() {
    let program = Program::with_config(&format!(
        "\
{MAIN}[homeservers.second]
url = \"http://127.0.0.1:8009\"
access_token = \"a\"
[daemon]
state_dir = \"state\"
[jobs.both]
{PURGE}homeserver = [\"second\", \"main\", \"main\"]
[jobs.listed]
{PURGE}homeserver = [\"main\"]
[jobs.plain]
{PURGE}homeserver = \"main\"
"
    ));
    let jobs = program.json(&["jobs", "--json"]).await;
    let names: Vec<String> = jobs
        .as_array()
        .unwrap()
        .iter()
        .map(|job| {
            format!("{} {}", job["name"].as_str().unwrap(), job["homeserver"].as_str().unwrap())
        })
        .collect();
    assert_eq!(names, ["both@main main", "both@second second", "listed@main main", "plain main"]);
    let unsaid = program.run(&["run", "both"]).await;
    assert_eq!(unsaid.code, 2);
    insta::assert_snapshot!(unsaid.stderr, @r#"error: job `both` runs on several homeservers: name one of both@main, both@second"#);
}

#[tokio::test]
async fn a_secret_file_is_looked_up_among_the_credentials_first_and_one_newline_is_trimmed() {
    let fake = Fake::start();
    let mut program =
        Program::new(&fake.url(), &format!("{TOKEN}\n"), &format!("[jobs.a]\n{PURGE}"));
    let whose = async |program: &Program| program.run(&["check", "--online"]).await;
    assert_eq!(whose(&program).await.code, 0, "the newline at the end is not part of the token");
    program.write("token", "stale");
    assert_eq!(whose(&program).await.code, 1);
    std::fs::create_dir(program.path("credentials")).unwrap();
    program.write("credentials/token", TOKEN);
    program.environment.push((
        "CREDENTIALS_DIRECTORY".to_owned(),
        program.path("credentials").display().to_string(),
    ));
    assert_eq!(
        whose(&program).await.code,
        0,
        "the credential wins over the file beside the config"
    );
    std::fs::remove_file(program.path("credentials/token")).unwrap();
    program.write("token", TOKEN);
    assert_eq!(
        whose(&program).await.code,
        0,
        "what is no credential is looked for beside the config"
    );
}

#[tokio::test]
async fn the_environment_sets_what_the_configuration_does_not() {
    let mut program = Program::with_config(&format!("{MAIN}[jobs.a]\n{PURGE}"));
    let state = program.path("elsewhere").display().to_string();
    program.environment.push(("STATE_DIRECTORY".to_owned(), format!("{state}:/other")));
    program.environment.push(("MICROGLIA_LISTEN".to_owned(), "somewhere".to_owned()));
    insta::assert_snapshot!(refusal(&program).await, @r#"
    error: microglia.toml:1:1: $MICROGLIA_LISTEN: invalid listen address "somewhere": expected an IP address and a port, such as "127.0.0.1:8749" or "[::]:8749"
        1 | [homeservers.main]
          | ^
    microglia.toml: 1 error
    "#);
    program.environment.pop();
    let output = program.run(&["runs"]).await;
    assert_eq!((output.code, output.stderr), (0, format!("no run is recorded in {state}\n")));
}

#[tokio::test]
async fn the_example_configurations_are_valid_and_contain_every_key() {
    use microglia::{config::TABLES, jobs::KINDS};
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let read = |name: &str| std::fs::read_to_string(shipped.join(name)).unwrap();
    for name in ["microglia.toml", "minimal.toml"] {
        let program = Program::with_config(&read(name));
        for secret in ["token", "admin-token", "mas-client-secret"] {
            program.write(secret, "s3cret-of-the-tests");
        }
        program.write("internal-ca.pem", include_str!("tls/ca.pem"));
        std::fs::create_dir(program.path("homeservers.d")).unwrap();
        let included = "homeservers.d/customer-a.toml";
        program.write(included, &read(included));
        program.write("homeservers.d/customer-a.token", "s3cret-of-the-tests");
        let (stdout, warnings) = accepted(&program).await;
        assert_eq!(warnings, "", "{name}");
        assert!(stdout.contains("microglia.toml: no errors, no warnings"), "{stdout}");
    }
    let full = read("microglia.toml");
    // `[table]` or `kind = …` determines to which table the next lines belong.
    let keys = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        full.split("\n[")
            .filter(|table| wanted(table))
            .flat_map(|table| table.lines().skip(1))
            // Without a database the history is in `state_dir`: these keys are shown as comments.
            .map(|line| match line.strip_prefix("# ") {
                Some(key)
                    if key.starts_with("database_url") || key.starts_with("client_secret ") =>
                {
                    key
                }
                _ => line,
            })
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = "))
            .map(|(key, _)| key.to_owned())
            .collect()
    };
    let wanted =
        |name: &str, table: &dyn Fn(&str) -> bool, known: &[microglia::values::schema::Key]| {
            let named = keys(table);
            let missing: Vec<&str> = known
                .iter()
                .map(|key| key.name)
                .filter(|key| !named.iter().any(|named| named == key))
                .collect();
            assert_eq!(missing, [""; 0], "keys of {name} that config/microglia.toml does not show");
        };
    for (name, known) in TABLES {
        if name.is_empty() {
            // The keys at the top of the file, before its first table.
            wanted("the top of the file", &|table| table.starts_with('#'), known);
            continue;
        }
        let head = name.split([' ', ',']).next().unwrap();
        let head = head.trim_end_matches("NAME").replace(".NAME.", ".new.");
        let head = head.as_str();
        // A key of every job may be in [defaults].
        wanted(
            name,
            &|table| table.starts_with(head) || (head == "jobs." && table.starts_with("defaults]")),
            known,
        );
    }
    for kind in KINDS {
        let is_kind = |table: &str| table.contains(&format!("\nkind = \"{}\"", kind.name));
        // A job has one of the two keys for an age: `check` would not have accepted it otherwise.
        let known: Vec<_> = kind
            .keys
            .iter()
            .copied()
            .filter(|key| !matches!(key.name, "older_than" | "before"))
            .collect();
        wanted(kind.name, &is_kind, &known);
    }
    assert!(
        full.contains("retries = { attempts = 3, first_delay = \"10s\", max_delay = \"10m\" }")
    );
}
