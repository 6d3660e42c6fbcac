//! `microglia check`: errors in the configuration, the next occurrences of jobs, and checks of the homeservers.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::context::blocking;
use super::failure::Failure;
use super::output::{print, print_json, print_warning};
use super::table::format_local;
use crate::config::{Config, Diagnostic, Homeserver, JobSpec};
use crate::jobs::job::{self, Budget};
use crate::plan::report::Mode;
use crate::scheduler::job_list::{job_list, upcoming};
use crate::synapse::{Error, Identity, Reader, Transport};
use crate::values::clock::Clock;
use crate::values::escape::line;
use crate::values::text::format_count;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Also check each homeserver: reachable, version, token, server admin, media, MAS, rooms.
    #[arg(long)]
    online: bool,
    /// Print one JSON document: errors, warnings, jobs, and with --online its results.
    #[arg(long)]
    json: bool,
    /// Read no secret file, for CI.
    #[arg(long, conflicts_with = "online")]
    no_secrets: bool,
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
            let errors =
                json!({ "errors": errors.as_json(), "warnings": [], "jobs": [], "online": null });
            print_json(&errors)?;
            return Err(Failure::InvalidConfig);
        }
        Err(errors) => return Err(errors.into()),
    };
    if !options.json {
        print_config(path, &config, &clock)?;
    }
    let mut results = Results { homeserver: "", printing: options.printing(), list: Vec::new() };
    if options.online {
        for homeserver in config.homeservers.values() {
            results.homeserver = &homeserver.name;
            results.check(&config, homeserver, &clock).await?;
        }
    }
    let problems = results.list.iter().filter(|result| result.ok != Some(true)).count() as u64;
    if options.json {
        print_json(&json!({
            "errors": [],
            "warnings": config.warnings.iter().map(Diagnostic::as_json).collect::<Vec<_>>(),
            "jobs": job_list(config.jobs.iter(), HashMap::new(), HashMap::new(), clock.now()),
            "online": options.online.then_some(&results.list),
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
    /// As part of one JSON document.
    AtTheEnd,
}

impl Options {
    fn printing(&self) -> Printing {
        if self.json { Printing::AtTheEnd } else { Printing::Immediately }
    }
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

/// The results so far.
struct Results<'a> {
    homeserver: &'a str,
    printing: Printing,
    list: Vec<CheckResult>,
}

impl Results<'_> {
    fn yes(&mut self, question: &str, answer: &str) -> Result<(), Failure> {
        self.add(question, Some(true), answer)
    }

    fn no(&mut self, question: &str, answer: &str) -> Result<(), Failure> {
        self.add(question, Some(false), answer)
    }

    fn unknown(&mut self, question: &str, why: &str) -> Result<(), Failure> {
        self.add(question, None, why)
    }

    /// No, where Synapse rejects the token; unknown otherwise.
    fn failed(&mut self, question: &str, error: &Error) -> Result<(), Failure> {
        let text = error.to_string();
        if error.is_about_token() {
            self.no(question, &text)
        } else {
            self.unknown(question, &text)
        }
    }

    fn add(&mut self, question: &str, ok: Option<bool>, answer: &str) -> Result<(), Failure> {
        let homeserver = self.homeserver.to_owned();
        if self.printing == Printing::Immediately {
            let prefix = match ok {
                Some(true) => "",
                Some(false) => "NO: ",
                None => "unknown: ",
            };
            print(&format!("{homeserver}: {question}: {prefix}{}", line(answer)))?;
        }
        let (question, answer) = (question.to_owned(), answer.to_owned());
        self.list.push(CheckResult { homeserver, question, ok, answer });
        Ok(())
    }

    async fn check(
        &mut self,
        config: &Config,
        homeserver: &Homeserver,
        clock: &Clock,
    ) -> Result<(), Failure> {
        let transport =
            Transport::new(homeserver.settings(), Arc::new(|_| {})).map_err(anyhow::Error::msg)?;
        let reader = Reader::new(Arc::new(transport), clock.clone());
        match reader.version().await {
            Ok(version) => self.yes("reachable", &format!("yes, Synapse {version}"))?,
            Err(error) => return self.no("reachable", &error.to_string()),
        }
        match reader.whoami().await {
            Ok((account, _)) => self.yes("token valid", &format!("yes, of {account}"))?,
            Err(error) => return self.failed("token valid", &error),
        }
        let identity = match reader.identity().await {
            Ok(identity) => identity,
            Err(error) => return self.failed("server admin", &error),
        };
        self.yes("server admin", "yes")?;
        self.check_identity(&reader, identity).await?;
        for job in config.jobs.iter().filter(|job| job.homeserver == homeserver.name) {
            self.check_job(job, homeserver, &reader, identity).await?;
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
        let mas = if identity.mas { "yes: remove-external-ids is refused" } else { "no" };
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
        if let Some(why) = needs.not_under_mas.filter(|_| identity.mas) {
            self.no(&format!("{} under MAS", job.name), why)?;
        }
        let budget = Budget {
            requests_per_second: homeserver.max_requests_per_second,
            time_limit: job.common.time_limit,
        };
        // Where the volume cannot be read, a check above says why.
        let volume = job.job.read_estimate(reader).await.ok().flatten();
        if job.job.kind().rounds.is_some() {
            if let Some(runs) = volume.and_then(|volume| budget.round(volume)) {
                self.yes(&format!("{} completes a round in", job.name), &runs)?;
            }
        } else if let Some(warning) = volume.and_then(|volume| budget.warning(volume)) {
            self.yes(
                &format!("{} reads within its time_limit", job.name),
                &format!("probably not: {warning}"),
            )?;
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
