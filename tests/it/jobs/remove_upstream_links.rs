//! `remove-external-ids` and `join-rooms` where MAS manages the accounts.

use chrono::{SecondsFormat, TimeDelta, Utc};
use microglia::plan::report::Mode;
use serde_json::{Value, json};

use super::in_process;
use crate::fake::{CLIENT_ID, CLIENT_SECRET, Fake, Fault, Provider, TOKEN, Trouble, User, World};
use crate::program::{Program, changes, figures};

const LINKS: &str = "/api/admin/v1/upstream-oauth-links";
const USERS: &str = "/api/admin/v1/users";
const EXTERNAL_IDS: &str = "/_synapse/admin/v2/users/";

/// A homeserver and its MAS with the providers `Google` and `GitLab`, which is disabled.
struct Setup {
    homeserver: Fake,
    public: Fake,
    internal: Fake,
    google: String,
    gitlab: String,
}

impl Setup {
    fn new() -> Self {
        let homeserver = Fake::start();
        let (public, internal) = homeserver.mas();
        let (google, gitlab) = homeserver.world(|world| {
            let service = &mut world.auth_service;
            let named = |issuer: &str, human: &str, brand: &str, disabled| Provider {
                issuer: Some(issuer.to_owned()),
                human_name: Some(human.to_owned()),
                brand_name: Some(brand.to_owned()),
                disabled,
            };
            let google = service.provider(named("https://google.test", "Google", "google", false));
            let gitlab = service.provider(named("https://gitlab.test", "GitLab", "gitlab", true));
            (google, gitlab)
        });
        Self { homeserver, public, internal, google, gitlab }
    }

    /// An account of MAS and of Synapse; returns its id in MAS.
    fn user(&self, name: &str) -> String {
        self.homeserver.world(|world| {
            world.user(&format!("@{name}:fake.test"));
            world.auth_service.user(name)
        })
    }

    /// An account with the link `NAME` at the provider; returns its id.
    fn linked(&self, name: &str, provider: &str) -> String {
        let user = self.user(name);
        self.link(provider, name, Some(&user));
        user
    }

    fn link(&self, provider: &str, subject: &str, user: Option<&str>) -> String {
        self.homeserver.world(|world| world.auth_service.link(provider, subject, user))
    }

    fn deactivated(&self, user: &str, days_ago: i64) {
        let at = days_before_now(days_ago);
        self.homeserver.world(|world| {
            world.auth_service.users.get_mut(user).unwrap().deactivated_at = Some(at);
        });
    }

    fn locked(&self, user: &str) {
        let at = days_before_now(1);
        self.homeserver.world(|world| {
            world.auth_service.users.get_mut(user).unwrap().locked_at = Some(at);
        });
    }

    fn admin(&self, user: &str) {
        self.homeserver.world(|world| {
            world.auth_service.users.get_mut(user).unwrap().admin = true;
        });
    }

    /// `PROVIDER:SUBJECT` of all links, sorted.
    fn links(&self) -> Vec<String> {
        let mut links: Vec<String> = self.homeserver.world(|world| {
            let name = |id: &str| match id == self.google {
                true => "Google",
                false => "GitLab",
            };
            let links = world.auth_service.links.values();
            links.map(|link| format!("{}:{}", name(&link.provider_id), link.subject)).collect()
        });
        links.sort();
        links
    }

    fn program(&self, keys: &str) -> Program {
        let (url, public, internal) =
            (self.homeserver.url(), self.public.url(), self.internal.url());
        let program = Program::new(
            &url,
            TOKEN,
            &format!(
                "[homeservers.mas]\nurl = \"{url}\"\nmax_requests_per_second = \"unlimited\"\n[homeservers.mas.mas]\nurl = \"{public}\"\nadmin_url = \"{internal}\"\nclient_id = \"{CLIENT_ID}\"\nclient_secret_file = \"mas-client-secret\"\naccount = \"microglia\"\n\n[jobs.ids]\nkind = \"remove-external-ids\"\nhomeserver = \"main\"\nretries = {{ attempts = 3, first_delay = \"0s\" }}\n{keys}\n"
            ),
        );
        program.write("mas-client-secret", CLIENT_SECRET);
        program
    }

    async fn dry_run(&self, keys: &str) -> Value {
        in_process::run(&self.program(keys), "ids", Mode::DryRun).await.report
    }

