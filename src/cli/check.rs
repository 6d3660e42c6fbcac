//! `microglia check`: errors in the configuration, the next occurrences of jobs, and checks of the homeservers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use serde::Serialize;
use serde_json::json;

use super::context::{become_owner, blocking};
use super::failure::Failure;
use super::output::{print, print_json, print_warning};
use super::table::format_local;
use crate::config::{Config, ConnectFor, Connections, Diagnostic, Homeserver, JobSpec};
use crate::http::{Clients, Observer};
use crate::jobs::job::{self, Budget};
use crate::plan::report::Mode;
use crate::scheduler::job_list::{Sharing, job_list, upcoming};
use crate::synapse::{Error, Identity, Reader};
use crate::values::clock::Clock;
use crate::values::escape::line;
use crate::values::text::format_count;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Also check each homeserver: reachable, version, token, server admin, media, MAS, rooms, notifications.
    #[arg(long)]
    online: bool,
    /// Print one JSON document: errors, warnings, jobs, and with --online its results.
    #[arg(long)]
    json: bool,
    /// Read no secret file, for CI.
    #[arg(long, conflicts_with = "online")]
    no_secrets: bool,
}

impl Options {
    /// As `check --online`.
    pub(super) fn online() -> Self {
        Self { online: true, json: false, no_secrets: false }
    }
}

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Failure> {
    let clock = Clock::system();
    let (now, no_secrets) = (clock.now(), options.no_secrets);
    let loaded = blocking(path, move |path, environment| match no_secrets {
        true => Config::load_without_secrets(path, &environment, now),
        false => Config::load(path, &environment, now),
    })
    .await?;
    let config = match loaded {
        Ok(config) => config,
        Err(errors) if options.json => {
            let errors = json!({ "errors": errors.as_json(), "warnings": [], "files": null, "jobs": [], "online": null });
            print_json(&errors)?;
            return Err(Failure::InvalidConfig);
        }
        Err(errors) => return Err(errors.into()),
    };
    if !options.json {
        print_config(path, &config, &clock)?;
    }
    let results = match options.online {
        true => check_all(&config, options, &clock).await?,
        false => Vec::new(),
    };
    let problems = results.iter().filter(|result| result.ok != Some(true)).count() as u64;
    if options.json {
        print_json(&json!({
            "errors": [],
            "warnings": config.warnings.iter().map(Diagnostic::as_json).collect::<Vec<_>>(),
            "files": files(path, &config),
            "jobs": job_list(config.jobs.iter(), HashMap::new(), HashMap::new(), &Sharing::default(), clock.now()),
            "online": options.online.then_some(&results),
        }))?;
    } else if options.online {
        print(&match problems {
            0 => "homeservers: all checks passed".to_owned(),
            1 => "homeservers: 1 check is NO or unknown, see above".to_owned(),
            _ => format!("homeservers: {problems} checks are NO or unknown, see above"),
        })?;
    }
    if problems == 0 { Ok(()) } else { Err(Failure::Unsuccessful) }
}

/// Every configuration file that was read, the main file first.
fn files<'a>(path: &'a Path, config: &'a Config) -> Vec<&'a Path> {
    std::iter::once(path).chain(config.included.iter().map(PathBuf::as_path)).collect()
}

/// How many homeservers are asked at a time: one that hangs takes up to minutes.
const CONCURRENT_CHECKS: usize = 64;

/// Checks all homeservers, several at a time, and returns the results in the order of their names.
///
/// Those of one homeserver are printed as they come, those of each of several together: a homeserver that does not
/// respond holds up only its own.
async fn check_all(
    config: &Config,
    options: &Options,
    clock: &Clock,
) -> Result<Vec<CheckResult>, Failure> {
    let printing = match config.homeservers.len() {
        _ if options.json => Printing::AtTheEnd,
        0 | 1 => Printing::Immediately,
        _ => Printing::Together,
    };
    if config.homeservers.values().any(|homeserver| homeserver.mas.is_some()) {
        // The token is kept there.
        become_owner(&config.daemon.state_dir)?;
    }
    let (mut clients, limits) = (Clients::default(), config.new_limits());
    let observer: Observer = Arc::new(|_| {});
    let mut checks = Vec::new();
    for homeserver in config.homeservers.values() {
        let Connections { transport, mas } = homeserver
            .connect(
                &mut clients,
                ConnectFor {
                    observer: &observer,
                    clock,
                    state_dir: &config.daemon.state_dir,
                    expiry_observer: Arc::new(|_| {}),
                },
                |address| limits.get(address).cloned(),
            )
            .map_err(anyhow::Error::msg)?;
        let reader = Reader::new(transport, clock.clone()).with_mas(mas.as_ref());
        checks.push(async move {
            let mut results = Results {
                homeserver: &homeserver.name,
                printing,
                list: Vec::new(),
                settings: None,
            };
            results.check(config, homeserver, &reader).await?;
            results.print_together()?;
            if let Some(settings) = results.settings.take().filter(|_| !options.json) {
                print(&settings)?;
            }
            Ok::<_, Failure>(results.list)
        });
    }
    let mut checks = futures_util::stream::iter(checks).buffer_unordered(CONCURRENT_CHECKS);
    let mut all = Vec::new();
    while let Some(results) = checks.next().await {
        all.append(&mut results?);
    }
    all.sort_by(|one, other| one.homeserver.cmp(&other.homeserver));
    Ok(all)
}

