//! Undoing what a run changed, and undoing that.

use serde_json::{Value, json};

use crate::fake::{CLIENT_ID, CLIENT_SECRET, Fake, Provider, TOKEN, User, World};
use crate::homeserver::Synapse;
use crate::program::{Program, changes};

const JOB: &str =
    "[jobs.ids]\nkind = \"remove-external-ids\"\nproviders = [\"saml\"]\naccounts = \"all\"\n";

async fn undo(program: &Program, run: &Value, options: &[&str]) -> Value {
    let run = run.to_string();
    program.json(&[&["undo", run.as_str(), "--json"], options].concat()).await
}

fn ids(fake: &Fake, user: &str) -> Vec<String> {
    fake.world(|world| {
        let ids = world.users[user].external_ids.iter();
        let mut ids: Vec<String> = ids.map(|(provider, id)| format!("{provider}:{id}")).collect();
        ids.sort();
        ids
    })
}

#[tokio::test]
async fn removed_ids_come_back_and_what_was_linked_since_stays() {
    let mut world = World::new();
    for user in ["@a:fake.test", "@b:fake.test", "@gone:fake.test", "@taken:fake.test"] {
        let local = &user[1..user.find(':').unwrap()];
        *world.user(user) = User::default()
            .external("saml", local)
            .external("saml", &format!("{local}2"))
            .external("oidc", local);
    }
    let fake = Fake::of(world);
    let program = Program::new(&fake.url(), TOKEN, JOB);
    let removed = program.apply("ids").await;
    assert_eq!(removed["done"], 8, "{removed}");
    fake.world(|world| {
        world.users.remove("@gone:fake.test");
        let linked = world.user("@a:fake.test");
        *linked = std::mem::take(linked).external("oidc", "since");
        let other = world.user("@b:fake.test");
        *other = std::mem::take(other).external("saml", "taken2");
    });
    let requests = fake.requests().len();
    let shown = undo(&program, &removed["id"], &[]).await;
    assert!(fake.requests()[requests..].iter().all(|seen| seen.method == "GET"));
    assert_eq!(
        (&shown["trigger"], &shown["mode"], &shown["planned"]),
        (&json!("undo"), &json!("dry-run"), &json!(6)),
        "{shown}"
    );
    let message = shown["message"].as_str().unwrap();
    assert!(message.contains("2 items not restored: the account no longer exists"), "{message}");
    let undone = undo(&program, &removed["id"], &["--apply"]).await;
    assert_eq!(undone["outcome"], "succeeded", "{undone}");
    assert_eq!((&undone["done"], &undone["skipped"]), (&json!(5), &json!(1)), "{undone}");
    let named = changes(&undone).join("\n");
    assert!(named.contains("saml:taken2 belongs to @b:fake.test now"), "{named}");
    assert_eq!(ids(&fake, "@a:fake.test"), ["oidc:a", "oidc:since", "saml:a", "saml:a2"]);
    assert_eq!(ids(&fake, "@taken:fake.test"), ["oidc:taken", "saml:taken"]);
    assert!(
        fake.world(|world| !world.users.contains_key("@gone:fake.test")),
        "the account was created"
    );
    // Again there is nothing to do.
    let again = undo(&program, &removed["id"], &["--apply"]).await;
    assert_eq!((&again["outcome"], &again["done"]), (&json!("succeeded"), &json!(0)), "{again}");
    // And that can be undone.
    let redone = undo(&program, &undone["id"], &["--apply"]).await;
    assert_eq!((&redone["outcome"], &redone["done"]), (&json!("succeeded"), &json!(5)), "{redone}");
    assert_eq!(ids(&fake, "@a:fake.test"), ["oidc:a", "oidc:since"]);
    assert_eq!(ids(&fake, "@taken:fake.test"), ["oidc:taken"]);
}

