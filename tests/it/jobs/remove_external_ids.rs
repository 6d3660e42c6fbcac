//! `remove-external-ids`.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::in_process::{self, SOON};
use crate::fake::{Fake, Fault, TOKEN, Trouble, User, World};
use crate::homeserver::{Account, Messages, Synapse, encoded};
use crate::program::{Output, Program, changes, figures, until};

const USER: &str = "/_synapse/admin/v2/users/";

/// A job `ids` that removes `oidc-old` from all accounts, with additional `keys`, which may contain further jobs.
fn ids(keys: &str) -> String {
    format!("{}{keys}\n", job("ids", "accounts = \"all\"\nproviders = [\"oidc-old\"]"))
}

fn job(name: &str, keys: &str) -> String {
    format!(
        "[jobs.{name}]\nkind = \"remove-external-ids\"\nretries = {{ attempts = 3, first_delay = \"0s\" }}\n{keys}\n"
    )
}

/// The program at a real Synapse, as an administrator runs it.
fn program(synapse: &Synapse, jobs: &str) -> Program {
    Program::new(&synapse.url, &synapse.admin.token, jobs)
}

/// The program at a fake one, with one request at a time.
fn one_by_one(fake: &Fake, keys: &str) -> Program {
    Program::new(&fake.url(), TOKEN, &format!("max_concurrent_requests = 1\n\n{}", ids(keys)))
}

fn message(report: &Value) -> &str {
    report["message"].as_str().unwrap_or("none")
}

/// The accounts that a report's changes are about, each with the ids that go.
fn targets(report: &Value) -> Vec<&str> {
    let changes = report["changes"].as_array().unwrap();
    let mut targets: Vec<&str> =
        changes.iter().map(|change| change["target"].as_str().unwrap()).collect();
    targets.sort_unstable();
    targets
}

fn path_of(user_id: &str) -> String {
    format!("{USER}{user_id}")
}

fn old(external_id: &str) -> User {
    User::default().external("oidc-old", external_id)
}

fn held(fake: &Fake, user_id: &str) -> Vec<(String, String)> {
    fake.world(|world| world.user(user_id).external_ids.clone())
}

fn pair(provider: &str, external_id: &str) -> (String, String) {
    (provider.to_owned(), external_id.to_owned())
}

/// Accounts `@a:fake.test`, `@b:fake.test` and so on, each with its own id of `oidc-old`.
fn fake_with(accounts: &[&str]) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        for name in accounts {
            *world.user(&format!("@{name}:fake.test")) = old(name);
        }
    });
    fake
}

/// Starts the run and returns its output, after `meanwhile` has happened while its first PUT is in progress.
async fn while_the_first_put_is_under_way(
    fake: &Fake,
    program: &Program,
    meanwhile: impl FnOnce(),
) -> Output {
    fake.fault(Fault::new("PUT", USER, Trouble::Delay(Duration::from_secs(1))));
    let run = program.run(&["run", "ids", "--apply", "--json"]);
    let change = async {
        until("a PUT in progress", 20, || async { fake.count("PUT", USER) > 0 }).await;
        meanwhile();
    };
    tokio::join!(run, change).0
}