    async fn apply(&self, keys: &str) -> Value {
        in_process::apply(&self.program(keys), "ids").await.report
    }

    fn deletes(&self) -> usize {
        self.internal.count("DELETE", LINKS)
    }
}

#[expect(clippy::disallowed_methods, reason = "the program under test has the real clock")]
fn days_before_now(days: i64) -> String {
    (Utc::now() - TimeDelta::days(days)).to_rfc3339_opts(SecondsFormat::Micros, true)
}

const GOOGLE: &str = "providers = [\"Google\"]\n";

fn google(keys: &str) -> String {
    format!("{GOOGLE}{keys}")
}

fn planned(report: &Value) -> Vec<String> {
    let changes = report["changes"].as_array().unwrap();
    let mut targets: Vec<String> =
        changes.iter().map(|change| change["target"].as_str().unwrap().to_owned()).collect();
    targets.sort();
    targets
}

fn message(report: &Value) -> &str {
    report["message"].as_str().unwrap_or("none")
}

/// One account in each state that MAS knows, two of them with more than one link, and an orphan.
fn everybody() -> Setup {
    let mas = Setup::new();
    mas.linked("active", &mas.google);
    let both = mas.linked("both", &mas.google);
    mas.locked(&both);
    mas.deactivated(&both, 100);
    let gone = mas.linked("gone", &mas.google);
    mas.deactivated(&gone, 40);
    let recent = mas.linked("recent", &mas.google);
    mas.deactivated(&recent, 3);
    let locked = mas.linked("locked", &mas.google);
    mas.locked(&locked);
    let boss = mas.linked("boss", &mas.google);
    mas.admin(&boss);
    let two = mas.linked("two", &mas.google);
    mas.link(&mas.google, "two again", Some(&two));
    let other = mas.linked("other", &mas.google);
    mas.link(&mas.gitlab, "other", Some(&other));
    mas.linked("gitlab", &mas.gitlab);
    mas.linked("microglia", &mas.google);
    mas.link(&mas.google, "orphan", None);
    mas
}

#[tokio::test]
async fn links_are_selected_by_what_mas_says_of_their_accounts() {
    let mas = everybody();
    // What Synapse was told means nothing.
    mas.homeserver.world(|world| {
        *world.user("@active:fake.test") =
            User { deactivated: true, ..User::default() }.external("oidc-google", "active");
        world.user("@gone:fake.test").admin = true;
    });
    let mut plans = String::new();
    for keys in [
        "accounts = \"active\"",
        "accounts = \"locked\"",
        "accounts = \"deactivated\"",
        "accounts = \"deactivated\"\ndeactivated_for = \"30d\"",
        "accounts = [\"locked\", \"deactivated\"]",
        "accounts = \"all\"\ninclude_admins = true\nexcept_users = [\"@two:*\"]",
        "accounts = \"all\"\nusers = [\"@t*:fake.test\", \"@o*\"]\nexternal_ids = [\"* again\", \"other\"]",
        "accounts = \"active\"\nkeep_last = true",
        "accounts = \"deactivated\"\nusers = [\"@gone:fake.test\"]\norphans = true",
    ] {
        let report = mas.dry_run(&google(keys)).await;
        plans.push_str(&format!(
            "{}\n  {} left alone {}\n",
            keys.replace('\n', ", "),
            figures(&report),
            report["left_alone"]
        ));
        for target in planned(&report) {
            plans.push_str(&format!("  {target}\n"));
        }
    }
    insta::assert_snapshot!(plans);
    // Each run reads its own account.
    assert_eq!((mas.deletes(), mas.homeserver.count("GET", EXTERNAL_IDS)), (0, 9));
}

