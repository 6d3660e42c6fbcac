//! The tables `[defaults]` and `[jobs.NAME]`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use toml::Spanned;
use toml::de::DeTable;

use super::super::job_spec::JobSpec;
use super::super::keys::{CommonEntries, CommonKeys, HeadKeys, HomeserverNames};
use super::merge::merge;
use super::written::written;
use super::{MAX_JOBS, NameRule, Parser};
use crate::jobs::job::Kind;
use crate::values::clock::Timestamp;
use crate::values::fingerprint::Fingerprint;
use crate::values::glob::{Glob, is_glob};
use crate::values::schedule::{Schedule, Zone};
use crate::values::schema::{Entry, Limit, Table};
use crate::values::text::{format_number, join_some, unknown};

const NAME: NameRule = NameRule {
    what: "job",
    is_allowed: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-',
    allowed: "lower-case letters, digits and -",
};

/// What a job has from other tables.
struct Surroundings<'t, 'i> {
    defaults: &'t DeTable<'i>,
    homeservers: &'t [&'t str],
    zone: Zone,
}

impl Parser<'_> {
    /// Sorted by name, without jobs that have an error.
    pub(super) fn jobs(
        &mut self,
        root: &DeTable<'_>,
        homeservers: &[&str],
        zone: Zone,
    ) -> Vec<JobSpec> {
        let empty = DeTable::new();
        let defaults = self.table(root, "defaults", &empty).unwrap_or(&empty);
        self.check_defaults(defaults);
        let jobs = self.table(root, "jobs", &empty).unwrap_or(&empty);
        if jobs.is_empty() {
            self.warn(0..0, "no job is configured: add a table such as [jobs.nightly-media]");
        }
        let surroundings = Surroundings { defaults, homeservers, zone };
        let mut specs = Vec::new();
        for (name, value) in jobs {
            if let Some(table) = self.named_table(name, value, &NAME) {
                specs.extend(self.job(name, table, &surroundings).into_iter().flatten());
            }
            if specs.len() > MAX_JOBS {
                let limit = format_number(MAX_JOBS as u64);
                let text = format!(
                    "more than {limit} jobs, counted once for each homeserver: use fewer jobs or homeservers"
                );
                self.error(name.span(), text);
                break;
            }
        }
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        self.check_order(&specs, jobs);
        specs
    }

    fn check_defaults(&mut self, defaults: &DeTable<'_>) {
        for key in defaults.keys() {
            if HeadKeys::KEYS.iter().any(|head| head.name == key.get_ref().as_ref()) {
                let text = format!("`{}` cannot have a default: set it in each job", key.get_ref());
                self.error(key.span(), text);
            }
        }
        let table = Table::new(defaults, 0..0);
        table.reject_unknown(&[CommonEntries::KEYS, HeadKeys::KEYS], &mut self.errors);
        CommonEntries::parse(&table, &mut self.errors);
    }

    /// One spec for each of its homeservers; `None` after an error.
    fn job(
        &mut self,
        name: &Spanned<Cow<'_, str>>,
        own: &DeTable<'_>,
        surroundings: &Surroundings<'_, '_>,
    ) -> Option<Vec<JobSpec>> {
        let merged = merge(surroundings.defaults, CommonEntries::KEYS, own);
        let table = Table::new(&merged, name.span());
        let head = HeadKeys::parse(&table, &mut self.errors);
        let common = CommonEntries::parse(&table, &mut self.errors);
        let homeservers = self.homeservers_of(&common.homeserver, surroundings.homeservers, &table);
        // Without its kind it is not known which other keys are right.
        let kind = head.kind.value?.0;
        table.reject_unknown(&[HeadKeys::KEYS, CommonEntries::KEYS, kind.keys], &mut self.errors);
        self.reject_limits_of_uncounted(kind, own, &common);
        let job = (kind.read)(&table, self.now, &mut self.errors);
        let window = common.window.span.clone();
        let (mut common, job, schedule) = (common.complete()?, job?, head.schedule.value?);
        if let Some(own) = kind.max_changes.filter(|_| !merged.contains_key("max_changes")) {
            common.max_changes = Limit::Of(own);
        }
        for (key, text) in job.warnings() {
            self.warn(table.span_of(key), text);
        }
        if let Some(schedule) = &schedule {
            if let Some(warning) = too_frequent(schedule, self.now) {
                self.warn(head.schedule.span, warning);
            }
            self.check_window(schedule, &common, window);
        }
        let is_list = common.homeserver.as_ref().is_some_and(|names| names.list);
        let name = name.get_ref().as_ref();
        let written: Arc<[(String, String)]> = written(&merged).into();
        let (all_keys, common) = (table.definition(), Arc::new(common));
        let own_keys = Arc::new(own_keys(&all_keys, kind));
        let (selection, definition) = (selection(&all_keys, kind), definition(all_keys));
        let spec = |homeserver: String| JobSpec {
            name: if is_list { format!("{name}@{homeserver}") } else { name.to_owned() },
            homeserver,
            schedule: schedule.clone(),
            zone: common.timezone.unwrap_or(surroundings.zone),
            common: Arc::clone(&common),
            job: Arc::clone(&job),
            media_in_object_storage: false,
            splay_seed: 0,
            selection: selection.clone(),
            own_keys: Arc::clone(&own_keys),
            written: Arc::clone(&written),
            definition: definition.clone(),
        };
        Some(homeservers?.into_iter().map(spec).collect())
    }

    fn reject_limits_of_uncounted(
        &mut self,
        kind: &Kind,
        own: &DeTable<'_>,
        common: &CommonEntries,
    ) {
        let limits = [("max_changes", &common.max_changes.span), ("at_most", &common.at_most.span)];
        for (key, span) in limits {
            if !kind.counts && own.contains_key(key) {
                let text = format!(
                    "`{key}` is not supported by {}, which cannot count items in advance: remove it",
                    kind.name
                );
                self.error(span.clone(), text);
            }
        }
    }

    fn check_window(
        &mut self,
        schedule: &Schedule,
        common: &CommonKeys,
        span: std::ops::Range<usize>,
    ) {
        let Some(window) = common.window else { return };
        // Days on which clocks change do not count, as in UTC.
        if schedule.next_in(window, self.now, Zone(chrono_tz::UTC)).is_none() {
            let text = format!(
                "the schedule {:?} has no occurrence in the window {window}, so the job would never run: change one of them",
                schedule.as_str()
            );
            self.error(span, text);
        }
    }

    /// The homeservers that a job names, or the only one there is; `None` where the key is wrong.
    fn homeservers_of(
        &mut self,
        entry: &Entry<Option<HomeserverNames>>,
        known: &[&str],
        table: &Table<'_, '_>,
    ) -> Option<Vec<String>> {
        let names = entry.value.as_ref()?;
        // Having no homeserver at all is reported elsewhere.
        if known.is_empty() {
            return Some(Vec::new());
        }
        let Some(names) = names else {
            if let [only] = known {
                return Some(vec![(*only).to_owned()]);
            }
            self.error(table.span.clone(), format!("`homeserver` is missing, and several are configured: add `homeserver = \"…\"` with one of {}, or a list of them", join_some(known)));
            return Some(Vec::new());
        };
        // Each once, whether by name or by glob.
        let mut chosen = BTreeSet::new();
        for name in &names.names {
            if is_glob(name) {
                let Ok(glob) = name.parse::<Glob>();
                let matching = known.iter().filter(|known| glob.matches(known));
                let before = chosen.len();
                chosen.extend(matching.map(|known| (*known).to_owned()));
                if chosen.len() == before && !known.iter().any(|known| glob.matches(known)) {
                    let text =
                        format!("\"{name}\" matches no homeserver: the job does not run there");
                    self.warn(entry.span.clone(), text);
                }
            } else if known.binary_search(&name.as_str()).is_ok() {
                chosen.insert(name.clone());
            } else {
                self.error(entry.span.clone(), unknown("homeserver", name, known));
            }
        }
        Some(chosen.into_iter().collect())
    }
}

