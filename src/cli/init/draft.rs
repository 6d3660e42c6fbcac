//! The configuration that `init` writes, as text with comments.

use std::path::{Path, PathBuf};

use super::super::kinds::wrapped;
use crate::config::{Config, Environment, LoadError};
use crate::jobs::job::Kind;
use crate::jobs::kind;
use crate::values::clock::Timestamp;
use crate::values::schema::Key;

/// The kinds that `init` sets up; their other keys have defaults.
pub(super) const KINDS: [&str; 3] = ["purge-local-media", "join-rooms", "remove-external-ids"];

/// The name of the one homeserver.
pub(super) const HOMESERVER: &str = "main";

/// The name of the token file, beside the configuration.
pub(super) const TOKEN_FILE: &str = "token";

/// The name of the file with the secret of microglia's client in MAS, beside the configuration.
pub(super) const SECRET_FILE: &str = "mas-client-secret";

/// The answers so far.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub url: String,
    pub token_file: String,
    /// Instead of a token.
    pub mas: Option<MasDraft>,
    pub ca_file: Option<PathBuf>,
    /// Where the default state directory cannot be used.
    pub state_dir: Option<&'static str>,
    pub timezone: String,
    /// In cron, and as it was written; `None` for jobs that are only run by hand.
    pub schedule: Option<(String, String)>,
    pub jobs: Vec<JobDraft>,
}

/// The Matrix Authentication Service (MAS), which manages the accounts.
#[derive(Debug, Clone)]
pub(super) struct MasDraft {
    pub url: String,
    pub client_id: String,
}

/// A job, named as its kind.
#[derive(Debug, Clone)]
pub(super) struct JobDraft {
    pub kind: &'static Kind,
    /// Keys of the kind with their values as TOML.
    pub keys: Vec<(&'static str, String)>,
    /// How many items a run changes at most.
    pub at_most: u32,
}

impl JobDraft {
    pub fn purge_local_media(older_than: &str) -> Option<Self> {
        let keys = vec![("older_than", quoted(older_than))];
        Some(Self { kind: kind("purge-local-media")?, keys, at_most: 20_000 })
    }

    pub fn join_rooms(rooms: &[String]) -> Option<Self> {
        Some(Self { kind: kind("join-rooms")?, keys: vec![("rooms", list(rooms))], at_most: 1000 })
    }

    pub fn remove_external_ids(providers: &[String]) -> Option<Self> {
        let accounts = list(&["deactivated".to_owned()]);
        let keys = vec![("providers", list(providers)), ("accounts", accounts)];
        Some(Self { kind: kind("remove-external-ids")?, keys, at_most: 1000 })
    }
}

impl Draft {
    /// Parses the text as the daemon will; blocks the thread.
    pub fn parse(
        &self,
        path: &Path,
        environment: &Environment,
        now: Timestamp,
    ) -> Result<Config, LoadError> {
        Config::parse(&self.text(), path, environment, now)
    }

    pub fn text(&self) -> String {
        let mut text = comment(
            "Created by `microglia init`. After an edit, run `microglia check --online`, then `microglia reload`. `microglia kinds KIND` describes all keys and their defaults.",
        );
        text.push_str("\n[daemon]\n");
        text.push_str(&format!("timezone = {}\n", quoted(&self.timezone)));
        if let Some(state_dir) = self.state_dir {
            text.push_str(&format!("state_dir = {}\n", quoted(state_dir)));
        }
        text.push_str(&format!("\n[homeservers.{HOMESERVER}]\nurl = {}\n", quoted(&self.url)));
        if self.mas.is_none() {
            text.push_str(&comment(
                "A new token is used from the next request on; `microglia login` obtains one.",
            ));
            text.push_str(&format!("access_token_file = {}\n", quoted(&self.token_file)));
        }
        if let Some(file) = &self.ca_file {
            text.push_str(&format!("ca_file = {}\n", quoted(&file.to_string_lossy())));
        }
        text.extend(self.mas.as_ref().map(MasDraft::table));
        text.extend(self.jobs.iter().map(|job| self.job(job)));
        text
    }

