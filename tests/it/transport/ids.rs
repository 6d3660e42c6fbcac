//! Invalid ids in responses.

use super::{ONCE, message, sweep, with_users};
use crate::fake::{Fake, Fault, TOKEN, Trouble};
use crate::program::{Program, changes};

#[tokio::test]
async fn an_id_longer_than_the_maximum_is_rejected() {
    let fake = with_users(1);
    let name = format!("@{}:fake.test", "x".repeat(5000));
    let body = format!(r#"{{"users": [{{"name": "{name}"}}], "total": 1}}"#);
    let page = Trouble::Answer { status: 200, headers: Vec::new(), body };
    // The first request that fits is for the daemon's own account.
    fake.fault(Fault::new("GET", "/_synapse/admin/v2/users", page).after(1));
    let program = sweep(&fake, ONCE);
    let report = program.dry_run("sweep").await;
    let message = message(&program, &fake, &report);
    assert!(message.contains("an id of 5011 bytes is too long"), "{message}");
    assert!(message.len() < 600, "{message}");
}

#[tokio::test]
async fn a_room_with_an_endless_chain_of_predecessors_fails_alone() {
    let fake = Fake::start();
    fake.world(|world| {
        world.users(1, |_| crate::fake::User::default());
        for number in 0..150 {
            let before = format!("!room{}:fake.test", number + 1);
            world.room(&format!("!room{number}:fake.test")).predecessor = Some(before);
        }
    });
    let job = "[jobs.sweep]\nkind = \"join-rooms\"\nrooms = [\"!room0:fake.test\", \"!room140:fake.test\"]\n";
    let program = Program::new(&fake.url(), TOKEN, job);
    let report = program.dry_run("sweep").await;
    insta::assert_snapshot!(changes(&report).join("\n"), @"
    failed !room0:fake.test (1): the chain of rooms that it replaced does not end: 100 were read
    planned @user000000:fake.test -> !room140:fake.test (1)
    ");
}
