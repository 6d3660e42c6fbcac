//! A token file that changes while it is in use.

use std::time::Duration;

use serde_json::Value;

use super::{sweep, with_users};
use crate::fake::TOKEN;
use crate::program::{figures, until};

#[tokio::test]
async fn a_token_file_without_a_token_changes_nothing_and_is_logged_once() {
    let long = "x".repeat(9000);
    let unusable = ["fake-token\n\n", "fake token", "fäke-token", "fake\u{7}token", &long, "\n"];
    for text in unusable {
        let fake = with_users(40);
        fake.world(|world| world.latency = Duration::from_millis(10));
        let program = sweep(&fake, "");
        let child = program.command(&["run", "sweep", "--apply", "--json"]).spawn().unwrap();
        until("the run", 20, async || fake.count("PUT", "/") > 5).await;
        program.write("token", text);
        let output = child.wait_with_output().await.unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(figures(&report), "succeeded: 40/40/0/0/0", "{text:?}: {report}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.matches("keeping the previous token").count(), 1, "{stderr}");
        assert!(!stderr.contains(TOKEN) && !stderr.contains("xxx"), "{stderr}");
    }
}