#[tokio::test]
async fn exactly_the_planned_links_are_deleted_and_what_an_undo_needs_is_recorded() {
    let mas = everybody();
    mas.homeserver.world(|world| {
        let links = world.auth_service.links.values_mut();
        for link in links.filter(|link| link.subject == "gone") {
            link.human_account_name = Some("Gone@Google.test".to_owned());
        }
        *world.user("@gone:fake.test") = User::default().external("oauth-delegated", "gone");
    });
    let (before, gone) = (
        mas.links(),
        mas.homeserver.world(|world| {
            let links = &world.auth_service.links;
            links
                .iter()
                .find(|(_, link)| link.subject == "gone")
                .map(|(id, link)| (id.clone(), link.clone()))
                .unwrap()
        }),
    );
    let program = mas.program(&google("accounts = \"deactivated\"\ndeactivated_for = \"30d\""));
    let report = in_process::apply(&program, "ids").await.report;
    let mut done = changes(&report);
    done.sort();
    assert_eq!(
        done,
        ["done @both:fake.test -> Google:both (1)", "done @gone:fake.test -> Google:gone (1)"]
    );
    let mut left = before.clone();
    left.retain(|link| !["Google:both", "Google:gone"].contains(&link.as_str()));
    assert_eq!(mas.links(), left);
    assert_eq!(
        message(&report),
        "the external ids in Synapse mean nothing under MAS and are not changed"
    );
    let shown = program.json(&["runs", "show", &report["id"].to_string(), "--json"]).await;
    let change = shown["changes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|change| change["target"].as_str().unwrap().contains("gone"))
        .unwrap();
    let (id, link) = gone;
    assert_eq!(
        (&change["action"], &change["before"]),
        (
            &json!("remove-external-id"),
            &json!({"link_id": id, "user_id": link.user_id, "provider_id": mas.google, "subject": "gone", "human_account_name": "Gone@Google.test"})
        )
    );
    assert_eq!(mas.homeserver.count("PUT", EXTERNAL_IDS), 0);
    let again = in_process::apply(&program, "ids").await.report;
    assert_eq!(
        (figures(&again).as_str(), message(&again)),
        ("succeeded: 0/0/0/0/0", "`Google` has no link to remove")
    );
    assert_eq!(mas.deletes(), 2);
}

#[tokio::test]
async fn a_plan_with_active_accounts_says_what_their_users_will_see() {
    let mas = everybody();
    let report = mas.dry_run(&google("accounts = \"active\"")).await;
    insta::assert_snapshot!(message(&report));
    let report = mas.dry_run(&google("accounts = \"active\"\nkeep_last = true\nusers = [\"@active:fake.test\", \"@nobody:fake.test\"]\nexternal_ids = [\"*\", \"none\"]")).await;
    insta::assert_snapshot!(message(&report));
}

#[tokio::test]
async fn keep_last_counts_only_links_at_providers_that_are_enabled() {
    let mas = Setup::new();
    let alice = mas.linked("alice", &mas.google);
    mas.link(&mas.gitlab, "alice", Some(&alice));
    let keys = google("accounts = \"all\"\nkeep_last = true");
    let report = mas.dry_run(&keys).await;
    assert_eq!((planned(&report).len(), &report["left_alone"]), (0, &json!({"last-id": 1})));
    mas.homeserver.world(|world| {
        world.auth_service.providers.get_mut(&mas.gitlab).unwrap().disabled = false;
    });
    assert_eq!(planned(&mas.dry_run(&keys).await), ["@alice:fake.test -> Google:alice"]);
}

#[tokio::test]
async fn a_provider_is_named_by_id_issuer_or_name_and_never_guessed() {
    let mas = Setup::new();
    mas.linked("alice", &mas.google);
    for name in [&mas.google, &mas.google.to_lowercase(), "https://google.test", "Google", "google"]
    {
        let keys = format!("providers = [\"{name}\"]\naccounts = \"all\"");
        let target = format!("@alice:fake.test -> {name}:alice");
        assert_eq!(planned(&mas.dry_run(&keys).await), [target]);
    }
    // Two names of one provider do not plan a link twice.
    let keys = "providers = [\"google\", \"Google\"]\naccounts = \"all\"";
    assert_eq!(planned(&mas.dry_run(keys).await), ["@alice:fake.test -> google:alice"]);
    let second = mas.homeserver.world(|world| {
        let twin = Provider { brand_name: Some("Google".to_owned()), ..Provider::default() };
        world.auth_service.provider(twin)
    });
    let mut errors = String::new();
    for name in ["Google", "GOOGLE", "oidc-google"] {
        let report = mas.apply(&format!("providers = [\"{name}\"]\naccounts = \"all\"")).await;
        assert_eq!(report["outcome"], "refused");
        let text = message(&report)
            .replace(&mas.google, "ID-1")
            .replace(&mas.gitlab, "ID-2")
            .replace(&second, "ID-3");
        errors.push_str(&format!("{text}\n"));
    }
    insta::assert_snapshot!(errors);
    assert_eq!(mas.links(), ["Google:alice"]);
}

/// Runs the job, with `meanwhile` after the accounts were read for the plan and before the first link is read again.
async fn with_change_after_the_plan(mas: &Setup, keys: &str, meanwhile: fn(&mut World)) -> Value {
    mas.internal.fault(Fault::new("GET", USERS, Trouble::Then(meanwhile)));
    mas.apply(keys).await
}

#[tokio::test]
async fn a_link_that_changed_since_the_plan_is_left_alone() {
    let mas = Setup::new();
    let moved = mas.linked("moved", &mas.google);
    let back = mas.linked("back", &mas.google);
    let deleted = mas.linked("deleted", &mas.google);
    let gone = mas.linked("gone", &mas.google);
    mas.user("heir");
    mas.link(&mas.google, "orphan", None);
    mas.link(&mas.google, "new orphan", None);
    for user in [&moved, &back, &deleted, &gone] {
        mas.deactivated(user, 40);
    }
    let report = with_change_after_the_plan(
        &mas,
        &google("accounts = \"deactivated\"\norphans = true"),
        |world| {
            let service = &mut world.auth_service;
            let heir = service.users.iter().find(|(_, user)| user.username == "heir");
            let heir = heir.unwrap().0.clone();
            let mut users = service.users.values_mut();
            users.find(|user| user.username == "back").unwrap().deactivated_at = None;
            service.links.retain(|_, link| link.subject != "deleted");
            for link in service.links.values_mut() {
                match link.subject.as_str() {
                    "moved" | "orphan" => link.user_id = Some(heir.clone()),
                    "new orphan" => link.created_at = days_before_now(0),
                    _ => {}
                }
            }
        },
    )
    .await;
    let changes = report["changes"].as_array().unwrap();
    let mut seen: Vec<String> = changes
        .iter()
        .map(|change| format!("{} {}: {}", change["state"], change["target"], change["detail"]))
        .collect();
    seen.sort();
    insta::assert_snapshot!(seen.join("\n"));
    assert_eq!(mas.links(), ["Google:back", "Google:moved", "Google:new orphan", "Google:orphan"]);
    assert_eq!(mas.deletes(), 1);
}

#[tokio::test]
async fn the_last_link_is_kept_even_if_the_others_go_after_the_plan() {
    let mas = Setup::new();
    let alice = mas.linked("alice", &mas.google);
    let keys = google("accounts = \"active\"\nkeep_last = true");
    mas.homeserver.world(|world| {
        world.auth_service.providers.get_mut(&mas.gitlab).unwrap().disabled = false;
    });
    mas.link(&mas.gitlab, "other", Some(&alice));
    let report = with_change_after_the_plan(&mas, &keys, |world| {
        world.auth_service.links.retain(|_, link| link.subject != "other");
    })
    .await;
    assert_eq!(
        report["changes"][0]["detail"],
        "the account has no other link any more (`keep_last`)"
    );
    assert_eq!((mas.links(), mas.deletes()), (vec!["Google:alice".to_owned()], 0));
}

#[tokio::test]
async fn two_jobs_that_keep_the_last_link_do_not_remove_both_links_of_an_account() {
    let mas = Setup::new();
    mas.homeserver.world(|world| {
        world.auth_service.providers.get_mut(&mas.gitlab).unwrap().disabled = false;
    });
    let alice = mas.linked("alice", &mas.google);
    mas.link(&mas.gitlab, "alice", Some(&alice));
    let job = |name: &str, provider: &str| {
        format!(
            "[jobs.{name}]\nkind = \"remove-external-ids\"\nhomeserver = \"main\"\nproviders = [\"{provider}\"]\naccounts = \"active\"\nkeep_last = true\n"
        )
    };
    let other = job("other", "GitLab");
    let program =
        mas.program(&google(&format!("accounts = \"active\"\nkeep_last = true\n{other}")));
    let side_by_side = "max_concurrent_runs = 2\naccess_token_file";
    let config = program.read("microglia.toml").replace("access_token_file", side_by_side);
    program.write("microglia.toml", &config);
    // Both read all links before either removes one, if nothing makes one wait for the other.
    let slow = Trouble::Delay(std::time::Duration::from_millis(300));
    mas.internal.fault(Fault::new("GET", LINKS, slow).always());
    let (one, other) =
        tokio::join!(in_process::apply(&program, "ids"), in_process::apply(&program, "other"));
    assert_eq!(mas.links().len(), 1, "{} {}", one.report, other.report);
    assert_eq!(mas.deletes(), 1);
}

#[tokio::test]
async fn a_link_without_an_account_is_left_alone_on_its_first_day() {
    let mas = Setup::new();
    for (subject, days) in [("today", 0), ("yesterday", 2)] {
        mas.link(&mas.google, subject, None);
        mas.homeserver.world(|world| {
            let mut links = world.auth_service.links.values_mut();
            let link = links.find(|link| link.subject == subject).unwrap();
            link.created_at = days_before_now(days);
        });
    }
    let report = mas.apply(&google("accounts = \"deactivated\"\norphans = true")).await;
    assert_eq!(changes(&report), ["done no account -> Google:yesterday (1)"]);
    assert_eq!(report["left_alone"], json!({"recent-orphan": 1}));
    assert_eq!(mas.links(), ["Google:today"]);
}

#[tokio::test]
async fn who_is_excluded_counts_as_such_whatever_the_state_and_who_is_not_named_does_not_count() {
    let mas = everybody();
    let keys = google(
        "accounts = \"deactivated\"\nusers = [\"@t*:fake.test\", \"@gone:*\", \"@lo*\"]\nexcept_users = [\"@two:*\", \"@nobody:*\"]",
    );
    let report = mas.dry_run(&keys).await;
    assert_eq!(planned(&report), ["@gone:fake.test -> Google:gone"]);
    assert_eq!(report["left_alone"], json!({"excluded": 2, "not-selected": 1, "orphan": 1}));
    assert!(message(&report).contains("`@nobody:*` matched no account"), "{report}");
}

/// That many deactivated accounts with a link each.
fn many(count: usize) -> Setup {
    let mas = Setup::new();
    for number in 0..count {
        let user = mas.linked(&format!("u{number:03}"), &mas.google);
        mas.deactivated(&user, 40);
    }
    mas
}

#[tokio::test]
async fn a_link_whose_delete_lost_its_response_counts_as_deleted() {
    let mas = many(20);
    mas.internal.fault(Fault::new("DELETE", LINKS, Trouble::CutAfter).after(3).times(2));
    let report = mas.apply(&google("accounts = \"deactivated\"")).await;
    assert_eq!(figures(&report), "succeeded: 20/20/0/0/0");
    assert_eq!((mas.links(), mas.deletes()), (Vec::<String>::new(), 22));
}

#[tokio::test]
async fn a_mas_that_fails_during_a_run_leads_to_another_attempt_for_the_rest() {
    let mas = many(20);
    mas.internal.fault(Fault::new("*", "/api/", Trouble::Proxy(503)).after(30).times(20));
    let report = mas.apply(&google("accounts = \"deactivated\"")).await;
    assert_eq!(figures(&report), "succeeded: 20/20/0/0/0");
    assert_eq!(mas.links(), Vec::<String>::new());
    // 404 is as good as deleted, so that none is missing and none is deleted for anybody else.
    assert!(mas.deletes() >= 20);
}

#[tokio::test]
async fn a_token_that_cannot_be_renewed_during_a_run_fails_no_change() {
    let mas = many(20);
    let revoke: fn(&mut World) =
        |world| world.auth_service.tokens.values_mut().for_each(|token| token.revoked = true);
    mas.internal.fault(Fault::new("DELETE", LINKS, Trouble::Then(revoke)).after(5));
    // It is an answer about the request for a token, not about a link.
    let body = json!({"error": "invalid_request"}).to_string();
    let refused = Trouble::Answer { status: 400, headers: vec![], body };
    mas.internal.fault(Fault::new("POST", "/oauth2/token", refused).after(1).always());
    let report = mas.apply(&google("accounts = \"deactivated\"")).await;
    let done = report["done"].as_u64().unwrap();
    assert!(done >= 6, "{report}");
    assert_eq!(figures(&report), format!("failed: 20/{done}/0/0/{}", 20 - done), "{report}");
    assert!(message(&report).contains("POST /oauth2/token: 400 invalid_request"), "{report}");
    assert_eq!(mas.links().len() as u64, 20 - done);
}

#[tokio::test]
async fn without_mas_nothing_is_planned_and_nothing_counts_as_up_to_date() {
    let mas = many(3);
    mas.internal.go_down();
    let report = mas.apply(&google("accounts = \"deactivated\"")).await;
    assert_eq!(report["outcome"], "failed");
    let text = message(&report).replace(&mas.internal.url(), "INTERNAL");
    assert!(text.contains("INTERNAL") || text.contains("/oauth2/token"), "{text}");
    mas.internal.come_up();
    assert_eq!(mas.links().len(), 3);
}

#[tokio::test]
async fn a_thousand_links_and_a_thousand_accounts_take_a_request_each() {
    let mas = Setup::new();
    mas.homeserver.world(|world| {
        let service = &mut world.auth_service;
        for number in 0..5000 {
            let user = service.user(&format!("u{number}"));
            service.link(&mas.google, &format!("s{number}"), Some(&user));
            if number % 2 == 0 {
                let at = Some("2020-01-01T00:00:00Z".to_owned());
                service.users.get_mut(&user).unwrap().deactivated_at = at;
            }
        }
    });
    let keys = google("accounts = \"deactivated\"\nexternal_ids = [\"s1*0\"]");
    let report = mas.dry_run(&keys).await;
    assert_eq!(report["planned"], 111);
    let counts = (mas.internal.count("GET", LINKS), mas.internal.count("GET", USERS));
    assert_eq!(counts, (5, 3));
    assert_eq!(mas.internal.count("GET", "/api/"), 9);
}

#[tokio::test]
async fn keys_for_mas_are_refused_by_classic_synapse() {
    let fake = Fake::start();
    let expected = "`orphans` needs the Matrix Authentication Service: in Synapse each external id belongs to an account; remove the key";
    let keys = google("accounts = \"all\"\norphans = true");
    let job = format!("[jobs.ids]\nkind = \"remove-external-ids\"\n{keys}\n");
    let program = Program::new(&fake.url(), TOKEN, &job);
    let report: Value =
        serde_json::from_str(&program.run(&["run", "ids", "--dry-run", "--json"]).await.stdout)
            .unwrap();
    assert_eq!((&report["outcome"], message(&report)), (&json!("refused"), expected));
    let check = program.run(&["check", "--online"]).await;
    assert!(check.stdout.contains(expected), "{check:?}");
    assert_eq!(check.code, 1);
}

#[tokio::test]
async fn join_rooms_leaves_out_who_mas_locked_or_deactivated() {
    let mas = Setup::new();
    let (gone, locked) = (mas.user("gone"), mas.user("locked"));
    mas.user("later");
    mas.user("here");
    mas.deactivated(&gone, 1);
    mas.locked(&locked);
    mas.homeserver.world(|world| {
        world.user("@ghost:fake.test");
        world.room("!lobby:fake.test");
    });
    let job = "accounts = \"all\"\nproviders = [\"Google\"]\n[jobs.lobby]\nkind = \"join-rooms\"\nhomeserver = \"main\"\nrooms = [\"!lobby:fake.test\"]\njoins_per_second = 1000";
    let program = mas.program(job);
    let report = in_process::run(&program, "lobby", Mode::DryRun).await.report;
    let joins =
        ["@ghost", "@here", "@later"].map(|name| format!("{name}:fake.test -> !lobby:fake.test"));
    assert_eq!(planned(&report), joins);
    assert_eq!(report["left_alone"], json!({"deactivated": 1, "locked": 1}));
    // Who is locked between the plan and the join is left out, too.
    let lock: fn(&mut World) = |world| {
        let mut users = world.auth_service.users.values_mut();
        let later = users.find(|user| user.username == "later").unwrap();
        later.locked_at = Some("2026-01-01T00:00:00Z".to_owned());
    };
    mas.internal.fault(Fault::new("GET", USERS, Trouble::Then(lock)).after(1));
    let report = in_process::apply(&program, "lobby").await.report;
    assert_eq!(figures(&report), "succeeded: 3/2/0/1/0");
    let skipped = report["changes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|change| change["state"] == "skipped")
        .unwrap();
    assert_eq!(
        (skipped["target"].as_str().unwrap(), skipped["detail"].as_str().unwrap()),
        (joins[2].as_str(), "the account was deactivated, locked or suspended since the plan")
    );
}
