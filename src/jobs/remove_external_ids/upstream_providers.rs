//! The upstream providers of MAS that the configuration names.

use std::collections::HashSet;

use super::keys::Provider;
use crate::http::one_line;
use crate::mas::{self, Resource, Ulid};
use crate::values::text::format_number;

/// The providers that a job names.
#[derive(Debug)]
pub(super) struct UpstreamProviders {
    /// The id of each, and its name in the configuration.
    chosen: Vec<(Ulid, String)>,
    /// Those of all providers at which a login is possible.
    enabled: HashSet<Ulid>,
    descriptions: Vec<String>,
}

/// Providers in an error.
const MAX_LISTED: usize = 30;

impl UpstreamProviders {
    /// Finds each name among the providers of MAS; an error lists what there is.
    pub fn find(names: &[Provider], all: &[Resource<mas::Provider>]) -> Result<Self, String> {
        let (mut chosen, mut descriptions): (Vec<(Ulid, String)>, Vec<String>) = Default::default();
        for Provider(name) in names {
            let found: Vec<_> = all.iter().filter(|provider| is_called(provider, name)).collect();
            let [provider] = found[..] else {
                return Err(match found.len() {
                    0 => format!("`providers`: MAS has no provider {name:?}; {}", list(all)),
                    _ => format!(
                        "`providers`: MAS has {} providers {name:?}: name one by its id; {}",
                        format_number(found.len() as u64),
                        list(found)
                    ),
                });
            };
            if chosen.iter().all(|(id, _)| *id != provider.id) {
                chosen.push((provider.id.clone(), name.clone()));
                descriptions.push(describe(provider));
            }
        }
        let enabled = all.iter().filter(|provider| provider.attributes.disabled_at.is_none());
        Ok(Self {
            chosen,
            enabled: enabled.map(|provider| provider.id.clone()).collect(),
            descriptions,
        })
    }

    /// What the configuration calls the provider; `None` if it does not name it.
    pub fn name(&self, id: &Ulid) -> Option<&str> {
        self.chosen.iter().find(|(chosen, _)| chosen == id).map(|(_, name)| name.as_str())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.chosen.iter().map(|(_, name)| name.as_str())
    }

    pub fn is_enabled(&self, id: &Ulid) -> bool {
        self.enabled.contains(id)
    }

    pub fn describe(&self) -> String {
        self.descriptions.join(", ")
    }
}

/// An id excludes any other meaning of the name.
fn is_called(provider: &Resource<mas::Provider>, name: &str) -> bool {
    if let Ok(id) = name.parse::<Ulid>() {
        return provider.id == id;
    }
    let mas::Provider { issuer, human_name, brand_name, .. } = &provider.attributes;
    [issuer, human_name, brand_name].into_iter().any(|known| known.as_deref() == Some(name))
}

fn list<'a>(providers: impl IntoIterator<Item = &'a Resource<mas::Provider>>) -> String {
    let mut descriptions: Vec<String> = providers.into_iter().map(describe).collect();
    let more = descriptions.len().saturating_sub(MAX_LISTED);
    descriptions.truncate(MAX_LISTED);
    match (descriptions.is_empty(), more) {
        (true, _) => "it has no upstream providers".to_owned(),
        (false, 0) => format!("known are {}", descriptions.join(", ")),
        (false, more) => format!("known are {} and {more} more", descriptions.join(", ")),
    }
}

/// `01J… ("Google", "google", https://accounts.google.com)`
fn describe(provider: &Resource<mas::Provider>) -> String {
    let mas::Provider { issuer, human_name, brand_name, disabled_at } = &provider.attributes;
    let quoted = |name: &String| format!("\"{}\"", one_line(name, 100));
    let mut names: Vec<String> = human_name.iter().chain(brand_name).map(quoted).collect();
    names.dedup();
    names.extend(issuer.as_ref().map(|issuer| one_line(issuer, 200)));
    names.extend(disabled_at.map(|_| "disabled".to_owned()));
    match names.is_empty() {
        true => provider.id.to_string(),
        false => format!("{} ({})", provider.id, names.join(", ")),
    }
}
