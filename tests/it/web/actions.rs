//! Acting by plain forms.

use super::*;

#[tokio::test]
async fn a_plan_is_applied_after_a_dry_run_of_the_same_definition_was_looked_at() {
    let fake = with_lobby(3);
    let program = program(&fake, LOBBY);
    let daemon = program.serve().await;
    let visitor = Visitor::sign_in(&daemon).await;
    // A dry run that nobody started from the page.
    assert_eq!(program.run(&["run", "lobby", "--dry-run"]).await.code, 0);
    let page = visitor.get("/runs/1").await;
    assert!(page.body.contains("start a dry run from here first"), "{}", page.body);
    let refused = visitor.confirm("/runs/1/apply").await;
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert_eq!(visitor.confirm("/jobs/lobby/run").await.location(), "/runs/2");
    until_ended(&program, "lobby", 2).await;
    assert_eq!(visitor.confirm("/runs/2/apply").await.status, 409, "nobody looked at it");
    let plan = visitor.get("/runs/2").await;
    assert!(plan.body.contains("href=\"/runs/2/apply\""), "{}", plan.body);
    assert!(plan.body.contains("@user000002:fake.test"), "{}", plan.body);
    assert_eq!(joined(&fake), 0);
    assert_eq!(visitor.confirm("/runs/2/apply").await.location(), "/runs/3");
    until_ended(&program, "lobby", 3).await;
    assert_eq!(joined(&fake), 3);
    let page = visitor.get("/runs/3").await;
    assert!(page.body.contains("Run 3: succeeded"), "{}", page.body);

    assert_eq!(visitor.confirm("/jobs/lobby/run").await.location(), "/runs/4");
    until_ended(&program, "lobby", 4).await;
    fake.world(|world| world.users(5, |_| User::default()));
    assert_eq!(visitor.confirm("/jobs/lobby/run").await.location(), "/runs/5");
    until_ended(&program, "lobby", 5).await;
    visitor.get("/runs/5").await;
    let config = program.read("microglia.toml");
    program.write("microglia.toml", &config.replace("1000\n", "999\n"));
    assert_eq!(program.run(&["reload"]).await.code, 0);
    let page = visitor.get("/runs/5").await;
    assert!(page.body.contains("was changed since this plan was made"), "{}", page.body);
    let refused = visitor.confirm("/runs/5/apply").await;
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert_eq!(program.ended("lobby").await.len(), 5);
    daemon.stop().await;
}

#[tokio::test]
async fn a_plan_that_waits_is_shown_and_approved_or_rejected() {
    let fake = with_lobby(3);
    let program = program(&fake, &format!("{LOBBY}mode = \"approve\"\n"));
    let daemon = program.serve().await;
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    for path in ["/", "/runs/1"] {
        let page = get(&daemon, path).await;
        assert!(page.body.contains("waits for approval"), "{}", page.body);
        assert!(!page.body.contains("href=\"/runs/1/approve\""), "nobody is signed in");
    }
    let visitor = Visitor::sign_in(&daemon).await;
    let page = visitor.get("/runs/1").await;
    assert!(page.body.contains("href=\"/runs/1/approve\""), "{}", page.body);
    assert_eq!(visitor.confirm("/runs/1/reject").await.location(), "/runs/1");
    let page = visitor.get("/runs/1").await;
    assert!(page.body.contains("The plan was rejected by"), "{}", page.body);
    let refused = visitor.confirm("/runs/1/approve").await;
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert_eq!(joined(&fake), 0);
    assert_eq!(program.run(&["run", "lobby"]).await.code, 0);
    assert_eq!(visitor.confirm("/runs/2/approve").await.location(), "/runs/3");
    until_ended(&program, "lobby", 3).await;
    assert_eq!(joined(&fake), 3);
    let page = visitor.get("/runs/2").await;
    assert!(page.body.contains("and applied by <a href=\"/runs/3\">run 3</a>"), "{}", page.body);
    // Who decided is named to nobody who is not signed in.
    let page = get(&daemon, "/runs/2").await;
    assert!(page.body.contains("The plan was approved <time"), "{}", page.body);
    daemon.stop().await;
}

