//! `microglia check`: every mistake of the config, when each job is due, and what the homeservers say.

use std::path::Path;
use std::sync::Arc;

use super::table::local;
use super::{Ended, load, print, say};
use crate::clock::Clock;
use crate::config::{Config, Homeserver};
use crate::job::{Answer, Budget};
use crate::listing::upcoming;
use crate::report::Mode;
use crate::synapse::{Reader, Transport};
use crate::words::counted;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Also asks each homeserver: reachable, version, token, server admin, media, MAS, rooms.
    #[arg(long)]
    online: bool,
}

pub(super) async fn run(path: &Path, options: &Options) -> Result<(), Ended> {
    let clock = Clock::system();
    let config = load(path, &clock)?;
    for warning in &config.warnings {
        say(&format!("warning: {warning}"));
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
    text.push_str(&format!(
        "{}: no mistake; {}, {}\n",
        path.display(),
        counted(config.homeservers.len() as u64, "homeserver", "homeservers"),
        counted(config.jobs.len() as u64, "job", "jobs")
    ));
    print(&text)?;
    if !options.online {
        return Ok(());
    }
    let mut all_well = true;
    for homeserver in config.homeservers.values() {
        let mut answers = Answers { homeserver: &homeserver.name, well: true };
        answers.ask(&config, homeserver, &clock).await?;
        all_well &= answers.well;
    }
    if all_well { Ok(()) } else { Err(Ended::Unsuccessful) }
}

/// Prints one line per question, and remembers whether any answer was no.
struct Answers<'a> {
    homeserver: &'a str,
    well: bool,
}

impl Answers<'_> {
    fn yes(&self, question: &str, answer: &str) -> Result<(), Ended> {
        print(&format!("{}: {question}: {answer}", self.homeserver))
    }

    fn no(&mut self, question: &str, answer: &str) -> Result<(), Ended> {
        self.well = false;
        print(&format!("{}: {question}: NO: {answer}", self.homeserver))
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
            Err(error) => return self.no("token valid", &error.to_string()),
        };
        self.yes("token valid", &format!("yes, of {account}"))?;
        let identity = match reader.identity().await {
            Ok(identity) => identity,
            Err(error) => return self.no("server admin", &error.to_string()),
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
            Err(error) => self.no("media endpoints", &error.to_string())?,
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
                requests_per_second: homeserver.keys.max_requests_per_second,
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
