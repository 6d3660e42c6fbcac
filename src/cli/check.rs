//! `microglia check`: every mistake of the config, when each job is due, and what the homeservers say.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::table::local;
use super::{Ended, blocking, print, print_json, say_warning};
use crate::config::{Config, Diagnostic, Homeserver};
use crate::jobs::job::{Answer, Budget};
use crate::plan::report::Mode;
use crate::scheduler::job_list::{job_list, upcoming};
use crate::synapse::{Error, Reader, Transport};
use crate::values::clock::Clock;
use crate::values::escape::line;
use crate::values::text::format_count;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Also asks each homeserver: reachable, version, token, server admin, media, MAS, rooms.
    #[arg(long)]
    online: bool,
    /// As one JSON document: errors, warnings, jobs, and with --online the answers.
    #[arg(long)]
    json: bool,
    /// Reads no secret file, for CI.
    #[arg(long, conflicts_with = "online")]
    no_secrets: bool,
}

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Ended> {
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
            return Err(Ended::Reported);
        }
        Err(errors) => return Err(errors.into()),
    };
    if !options.json {
        print_config(path, &config, &clock)?;
    }
    let mut answers = Answers { homeserver: "", told: options.told(), given: Vec::new() };
    if options.online {
        for homeserver in config.homeservers.values() {
            answers.homeserver = &homeserver.name;
            answers.ask(&config, homeserver, &clock).await?;
        }
    }
    let noes = answers.given.iter().filter(|answer| answer.ok != Some(true)).count() as u64;
    if options.json {
        print_json(&json!({
            "errors": [],
            "warnings": config.warnings.iter().map(Diagnostic::as_json).collect::<Vec<_>>(),
            "jobs": job_list(&config.jobs, HashMap::new(), clock.now()),
            "online": options.online.then_some(&answers.given),
        }))?;
    } else if options.online {
        print(&match noes {
            0 => "homeservers asked: every answer is good".to_owned(),
            1 => "homeservers asked: 1 answer is NO or unknown, see above".to_owned(),
            _ => format!("homeservers asked: {noes} answers are NO or unknown, see above"),
        })?;
    }
    if noes == 0 { Ok(()) } else { Err(Ended::Unsuccessful) }
}

/// Prints the warnings, the jobs with their next occurrences, and a summary.
fn print_config(path: &Path, config: &Config, clock: &Clock) -> Result<(), Ended> {
    for warning in &config.warnings {
        say_warning(&warning.to_string());
    }
    let mut text = String::new();
    for job in &config.jobs {
        let schedule = job.schedule.as_ref().map_or("by hand only", |schedule| schedule.as_str());
        let disabled = if job.common.enabled { "" } else { ", disabled" };
        text.push_str(&format!(
            "{}: {} on {}, {schedule} ({}), {}{disabled}\n",
            job.name,
            job.job.kind().name,
            job.homeserver,
            job.zone,
            job.common.mode
        ));
        let next: Vec<String> =
            upcoming(job, clock.now(), 3).into_iter().map(|next| local(next, job.zone.0)).collect();
        if !next.is_empty() {
            text.push_str(&format!("  next: {}\n", next.join(", ")));
        }
        if job.common.mode == Mode::DryRun {
            text.push_str("  only plans and reports; mode = \"apply\" makes it change things\n");
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

/// Whether each answer is printed as soon as it is known.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Told {
    AtOnce,
    AtTheEnd,
}

impl Options {
    fn told(&self) -> Told {
        if self.json { Told::AtTheEnd } else { Told::AtOnce }
    }
}

/// An answer to a question of `--online`, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Asked {
    homeserver: String,
    question: String,
    /// `null` where the question got no answer, which says neither yes nor no.
    ok: Option<bool>,
    answer: String,
}

/// The answers so far.
struct Answers<'a> {
    homeserver: &'a str,
    told: Told,
    given: Vec<Asked>,
}

