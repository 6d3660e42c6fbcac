//! Plans the removal of links in MAS: all links are read once, and joined in memory with the accounts.
//!
//! Not in rounds: whether a link is its account's last one shows only in all of them, and a page has a thousand.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::super::job::{Context, PlanError};
use super::keys::Keys;
use super::link_criteria::{LinkCriteria, Verdict, is_active};
use super::link_removal::LinkRemoval;
use super::upstream_providers::UpstreamProviders;
use crate::mas::{self, Link, Links, Resource, Ulid, User};
use crate::plan::change::{Change, Plan, Warning, Work};
use crate::plan::report::Exempt;
use crate::values::glob::{Matched, unmatched};
use crate::values::text::format_count;

/// Finds the providers that the job names.
pub(super) async fn providers(
    keys: &Keys,
    mas: &mas::Reader,
) -> Result<UpstreamProviders, PlanError> {
    UpstreamProviders::find(&keys.providers, &mas.providers().await?).map_err(PlanError::Refused)
}

pub(super) async fn plan(
    keys: &Arc<Keys>,
    context: &Context<'_>,
    mas: &mas::Reader,
    plan: &mut Plan,
) -> Result<(), PlanError> {
    let identity = context.identity().await?;
    let criteria = Arc::new(LinkCriteria {
        keys: Arc::clone(keys),
        providers: providers(keys, mas).await?,
        started_at: context.started_at,
        server_name: identity.server_name.clone(),
        own: identity.account.name.clone(),
    });
    let found = FoundLinks::read(&criteria, context, mas).await?;
    let mut planning = Planning {
        criteria: &criteria,
        users: read_users(&criteria, context, mas, &found).await?,
        other_links: found.other_links,
        planned: BTreeMap::new(),
        changes: Vec::new(),
    };
    for link in found.matching {
        planning.link(link, plan);
    }
    let Planning { users, planned, changes, .. } = planning;
    note(&criteria, &found.globs, &users.seen, &planned, plan);
    let actives = changes.iter().filter(|change| users.is_active(&change.link.attributes)).count();
    if actives > 0 {
        plan.notes.push(format!(
            "{} of active accounts: where the provider has `on_conflict: add`, a removed link returns at the next login; with `fail`, the default, its user can no longer log in through the provider; sessions continue",
            format_count(actives as u64, "link", "links")
        ));
    }
    if !changes.is_empty() {
        plan.notes.push(
            "the external ids in Synapse mean nothing under MAS and are not changed".to_owned(),
        );
    }
    plan.some_up_to_date = true;
    plan.work = Work::Changes(
        changes.into_iter().map(|change| Box::new(change) as Box<dyn Change>).collect(),
    );
    Ok(())
}

/// What all links of MAS come down to.
#[derive(Default)]
struct FoundLinks {
    /// Of the job's providers, with a subject that it names.
    matching: Vec<Resource<Link>>,
    /// The accounts with another link that they can log in with.
    other_links: HashSet<Ulid>,
    /// Which globs of `external_ids` matched.
    globs: Matched,
}

impl FoundLinks {
    async fn read(
        criteria: &LinkCriteria,
        context: &Context<'_>,
        mas: &mas::Reader,
    ) -> Result<Self, PlanError> {
        let (mut found, mut read, mut after) = (Self::default(), 0, None);
        loop {
            let page = mas.links_page(Links::All, after.as_ref()).await?;
            read += page.rows.len() as u64;
            context.reading("links", read, 0);
            for link in page.rows {
                found.add(link, criteria);
            }
            after = page.next;
            if after.is_none() {
                return Ok(found);
            }
        }
    }

    fn add(&mut self, link: Resource<Link>, criteria: &LinkCriteria) {
        if criteria.providers.name(&link.attributes.provider_id).is_some() {
            for (index, glob) in criteria.keys.external_ids.iter().enumerate() {
                if glob.matches(&link.attributes.subject) {
                    self.globs.record(index);
                }
            }
        }
        if criteria.matches(&link.attributes) {
            self.matching.push(link);
        } else if criteria.remains_usable(&link.attributes) {
            self.other_links.extend(link.attributes.user_id);
        }
    }
}

/// The accounts that have a matching link; those in the selected states at least.
struct Users {
    by_id: HashMap<Ulid, User>,
    /// Which patterns matched an account that was read.
    seen: Matched,
}

