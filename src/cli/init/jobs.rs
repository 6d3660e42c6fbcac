//! The jobs: which kinds, with which values, and when.

use std::collections::BTreeSet;

use super::super::failure::Failure;
use super::super::output::{print_error, print_message};
use super::super::prompt::{ask, ask_optional, confirm};
use super::super::table::format_local;
use super::draft::{Draft, JobDraft, KINDS, about, first_sentence};
use super::options::Options;
use super::schedule_words::{EXAMPLES, parse_schedule};
use super::setup::Setup;
use super::zone::system_zone;
use crate::jobs::job::Kind;
use crate::jobs::kind;
use crate::synapse::Reader;
use crate::values::schedule::Zone;

const OLDER_THAN: &str = "180d";
const SCHEDULE: &str = "every night at 03:30";

/// Checks the values that options give, before anybody logs in.
pub(super) fn check_options(
    setup: &Setup<'_>,
    options: &Options,
    draft: &Draft,
) -> Result<(), Failure> {
    for job in KINDS.into_iter().filter_map(|name| job_of_options(options, name)) {
        let name = job.kind.name;
        if let Some(problem) = setup.problem(&Draft { jobs: vec![job], ..draft.clone() }) {
            return Err(Failure::Usage(format!("{name}: {problem}")));
        }
    }
    if let Some(Err(problem)) = options.schedule.as_deref().map(parse_schedule) {
        return Err(Failure::Usage(format!("--schedule: {problem}")));
    }
    if let Some(Err(problem)) = options.timezone.as_deref().map(str::parse::<Zone>) {
        return Err(Failure::Usage(format!("--timezone: {problem}")));
    }
    Ok(())
}

/// The job as the options describe it; `None` if they lack its values.
fn job_of_options(options: &Options, kind: &str) -> Option<JobDraft> {
    let Options { jobs, older_than, rooms, providers, .. } = options;
    match kind {
        "purge-local-media" => {
            // Whoever named the jobs does without questions that have a default.
            let default = (!jobs.is_empty()).then_some(OLDER_THAN);
            JobDraft::purge_local_media(older_than.as_deref().or(default)?)
        }
        "join-rooms" if !rooms.is_empty() => JobDraft::join_rooms(rooms),
        "remove-external-ids" if !providers.is_empty() => JobDraft::remove_external_ids(providers),
        _ => None,
    }
}

/// Adds the jobs to the draft, each valid.
pub(super) async fn choose_jobs(
    setup: &Setup<'_>,
    options: &Options,
    draft: &mut Draft,
    reader: Option<&Reader>,
) -> Result<(), Failure> {
    if options.jobs.is_empty() {
        print_message(
            "\nWhich jobs? All of them only plan and report until you set mode = \"apply\".",
        );
    }
    loop {
        for kind in KINDS.into_iter().filter_map(kind) {
            let is_chosen = match options.jobs.is_empty() {
                true => {
                    print_message(&format!("\n{}: {}", kind.name, first_sentence(kind.about)));
                    let default = if kind.name == "purge-local-media" { "yes" } else { "no" };
                    confirm(&format!("Set up {}?", kind.name), default).await?
                }
                false => options.jobs.iter().any(|chosen| chosen == kind.name),
            };
            if is_chosen {
                match job_of_options(options, kind.name) {
                    Some(job) => draft.jobs.push(job),
                    None => ask_for_job(setup, draft, kind, reader).await?,
                }
            }
        }
        if !draft.jobs.is_empty() {
            return Ok(());
        }
        print_error("without a job there is nothing to do: choose at least one");
    }
}

/// Asks for the values of a job until they are valid; without an answer, the job is left out.
async fn ask_for_job(
    setup: &Setup<'_>,
    draft: &mut Draft,
    kind: &'static Kind,
    reader: Option<&Reader>,
) -> Result<(), Failure> {
    loop {
        let job = if kind.name == "purge-local-media" {
            explain(kind, "older_than");
            JobDraft::purge_local_media(&ask("older_than", Some(OLDER_THAN)).await?)
        } else {
            let name = if kind.name == "join-rooms" { "rooms" } else { "providers" };
            explain(kind, name);
            if name == "providers" {
                offer_providers(reader).await;
            }
            let Some(answer) = ask_optional(&format!("{name} (Enter for none)")).await? else {
                print_message(&format!("{} is not set up", kind.name));
                return Ok(());
            };
            match name {
                "rooms" => JobDraft::join_rooms(&words(&answer)),
                _ => JobDraft::remove_external_ids(&words(&answer)),
            }
        };
        let mut next = draft.clone();
        next.jobs.extend(job);
        match setup.problem(&next) {
            None => {
                *draft = next;
                return Ok(());
            }
            Some(problem) => print_error(&problem),
        }
    }
}

/// Explains a key as `kinds` does.
fn explain(kind: &Kind, name: &str) {
    if let Some(key) = kind.keys.iter().find(|key| key.name == name) {
        print_message(&about(key));
    }
}

/// The items of an answer, separated by spaces or commas.
fn words(answer: &str) -> Vec<String> {
    let words = answer.split(|c: char| c.is_whitespace() || c == ',');
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// How many accounts are read to find providers: a second or two.
const SAMPLE: usize = 50;

/// Names the providers that the homeserver knows: those that are configured, and those of some accounts.
async fn offer_providers(reader: Option<&Reader>) {
    let Some(reader) = reader else { return };
    let mut providers = BTreeSet::new();
    if let Ok(Some(flows)) = reader.login_flows().await {
        providers.extend(flows.providers);
    }
    let page = reader.user_pages(None).next().await.ok().flatten();
    for row in page.iter().flat_map(|page| &page.rows).take(SAMPLE) {
        if let Ok(user) = reader.user(&row.name).await {
            providers.extend(user.external_ids.into_iter().map(|id| id.auth_provider));
        }
    }
    if !providers.is_empty() {
        let providers: Vec<String> = providers.into_iter().collect();
        print_message(&format!("Seen on this homeserver: {}", providers.join(", ")));
    }
}

/// Chooses one schedule for all jobs, and its time zone.
pub(super) async fn choose_schedule(
    setup: &Setup<'_>,
    options: &Options,
    draft: &mut Draft,
) -> Result<(), Failure> {
    let asks = setup.interactive && options.jobs.is_empty();
    let schedule = loop {
        let words = match &options.schedule {
            Some(words) => words.clone(),
            None if asks => {
                print_message(&format!("\nWhen should the jobs run? Write {EXAMPLES}."));
                ask("Schedule", Some(SCHEDULE)).await?
            }
            None => SCHEDULE.to_owned(),
        };
        match parse_schedule(&words) {
            Ok(schedule) => break schedule.map(|schedule| (schedule, words)),
            Err(problem) => print_error(&problem),
        }
    };
    let zone: Zone = loop {
        let name = match &options.timezone {
            Some(name) => name.clone(),
            None if asks && schedule.is_some() => ask("Time zone", Some(&system_zone())).await?,
            None => system_zone(),
        };
        match name.parse() {
            Ok(zone) => break zone,
            Err(problem) => print_error(&problem),
        }
    };
    draft.timezone = zone.to_string();
    if let Some((schedule, words)) = schedule {
        if let Some(next) = schedule.next(setup.now(), zone) {
            print_message(&format!("next: {}", format_local(next.to_utc(), zone.0)));
        }
        draft.schedule = Some((schedule.as_str().to_owned(), words));
    }
    Ok(())
}