fn report(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Synapse's record of an account, without its external ids and its times.
async fn everything_else(synapse: &Synapse, user_id: &str) -> Value {
    let mut user = synapse.get(&path_of(&encoded(user_id))).await;
    for key in ["external_ids", "last_seen_ts"] {
        user.as_object_mut().unwrap().remove(key);
    }
    user
}

/// Who would be logged in by that id.
async fn login_by(synapse: &Synapse, provider: &str, external_id: &str) -> (u16, Value) {
    let (provider, external_id) = (encoded(provider), encoded(external_id));
    let path = format!("/_synapse/admin/v1/auth_providers/{provider}/users/{external_id}");
    let (status, answer) = synapse.admin(Method::GET, &path, Value::Null).await;
    (status, answer["user_id"].clone())
}

fn puts(synapse: &Synapse) -> usize {
    synapse.requests().iter().filter(|request| !request.starts_with("GET ")).count()
}

const ODD: [&str; 3] = ["a/b=c+d.e", "Old \"quoted\" 100%25 née?#&", "percent%2Fslash"];
const ODD_IDS: [&str; 3] = ["a/b c?d#e&f=g", "100%2F\"quoted\" 'née' *", "..\\%25/ü\t☃"];

#[tokio::test]
async fn exactly_the_selected_ids_are_removed() {
    let synapse = Synapse::start().await;
    let mut everybody: Vec<Account> = Vec::new();
    for localpart in ["alice", "bob", "carol", "dora", "erin", "lock", "susp"] {
        everybody.push(synapse.register(localpart).await);
    }
    everybody.push(synapse.register_admin("boss").await);
    for (localpart, external_id) in ODD.iter().zip(ODD_IDS) {
        let odd = synapse.insert_user(localpart).await;
        synapse
            .external_ids(&odd.user_id, &[("oidc-old", external_id), ("saml", external_id)])
            .await;
        everybody.push(odd);
    }
    everybody.push(synapse.admin.clone());
    for (localpart, held) in [
        (
            "alice",
            &[("oidc-old", "a1"), ("oidc-old", "a2"), ("oidc-new", "a1"), ("saml", "alice")][..],
        ),
        ("bob", &[("oidc-old", "bob")]),
        ("carol", &[("saml", "carol"), ("oidc-older", "carol")]),
        ("dora", &[("oidc-old", "dora"), ("saml", "dora")]),
        ("erin", &[("oidc-old", "erin")]),
        ("lock", &[("oidc-old", "lock")]),
        ("susp", &[("oidc-old", "susp")]),
        ("boss", &[("oidc-old", "boss")]),
        ("admin", &[("oidc-old", "me")]),
    ] {
        synapse.external_ids(&format!("@{localpart}:hs.test"), held).await;
    }
    synapse.deactivate("@dora:hs.test", Messages::Keep).await;
    synapse.deactivate("@erin:hs.test", Messages::Erase).await;
    synapse.lock("@lock:hs.test").await;
    synapse.suspend("@susp:hs.test").await;
    // Synapse has now cached their owners, and would continue to log them in.
    for (external_id, user_id) in [("a1", "@alice:hs.test"), ("erin", "@erin:hs.test")] {
        assert_eq!(login_by(&synapse, "oidc-old", external_id).await, (200, json!(user_id)));
    }
    for external_id in ODD_IDS {
        assert_eq!(login_by(&synapse, "oidc-old", external_id).await.0, 200);
    }
    let provider = "providers = [\"oidc-old\"]";
    let several = |name: &str, keys: &str| job(name, &format!("{provider}\n{keys}"));
    let jobs = [
        ids("mode = \"apply\""),
        several("active", "accounts = \"active\"\nusers = [\"@a*\", \"@b*:hs.test\", \"@lock:*\", \"@susp:*\"]\nexcept_users = [\"@a/*\"]"),
        several("gone", "accounts = [\"deactivated\"]"),
        several("locked", "accounts = [\"locked\"]"),
        several("admins", "accounts = \"all\"\ninclude_admins = true\nusers = [\"@boss:hs.test\", \"@admin:hs.test\"]"),
        several("some", "accounts = \"all\"\nexternal_ids = [\"*2\", \"e?in\"]"),
        several("keep-last", "accounts = \"all\"\nkeep_last = true\nexcept_users = [\"@*%*\"]"),
        several("both", "accounts = [\"deactivated\", \"locked\"]\nproviders = [\"oidc-old\", \"saml\"]").replace(&format!("{provider}\n"), ""),
    ]
    .concat();
    let program = program(&synapse, &jobs);

    let mut plans = String::new();
    for job in ["active", "gone", "locked", "both", "admins", "some", "keep-last", "ids"] {
        let report = program.dry_run(job).await;
        plans.push_str(&format!("{job}: {}\n", figures(&report)));
        for target in targets(&report) {
            plans.push_str(&format!("  {target}\n"));
        }
    }
    insta::assert_snapshot!(plans, @r#"
    active: succeeded: 3/0/0/0/0
      @alice:hs.test -> oidc-old:a1, oidc-old:a2
      @bob:hs.test -> oidc-old:bob
    gone: succeeded: 2/0/0/0/0
      @dora:hs.test -> oidc-old:dora
      @erin:hs.test -> oidc-old:erin
    locked: succeeded: 2/0/0/0/0
      @lock:hs.test -> oidc-old:lock
      @susp:hs.test -> oidc-old:susp
    both: succeeded: 5/0/0/0/0
      @dora:hs.test -> oidc-old:dora, saml:dora
      @erin:hs.test -> oidc-old:erin
      @lock:hs.test -> oidc-old:lock
      @susp:hs.test -> oidc-old:susp
    admins: succeeded: 1/0/0/0/0
      @boss:hs.test -> oidc-old:boss
    some: succeeded: 2/0/0/0/0
      @alice:hs.test -> oidc-old:a2
      @erin:hs.test -> oidc-old:erin
    keep-last: succeeded: 7/0/0/0/0
      @a/b=c+d.e:hs.test -> oidc-old:a/b c?d#e&f=g
      @alice:hs.test -> oidc-old:a1, oidc-old:a2
      @dora:hs.test -> oidc-old:dora
      @erin:hs.test -> oidc-old:erin
      @lock:hs.test -> oidc-old:lock
      @susp:hs.test -> oidc-old:susp
    ids: succeeded: 10/0/0/0/0
      @Old "quoted" 100%25 née?#&:hs.test -> oidc-old:100%2F"quoted" 'née' *
      @a/b=c+d.e:hs.test -> oidc-old:a/b c?d#e&f=g
      @alice:hs.test -> oidc-old:a1, oidc-old:a2
      @bob:hs.test -> oidc-old:bob
      @dora:hs.test -> oidc-old:dora
      @erin:hs.test -> oidc-old:erin
      @lock:hs.test -> oidc-old:lock
      @percent%2Fslash:hs.test -> oidc-old:..\%25/ü	☃
      @susp:hs.test -> oidc-old:susp
    "#);

    let mut before = Vec::new();
    for account in &everybody {
        before.push(everything_else(&synapse, &account.user_id).await);
    }
    let report = program.apply("ids").await;
    insta::assert_snapshot!(figures(&report), @"succeeded: 10/10/0/0/0");
    let mut left = String::new();
    for (account, before) in everybody.iter().zip(before) {
        let user_id = &account.user_id;
        assert_eq!(everything_else(&synapse, user_id).await, before);
        left.push_str(&format!("{user_id}: {:?}\n", synapse.external_ids_of(user_id).await));
    }
    insta::assert_snapshot!(left, @r#"
    @alice:hs.test: [("oidc-new", "a1"), ("saml", "alice")]
    @bob:hs.test: []
    @carol:hs.test: [("oidc-older", "carol"), ("saml", "carol")]
    @dora:hs.test: [("saml", "dora")]
    @erin:hs.test: []
    @lock:hs.test: []
    @susp:hs.test: []
    @boss:hs.test: [("oidc-old", "boss")]
    @a/b=c+d.e:hs.test: [("saml", "a/b c?d#e&f=g")]
    @Old "quoted" 100%25 née?#&:hs.test: [("saml", "100%2F\"quoted\" 'née' *")]
    @percent%2Fslash:hs.test: [("saml", "..\\%25/ü\t☃")]
    @admin:hs.test: [("oidc-old", "me")]
    "#);
    for external_id in
        ["a1", "a2", "bob", "dora", "erin", "lock", "susp"].into_iter().chain(ODD_IDS)
    {
        assert_eq!(
            login_by(&synapse, "oidc-old", external_id).await,
            (404, Value::Null),
            "{external_id}"
        );
    }
    assert_eq!(login_by(&synapse, "oidc-new", "a1").await, (200, json!("@alice:hs.test")));

    synapse.forget_requests();
    let again = program.apply("ids").await;
    assert_eq!(figures(&again), "succeeded: 0/0/0/0/0");
    assert_eq!(puts(&synapse), 0);

    // The previous list is recorded, and can be restored unchanged.
    let run = report["id"].to_string();
    let shown = program.run(&["runs", "show", &run]).await.stdout;
    let lines: Vec<&str> =
        shown.lines().skip_while(|line| !line.contains("@alice")).take(2).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    done     remove-external-id @alice:hs.test -> oidc-old:a1, oidc-old:a2 (2)
             before: [{"auth_provider":"oidc-old","external_id":"a1"},{"auth_provider":"oidc-old","external_id":"a2"},{"auth_provider":"oidc-new","external_id":"a1"},{"auth_provider":"saml","external_id":"alice"}]
    "#);
    let recorded = program.json(&["runs", "show", &run, "--json"]).await;
    for change in recorded["changes"].as_array().unwrap() {
        let user_id = change["target"].as_str().unwrap().split(" -> ").next().unwrap();
        synapse.set_user(user_id, json!({ "external_ids": change["before"] })).await;
    }
    assert_eq!(
        synapse.external_ids_of("@alice:hs.test").await,
        [("oidc-new", "a1"), ("oidc-old", "a1"), ("oidc-old", "a2"), ("saml", "alice")]
            .map(|(provider, id)| pair(provider, id))
    );
    let (planned, restored) = (
        targets(&report),
        // Only a full dry run reads deactivated accounts again that were read before without ids of the provider.
        program.json(&["run", "ids", "--dry-run", "--full", "--json"]).await,
    );
    assert_eq!(targets(&restored), planned);
}

#[tokio::test]
async fn accounts_beyond_the_first_page_are_found_and_nothing_is_sent_where_nothing_matches() {
    let synapse = Synapse::start().await;
    synapse.register_many("many", 1200).await;
    synapse
        .sql("INSERT INTO user_external_ids (auth_provider, external_id, user_id)
            SELECT 'oidc-new', name, name FROM users WHERE name LIKE '@many%'
            UNION SELECT 'oidc-old', name, name FROM users WHERE name IN ('@many00000:hs.test', '@many01199:hs.test')")
        .await;
    let none = job("none", "accounts = \"all\"\nproviders = [\"google\"]");
    let program = program(&synapse, &format!("{}{none}", ids("")));
    synapse.forget_requests();
    let report = program.apply("none").await;
    assert_eq!(figures(&report), "succeeded: 0/0/0/0/0");
    assert_eq!(message(&report), "`google` held by nobody; seen: `oidc-new` 1,200, `oidc-old` 2");
    assert_eq!(puts(&synapse), 0);
    let report = program.apply("ids").await;
    assert_eq!(
        changes(&report),
        [
            "done @many00000:hs.test -> oidc-old:@many00000:hs.test (1)",
            "done @many01199:hs.test -> oidc-old:@many01199:hs.test (1)",
        ]
    );
    assert_eq!(puts(&synapse), 4);
    let left =
        synapse.sql("SELECT auth_provider, count(*) FROM user_external_ids GROUP BY 1").await;
    assert_eq!(left, [[json!("oidc-new"), json!(1200)]]);
}

#[tokio::test]
async fn a_contradicting_response_fails_only_its_account() {
    let fake = fake_with(&["alice", "bob", "carol"]);
    // The second PUT is the one that removes the id.
    let other = Trouble::Answer {
        status: 200,
        headers: Vec::new(),
        body: r#"{"name": "@bob:fake.test", "external_ids": [{"auth_provider": "oidc-old", "external_id": "bob"}]}"#
            .to_owned(),
    };
    fake.fault(Fault::new("PUT", &path_of("@bob:fake.test"), other).after(1));
    let program = Program::new(&fake.url(), TOKEN, &ids(""));
    let report = program.apply("ids").await;
    insta::assert_snapshot!(format!("{}\n{}", figures(&report), changes(&report).join("\n")), @"
    partial: 3/2/1/0/0
    done @alice:fake.test -> oidc-old:alice (1)
    done @carol:fake.test -> oidc-old:carol (1)
    failed @bob:fake.test -> oidc-old:bob (1): Synapse returned a different list of external ids than it was sent: someone else changed the account at the same time
    ");
}

/// Links one identity, as a login does.
fn link(world: &mut World, external_id: &str) {
    let new = ("saml".to_owned(), external_id.to_owned());
    let user = world.user("@a:fake.test");
    if !user.external_ids.contains(&new) {
        user.external_ids.push(new);
    }
}

#[tokio::test]
async fn an_identity_that_a_login_links_in_the_meantime_is_kept_and_recorded() {
    let path = path_of("@a:fake.test");
    let login: fn(&mut World) = |world| link(world, "new");
    // Read for the plan, for the record, and before each of the two PUTs.
    for (method, after) in [("GET", 0), ("GET", 1), ("PUT", 0), ("PUT", 1)] {
        let fake = fake_with(&["a"]);
        fake.fault(Fault::new(method, &path, Trouble::Then(login)).after(after));
        let program = Program::new(&fake.url(), TOKEN, &ids(""));
        let report = program.apply("ids").await;
        let when = format!("after {method} {after}");
        assert_eq!(changes(&report), ["done @a:fake.test -> oidc-old:a (1)"], "{when}");
        let left = fake.world(|world| world.user("@a:fake.test").external_ids.clone());
        assert_eq!(left, [("saml".to_owned(), "new".to_owned())], "{when}");
        let before = report["changes"][0]["before"].as_array().unwrap().len();
        // What was linked after the last PUT was not replaced by anything.
        assert_eq!(before, if (method, after) == ("PUT", 1) { 1 } else { 2 }, "{when}: {report}");
        let login = fake.world(|world| world.login_by("oidc-old", "a"));
        assert_eq!(login, None, "{when}");
    }
}

#[tokio::test]
async fn an_account_that_changes_all_the_time_is_left_unchanged() {
    let fake = fake_with(&["a", "b"]);
    let login: fn(&mut World) = |world| {
        let number = world.user("@a:fake.test").external_ids.len();
        link(world, &format!("new{number}"));
    };
    fake.fault(Fault::new("GET", &path_of("@a:fake.test"), Trouble::Then(login)).always());
    let program = Program::new(&fake.url(), TOKEN, &ids(""));
    let report = program.apply("ids").await;
    insta::assert_snapshot!(format!("{}\n{}", figures(&report), changes(&report).join("\n")), @"
    partial: 2/1/1/0/0
    done @b:fake.test -> oidc-old:b (1)
    failed @a:fake.test -> oidc-old:a (1): another client keeps changing the account: left unchanged
    ");
    let left = fake.world(|world| world.user("@a:fake.test").external_ids.len());
    assert_eq!(left, 12, "the plan's read, and two of each look");
    assert_eq!(fake.count("PUT", &path_of("@a:fake.test")), 0);
}

#[tokio::test]
async fn the_message_counts_accounts_that_would_lose_their_only_id_and_names_patterns_without_match()
 {
    let fake = fake_with(&["bob", "dora"]);
    fake.world(|world| {
        *world.user("@alice:fake.test") = old("a1").external("saml", "alice");
        *world.user("@both:fake.test") = old("b1").external("oidc-old", "b2");
        world.user("@dora:fake.test").deactivated = true;
        world.users(812, |i| User::default().external("oidc-google", &i.to_string()));
    });
    let odd = job(
        "odd",
        "accounts = \"all\"\nproviders = [\"google\", \"oidc-old\", \"cas\"]\nexternal_ids = [\"b*\", \"none-*\"]\nusers = [\"@*:fake.test\", \"@nobody:fake.test\"]\nexcept_users = [\"@*:other.test\"]",
    );
    let keep = job("keep", "accounts = \"all\"\nproviders = [\"oidc-old\"]\nkeep_last = true");
    let own = job(
        "own",
        "accounts = \"all\"\nproviders = [\"oidc-old\"]\nusers = [\"@microglia:fake.test\"]",
    );
    let program = Program::new(&fake.url(), TOKEN, &format!("{}{odd}{keep}{own}", ids("")));
    insta::assert_snapshot!(message(&program.dry_run("ids").await), @"3 of the planned ids are the only ones of active accounts, which then need a password or another identity to log in (`keep_last = true` leaves those alone)");
    insta::assert_snapshot!(message(&program.dry_run("odd").await).replace("; ", ";\n"), @"
    3 of the planned ids are the only ones of active accounts, which then need a password or another identity to log in (`keep_last = true` leaves those alone);
    `google`, `cas` held by nobody;
    seen: `oidc-google` 812, `oidc-old` 5, `saml` 1;
    `none-*` matched no id of these providers;
    `@nobody:fake.test` matched no account;
    `@*:other.test` matched no account
    ");
    insta::assert_snapshot!(message(&program.dry_run("own").await), @"`oidc-old` held by no selected account; 816 accounts outside the selection were not read; seen: no providers");
    let kept = program.dry_run("keep").await;
    assert_eq!(
        (message(&kept), targets(&kept)),
        ("none", vec!["@alice:fake.test -> oidc-old:a1", "@dora:fake.test -> oidc-old:dora"])
    );
    assert_eq!(fake.count("PUT", "/"), 0);
}

#[tokio::test]
async fn the_message_distinguishes_providers_of_no_selected_account_from_those_of_nobody() {
    let fake = fake_with(&["bob"]);
    fake.world(|world| {
        for name in ["x", "y", "z"] {
            *world.user(&format!("@{name}:fake.test")) = old(name).external("oidc-google", name);
            world.user(&format!("@{name}:fake.test")).suspended = true;
        }
        *world.user("@gone:fake.test") = User::default().external("saml", "gone");
        world.user("@gone:fake.test").deactivated = true;
    });
    let of = |name: &str, accounts: &str, provider: &str| {
        job(name, &format!("accounts = \"{accounts}\"\nproviders = [\"{provider}\"]"))
    };
    let jobs = [
        of("unread", "deactivated", "oidc-google"),
        of("read", "active", "oidc-google"),
        of("nobody", "all", "cas"),
        of("held", "deactivated", "saml"),
    ];
    let program = Program::new(&fake.url(), TOKEN, &jobs.concat());
    let mut messages = Vec::new();
    for name in ["unread", "read", "nobody", "held"] {
        messages.push(message(&program.dry_run(name).await).to_owned());
    }
    insta::assert_snapshot!(messages.join("\n"), @"
    `oidc-google` held by no selected account; 4 accounts outside the selection were not read; seen: `saml` 1
    `oidc-google` held by no selected account; at least 3 other accounts hold it; seen: `oidc-google` 3, `oidc-old` 4
    `cas` held by nobody; seen: `oidc-google` 3, `oidc-old` 4, `saml` 1
    none
    ");
}

#[tokio::test]
async fn limits_count_ids_rather_than_accounts() {
    let fake = Fake::start();
    fake.world(|world| {
        for name in ["a", "b", "c"] {
            *world.user(&format!("@{name}:fake.test")) =
                old(&format!("{name}1")).external("oidc-old", &format!("{name}2"));
        }
    });
    let parts = |name: &str, at_most: u32| {
        job(name, &format!("accounts = \"all\"\nproviders = [\"oidc-old\"]\nat_most = {at_most}"))
    };
    let rest = format!("{}{}{}", ids("max_changes = 5"), parts("four", 4), parts("one", 1));
    let program = Program::new(&fake.url(), TOKEN, &rest);
    let report = program.apply("ids").await;
    assert_eq!(figures(&report), "refused: 6/0/0/0/6");
    insta::assert_snapshot!(message(&report), @"the plan has 6 items, more than max_changes = 5: preview it with `microglia run ids --dry-run`; if it is correct, run it once with `--max-changes 6`, raise max_changes, or set at_most to apply it in parts; 6 of the planned ids are the only ones of active accounts, which then need a password or another identity to log in (`keep_last = true` leaves those alone)");
    let report = program.apply("one").await;
    assert_eq!(figures(&report), "refused: 0/0/0/0/2");
    insta::assert_snapshot!(message(&report), @"`at_most = 1` is smaller than the first indivisible batch of the plan, so nothing would ever be done: raise it");
    assert_eq!(fake.count("PUT", "/"), 0);
    assert_eq!(figures(&program.apply("four").await), "succeeded: 4/4/0/0/null");
    assert_eq!(
        targets(&program.dry_run("ids").await),
        ["@c:fake.test -> oidc-old:c1, oidc-old:c2"]
    );
    let report = program.json(&["run", "ids", "--apply", "--max-changes", "6", "--json"]).await;
    assert_eq!(figures(&report), "succeeded: 2/2/0/0/0");
}

#[tokio::test]
async fn an_account_that_changed_since_the_plan_loses_only_ids_that_are_still_selected() {
    let fake = fake_with(&["a", "b", "c", "d", "e", "f", "g"]);
    fake.world(|world| {
        *world.user("@c:fake.test") = old("c1").external("oidc-old", "c2").external("saml", "c");
    });
    let program = Program::new(
        &fake.url(),
        TOKEN,
        &format!(
            "max_concurrent_requests = 1\n\n{}",
            job("ids", "accounts = \"active\"\nproviders = [\"oidc-old\"]")
        ),
    );
    let output = while_the_first_put_is_under_way(&fake, &program, || {
        fake.world(|world| {
            world.user("@b:fake.test").external_ids = vec![pair("oidc-new", "b")];
            world.user("@c:fake.test").external_ids.remove(0);
            world.user("@d:fake.test").external_ids.push(pair("oidc-new", "d"));
            world.users.remove("@e:fake.test");
            world.user("@f:fake.test").deactivated = true;
            world.user("@g:fake.test").admin = true;
        });
    })
    .await;
    let report = report(&output);
    insta::assert_snapshot!(format!("{}\n{}", figures(&report), changes(&report).join("\n")), @"
    succeeded: 8/3/0/5/0
    done @a:fake.test -> oidc-old:a (1)
    done @c:fake.test -> oidc-old:c1, oidc-old:c2 (1): 1 of the 2 planned ids: the others no longer existed
    done @d:fake.test -> oidc-old:d (1)
    skipped @b:fake.test -> oidc-old:b (1): the account changed since the plan, and has no ids to remove any more
    skipped @e:fake.test -> oidc-old:e (1): the account was removed since the plan
    skipped @f:fake.test -> oidc-old:f (1): the account changed since the plan, and has no ids to remove any more
    skipped @g:fake.test -> oidc-old:g (1): the account changed since the plan, and has no ids to remove any more
    ");
    assert_eq!(held(&fake, "@a:fake.test"), []);
    assert_eq!(held(&fake, "@b:fake.test"), [pair("oidc-new", "b")]);
    assert_eq!(held(&fake, "@c:fake.test"), [pair("saml", "c")]);
    assert_eq!(held(&fake, "@d:fake.test"), [pair("oidc-new", "d")]);
    assert!(fake.world(|world| !world.users.contains_key("@e:fake.test")));
    assert_eq!(held(&fake, "@f:fake.test"), [pair("oidc-old", "f")]);
    assert_eq!(held(&fake, "@g:fake.test"), [pair("oidc-old", "g")]);
}

#[tokio::test]
async fn an_account_that_synapse_created_is_an_alarm_that_stops_the_run() {
    let fake = fake_with(&["a", "b", "c"]);
    let read_again =
        Fault::new("GET", &path_of("@b:fake.test"), Trouble::Delay(Duration::from_secs(1)));
    // For the plan, for the record, and right before the first PUT.
    fake.fault(read_again.after(2));
    let program = one_by_one(&fake, "");
    let vanish = async {
        until("the account is read again", 20, || async {
            fake.count("GET", &path_of("@b:fake.test")) == 3
        })
        .await;
        fake.world(|world| world.users.remove("@b:fake.test"));
    };
    let (report, ()) = tokio::join!(program.apply("ids"), vanish);
    assert_eq!(fake.complaints(), ["PUT of @b:fake.test, who does not exist"]);
    insta::assert_snapshot!(format!("{}\n{}\n{}", figures(&report), message(&report), changes(&report).join("\n")), @"
    failed: 3/1/1/0/1
    PUT /_synapse/admin/v2/users/@b:fake.test: Synapse created the account @b:fake.test, which existed just before: deactivate it and find out who removed the original one; 3 of the planned ids are the only ones of active accounts, which then need a password or another identity to log in (`keep_last = true` leaves those alone); 1 of 4 accounts read; the next run continues
    done @a:fake.test -> oidc-old:a (1)
    failed @b:fake.test -> oidc-old:b (1): Synapse created the account @b:fake.test, which existed just before: deactivate it and find out who removed the original one
    planned @c:fake.test -> oidc-old:c (1)
    ");
    assert_eq!(held(&fake, "@c:fake.test"), [pair("oidc-old", "c")]);
}

#[tokio::test]
async fn accounts_that_synapse_cannot_read_or_change_fail_alone() {
    let fake = fake_with(&["a", "b", "c", "d", "e"]);
    let fault = |method, user_id, status, error| {
        Fault::new(method, &path_of(user_id), Trouble::Synapse(status, "M_UNKNOWN", error)).always()
    };
    fake.fault(fault("PUT", "@a:fake.test", 500, "Internal server error"));
    fake.fault(fault("PUT", "@b:fake.test", 409, "External id is already in use."));
    fake.fault(fault("GET", "@d:fake.test", 500, "Internal server error"));
    let program = one_by_one(&fake, "");
    let report = program.apply("ids").await;
    insta::assert_snapshot!(format!("{}\n{}\n{}", figures(&report), message(&report), changes(&report).join("\n")), @"
    partial: 5/2/3/0/0
    3 targets failed: see the changes for the reasons; 4 of the planned ids are the only ones of active accounts, which then need a password or another identity to log in (`keep_last = true` leaves those alone)
    done @c:fake.test -> oidc-old:c (1)
    done @e:fake.test -> oidc-old:e (1)
    failed @a:fake.test -> oidc-old:a (1): 500 M_UNKNOWN: Internal server error
    failed @b:fake.test -> oidc-old:b (1): 409 M_UNKNOWN: External id is already in use.
    failed @d:fake.test (1): 500 M_UNKNOWN: Internal server error
    ");
    assert_eq!(held(&fake, "@b:fake.test"), [pair("oidc-old", "b")]);
    assert_eq!((held(&fake, "@c:fake.test"), held(&fake, "@e:fake.test")), (vec![], vec![]));
}

#[tokio::test]
async fn five_internal_errors_in_a_row_end_the_run() {
    let fake = fake_with(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    let broken = Trouble::Synapse(500, "M_UNKNOWN", "Internal server error");
    fake.fault(Fault::new("PUT", USER, broken).always());
    let program = one_by_one(&fake, "");
    let report = program.apply("ids").await;
    assert_eq!(figures(&report), "failed: 8/0/5/0/3");
    insta::assert_snapshot!(message(&report), @"PUT /_synapse/admin/v2/users/@e:fake.test: 500 M_UNKNOWN: Internal server error; 8 of the planned ids are the only ones of active accounts, which then need a password or another identity to log in (`keep_last = true` leaves those alone)");
    assert_eq!(fake.count("PUT", USER), 5);
}

#[tokio::test]
async fn a_revoked_token_stops_the_run_at_once_and_the_message_says_what_to_do() {
    let fake = fake_with(&["a", "b", "c"]);
    let program = one_by_one(&fake, "");
    let output = while_the_first_put_is_under_way(&fake, &program, || {
        fake.world(|world| world.tokens.remove(TOKEN));
    })
    .await;
    let report = report(&output);
    assert_eq!((output.code, figures(&report)), (1, "failed: 3/0/1/0/2".to_owned()));
    let file = program.path("token").display().to_string();
    insta::assert_snapshot!(message(&report).replace(&file, "TOKEN_FILE"), @"GET /_synapse/admin/v2/users/@a:fake.test: 401 M_UNKNOWN_TOKEN: Invalid access token passed. The access token is not valid: run `microglia login`, or write a valid token of a server admin to TOKEN_FILE; it is used from the next request on; 3 of the planned ids are the only ones of active accounts, which then need a password or another identity to log in (`keep_last = true` leaves those alone)");
    // The PUT that repeats the ids got a response; the GET before the removal did not.
    assert_eq!(fake.count("PUT", USER), 1);
    assert_eq!(fake.requests().last().unwrap().method, "GET");
    assert_eq!(held(&fake, "@a:fake.test"), [pair("oidc-old", "a")]);
    assert!(!format!("{output:?}").contains(TOKEN));
}

#[tokio::test]
async fn a_rotated_token_is_used_from_the_next_request_on() {
    let fake = fake_with(&["a", "b", "c"]);
    let program = one_by_one(&fake, "");
    let output = while_the_first_put_is_under_way(&fake, &program, || {
        program.write("token", "fresh\n");
        fake.world(|world| {
            world.tokens.remove(TOKEN);
            world.token("fresh", "@microglia:fake.test");
        });
    })
    .await;
    let report = report(&output);
    assert_eq!(
        (figures(&report), report["attempts"].as_u64()),
        ("succeeded: 3/3/0/0/0".to_owned(), Some(1))
    );
}

#[tokio::test]
async fn after_a_lost_response_no_other_run_changes_external_ids_while_the_change_may_be_in_progress()
 {
    let fake = fake_with(&["a"]);
    fake.world(|world| {
        world.user("@a:fake.test").external_ids.push(("saml".to_owned(), "a".to_owned()));
    });
    fake.fault(Fault::new("PUT", USER, Trouble::CutAfter));
    let other = job("other", "accounts = \"all\"\nproviders = [\"saml\"]");
    let program = one_by_one(&fake, &format!("retries = {{ attempts = 1 }}\n{other}"));
    program.write(
        "microglia.toml",
        &program.read("microglia.toml").replacen(
            "retries = { attempts = 3, first_delay = \"0s\" }\n",
            "",
            1,
        ),
    );
    let other = async {
        until("the response is lost", 20, || async { fake.count("PUT", USER) == 1 }).await;
        program.apply("other").await
    };
    let (ran, other) = tokio::join!(in_process::apply(&program, "ids"), other);
    assert_eq!(figures(&ran.report), "failed: 1/0/1/0/0");
    assert_eq!(figures(&other), "succeeded: 1/1/0/0/0");
    let sent: Vec<_> =
        fake.requests().iter().filter(|seen| seen.method == "PUT").map(|seen| seen.at).collect();
    assert!(sent[1] - sent[0] >= SOON.external_ids_for, "{sent:?}");
}

#[tokio::test]
async fn a_change_whose_response_was_lost_is_checked_and_counted_once() {
    // The first PUT only repeats the ids, the second removes them.
    for (trouble, passes, detail) in [
        (
            Trouble::CutAfter,
            1,
            ": the response was lost; the new plan shows that the change was made",
        ),
        (
            Trouble::CutBody,
            1,
            ": the response was lost; the new plan shows that the change was made",
        ),
        (
            Trouble::BrokenJson,
            1,
            ": the response was lost; the new plan shows that the change was made",
        ),
        (
            Trouble::ProxyAfter(502),
            1,
            ": the response was lost; the new plan shows that the change was made",
        ),
        (Trouble::CutBefore, 1, ""),
        (Trouble::CutAfter, 0, ""),
        (Trouble::Proxy(502), 0, ""),
    ] {
        let fake = fake_with(&["a", "b"]);
        fake.fault(Fault::new("PUT", &path_of("@a:fake.test"), trouble.clone()).after(passes));
        let program = one_by_one(&fake, "");
        let ran = in_process::apply(&program, "ids").await;
        let report = ran.report;
        assert_eq!(
            ran.waited,
            [
                "the last change of external ids to end: its answer was lost, and Synapse may still be working on it"
            ],
            "{trouble:?}"
        );
        assert!(report["waited_seconds"].as_f64() >= Some(SOON.external_ids_for.as_secs_f64()));
        let shown = (figures(&report), report["attempts"].as_u64(), changes(&report));
        let wanted = [
            format!("done @a:fake.test -> oidc-old:a (1){detail}"),
            "done @b:fake.test -> oidc-old:b (1)".to_owned(),
        ];
        assert_eq!(
            shown,
            ("succeeded: 2/2/0/0/0".to_owned(), Some(2), wanted.to_vec()),
            "{trouble:?}"
        );
        let run = report["id"].to_string();
        let recorded = program.json(&["runs", "show", &run, "--json"]).await;
        for change in recorded["changes"].as_array().unwrap() {
            assert_eq!(change["before"][0]["auth_provider"], "oidc-old", "{change}");
        }
        assert_eq!((held(&fake, "@a:fake.test"), held(&fake, "@b:fake.test")), (vec![], vec![]));
    }
}

#[tokio::test]
async fn after_a_kill_the_next_run_finishes_the_work_and_every_change_is_recorded() {
    let names: Vec<String> = (0..30).map(|i| format!("u{i:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let fake = fake_with(&names);
    fake.fault(Fault::new("PUT", USER, Trouble::Delay(Duration::from_millis(30))).always());
    let program = Program::new(&fake.url(), TOKEN, &ids(""));
    let mut child = program.command(&["run", "ids", "--apply"]).spawn().unwrap();
    until("some accounts are changed", 20, || async { fake.count("PUT", USER) > 20 }).await;
    child.kill().await.unwrap();
    let changed: Vec<String> = names
        .iter()
        .map(|name| format!("@{name}:fake.test"))
        .filter(|user_id| held(&fake, user_id).is_empty())
        .collect();
    assert!((1..30).contains(&changed.len()), "{changed:?}");

    fake.no_more_faults();
    let second = program.apply("ids").await;
    let left = 30 - changed.len();
    assert_eq!(figures(&second), format!("succeeded: {left}/{left}/0/0/0"));
    assert!(names.iter().all(|name| held(&fake, &format!("@{name}:fake.test")).is_empty()));
    let first = program.json(&["runs", "show", "1", "--json"]).await;
    assert_eq!(
        (&first["outcome"], message(&first)),
        (&json!("interrupted"), "microglia exited while the run was in progress")
    );
    let undo: Vec<(&str, &Value)> = first["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| (change["target"].as_str().unwrap(), &change["before"]))
        .collect();
    for user_id in changed {
        let name = &user_id[1..4];
        let before = json!([{ "auth_provider": "oidc-old", "external_id": name }]);
        assert!(
            undo.contains(&(&format!("{user_id} -> oidc-old:{name}"), &before)),
            "{user_id} in {undo:?}"
        );
    }
}

#[tokio::test]
async fn an_account_listed_twice_in_a_growing_list_is_planned_once() {
    let fake = Fake::start();
    fake.world(|world| {
        world.users(1100, |i| if i % 100 > 90 { old(&i.to_string()) } else { User::default() });
    });
    // The first page is built at once and sent later: the second begins where other accounts have moved to.
    fake.fault(
        Fault::new("GET", "/_synapse/admin/v2/users", Trouble::Delay(Duration::from_millis(700)))
            .after(1),
    );
    let program = Program::new(&fake.url(), TOKEN, &ids(""));
    let register = async {
        until("the request for the first page", 20, || async {
            fake.requests().iter().any(|seen| seen.path == "/_synapse/admin/v2/users")
        })
        .await;
        fake.world(|world| {
            for i in 0..20 {
                world.user(&format!("@aaa{i}:fake.test"));
            }
        });
    };
    let (report, ()) = tokio::join!(program.dry_run("ids"), register);
    assert_eq!(figures(&report), "succeeded: 99/0/0/0/0");
    let mut once = targets(&report);
    once.dedup();
    assert_eq!(once.len(), 99);
}

#[tokio::test]
async fn requests_keep_to_the_limits_of_concurrency_and_rate() {
    let names: Vec<String> = (0..20).map(|i| format!("u{i:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let fake = fake_with(&names);
    fake.world(|world| world.latency = Duration::from_millis(10));
    let program =
        Program::new(&fake.url(), TOKEN, &format!("max_concurrent_requests = 3\n\n{}", ids("")));
    assert_eq!(figures(&program.apply("ids").await), "succeeded: 20/20/0/0/0");
    assert_eq!(fake.max_concurrent(), 3);

    let fake = fake_with(&names);
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n\n[homeservers.main]\nurl = \"{}\"\naccess_token = \"{TOKEN}\"\nmax_requests_per_second = 50\n\n{}",
        fake.url(),
        ids("")
    ));
    assert_eq!(figures(&program.apply("ids").await), "succeeded: 20/20/0/0/0");
    let times: Vec<_> = fake.requests().iter().map(|seen| seen.at).collect();
    let took = *times.last().unwrap() - times[0];
    // Before a list is replaced, one turn is taken for the GET and its PUT together: the last PUT need not wait.
    // The first request opens a connection, and may arrive as late as the second is sent.
    let least = Duration::from_millis(20) * u32::try_from(times.len() - 3).unwrap();
    assert!(took >= least, "{} requests in {took:?}", times.len());
}

#[tokio::test]
async fn under_mas_the_job_is_refused_and_the_message_says_where_the_links_are() {
    let fake = fake_with(&["a"]);
    fake.world(|world| world.mas = true);
    let program = Program::new(&fake.url(), TOKEN, &ids(""));
    let report = program.dry_run("ids").await;
    assert_eq!(figures(&report), "refused: null/0/0/0/null");
    insta::assert_snapshot!(message(&report), @"the accounts of this homeserver and the links to their identities are stored in the Matrix Authentication Service: configure [homeservers.NAME.mas], so that the links are removed there; those in Synapse are not used");
    assert_eq!(
        fake.count("*", "/_synapse/admin/v2/users"),
        1,
        "only the own account was looked at"
    );
}

#[tokio::test]
async fn errors_in_the_configuration_are_reported() {
    let slips = [
        "accounts = \"all\"\nproviders = [\"oauth-delegated\", \"\"]",
        "accounts = \"everybody\"\nproviders = []",
        "accounts = []\nproviders = [\"saml\"]\nexternal_ids = []",
        "providers = [\"saml\"]\nusers = [\"bob\", \"@bob\"]",
        "accounts = [\"active\", \"suspended\"]",
    ];
    let mut text = String::new();
    for slip in slips {
        let program = Program::new("http://localhost:1", "t", &job("ids", slip));
        let output = program.run(&["check"]).await;
        assert_eq!((output.code, output.stdout.as_str()), (2, ""));
        text.push_str(&output.stderr.replace(&program.path("").display().to_string(), ""));
    }
    insta::assert_snapshot!(text, @r#"
    error: microglia.toml:14:14: `oauth-delegated` is how Synapse stores the link of an account to MAS: removing it would lock out its user
       14 | providers = ["oauth-delegated", ""]
          |              ^^^^^^^^^^^^^^^^^
    microglia.toml:14:33: a provider must not be empty: expected a name such as "oidc-google" or "saml"
       14 | providers = ["oauth-delegated", ""]
          |                                 ^^
    microglia.toml: 2 errors
    error: microglia.toml:13:12: invalid value "everybody": expected one of all, active, deactivated, locked
       13 | accounts = "everybody"
          |            ^^^^^^^^^^^
    microglia.toml:14:13: the list is empty: add at least one item
       14 | providers = []
          |             ^^
    microglia.toml: 2 errors
    error: microglia.toml:13:12: expected "all", or one or more of "active", "deactivated", "locked"
       13 | accounts = []
          |            ^^
    microglia.toml:15:16: the list is empty: add at least one item
       15 | external_ids = []
          |                ^^
    microglia.toml: 2 errors
    error: microglia.toml:10:7: `accounts` is missing: add `accounts = …`, "all", or one or more of "active", "deactivated", "locked"
       10 | [jobs.ids]
          |       ^^^
    microglia.toml:14:10: "bob" cannot match any user: expected a Matrix id, or a glob over whole Matrix ids, that starts with `@` or `*`, such as "@bob:example.com" or "@bot-*"
       14 | users = ["bob", "@bob"]
          |          ^^^^^
    microglia.toml:14:17: "@bob" cannot match any user: expected a whole Matrix id such as "@bob:example.com"
       14 | users = ["bob", "@bob"]
          |                 ^^^^^^
    microglia.toml: 3 errors
    error: microglia.toml:10:7: `providers` is missing: add `providers = …`, a list, each item the name of a provider such as "oidc-google"
       10 | [jobs.ids]
          |       ^^^
    microglia.toml:13:23: invalid value "suspended": expected one of active, deactivated, locked
       13 | accounts = ["active", "suspended"]
          |                       ^^^^^^^^^^^
    microglia.toml: 2 errors
    "#);
}