    fn job(&self, JobDraft { kind, keys, at_most }: &JobDraft) -> String {
        let mut text = format!("\n{}", comment(&first_sentence(kind.about)));
        text.push_str(&format!("[jobs.{}]\nkind = {}\n", kind.name, quoted(kind.name)));
        text.push_str(&match &self.schedule {
            Some((cron, words)) if cron == words => format!("schedule = {}\n", quoted(cron)),
            Some((cron, words)) => format!("schedule = {}  # {words}\n", quoted(cron)),
            None => {
                format!("# Without a schedule it runs only by hand: microglia run {}\n", kind.name)
            }
        });
        text.push_str(
            "mode = \"dry-run\"  # only plans and reports; \"apply\" makes the changes\n",
        );
        for (name, value) in keys {
            text.extend(
                kind.keys.iter().filter(|key| key.name == *name).map(|key| comment(&about(key))),
            );
            text.push_str(&format!("{name} = {value}\n"));
        }
        text.push_str(&comment("Per run; the rest follows in the next runs. A plan of more than max_changes is refused."));
        text.push_str(&format!("at_most = {at_most}\nmax_changes = {at_most}\n"));
        text
    }
}

impl MasDraft {
    fn table(&self) -> String {
        let about = comment(
            "The Matrix Authentication Service (MAS) manages the accounts: microglia issues its own token there. `microglia login` prints what the configuration of MAS needs.",
        );
        format!(
            "\n{about}[homeservers.{HOMESERVER}.mas]\nurl = {}\nadmin_url = \"http://127.0.0.1:8081\"\nclient_id = {}\nclient_secret_file = {}\naccount = \"microglia\"\n",
            quoted(&self.url),
            quoted(&self.client_id),
            quoted(SECRET_FILE)
        )
    }
}

/// What a key means, as a question or a comment.
pub(super) fn about(key: &Key) -> String {
    first_sentence(key.about)
}

pub(super) fn first_sentence(text: &str) -> String {
    let text = text.trim();
    match text.find(". ") {
        Some(end) => text[..=end].to_owned(),
        None => text.to_owned(),
    }
}

fn comment(text: &str) -> String {
    wrapped(text, "# ")
}

/// A TOML string: the escapes of JSON are a part of TOML's.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(jobs: Vec<JobDraft>) -> Draft {
        Draft {
            url: "http://127.0.0.1:8008".to_owned(),
            token_file: TOKEN_FILE.to_owned(),
            mas: None,
            ca_file: None,
            state_dir: None,
            timezone: "Europe/Berlin".to_owned(),
            schedule: Some(("30 3 * * *".to_owned(), "every night at 03:30".to_owned())),
            jobs,
        }
    }

    fn jobs() -> Vec<JobDraft> {
        let all = [
            JobDraft::purge_local_media("180d"),
            JobDraft::join_rooms(&["#lobby:example.com".to_owned(), "!id".to_owned()]),
            JobDraft::remove_external_ids(&["oidc-google".to_owned()]),
        ];
        all.into_iter().flatten().collect()
    }

    #[test]
    fn every_combination_of_kinds_is_a_configuration_without_errors_and_warnings() {
        let now = "2026-11-30T12:00:00Z".parse().unwrap();
        let all = jobs();
        assert_eq!(all.iter().map(|job| job.kind.name).collect::<Vec<_>>(), KINDS);
        for combination in 1..1 << all.len() {
            let chosen = all.iter().enumerate().filter(|(bit, _)| combination >> bit & 1 == 1);
            let chosen: Vec<JobDraft> = chosen.map(|(_, job)| job.clone()).collect();
            for schedule in
                [draft(vec![]).schedule, None, Some(("@hourly".into(), "@hourly".into()))]
            {
                let draft = Draft { schedule, state_dir: Some("state"), ..draft(chosen.clone()) };
                let config = draft.parse(Path::new("microglia.toml"), &Environment::default(), now);
                let config = config.unwrap_or_else(|error| panic!("{error}\n{}", draft.text()));
                assert_eq!(config.jobs.len(), chosen.len());
                assert!(config.warnings.is_empty(), "{:?}", config.warnings);
                assert!(
                    config
                        .jobs
                        .iter()
                        .all(|job| job.common.mode == crate::plan::report::Mode::DryRun)
                );
            }
        }
    }

    #[test]
    fn the_text_has_a_comment_for_each_decision() {
        insta::assert_snapshot!(draft(jobs()).text(), @r##"
    # Created by `microglia init`. After an edit, run `microglia check --online`, then `microglia
    # reload`. `microglia kinds KIND` describes all keys and their defaults.

    [daemon]
    timezone = "Europe/Berlin"

    [homeservers.main]
    url = "http://127.0.0.1:8008"
    # A new token is used from the next request on; `microglia login` obtains one.
    access_token_file = "token"

    # Deletes files that local users uploaded and that have not been accessed for a long time.
    [jobs.purge-local-media]
    kind = "purge-local-media"
    schedule = "30 3 * * *"  # every night at 03:30
    mode = "dry-run"  # only plans and reports; "apply" makes the changes
    # Deletes files not accessed for this long, counted back from the start of the run, or of the
    # first run of a round; a file that was never accessed counts from its upload.
    older_than = "180d"
    # Per run; the rest follows in the next runs. A plan of more than max_changes is refused.
    at_most = 20000
    max_changes = 20000

    # Joins local users to rooms, or to the rooms of spaces, that they are not in.
    [jobs.join-rooms]
    kind = "join-rooms"
    schedule = "30 3 * * *"  # every night at 03:30
    mode = "dry-run"  # only plans and reports; "apply" makes the changes
    # The rooms, as aliases (#room:example.com) or ids (!id).
    rooms = ["#lobby:example.com", "!id"]
    # Per run; the rest follows in the next runs. A plan of more than max_changes is refused.
    at_most = 1000
    max_changes = 1000

    # Removes the external ids (SSO identities) of given providers from accounts.
    [jobs.remove-external-ids]
    kind = "remove-external-ids"
    schedule = "30 3 * * *"  # every night at 03:30
    mode = "dry-run"  # only plans and reports; "apply" makes the changes
    # The providers of the identities to remove: on classic Synapse as it stores them (an OIDC
    # provider is "oidc-" and its `idp_id`), under MAS the exact id, issuer, `human_name` or
    # `brand_name` of an upstream provider.
    providers = ["oidc-google"]
    # The accounts to process: "all", or one or more of "active", "deactivated", "locked" (locked or
    # suspended).
    accounts = ["deactivated"]
    # Per run; the rest follows in the next runs. A plan of more than max_changes is refused.
    at_most = 1000
    max_changes = 1000
    "##);
    }

    #[test]
    fn answers_with_quotes_and_control_characters_stay_strings() {
        let now = "2026-11-30T12:00:00Z".parse().unwrap();
        let evil = "x\"]\n[daemon]\nlisten = \"0.0.0.0:1".to_owned();
        let job = JobDraft::remove_external_ids(std::slice::from_ref(&evil)).unwrap();
        let draft = draft(vec![job]);
        let root: toml::Table = draft.text().parse().unwrap();
        let providers = root["jobs"]["remove-external-ids"]["providers"].as_array().unwrap();
        assert_eq!(providers[0].as_str(), Some(evil.as_str()));
        assert!(draft.parse(Path::new("microglia.toml"), &Environment::default(), now).is_ok());
    }
}