#[tokio::test]
async fn an_undo_on_a_real_synapse_links_the_removed_id_again() {
    let synapse = Synapse::start().await;
    let user = synapse.register_many("linked", 1).await[0].clone();
    synapse.external_ids(&user, &[("saml", "s1"), ("oidc", "o1")]).await;
    let program = Program::new(&synapse.url, &synapse.admin.token, JOB);
    let daemon = program.serve().await;
    let removed = program.apply("ids").await;
    assert_eq!(removed["done"], 1, "{removed}");
    let own = |provider: &str, id: &str| (provider.to_owned(), id.to_owned());
    assert_eq!(synapse.external_ids_of(&user).await, [own("oidc", "o1")]);
    let undone = undo(&program, &removed["id"], &["--apply"]).await;
    assert_eq!((&undone["outcome"], &undone["done"]), (&json!("succeeded"), &json!(1)), "{undone}");
    let mut ids = synapse.external_ids_of(&user).await;
    ids.sort();
    assert_eq!(ids, [own("oidc", "o1"), own("saml", "s1")]);
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_undone_says_why() {
    let mut world = World::new();
    world.users(2, |number| User::default().external("saml", &format!("s{number}")));
    world.room("!lobby:fake.test");
    let fake = Fake::of(world);
    let join = "[jobs.join]\nkind = \"join-rooms\"\nrooms = [\"!lobby:fake.test\"]\n";
    let program = Program::new(&fake.url(), TOKEN, &format!("{JOB}{join}"));
    let (joined, dry) = (program.apply("join").await, program.dry_run("ids").await);
    for (run, reason) in [
        (
            joined["id"].to_string(),
            "of join cannot be undone: the members would have to leave themselves",
        ),
        ("99".to_owned(), "there is no run 99"),
        (dry["id"].to_string(), "was a dry run and changed nothing"),
    ] {
        let output = program.run(&["undo", &run, "--apply"]).await;
        assert_eq!(output.code, 1, "{output:?}");
        let all = format!("{}{}", output.stdout, output.stderr);
        assert!(all.contains(reason), "{all}");
    }
}

#[tokio::test]
async fn undo_keeps_to_max_changes_and_is_never_done_over_tcp() {
    let mut world = World::new();
    world.users(3, |number| User::default().external("saml", &format!("s{number}")));
    let fake = Fake::of(world);
    let program = Program::new(&fake.url(), TOKEN, &format!("{JOB}max_changes = 2\n"));
    program.write("admin-token", "an-admin-token-of-tests");
    let config = program.read("microglia.toml");
    program.write(
        "microglia.toml",
        &config.replace("[daemon]\n", "[daemon]\nadmin_token_file = \"admin-token\"\n"),
    );
    let removed = program.json(&["run", "ids", "--apply", "--max-changes", "3", "--json"]).await;
    assert_eq!(removed["done"], 3, "{removed}");
    let refused = undo(&program, &removed["id"], &["--apply"]).await;
    assert_eq!(refused["outcome"], "refused", "{refused}");
    let daemon = program.serve().await;
    let body = format!("{{\"mode\": \"apply\", \"undo\": {}}}", removed["id"]);
    let (status, body) =
        daemon.post("/api/v1/jobs/ids/run", "an-admin-token-of-tests", &body).await;
    assert_eq!(status, 403, "{body}");
    let undone = undo(&program, &removed["id"], &["--apply", "--max-changes", "3"]).await;
    assert_eq!(undone["done"], 3, "{undone}");
    daemon.stop().await;
}

#[tokio::test]
async fn an_undo_is_no_success_of_the_job_even_after_a_restart() {
    let mut world = World::new();
    world.users(1, |_| User::default().external("saml", "s"));
    let fake = Fake::of(world);
    let job = JOB.replace("kind", "mode = \"apply\"\nschedule = \"@yearly\"\nkind");
    let program = Program::new(&fake.url(), TOKEN, &job);
    let removed = program.apply("ids").await;
    let undone = undo(&program, &removed["id"], &["--apply"]).await;
    assert_eq!(undone["done"], 1, "{undone}");
    let finished_at: chrono::DateTime<chrono::Utc> =
        removed["finished_at"].as_str().unwrap().parse().unwrap();
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of this century fit")]
    let finished_at = finished_at.timestamp_millis() as f64 / 1000.0;
    let daemon = program.serve().await;
    let success = daemon.of_job("ids", "microglia_job_last_success_timestamp_seconds", &[]).await;
    assert!((success - finished_at).abs() < 1e-6, "{success} {finished_at}");
    daemon.stop().await;
}

#[tokio::test]
async fn links_that_were_removed_from_mas_are_created_again_and_that_is_undone() {
    let fake = Fake::start();
    let (public, internal) = fake.mas();
    let (provider, kept) = fake.world(|world| {
        let mas = &mut world.auth_service;
        mas.user("microglia");
        let google = Provider {
            issuer: Some("https://google.test".to_owned()),
            human_name: Some("Google".to_owned()),
            brand_name: Some("google".to_owned()),
            disabled: false,
        };
        let google = mas.provider(google);
        let mut kept = String::new();
        for name in ["alice", "bob", "carol", "dave"] {
            let user = mas.user(name);
            mas.link(&google, name, Some(&user));
            if name == "bob" {
                kept = user;
            }
        }
        (google, kept)
    });
    fake.world(|world| {
        for name in ["alice", "bob", "carol", "dave"] {
            world.user(&format!("@{name}:fake.test"));
        }
    });
    let program = Program::with_config(&format!(
        "[daemon]\nstate_dir = \"state\"\n[homeservers.main]\nurl = \"{}\"\nmax_requests_per_second = \"unlimited\"\n[homeservers.main.mas]\nurl = \"{}\"\nadmin_url = \"{}\"\nclient_id = \"{CLIENT_ID}\"\nclient_secret_file = \"mas-client-secret\"\naccount = \"microglia\"\n[jobs.ids]\nkind = \"remove-external-ids\"\nproviders = [\"Google\"]\naccounts = \"all\"\n",
        fake.url(),
        public.url(),
        internal.url(),
    ));
    program.write("mas-client-secret", CLIENT_SECRET);
    let removed = program.apply("ids").await;
    assert_eq!(removed["done"], 4, "{removed}");
    fake.world(|world| {
        let mas = &mut world.auth_service;
        // Carol is gone, and dave's identity belongs to bob now.
        mas.users.retain(|_, user| user.username != "carol");
        mas.link(&provider, "dave", Some(&kept));
    });
    let undone = undo(&program, &removed["id"], &["--apply"]).await;
    assert_eq!((&undone["outcome"], &undone["done"]), (&json!("succeeded"), &json!(2)), "{undone}");
    let message = undone["message"].as_str().unwrap();
    assert!(message.contains("the account no longer exists"), "{message}");
    assert!(message.contains("the identity belongs to bob now"), "{message}");
    let subjects = || {
        fake.world(|world| {
            let links = world.auth_service.links.values();
            let mut links: Vec<String> = links.map(|link| link.subject.clone()).collect();
            links.sort();
            links
        })
    };
    assert_eq!(subjects(), ["alice", "bob", "dave"]);
    let redone = undo(&program, &undone["id"], &["--apply"]).await;
    assert_eq!((&redone["outcome"], &redone["done"]), (&json!("succeeded"), &json!(2)), "{redone}");
    assert_eq!(subjects(), ["dave"]);
    let again = undo(&program, &redone["id"], &["--apply"]).await;
    assert_eq!(again["done"], 2, "{again}");
    assert_eq!(subjects(), ["alice", "bob", "dave"]);
}
