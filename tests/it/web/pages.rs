//! What the pages show.

use super::*;

fn request(name: &str, more: &str) -> String {
    format!(
        "[jobs.{name}]\nkind = \"request\"\nmethod = \"GET\"\npath = \"/_matrix/client/versions\"\n{more}\n"
    )
}

/// A run as SQL; its start is so many days ago.
fn run(job: &str, mode: &str, days_ago: u32, outcome: &str, done: u32) -> String {
    let changed = if mode == "apply" { done } else { 0 };
    let ago = u64::from(days_ago) * 86_400_000;
    let started = u64::try_from(now().timestamp_millis()).unwrap() - ago;
    format!(
        "INSERT INTO runs (job, kind, homeserver, mode, cause, started_at, finished_at, attempts, outcome, planned, done, failed, bytes_freed)
         VALUES ('{job}', 'purge-local-media', 'main', '{mode}', 'schedule', {started}, {started} + 1000, 1, '{outcome}', {done}, {changed}, 0, {changed} * 1048576);\n"
    )
}

#[tokio::test]
async fn the_first_page_shows_what_needs_attention_sums_schedules_and_the_next_day() {
    let fake = Fake::start();
    let jobs = [
        request("hourly", "schedule = \"@hourly\""),
        request(
            "nightly",
            "schedule = \"30 3 * * *\"\nwindow = \"01:00-06:00\"\ntimezone = \"Asia/Tokyo\"",
        ),
        request("new", ""),
    ];
    let program = program(&fake, &jobs.concat());
    program.serve().await.stop().await;
    let runs: String = [
        run("nightly", "apply", 40, "succeeded", 1000),
        run("nightly", "apply", 29, "succeeded", 1500),
        run("hourly", "dry-run", 20, "succeeded", 1),
        run("nightly", "dry-run", 3, "failed", 0),
        run("nightly", "dry-run", 2, "failed", 0),
    ]
    .concat();
    for statement in runs.split_inclusive(";\n") {
        program.sql(statement).await;
    }
    let daemon = program.serve().await;
    let page = get(&daemon, "/").await;
    for text in [
        "<b>nightly</b> failed 2 times in a row",
        "<b>1.5 GiB</b><span class=\"dim\">media freed",
        "<b>1,500</b><span class=\"dim\">files deleted",
        "<b>50 %</b><span class=\"dim\">of 4 runs succeeded",
        "every day at 03:30 <span class=\"dim\">Asia/Tokyo</span>",
        "every hour<small>next <time",
        "manual only",
        "Never ran: start a dry run",
        "Only dry runs since",
        "aria-label=\"Last 4 runs: 2 succeeded, 2 failed\"",
        " in the next 24 hours, window 01:00-06:00\"",
        "aria-label=\"hourly: 24 occurrences in the next 24 hours\"",
    ] {
        assert!(page.body.contains(text), "{text} is not in {}", page.body);
    }
    // What failed comes first.
    let at = |job: &str| page.body.find(&format!("<a href=\"/jobs/{job}\"")).unwrap();
    assert!(at("nightly") < at("hourly"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_dry_run_by_hand_does_not_hide_that_a_job_failed() {
    let jobs = [request("failing", "mode = \"apply\""), request("healthy", "mode = \"apply\"")];
    let program = program(&Fake::start(), &jobs.concat());
    program.serve().await.stop().await;
    for statement in [
        run("failing", "apply", 3, "failed", 0),
        run("failing", "apply", 2, "failed", 0),
        run("failing", "dry-run", 1, "succeeded", 5),
        run("healthy", "apply", 3, "failed", 0),
        run("healthy", "apply", 2, "succeeded", 5),
        run("healthy", "dry-run", 1, "succeeded", 5),
    ] {
        program.sql(&statement).await;
    }
    let daemon = program.serve().await;
    let page = get(&daemon, "/").await;
    assert!(page.body.contains("<b>failing</b> failed 2 times in a row"), "{}", page.body);
    assert!(!page.body.contains("<b>healthy</b> failed"), "{}", page.body);
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_without_jobs_says_how_to_add_one() {
    let program = Program::new(&Fake::start().url(), TOKEN, "");
    let daemon = program.serve().await;
    let page = get(&daemon, "/").await;
    assert!(
        page.body.contains("No job yet.") && page.body.contains("[jobs.nightly-media]"),
        "{}",
        page.body
    );
    assert!(get(&daemon, "/runs").await.body.contains("No run yet."));
    daemon.stop().await;
}

#[tokio::test]
async fn a_job_shows_its_schedule_its_keys_and_its_runs() {
    let jobs = request(
        "nightly",
        "schedule = \"30 3 * * *\"\ntimezone = \"Asia/Tokyo\"\ntime_limit = \"2h\"",
    );
    let program = program(&Fake::start(), &jobs);
    let daemon = program.serve().await;
    let page = get(&daemon, "/jobs/nightly").await;
    for text in [
        "every day at 03:30",
        "Asia/Tokyo · <code>30 3 * * *</code>",
        "(Asia/Tokyo)",
        "It never ran.",
        "<code>&#34;2h&#34;</code>",
    ] {
        assert!(page.body.contains(text), "{text} is not in {}", page.body);
    }
    assert_eq!(page.body.matches("<li><time").count(), 5, "{}", page.body);
    // Keys of the kind may name people.
    assert!(!page.body.contains("/_matrix/client/versions"), "{}", page.body);
    let page = Visitor::sign_in(&daemon).await.get("/jobs/nightly").await;
    assert!(page.body.contains("/_matrix/client/versions"), "{}", page.body);
    assert_eq!(program.run(&["run", "nightly"]).await.code, 0);
    let page = get(&daemon, "/jobs/nightly").await;
    assert!(page.body.contains("<a href=\"/runs/1\">1</a>"), "{}", page.body);
    assert!(
        page.body.contains("aria-label=\"Items planned per run: 1 runs since"),
        "{}",
        page.body
    );
    assert!(get(&daemon, "/jobs/nothing").await.body.contains("There is no job"));
    daemon.stop().await;
}

/// The runs that a list shows.
fn listed(page: &Page) -> Vec<u32> {
    assert_eq!(page.status, 200, "{}", page.body);
    let links = page.body.split("<td class=\"id\">").skip(1);
    links
        .map(|link| {
            let (_, rest) = link.split_once("/runs/").unwrap();
            rest.split('"').next().unwrap().parse().unwrap()
        })
        .collect()
}

#[tokio::test]
async fn runs_are_filtered_and_paged() {
    let program = program(&Fake::start(), &request("a", ""));
    program.serve().await.stop().await;
    let mut runs = String::new();
    for days in (1..=60).rev() {
        runs.push_str(&run(
            "a",
            "apply",
            days,
            if days % 10 == 0 { "failed" } else { "succeeded" },
            1,
        ));
        runs.push_str(&run("b", "dry-run", days, "succeeded", 1));
    }
    for statement in runs.split_inclusive(";\n") {
        program.sql(statement).await;
    }
    let daemon = program.serve().await;
    let all = get(&daemon, "/runs").await;
    assert_eq!(listed(&all), (71..=120).rev().collect::<Vec<u32>>());
    assert!(all.body.contains("href=\"/runs?before=71\""), "{}", all.body);
    assert_eq!(
        listed(&get(&daemon, "/runs?before=71").await),
        (21..=70).rev().collect::<Vec<u32>>()
    );
    let last = get(&daemon, "/runs?before=21").await;
    assert_eq!(listed(&last).len(), 20);
    assert!(!last.body.contains(">Older<") && last.body.contains(">Newest<"), "{}", last.body);
    let failed: Vec<u32> = vec![101, 81, 61, 41, 21, 1];
    for query in [
        "outcome=failed",
        "outcome=unsuccessful",
        "job=a&outcome=failed&mode=apply&homeserver=main",
    ] {
        assert_eq!(listed(&get(&daemon, &format!("/runs?{query}")).await), failed, "{query}");
    }
    for query in [
        "outcome=under-way",
        "homeserver=other",
        "job=c",
        "job=b&mode=apply",
        "since=2100-01-01",
        "until=2000-01-01",
    ] {
        let page = get(&daemon, &format!("/runs?{query}")).await;
        assert!(
            listed(&page).is_empty() && page.body.contains("No such run."),
            "{query}: {}",
            page.body
        );
    }
    assert_eq!(listed(&get(&daemon, "/runs?job=b&mode=dry-run&outcome=succeeded").await).len(), 50);
    let day = (now() - chrono::TimeDelta::days(30)).date_naive();
    let of_day = get(&daemon, &format!("/runs?since={day}&until={day}")).await;
    assert_eq!(listed(&of_day), [62, 61], "{day}");
    for query in ["mode=x", "outcome=x", "since=x", "before=x"] {
        assert_eq!(get(&daemon, &format!("/runs?{query}")).await.status, 400, "{query}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn changes_are_filtered_and_paged_and_a_plan_is_compared_with_the_one_before() {
    let fake = with_lobby(250);
    let program = program(&fake, LOBBY);
    let daemon = program.serve().await;
    assert_eq!(program.run(&["run", "lobby", "--dry-run"]).await.code, 0);
    fake.world(|world| {
        world.users(252, |_| User::default());
        world.user("@user000007:fake.test").deactivated = true;
    });
    assert_eq!(program.run(&["run", "lobby", "--dry-run"]).await.code, 0);
    let visitor = Visitor::sign_in(&daemon).await;
    let page = visitor.get("/runs/2").await;
    for text in [
        "plan of <a href=\"/runs/1\">run 1</a>",
        "new since then<small class=\"break\">@user000250:fake.test -&#62; !lobby:fake.test, @user000251:fake.test",
        "<td class=\"num\">2 members</td>",
        "no longer planned<small class=\"break\">@user000007:fake.test",
        "<td class=\"num\">1 member</td>",
        "1 to 100 of 251",
        "href=\"/runs/2?state=&#38;q=&#38;offset=100#changes\"",
    ] {
        assert!(page.body.contains(text), "{text} is not in {}", page.body);
    }
    assert!(!visitor.get("/runs/1").await.body.contains("plan of <a"), "the first one");
    assert!(visitor.get("/runs/2?offset=200").await.body.contains("201 to 251 of 251"));
    assert!(visitor.get("/runs/2?q=USER00001").await.body.contains("1 to 10 of 10"));
    assert!(visitor.get("/runs/2?q=%25").await.body.contains("No such change."), "no pattern");
    assert!(visitor.get("/runs/2?state=done").await.body.contains("No such change."));
    assert!(visitor.get("/runs/2?state=planned&q=user000003").await.body.contains("1 to 1 of 1"));
    let public = get(&daemon, "/runs/2?q=user").await;
    assert!(public.body.contains("Sign in</a> to see them"), "{}", public.body);
    assert!(public.body.contains("2 members"), "figures name nobody: {}", public.body);
    daemon.stop().await;
}
