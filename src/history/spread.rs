//! Which leases a replica takes and which it gives away, so that homeservers are spread evenly: no clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};

/// A lease as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub homeserver: String,
    pub holder: String,
    pub state: LeaseState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    Valid,
    Expired,
    /// Nobody has taken it for so long that those who should cannot.
    Abandoned,
}

/// A daemon that was seen lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    pub id: String,
    pub name: String,
    pub config: String,
}

/// What a replica is to do about its leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shares {
    pub take: Vec<String>,
    /// How many leases others should have instead.
    pub surplus: usize,
}

/// Decides for the replica `me`, which knows these homeservers.
pub fn shares(
    me: &str,
    homeservers: &BTreeSet<String>,
    leases: &[Lease],
    replicas: &[Replica],
) -> Shares {
    let known: BTreeMap<&str, &Lease> =
        leases.iter().map(|lease| (lease.homeserver.as_str(), lease)).collect();
    let count = |holder: &str| {
        let held = |lease: &&Lease| lease.holder == holder && lease.state == LeaseState::Valid;
        leases.iter().filter(held).filter(|lease| homeservers.contains(&lease.homeserver)).count()
    };
    let config = replicas.iter().find(|replica| replica.id == me).map(|replica| &replica.config);
    // One with another configuration may not know the homeserver.
    let others: Vec<&Replica> = replicas
        .iter()
        .filter(|replica| replica.id != me && Some(&replica.config) == config)
        .collect();
    let share = homeservers.len().div_ceil(others.len() + 1);
    let mine = count(me);
    let is_free = |homeserver: &&String| {
        known.get(homeserver.as_str()).is_none_or(|lease| lease.state != LeaseState::Valid)
    };
    let is_abandoned = |homeserver: &&String| {
        known.get(homeserver.as_str()).is_some_and(|lease| lease.state == LeaseState::Abandoned)
    };
    let room = share.saturating_sub(mine);
    let (mut free, mut take): (Vec<&String>, Vec<String>) =
        (homeservers.iter().filter(is_free).collect(), Vec::new());
    take.extend(free.drain(..room.min(free.len())).cloned());
    take.extend(free.into_iter().filter(is_abandoned).cloned());
    // Nobody gives below a share that all have, and nobody keeps more than the largest one.
    let above = |limit: usize| {
        let missing: usize =
            others.iter().map(|other| limit.saturating_sub(count(&other.id))).sum();
        mine.saturating_sub(limit).min(missing)
    };
    let surplus = above(share).max(above(homeservers.len() / (others.len() + 1)));
    let surplus = if take.is_empty() { surplus } else { 0 };
    Shares { take, surplus }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(ids: &[&str]) -> Vec<Replica> {
        ids.iter()
            .map(|id| Replica {
                id: (*id).to_owned(),
                name: (*id).to_owned(),
                config: "same".to_owned(),
            })
            .collect()
    }

    fn homeservers(count: usize) -> BTreeSet<String> {
        (0..count).map(|number| format!("hs{number:03}")).collect()
    }

    /// Each replica looks in turn and does at once what was decided; returns how many leases each has in the end.
    fn settle(
        count: usize,
        mut leases: Vec<Lease>,
        replicas: &[Replica],
        rounds: usize,
    ) -> Vec<usize> {
        let known = homeservers(count);
        for _ in 0..rounds {
            for replica in replicas {
                let shares = shares(&replica.id, &known, &leases, replicas);
                for homeserver in shares.take {
                    leases.retain(|lease| lease.homeserver != homeserver);
                    let holder = replica.id.clone();
                    leases.push(Lease { homeserver, holder, state: LeaseState::Valid });
                }
                let mine = leases.iter_mut().filter(|lease| lease.holder == replica.id);
                let mine = mine.filter(|lease| lease.state == LeaseState::Valid);
                mine.take(shares.surplus).for_each(|lease| lease.state = LeaseState::Expired);
            }
        }
        let held = |id: &str| {
            let held = |lease: &&Lease| lease.holder == id && lease.state == LeaseState::Valid;
            leases.iter().filter(held).count()
        };
        replicas.iter().map(|replica| held(&replica.id)).collect()
    }

    #[test]
    fn leases_spread_evenly_whoever_came_first() {
        for (count, ids, expected) in [
            (1, &["a"][..], &[1][..]),
            (1, &["a", "b"], &[1, 0]),
            (4, &["a", "b"], &[2, 2]),
            (5, &["a", "b"], &[3, 2]),
            (500, &["a", "b", "c"], &[167, 167, 166]),
            (2, &["a", "b", "c"], &[1, 1, 0]),
        ] {
            let mut held = settle(count, Vec::new(), &replicas(ids), 3);
            held.sort_unstable_by(|one, other| other.cmp(one));
            assert_eq!(held, expected, "{count} on {ids:?}");
        }
    }

    #[test]
    fn a_replica_that_comes_later_gets_its_share_and_no_lease_moves_any_more() {
        for count in [2, 3, 4, 7, 500] {
            let all: Vec<Lease> = homeservers(count)
                .into_iter()
                .map(|homeserver| Lease {
                    homeserver,
                    holder: "a".to_owned(),
                    state: LeaseState::Valid,
                })
                .collect();
            let both = replicas(&["a", "b"]);
            let held = settle(count, all.clone(), &both, 4);
            assert_eq!(held.iter().sum::<usize>(), count);
            assert!(held[0].abs_diff(held[1]) <= 1, "{held:?}");
            assert_eq!(settle(count, all, &both, 9), held);
        }
    }

    #[test]
    fn what_another_configuration_may_not_know_and_what_nobody_takes_is_taken_beyond_the_share() {
        let mut both = replicas(&["a", "b"]);
        both[1].config = "other".to_owned();
        let known = homeservers(4);
        assert_eq!(shares("a", &known, &[], &both).take.len(), 4);
        let abandoned: Vec<Lease> = known
            .iter()
            .map(|homeserver| Lease {
                homeserver: homeserver.clone(),
                holder: "gone".to_owned(),
                state: LeaseState::Abandoned,
            })
            .collect();
        let same = replicas(&["a", "b"]);
        assert_eq!(shares("a", &known, &abandoned, &same).take.len(), 4);
    }
}
