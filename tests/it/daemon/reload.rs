//! Reloads by signal, socket, HTTP and `watch_config`; all or nothing.

use std::time::Duration;

use super::*;
use crate::fake::{Fault, TOKEN, Trouble};
use crate::program::until;

fn names(jobs: &Value) -> Vec<&str> {
    jobs.as_array().unwrap().iter().map(|job| job["name"].as_str().unwrap()).collect()
}

const SUCCESSFUL: &str = "microglia_config_last_reload_successful";

#[tokio::test]
async fn a_configuration_with_errors_changes_nothing_and_every_error_is_reported() {
    let fake = Fake::start();
    let program = with_admin(&fake, &[ping("stays", ""), ping("goes", "")].concat());
    let daemon = program.serve().await;
    let good = program.read("microglia.toml");
    let bad = good
        .replace("[jobs.goes]", "[jobs.comes]\nschedul = 1\noverlap = \"twice\"")
        .replace("[jobs.stays]", "[jobs.stays]\ntime_limit = 5");
    program.write("microglia.toml", &bad);
    let errors = ["unknown key `schedul`", "invalid value \"twice\"", "expected a duration"];
    let refused = program.run(&["reload"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(errors.iter().all(|error| refused.stderr.contains(error)), "{}", refused.stderr);
    assert_eq!(daemon.metric(SUCCESSFUL, &[]).await, Some(0.0));
    let (status, body) = daemon.post("/-/reload", "secret-of-the-tests", "").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 400, "{body}");
    let reported = body["errors"].as_array().unwrap();
    assert!(
        errors
            .iter()
            .all(|error| reported.iter().any(|line| line.as_str().unwrap().contains(error))),
        "{body}"
    );
    let before = daemon.log().matches("the configuration was not reloaded").count();
    daemon.signal("HUP");
    until("the log", 20, async || {
        daemon.log().matches("the configuration was not reloaded").count() > before
    })
    .await;
    assert!(
        errors.iter().all(|error| daemon.log().matches(error).count() >= 3),
        "{}",
        daemon.log()
    );
    assert_eq!(names(&daemon.get_json("/api/v1/jobs").await), ["goes", "stays"]);

    program.write("microglia.toml", &good.replace("[jobs.goes]", "[jobs.comes]"));
    let (status, body) = daemon.post("/-/reload", "secret-of-the-tests", "").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        body,
        r#"{"added":["comes"],"changed":[],"removed":["goes"],"unchanged":["stays"]}"#
    );
    assert_eq!(daemon.metric(SUCCESSFUL, &[]).await, Some(1.0));
    assert_eq!(daemon.of_job("comes", "microglia_job_info", &[]).await, 1.0);
    assert_eq!(daemon.of_job("goes", "microglia_job_info", &[]).await, 0.0);
    edit(&program, "[jobs.stays]", "[jobs.stays]\ntime_limit = \"5m\"");
    let reloaded = program.run(&["reload"]).await;
    assert_eq!(reloaded.code, 0);
    assert_eq!(
        reloaded.stdout,
        "changed: stays\nreloaded: 0 added, 1 changed, 0 removed, 1 unchanged\n"
    );
    edit(&program, "[daemon]", "[daemon]\nlisten = \"127.0.0.1:1\"");
    edit(&program, "\"state\"", "\"elsewhere\"");
    // The socket is where the daemon is, not where the edit says it will be.
    let (status, body) = daemon.post("/-/reload", "secret-of-the-tests", "").await;
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    let needed = body["restart_needed"].to_string();
    assert!(needed.contains("daemon.listen") && needed.contains("daemon.state_dir"), "{needed}");
    until_log(&daemon, "daemon.listen: ").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_rate_out_of_range_fails_every_kind_of_reload() {
    let fake = Fake::start();
    let program = with_admin(&fake, &ping("stays", ""));
    edit(&program, "[daemon]\n", "[daemon]\nwatch_config = \"1s\"\n");
    let daemon = program.serve().await;
    let good = program.read("microglia.toml");
    let rate = "max_requests_per_second = ";
    let reported = "expected \"auto\", \"unlimited\" or a number, from 0.001 to 10000";
    let unlimited = format!("{rate}\"unlimited\"");
    program.write("microglia.toml", &good.replace(&unlimited, &format!("{rate}1e-300")));
    until("watch_config", 20, async || daemon.log().contains(reported)).await;
    let reloaded = program.run(&["reload"]).await;
    assert_eq!(reloaded.code, 1, "{reloaded:?}");
    assert!(reloaded.stderr.contains(reported), "{reloaded:?}");
    let (status, body) = daemon.post("/-/reload", "secret-of-the-tests", "").await;
    assert_eq!(status, 400, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert!(body["errors"][0].as_str().unwrap().contains(reported), "{body}");
    let before = daemon.log().matches(reported).count();
    daemon.signal("HUP");
    until("SIGHUP", 20, async || daemon.log().matches(reported).count() > before).await;
    assert_eq!(daemon.metric(SUCCESSFUL, &[]).await, Some(0.0));
    // The file is still watched.
    program.write("microglia.toml", &good.replace("[jobs.stays]", "[jobs.comes]"));
    until("the next configuration", 20, async || {
        names(&daemon.get_json("/api/v1/jobs").await) == ["comes"]
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn watch_config_finds_replaced_links_and_renamed_files() {
    let fake = Fake::start();
    let program = Program::new(&fake.url(), TOKEN, &ping("first", ""));
    edit(&program, "[daemon]\n", "[daemon]\nwatch_config = \"1s\"\n");
    // As Kubernetes does it: the file is a link through a link that is swapped.
    let config = program.read("microglia.toml");
    for (version, job) in [("v1", "first"), ("v2", "second")] {
        std::fs::create_dir(program.path(version)).unwrap();
        let text = config.replace("[jobs.first]", &format!("[jobs.{job}]"));
        program.write(&format!("{version}/microglia.toml"), &text);
    }
    std::fs::remove_file(program.path("microglia.toml")).unwrap();
    std::os::unix::fs::symlink("v1", program.path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/microglia.toml", program.path("microglia.toml")).unwrap();
    let daemon = program.serve().await;
    let known = async |wanted: &str| {
        let jobs = daemon.get_json("/api/v1/jobs").await;
        names(&jobs) == [wanted]
    };
    assert!(known("first").await);
    std::os::unix::fs::symlink("v2", program.path("..new")).unwrap();
    std::fs::rename(program.path("..new"), program.path("..data")).unwrap();
    until("the second job", 20, async || known("second").await).await;
    // As an editor does it: another file takes the name.
    program.write("microglia.toml.new", &config.replace("[jobs.first]", "[jobs.third]"));
    std::fs::rename(program.path("microglia.toml.new"), program.path("microglia.toml")).unwrap();
    until("the third job", 20, async || known("third").await).await;
    // A file that disappeared is a failed reload: the next start would fail.
    let kept = program.read("microglia.toml");
    std::fs::remove_file(program.path("microglia.toml")).unwrap();
    until("the metric", 20, async || daemon.metric(SUCCESSFUL, &[]).await == Some(0.0)).await;
    assert!(known("third").await);
    program.write("microglia.toml", &kept);
    until("the metric", 20, async || daemon.metric(SUCCESSFUL, &[]).await == Some(1.0)).await;
    program.write("microglia.toml", "nonsense");
    until("a refusal", 20, async || daemon.metric(SUCCESSFUL, &[]).await == Some(0.0)).await;
    assert!(known("third").await);
    std::fs::remove_file(program.path("microglia.toml")).unwrap();
    program.write("microglia.toml", &config);
    until("the first job", 20, async || known("first").await).await;
    let reloads = |log: &str| log.matches("configuration reloaded (the file changed)").count();
    until("the log", 20, async || reloads(&daemon.log()) >= 4).await;
    let log = daemon.stop().await;
    assert_eq!(reloads(&log), 4, "{log}");
    assert_eq!(log.matches("the configuration was not reloaded").count(), 2, "{log}");
}

#[tokio::test]
async fn unchanged_jobs_continue_and_runs_of_changed_ones_end_with_the_old_definition() {
    let fake = Fake::start();
    fake.fault(Fault::new("GET", PING, Trouble::Delay(Duration::from_secs(4))).times(3));
    let apply = "mode = \"apply\"";
    let jobs = [
        ping("changed", apply),
        ping("removed", apply),
        ping("unchanged", apply),
        ping("yearly", "schedule = \"0 0 1 1 *\"\nsplay = \"1h\""),
    ];
    let program = with_admin(&fake, &jobs.concat());
    edit(&program, "[homeservers.main]\n", "[homeservers.main]\nmax_concurrent_runs = 3\n");
    let daemon = program.serve().await;
    let next =
        async || daemon.of_job("yearly", "microglia_job_next_run_timestamp_seconds", &[]).await;
    let before = next().await;
    for job in ["changed", "removed", "unchanged"] {
        assert_eq!(
            daemon.post(&format!("/api/v1/jobs/{job}/run"), "secret-of-the-tests", "").await.0,
            202
        );
    }
    until("their requests", 20, async || fake.count("GET", PING) == 3).await;
    let config = program.read("microglia.toml");
    let with = config
        .replace(&ping("changed", apply), &ping("changed", "mode = \"apply\"\nquery = { new = 1 }"))
        .replace(&ping("removed", apply), "");
    program.write("microglia.toml", &with);
    let reloaded = program.run(&["reload"]).await;
    assert_eq!(
        reloaded.stdout,
        "changed: changed\nremoved: removed\nreloaded: 0 added, 1 changed, 1 removed, 2 unchanged\n"
    );
    assert_eq!(next().await, before);
    assert_eq!(daemon.of_job("removed", "microglia_job_info", &[]).await, 0.0);
    assert_eq!(daemon.of_job("unchanged", "microglia_job_running", &[]).await, 1.0);
    assert_eq!(daemon.of_job("changed", "microglia_job_running", &[]).await, 1.0);
    // Taken out and put back while it still runs: it is the same run.
    program.write(
        "microglia.toml",
        &with.replace("[jobs.yearly]", &format!("{}[jobs.yearly]", ping("removed", apply))),
    );
    assert_eq!(program.run(&["reload"]).await.code, 0);
    assert_eq!(daemon.of_job("removed", "microglia_job_running", &[]).await, 1.0);
    for job in ["changed", "removed"] {
        assert_eq!(
            daemon.post(&format!("/api/v1/jobs/{job}/run"), "secret-of-the-tests", "").await.0,
            409,
            "{job}"
        );
    }
    until("the ends", 20, async || {
        let ended = async |job| program.ended(job).await.len();
        ended("changed").await + ended("removed").await + ended("unchanged").await == 3
    })
    .await;
    let target = async |id: &str| {
        program.json(&["runs", "show", id, "--json"]).await["changes"][0]["target"].clone()
    };
    assert_eq!(program.ended("changed").await, ["manual succeeded"]);
    assert_eq!(target("1").await, format!("GET {PING}"));
    assert_eq!(program.run(&["run", "changed"]).await.code, 0);
    assert_eq!(target("4").await, format!("GET {PING}?new=…"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_job_that_only_moved_in_the_file_is_unchanged() {
    let fake = Fake::start();
    let tables = [ping("a", "homeserver = \"main\""), sweep("b", 5, "homeserver = [\"main\"]")];
    let program = with_admin(&fake, &tables.concat());
    program.write("ca.pem", &crate::transport::tls("ca.pem"));
    edit(&program, "[homeservers.main]\n", "[homeservers.main]\nca_file = \"ca.pem\"\n");
    let daemon = program.serve().await;
    program.write("microglia.toml", &format!("# A word.\n\n{}", program.read("microglia.toml")));
    assert_eq!(program.run(&["run", "a"]).await.code, 0, "the same job, before the reload");
    let reloaded = program.run(&["reload"]).await;
    assert_eq!(
        (reloaded.stdout.as_str(), reloaded.code),
        ("reloaded: 0 added, 0 changed, 0 removed, 2 unchanged\n", 0)
    );
    // Neither does a renewed certificate make a job another one.
    let renewed = program.read("ca.pem") + "\n";
    program.write("ca.pem", &renewed);
    let reloaded = program.run(&["reload"]).await;
    assert_eq!(reloaded.stdout, "reloaded: 0 added, 0 changed, 0 removed, 2 unchanged\n");
    assert_eq!(program.run(&["run", "a"]).await.code, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_removed_homeserver_leaves_no_series_even_if_it_responds_later() {
    let (stays, goes) = (Fake::start(), Fake::start());
    let slow = Trouble::Delay(Duration::from_secs(2));
    goes.fault(Fault::new("GET", "/_matrix/client/v3/account/whoami", slow).always());
    let table = |name: &str, url: &str| {
        format!("[homeservers.{name}]\nurl = \"{url}\"\naccess_token_file = \"token\"\n")
    };
    let with = |tables: &[String]| {
        format!(
            "[daemon]\nstate_dir = \"state\"\n{}{}",
            tables.concat(),
            ping("a", "homeserver = \"stays\"")
        )
    };
    let tables = [table("stays", &stays.url()), table("goes", &goes.url())];
    let program = Program::with_config(&with(&tables));
    program.write("token", TOKEN);
    let daemon = program.serve().await;
    until("the probe", 20, async || !goes.requests().is_empty()).await;
    program.write("microglia.toml", &with(&tables[..1]));
    assert_eq!(program.run(&["reload"]).await.code, 0);
    until("its response", 20, async || goes.count("GET", "/_synapse/admin/v2/users/") == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (_, text) = daemon.get("/metrics").await;
    assert!(text.contains("homeserver=\"stays\"") && !text.contains("\"goes\""), "{text}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_file_is_used_after_a_reload() {
    let fake = Fake::start();
    let program = Program::new(
        "https://localhost:1",
        TOKEN,
        &ping("a", "mode = \"apply\"\nretries = { attempts = 1 }"),
    );
    let address = crate::transport::tls_in_front_of(&fake).await;
    edit(&program, "https://localhost:1", &address);
    program.write("ca.pem", &crate::transport::tls("server.pem"));
    edit(&program, "[homeservers.main]\n", "[homeservers.main]\nca_file = \"ca.pem\"\n");
    let daemon = program.serve().await;
    let refused = program.run(&["run", "a"]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.stdout.contains("certificate of the homeserver is not trusted"), "{refused:?}");
    program.write("ca.pem", &crate::transport::tls("ca.pem"));
    assert_eq!(program.run(&["reload"]).await.code, 0);
    assert_eq!(program.run(&["run", "a"]).await.code, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn slots_of_a_homeserver_survive_a_reload() {
    let fake = Fake::start();
    fake.fault(Fault::new("GET", PING, Trouble::Delay(Duration::from_secs(3))).times(2));
    let apply = "mode = \"apply\"";
    let program =
        with_admin(&fake, &[ping("a", apply), ping("b", apply), ping("c", apply)].concat());
    let daemon = program.serve().await;
    let start = async |job: &str| {
        assert_eq!(
            daemon.post(&format!("/api/v1/jobs/{job}/run"), "secret-of-the-tests", "").await.0,
            202
        );
    };
    start("a").await;
    until("its request", 20, async || fake.count("GET", PING) == 1).await;
    // Another client for the same homeserver, and still one run at a time.
    edit(&program, "[homeservers.main]\n", "[homeservers.main]\nrequest_timeout = \"30s\"\n");
    assert_eq!(program.run(&["reload"]).await.code, 0);
    start("b").await;
    until("b waits", 10, async || daemon.of_job("b", "microglia_job_waiting", &[]).await == 1.0)
        .await;
    assert_eq!(fake.count("GET", PING), 1);
    // Room for two now.
    edit(&program, "request_timeout", "max_concurrent_runs = 2\nrequest_timeout");
    assert_eq!(program.run(&["reload"]).await.code, 0);
    until("b to continue", 3, async || fake.count("GET", PING) == 2).await;
    assert_eq!(program.runs("a").await[0]["outcome"], Value::Null);
    edit(&program, "max_concurrent_runs = 2\n", "");
    assert_eq!(program.run(&["reload"]).await.code, 0);
    start("c").await;
    until("c waits", 10, async || daemon.of_job("c", "microglia_job_waiting", &[]).await == 1.0)
        .await;
    until("all ended", 20, async || !program.ended("c").await.is_empty()).await;
    let (b, c) = (program.runs("b").await, program.runs("c").await);
    assert!(time_of(&c[0], "finished_at") > time_of(&b[0], "finished_at"), "{b:?} {c:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_hundred_reloads_of_five_hundred_jobs_leave_nothing_behind() {
    let fake = Fake::start();
    let jobs: Vec<String> = (0..500)
        .map(|number| {
            let more = "schedule = \"@hourly\"\nolder_than = \"90d\"";
            format!("[jobs.job-{number}]\nkind = \"purge-remote-media\"\n{more}\n")
        })
        .collect();
    let program = with_admin(&fake, &jobs.concat());
    let daemon = program.serve().await;
    let reload = async |limit: u32| {
        // Every job is changed and the client of the homeserver made anew each time.
        let config = program.read("microglia.toml");
        let (head, rest) = config.split_once("[homeservers.main]\n").unwrap();
        let rest = rest.split_once("url").unwrap().1;
        program.write(
            "microglia.toml",
            &format!("{head}[homeservers.main]\nrequest_timeout = \"{limit}s\"\nurl{rest}"),
        );
        let (status, body) = daemon.post("/-/reload", "secret-of-the-tests", "").await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body.matches("job-").count(), 500);
        assert!(body.contains("\"unchanged\":[]"), "{body}");
    };
    let status = |field: &str| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let files = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    for limit in 20..30 {
        reload(limit).await;
    }
    let (memory, threads, open) = (status("VmRSS:"), status("Threads:"), files());
    for limit in 30..130 {
        reload(limit).await;
    }
    // Probes of the last reload may still use a connection.
    until("as many open files as before", 20, async || files() <= open + 4).await;
    assert!(status("Threads:") <= threads + 2, "{} threads, {threads} before", status("Threads:"));
    let grown = status("VmRSS:").saturating_sub(memory);
    assert!(grown < 6 * 1024, "{grown} KiB more");
    daemon.stop().await;
}