/// Prints the warnings, the jobs with their next occurrences, and a summary.
fn print_config(path: &Path, config: &Config, clock: &Clock) -> Result<(), Failure> {
    for warning in &config.warnings {
        print_warning(&warning.to_string());
    }
    let mut text = String::new();
    for job in &config.jobs {
        let schedule = job.schedule.as_ref().map_or("manual only", |schedule| schedule.as_str());
        let disabled = if job.common.enabled { "" } else { ", disabled" };
        text.push_str(&format!(
            "{}: {} on {}, {schedule} ({}), {}{disabled}\n",
            job.name,
            job.job.kind().name,
            job.homeserver,
            job.zone,
            job.common.mode
        ));
        let next: Vec<String> = upcoming(job, clock.now(), 3)
            .into_iter()
            .map(|next| format_local(next, job.zone.0))
            .collect();
        if !next.is_empty() {
            text.push_str(&format!("  next: {}\n", next.join(", ")));
        }
        if job.common.mode == Mode::DryRun {
            text.push_str("  only plans and reports; set mode = \"apply\" to make its changes\n");
        }
    }
    let warnings = match config.warnings.len() {
        0 => "no warnings".to_owned(),
        warnings => format_count(warnings as u64, "warning", "warnings"),
    };
    if !config.included.is_empty() {
        text.extend(files(path, config).iter().map(|file| format!("read {}\n", file.display())));
    }
    text.push_str(&format!(
        "{}: no errors, {warnings}; {}, {}\n",
        path.display(),
        format_count(config.homeservers.len() as u64, "homeserver", "homeservers"),
        format_count(config.jobs.len() as u64, "job", "jobs")
    ));
    print(&text)
}

/// When the result of a check is printed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Printing {
    Immediately,
    /// With the other results of its homeserver.
    Together,
    /// As part of one JSON document.
    AtTheEnd,
}

/// The result of a check of `--online`, as `--json` prints it.
#[derive(Debug, Serialize)]
struct CheckResult {
    homeserver: String,
    question: String,
    /// `null` where the homeserver did not respond, which says neither yes nor no.
    ok: Option<bool>,
    answer: String,
}

impl CheckResult {
    fn line(&self) -> String {
        let Self { homeserver, question, ok, answer } = self;
        let prefix = match ok {
            Some(true) => "",
            Some(false) => "NO: ",
            None => "unknown: ",
        };
        format!("{homeserver}: {question}: {prefix}{}", line(answer))
    }
}

/// The results of one homeserver so far.
pub(super) struct Results<'a> {
    homeserver: &'a str,
    printing: Printing,
    list: Vec<CheckResult>,
    /// What to put into the configuration of MAS.
    pub(super) settings: Option<String>,
}

