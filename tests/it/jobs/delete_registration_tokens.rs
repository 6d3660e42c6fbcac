//! `delete-registration-tokens`.

use chrono::{SecondsFormat, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};

use super::{UnderMas, in_process};
use crate::fake::{Fake, Fault, MasToken, RegistrationToken, TOKEN, Trouble, World};
use crate::homeserver::Synapse;
use crate::program::{Program, changes, figures, until};

const JOB: &str = "[jobs.tokens]\nkind = \"delete-registration-tokens\"\n";
const TOKENS: &str = "/_synapse/admin/v1/registration_tokens";
const MAS_TOKENS: &str = "/api/admin/v1/user-registration-tokens";

/// What happens between plan and change, and why the change is then skipped.
type Happened = (fn(&mut World), &'static str);

#[expect(clippy::disallowed_methods, reason = "the program under test has the real clock")]
fn days_ago_ms(days: i64) -> i64 {
    (Utc::now() - TimeDelta::days(days)).timestamp_millis()
}

#[expect(clippy::disallowed_methods, reason = "the program under test has the real clock")]
fn days_ago(days: i64) -> String {
    (Utc::now() - TimeDelta::days(days)).to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Makes what the job remembers of tokens that are used up older than any age.
async fn seen_long_ago(program: &Program) {
    let old = "'1700000000000 ' || substr(value, 15)";
    let set = format!("UPDATE facts SET value = {old} WHERE topic = 'used-up-token'");
    program.sql(&set).await;
}

/// The first words of the changes, without the dates.
fn planned(report: &Value) -> Vec<String> {
    let first = |line: String| line.split([' ', ':']).take(2).collect::<Vec<_>>().join(" ");
    changes(report).into_iter().map(first).collect()
}

async fn names(synapse: &Synapse) -> Vec<String> {
    let list = synapse.get(TOKENS).await;
    let tokens = list["registration_tokens"].as_array().unwrap();
    let mut names: Vec<String> =
        tokens.iter().map(|token| token["token"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn only_tokens_that_were_invalid_for_long_are_deleted() {
    let synapse =
        Synapse::with_config("enable_registration: true\nregistration_requires_token: true\n")
            .await;
    for (token, uses_allowed) in [
        ("expired", None),
        ("expired-lately", None),
        ("used-up", Some(2)),
        ("used-up-pending", Some(1)),
        ("off", Some(0)),
        ("off-expired", Some(0)),
        ("limited", Some(2)),
        ("unlimited", None),
        ("..", None),
    ] {
        let new = json!({"token": token, "uses_allowed": uses_allowed});
        let path = format!("{TOKENS}/new");
        assert_eq!(synapse.admin(Method::POST, &path, new).await.0, 200, "{token}");
    }
    for (days, tokens) in [(40, "'expired', 'off-expired', '..'"), (10, "'expired-lately'")] {
        synapse
            .sql(&format!(
                "UPDATE registration_tokens SET expiry_time = {} WHERE token IN ({tokens})",
                days_ago_ms(days)
            ))
            .await;
    }
    synapse
        .sql("UPDATE registration_tokens SET completed = 2 WHERE token IN ('used-up', 'unlimited')")
        .await;
    // Somebody has begun to register with the last use of a token.
    let register = "/_matrix/client/v3/register";
    let mut registration = json!({"username": "newcomer", "password": "wordpass"});
    let begun = synapse.anonymous(Method::POST, register, registration.clone()).await;
    let session = begun.1["session"].as_str().unwrap().to_owned();
    registration["auth"] = json!({"type": "m.login.registration_token", "token": "used-up-pending", "session": session});
    let stage = synapse.anonymous(Method::POST, register, registration.clone()).await;
    assert_eq!(stage.0, 401, "{}", stage.1);
    let pending = synapse.get(&format!("{TOKENS}/used-up-pending")).await;
    assert_eq!(pending["pending"], 1, "{pending}");

    let program = Program::new(&synapse.url, &synapse.admin.token, JOB);
    synapse.forget_requests();
    let first = program.dry_run("tokens").await;
    assert_eq!(planned(&first), ["failed \"..\"", "planned expired"]);
    let expected = json!({"pending-registration": 1, "recently-invalid": 2, "switched-off": 2});
    assert_eq!(first["left_alone"], expected);
    let message = first["message"].as_str().unwrap();
    let unknown = "1 token is first seen used up: Synapse does not record since when, so this counts from now";
    assert!(message.contains(unknown), "{message}");
    let others: Vec<String> =
        synapse.requests().into_iter().filter(|request| !request.starts_with("GET ")).collect();
    assert_eq!(others, [""; 0], "a dry run sends nothing but GET");
    let failed = changes(&first).into_iter().find(|line| line.starts_with("failed")).unwrap();
    assert!(failed.contains("cannot be part of a URL"), "{failed}");

    synapse.sql("DELETE FROM registration_tokens WHERE token = '..'").await;
    seen_long_ago(&program).await;
    let report = program.apply("tokens").await;
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0");
    let lines = changes(&report);
    assert!(lines[0].starts_with("done expired (expired on "), "{lines:?}");
    assert!(lines[0].ends_with(", 0 uses) (1)"), "{lines:?}");
    assert_eq!(lines[1], "done used-up (used up, 2 of 2 uses, by 2023-11-14) (1)");
    let left = ["expired-lately", "limited", "off", "off-expired", "unlimited", "used-up-pending"];
    assert_eq!(names(&synapse).await, left);
    let shown = program.json(&["runs", "show", &report["id"].to_string(), "--json"]).await;
    let record = shown["changes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|change| change["target"].as_str().unwrap().starts_with("used-up "));
    let expected = json!({"token": "used-up", "uses_allowed": 2, "pending": 0, "completed": 2, "expiry_time": null});
    assert_eq!(record.unwrap()["before"], expected);
    let undo = program.json(&["undo", &report["id"].to_string(), "--json"]).await;
    let why = "it counts the uses of a new one from 0";
    assert!(changes(&undo).iter().all(|line| line.contains(why)), "{undo}");

    // The registration that had begun is completed.
    registration["auth"] = json!({"type": "m.login.dummy", "session": session});
    let done = synapse.anonymous(Method::POST, register, registration).await;
    assert_eq!((done.0, &done.1["user_id"]), (200, &json!("@newcomer:hs.test")), "{}", done.1);
    assert_eq!(figures(&program.apply("tokens").await), "succeeded: 0/0/0/0/0");
}

/// A homeserver with tokens that expired long ago.
fn fake(tokens: &[&str]) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        for token in tokens {
            expired(world, token);
        }
    });
    fake
}

fn expired(world: &mut World, token: &str) {
    let token_of = RegistrationToken { expiry_ms: Some(days_ago_ms(40)), ..Default::default() };
    world.registration_tokens.insert(token.to_owned(), token_of);
}

fn used_up(world: &mut World, token: &str, uses: u64) {
    let token_of =
        RegistrationToken { uses_allowed: Some(uses), completed: uses, ..Default::default() };
    world.registration_tokens.insert(token.to_owned(), token_of);
}

fn on(fake: &Fake, keys: &str) -> Program {
    Program::new(&fake.url(), TOKEN, &format!("{JOB}{keys}\n"))
}

#[tokio::test]
async fn a_token_that_was_used_or_usable_since_is_first_seen_used_up_anew() {
    let fake = fake(&[]);
    fake.world(|world| {
        for token in ["same", "more", "usable", "gone"] {
            used_up(world, token, 3);
        }
    });
    let program = on(&fake, "");
    let first = program.dry_run("tokens").await;
    assert_eq!(first["left_alone"], json!({"recently-invalid": 4}));
    seen_long_ago(&program).await;
    let all = program.dry_run("tokens").await;
    assert_eq!(planned(&all), ["planned gone", "planned more", "planned same", "planned usable"]);
    // Between two runs, one was used twice more, with a limit that was raised meanwhile.
    fake.world(|world| {
        used_up(world, "more", 5);
        world.registration_tokens.get_mut("usable").unwrap().uses_allowed = Some(4);
        world.registration_tokens.remove("gone");
    });
    assert_eq!(planned(&program.dry_run("tokens").await), ["planned same"]);
    fake.world(|world| {
        used_up(world, "usable", 3);
        used_up(world, "gone", 3);
    });
    let report = program.dry_run("tokens").await;
    assert_eq!(planned(&report), ["planned same"]);
    assert_eq!(report["left_alone"], json!({"recently-invalid": 3}));
}

#[tokio::test]
async fn a_token_that_changed_since_the_plan_is_left_alone() {
    let happened: [Happened; 4] = [
        (
            |world| world.registration_tokens.get_mut("a").unwrap().expiry_ms = None,
            "the token changed since the plan",
        ),
        (
            |world| world.registration_tokens.get_mut("a").unwrap().pending = 1,
            "the token changed since the plan",
        ),
        (
            |world| world.registration_tokens.get_mut("a").unwrap().uses_allowed = Some(0),
            "the token changed since the plan",
        ),
        (|world| world.registration_tokens.clear(), "the token no longer exists"),
    ];
    for (happens, why) in happened {
        let fake = fake(&["a"]);
        fake.fault(Fault::new("GET", TOKENS, Trouble::Then(happens)));
        let report = on(&fake, "").apply("tokens").await;
        assert_eq!(figures(&report), "succeeded: 1/0/0/1/0");
        assert_eq!(report["changes"][0]["detail"], why);
        assert_eq!(fake.count("DELETE", TOKENS), 0);
    }
}

#[tokio::test]
async fn a_lost_response_a_limit_and_a_refusal_concern_only_their_token() {
    for (trouble, deletes) in [
        (Trouble::CutAfter, 4),
        (Trouble::CutBefore, 4),
        (Trouble::ProxyAfter(504), 4),
        (Trouble::BrokenJson, 3),
        (Trouble::Limited { retry_after_ms: Some(10), retry_after_header: None }, 4),
    ] {
        let fake = fake(&["a", "b", "c"]);
        fake.fault(Fault::new("DELETE", &format!("{TOKENS}/b"), trouble.clone()));
        let report = on(&fake, "").apply("tokens").await;
        assert_eq!(figures(&report), "succeeded: 3/3/0/0/0", "{trouble:?}");
        assert_eq!(fake.count("DELETE", TOKENS), deletes, "{trouble:?}");
        assert!(fake.world(|world| world.registration_tokens.is_empty()), "{trouble:?}");
    }
    let fake = fake(&["a", "b", "c"]);
    let refusal = Trouble::Synapse(403, "M_FORBIDDEN", "Not this one");
    fake.fault(Fault::new("DELETE", &format!("{TOKENS}/b"), refusal));
    let report = on(&fake, "").apply("tokens").await;
    assert_eq!(figures(&report), "partial: 3/2/1/0/0");
    assert_eq!(planned(&report), ["done a", "done c", "failed b"]);
    assert_eq!(figures(&on(&fake, "at_most = 1").apply("tokens").await), "succeeded: 1/1/0/0/0");
}

#[tokio::test]
async fn a_list_that_cannot_be_understood_deletes_and_forgets_nothing() {
    let fake = fake(&["a", "b"]);
    fake.world(|world| used_up(world, "c", 1));
    let program = on(&fake, "retries = { attempts = 1 }");
    program.dry_run("tokens").await;
    seen_long_ago(&program).await;
    let answer =
        |body: &str| Trouble::Answer { status: 200, headers: vec![], body: body.to_owned() };
    let token = r#""token": "a", "uses_allowed": 1, "completed": 1, "expiry_time": 5"#;
    for trouble in [
        answer("{}"),
        answer(r#"{"registration_tokens": {}}"#),
        answer(&format!(r#"{{"registration_tokens": [{{{token}}}]}}"#)),
        answer(&format!(r#"{{"registration_tokens": [{{{token}, "pending": null}}]}}"#)),
        answer(&format!(r#"{{"registration_tokens": [{{{token}, "pending": -1}}]}}"#)),
        Trouble::Endless(200),
        Trouble::CutBody,
    ] {
        fake.fault(Fault::new("GET", TOKENS, trouble.clone()).always());
        let report = program.apply("tokens").await;
        assert_eq!(report["outcome"], "failed", "{trouble:?}: {report}");
        fake.no_more_faults();
    }
    assert_eq!(fake.count("DELETE", TOKENS), 0);
    // What is gone is forgotten.
    fake.fault(Fault::new("GET", TOKENS, answer(r#"{"registration_tokens": []}"#)));
    assert_eq!(figures(&program.dry_run("tokens").await), "succeeded: 0/0/0/0/0");
    let report = program.apply("tokens").await;
    assert_eq!(planned(&report), ["done a", "done b"]);
}

#[tokio::test]
async fn a_run_that_is_killed_is_continued_by_the_next_one() {
    let tokens: Vec<String> = (0..40).map(|number| format!("token{number:02}")).collect();
    let fake = fake(&tokens.iter().map(String::as_str).collect::<Vec<_>>());
    let program = on(&fake, "");
    fake.world(|world| world.latency = std::time::Duration::from_millis(50));
    let mut child = program.command(&["run", "tokens", "--apply", "--json"]).spawn().unwrap();
    until("some are deleted", 30, async || fake.count("DELETE", TOKENS) > 5).await;
    child.kill().await.unwrap();
    fake.world(|world| world.latency = std::time::Duration::ZERO);
    let left = fake.world(|world| world.registration_tokens.len());
    let report = program.apply("tokens").await;
    assert_eq!(figures(&report), format!("succeeded: {left}/{left}/0/0/0"));
    assert!(fake.world(|world| world.registration_tokens.is_empty()));
    assert_eq!(program.ended("tokens").await, ["manual interrupted", "manual succeeded"]);
    // What the killed run deleted is in the history, too.
    let runs = program.runs("tokens").await;
    let killed = program.json(&["runs", "show", &runs[0]["id"].to_string(), "--json"]).await;
    let recorded = killed["changes"].as_array().unwrap().iter();
    let sent = recorded.filter(|change| change["before"].is_object()).count();
    assert!(sent >= 40 - left, "{sent} of {}", 40 - left);
}

/// A homeserver whose accounts are in MAS, with a token of each sort there.
fn under_mas() -> UnderMas {
    let mas = UnderMas::start();
    mas.fake.world(|world| {
        let service = &mut world.auth_service;
        let (old, new) = (Some(days_ago(40)), Some(days_ago(3)));
        let token = |name: &str, limit, uses| MasToken {
            token: name.to_owned(),
            usage_limit: limit,
            times_used: uses,
            ..MasToken::default()
        };
        for token in [
            MasToken { expires_at: old.clone(), ..token("expired", None, 0) },
            MasToken { expires_at: new.clone(), ..token("expired-lately", None, 0) },
            MasToken { last_used_at: old.clone(), ..token("used-up", Some(2), 2) },
            MasToken { last_used_at: new.clone(), ..token("used-up-lately", Some(2), 2) },
            MasToken { last_used_at: old.clone(), ..token("limited", Some(3), 2) },
            MasToken { last_used_at: old.clone(), ..token("unlimited", None, 2) },
            MasToken { expires_at: old.clone(), ..token("off", Some(0), 0) },
            // Its last use is not known.
            token("imported", Some(2), 2),
            MasToken { expires_at: old.clone(), revoked_at: new, ..token("revoked", None, 0) },
        ] {
            service.registration_token(token);
        }
    });
    mas
}

/// The tokens that are revoked, sorted.
fn revoked(mas: &UnderMas) -> Vec<String> {
    let mut revoked: Vec<String> = mas.fake.world(|world| {
        let tokens = world.auth_service.registration_tokens.values();
        let revoked = tokens.filter(|token| token.revoked_at.is_some());
        revoked.map(|token| token.token.clone()).collect()
    });
    revoked.sort();
    revoked
}

#[tokio::test]
async fn under_mas_tokens_are_revoked_there_and_that_can_be_undone() {
    let mas = under_mas();
    let program = mas.program(JOB);
    let first = program.dry_run("tokens").await;
    assert_eq!(planned(&first), ["planned expired", "planned used-up"]);
    assert_eq!(first["left_alone"], json!({"recently-invalid": 3, "switched-off": 1}));
    seen_long_ago(&program).await;
    let report = program.apply("tokens").await;
    assert_eq!(planned(&report), ["done expired", "done imported", "done used-up"]);
    let changed = report["changes"].as_array().unwrap();
    assert!(changed.iter().all(|change| change["action"] == "revoke-registration-token"));
    let expected = " (created on 2024-01-01, used up, 2 of 2 uses, by ";
    assert!(changes(&report)[2].starts_with(&format!("done used-up{expected}")), "{report}");
    assert_eq!(revoked(&mas), ["expired", "imported", "revoked", "used-up"]);
    assert_eq!(figures(&program.apply("tokens").await), "succeeded: 0/0/0/0/0");
    assert_eq!(mas.fake.count("*", TOKENS), 0, "Synapse has no tokens");

    let run = report["id"].to_string();
    let shown = program.json(&["undo", &run, "--json"]).await;
    assert_eq!(figures(&shown), "succeeded: 3/0/0/0/0");
    let undone = program.json(&["undo", &run, "--apply", "--json"]).await;
    assert_eq!(figures(&undone), "succeeded: 3/3/0/0/0");
    assert_eq!(revoked(&mas), ["revoked"]);
    let again = program.json(&["undo", &run, "--apply", "--json"]).await;
    let message = again["message"].as_str().unwrap();
    assert!(
        message.contains("3 items not restored: the token is not revoked any more"),
        "{message}"
    );
    let redone = program.json(&["undo", &undone["id"].to_string(), "--apply", "--json"]).await;
    assert_eq!(figures(&redone), "succeeded: 3/3/0/0/0");
    assert_eq!(revoked(&mas), ["expired", "imported", "revoked", "used-up"]);
}

#[tokio::test]
async fn under_mas_a_revocation_is_safe_to_repeat_and_a_token_that_changed_is_left_alone() {
    for trouble in [Trouble::CutAfter, Trouble::CutBefore, Trouble::ProxyAfter(504)] {
        let mas = under_mas();
        mas.internal.fault(Fault::new("POST", MAS_TOKENS, trouble.clone()));
        let report = mas.program(JOB).apply("tokens").await;
        assert_eq!(figures(&report), "succeeded: 2/2/0/0/0", "{trouble:?}");
        assert_eq!(revoked(&mas), ["expired", "revoked", "used-up"], "{trouble:?}");
    }
    let happened: [Happened; 3] = [
        (
            |world| change(world, |token| token.expires_at = None),
            "the token changed since the plan",
        ),
        (
            |world| change(world, |token| token.usage_limit = Some(9)),
            "the token changed since the plan",
        ),
        (
            |world| change(world, |token| token.revoked_at = token.expires_at.clone()),
            "the token is revoked already",
        ),
    ];
    for (happens, why) in happened {
        let mas = under_mas();
        mas.internal.fault(Fault::new("GET", MAS_TOKENS, Trouble::Then(happens)));
        let report = mas.program(JOB).apply("tokens").await;
        assert_eq!(figures(&report), "succeeded: 2/1/0/1/0");
        let skipped = changes(&report).into_iter().find(|line| line.starts_with("skipped"));
        assert!(skipped.unwrap().ends_with(why), "{report}");
    }
}

fn change(world: &mut World, change: fn(&mut MasToken)) {
    let tokens = world.auth_service.registration_tokens.values_mut();
    tokens.filter(|token| token.token == "expired").for_each(change);
}

#[tokio::test]
async fn a_configuration_that_does_not_fit_the_homeserver_is_refused() {
    let fake = fake(&["a"]);
    fake.world(|world| world.mas = true);
    fake.world(|world| world.token(TOKEN, "@microglia:fake.test").admin_scope = true);
    let report = on(&fake, "").apply("tokens").await;
    assert_eq!(report["outcome"], "refused");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("configure [homeservers.NAME.mas]"), "{message}");
    let mas = under_mas();
    let program = mas.program(&format!(
        "[homeservers.plain]\nurl = \"{}\"\naccess_token = \"{TOKEN}\"\n\n{JOB}homeserver = \"plain\"\n",
        mas.fake.url()
    ));
    // In process, a job has the MAS of the homeserver of that name.
    let config = program.read("microglia.toml").replace("homeservers.main", "homeservers.mas");
    program.write("microglia.toml", &config);
    mas.fake.world(|world| world.mas = false);
    let report = in_process::apply(&program, "tokens").await.report;
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("this Synapse does not delegate to MAS"), "{message}");
    for (keys, expected) in [
        ("unused_for = \"30\"", "the unit is missing"),
        ("older_than = \"30d\"", "unknown key `older_than`"),
    ] {
        let output = on(&fake, keys).run(&["check"]).await;
        assert_eq!(output.code, 2, "{keys}");
        assert!(output.stderr.contains(expected), "{keys}: {}", output.stderr);
    }
}
