//! Files that cannot be read: a token on a file system that stalls blocks only its own homeserver.

use super::*;
use crate::fake::TOKEN;
use crate::program::until;

#[tokio::test]
async fn a_token_file_that_stalls_blocks_only_its_own_homeserver() {
    let (stalled, other) = (Fake::start(), Fake::start());
    let schedule = "mode = \"apply\"\nschedule = \"* * * * * *\"\nhomeserver";
    let program = Program::new(
        &stalled.url(),
        TOKEN,
        &format!(
            "[homeservers.other]\nurl = \"{}\"\naccess_token_file = \"other-token\"\n{}{}",
            other.url(),
            ping("stalled", &format!("{schedule} = \"main\"")),
            ping("other", &format!("{schedule} = \"other\""))
        ),
    );
    program.write("other-token", TOKEN);
    let fifo = program.path("token");
    std::fs::remove_file(&fifo).unwrap();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // The writer of a FIFO waits for a reader: the daemon at its start, and nothing afterwards.
    let writer = std::thread::spawn(move || std::fs::write(fifo, TOKEN).unwrap());
    let daemon = program.serve().await;
    writer.join().unwrap();
    until("the other homeserver's job runs", 30, async || program.ended("other").await.len() > 3)
        .await;
    assert_eq!(daemon.get("/healthz").await, (200, "ok\n".to_owned()));
    until("the job runs with the previous token", 30, async || {
        program.runs("stalled").await.iter().any(|run| run["outcome"] == "succeeded")
    })
    .await;
    let log = daemon.log();
    let warning = "token cannot be read within 1 s: keeping the previous token";
    assert_eq!(log.matches(warning).count(), 1, "{log}");
    assert!(
        program.runs("other").await.iter().all(|run| run["outcome"] != "failed"),
        "{:?}",
        program.ended("other").await
    );
}