#[tokio::test]
async fn a_run_is_followed_and_cancelled() {
    let fake = with_lobby(300);
    let slow = LOBBY.replace("1000", "5");
    let program = program(&fake, &format!("{slow}mode = \"apply\"\n"));
    let daemon = program.serve().await;
    let visitor = Visitor::sign_in(&daemon).await;
    let refused = visitor.confirm("/jobs/lobby/cancel").await;
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(refused.body.contains("lobby is not running"), "{}", refused.body);
    let (status, _) = daemon.post("/api/v1/jobs/lobby/run", ADMIN_TOKEN, "").await;
    assert_eq!(status, 202);
    for path in ["/", "/jobs/lobby", "/runs", "/runs/1"] {
        until(path, 30, async || get(&daemon, path).await.body.contains("of 300 members")).await;
    }
    let again = visitor.confirm("/jobs/lobby/run").await;
    assert_eq!(again.status, 409, "{}", again.body);
    assert!(again.body.contains("already running (run 1)"), "{}", again.body);
    assert_eq!(visitor.confirm("/jobs/lobby/cancel").await.location(), "/jobs/lobby?did=cancel");
    until_ended(&program, "lobby", 1).await;
    let page = visitor.get("/runs/1").await;
    assert!(page.body.contains("Run 1: cancelled"), "{}", page.body);
    assert!(page.body.contains("(status page)"), "{}", page.body);
    daemon.stop().await;
}

#[tokio::test]
async fn scheduled_runs_are_paused_and_resumed() {
    let program = program(&with_lobby(1), &format!("{LOBBY}schedule = \"@daily\"\n"));
    let daemon = program.serve().await;
    let visitor = Visitor::sign_in(&daemon).await;
    assert_eq!(visitor.confirm("/pause").await.location(), "/?did=pause");
    let page = visitor.get("/?did=pause").await;
    assert!(page.body.contains("Scheduled runs are paused."), "{}", page.body);
    assert!(page.body.contains("<b>Paused</b> no job runs on schedule"), "{}", page.body);
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(1.0));
    assert_eq!(visitor.confirm("/resume").await.location(), "/?did=resume");
    assert_eq!(daemon.metric("microglia_paused", &[]).await, Some(0.0));
    assert!(!visitor.get("/").await.body.contains("<b>Paused</b>"));
    daemon.stop().await;
}

#[tokio::test]
async fn the_errors_of_a_reload_are_shown_in_place() {
    let program = program(&with_lobby(1), LOBBY);
    let daemon = program.serve().await;
    let visitor = Visitor::sign_in(&daemon).await;
    let config = program.read("microglia.toml");
    program.write("microglia.toml", &format!("{config}[jobs.broken]\nkind = \"jion-rooms\"\n"));
    assert_eq!(visitor.confirm("/reload").await.location(), "/reload");
    let page = visitor.get("/reload").await;
    assert!(
        page.body.contains("did you mean") && page.body.contains("jion-rooms"),
        "{}",
        page.body
    );
    assert!(!get(&daemon, "/").await.body.contains("jion-rooms"));
    assert!(get(&daemon, "/").await.body.contains("has errors and was not loaded"));
    program.write(
        "microglia.toml",
        &format!("{config}[jobs.second]\nkind = \"request\"\nmethod = \"GET\"\npath = \"/x\"\n"),
    );
    visitor.confirm("/reload").await;
    let page = visitor.get("/reload").await;
    assert!(page.body.contains("<dt>added</dt><dd>second</dd>"), "{}", page.body);
    assert!(!get(&daemon, "/").await.body.contains("has errors and was not loaded"));
    daemon.stop().await;
}