/// What the job selects and does, whatever the common keys say.
fn selection(all_keys: &Value, kind: &Kind) -> Fingerprint {
    let own: Vec<_> = kind.keys.iter().map(|key| (key.name, all_keys.get(key.name))).collect();
    Fingerprint::of(&json!([kind.name, own]))
}

/// What the kind's own keys say, each for itself.
fn own_keys(all_keys: &Value, kind: &Kind) -> BTreeMap<&'static str, Fingerprint> {
    let value = |name| all_keys.get(name).map(Fingerprint::of);
    kind.keys.iter().filter_map(|key| Some((key.name, value(key.name)?))).collect()
}

/// The definition of the job, without homeserver and time zone, which may be set elsewhere.
fn definition(mut definition: Value) -> Fingerprint {
    if let Some(keys) = definition.as_object_mut() {
        keys.retain(|key, _| key != "homeserver" && key != "timezone");
    }
    Fingerprint::of(&definition)
}

/// Warns of a schedule with seconds that occurs more than once a minute, which is rarely intended.
fn too_frequent(schedule: &Schedule, now: Timestamp) -> Option<String> {
    let (text, (minute_fields, _)) = (schedule.as_str(), schedule.as_str().rsplit_once(' ')?);
    if text.split_whitespace().count() != 6 {
        return None;
    }
    let next: Vec<_> = schedule.after(now, Zone(chrono_tz::UTC)).take(3).collect();
    let shortest = next.windows(2).map(|pair| (pair[1] - pair[0]).num_seconds()).min()?;
    (shortest < 60).then(|| {
        format!(
            "`{text}` has six fields, the first of which is seconds, and occurs every {shortest} s (did you mean `{}`?)",
            minute_fields.trim_end()
        )
    })
}