impl Results<'_> {
    pub(super) fn yes(&mut self, question: &str, answer: &str) -> Result<(), Failure> {
        self.add(question, Some(true), answer)
    }

    pub(super) fn no(&mut self, question: &str, answer: &str) -> Result<(), Failure> {
        self.add(question, Some(false), answer)
    }

    pub(super) fn unknown(&mut self, question: &str, why: &str) -> Result<(), Failure> {
        self.add(question, None, why)
    }

    /// No, where Synapse rejects the token; unknown otherwise.
    pub(super) fn failed(&mut self, question: &str, error: &Error) -> Result<(), Failure> {
        let text = error.to_string();
        if error.is_about_token() {
            self.no(question, &text)
        } else {
            self.unknown(question, &text)
        }
    }

    fn add(&mut self, question: &str, ok: Option<bool>, answer: &str) -> Result<(), Failure> {
        let homeserver = self.homeserver.to_owned();
        let (question, answer) = (question.to_owned(), answer.to_owned());
        let result = CheckResult { homeserver, question, ok, answer };
        if self.printing == Printing::Immediately {
            print(&result.line())?;
        }
        self.list.push(result);
        Ok(())
    }

    fn print_together(&self) -> Result<(), Failure> {
        if self.printing != Printing::Together {
            return Ok(());
        }
        let lines: Vec<String> = self.list.iter().map(CheckResult::line).collect();
        print(&lines.join("\n"))
    }

    async fn check(
        &mut self,
        config: &Config,
        homeserver: &Homeserver,
        reader: &Reader,
    ) -> Result<(), Failure> {
        match reader.version().await {
            Ok(version) => self.yes("reachable", &format!("yes, Synapse {version}"))?,
            Err(error) => return self.no("reachable", &error.to_string()),
        }
        if homeserver.mas.is_some() && !self.check_mas(homeserver, reader).await? {
            return Ok(());
        }
        let whoami = match reader.whoami().await {
            Ok(whoami) => whoami,
            Err(error) => return self.failed("token valid", &error),
        };
        self.yes("token valid", &format!("yes, of {}", whoami.user_id))?;
        let identity = match reader.identity().await {
            Ok(identity) => identity,
            Err(error) => return self.failed("server admin", &error),
        };
        self.yes("server admin", "yes")?;
        self.check_identity(reader, identity).await?;
        if identity.mas {
            self.check_under_mas(homeserver, reader, &whoami, identity).await?;
        }
        for notification in &config.notifications {
            if notification.homeserver == homeserver.name {
                self.check_notification(notification, reader, &whoami).await?;
            }
        }
        for job in config.jobs.iter().filter(|job| job.homeserver == homeserver.name) {
            self.check_job(job, homeserver, reader, identity).await?;
        }
        Ok(())
    }

    /// Checks what matters to every job.
    async fn check_identity(
        &mut self,
        reader: &Reader,
        identity: &Identity,
    ) -> Result<(), Failure> {
        match (identity.clock_error(), identity.clock_ahead) {
            (Some(off), _) => self.no("clocks agree", &format!("the local clock is {off} the homeserver's: synchronize the clocks (NTP); purges are refused until then"))?,
            (None, Some(_)) => self.yes("clocks agree", "yes")?,
            (None, None) => self.yes("clocks agree", "unknown: the Date header is missing or cannot be read, so a proxy has changed it")?,
        }
        let mas = match (identity.mas, reader.mas()) {
            (false, _) => "no",
            (true, Some(_)) => "yes",
            (true, None) => {
                "yes, and [homeservers.NAME.mas] is missing: who is locked or deactivated is what Synapse was told, which may be wrong, and remove-external-ids is refused"
            }
        };
        self.yes("accounts in MAS", mas)?;
        match reader.serves_media(&identity.server_name).await {
            Ok(true) => self.yes("media endpoints", "yes")?,
            Ok(false) => self.no(
                "media endpoints",
                "not at this address: set media_url to the worker that serves them",
            )?,
            Err(error) => self.unknown("media endpoints", &error.to_string())?,
        }
        if identity.account.user_type.as_deref() != Some("bot") {
            self.yes(
                "account's user_type",
                "not bot; a bot needs no consent, and is excluded from joins and statistics",
            )?;
        }
        Ok(())
    }

    async fn check_job(
        &mut self,
        job: &JobSpec,
        homeserver: &Homeserver,
        reader: &Reader,
        identity: &Identity,
    ) -> Result<(), Failure> {
        let needs = &job.job.kind().needs;
        if identity.version < needs.synapse {
            self.no(
                &format!("version for {}", job.name),
                &format!("{} requires Synapse {} or later", job.job.kind().name, needs.synapse),
            )?;
        }
        let mas_is_unknown = identity.mas && reader.mas().is_none();
        if let Some(why) = needs.without_mas_client.filter(|_| mas_is_unknown) {
            self.no(&format!("{} under MAS", job.name), why)?;
        }
        let budget = Budget {
            requests_per_second: homeserver.max_requests_per_second,
            time_limit: job.common.time_limit,
        };
        // Where the volume cannot be read, a check above says why.
        let volume = job.job.read_estimate(reader).await.ok().flatten();
        if let Some(runs) = volume.and_then(|volume| budget.round(volume)) {
            self.yes(&format!("{} completes a round in", job.name), &runs)?;
        }
        for job::CheckResult { question, answer } in job.job.check(reader, identity).await {
            let question = format!("{} {question}", job.name);
            match answer {
                Ok(answer) => self.yes(&question, &answer)?,
                Err(problem) => self.no(&question, &problem)?,
            }
        }
        Ok(())
    }
}
