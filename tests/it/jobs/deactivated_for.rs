//! `remove-external-ids`, `deactivated_for` on classic Synapse, by the memory of the program.

use serde_json::{Value, json};

use crate::fake::{Fake, Fault, TOKEN, Trouble, User};
use crate::homeserver::{Messages, Synapse};
use crate::program::{Program, changes, figures};

const JOB: &str = "[jobs.ids]\nkind = \"remove-external-ids\"\nproviders = [\"saml\"]\naccounts = \"all\"\ndeactivated_for = \"30d\"\n";

/// Makes what is remembered of deactivated accounts older.
async fn seen_days_ago(program: &Program, days: i64) {
    let ms = days * 24 * 60 * 60 * 1000;
    let older = format!("CAST(CAST(value AS BIGINT) - {ms} AS TEXT)");
    program
        .sql(&format!("UPDATE facts SET value = {older} WHERE topic = 'deactivated-account'"))
        .await;
}

fn fake(names: &[&str]) -> Fake {
    let fake = Fake::start();
    fake.world(|world| {
        for name in names {
            let user = User::default().external("saml", name);
            *world.user(&format!("@{name}:fake.test")) = User { deactivated: true, ..user };
        }
    });
    fake
}

fn planned(report: &Value) -> Vec<String> {
    let lines = changes(report).into_iter();
    lines.map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect()
}

#[tokio::test]
async fn ids_of_an_account_go_once_it_has_been_seen_deactivated_for_long() {
    let synapse = Synapse::start().await;
    let users = synapse.register_many("u", 3).await;
    for (number, user) in users.iter().enumerate() {
        synapse.external_ids(user, &[("saml", &number.to_string())]).await;
    }
    synapse.deactivate(&users[0], Messages::Keep).await;
    let program = Program::new(&synapse.url, &synapse.admin.token, JOB);
    let first = program.dry_run("ids").await;
    assert_eq!(planned(&first), users[1..]);
    assert_eq!(first["left_alone"], json!({"own-account": 1, "recently-deactivated": 1}));
    seen_days_ago(&program, 31).await;
    // It is active again for a while: the time starts anew.
    synapse.deactivate(&users[1], Messages::Keep).await;
    let second = program.dry_run("ids").await;
    assert_eq!(planned(&second), [&users[0], &users[2]].map(ToString::to_string));
    synapse.set_user(&users[0], json!({"deactivated": false, "password": "wordpass"})).await;
    assert_eq!(
        planned(&program.dry_run("ids").await),
        [&users[0], &users[2]].map(ToString::to_string)
    );
    synapse.deactivate(&users[0], Messages::Keep).await;
    let third = program.apply("ids").await;
    assert_eq!(planned(&third), [users[2].clone()]);
    assert_eq!(synapse.external_ids_of(&users[0]).await.len(), 1);
    seen_days_ago(&program, 31).await;
    assert_eq!(planned(&program.apply("ids").await), users[..2]);
    assert_eq!(synapse.external_ids_of(&users[0]).await.len(), 0);
}

#[tokio::test]
async fn an_account_that_is_deactivated_during_a_run_keeps_its_ids() {
    for (reads, outcome) in [(1, "succeeded: 0/0/0/0/0"), (2, "succeeded: 1/0/0/1/0")] {
        let fake = fake(&["a"]);
        fake.world(|world| world.user("@a:fake.test").deactivated = false);
        let program = Program::new(&fake.url(), TOKEN, JOB);
        let path = match reads {
            // Right after the list was read, or after the plan was made.
            1 => "/_synapse/admin/v2/users",
            _ => "/_synapse/admin/v2/users/@a:fake.test",
        };
        let gone = Trouble::Then(|world| world.user("@a:fake.test").deactivated = true);
        fake.fault(Fault::new("GET", path, gone).after(usize::from(reads == 1)));
        let report = program.apply("ids").await;
        assert_eq!(figures(&report), outcome, "{report}");
        assert_eq!(fake.world(|world| world.users["@a:fake.test"].external_ids.len()), 1);
    }
}

#[tokio::test]
async fn accounts_that_are_gone_are_forgotten_and_recent_ones_take_no_request() {
    let fake = fake(&["a", "b", "c"]);
    let program = Program::new(&fake.url(), TOKEN, JOB);
    assert_eq!(figures(&program.dry_run("ids").await), "succeeded: 0/0/0/0/0");
    assert_eq!(fake.count("GET", "/_synapse/admin/v2/users/@a"), 0);
    seen_days_ago(&program, 31).await;
    let gone = fake.world(|world| world.users.remove("@b:fake.test").unwrap());
    assert_eq!(planned(&program.dry_run("ids").await), ["@a:fake.test", "@c:fake.test"]);
    fake.world(|world| world.users.insert("@b:fake.test".to_owned(), gone));
    let report = program.dry_run("ids").await;
    assert_eq!(planned(&report), ["@a:fake.test", "@c:fake.test"]);
    assert_eq!(report["left_alone"]["recently-deactivated"], 1);
}
