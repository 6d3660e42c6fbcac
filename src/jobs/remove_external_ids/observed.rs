//! What the runs of a round found while reading the accounts of classic Synapse, for the notes of the plan.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::keys::Keys;
use crate::synapse::{ExternalId, User};
use crate::values::glob::Matched;
use crate::values::text::{format_count, format_number};

/// Providers in a note, besides those of the configuration.
const MAX_PROVIDERS_NAMED: usize = 50;

/// What the runs of a round found while reading the accounts, for the notes of the plan.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Observed {
    pub users: Matched,
    /// The globs of `external_ids` that matched an id.
    pub ids: Matched,
    /// The accounts with ids of each provider.
    pub held: BTreeMap<String, Holders>,
    /// Accounts of which only the row in the list is known, which shows no ids.
    pub unread: u64,
}

/// The accounts with ids of a provider, among those that were read.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Holders {
    pub ids: u64,
    /// Accounts that the job selects.
    pub selected: u64,
    /// All other accounts.
    pub others: u64,
}

impl Observed {
    pub fn record(&mut self, user: &User, keys: &Keys) {
        self.count_ids(user, keys, keys.selects(user));
        for id in user.external_ids.iter().filter(|id| keys.is_of_providers(id)) {
            for (index, glob) in keys.external_ids.iter().enumerate() {
                if glob.matches(&id.external_id) {
                    self.ids.record(index);
                }
            }
        }
    }

    /// Counts the ids of an account that was read.
    pub fn count_ids(&mut self, user: &User, keys: &Keys, selected: bool) {
        let mut counted: Vec<&str> = Vec::new();
        for ExternalId { auth_provider, .. } in &user.external_ids {
            // A note names them all, and must not grow with whatever a response contains.
            let is_known = self.held.contains_key(auth_provider);
            if !is_known && self.held.len() >= MAX_PROVIDERS_NAMED && !keys.names(auth_provider) {
                continue;
            }
            let name: String = auth_provider.chars().take(255).collect();
            let held = self.held.entry(name).or_default();
            held.ids += 1;
            if !counted.contains(&auth_provider.as_str()) {
                counted.push(auth_provider);
                *(if selected { &mut held.selected } else { &mut held.others }) += 1;
            }
        }
    }

    /// Counts a deactivated account as it was read in an earlier run.
    pub fn count_remembered(&mut self, providers: &[String]) {
        self.unread -= 1;
        for provider in providers {
            if self.held.contains_key(provider) || self.held.len() < MAX_PROVIDERS_NAMED {
                let held = self.held.entry(provider.clone()).or_default();
                held.ids += 1;
                held.selected += 1;
            }
        }
    }

    /// Returns notes on providers of which no selected account has an id; claims no more than what was read.
    pub fn missing_notes(&self, missing: &[&str]) -> Vec<String> {
        let (mut notes, mut unheld) = (Vec::new(), Vec::new());
        for provider in missing {
            match self.held.get(*provider) {
                Some(Holders { others, .. }) => notes.push(format!(
                    "`{provider}` held by no selected account; {}{} {} it",
                    if self.unread > 0 { "at least " } else { "" },
                    format_count(*others, "other account", "other accounts"),
                    if *others == 1 { "holds" } else { "hold" }
                )),
                None => unheld.push(format!("`{provider}`")),
            }
        }
        if !unheld.is_empty() {
            notes.push(match self.unread {
                0 => format!("{} held by nobody", unheld.join(", ")),
                unread => format!(
                    "{} held by no selected account; {} outside the selection {} not read",
                    unheld.join(", "),
                    format_count(unread, "account", "accounts"),
                    if unread == 1 { "was" } else { "were" }
                ),
            });
        }
        if !missing.is_empty() {
            let all: Vec<String> = self
                .held
                .iter()
                .map(|(provider, held)| format!("`{provider}` {}", format_number(held.ids)))
                .collect();
            notes.push(if all.is_empty() {
                "seen: no providers".to_owned()
            } else {
                format!("seen: {}", all.join(", "))
            });
        }
        notes
    }
}
