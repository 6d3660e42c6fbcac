//! The jobs: which kinds, with which values, and when.

use std::collections::BTreeSet;

use super::super::failure::Failure;
use super::super::output::{print_error, print_message};
use super::super::prompt::{ask, confirm};
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
                    confirm(&format!("Set up {}?", kind.name)).await?
                }
                false => options.jobs.iter().any(|chosen| chosen == kind.name),
            };
            if is_chosen {
                add_job(setup, options, draft, kind, reader).await?;
            }
        }
        if !draft.jobs.is_empty() {
            return Ok(());
        }
        print_error("without a job there is nothing to do: choose at least one");
    }
}

/// Asks for the values of a job until they are valid.
async fn add_job(
    setup: &Setup<'_>,
    options: &Options,
    draft: &mut Draft,
    kind: &'static Kind,
    reader: Option<&Reader>,
) -> Result<(), Failure> {
    let mut is_asked = false;
    loop {
        let job = match kind.name {
            "purge-local-media" => {
                let older_than = match &options.older_than {
                    Some(age) => age.clone(),
                    None if setup.interactive && options.jobs.is_empty() => {
                        is_asked = true;
                        question(kind, "older_than", Some(OLDER_THAN)).await?
                    }
                    None => OLDER_THAN.to_owned(),
                };
                JobDraft::purge_local_media(&older_than)
            }
            "join-rooms" => {
                let rooms = match options.rooms.is_empty() {
                    true => words(&ask_after(&mut is_asked, question(kind, "rooms", None)).await?),
                    false => options.rooms.clone(),
                };
                JobDraft::join_rooms(&rooms)
            }
            _ => {
                let providers = match options.providers.is_empty() {
                    true => {
                        offer_providers(reader).await;
                        words(&ask_after(&mut is_asked, question(kind, "providers", None)).await?)
                    }
                    false => options.providers.clone(),
                };
                JobDraft::remove_external_ids(&providers)
            }
        };
        let mut next = draft.clone();
        next.jobs.extend(job);
        match setup.problem(&next) {
            None => {
                *draft = next;
                return Ok(());
            }
            Some(problem) if is_asked => print_error(&problem),
            Some(problem) => return Err(Failure::Usage(format!("{}: {problem}", kind.name))),
        }
    }
}

async fn ask_after<T>(is_asked: &mut bool, answer: impl Future<Output = T>) -> T {
    *is_asked = true;
    answer.await
}

/// Asks for the value of a key, explained as `kinds` does.
async fn question(kind: &Kind, name: &str, default: Option<&str>) -> Result<String, Failure> {
    if let Some(key) = kind.keys.iter().find(|key| key.name == name) {
        print_message(&about(key));
    }
    ask(name, default).await
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
    // Whoever named the jobs does without questions that have a default.
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
            Err(problem) if asks && options.schedule.is_none() => print_error(&problem),
            Err(problem) => return Err(Failure::Usage(format!("--schedule: {problem}"))),
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
            Err(problem) if asks && options.timezone.is_none() => print_error(&problem),
            Err(problem) => return Err(Failure::Usage(format!("--timezone: {problem}"))),
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
