//! The status page in a real browser, with a real Synapse: `.ci/run` installs both, and `cargo test` leaves them out.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

#[expect(dead_code, reason = "the other tests use all of it")]
#[path = "../it/homeserver.rs"]
mod homeserver;
#[expect(dead_code, reason = "the other tests use all of it")]
#[path = "../it/postgres.rs"]
mod postgres;
#[expect(dead_code, reason = "the other tests use all of it")]
#[path = "../it/program.rs"]
mod program;
#[path = "../it/venv.rs"]
mod venv;
mod webdriver;

use std::path::PathBuf;

use chrono::Timelike;
use serde_json::json;

use crate::homeserver::Synapse;
use crate::program::{Daemon, Program};
use crate::webdriver::{Browser, Look, Scripts, target};

const TOKEN: &str = "secret-of-the-browser-tests";
const MEMBERS: usize = 40;

const LOOKS: [Look; 4] = [
    Look { scheme: "light", name: "desktop", width: 1240, height: 900 },
    Look { scheme: "dark", name: "desktop", width: 1240, height: 900 },
    Look { scheme: "light", name: "phone", width: 360, height: 780 },
    Look { scheme: "dark", name: "phone", width: 360, height: 780 },
];

struct Stage {
    synapse: Synapse,
    program: Program,
    daemon: Daemon,
    room: String,
}

/// A 4K screen without scaling.
const LARGE: [Look; 2] = [
    Look { scheme: "light", name: "4k", width: 3840, height: 2160 },
    Look { scheme: "dark", name: "4k", width: 3840, height: 2160 },
];

/// A homeserver with people who are to be joined to a room, at ten a second, and a job whose window is closed.
async fn stage() -> Stage {
    #[expect(clippy::disallowed_methods, reason = "the daemon looks at the same clock")]
    let opens = (chrono::Utc::now().hour() + 6) % 24;
    let window = format!("{opens:02}:00-{:02}:00", (opens + 5) % 24);
    let synapse = Synapse::start().await;
    let admin = synapse.login(&synapse.admin).await;
    let room = synapse.create_room(&admin, json!({ "preset": "public_chat" })).await;
    synapse.register_many("person", MEMBERS).await;
    let program = Program::new(
        &synapse.url,
        &admin.token,
        &format!(
            "[jobs.lobby]\nkind = \"join-rooms\"\nrooms = [\"{room}\"]\nschedule = \"30 3 * * *\"\njoins_per_second = 10\n\n\
             [jobs.nightly-media]\nkind = \"purge-local-media\"\nschedule = \"0 {} * * *\"\ntimezone = \"UTC\"\nolder_than = \"180d\"\nwindow = \"{window}\"\nmode = \"apply\"\n\n\
             [jobs.versions]\nkind = \"request\"\nschedule = \"*/30 * * * *\"\nmethod = \"GET\"\npath = \"/_matrix/client/versions\"\nmode = \"apply\"\n",
            (opens + 3) % 24
        ),
    );
    program.write("admin-token", TOKEN);
    let config = program.read("microglia.toml");
    let admin_token = "[daemon]\nadmin_token_file = \"admin-token\"\n";
    program.write("microglia.toml", &config.replace("[daemon]\n", admin_token));
    let daemon = program.serve().await;
    Stage { synapse, program, daemon, room }
}

impl Stage {
    async fn members(&self) -> usize {
        let mut members = 0;
        for number in 0..MEMBERS {
            let user = format!("@person{number:05}:hs.test");
            let member = self.synapse.membership(&self.room, &user).await;
            members += usize::from(member.is_some_and(|member| member.membership == "join"));
        }
        members
    }
}

/// Waits until a page shows a text: by itself with scripts, by the link that it offers without.
async fn shows(browser: &Browser, scripts: Scripts, css: &str, text: &str) {
    match scripts {
        Scripts::On => browser.shows(css, text).await,
        Scripts::Off => browser.shows_after_refresh(css, text).await,
    }
}

async fn sign_in(browser: &Browser) {
    browser.go("/").await;
    browser.click("Sign in").await;
    browser.fill("#token", TOKEN).await;
    browser.click("Sign in").await;
    browser.shows("header", "Sign out").await;
}

/// From signing in to applying a plan and reloading the configuration, by clicks and keys alone.
async fn visit(stage: &Stage, scripts: Scripts) {
    let browser = Browser::open(&stage.daemon.address, scripts).await;
    browser.go("/login").await;
    browser.fill("#token", "not-the-token").await;
    browser.click("Sign in").await;
    browser.shows(".error", "This is not the admin token.").await;
    sign_in(&browser).await;

    browser.click("lobby").await;
    browser.click("Dry run").await;
    browser.click("Start dry run").await;
    shows(&browser, scripts, "h1", "succeeded").await;
    browser.shows(".changes", "@person00000:hs.test").await;
    assert_eq!(stage.members().await, 0);
    browser.click("Apply").await;
    browser.shows("main", "makes the changes on main").await;
    browser.click("Make the changes").await;
    shows(&browser, scripts, ".progress small", &format!("of {MEMBERS} members")).await;
    // Before the page of the run is there, the path is still that of the question.
    let run = browser.path().await;
    let first = browser.text(".progress small").await;
    if scripts == Scripts::On {
        // The page itself moves on.
        let moved = async || browser.text(".progress small").await != first;
        program::until("progress", 30, moved).await;
        assert_eq!(browser.text("#live").await.as_deref(), Some("Updates by itself."));
    }
    shows(&browser, scripts, "h1", "succeeded").await;
    assert_eq!(browser.path().await, run);
    assert_eq!(stage.members().await, MEMBERS);

    let config = stage.program.read("microglia.toml");
    stage.program.write("microglia.toml", &config.replace("join-rooms", "jion-rooms"));
    browser.go("/").await;
    browser.click("Reload").await;
    browser.click("Reload").await;
    browser.shows(".outcome", "did you mean \"join-rooms\"?").await;
    browser.go("/").await;
    browser.shows(".alerts", "has errors and was not loaded").await;
    stage.program.write("microglia.toml", &config);
    browser.go("/reload").await;
    browser.click("Reload").await;
    browser.shows(".outcome", "Reloaded").await;
    browser.click("Sign out").await;
    browser.shows(".notice", "You are signed out.").await;
    browser.close().await;
}

