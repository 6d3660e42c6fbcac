//! `delete-user-reports`, as far as it differs from `delete-event-reports`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::fake::{Fake, TOKEN};
use crate::homeserver::{Account, Synapse, encoded};
use crate::program::{Program, changes, figures};

const JOB: &str = "[jobs.reports]\nkind = \"delete-user-reports\"\nolder_than = \"30d\"\n";

async fn report(synapse: &Synapse, by: &Account, about: &str, reason: &str) {
    let path = format!("/_matrix/client/v3/users/{}/report", encoded(about));
    let body = json!({ "reason": reason });
    assert_eq!(synapse.client(by, Method::POST, &path, body).await.0, 200);
}

async fn listed(synapse: &Synapse) -> Vec<Value> {
    let list = synapse.get("/_synapse/admin/v1/user_reports").await;
    list["user_reports"].as_array().unwrap().clone()
}

#[tokio::test]
async fn old_reports_of_users_are_deleted_and_kept_in_the_history() {
    let mut synapse = Synapse::days_ago(40, "").await;
    let (alice, eve) = (synapse.register("alice").await, synapse.register("eve").await);
    report(&synapse, &alice, &eve.user_id, "she is rude").await;
    synapse.return_to_now().await;
    report(&synapse, &alice, &eve.user_id, "she still is").await;
    let old = listed(&synapse).await.into_iter().find(|it| it["reason"] == "she is rude").unwrap();

    let program = Program::new(&synapse.url, &synapse.admin.token, JOB);
    synapse.forget_requests();
    assert_eq!(figures(&program.dry_run("reports").await), "succeeded: 1/0/0/0/0");
    assert!(synapse.requests().iter().all(|request| request.starts_with("GET ")));
    let run = program.apply("reports").await;
    assert_eq!(figures(&run), "succeeded: 1/1/0/0/0");
    let line = &changes(&run)[0];
    assert!(line.starts_with(&format!("done report {} of ", old["id"])), "{line}");
    assert!(line.ends_with(", by @alice:hs.test about @eve:hs.test (1)"), "{line}");
    let left = listed(&synapse).await;
    assert_eq!((left.len(), &left[0]["reason"]), (1, &json!("she still is")));
    let shown = program.json(&["runs", "show", &run["id"].to_string(), "--json"]).await;
    assert_eq!(shown["changes"][0]["before"], old);
    let user = synapse.get(&format!("/_synapse/admin/v2/users/{}", encoded(&eve.user_id))).await;
    assert_eq!(user["deactivated"], false);
}

#[tokio::test]
async fn versions_without_the_list_are_refused() {
    let fake = Fake::start();
    fake.world(|world| world.version = "1.151.0".to_owned());
    let report = Program::new(&fake.url(), TOKEN, JOB).apply("reports").await;
    assert_eq!(
        report["message"],
        "main runs Synapse 1.151.0, and delete-user-reports requires 1.152 or later: upgrade Synapse"
    );
}