impl Users {
    fn is_active(&self, link: &Link) -> bool {
        link.user_id.as_ref().and_then(|id| self.by_id.get(id)).is_some_and(is_active)
    }
}

async fn read_users(
    criteria: &LinkCriteria,
    context: &Context<'_>,
    mas: &mas::Reader,
    found: &FoundLinks,
) -> Result<Users, PlanError> {
    let owners: HashSet<&Ulid> =
        found.matching.iter().filter_map(|link| link.attributes.user_id.as_ref()).collect();
    let mut users = Users { by_id: HashMap::new(), seen: Matched::default() };
    let mut read = 0;
    let mut add = |rows: Vec<Resource<User>>| {
        read += rows.len() as u64;
        context.reading("accounts", read, 0);
        for Resource { id, attributes } in rows {
            criteria.judge(&attributes, &mut users.seen);
            if owners.contains(&id) {
                users.by_id.insert(id, attributes);
            }
        }
    };
    if let Some(statuses) = criteria.statuses() {
        for status in statuses {
            add(mas.users(status).await?);
        }
    } else {
        let mut after = None;
        loop {
            let page = mas.users_page(after.as_ref()).await?;
            add(page.rows);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(users)
}

struct Planning<'a> {
    criteria: &'a Arc<LinkCriteria>,
    users: Users,
    other_links: HashSet<Ulid>,
    /// How many links of each provider are removed.
    planned: BTreeMap<String, u64>,
    changes: Vec<LinkRemoval>,
}

impl Planning<'_> {
    fn link(&mut self, link: Resource<Link>, plan: &mut Plan) {
        let criteria = self.criteria;
        let provider = criteria.providers.name(&link.attributes.provider_id).unwrap_or_default();
        let identity = format!("{provider}:{}", link.attributes.subject);
        let Some(user_id) = &link.attributes.user_id else {
            let target = format!("no account -> {identity}");
            if !criteria.keys.orphans {
                plan.leave_alone(Exempt::Orphan, || target);
            } else if criteria.is_recent_orphan(&link.attributes) {
                plan.leave_alone(Exempt::RecentOrphan, || target);
            } else {
                self.remove(link, target, None);
            }
            return;
        };
        // It is in another state, or new.
        let Some(user) = self.users.by_id.get(user_id) else {
            plan.leave_alone(Exempt::NotSelected, || format!("account {user_id} -> {identity}"));
            return;
        };
        let target = format!("{} -> {identity}", criteria.user_id(user));
        let is_last = is_active(user) && !self.other_links.contains(user_id);
        match criteria.judge(user, &mut Matched::default()) {
            Verdict::Ignore => {}
            Verdict::LeaveAlone(exempt) => plan.leave_alone(exempt, || target),
            Verdict::Remove if is_last && criteria.keys.keep_last => {
                plan.leave_alone(Exempt::LastId, || target);
            }
            Verdict::Remove => self.remove(link, target, is_last.then_some(Warning::LastIds)),
        }
    }

    fn remove(&mut self, link: Resource<Link>, target: String, warning: Option<Warning>) {
        let provider = self.criteria.providers.name(&link.attributes.provider_id);
        *self.planned.entry(provider.unwrap_or_default().to_owned()).or_default() += 1;
        let criteria = Arc::clone(self.criteria);
        self.changes.push(LinkRemoval { link, target, warning, criteria });
    }
}

/// Notes which names matched nothing, and what `keep_last` cannot know.
fn note(
    criteria: &LinkCriteria,
    globs: &Matched,
    users: &Matched,
    planned: &BTreeMap<String, u64>,
    plan: &mut Plan,
) {
    let keys = &criteria.keys;
    for name in criteria.providers.names().filter(|name| !planned.contains_key(*name)) {
        plan.notes.push(format!("`{name}` has no link to remove"));
    }
    for (_, glob) in
        keys.external_ids.iter().enumerate().filter(|(index, _)| !globs.contains(*index))
    {
        plan.notes.push(format!("`{}` matched no id of these providers", glob.text));
    }
    for pattern in unmatched(&keys.users, &keys.except_users, users) {
        plan.notes.push(format!("`{pattern}` matched no account"));
    }
    if keys.keep_last && plan.left_alone.contains_key(&Exempt::LastId) {
        plan.notes.push(
            "MAS does not report who has a password, so `keep_last` counts links only".to_owned(),
        );
    }
}