#[tokio::test]
#[ignore = "needs chromium and chromium-driver: see .ci/run"]
async fn a_person_without_scripts_applies_a_plan_and_reloads_a_broken_configuration() {
    let stage = stage().await;
    visit(&stage, Scripts::Off).await;
    stage.daemon.stop().await;
}

#[tokio::test]
#[ignore = "needs chromium and chromium-driver: see .ci/run"]
async fn a_person_watches_a_run_and_every_page_can_be_used_by_everybody() {
    let stage = stage().await;
    visit(&stage, Scripts::On).await;
    record_a_past(&stage.program).await;
    let browser = Browser::open(&stage.daemon.address, Scripts::On).await;
    browser.go("/login").await;
    survey(&browser, "public", &["/", "/runs/2", "/login", "/jobs/none"], &LOOKS).await;
    sign_in(&browser).await;
    let asks = plan_outside_the_window(&browser).await;
    let failed = "/runs?outcome=failed";
    let pages = [
        "/",
        "/jobs/lobby",
        "/jobs/nightly-media",
        "/runs",
        failed,
        "/runs/1",
        "/runs/2",
        "/runs/3",
        "/reload",
        "/jobs/lobby/run",
        &asks,
        "/runs?job=nothing",
    ];
    survey(&browser, "signed-in", &pages, &LOOKS).await;
    survey(&browser, "signed-in", &["/", "/jobs/nightly-media", "/runs", "/runs/2", &asks], &LARGE)
        .await;
    browser.close().await;
    stage.daemon.stop().await;
}

/// Returns the page that asks whether to apply a plan although the window is closed.
async fn plan_outside_the_window(browser: &Browser) -> String {
    browser.go("/jobs/nightly-media/run").await;
    browser.click("Start dry run").await;
    browser.shows("h1", "succeeded").await;
    let asks = format!("{}/apply", browser.path().await);
    browser.go(&asks).await;
    browser.shows("main", "although it is outside the window").await;
    asks
}

/// Runs of the last weeks, for the charts.
async fn record_a_past(program: &Program) {
    let plan = r#"[{"user_id": "@alice:hs.test", "files": 2310, "bytes": 8482000000}, {"user_id": "@a-very-long-name-for-an-account:hs.test", "files": 1904, "bytes": 6500000000}]"#;
    program.sql(&format!(
        "WITH RECURSIVE days (day) AS (SELECT 30 UNION ALL SELECT day - 1 FROM days WHERE day > 0)
         INSERT INTO runs (job, kind, homeserver, mode, cause, scheduled_for, started_at, finished_at, attempts, outcome, message, planned, done, bytes_planned, bytes_freed, sample)
         SELECT 'nightly-media', 'purge-local-media', 'main', 'apply', 'schedule', at, at, at + 95000, 1,
             CASE WHEN day < 2 THEN 'failed' ELSE 'succeeded' END,
             CASE WHEN day < 2 THEN 'the media worker answers 502 Bad Gateway (POST /_synapse/admin/v1/media/delete)' END,
             items, CASE WHEN day < 2 THEN 0 ELSE items END, items * 9000000, CASE WHEN day < 2 THEN 0 ELSE items * 9000000 END, '{plan}'
         FROM (SELECT day, (day * 7919) % 13 * 97 AS items, CAST(strftime('%s', 'now') AS INTEGER) * 1000 - day * 86400000 - 60000 AS at FROM days)"
    )).await;
}

/// Looks at each page in each way: nothing that axe-core finds, nothing wider than the window, and a picture.
async fn survey(browser: &Browser, who: &str, pages: &[&str], looks: &[Look]) {
    let pictures: PathBuf = target().join("browser");
    std::fs::create_dir_all(&pictures).unwrap();
    let mut problems = Vec::new();
    for look in looks {
        browser.look(*look).await;
        for path in pages {
            browser.go(path).await;
            let name = path.trim_matches('/').replace(['/', '?', '='], "-");
            let name = if name.is_empty() { "overview".to_owned() } else { name };
            let file = format!("{name}-{who}-{}-{}.png", look.name, look.scheme);
            browser.screenshot(&pictures.join(file)).await;
            let found = browser.accessibility_problems().await;
            problems.extend(
                found.iter().map(|found| format!("{path} {} {}: {found}", look.name, look.scheme)),
            );
            if browser.overflows().await {
                problems.push(format!("{path} {} is wider than the window", look.name));
            }
        }
    }
    assert_eq!(problems, [""; 0]);
}
