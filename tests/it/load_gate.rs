//! What a run waits for while Synapse is busy on its own account.

use serde_json::{Value, json};

use crate::fake::{Fake, Fault, TOKEN, Trouble, User};
use crate::homeserver::Synapse;
use crate::program::{Program, figures, until};

const JOIN: &str = "/_synapse/admin/v1/join/";
const ROOM: &str = "!r:fake.test";

fn with_people(people: usize, keys: &str) -> (Fake, Program) {
    let fake = Fake::start();
    fake.world(|world| {
        world.users(people, |_| User::default());
        world.room(ROOM);
    });
    let job = format!(
        "[jobs.join]\nkind = \"join-rooms\"\nrooms = [\"{ROOM}\"]\njoins_per_second = 50\n{keys}"
    );
    let program = Program::new(&fake.url(), TOKEN, &job);
    (fake, program)
}

async fn waiting(program: &Program) -> Value {
    program.json(&["runs", "--json"]).await[0]["waiting"]["for"].clone()
}

async fn until_waiting(program: &Program, what: &str) {
    until(what, 20, async || {
        waiting(program).await.as_str().is_some_and(|text| text.contains(what))
    })
    .await;
}

#[tokio::test]
async fn a_run_reads_nothing_while_the_schema_changes_and_says_what_it_waits_for_until_when() {
    let (fake, program) = with_people(3, "");
    fake.world(|world| world.background_update = Some("event_search".to_owned()));
    let end_of_the_update = async {
        until_waiting(&program, "Synapse to finish the background update event_search before 20")
            .await;
        assert_eq!(fake.count("*", "/_synapse/admin/"), 0);
        fake.world(|world| world.background_update = None);
    };
    let (report, ()) = tokio::join!(program.apply("join"), end_of_the_update);
    assert_eq!(figures(&report), "succeeded: 3/3/0/0/0");
    assert_eq!(report["waited_for"], json!(["synapse"]));
}

#[tokio::test]
async fn changes_stop_while_synapse_purges_a_room_and_go_on_after_it() {
    let (fake, program) = with_people(9, "");
    let config = program.read("microglia.toml").replace("= 50", "= 0.5");
    program.write("microglia.toml", &config);
    fake.fault(
        Fault::new(
            "POST",
            JOIN,
            Trouble::Then(|world| {
                world.task("purge_room", "active", "!gone:fake.test", true);
            }),
        )
        .after(2),
    );
    let end_of_the_purge = async {
        until_waiting(&program, "Synapse to finish a purge of a room").await;
        let joined = fake.count("POST", JOIN);
        assert!((3..9).contains(&joined), "{joined} joins");
        fake.world(|world| world.tasks[0].status = "complete".to_owned());
        joined
    };
    let (report, _) = tokio::join!(program.apply("join"), end_of_the_purge);
    assert_eq!(figures(&report), "succeeded: 9/9/0/0/0");
    assert_eq!(fake.count("POST", JOIN), 9);
    assert_eq!(report["waited_for"], json!(["synapse"]));
}

#[tokio::test]
async fn what_never_ends_keeps_a_run_until_its_time_limit_and_it_changes_nothing() {
    let (fake, program) = with_people(3, "time_limit = \"3s\"\n");
    fake.world(|world| world.task("purge_history", "active", ROOM, true));
    let run = program.run(&["run", "join", "--apply", "--json"]).await;
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(figures(&report), "timed-out: null/0/0/0/null");
    let message = report["message"].as_str().unwrap();
    assert!(
        message.contains("while waiting for Synapse to finish a purge of a room before 20"),
        "{message}"
    );
    assert_eq!(fake.count("POST", JOIN), 0);
}

#[tokio::test]
async fn a_dry_run_and_a_homeserver_without_yield_to_do_not_wait() {
    let (fake, program) = with_people(3, "");
    fake.world(|world| {
        world.background_update = Some("event_search".to_owned());
        world.task("purge_room", "active", "!gone:fake.test", true);
    });
    assert_eq!(figures(&program.dry_run("join").await), "succeeded: 3/0/0/0/0");
    let config = program.read("microglia.toml").replace("\nurl = ", "\nyield_to = []\nurl = ");
    program.write("microglia.toml", &config);
    assert_eq!(figures(&program.apply("join").await), "succeeded: 3/3/0/0/0");
    assert_eq!(fake.looks(), 0);
}

#[tokio::test]
async fn a_task_that_is_scheduled_or_ended_and_a_synapse_that_cannot_tell_keep_nobody() {
    let (fake, program) = with_people(3, "");
    fake.world(|world| {
        for status in ["scheduled", "complete", "failed"] {
            world.task("purge_room", status, "!gone:fake.test", true);
        }
        world.version = "1.129.0".to_owned();
    });
    let path = "/_synapse/admin/v1/background_updates";
    for trouble in [Trouble::Proxy(403), Trouble::BrokenJson] {
        fake.fault(Fault::new("GET", path, trouble).always());
        let report = program.apply("join").await;
        assert_eq!(report["outcome"], "succeeded", "{report}");
        assert_eq!(report["waited_for"], Value::Null, "{report}");
    }
    assert_eq!(fake.count("POST", JOIN), 3);
}

#[tokio::test]
async fn a_real_synapse_tells_what_it_does() {
    let synapse = Synapse::start().await;
    let alice = synapse.register("alice").await;
    let room = synapse.create_room(&synapse.admin, json!({})).await;
    let job = format!("[jobs.join]\nkind = \"join-rooms\"\nrooms = [\"{room}\"]\n");
    let program = Program::new(&synapse.url, &synapse.admin.token, &job);
    let mut run = program.command(&["run", "join", "--apply", "--json"]);
    let output = run.env("RUST_LOG", "microglia=debug").output().await.unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(!log.contains("cannot tell"), "{log}");
    assert!(synapse.membership(&room, &alice.user_id).await.is_some());
}
