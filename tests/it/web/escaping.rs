//! Text from a homeserver stays text on every page.

use super::*;
use crate::fake::{Fault, Trouble};

const HOSTILE: &str = "\"'><script>alert(1)</script>\u{202e}";

fn assert_harmless(path: &str, body: &str) {
    assert!(!body.contains("<script>") && !body.contains("'>"), "{path}: {body}");
    assert!(!body.contains('\u{202e}'), "{path}: {body}");
}

#[tokio::test]
async fn hostile_text_is_text_in_each_place_that_shows_it() {
    let fake = Fake::start();
    fake.world(|world| {
        world.version = format!("1.163.2{HOSTILE}");
        *world.user("@a:fake.test") = User::default().external("oidc-old", HOSTILE);
    });
    let jobs = "[jobs.ids]\nkind = \"remove-external-ids\"\naccounts = \"all\"\nproviders = [\"oidc-old\"]\nretries = { attempts = 1 }\n";
    let program = program(&fake, jobs);
    let daemon = program.serve().await;
    // A target, an error of a change, and with it the message of the run.
    fake.fault(
        Fault::new("PUT", "/_synapse/admin/v2/users/", Trouble::Synapse(400, "M_UNKNOWN", HOSTILE))
            .always(),
    );
    assert_eq!(program.run(&["run", "ids", "--dry-run"]).await.code, 0);
    assert_eq!(program.run(&["run", "ids", "--apply"]).await.code, 1);
    // The places that are hard to reach with a fake homeserver.
    program
        .sql(&format!(
            "UPDATE runs SET message = '{0}', sample = '[{{\"user_id\": \"{1}\", \"files\": 1, \"bytes\": 1}}]' WHERE id = 2",
            HOSTILE.replace('\'', "''"),
            HOSTILE.replace('\'', "''").replace('"', "\\\"")
        ))
        .await;
    program
        .sql(&format!(
            "UPDATE changes SET answer = '{0}', detail = '{0}' WHERE run = 2",
            HOSTILE.replace('\'', "''")
        ))
        .await;
    until("the probe", 20, async || get(&daemon, "/").await.body.contains("Synapse 1.163.2")).await;
    let visitor = Visitor::sign_in(&daemon).await;
    let paths = ["/", "/jobs/ids", "/runs", "/runs/1", "/runs/2", "/runs/2?state=failed"];
    let mut shown = 0;
    for path in paths {
        let body = visitor.get(path).await.body;
        assert_harmless(path, &body);
        shown += body.matches("alert(1)").count();
    }
    // The version; the message in the alert, both lists and the run; targets; sample, detail and response.
    assert!(shown >= 10, "{shown}");
    for page in ["/runs/1", "/runs/2"] {
        let body = visitor.get(page).await.body;
        assert!(body.contains("&#60;script&#62;alert(1)"), "{page}: {body}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_client_sends_is_text_on_the_page_that_shows_it() {
    let fake = with_lobby(1);
    let program = program(&fake, LOBBY);
    let daemon = program.serve().await;
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    let visitor = Visitor::sign_in(&daemon).await;
    let encoded = "%22%27%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E";
    for path in [
        format!("/?q={encoded}"),
        format!("/jobs/{encoded}"),
        format!("/runs?job={encoded}&homeserver={encoded}"),
        format!("/runs?mode={encoded}"),
        format!("/runs?since={encoded}"),
        format!("/runs?before={encoded}"),
        format!("/runs/1?q={encoded}"),
        format!("/runs/1?state={encoded}"),
        format!("/login?next=/{encoded}"),
        format!("/static/{encoded}"),
    ] {
        for page in [get(&daemon, &path).await, visitor.get(&path).await] {
            assert!(matches!(page.status, 200 | 400 | 404), "{path}: {}", page.status);
            assert_harmless(&path, &page.body);
        }
    }
    daemon.stop().await;
}

#[test]
fn no_template_turns_escaping_off() {
    let directory =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/web/pages/templates");
    let mut templates = 0;
    for file in std::fs::read_dir(directory).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for word in ["|safe", "| safe", "autoescape"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
        templates += 1;
    }
    assert!(templates > 5);
}