impl Answers<'_> {
    fn yes(&mut self, question: &str, answer: &str) -> Result<(), Ended> {
        self.add(question, Some(true), answer)
    }

    fn no(&mut self, question: &str, answer: &str) -> Result<(), Ended> {
        self.add(question, Some(false), answer)
    }

    fn add(&mut self, question: &str, ok: Option<bool>, answer: &str) -> Result<(), Ended> {
        let homeserver = self.homeserver.to_owned();
        if self.told == Told::AtOnce {
            let prefix = match ok {
                Some(true) => "",
                Some(false) => "NO: ",
                None => "unknown: ",
            };
            print(&format!("{homeserver}: {question}: {prefix}{}", line(answer)))?;
        }
        let (question, answer) = (question.to_owned(), answer.to_owned());
        self.given.push(Asked { homeserver, question, ok, answer });
        Ok(())
    }

    /// Neither yes nor no: what had to be asked did not answer, which says nothing about the question.
    fn unknown(&mut self, question: &str, why: &str) -> Result<(), Ended> {
        self.add(question, None, why)
    }

    /// No, where Synapse said so of the token; unknown otherwise.
    fn refused(&mut self, question: &str, error: &Error) -> Result<(), Ended> {
        let text = error.to_string();
        if error.is_about_token() {
            self.no(question, &text)
        } else {
            self.unknown(question, &text)
        }
    }

    async fn ask(
        &mut self,
        config: &Config,
        homeserver: &Homeserver,
        clock: &Clock,
    ) -> Result<(), Ended> {
        let transport =
            Transport::new(homeserver.settings(), Arc::new(|_| {})).map_err(anyhow::Error::msg)?;
        let reader = Reader::new(Arc::new(transport), clock.clone());
        match reader.version().await {
            Ok(version) => self.yes("reachable", &format!("yes, Synapse {version}"))?,
            Err(error) => return self.no("reachable", &error.to_string()),
        }
        let account = match reader.whoami().await {
            Ok((account, _)) => account,
            Err(error) => return self.refused("token valid", &error),
        };
        self.yes("token valid", &format!("yes, of {account}"))?;
        let identity = match reader.identity().await {
            Ok(identity) => identity,
            Err(error) => return self.refused("server admin", &error),
        };
        self.yes("server admin", "yes")?;
        match identity.clock_ahead {
            Some(ahead) if ahead.abs() > chrono::TimeDelta::seconds(60) => self.no("clocks agree", &format!("the clock here is {} s off: set the clocks right (NTP), purges are refused until then", ahead.num_seconds()))?,
            Some(_) => self.yes("clocks agree", "yes")?,
            None => self.yes("clocks agree", "cannot tell, a proxy drops the Date header")?,
        }
        self.yes(
            "accounts in MAS",
            if identity.mas { "yes: remove-external-ids is refused" } else { "no" },
        )?;
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
                "not bot; as a bot it needs no consent and is left out of sweeps and statistics",
            )?;
        }
        for job in config.jobs.iter().filter(|job| job.homeserver == homeserver.name) {
            let needed = job.job.kind().needs.synapse;
            if identity.version < needed {
                self.no(
                    &format!("version for {}", job.name),
                    &format!("{} needs Synapse {needed} or later", job.job.kind().name),
                )?;
            }
            if let Some(why) = job.job.kind().needs.not_under_mas.filter(|_| identity.mas) {
                self.no(&format!("{} under MAS", job.name), why)?;
            }
            let budget = Budget {
                requests_per_second: homeserver.max_requests_per_second,
                time_limit: job.common.time_limit,
            };
            // A homeserver that cannot tell has said so above.
            let volume = job.job.volume(&reader).await.ok().flatten();
            if let Some(warning) = volume.and_then(|volume| budget.warning(volume)) {
                self.yes(
                    &format!("{} reads within its time_limit", job.name),
                    &format!("probably not: {warning}"),
                )?;
            }
            for Answer { question, answer } in job.job.check(&reader, identity).await {
                let question = format!("{} {question}", job.name);
                match answer {
                    Ok(answer) => self.yes(&question, &answer)?,
                    Err(problem) => self.no(&question, &problem)?,
                }
            }
        }
        Ok(())
    }
}
